"""What a run measured: seconds a stage, counts, drops."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

STAGES = ("decode", "queue", "detect", "encode", "fuse", "total")
"""decode: stream to BGR; queue: waiting in the ring; detect: a detector run; crop, encode, fuse: all people of a round;
total: from capture to result."""
_KEPT = 4096


@dataclass(frozen=True, slots=True)
class StageSummary:
    """Times of one stage: how often, and milliseconds of the last 4,096."""

    count: int
    median_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """What became of one source.

    Attributes:
        frames: results given.
        dropped: frames decoded and not estimated, by reason.
        outcome: "ended", "disconnected", "decode-failed", "stopped" or "open".
        error: the message where it ended in error.
    """

    frames: int
    dropped: dict[str, int]
    outcome: str
    error: str | None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run in numbers.

    Attributes:
        frames: results given, all sources.
        poses: people in them, summed.
        seconds: wall time from the first request for a result.
        stages: by name, in the order of `STAGES`, those that ran.
        sources: by source id.
    """

    frames: int
    poses: int
    seconds: float
    stages: dict[str, StageSummary]
    sources: dict[str, SourceSummary]

    @property
    def fps(self) -> float:
        """Results a second of wall time."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    @property
    def dropped(self) -> int:
        """Frames decoded and not estimated, all sources and reasons."""
        return sum(sum(source.dropped.values()) for source in self.sources.values())


@dataclass(slots=True)
class _Series:
    count: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))


class Metrics:
    """Counters and times of a run; any thread may add and read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: dict[str, _Series] = {}
        self._counts: Counter[str] = Counter()

    def observe(self, stage: str, seconds: float) -> None:
        """One time of a stage, seconds."""
        with self._lock:
            series = self._series.setdefault(stage, _Series())
            series.count += 1
            series.seconds.append(seconds)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """The wall time of a block as one time of a stage."""
        began = time.perf_counter()
        yield
        self.observe(stage, time.perf_counter() - began)

    def add(self, name: str, count: int = 1) -> None:
        """Raise a counter."""
        with self._lock:
            self._counts[name] += count

    def count(self, name: str) -> int:
        """A counter's value, 0 where it was never raised."""
        with self._lock:
            return self._counts[name]

    def stages(self) -> dict[str, StageSummary]:
        """The summaries of all stages seen so far; `STAGES` first, in their order."""
        with self._lock:
            seen = {name: (series.count, np.array(series.seconds) * 1e3) for name, series in self._series.items()}
        names = [name for name in STAGES if name in seen] + [name for name in seen if name not in STAGES]
        return {
            name: StageSummary(seen[name][0], float(np.median(seen[name][1])), float(np.percentile(seen[name][1], 95)))
            for name in names
        }
