"""What a run measured: seconds a stage, counts, drops."""

from __future__ import annotations

import bisect
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

STAGES = ("decode", "queue", "detect", "encode", "fuse", "publish", "total")
"""decode: stream to BGR; queue: from capture until inference takes it; detect: a detector run; encode (with the crops),
fuse: all people of a round; publish: all outputs of a result; total: from capture to result. Decode, queue and total
are of one source."""
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of the histograms of times, seconds."""
BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Upper bounds of the histogram of people in an engine call."""
_KEPT = 2048


@dataclass(frozen=True, slots=True)
class StageSummary:
    """Times of one stage: how often, and milliseconds of the last 2,048 (of each source)."""

    count: int
    median_ms: float
    p95_ms: float
    p99_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """What became of one source.

    Attributes:
        frames: results given.
        dropped: frames that came and were not estimated, by reason.
        outcome: "ended", "disconnected", "decode-failed", "stopped" or "open".
        error: the message where it ended in error; of a camera, why it was not connected at the end.
        reconnects: connections after the first.
        epoch: of the last frame.
        latency: from capture to result.
        age_s: since its last frame came, seconds; None before the first.
    """

    frames: int
    dropped: dict[str, int]
    outcome: str
    error: str | None
    reconnects: int = 0
    epoch: int = 0
    latency: StageSummary | None = None
    age_s: float | None = None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run in numbers.

    Attributes:
        frames: results given, all sources.
        poses: people in them, summed.
        seconds: wall time from the first request for a result.
        stages: by name, in the order of `STAGES`, those that ran.
        sources: by source id; also those that were removed.
        batches: engine calls.
        people_per_batch: people in an engine call, on average.
    """

    frames: int
    poses: int
    seconds: float
    stages: dict[str, StageSummary]
    sources: dict[str, SourceSummary]
    batches: int = 0
    people_per_batch: float = 0.0

    @property
    def fps(self) -> float:
        """Results a second of wall time."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    @property
    def dropped(self) -> int:
        """Frames that came and were not estimated, all sources and reasons."""
        return sum(sum(source.dropped.values()) for source in self.sources.values())


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values were at most each bound, and their sum; the last of `counts` is of those above all bounds."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """All values."""
        return sum(self.counts)


@dataclass(slots=True)
class _Series:
    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0
    last: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def add(self, value: float) -> None:
        if not self.counts:
            self.counts = [0] * (len(self.bounds) + 1)
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value
        self.last.append(value)


class Metrics:
    """Counters and times of a run; any thread may add and read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: dict[tuple[str, str], _Series] = {}
        self._batches = _Series(BATCH_BOUNDS)
        self._counts: Counter[str] = Counter()

    def observe(self, stage: str, seconds: float, source: str = "") -> None:
        """One time of a stage, seconds; `source` where it is of one source alone."""
        with self._lock:
            series = self._series.get((stage, source))
            if series is None:
                series = self._series[stage, source] = _Series(BOUNDS_S)
            series.add(seconds)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """The wall time of a block as one time of a stage."""
        began = time.perf_counter()
        yield
        self.observe(stage, time.perf_counter() - began)

    def batch(self, people: int) -> None:
        """One call of the engine for so many people."""
        with self._lock:
            self._batches.add(people)

    def add(self, name: str, count: int = 1) -> None:
        """Raise a counter."""
        with self._lock:
            self._counts[name] += count

    def count(self, name: str) -> int:
        """A counter's value, 0 where it was never raised."""
        with self._lock:
            return self._counts[name]

    def forget(self, source: str) -> None:
        """Drop the times of a source that was removed."""
        with self._lock:
            for key in [key for key in self._series if key[1] == source]:
                del self._series[key]

    def histograms(self) -> dict[tuple[str, str], Histogram]:
        """The histograms of times so far, by stage and source ("" where it is of all)."""
        with self._lock:
            return {key: Histogram(s.bounds, tuple(s.counts), s.sum) for key, s in self._series.items()}

    def batches(self) -> Histogram:
        """The histogram of people in an engine call."""
        with self._lock:
            counts = tuple(self._batches.counts) or (0,) * (len(BATCH_BOUNDS) + 1)
            return Histogram(BATCH_BOUNDS, counts, self._batches.sum)

    def stages(self) -> dict[str, StageSummary]:
        """The summaries of all stages seen so far, over all sources; `STAGES` first, in their order."""
        with self._lock:
            seen: dict[str, list[_Series]] = {}
            for (stage, _), series in self._series.items():
                seen.setdefault(stage, []).append(series)
            copies = {
                stage: (sum(sum(s.counts) for s in of), [value for s in of for value in s.last])
                for stage, of in seen.items()
            }
        names = [name for name in STAGES if name in copies] + [name for name in copies if name not in STAGES]
        return {name: _summarise(*copies[name]) for name in names}

    def latency(self, source: str) -> StageSummary | None:
        """From capture to result, of one source; None before its first result."""
        with self._lock:
            series = self._series.get(("total", source))
            if series is None:
                return None
            count, values = sum(series.counts), list(series.last)
        return _summarise(count, values)


def _summarise(count: int, seconds: Sequence[float]) -> StageSummary:
    median, p95, p99 = np.percentile(np.array(seconds) * 1e3, [50, 95, 99])
    return StageSummary(count, float(median), float(p95), float(p99))
