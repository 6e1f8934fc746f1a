"""What a person at the terminal sees: logs, the live table, the summary. All of it on stderr."""

from __future__ import annotations

import logging
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

from streampose.metrics import RunSummary, SourceSummary
from streampose.redact import redact
from streampose.types import PoseFrame

if TYPE_CHECKING:
    from streampose.control import CameraState
    from streampose.doctor import Finding
    from streampose.engines.manifest import Manifest

log = logging.getLogger(__name__)

_LINES_EVERY_S = 5.0
_WINDOW = 300
_WINDOW_S = 3.0
_COLUMNS = (
    "source", "state", "frames", "fps", "latency p50 ms", "people", "dropped", "reconnects", "last frame s",
)  # fmt: skip


class _Formatter(logging.Formatter):
    """Plain lines, credentials replaced, tracebacks left to --debug."""

    def __init__(self, debug: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
        self._debug = debug

    def format(self, record: logging.LogRecord) -> str:
        if not self._debug:
            record.exc_info = record.exc_text = record.stack_info = None
        return redact(super().format(record))


class _JsonFormatter(logging.Formatter):
    """A line of JSON for each record, credentials replaced."""

    def __init__(self, debug: bool) -> None:
        super().__init__()
        self._debug = debug

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        for name in ("source", "summary"):
            if hasattr(record, name):
                fields[name] = getattr(record, name)
        if self._debug and record.exc_info:
            fields["traceback"] = redact(self.formatException(record.exc_info))
        return msgspec.json.encode(fields).decode()


class _ConsoleHandler(logging.Handler):
    """Through the console, so that lines go above the live table."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def set_up_logging(debug: bool, as_json: bool = False) -> Console:
    """Send the library's logs to stderr, from INFO on, with `debug` from DEBUG on; returns the console for stderr.

    Args:
        debug: debug logs and tracebacks too.
        as_json: a JSON object a line, with time, level, logger, message, and source where it is about one.
    """
    console = Console(stderr=True)
    plain = as_json or not console.is_terminal
    handler = logging.StreamHandler(sys.stderr) if plain else _ConsoleHandler(console)
    handler.setFormatter(_JsonFormatter(debug) if as_json else _Formatter(debug))
    logger = logging.getLogger("streampose")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False
    return console


@dataclass(slots=True)
class _Row:
    """The last results of one source."""

    times_s: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    frames: int = 0
    people: int = 0
    dropped: int = 0
    state: str = ""

    def fps(self, now_s: float) -> float:
        """Results a second over the last three seconds."""
        recent = [at for at in self.times_s if now_s - at <= _WINDOW_S]
        return (len(recent) - 1) / (now_s - recent[0]) if len(recent) > 1 else 0.0


class Screen:
    """A run as it goes: a live table on a terminal, a line a source every five seconds elsewhere.

    A context manager, which shows the summary when left; any thread may tell it things. It is a `runner.Watcher`.

    Args:
        console: of stderr.
        live: show the table if this is a terminal.
        as_json: log the summary instead of showing it.

    Attributes:
        summary: of the run, once it has ended.
    """

    def __init__(self, console: Console, live: bool = True, as_json: bool = False) -> None:
        self._as_json = as_json
        self.summary: RunSummary | None = None
        self._console = console
        self._lock = threading.Lock()
        self._rows: dict[str, _Row] = {}
        self._measured: RunSummary | None = None
        self._live = Live(self, console=console, transient=True) if live and console.is_terminal else None
        self._next_s = time.monotonic() + _LINES_EVERY_S

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        if self._as_json and self.summary is not None:
            log.info("%s", _summary_lines(self.summary)[0], extra={"summary": summary_fields(self.summary)})
            return
        for line in _summary_lines(self.summary) if self.summary else ():
            self._console.print(redact(line), markup=False, highlight=False, soft_wrap=True)

    def add(self, frame: PoseFrame) -> None:
        """One result."""
        with self._lock:
            row = self._rows.setdefault(frame.source, _Row())
            row.times_s.append(time.monotonic())
            row.latencies_ms.append((frame.published_ns - frame.captured_ns) / 1e6)
            row.frames += 1
            row.people = len(frame.people)
            row.dropped = frame.dropped

    def set_state(self, source: str, state: str) -> None:
        """What the source is doing."""
        with self._lock:
            self._rows.setdefault(source, _Row()).state = state

    def forget(self, source: str) -> None:
        """The source was removed: it has no line any more."""
        with self._lock:
            self._rows.pop(source, None)

    def tick(self, summary: RunSummary | None = None) -> None:
        """Take in what was measured, and log the lines when it is time for them."""
        self._measured = summary or self._measured
        if self._live is not None or time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + _LINES_EVERY_S
        for source, state, frames, fps, latency, people, dropped, reconnects, age in self._cells():
            log.info(
                "%s: %s, %s frames, %s fps, latency p50 %s ms, %s people, %s dropped, %s reconnects, last %s s ago",
                source, state, frames, fps, latency, people, dropped, reconnects, age, extra={"source": source},
            )  # fmt: skip

    def end(self, summary: RunSummary) -> None:
        """Keep the summary, to show it when the screen is left."""
        self.summary = summary

    def __rich__(self) -> Table:
        table = Table(box=None, pad_edge=False, caption=self._stages(), caption_justify="left")
        for name in _COLUMNS:
            table.add_column(name, justify="left" if name in ("source", "state") else "right")
        for cells in self._cells():
            table.add_row(*cells)
        return table

    def _stages(self) -> str | None:
        """The time of each stage, and how many people share a call."""
        if self._measured is None or not self._measured.stages:
            return None
        stages = ", ".join(f"{name} {stage.median_ms:.1f}" for name, stage in self._measured.stages.items())
        return f"median ms: {stages}; {self._measured.people_per_batch:.1f} people a call"

    def _cells(self) -> list[tuple[str, ...]]:
        now_s = time.monotonic()
        measured = self._measured.sources if self._measured is not None else {}
        with self._lock:
            return [
                (
                    source,
                    row.state,
                    str(row.frames),
                    f"{row.fps(now_s):.1f}",
                    f"{statistics.median(row.latencies_ms):.0f}" if row.latencies_ms else "-",
                    str(row.people),
                    str(row.dropped),
                    str(measured[source].reconnects if source in measured else 0),
                    _age(measured.get(source)),
                )
                for source, row in self._rows.items()
            ]


def _age(source: SourceSummary | None) -> str:
    return "-" if source is None or source.age_s is None else f"{source.age_s:.1f}"


def _summary_lines(summary: RunSummary) -> list[str]:
    """A finished run in a few lines."""
    lines = [
        f"{summary.frames} frames in {summary.seconds:.1f} s ({summary.fps:.1f} fps), {summary.poses} poses, "
        f"{summary.dropped} dropped"
    ]
    for name, source in summary.sources.items():
        drops = ", ".join(f"{count} {reason}" for reason, count in source.dropped.items() if count) or "none"
        again = f", reconnected {source.reconnects} times" if source.reconnects else ""
        lines.append(f"{name}: {source.outcome}, {source.frames} frames, dropped: {drops}{again}")
    if summary.stages:
        stages = ", ".join(f"{name} {s.median_ms:.1f}/{s.p95_ms:.1f}" for name, s in summary.stages.items())
        lines.append(f"median/p95 ms: {stages}")
    if summary.batches:
        lines.append(f"{summary.people_per_batch:.1f} people a call of the engine")
    return lines


def summary_fields(summary: RunSummary) -> dict[str, Any]:
    """The fields of a `RunSummary`, and `fps`."""
    return {"fps": summary.fps, **msgspec.to_builtins(summary)}


def to_json(value: object) -> bytes:
    """Dataclasses, structs and what they are made of as one line of JSON, newline included."""
    return msgspec.json.encode(value) + b"\n"


def manifest_line(manifest: Manifest) -> str:
    """A bundle in one line."""
    height, width = manifest.input_size
    return f"{manifest.name:<12} {manifest.kind:<16} {manifest.target} {manifest.precision}, input {height}x{width}"


class Imported(Protocol):
    """What became of a public checkpoint's tensors; see `streampose.model.ImportReport`."""

    @property
    def kind(self) -> str: ...
    @property
    def network(self) -> dict[str, Any]: ...
    @property
    def used(self) -> tuple[str, ...]: ...
    @property
    def missing(self) -> tuple[str, ...]: ...
    @property
    def reshaped(self) -> tuple[str, ...]: ...
    @property
    def left_over(self) -> tuple[str, ...]: ...


def import_lines(report: Imported) -> list[str]:
    """What `import-weights` says: the network, and how many tensors were used and were not, with the first names."""
    network = report.network
    lines = [f"{report.kind}: {network['backbone']}, variant {network['variant']}, joints of {network['skeleton']}"]
    for what, names, note in (
        ("used", report.used, ""),
        ("missing", report.missing, " (random values)"),
        ("of another shape", report.reshaped, " (not used)"),
        ("left over", report.left_over, " (not used)"),
    ):
        first = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        lines.append(f"{what}: {len(names)}{note if names else ''}{': ' + first if names else ''}")
    return lines


def report_lines(report: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What became of the data, set by set, a line a reason."""
    return [f"{name}: {count} {reason}" for name, counts in report.items() for reason, count in counts.items()]


def bundle_text(folder: Path, manifest: Manifest) -> str:
    """A bundle's manifest as `key: value` lines, then its card, if it has one."""
    fields = msgspec.to_builtins(manifest)
    lines = [f"{key}: {_joined(value)}" for key, value in {"folder": str(folder), **fields}.items()]
    card = folder / "CARD.md"
    if card.is_file():
        lines += ["", card.read_text(encoding="utf-8").rstrip()]
    return "\n".join(lines)


def _joined(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def camera_line(camera: CameraState, width: int = 16) -> str:
    """One camera of a run as a line for people to read; its name takes so many columns."""
    dropped = sum(camera.dropped.values())
    age = f"{camera.age_s:.1f} s ago" if camera.age_s is not None else "no frame yet"
    why = f"  {camera.error}" if camera.error and camera.state in ("offline", "waiting") else ""
    return (
        f"{camera.name:<{width}} {camera.state:<8} {camera.fps:>5.4g} fps announced  {age}, {dropped} dropped, "
        f"{camera.reconnects} reconnects  {camera.uri}{why}\n"
    )


def finding_line(finding: Finding) -> str:
    """One finding of the doctor as a line for people to read, and one with what mends it."""
    mend = f"{'':<19}-> {finding.mend}\n" if finding.mend else ""
    return f"{finding.verdict:<8} {finding.area:<9} {finding.text}\n{mend}"


def frame_line(frame: PoseFrame) -> str:
    """One received frame as a line for people to read."""
    latency_ms = (time.monotonic_ns() - frame.captured_ns) / 1e6
    people = "  ".join(f"#{p.track_id} {p.score:.2f} at {p.box[0]:.0f},{p.box[1]:.0f}" for p in frame.people)
    return (
        f"{frame.source:<12} frame {frame.frame_index:>7}  {len(frame.people):>2} people  {latency_ms:>6.0f} ms  "
        f"{frame.missed:>3} missed  {people}".rstrip()
        + "\n"
    )
