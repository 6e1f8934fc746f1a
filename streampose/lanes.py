"""Each source's way through the pipeline, and whose turn it is."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from streampose.estimator import Estimate
from streampose.follower import Follower
from streampose.metrics import Metrics, SourceSummary
from streampose.regions import Region
from streampose.sources import Source, Status
from streampose.types import Frame, Pose, PoseFrame


@dataclass(slots=True)
class Lane:
    """One source's way through the pipeline.

    Attributes:
        source, follower: who gives the frames and who follows the people in them.
        detect_every: the detector looks at one frame in so many.
        regions: where people count; none for everywhere.
        most_frames: results after which it is done; None for no end.
        frames, people: results so far, and people in the last one.
        epoch: of the last frame.
        since_detection, detected_s: frames and presentation time since the detector looked.
        turn: when it was last served, in turns.
        under_way: its last frame is being estimated; the next one waits for where the people were.
    """

    source: Source
    follower: Follower
    detect_every: int
    regions: tuple[Region, ...] = ()
    most_frames: int | None = None
    frames: int = 0
    people: int = 0
    epoch: int = 0
    since_detection: int = 0
    detected_s: float = -math.inf
    turn: int = 0
    under_way: bool = False

    def poses(self, frame: Frame, people: tuple[Pose, ...], skeleton: str, now_ns: int) -> PoseFrame:
        """What is published of a frame of its."""
        return PoseFrame(
            source=frame.source_id,
            epoch=frame.epoch,
            frame_index=frame.index,
            pts_s=frame.pts_s,
            captured_ns=frame.captured_ns,
            published_ns=now_ns,
            width=frame.width,
            height=frame.height,
            skeleton=skeleton,
            dropped=self.source.ring.dropped,
            people=people,
            clock=frame.clock,
        )

    def summarise(self, metrics: Metrics) -> SourceSummary:
        """What became of it so far."""
        source = self.source
        return SourceSummary(
            frames=self.frames,
            dropped=source.ring.drops,
            outcome=str(source.outcome),
            error=str(source.error) if source.error else None,
            reconnects=source.reconnects,
            epoch=source.epoch,
            latency=metrics.latency(source.id),
            age_s=round(source.age_s, 3) if source.age_s < math.inf else None,
        )

    @property
    def done(self) -> bool:
        """Nothing more comes of it."""
        return self.source.finished or self.full

    @property
    def full(self) -> bool:
        """It has had its most results."""
        return self.most_frames is not None and self.frames >= self.most_frames

    @property
    def ready(self) -> bool:
        """It has a frame that can be estimated."""
        return len(self.source.ring) > 0 and not self.done and not self.under_way


@dataclass(frozen=True, slots=True)
class Round:
    """Frames that are being estimated together.

    Attributes:
        batch: one frame of each of some lanes.
        finish: waits for their estimates and gives them.
        began_s: when, by `time.perf_counter`.
    """

    batch: list[tuple[Lane, Frame]]
    finish: Callable[[], list[Estimate]]
    began_s: float


class Lanes:
    """The lanes of a run, by source id. Any thread may look and ask; one takes the frames.

    Attributes:
        wake: set whenever a frame arrives, a source ends, or somebody wants the taker to look around.
    """

    def __init__(self) -> None:
        self.wake = threading.Event()
        self._lock = threading.Lock()
        self._lanes: dict[str, Lane] = {}
        self._turn = 0

    def __iter__(self) -> Iterator[Lane]:
        with self._lock:
            return iter(tuple(self._lanes.values()))

    def __len__(self) -> int:
        return len(self._lanes)

    def __getitem__(self, source_id: str) -> Lane:
        with self._lock:
            return self._lanes[source_id]

    def add(self, lane: Lane) -> None:
        """Take a lane in; it is served first."""
        lane.source.ring.listen(self.wake)
        with self._lock:
            self._lanes[lane.source.id] = lane
        self.wake.set()

    def remove(self, source_id: str) -> None:
        """Let a lane go."""
        with self._lock:
            del self._lanes[source_id]

    def names_after(self, asked: Iterable[Source | str]) -> list[str]:
        """The ids of the sources once some are added and others, which are named, removed."""
        names = [lane.source.id for lane in self]
        for change in asked:
            if isinstance(change, str):
                names.remove(change)
            else:
                names.append(change.id)
        return names

    def take(self, most: int, wait_s: float) -> list[tuple[Lane, Frame]]:
        """One frame of each lane that has one; the lane that was served longest ago comes first.

        Args:
            most: frames at most.
            wait_s: how long to wait for cameras that have none yet, once one has.
        """
        ready = self._gather(most, wait_s)
        taken = []
        for lane in sorted(ready, key=lambda lane: lane.turn)[:most]:
            frame = lane.source.read()
            if frame is not None:
                self._turn += 1
                lane.turn = self._turn
                taken.append((lane, frame))
        return taken

    def _gather(self, most: int, wait_s: float) -> list[Lane]:
        """The lanes with a frame; of those that are late, only cameras that are online are waited for."""
        until_s = time.monotonic() + wait_s
        while True:
            lanes = [lane for lane in self if not lane.under_way]
            ready = [lane for lane in lanes if lane.ready]
            expected = sum(
                lane.ready or (lane.source.live and not lane.done and lane.source.status is Status.ONLINE)
                for lane in lanes
            )
            left_s = until_s - time.monotonic()
            if not ready or len(ready) >= min(most, expected) or left_s <= 0:
                return ready
            self.wake.clear()
            self.wake.wait(left_s)
