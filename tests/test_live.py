"""The pipeline over live sources: latency that stays flat, cameras that share, come, go and fail."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aio_rtsp_toolkit", reason="needs the [dev] extra")

import streampose.pipeline
from streampose.errors import SourceError, StreamposeError, UsageError
from streampose.pipeline import Pipeline, Result
from streampose.settings import Settings
from streampose.sources import Camera, Outcome, Source, Status, open_sources
from streampose.sources.reader import DisconnectedError, Picture
from streampose.types import PoseFrame

sys.path.insert(0, str(Path(__file__).parent))
from camera_kit import WAIT_S, Server, file_server, make_clip, wait_for
from ports import free_port

pytestmark = pytest.mark.usefixtures("patient_cameras")
ENDING = {name: getattr(streampose.pipeline, name) for name in ("DRAIN_S", "_LEAVE_S")}
ENDLESS = "lavfi:color=black:size=64x48:rate=30"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("clips")
    make_clip(folder / "clip.mp4")
    with file_server(folder, "clip.mp4?play_count=0") as running:
        yield running


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    make_clip(tmp_path / "clip.mp4")
    with file_server(tmp_path, "clip.mp4?play_count=0") as running:
        yield running


class Run:
    """A pipeline in a thread, and what came of it. A context manager that stops it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.results: list[Result] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._iterate)

    def _iterate(self) -> None:
        try:
            for result in self.pipeline.results():
                self.results.append(result)
        except StreamposeError as error:
            self.error = error

    def __enter__(self) -> Run:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.pipeline.stop()
        self.join()

    def join(self) -> None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def of(self, source: str) -> list[PoseFrame]:
        return [result.poses for result in self.results if result.poses.source == source]

    def wait_for(self, source: str, count: int) -> None:
        wait_for(lambda: self.error or len(self.of(source)) >= count)
        assert self.error is None

    def source(self, name: str) -> Source:
        return next(source for source in self.pipeline.sources if source.id == name)


def cameras(server: Server, *names: str, **asked: object) -> tuple[Camera, ...]:
    return tuple(Camera(uri=server.url, name=name, **asked) for name in names)  # type: ignore[arg-type]


def slowed(engine, seconds: float, per_person: float = 0.0):
    """The engine, so slow a call."""
    encode = engine.encode

    def slow(crops):
        threading.Event().wait(seconds + per_person * sum(len(c.affines) for c in crops))
        return encode(crops)

    engine.encode = slow
    return engine


def after(engine, condition: Callable[[], object]):
    """The engine, each of whose calls takes until `condition()` is true."""
    encode = engine.encode

    def late(crops):
        wait_for(condition)
        return encode(crops)

    engine.encode = late
    return engine


def test_with_inference_at_a_third_of_the_cameras_rate_each_frame_is_the_newest(server, engine, detector) -> None:
    """Each call takes until three more frames have come, so that latency would grow by two of them a call."""
    (source,) = open_sources(cameras(server, "a"))
    after(engine, lambda: len(source.ring) >= 3 or source.ring.closed)
    pipeline = Pipeline([source], engine, detector)
    with Run(pipeline) as run:
        run.wait_for("a", 30)
    steps = np.diff([frame.frame_index for frame in run.of("a")[:30]])
    assert steps.min() >= 3
    summary = pipeline.summary().sources["a"]
    assert summary.frames + sum(summary.dropped.values()) == source._index
    assert summary.dropped["superseded"] >= 2 * 29


def test_a_dead_camera_disturbs_nobody_and_comes_when_it_comes(server, own_server, engine, detector) -> None:
    own_server.kill()
    asked = (*cameras(server, "a", "b"), *cameras(own_server, "late"))
    with Run(Pipeline(open_sources(asked), engine, detector)) as run:
        run.wait_for("a", 30)
        wait_for(lambda: run.source("late").status is Status.OFFLINE)
        run.wait_for("b", 15)
        own_server.start()
        run.wait_for("late", 10)
        own_server.kill()
        wait_for(lambda: run.source("late").status is Status.OFFLINE)
        for name in ("a", "b"):
            run.wait_for(name, len(run.of(name)) + 20)
        assert run.source("a").reconnects == run.source("b").reconnects == 0
    assert run.error is None
    assert {frame.epoch for name in ("a", "b") for frame in run.of(name)} == {0}, "nobody else noticed"


def test_no_window_mixes_epochs(own_server, engine, detector) -> None:
    with Run(Pipeline(open_sources(cameras(own_server, "a")), engine, detector)) as run:
        run.wait_for("a", 20)
        own_server.kill()
        own_server.start()
        run.wait_for("a", len(run.of("a")) + 30)
    epochs = [frame.epoch for frame in run.of("a")]
    assert epochs == sorted(epochs)
    assert set(epochs) == {0, 1}
    ids = defaultdict(set)
    for frame in run.of("a"):
        ids[frame.epoch].update(pose.track_id for pose in frame.people)
    assert not ids[0] & ids[1], "whoever is seen after a gap is somebody new"
    first = engine.fused[epochs.index(1)][0]
    assert all(feature is first[0][0] or np.array_equal(feature, first[0][0]) for feature in first[0])


def test_after_a_freeze_the_same_connection_goes_on_in_another_epoch(own_server, engine, detector, monkeypatch) -> None:
    """How soon is in docs/reliability.md, and that nothing shows what was held back in test_pace.py."""
    monkeypatch.setattr("streampose.sources.pace.STALLED_S", 1.0)
    with Run(Pipeline(open_sources(cameras(own_server, "a")), engine, detector)) as run:
        run.wait_for("a", 30)
        source = run.source("a")
        own_server.freeze()
        try:
            wait_for(lambda: source.status is Status.STALLED)
            epoch = source.epoch
        finally:
            own_server.thaw()
        wait_for(lambda: run.of("a")[-1].epoch > epoch)
        run.wait_for("a", len(run.of("a")) + 20)
        assert source.reconnects == 0
    epochs = [frame.epoch for frame in run.of("a")]
    assert epochs == sorted(epochs)


@pytest.mark.parametrize("outage", ["kill", "freeze"])
def test_frames_that_wait_for_later_ones_do_not_wait_for_a_camera_that_is_gone(
    own_server, engine, detector, monkeypatch, outage: str
) -> None:
    """They come as soon as it is offline, and where it only sends nothing, half a second after they were captured."""
    if outage == "kill":
        monkeypatch.setattr("streampose.pipeline.LONGEST_GAP_S", 120.0)
    engine.manifest = replace(engine.manifest, offsets=(-2, -1, 1, 2))
    with Run(Pipeline(open_sources(cameras(own_server, "a")), engine, detector)) as run:
        run.wait_for("a", 20)
        source = run.source("a")
        getattr(own_server, outage)()
        if outage == "kill":
            wait_for(lambda: source.status is Status.OFFLINE)
        wait_for(lambda: len(run.of("a")) == source._index - source.ring.dropped)  # every frame has its result
        count = len(run.of("a"))
        own_server.thaw() if outage == "freeze" else own_server.start()
        run.wait_for("a", count + 20)
    frames = run.of("a")
    assert {frame.epoch for frame in frames[:count]} == {0}
    indices = [frame.frame_index for frame in frames]
    assert indices == sorted(set(indices))


def test_when_no_camera_can_be_opened_the_run_ends_with_the_reason(engine, detector) -> None:
    asked = [f"rtsp://me:secret@127.0.0.1:{free_port()}/x", f"rtsp://127.0.0.1:{free_port()}/y"]
    with pytest.raises(SourceError, match="nothing listens") as failure:
        list(Pipeline(open_sources(asked), engine, detector))
    assert "secret" not in str(failure.value)


def test_a_service_keeps_trying_from_the_start(own_server, engine, detector) -> None:
    own_server.kill()
    pipeline = Pipeline(open_sources(cameras(own_server, "a")), engine, detector, Settings(keep_trying=True))
    with Run(pipeline) as run:
        wait_for(lambda: run.source("a").refused)
        own_server.start()
        run.wait_for("a", 5)


def test_cameras_come_and_go_while_it_runs(server, engine, detector) -> None:
    with Run(Pipeline(open_sources(cameras(server, "a")), engine, detector)) as run:
        run.wait_for("a", 5)
        assert run.pipeline.add(Camera(uri=server.url, name="b")) == "b"
        run.wait_for("b", 10)
        with pytest.raises(UsageError, match="called b already"):
            run.pipeline.add(Camera(uri=server.url, name="b"))
        with pytest.raises(UsageError, match="no source called c; there are: a, b"):
            run.pipeline.remove("c")
        with pytest.raises(SourceError, match="no such file"):
            run.pipeline.add(Camera(uri="nothing.mp4"))
        run.pipeline.remove("b")
        wait_for(lambda: len(run.pipeline.sources) == 1)
        assert "b" not in {window[0] for window in list(run.pipeline._estimator._windows)}
        before = run.of("b")[-1]
        run.pipeline.add(Camera(uri=server.url, name="b"))
        run.wait_for("b", len(run.of("b")) + 5)
    assert run.of("b")[-1].epoch > before.epoch, "the name's epochs go on"
    assert set(run.pipeline.summary().sources) == {"a", "b"}


def test_the_last_camera_may_go_where_others_may_come(server, engine, detector) -> None:
    settings = Settings(keep_open=True)
    with Run(Pipeline(open_sources(cameras(server, "a")), engine, detector, settings)) as run:
        run.wait_for("a", 3)
        run.pipeline.remove("a")
        wait_for(lambda: not run.pipeline.sources)
        run.pipeline.add(Camera(uri=server.url, name="b"))
        run.wait_for("b", 3)


def test_people_of_all_cameras_share_calls_in_fair_turns(server, engine, detector) -> None:
    names = tuple("abcdef")
    sources = open_sources(cameras(server, *names))
    after(engine, lambda: all(len(source.ring) or source.ring.closed for source in sources))  # all are ready
    pipeline = Pipeline(sources, engine, detector, Settings(batch_frames=4, round_s=9.0))
    with Run(pipeline) as run:
        run.wait_for("a", 20)
        counts = Counter(result.poses.source for result in list(run.results))
    assert max(engine.encoded) >= 4
    assert pipeline.summary().people_per_batch > 2
    assert max(counts.values()) - min(counts.values()) <= 3, counts
    for name in names:
        indices = [frame.frame_index for frame in run.of(name)]
        assert indices == sorted(set(indices))


class Scripted:
    """A camera that does as it is told: `act()` gives its pictures."""

    name, live, fps = "camera", True, 30.0

    def __init__(self, act: Callable[[], Iterator[Picture]]) -> None:
        self._act = act

    def pictures(self) -> Iterator[Picture]:
        return self._act()

    def close(self) -> None:
        pass


def test_a_wait_for_others_is_bounded(server, engine, detector) -> None:
    """A second camera that sends one picture and nothing more never holds up one that sends thirty a second."""
    over = threading.Event()

    def act() -> Iterator[Picture]:
        yield Picture(lambda: np.zeros((120, 160, 3), np.uint8), 0.0, time.monotonic_ns(), 0.001)
        over.wait(2 * WAIT_S)
        raise DisconnectedError("gone")

    slow = Source("slow", "camera", connect=lambda: Scripted(act), live=True)
    sources = [*open_sources(cameras(server, "quick")), slow]
    with Run(Pipeline(sources, engine, detector, Settings(batch_wait_s=0.02))) as run:
        run.wait_for("slow", 1)
        run.wait_for("quick", len(run.of("quick")) + 60)
        assert len(run.of("slow")) == 1
        over.set()


def test_regions_leave_out_who_is_elsewhere(make_video, engine, detector) -> None:
    left = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
    clip = str(make_video(frames=20, people=2))
    everybody = list(Pipeline(open_sources([clip]), engine, detector))
    some = list(Pipeline(open_sources([Camera(uri=clip, regions=(left,))]), engine, detector))
    assert {len(frame.people) for frame in everybody} == {2}
    centres = [(pose.box[0] + pose.box[2]) / 2 for frame in some for pose in frame.people]
    assert centres
    assert max(centres) <= 80
    assert {len(frame.people) for frame in some} == {1}


def test_a_camera_may_have_its_own_detector_interval(make_video, engine, detector) -> None:
    camera = Camera(uri=str(make_video(frames=20)), detect_every=5)
    assert len(list(Pipeline(open_sources([camera]), engine, detector))) == 20
    assert detector.runs == 4


@pytest.mark.parametrize("lookahead", [None, 0, 1, 2])
def test_lookahead_is_how_long_results_wait(make_video, engine, detector, lookahead: int | None) -> None:
    engine.manifest = replace(engine.manifest, offsets=(-2, -1, 1, 2))
    camera = Camera(uri=str(make_video(frames=15)), lookahead=lookahead)
    pipeline = Pipeline(open_sources([camera]), engine, detector)
    indices, late = [], []
    for result in pipeline.results():
        indices.append(result.poses.frame_index)
        late.append(len(engine.encoded) - 1 - result.poses.frame_index)
    assert indices == list(range(15))
    assert late[0] == (2 if lookahead is None else lookahead)


def test_more_lookahead_than_the_model_has_is_refused(make_video, engine, detector) -> None:
    with pytest.raises(UsageError, match="lookahead 1, but this model looks 0 frames ahead"):
        Pipeline(open_sources([Camera(uri=str(make_video()), lookahead=1)]), engine, detector)


def test_a_picture_that_is_loaded_while_its_camera_goes_is_counted_and_measured_for_nobody(engine, detector) -> None:
    loading, go = threading.Event(), threading.Event()

    def load() -> np.ndarray:
        loading.set()
        assert go.wait(WAIT_S)
        return np.zeros((120, 160, 3), np.uint8)

    def act() -> Iterator[Picture]:
        yield Picture(load, 0.0, time.monotonic_ns(), 0.001)

    source = Source("cam", "camera", connect=lambda: Scripted(act), live=True)
    pipeline = Pipeline([source], engine, detector, Settings(keep_open=True))
    with Run(pipeline):
        assert loading.wait(WAIT_S)
        pipeline.remove("cam")
        wait_for(lambda: not pipeline.sources)
        go.set()
        wait_for(lambda: source.outcome is not Outcome.OPEN)
    assert pipeline.summary().sources["cam"].dropped == {"stopped": 1}
    assert not [stage for stage, of in pipeline.metrics.histograms() if of == "cam"]


def test_a_crash_of_a_reading_thread_ends_the_run_with_its_cause(engine, detector) -> None:
    def act() -> Iterator[Picture]:
        raise ZeroDivisionError("a bug")
        yield

    source = Source("cam", "camera", connect=lambda: Scripted(act), live=True)
    pipeline = Pipeline([source, *open_sources([ENDLESS])], engine, detector)
    with pytest.raises(StreamposeError, match="cam: the reading stage crashed with ZeroDivisionError: a bug"):
        list(pipeline)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("source-")]


def test_a_failure_of_something_beside_the_pipeline_ends_it(engine, detector) -> None:
    pipeline = Pipeline(open_sources([ENDLESS]), engine, detector)
    pipeline.fail(StreamposeError("the ticker broke"))
    with pytest.raises(StreamposeError, match="the ticker broke"):
        list(pipeline)


def test_stopping_waits_neither_for_readers_that_hang_nor_for_all_that_is_read(engine, monkeypatch) -> None:
    """A reader that hangs in its driver, and frames that wait for a slow engine: together two seconds at most."""
    assert sum(ENDING.values()) < 2
    for name, limit_s in ENDING.items():
        monkeypatch.setattr(streampose.pipeline, name, limit_s)
    waits_s: list[float] = []
    join = Source.join
    monkeypatch.setattr(Source, "join", lambda source, limit_s: waits_s.append(limit_s) or join(source, limit_s))
    hang, go = threading.Event(), threading.Event()

    def act() -> Iterator[Picture]:
        hang.wait(2 * WAIT_S)
        raise DisconnectedError("gone")
        yield

    hanging = [Source(f"cam{i}", "camera", connect=lambda: Scripted(act), live=True) for i in range(4)]
    (clip,) = open_sources([ENDLESS], "fast")
    after(slowed(engine, 0.5), go.is_set)
    pipeline = Pipeline([*hanging, clip], engine, None, Settings(keep_trying=True))
    with Run(pipeline) as run:
        wait_for(lambda: len(clip.ring) == clip.ring.capacity)
        pipeline.stop()
        go.set()
        run.join()
        assert all(source._thread.is_alive() for source in hanging), "they are left behind"
    hang.set()
    assert len(waits_s) == 5
    assert max(waits_s) <= ENDING["_LEAVE_S"]
    summary = pipeline.summary().sources["lavfi"]
    assert 2 <= summary.dropped["stopped"] <= 5, "at most two of the ring's four are taken in the time there is"
    assert summary.frames + summary.dropped["stopped"] <= clip._index
