"""From sources to poses: one thread a source reads, the thread that iterates estimates."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from streampose.engines import Engine
from streampose.engines.store import choose_engine
from streampose.errors import UsageError
from streampose.estimator import Estimate, Estimator
from streampose.follower import Follower, Track, WholeFrame
from streampose.metrics import Metrics, RunSummary, SourceSummary
from streampose.people import Detector, PersonDetector
from streampose.skeleton import SKELETONS
from streampose.sources import Source, open_sources
from streampose.tracker import Tracker, TrackerSettings
from streampose.types import Frame, PoseFrame

LONGEST_UNSEEN_S = 0.25
"""The detector looks at least this often, seconds of the source, however few of its frames are estimated."""
_WAKE_S = 0.2


@dataclass(frozen=True, slots=True)
class Settings:
    """How a pipeline runs.

    Attributes:
        detect_every: the detector looks at one frame in so many, >= 1; at every one while nobody is followed.
        max_frames: results of each source after which it is stopped; None for all.
        tracker: how people are followed.
    """

    detect_every: int = 3
    max_frames: int | None = None
    tracker: TrackerSettings = field(default_factory=TrackerSettings)

    def __post_init__(self) -> None:
        if self.detect_every < 1:
            raise UsageError(f"the detector looks at one frame in 1 or more, not in {self.detect_every}")
        if self.max_frames is not None and self.max_frames < 1:
            raise UsageError(f"max-frames must be at least 1, not {self.max_frames}")


@dataclass(frozen=True, slots=True)
class Result:
    """A frame and the people in it."""

    frame: Frame
    poses: PoseFrame


@dataclass(slots=True)
class _Lane:
    """One source's way through the pipeline."""

    source: Source
    follower: Follower
    taken: int = 0
    frames: int = 0
    epoch: int = 0
    since_detection: int = 0
    detected_s: float = -math.inf


class Pipeline:
    """Reads sources, follows people, estimates their poses. Iterate it once: `PoseFrame`s, also without people.

    Each source's results come in order; a round takes one frame of every source that has one and batches their people.
    Errors of the detector and the engine end the iteration at once. A source that ends in error is logged, the others
    go on, and its SourceError is raised after the last result of all.
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
        """
        self.settings = settings or Settings()
        self.sources = tuple(sources)
        self.metrics = Metrics()
        self._detector = detector
        self._estimator = Estimator(engine, self.metrics)
        self.skeleton = SKELETONS[engine.manifest.skeleton]
        self._stop = stop or threading.Event()
        self._wake = threading.Event()
        self._began_s: float | None = None
        self._ended_s: float | None = None
        self._lanes = {source.id: _Lane(source, self._follower()) for source in self.sources}

    def __iter__(self) -> Iterator[PoseFrame]:
        return (result.poses for result in self.results())

    def results(self) -> Iterator[Result]:
        """The same with the frames.

        Raises:
            SourceError: after the last result, where a source ended in error.
            ModelError: a model failed.
        """
        self._began_s = time.perf_counter()
        with ExitStack() as stack:
            stack.callback(self._end)
            for source in self.sources:
                source.metrics = self.metrics
                source.ring.listen(self._wake)
                stack.enter_context(source)
            while self._running():
                self._wake.clear()
                if self._stop.is_set():
                    for source in self.sources:
                        source.stop()
                batch = self._take()
                if batch:
                    yield from self._estimate(batch)
                elif self._running():
                    self._wake.wait(_WAKE_S)
            for lane in self._lanes.values():
                yield from self._flush(lane)
        failed = [source.error for source in self.sources if source.error is not None]
        if failed:
            raise failed[0]

    def stop(self) -> None:
        """End the run, from any thread: readers stop, the frames that wait are still estimated."""
        self._stop.set()
        self._wake.set()

    def summary(self) -> RunSummary:
        """What was measured so far."""
        ended_s = self._ended_s or time.perf_counter()
        return RunSummary(
            frames=sum(lane.frames for lane in self._lanes.values()),
            poses=self.metrics.count("poses"),
            seconds=ended_s - self._began_s if self._began_s is not None else 0.0,
            stages=self.metrics.stages(),
            sources={
                lane.source.id: SourceSummary(
                    frames=lane.frames,
                    dropped=lane.source.ring.drops,
                    outcome=str(lane.source.outcome),
                    error=str(lane.source.error) if lane.source.error else None,
                )
                for lane in self._lanes.values()
            },
        )

    def _follower(self) -> Follower:
        return WholeFrame() if self._detector is None else Tracker(self.settings.tracker, self.skeleton)

    def _running(self) -> bool:
        return any(not self._done(lane) for lane in self._lanes.values())

    def _done(self, lane: _Lane) -> bool:
        return lane.source.finished or (
            self.settings.max_frames is not None and lane.frames >= self.settings.max_frames
        )

    def _end(self) -> None:
        self._ended_s = time.perf_counter()

    def _take(self) -> list[tuple[_Lane, Frame]]:
        """One frame of every source that has one."""
        batch = []
        for lane in self._lanes.values():
            frame = None if self._done(lane) else lane.source.read()
            if frame is not None:
                self.metrics.observe("queue", (time.monotonic_ns() - frame.captured_ns) / 1e9)
                batch.append((lane, frame))
                lane.taken += 1
                if self._done(lane):
                    lane.source.stop()
        return batch

    def _estimate(self, batch: list[tuple[_Lane, Frame]]) -> Iterator[Result]:
        for lane, frame in batch:
            if frame.epoch != lane.epoch:
                yield from self._flush(lane)
                lane.epoch, lane.detected_s = frame.epoch, -math.inf
                lane.follower.reset()
        for estimate in self._estimator.estimate([(frame, self._advance(lane, frame)) for lane, frame in batch]):
            yield self._result(estimate)
        for lane, _ in batch:
            self._estimator.keep(lane.source.id, lane.follower.keys)

    def _flush(self, lane: _Lane) -> Iterator[Result]:
        """The results of a source that wait for frames which will not come."""
        for estimate in self._estimator.flush(lane.source.id):
            yield self._result(estimate)

    def _advance(self, lane: _Lane, frame: Frame) -> tuple[Track, ...]:
        """The people to estimate in a source's next frame."""
        detections = None
        lane.since_detection += 1
        due = lane.since_detection >= self.settings.detect_every or frame.pts_s - lane.detected_s > LONGEST_UNSEEN_S
        if self._detector is not None and (due or lane.follower.undecided):
            with self.metrics.time("detect"):
                detections = self._detector.detect(frame.image)
            lane.since_detection, lane.detected_s = 0, frame.pts_s
        return lane.follower.advance(frame.pts_s, (frame.height, frame.width), detections)

    def _result(self, estimate: Estimate) -> Result:
        frame = estimate.frame
        lane = self._lanes[frame.source_id]
        people = lane.follower.settle(frame.pts_s, estimate.tracks, estimate.keypoints)
        now_ns = time.monotonic_ns()
        self.metrics.observe("total", (now_ns - frame.captured_ns) / 1e9)
        self.metrics.add("poses", len(people))
        lane.frames += 1
        poses = PoseFrame(
            source=frame.source_id,
            epoch=frame.epoch,
            frame_index=frame.index,
            pts_s=frame.pts_s,
            captured_ns=frame.captured_ns,
            published_ns=now_ns,
            width=frame.width,
            height=frame.height,
            skeleton=self.skeleton.name,
            dropped=lane.source.ring.dropped,
            people=people,
        )
        return Result(frame, poses)


def open_pipeline(
    sources: Sequence[str],
    *,
    model: str = "lite",
    detector: str = "person",
    pace: str = "auto",
    settings: Settings | None = None,
    stop: threading.Event | None = None,
) -> Pipeline:
    """Open sources and models by name.

    Args:
        sources: URIs, see `open_source`.
        model: a bundled model's name or an engine bundle's folder.
        detector: "person", an ONNX file, or "none" for one person who fills the frame.
        pace: "auto", "live" or "fast".
        settings, stop: see `Pipeline`.

    Raises:
        UsageError, SourceError, ModelError: before anything runs.
    """
    opened = open_sources(sources, pace)
    try:
        engine = choose_engine(model)
        finder = None if detector == "none" else PersonDetector(detector)
        return Pipeline(opened, engine, finder, settings, stop)
    except BaseException:
        for source in opened:
            source.close()
        raise


def run(
    source: str | Sequence[str],
    *,
    model: str = "lite",
    detector: str = "person",
    pace: str = "auto",
    max_frames: int | None = None,
    detect_every: int = 3,
    stop: threading.Event | None = None,
) -> Iterator[PoseFrame]:
    """Estimate poses in this process, without a socket.

    Args:
        source: one URI or several: "webcam:0", a video file, a folder of pictures, "demo".
        model: a bundled model's name or an engine bundle's folder.
        detector: "person", an ONNX file, or "none" for one person who fills the frame.
        pace: "fast" gives every frame, "live" the latest ones, "auto" fast for files and live for cameras.
        max_frames: results of each source after which it is stopped.
        detect_every: the detector looks at one frame in so many.
        stop: set it to end the run.

    Returns:
        The results, a `PoseFrame` a frame and source, as they come. Closing the iterator stops the run.

    Raises:
        UsageError, SourceError, ModelError: at once where something cannot be opened; SourceError also after the last
            result where a source ended in error.
    """
    settings = Settings(detect_every=detect_every, max_frames=max_frames)
    uris = [source] if isinstance(source, str) else list(source)
    return iter(open_pipeline(uris, model=model, detector=detector, pace=pace, settings=settings, stop=stop))
