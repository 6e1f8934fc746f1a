"""From sources to poses: one thread a source reads, the thread that iterates estimates."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from streampose.changes import Changes
from streampose.engines import Engine
from streampose.errors import SourceError, StreamposeError, UsageError
from streampose.estimator import LONGEST_GAP_S, Estimate, Estimator
from streampose.follower import Follower, Track, WholeFrame
from streampose.lanes import Lane, Lanes, Round
from streampose.metrics import Metrics, RunSummary, SourceSummary
from streampose.people import Detector
from streampose.redact import redact
from streampose.regions import inside
from streampose.ring import Drop, FrameRing
from streampose.rounds import RoundSize
from streampose.settings import Settings
from streampose.skeleton import SKELETONS
from streampose.sources import Camera, Outcome, Source, Status
from streampose.tracker import Tracker
from streampose.types import Frame, PoseFrame

LONGEST_UNSEEN_S = 0.25
"""The detector looks at least this often, seconds of the source, however few of its frames are estimated."""
DRAIN_S = 0.8
"""How long the frames that wait are still estimated once the run is to end."""
_LEAVE_S = 1.0
_WAKE_S = 0.1
_REMEMBERED = 1000
_UNDER_WAY = 2
"""Rounds that an engine which overlaps is given at once: one that it computes, one that it finds when it is done."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """A frame and the people in it."""

    frame: Frame
    poses: PoseFrame


class Pipeline:
    """Reads sources, follows people, estimates their poses. Iterate it once: `PoseFrame`s, also without people.

    Each source's results come in order; a round takes one frame of every source that has one and batches their people.
    On an engine that computes beside its caller, the next round, of other sources, is begun before the results of one
    are asked for; where no other source has a frame, they are asked for at once.
    Errors of the detector and the engine end the iteration at once, and so does whatever crashes a reading thread. A
    source that ends in error is logged, the others go on, and its SourceError is raised after the last result of all.
    A camera does not end: it is connected to again, for ever. Only where no source at all could be opened to begin
    with, the first one's SourceError is raised.

    Attributes:
        metrics: what is measured.
        turned_s: monotonic time at which the iterating thread last looked for frames.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        engine: Engine,
        detector: Detector | None,
        settings: Settings | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """Put together a pipeline; nothing runs before it is iterated.

        Args:
            sources: opened, not entered, each with an id of its own; the pipeline closes them.
            engine: what estimates poses.
            detector: what finds people; None takes the whole frame as one person.
            settings: how it runs.
            stop: set it to end the run: readers stop, the frames that wait are still estimated.

        Raises:
            ModelError: a source wants more later frames than the engine looks at.
        """
        self.settings = settings or Settings()
        self.metrics = Metrics()
        self.skeleton = SKELETONS[engine.manifest.skeleton]
        self.turned_s = time.monotonic()
        self._detector = detector
        self._estimator = Estimator(engine, self.metrics)
        self._stop = stop or threading.Event()
        self._began_s: float | None = None
        self._ended_s: float | None = None
        self._drain_until_s: float | None = None
        self._failure: Exception | None = None
        self._opened = False
        self._lanes = Lanes()
        self._round = RoundSize(self.settings.batch_frames, self.settings.round_s)
        self._under_way: deque[Round] = deque()
        self._gone: dict[str, tuple[SourceSummary, FrameRing]] = {}
        self._changes = Changes(self._lanes, self._stop)
        for source in sources:
            self._lanes.add(self._lane(source))

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources that there are now."""
        return tuple(lane.source for lane in self._lanes)

    def __iter__(self) -> Iterator[PoseFrame]:
        return (result.poses for result in self.results())

    def results(self) -> Iterator[Result]:
        """The same with the frames.

        Raises:
            SourceError: after the last result, where a source ended in error.
            ModelError: a model failed.
            StreamposeError: a stage crashed.
        """
        self._began_s = time.perf_counter()
        with ExitStack() as stack:
            stack.callback(self._end)
            for lane in self._lanes:
                self._begin(lane)
            while self._running():
                self.turned_s = time.monotonic()
                self._lanes.wake.clear()
                yield from self._admit()
                self._check()
                for lane in self._lanes:
                    if self._waits_in_vain(lane):
                        yield from self._flush(lane)
                if self._stop.is_set():
                    self._drain()
                batch = self._take()
                if batch:
                    yield from self._estimate(batch)
                elif self._under_way:
                    yield from self._finish()
                elif self._running():
                    self._lanes.wake.wait(_WAKE_S)
            while self._under_way:
                yield from self._finish()
            for lane in self._lanes:
                yield from self._flush(lane)
            self._check()
        failed = [source.failed for source in self.sources if source.failed is not None]
        if failed:
            raise failed[0]

    def stop(self) -> None:
        """End the run, from any thread: readers stop, the frames that wait are still estimated."""
        self._stop.set()
        self._lanes.wake.set()

    def fail(self, error: Exception) -> None:
        """End the run with an error of something that belongs to it, from any thread."""
        self._failure = self._failure or error
        self._lanes.wake.set()

    def add(self, source: str | Camera) -> str:
        """Add a source while the pipeline runs, from any thread; returns its id.

        Raises:
            UsageError: the URI is none, the name is taken, or the pipeline is ending.
            SourceError: a file is not there. A camera is connected to later, and for ever.
            ModelError: it wants more later frames than the engine looks at.
        """
        return self._changes.add(source, self._check_lookahead)

    def remove(self, source_id: str) -> None:
        """Stop a source and let it go while the pipeline runs, from any thread.

        Raises:
            UsageError: there is no such source.
        """
        self._changes.remove(source_id)

    def summary(self) -> RunSummary:
        """What was measured so far."""
        ended_s = self._ended_s or time.perf_counter()
        batches = self.metrics.batches()
        sources = {lane.source.id: lane.summarise(self.metrics) for lane in self._lanes}
        return RunSummary(
            frames=self.metrics.count("frames"),
            poses=self.metrics.count("poses"),
            seconds=ended_s - self._began_s if self._began_s is not None else 0.0,
            stages=self.metrics.stages(),
            sources={name: replace(was, dropped=ring.drops) for name, (was, ring) in tuple(self._gone.items())}
            | sources,
            batches=batches.count,
            people_per_batch=batches.sum / batches.count if batches.count else 0.0,
        )

    def counts(self) -> dict[str, tuple[int, int]]:
        """By source: results so far, and people in the last one."""
        return {lane.source.id: (lane.frames, lane.people) for lane in self._lanes}

    def _lane(self, source: Source) -> Lane:
        self._check_lookahead(source)
        camera = source.camera
        if camera is not None and camera.lookahead is not None:
            self._estimator.look_ahead(source.id, camera.lookahead)
        return Lane(
            source,
            self._follower(),
            detect_every=(camera and camera.detect_every) or self.settings.detect_every,
            regions=camera.regions if camera is not None else (),
            most_frames=self.settings.max_frames,
        )

    def _check_lookahead(self, source: Source) -> None:
        wanted = source.camera.lookahead if source.camera is not None else None
        if wanted is not None and wanted > self._estimator.delay:
            raise UsageError(
                f"{source.id}: lookahead {wanted}, but this model looks {self._estimator.delay} frames ahead at most"
            )

    def _follower(self) -> Follower:
        return WholeFrame() if self._detector is None else Tracker(self.settings.tracker, self.skeleton)

    def _begin(self, lane: Lane) -> None:
        lane.source.metrics = self.metrics
        lane.source.__enter__()

    def _running(self) -> bool:
        if self._stop.is_set():
            return any(not lane.done for lane in self._lanes)
        if self.settings.keep_open and not len(self._lanes):
            return True
        return bool(self._changes) or any(not lane.done for lane in self._lanes)

    def _end(self) -> None:
        """Stop all readers, and wait for them together."""
        now_s = time.monotonic()
        leave_s = (self._drain_until_s or now_s + DRAIN_S) - DRAIN_S + _LEAVE_S
        for source in self.sources:
            source.stop()
        for source in self.sources:
            source.join(max(0.0, leave_s - time.monotonic()))
        self._changes.close()
        self._ended_s = time.perf_counter()

    def _check(self) -> None:
        """Raise what must end the run."""
        if self._failure is not None:
            raise self._failure
        for source in self.sources:
            if source.crash is not None:
                text = f"{source.id}: the reading stage crashed with {type(source.crash).__name__}: {source.crash}"
                raise StreamposeError(redact(text)) from source.crash
        if self._opened or self.settings.keep_trying or self._stop.is_set():
            return
        refused = [source.error for source in self.sources if source.refused]
        if refused and len(refused) == len(self._lanes) and not self._changes:
            raise refused[0] or SourceError("no source could be opened")

    def _admit(self) -> Iterator[Result]:
        """Take in and let go what was asked for meanwhile, in that order."""
        while self._changes:
            asked = self._changes.first
            if isinstance(asked, str):
                yield from self._let_go(asked)
            else:
                self._take_in(asked)

    def _take_in(self, source: Source) -> None:
        before = self._gone.pop(source.id, None)
        if before is not None:
            source.epoch = before[0].epoch + 1
        lane = self._lane(source)
        self._changes.take_in(lane)
        self._begin(lane)
        log.info("%s: added", source.id, extra={"source": source.id})

    def _let_go(self, source_id: str) -> Iterator[Result]:
        while self._under_way:
            yield from self._finish()
        lane = self._lanes[source_id]
        lane.source.stop()
        lane.source.ring.clear(Drop.STOPPED)
        yield from self._flush(lane)
        lane.source.metrics = Metrics()  # of a reader that still loads a picture
        summary = replace(lane.summarise(self.metrics), outcome=str(Outcome.STOPPED))
        self._gone[source_id] = summary, lane.source.ring
        while len(self._gone) > _REMEMBERED:
            del self._gone[next(iter(self._gone))]
        self._changes.let_go(source_id)
        self._estimator.forget(source_id)
        self.metrics.forget(source_id)
        log.info("%s: removed", source_id, extra={"source": source_id})

    def _drain(self) -> None:
        """Let the readers end, and what waits when time is over be dropped and counted."""
        if self._drain_until_s is None:
            self._drain_until_s = time.monotonic() + DRAIN_S
            for source in self.sources:
                source.stop()
        elif time.monotonic() > self._drain_until_s:
            for source in self.sources:
                source.ring.clear(Drop.STOPPED)

    def _take(self) -> list[tuple[Lane, Frame]]:
        """The frames of the next round."""
        wait_s = 0.0 if self._stop.is_set() or self._under_way else self.settings.batch_wait_s
        batch = self._lanes.take(self._round.frames, wait_s)
        for lane, frame in batch:
            self._opened = True
            self.metrics.observe("queue", (time.monotonic_ns() - frame.captured_ns) / 1e9, lane.source.id)
        return batch

    def _estimate(self, batch: list[tuple[Lane, Frame]]) -> Iterator[Result]:
        for lane, frame in batch:
            if frame.epoch != lane.epoch:
                yield from self._flush(lane)
                lane.epoch, lane.detected_s = frame.epoch, -math.inf
                lane.follower.reset()
        began_s = time.perf_counter()
        finish = self._estimator.begin([(frame, self._advance(lane, frame)) for lane, frame in batch])
        for lane, _ in batch:
            lane.under_way = True
        self._under_way.append(Round(batch, finish, began_s))
        if not self._estimator.overlaps or len(self._under_way) == _UNDER_WAY:
            yield from self._finish()

    def _finish(self) -> Iterator[Result]:
        """The results of the round that was begun first."""
        done = self._under_way.popleft()
        estimates = done.finish()
        self._round.learn(len(done.batch), time.perf_counter() - done.began_s)
        for lane, _ in done.batch:
            lane.under_way = False
        yield from self._results(estimates)
        for lane, _ in done.batch:
            self._estimator.keep(lane.source.id, lane.follower.keys)

    def _waits_in_vain(self, lane: Lane) -> bool:
        """Whether frames of a live source wait for others that do not come, or would come too late to support them."""
        since_ns = self._estimator.waits_since_ns(lane.source.id)
        if since_ns is None or not lane.source.live or lane.under_way or len(lane.source.ring):
            return False
        late = (time.monotonic_ns() - since_ns) / 1e9 > LONGEST_GAP_S
        return late or lane.source.status is not Status.ONLINE

    def _flush(self, lane: Lane) -> Iterator[Result]:
        """The results of a source that wait for frames which will not come."""
        yield from self._results(self._estimator.flush(lane.source.id))

    def _results(self, estimates: Iterable[Estimate]) -> Iterator[Result]:
        """The results of estimates; those of a source that has had its most are dropped and counted."""
        for estimate in estimates:
            lane = self._lanes[estimate.frame.source_id]
            if lane.full:
                lane.source.ring.count(Drop.STOPPED)
                continue
            yield self._result(lane, estimate)

    def _advance(self, lane: Lane, frame: Frame) -> tuple[Track, ...]:
        """The people to estimate in a source's next frame."""
        detections = None
        lane.since_detection += 1
        due = lane.since_detection >= lane.detect_every or frame.pts_s - lane.detected_s > LONGEST_UNSEEN_S
        if self._detector is not None and (due or lane.follower.undecided):
            with self.metrics.time("detect"):
                boxes, scores = self._detector.detect(frame.image)
            here = inside(boxes, (frame.height, frame.width), lane.regions)
            detections = boxes[here], scores[here]
            lane.since_detection, lane.detected_s = 0, frame.pts_s
        return lane.follower.advance(frame.pts_s, (frame.height, frame.width), detections, frame.image)

    def _result(self, lane: Lane, estimate: Estimate) -> Result:
        frame = estimate.frame
        people = lane.follower.settle(frame.pts_s, estimate.tracks, estimate.keypoints)
        if lane.regions and people:
            boxes = np.stack([pose.box for pose in people])
            here = inside(boxes, (frame.height, frame.width), lane.regions)
            people = tuple(pose for pose, kept in zip(people, here, strict=True) if kept)
        now_ns = time.monotonic_ns()
        self.metrics.observe("total", (now_ns - frame.captured_ns) / 1e9, frame.source_id)
        self.metrics.add("frames")
        self.metrics.add("poses", len(people))
        lane.frames += 1
        lane.people = len(people)
        if lane.full:
            lane.source.stop()
            lane.source.ring.clear(Drop.STOPPED)
        return Result(frame, lane.poses(frame, people, self.skeleton.name, now_ns))
