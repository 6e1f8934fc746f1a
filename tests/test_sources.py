"""Sources: every frame once when lossless, real time when live, and three ways to end."""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.codec.hwaccel import hwdevices_available
from numpy.typing import NDArray

from streampose.errors import SourceError, UsageError
from streampose.sources import (
    Camera,
    DecodeFailedError,
    DisconnectedError,
    Outcome,
    Picture,
    Source,
    Status,
    open_source,
    open_sources,
)
from streampose.sources.webcam import WebcamReader
from streampose.types import Frame

sys.path.insert(0, str(Path(__file__).parent))
from camera_kit import wait_for

pytestmark = pytest.mark.usefixtures("patient_cameras")
TURNS = [
    ((1, 0, 0, 1), (120, 160), (55, 20)),
    ((0, 1, -1, 0), (160, 120), (20, 64)),
    ((-1, 0, 0, -1), (120, 160), (64, 140)),
    ((0, -1, 1, 0), (160, 120), (140, 55)),
]
"""The track header's matrix a, b, c, d; the upright picture's (height, width); the walker's (row, column) in it."""


def read_all(source: Source) -> list[Frame]:
    with source:
        return list(source)


def collect(source: Source, into: list[Frame]) -> None:
    for frame in source:
        into.append(frame)


def test_a_file_gives_every_frame_once_in_order(make_video) -> None:
    path = make_video(frames=30)
    source = open_source(str(path))
    frames = read_all(source)
    assert not source.live
    assert [frame.index for frame in frames] == list(range(30))
    np.testing.assert_allclose([frame.pts_s for frame in frames], np.arange(30) / 25, atol=1e-6)
    assert {frame.image.shape for frame in frames} == {(120, 160, 3)}
    assert {(frame.source_id, frame.epoch) for frame in frames} == {("clip", 0)}
    assert source.outcome is Outcome.ENDED
    assert source.status is Status.ENDED
    assert source.ring.dropped == 0
    columns = [int((frame.image[55, :, 0] > 125).argmax()) for frame in frames]
    assert columns == [10 + 2 * index for index in range(30)]


def test_capture_times_are_monotonic_and_now(make_video) -> None:
    before = time.monotonic_ns()
    times = [frame.captured_ns for frame in read_all(open_source(str(make_video())))]
    assert before <= times[0]
    assert times == sorted(times)
    assert times[-1] <= time.monotonic_ns()


def test_live_pace_releases_frames_at_their_times_and_counts_losses(make_video) -> None:
    source = open_source(str(make_video(frames=12, fps=30)), pace="live")
    began = time.monotonic()
    taken = []
    with source:
        while not source.finished:
            frame = source.read(timeout_s=60)
            if frame is not None:
                taken.append(frame)
    assert time.monotonic() - began >= 11 / 30 - 0.02
    assert [frame.index for frame in taken] == sorted(frame.index for frame in taken)
    assert len(taken) + source.ring.dropped == 12
    assert taken[-1].index == 11


def test_a_live_reader_does_not_wait_for_a_late_consumer(make_video) -> None:
    with open_source(str(make_video(frames=15, fps=60)), pace="live") as source:
        deadline = time.monotonic() + 60
        while source.outcome is Outcome.OPEN and time.monotonic() < deadline:
            source._stop.wait(0.01)
        assert source.outcome is Outcome.ENDED
        newest = source.read()
        assert newest is not None
        assert newest.index == 14
        assert source.ring.dropped == 14
        assert source.ring.drops == {"overwritten": 11, "superseded": 3}


@pytest.mark.parametrize(("matrix", "shape", "bright"), TURNS)
def test_rotation_metadata_is_applied(
    make_video, matrix: tuple[int, int, int, int], shape: tuple[int, int], bright: tuple[int, int]
) -> None:
    path = make_video(frames=2)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    first = read_all(open_source(str(path)))[0]
    assert first.image.shape[:2] == shape
    rows, columns = np.nonzero(first.image[..., 0] > 125)
    np.testing.assert_allclose((rows.mean(), columns.mean()), bright, atol=1)


def test_images_come_in_natural_order_at_25_a_second(make_images) -> None:
    names = ["frame1.png", "frame2.jpg", "frame3.bmp", "frame10.webp"]
    folder = make_images(dict.fromkeys(names, (120, 160)))
    (folder / "notes.txt").write_text("not a picture")
    frames = read_all(open_source(str(folder)))
    columns = [int((frame.image[55, :, 0] > 125).argmax()) for frame in frames]
    assert columns == [10, 12, 14, 16]
    assert [frame.pts_s for frame in frames] == [0.0, 0.04, 0.08, 0.12]
    assert frames[0].source_id == "pictures"


def test_one_picture_is_a_source_of_one_frame(make_images) -> None:
    frames = read_all(open_source(str(make_images({"me.png": (60, 200)}) / "me.png")))
    assert [(frame.source_id, frame.image.shape) for frame in frames] == [("me", (60, 200, 3))]


def test_another_picture_size_starts_an_epoch_and_loses_nothing(make_images, caplog) -> None:
    sizes = [(120, 160)] * 2 + [(100, 200)] * 2 + [(120, 160)]
    folder = make_images({f"{i}.png": size for i, size in enumerate(sizes)})
    with caplog.at_level("INFO", "streampose"):
        frames = read_all(open_source(str(folder)))
    assert [(f.index, f.epoch, f.image.shape[:2]) for f in frames] == [
        (i, epoch, size) for i, (epoch, size) in enumerate(zip([0, 0, 1, 1, 2], sizes, strict=True))
    ]
    assert sum("picture size changed" in message for message in caplog.messages) == 2


def test_a_video_may_change_its_size(make_video) -> None:
    parts = [make_video("a.ts", frames=6), make_video("b.ts", frames=6, size=(96, 128))]
    path = parts[0].with_name("both.ts")
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = read_all(open_source(str(path)))
    assert [frame.index for frame in frames] == list(range(12))
    assert [(frame.epoch, frame.image.shape[:2]) for frame in frames] == [(0, (120, 160))] * 6 + [(1, (96, 128))] * 6


def test_a_truncated_video_gives_its_frames_then_fails(make_video) -> None:
    whole = make_video("whole.mp4", frames=40, size=(240, 320))
    cut = whole.with_name("cut.mkv")
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    os.truncate(cut, cut.stat().st_size // 2)
    with open_source(str(cut)) as source:
        frames: list[Frame] = []
        with pytest.raises(DecodeFailedError, match=r"cut\.mkv: (cut short|cannot be decoded) after frame") as failure:
            collect(source, frames)
        assert [frame.index for frame in frames] == list(range(len(frames)))
        assert 3 < len(frames) < 40
        assert source.outcome is Outcome.DECODE_FAILED
        assert source.status is Status.OFFLINE
        assert source.error is failure.value
    assert isinstance(failure.value, SourceError)


def test_a_truncated_mp4_fails_after_its_frames(make_video) -> None:
    path = make_video(frames=40, size=(240, 320))
    data = path.read_bytes()
    moved = path.with_name("moved.mp4")
    with av.open(str(path)) as source, av.open(str(moved), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    os.truncate(moved, len(data) // 2)
    frames: list[Frame] = []
    with open_source(str(moved)) as source, pytest.raises(DecodeFailedError, match="after frame"):
        collect(source, frames)
    assert 3 < len(frames) < 40
    assert [frame.index for frame in frames] == list(range(len(frames)))


def test_a_damaged_picture_fails_after_those_before_it(make_images) -> None:
    folder = make_images({"1.png": (20, 30), "2.png": (20, 30)})
    (folder / "3.png").write_bytes(b"no picture")
    frames: list[Frame] = []
    with open_source(str(folder)) as source, pytest.raises(DecodeFailedError, match=r"3\.png: not a picture"):
        collect(source, frames)
    assert [frame.index for frame in frames] == [0, 1]


def test_a_camera_that_goes_away_is_disconnected(make_video) -> None:
    capture = cv2.VideoCapture(str(make_video(frames=5)))
    reader = WebcamReader("webcam:7", capture)
    with pytest.raises(DisconnectedError, match="webcam:7: the camera stopped"):
        list(reader.pictures())
    reader.close()
    assert not capture.isOpened()


def test_a_camera_that_goes_away_is_offline_at_once(make_video) -> None:
    """Also between its end and the moment at which the reason is known."""
    seen: list[Status] = []

    class Leaving(WebcamReader):
        def close(self) -> None:
            seen.append(source.status)
            super().close()

    def connect() -> WebcamReader:
        if seen:
            raise DisconnectedError("webcam:7: no such camera")
        return Leaving("webcam:7", cv2.VideoCapture(str(make_video(frames=5))))

    source = Source("cam", "webcam:7", connect=connect, live=True)
    assert source.status is Status.WAITING
    with source:
        for _ in range(6000):
            if not seen:
                source.read(0.01)
    assert seen == [Status.OFFLINE]


def test_a_camera_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such camera"):
        WebcamReader("webcam:7", cv2.VideoCapture(str(tmp_path / "nothing.mp4")))


@pytest.mark.skipif(Path("/dev/video63").exists(), reason="this machine has 64 cameras")
def test_a_missing_webcam_is_one_line() -> None:
    with open_source("webcam:63") as source, pytest.raises(SourceError, match="webcam:63: no such camera") as failure:
        collect(source, [])
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.mp4", None, "no such file"),
        ("text.mp4", b"just some words, no video at all", "not a video that can be read"),
        ("empty.mp4", b"", "not a video that can be read"),
        ("text.png", b"words", "not a picture that can be decoded"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as failure:
        open_source(str(tmp_path / name))
    assert name in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("uri", ["x" * 5000, "~no-such-user-of-this-machine/clip.mp4"])
def test_a_path_that_cannot_be_is_one_line(uri: str) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        open_source(uri)


def test_a_file_without_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(SourceError, match="holds no video"):
        open_source(str(path))


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no pictures in this folder"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("rtsp://user:secret@", "names no camera"),
        ("http://user:secret@host/x.mp4", "http:// is no source"),
        ("webcam:front", "webcam:0"),
        ("rtsp://me:more secret@host/x", "no blanks"),
        ("rtsp://host/x?user=me&password=more secret", "rtsp://host: a URL has no blanks"),
        ("rtsp://me:secret\n@host/x", "no control characters"),
        (" ", "empty source"),
    ],
)
def test_other_uris_are_usage_errors_without_secrets(uri: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as failure:
        open_source(uri)
    assert "secret" not in str(failure.value)


def test_an_unknown_pace_is_a_usage_error(make_video) -> None:
    with pytest.raises(UsageError, match="auto, live, fast"):
        open_source(str(make_video()), pace="slow")


def test_sources_of_the_same_name_are_numbered(make_video) -> None:
    path = str(make_video())
    sources = open_sources([path, path, path])
    assert [source.id for source in sources] == ["clip", "clip-2", "clip-3"]
    assert {frame.source_id for frame in read_all(sources[1])} == {"clip-2"}
    for source in sources:
        source.close()


def test_leaving_a_source_early_stops_its_thread(make_video) -> None:
    with open_source(str(make_video(frames=60))) as source:
        assert source.read(timeout_s=60) is not None
    assert source._thread is not None
    assert not source._thread.is_alive()
    assert source.outcome is Outcome.STOPPED


def test_test_pictures_come_live_and_change_their_size(monkeypatch) -> None:
    graph = "lavfi:testsrc2=size=160x120:rate=30,scale=w='if(lt(n,5),160,80)':h='if(lt(n,5),120,60)':eval=frame"
    source = open_source(graph)
    frames: list[Frame] = []
    put = source.ring.put
    monkeypatch.setattr(source.ring, "put", lambda frame, wait: frames.append(frame) or put(frame, wait))
    began_ns = time.monotonic_ns()
    with source:
        assert source.live
        wait_for(lambda: len(frames) >= 12)
    frames = frames[:12]
    assert {(frame.epoch, frame.image.shape[:2]) for frame in frames} == {(0, (120, 160)), (1, (60, 80))}
    assert [frame.epoch for frame in frames] == sorted(frame.epoch for frame in frames)
    np.testing.assert_allclose([frame.pts_s for frame in frames], np.arange(12) / 30, atol=1e-6)
    assert all(frame.captured_ns - began_ns >= frame.pts_s * 1e9 for frame in frames), "none before its time"


def test_test_pictures_may_come_losslessly() -> None:
    frames = read_all(open_source("lavfi:testsrc2=size=64x48:rate=10:duration=2", pace="fast"))
    assert [frame.index for frame in frames] == list(range(20))
    assert frames[-1].source_id == "lavfi"


def test_a_graph_that_is_none_is_one_line() -> None:
    with pytest.raises(SourceError, match="lavfi:nosuchfilter: not a filter graph") as failure:
        open_source("lavfi:nosuchfilter")
    assert "\n" not in str(failure.value)


def test_an_unknown_hardware_decoder_is_a_usage_error(make_video) -> None:
    with pytest.raises(UsageError, match="hwaccel is one of"):
        open_source(Camera(uri=str(make_video()), hwaccel="magic"))


def test_a_hardware_decoder_is_never_left_out_in_silence(make_images) -> None:
    kind = hwdevices_available()[0]
    for uri in ("webcam:0", "lavfi:testsrc2", str(make_images({"a.png": (60, 80)}))):
        with pytest.raises(UsageError, match=f"hwaccel {kind} is for RTSP cameras and video files"):
            open_source(Camera(uri=uri, hwaccel=kind))
    if not Path("/dev/dri/renderD128").exists():
        with pytest.raises(SourceError, match="qsv cannot decode this here"):
            open_source(Camera(uri="demo", hwaccel="qsv"))


def test_a_picture_that_cannot_be_converted_is_damaged_and_no_crash() -> None:
    """What a camera sends is no error of ours; of a file it ends the file."""

    def fail() -> NDArray[np.uint8]:
        raise DecodeFailedError("a picture in xyz cannot be turned to BGR")

    class Odd:
        name, live, fps = "odd", True, 30.0

        def pictures(self) -> Iterator[Picture]:
            for number in range(6):
                pixels = np.zeros((4, 4, 3), np.uint8)
                yield Picture(fail if number == 2 else pixels.copy, number / 30, time.monotonic_ns(), 0.0)
            raise DisconnectedError("gone")

        def close(self) -> None:
            pass

    once = [Odd()]

    def connect() -> Odd:
        if not once:
            raise DisconnectedError("gone")
        return once.pop()

    with Source("odd", "odd", connect=connect, live=True, capacity=8) as source:
        indices = [frame.index for frame in (source.ring.get(60) for _ in range(5)) if frame is not None]
    assert indices == [0, 1, 3, 4, 5]
    assert source.ring.drops["damaged"] == 1
    assert source.crash is None
    with pytest.raises(DecodeFailedError, match="xyz"):
        read_all(Source("odd", "odd", reader=Odd(), live=False))


def test_a_hardware_decoder_that_is_not_there_is_a_source_error(make_video) -> None:
    if Path("/dev/dri/renderD128").exists():
        pytest.skip("this machine has one")
    with pytest.raises(SourceError, match="qsv"):
        open_source(Camera(uri=str(make_video()), hwaccel="qsv"))
