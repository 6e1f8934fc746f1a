"""The pipeline: every frame of a file once and in order, people followed, errors with their cause."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import streampose
from streampose.assembly import open_pipeline, run
from streampose.errors import ModelError, SourceError, UsageError
from streampose.pipeline import Pipeline
from streampose.settings import Settings
from streampose.sources import Camera, Outcome, Source, open_source, open_sources
from streampose.types import PoseFrame

sys.path.insert(0, str(Path(__file__).parent))
from camera_kit import wait_for

pytestmark = pytest.mark.usefixtures("patient_cameras")


def test_every_frame_of_a_file_gives_one_result_in_order(make_video, engine, detector, joints) -> None:
    pipeline = Pipeline(open_sources([str(make_video(frames=20))]), engine, detector)
    results = list(pipeline.results())
    assert [result.poses.frame_index for result in results] == list(range(20))
    assert all(result.frame.index == result.poses.frame_index for result in results)
    assert {pose.track_id for result in results for pose in result.poses.people} == {1}
    for index, result in enumerate(results):
        poses = result.poses
        assert (poses.source, poses.epoch, poses.width, poses.height) == ("clip", 0, 160, 120)
        assert poses.skeleton == "coco17"
        assert poses.dropped == 0
        assert poses.pts_s == pytest.approx(index / 25)
        assert poses.captured_ns < poses.published_ns
        (pose,) = poses.people
        np.testing.assert_allclose(pose.keypoints[:, :2], [10 + 2 * index, 30] + joints * [20, 50], atol=2)
        np.testing.assert_allclose(pose.box, [10 + 2 * index, 30, 30 + 2 * index, 80], atol=5)


def test_the_detector_looks_at_every_kth_frame_while_people_are_followed(make_video, engine, detector) -> None:
    pipeline = Pipeline(open_sources([str(make_video(frames=20))]), engine, detector, Settings(detect_every=4))
    assert len(list(pipeline)) == 20
    assert detector.runs == 5


def test_the_detector_looks_more_often_where_frames_are_far_apart(make_video, engine, detector) -> None:
    slow = open_sources([str(make_video(frames=6, fps=3))])
    assert len(list(Pipeline(slow, engine, detector, Settings(detect_every=4)))) == 6
    assert detector.runs == 6


def test_the_detector_looks_at_every_frame_while_nobody_is(make_video, engine, make_detector) -> None:
    blind = make_detector(script=[[]] * 20)
    results = list(Pipeline(open_sources([str(make_video(frames=20))]), engine, blind))
    assert [result.people for result in results] == [()] * 20
    assert blind.runs == 20
    assert engine.encoded == []


def test_no_detector_takes_the_whole_frame(make_video, engine) -> None:
    results = list(Pipeline(open_sources([str(make_video(frames=6))]), engine, None))
    for result in results:
        (pose,) = result.people
        assert pose.track_id == 1
        np.testing.assert_array_equal(pose.box, [0, 0, 160, 120])
    identity = np.broadcast_to(np.eye(2, 3, dtype=np.float32), (1, 5, 2, 2, 3))
    assert all((transforms == identity).all() for _, transforms in engine.fused)


def test_sources_share_batches_and_keep_their_order(make_video, engine, detector) -> None:
    paths = [str(make_video("a.mp4", frames=12)), str(make_video("b.mp4", frames=18, people=2))]
    results = list(Pipeline(open_sources(paths), engine, detector))
    for name, count, people in (("a", 12, 1), ("b", 18, 2)):
        own = [result for result in results if result.source == name]
        assert [result.frame_index for result in own] == list(range(count))
        assert {len(result.people) for result in own} == {people}
    assert max(engine.encoded) == 3


def test_a_new_picture_size_starts_tracks_anew(make_images, engine, detector) -> None:
    sizes = [(120, 160)] * 4 + [(200, 300)] * 4
    folder = make_images({f"{i}.png": size for i, size in enumerate(sizes)})
    results = list(Pipeline(open_sources([str(folder)]), engine, detector))
    assert [(r.frame_index, r.epoch, r.width) for r in results] == [
        (i, int(i > 3), 160 if i < 4 else 300) for i in range(8)
    ]
    assert [[pose.track_id for pose in result.people] for result in results] == [[1]] * 4 + [[2]] * 4


def test_max_frames_ends_each_source(make_video, engine, detector) -> None:
    paths = [str(make_video("a.mp4", frames=30)), str(make_video("b.mp4", frames=3))]
    pipeline = Pipeline(open_sources(paths), engine, detector, Settings(max_frames=5))
    results = list(pipeline)
    assert [r.frame_index for r in results if r.source == "a"] == list(range(5))
    assert [r.frame_index for r in results if r.source == "b"] == list(range(3))
    assert pipeline.summary().sources["a"].outcome == "stopped"
    assert pipeline.summary().sources["b"].outcome == "ended"


@pytest.mark.parametrize("pace", ["fast", "live"])
def test_max_frames_counts_what_it_leaves(endless, engine, detector, pace: str) -> None:
    """Also frames that wait for later ones, and one that the reader holds in its hands."""
    engine.manifest = replace(engine.manifest, offsets=(-2, -1, 1, 2))
    camera = Camera(uri=endless(100), name="clip")
    pipeline = Pipeline(open_sources([camera], pace), engine, detector, Settings(max_frames=5))
    source = pipeline.sources[0]
    assert len(list(pipeline)) == 5
    assert len(source.ring) == 0
    summary = pipeline.summary().sources["clip"]
    assert summary.frames == 5
    assert summary.dropped["stopped"] >= 2, "two waited for later ones"
    assert source._index == 5 + sum(summary.dropped.values())


def test_later_supports_lose_no_frame(make_video, engine, detector, joints) -> None:
    engine.manifest = replace(engine.manifest, offsets=(-2, -1, 1, 2))
    results = list(Pipeline(open_sources([str(make_video(frames=15))]), engine, detector))
    assert [result.frame_index for result in results] == list(range(15))
    for index, result in enumerate(results):
        (pose,) = result.people
        assert pose.track_id == 1
        np.testing.assert_allclose(pose.keypoints[:, :2], [10 + 2 * index, 30] + joints * [20, 50], atol=2)
        np.testing.assert_allclose(pose.box, [10 + 2 * index, 30, 30 + 2 * index, 80], atol=6)


def test_stopping_drains(make_video, engine, detector) -> None:
    stop = threading.Event()
    pipeline = Pipeline(open_sources([str(make_video(frames=60))]), engine, detector, stop=stop)
    taken: list[PoseFrame] = []
    for result in pipeline:
        taken.append(result)
        if len(taken) == 3:
            stop.set()
    assert 3 <= len(taken) <= 3 + pipeline.sources[0].ring.capacity
    assert [result.frame_index for result in taken] == list(range(len(taken)))
    assert pipeline.sources[0].outcome is Outcome.STOPPED


def test_closing_the_iterator_stops_the_readers(make_video, engine, detector) -> None:
    pipeline = Pipeline(open_sources([str(make_video(frames=60))]), engine, detector)
    results = pipeline.results()
    next(results)
    results.close()
    assert pipeline.sources[0].outcome is Outcome.STOPPED


def test_a_live_file_is_dropped_from_when_inference_is_late(make_video, engine, detector) -> None:
    pipeline = Pipeline(open_sources([str(make_video(frames=20, fps=50))], "live"), engine, detector)
    encode, ring = engine.encode, pipeline.sources[0].ring

    def late(crops: np.ndarray) -> np.ndarray:
        wait_for(lambda: len(ring) >= 3 or ring.closed)
        return encode(crops)

    engine.encode = late
    results = list(pipeline)
    indices = [result.frame_index for result in results]
    assert indices == sorted(set(indices))
    assert len(results) <= 1 + 19 / 3 + 1
    assert len(results) + results[-1].dropped == 20
    assert pipeline.summary().dropped == results[-1].dropped


def test_a_failing_engine_ends_the_run_with_its_cause(make_video, engine, detector) -> None:
    def broken(crops: np.ndarray) -> np.ndarray:
        raise ModelError(f"stub: cannot encode {len(crops)} crops")

    engine.encode = broken
    pipeline = Pipeline(open_sources([str(make_video(frames=40))]), engine, detector)
    with pytest.raises(ModelError, match="cannot encode 1 crops"):
        list(pipeline)
    assert not [thread for thread in threading.enumerate() if thread.name == "source-clip"]


def test_a_source_that_ends_in_error_is_raised_after_all_results(make_images, make_video, engine, detector) -> None:
    folder = make_images({"1.png": (120, 160), "2.png": (120, 160)})
    (folder / "3.png").write_bytes(b"broken")
    pipeline = Pipeline(open_sources([str(folder), str(make_video(frames=15))]), engine, detector)
    taken: list[tuple[str, int]] = []

    def consume() -> None:
        for result in pipeline:
            taken.append((result.source, result.frame_index))

    with pytest.raises(SourceError, match=r"3\.png"):
        consume()
    assert sorted(taken) == sorted([("pictures", 0), ("pictures", 1)] + [("clip", i) for i in range(15)])
    assert pipeline.summary().sources["pictures"].outcome == "decode-failed"


def test_the_summary_counts_and_times_every_stage(make_video, engine, detector) -> None:
    pipeline = Pipeline(open_sources([str(make_video(frames=12))]), engine, detector)
    list(pipeline)
    summary = pipeline.summary()
    assert (summary.frames, summary.poses, summary.dropped) == (12, 12, 0)
    assert list(summary.stages) == ["decode", "queue", "detect", "encode", "fuse", "total"]
    for stage in summary.stages.values():
        assert 0 < stage.median_ms <= stage.p95_ms
    assert summary.stages["total"].count == summary.stages["decode"].count == 12
    assert summary.fps == pytest.approx(12 / summary.seconds)
    assert summary.sources["clip"].frames == 12


@pytest.mark.parametrize(("field", "value"), [("detect_every", 0), ("max_frames", 0)])
def test_settings_are_checked(field: str, value: int) -> None:
    with pytest.raises(UsageError, match=str(value)):
        Settings(**{field: value})


def test_run_fails_at_once_and_closes_what_it_opened(make_video, tmp_path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        run(str(tmp_path / "missing.mp4"))
    with pytest.raises(ModelError, match="no-such-model"):
        open_pipeline([str(make_video())], model="no-such-model")


def test_a_single_source_can_be_iterated_alone(make_video) -> None:
    with open_source(str(make_video(frames=3))) as source:
        assert [frame.index for frame in source] == [0, 1, 2]


def test_public_names_load_late_and_without_torch() -> None:
    code = (
        "import sys, streampose; early = set(sys.modules);"
        "assert not early & {'torch', 'cv2', 'av', 'onnxruntime', 'scipy', 'zmq'}, early;"
        "streampose.run; streampose.PoseFrame; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(streampose.__all__) <= set(dir(streampose))
    with pytest.raises(AttributeError, match="nonsense"):
        streampose.nonsense  # noqa: B018


class BesideEngine:
    """An engine that computes in a thread of its own."""

    def __init__(self, engine) -> None:
        self.engine, self.manifest = engine, engine.manifest
        self.pool = ThreadPoolExecutor(1)
        self.begun = self.asked = self.most = 0
        self.sources: tuple[Source, ...] = ()  # a round takes until they all have their next frame

    def encode(self, crops):
        return self.pool.submit(self.engine.encode, crops).result()

    def fuse(self, windows, transforms):
        return self.begin_fuse(windows, transforms)()

    def begin_fuse(self, windows, transforms):
        def work():
            wait_for(lambda: all(len(source.ring) or source.ring.closed for source in self.sources))
            return self.engine.fuse(windows, transforms)

        running = self.pool.submit(work)
        self.begun += 1
        self.most = max(self.most, self.begun - self.asked)

        def ask():
            self.asked += 1
            return running.result()

        return ask


@pytest.fixture
def beside(engine) -> Iterator[BesideEngine]:
    made = BesideEngine(engine)
    yield made
    made.pool.shutdown()


def test_rounds_of_other_sources_are_begun_while_one_is_computed(make_video, engine, beside, make_detector) -> None:
    """The same results in the same order of each source as from an engine that makes its caller wait."""
    paths = [str(make_video(f"{name}.mp4", frames=8 + n, people=1 + n % 2)) for n, name in enumerate("abcd")]

    def results(with_engine) -> dict[str, list[PoseFrame]]:
        settings = Settings(batch_frames=1)
        by_source: dict[str, list[PoseFrame]] = {name: [] for name in "abcd"}
        pipeline = Pipeline(open_sources(paths), with_engine, make_detector(), settings)
        beside.sources = pipeline.sources
        for poses in pipeline:
            by_source[poses.source].append(poses)
        return by_source

    found, wanted = results(beside), results(engine)
    assert beside.most == 2
    assert beside.begun == beside.asked == sum(len(of_source) for of_source in wanted.values())
    for name, of_source in wanted.items():
        assert [poses.frame_index for poses in found[name]] == list(range(len(of_source)))
        for one, other in zip(found[name], of_source, strict=True):
            assert [pose.track_id for pose in one.people] == [pose.track_id for pose in other.people]
            for pose, same in zip(one.people, other.people, strict=True):
                np.testing.assert_array_equal(pose.keypoints, same.keypoints)


def test_a_source_alone_is_never_behind(make_video, beside, detector) -> None:
    """Its next frame waits for the people of the last, and each result comes before the next round is begun."""
    for count, _ in enumerate(Pipeline(open_sources([str(make_video(frames=6))]), beside, detector), 1):
        assert beside.begun == beside.asked == count
    assert beside.most == 1


def test_what_is_under_way_still_comes_when_the_run_is_stopped(make_video, beside, make_detector) -> None:
    stop = threading.Event()
    paths = [str(make_video(f"{name}.mp4", frames=40)) for name in "ab"]
    pipeline = Pipeline(open_sources(paths), beside, make_detector(), Settings(batch_frames=1), stop=stop)
    beside.sources = pipeline.sources
    taken = []
    for poses in pipeline:
        taken.append((poses.source, poses.frame_index))
        if len(taken) == 4:
            stop.set()
    assert beside.begun == beside.asked == len(taken) >= 5
    for name in "ab":
        indices = [index for source, index in taken if source == name]
        assert indices == list(range(len(indices)))


def test_a_source_is_removed_after_its_round(make_video, beside, make_detector) -> None:
    pipeline = Pipeline(
        open_sources([str(make_video(f"{name}.mp4", frames=30)) for name in "ab"]), beside, make_detector(),
        Settings(batch_frames=1),
    )  # fmt: skip
    taken = []
    for poses in pipeline:
        taken.append((poses.source, poses.frame_index))
        if len(taken) == 6:
            pipeline.remove("a")
    assert beside.begun == beside.asked == len(taken)
    assert [index for source, index in taken if source == "b"] == list(range(30))
    assert len([1 for source, _ in taken if source == "a"]) < 30
