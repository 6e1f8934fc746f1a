"""A run and its outputs, on small clips and with a stand-in for the network."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from streampose import pictures, runner
from streampose.control import Request, ask
from streampose.errors import ModelError, OutputError, SourceError, StreamposeError, UsageError
from streampose.outlet import Outlet
from streampose.publish import Publisher
from streampose.ring import FrameRing
from streampose.runner import RunOptions, run_pipeline
from streampose.smoothing import Smoother, Smoothing
from streampose.sources import Camera
from streampose.subscribe import Subscriber

sys.path.insert(0, str(Path(__file__).parent))
from camera_kit import wait_for

WAIT_S = 60
pytestmark = pytest.mark.usefixtures("patient_cameras", "patient_stream")


class Notes:
    """A watcher that keeps what it is told."""

    def __init__(self):
        self.frames = []
        self.states = {}
        self.forgotten = []
        self.ticks = 0
        self.summary = None

    def add(self, frame):
        self.frames.append(frame)

    def set_state(self, source, state):
        self.states[source] = state

    def forget(self, source):
        self.forgotten.append(source)

    def tick(self, summary):
        assert summary.seconds > 0
        self.ticks += 1

    def end(self, summary):
        self.summary = summary


@pytest.fixture
def notes():
    return Notes()


@pytest.fixture
def stop():
    return threading.Event()


@pytest.fixture(autouse=True)
def models(monkeypatch, engine, detector):
    monkeypatch.setattr(runner, "choose_engine", lambda *_: engine)
    monkeypatch.setattr(runner, "PersonDetector", lambda _: detector)


@pytest.fixture
def heard(monkeypatch):
    """The subscriber of a run's publisher, in place before the run goes on: heard[0]."""
    streams = []

    class Heard(Publisher):
        def __init__(self, _, **kwargs):
            super().__init__("tcp://127.0.0.1:*", **kwargs)
            streams.append(Subscriber(self.endpoint, "lossless"))
            until = time.monotonic() + WAIT_S
            while not streams[0].heard_s:
                assert time.monotonic() < until
                streams[0].receive(0.01)

    monkeypatch.setattr(runner, "Publisher", Heard)
    yield streams
    for stream in streams:
        stream.close()


def last_state(stream, state):
    """The states a subscriber knows, once one of them is `state`; no frame may come before."""
    until = time.monotonic() + WAIT_S
    while state not in stream.states.values() and time.monotonic() < until:
        assert stream.receive(0.05) is None
    return stream.states


def running():
    """Threads of ours that are still there."""
    return [t.name for t in threading.enumerate() if t.name.startswith(("source-", "ticker", "publish"))]


def test_every_output_gets_every_frame(make_video, tmp_path, notes, stop, heard):
    lines = []
    path = tmp_path / "people.jsonl"
    options = RunOptions((str(make_video(frames=12)),), publish="tcp://127.0.0.1:5555", save=path)
    run_pipeline(options, notes, stop, lines.append)
    saved = [json.loads(line) for line in path.open()]
    assert [line["frame_index"] for line in saved] == list(range(12))
    assert b"".join(lines) == path.read_bytes()
    assert [frame.frame_index for frame in notes.frames] == list(range(12))
    received = [heard[0].receive(WAIT_S) for _ in range(12)]
    assert [frame.frame_index for frame in received] == list(range(12))
    assert [len(frame.people) for frame in received] == [len(line["people"]) for line in saved]
    assert saved[-1]["people"]
    assert (heard[0].hellos["clip"].model, heard[0].hellos["clip"].width) == ("stub", 160)
    assert last_state(heard[0], "ended") == notes.states == {"clip": "ended"}
    assert (notes.summary.frames, notes.summary.sources["clip"].outcome) == (12, "ended")
    assert running() == []


def test_several_sources_get_a_video_each(make_video, tmp_path, notes, stop):
    options = RunOptions(
        (str(make_video("a.mp4", frames=5)), str(make_video("b.mp4", frames=7, size=(96, 64)))),
        render=tmp_path / "out.mp4",
    )
    run_pipeline(options, notes, stop)
    for name, frames, size in (("a", 5, (160, 120)), ("b", 7, (64, 96))):
        with av.open(str(tmp_path / f"out-{name}.mp4")) as video:
            stream = video.streams.video[0]
            assert (stream.width, stream.height) == size
            assert sum(1 for _ in video.decode(stream)) == frames


def open_files():
    """Names of the files that this process has open."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.path.basename(os.readlink(f"/proc/self/fd/{number}")))
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs Linux, to see which files are open")
def test_a_removed_source_leaves_every_output_and_comes_back_to_a_video_of_its_own(tmp_path, notes, stop, monkeypatch):
    smoothers = []

    def smoother(settings):
        smoothers.append(Smoother(settings))
        return smoothers[0]

    monkeypatch.setattr("streampose.runner.Smoother", smoother)
    asked = tuple(Camera(uri="lavfi:testsrc2=size=160x120:rate=30", name=name) for name in "ab")
    options = RunOptions(asked, render=tmp_path / "out.mp4", control=tmp_path / "control.sock", smooth=Smoothing())
    run = threading.Thread(target=run_pipeline, args=(options, notes, stop))
    run.start()
    try:
        wait_for(lambda: {"a", "b"} <= {frame.source for frame in notes.frames})
        ask(options.control, Request(do="remove", name="b"))
        wait_for(lambda: notes.forgotten == ["b"])
        wait_for(lambda: "out-b.mp4" not in open_files())
        assert set(smoothers[0]._scenes) == {"a"}
        assert "out-a.mp4" in open_files()
        assert notes.states["b"] == "ended"
        before = sum(frame.source == "b" for frame in notes.frames)
        ask(options.control, Request(do="add", camera=asked[1]))
        wait_for(lambda: sum(frame.source == "b" for frame in notes.frames) > before)
    finally:
        stop.set()
        run.join(WAIT_S)
    assert not run.is_alive()
    for name, frames in (("b", before), ("b-2", sum(frame.source == "b" for frame in notes.frames) - before)):
        with av.open(str(tmp_path / f"out-{name}.mp4")) as video:
            assert sum(1 for _ in video.decode(video=0)) == frames


def test_an_output_that_fails_ends_the_run_and_frees_everything(make_video, notes, stop, heard):
    options = RunOptions((str(make_video(frames=50)),), publish="tcp://127.0.0.1:5555")

    def fail(_):
        if len(notes.frames) == 3:
            raise OutputError("full")

    with pytest.raises(OutputError, match="full"):
        run_pipeline(options, notes, stop, fail)
    assert len(notes.frames) == 3
    assert notes.summary.sources["clip"].outcome == "stopped"
    assert running() == []
    assert [heard[0].receive(WAIT_S).frame_index for _ in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("stage", ["publishing", "pictures"])
def test_a_crash_of_a_thread_of_its_own_ends_the_run_with_its_cause(notes, stop, monkeypatch, stage):
    def crash(*_):
        raise ZeroDivisionError("a bug")

    if stage == "publishing":
        monkeypatch.setattr(Outlet, "_beat", crash)
    else:
        monkeypatch.setattr(Publisher, "is_looked_at", lambda *_: True)
        monkeypatch.setattr(pictures, "to_jpeg", crash)
    options = RunOptions(("lavfi:testsrc2=size=160x120:rate=30",), publish="tcp://127.0.0.1:*")
    with pytest.raises(StreamposeError, match=f"{stage}.* crashed with ZeroDivisionError: a bug") as failure:
        run_pipeline(options, notes, stop)
    assert isinstance(failure.value.__cause__, ZeroDivisionError)
    assert running() == []


def test_stop_finishes_what_waits(make_video, notes, stop, monkeypatch):
    read, put = [], FrameRing.put
    monkeypatch.setattr(FrameRing, "put", lambda *args, **kwargs: put(*args, **kwargs) and not read.append(1))

    def end(_):
        if len(notes.frames) == 5:
            wait_for(lambda: len(read) >= 8)  # so that some wait
            stop.set()

    run_pipeline(RunOptions((str(make_video(frames=60)),)), notes, stop, end)
    assert 6 <= len(notes.frames) < 30
    assert [frame.frame_index for frame in notes.frames] == list(range(len(notes.frames)))
    assert notes.summary.frames == len(notes.frames)
    assert running() == []


def test_a_source_that_breaks_is_told_after_its_last_result(make_images, notes, stop, heard):
    folder = make_images({"1.png": (120, 160), "2.png": (120, 160)})
    (folder / "3.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"3\.png"):
        run_pipeline(RunOptions((str(folder),), publish="tcp://127.0.0.1:5555"), notes, stop)
    assert len(notes.frames) == 2
    assert [heard[0].receive(WAIT_S).frame_index for _ in range(2)] == [0, 1]
    assert last_state(heard[0], "offline") == notes.states == {"pictures": "offline"}
    assert "3.png" in notes.summary.sources["pictures"].error
    assert running() == []


def test_nothing_stays_open_when_a_model_is_missing(make_video, monkeypatch, notes, stop):
    def missing(*_):
        raise ModelError("no model")

    monkeypatch.setattr(runner, "choose_engine", missing)
    with pytest.raises(ModelError):
        run_pipeline(RunOptions((str(make_video()),)), notes, stop)
    assert notes.summary is None
    assert running() == []


def test_other_backends_and_endpoints_are_usage_errors():
    with pytest.raises(UsageError, match="backend is one of auto, onnxruntime"):
        RunOptions(("demo",), backend="opencl")
    with pytest.raises(UsageError, match="other machines reach it"):
        RunOptions(("demo",), publish="tcp://0.0.0.0:5555")


@pytest.mark.parametrize("option", ["save", "render"])
def test_an_output_never_overwrites_a_source(make_video: Callable[..., Path], option: str) -> None:
    clip = make_video("own.mp4")
    before = clip.read_bytes()
    with pytest.raises(UsageError, match="is the source itself"):
        RunOptions((str(clip),), **{option: clip})
    assert clip.read_bytes() == before


def test_a_video_of_one_of_several_sources_never_overwrites_another(make_video, tmp_path, notes, stop):
    left, other = make_video("left.mp4", frames=5), make_video("a-left.mp4", frames=5)
    before = other.read_bytes()
    options = RunOptions((str(left), str(other)), render=tmp_path / "a.mp4")
    with pytest.raises(UsageError, match=r"a-left\.mp4 is the source itself"):
        run_pipeline(options, notes, stop)
    assert other.read_bytes() == before


def test_an_output_never_overwrites_a_picture_of_the_source(tmp_path: Path) -> None:
    picture = tmp_path / "004.jpg"
    picture.write_bytes(b"a picture")
    with pytest.raises(UsageError, match="lies in the source's folder"):
        RunOptions((str(tmp_path),), save=picture)
    RunOptions((str(tmp_path),), save=tmp_path / "people.jsonl")


def test_two_outputs_in_one_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two names"):
        RunOptions(("demo",), save=tmp_path / "a.mp4", render=tmp_path / "a.mp4")


def test_a_video_is_an_mp4(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mp4"):
        RunOptions(("demo",), render=tmp_path / "a.txt")


@pytest.mark.parametrize("option", ["save", "render"])
def test_a_missing_folder_is_named_before_anything_is_written(tmp_path: Path, option: str) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        RunOptions(("demo",), **{option: tmp_path / "nowhere" / "a.mp4"})
