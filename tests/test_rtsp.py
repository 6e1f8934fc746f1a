"""RTSP against real servers: everything that a camera, its password, its network and its server can do to us."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

pytest.importorskip("aio_rtsp_toolkit", reason="needs the [dev] extra")

from streampose.errors import SourceError, UsageError
from streampose.sources import Camera, Status, open_source, open_sources, rtsp
from streampose.sources.address import camera_id, with_credentials, with_environment
from streampose.sources.backoff import Backoff
from streampose.sources.opening import connect
from streampose.sources.video import open_video
from streampose.types import Frame

sys.path.insert(0, str(Path(__file__).parent))
from camera_kit import Gate, Server, Viewer, file_server, gst_server, has_gst, make_clip, wait_for
from ports import free_port

pytestmark = pytest.mark.usefixtures("patient_cameras")
needs_gst = pytest.mark.skipif(not has_gst(), reason="GStreamer's RTSP server is not installed")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    make_clip(folder / "clip.mp4")
    return folder


@pytest.fixture
def server(clips: Path) -> Iterator[Server]:
    with file_server(clips, "clip.mp4?play_count=0") as running:
        yield running


def watch(url: str, **asked: object) -> Viewer:
    return Viewer(open_source(Camera(uri=url, **asked)))  # type: ignore[arg-type]


def be_strict(monkeypatch, stalled_s: float = 1.0, silent_s: float = 2.0) -> None:
    """Call a camera stalled and gone as early as the product does; then so does a machine that sleeps meanwhile."""
    monkeypatch.setattr("streampose.sources.pace.STALLED_S", stalled_s)
    monkeypatch.setattr(rtsp, "OPEN_S", 5.0)
    monkeypatch.setattr(rtsp, "SILENT_S", silent_s)
    monkeypatch.setattr(rtsp, "UNDECODED_S", 5.0)
    monkeypatch.setattr(rtsp, "UNTIMELY_S", 8.0)


def steps_s(frames: list[Frame]) -> np.ndarray:
    """Presentation time from each frame to the next that the camera sent, though some were not taken."""
    return np.diff([frame.pts_s for frame in frames]) / np.diff([frame.index for frame in frames])


def test_a_camera_is_connected_to_at_once(server: Server) -> None:
    with watch(server.url) as view:
        view.wait_for_frames(40)
        wait_for(lambda: view.frames[-1].clock == "rtcp")
    assert view.frames[0].image.shape == (120, 160, 3)
    assert {frame.epoch for frame in view.frames} == {0}
    steps = steps_s(view.frames)
    assert steps.min() > 0
    assert np.median(steps) == pytest.approx(1 / 30, abs=0.005)
    assert view.source.id == f"127.0.0.1-{server.port}-clip.mp4"
    assert view.states == [Status.WAITING, Status.ONLINE]
    assert view.source.reconnects == 0


def test_every_frame_is_accounted_for(server: Server) -> None:
    with watch(server.url) as view:
        view.wait_for_frames(60)
    source = view.source
    assert len(view.frames) + source.ring.dropped == source._index
    assert [frame.index for frame in view.frames] == sorted({frame.index for frame in view.frames})


def test_a_killed_server_is_noticed_at_once_and_its_return_too(server: Server, monkeypatch) -> None:
    waits_s: list[float] = []
    draw = Backoff.next_s
    monkeypatch.setattr(Backoff, "next_s", lambda backoff: waits_s.append(draw(backoff)) or waits_s[-1])
    with watch(server.url) as view:
        view.wait_for_frames(30)
        server.kill()
        view.wait_for(Status.OFFLINE)  # by the end of the connection: silence would take two minutes
        server.start()
        tries = len(waits_s)
        view.wait_for_epoch(1)
        assert len(waits_s) <= tries + 1, "the try under way may have come too early; the next one does not"
        view.wait_for_frames(20)
    assert [frame.epoch for frame in view.frames] == sorted(frame.epoch for frame in view.frames)
    assert {frame.epoch for frame in view.frames} == {0, 1}
    assert np.all(np.diff([frame.pts_s for frame in view.frames]) > 0), "presentation times go on"
    assert view.source.reconnects == 1
    assert view.states == [Status.WAITING, Status.ONLINE, Status.OFFLINE, Status.ONLINE]


def test_a_frozen_server_is_left_and_connected_to_again(server: Server, monkeypatch) -> None:
    be_strict(monkeypatch)
    with watch(server.url) as view:
        view.wait_for_frames(30)
        server.freeze()
        try:
            wait_for(lambda: view.source.status is Status.OFFLINE and "sent nothing for" in str(view.source.error))
            epoch = view.source.epoch
        finally:
            server.thaw()
        view.wait_for_epoch(epoch + 1)
        view.wait_for_frames(30)
    epochs = [frame.epoch for frame in view.frames]
    assert epochs == sorted(epochs)
    assert view.source.reconnects >= 1


def test_a_short_freeze_keeps_the_connection(server: Server, monkeypatch) -> None:
    be_strict(monkeypatch, silent_s=120.0)
    with watch(server.url) as view:
        view.wait_for_frames(30)
        server.freeze()
        try:
            view.wait_for(Status.STALLED)
        finally:
            server.thaw()
        view.wait_for(Status.ONLINE)
        view.wait_for_frames(20)
    assert view.source.reconnects == 0
    assert view.source.ring.drops["stale"] > 1, "the first of a connection, and the first after a stall"


@pytest.mark.parametrize("fps", [5.0, 12.5])
def test_frames_above_the_asked_rate_are_dropped_evenly(server: Server, fps: float) -> None:
    with watch(server.url, fps=fps) as view:
        view.wait_for_frames(12)
    assert np.diff([frame.pts_s for frame in view.frames]).min() > 1 / fps - 1 / 30 - 0.005
    drops = view.source.ring.drops
    wanted = len(view.frames) + drops.get("overwritten", 0) + drops.get("superseded", 0) + drops.get("stopped", 0)
    assert drops["fps"] > 10
    assert wanted > 0.8 * (wanted + drops["fps"]) * fps / 30, "and no more than these"


def refuse(url: str, **asked: object) -> str:
    """The error of a camera that cannot be connected to in the first place."""
    with open_source(Camera(uri=url, **asked)) as source, pytest.raises(SourceError) as failure:  # type: ignore[arg-type]
        for _ in source:
            pass
    text = str(failure.value)
    assert "\n" not in text
    assert "secret" not in text
    assert "***@" in text
    return text


def test_a_wrong_path_a_closed_port_and_an_unknown_host_are_one_line_each(server: Server) -> None:
    assert "has nothing at this path" in refuse(f"rtsp://me:secret@127.0.0.1:{server.port}/nothing.mp4")
    assert "nothing listens" in refuse(f"rtsp://me:secret@127.0.0.1:{free_port()}/clip.mp4")
    assert "no host is called nowhere.invalid" in refuse("rtsp://me:secret@nowhere.invalid/clip.mp4")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "no answer in 1 s"),
        (os.urandom(4000), "no answer in 1 s"),
        (b"RTSP/1.0 503 Service Unavailable\r\nCSeq: 1\r\n\r\n", "answers with an error of its own"),
        (b"RTSP/1.0 403 Forbidden\r\nCSeq: 1\r\n\r\n", "forbids"),
    ],
    ids=["http", "noise", "busy", "forbidden"],
)
def test_whatever_answers_is_one_line(answer: bytes, text: str, monkeypatch) -> None:
    if text.startswith("no answer"):
        monkeypatch.setattr(rtsp, "OPEN_S", 1.0)
    with Gate(answer=lambda _: answer) as gate:
        assert text in refuse(f"rtsp://me:secret@127.0.0.1:{gate.port}/x")


def test_a_server_that_never_answers_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(rtsp, "OPEN_S", 1.0)
    with Gate() as gate:
        assert "no answer in 1 s" in refuse(f"rtsp://me:secret@127.0.0.1:{gate.port}/x")


def test_no_traceback_holds_a_password() -> None:
    """Neither one that a program of somebody else shows, nor one that somebody else's logging writes."""
    password = "s3" + "cret"  # this file's own lines are in the traceback, too
    url = f"rtsp://me:{password}@127.0.0.1:{free_port()}/x"
    script = "import logging, os, streampose; logging.basicConfig(level=logging.DEBUG); "
    script += "next(iter(streampose.run(os.environ['CAMERA'], detector='none')))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "CAMERA": url},
    )  # fmt: skip
    assert "nothing listens at this address" in done.stderr
    assert "Traceback" in done.stderr
    assert password not in done.stdout + done.stderr
    with pytest.raises(SourceError) as failure:
        connect(Camera(uri=url))
    assert password not in "".join(traceback.format_exception(failure.value))


def demand(user: str, password: str):
    """Answers 401 to whoever does not give this user and password."""
    wanted = b"Authorization: Basic " + base64.b64encode(f"{user}:{password}".encode())

    def answer(data: bytes) -> bytes | None:
        if not data.startswith(b"DESCRIBE") or wanted in data:
            return None
        number = data.partition(b"CSeq: ")[2].partition(b"\r\n")[0]
        return b"RTSP/1.0 401 Unauthorized\r\nCSeq: " + number + b'\r\nWWW-Authenticate: Basic realm="camera"\r\n\r\n'

    return answer


def test_a_wrong_password_is_refused_and_the_right_one_works(server: Server, monkeypatch) -> None:
    with Gate(server.port, demand("me", "p w:/@1")) as gate:
        url = f"127.0.0.1:{gate.port}/clip.mp4?play_count=0"
        assert "refuses the user name or password" in refuse(f"rtsp://me:secret@{url}")
        monkeypatch.setenv("CAMERA_PASSWORD", "p w:/@1")
        with watch(f"rtsp://me:${{CAMERA_PASSWORD}}@{url}") as view:
            view.wait_for_frames(3)
        monkeypatch.setenv("STREAMPOSE_RTSP_USER", "me")
        monkeypatch.setenv("STREAMPOSE_RTSP_PASSWORD", "p w:/@1")
        with watch(f"rtsp://{url}") as view:
            view.wait_for_frames(3)
        assert "p w" not in view.source.name


def test_garbage_in_the_stream_is_survived(server: Server, monkeypatch) -> None:
    be_strict(monkeypatch)
    random = np.random.default_rng(5)

    def spoil(data: bytes) -> bytes:
        spoilt = bytearray(data)
        for place in random.integers(0, len(spoilt), 1 + len(spoilt) // 50):
            spoilt[place] ^= 0xA5
        return bytes(spoilt)

    with Gate(server.port) as gate, watch(f"rtsp://127.0.0.1:{gate.port}/clip.mp4?play_count=0") as view:
        view.wait_for_frames(20)
        gate.spoil = spoil
        wait_for(lambda: view.source.status is not Status.ONLINE or sum(view.source.ring.drops.values()) > 30)
        gate.spoil = None
        epoch = view.source.epoch
        view.wait_for_epoch(epoch)
        view.wait_for_frames(30)
        view.wait_for(Status.ONLINE)
        assert view.source.crash is None


@pytest.mark.slow
def test_noise_instead_of_a_stream_never_shows_a_frame(server: Server, monkeypatch) -> None:
    be_strict(monkeypatch)
    with Gate(server.port) as gate, watch(f"rtsp://127.0.0.1:{gate.port}/clip.mp4?play_count=0") as view:
        view.wait_for_frames(20)
        monkeypatch.setattr(rtsp, "OPEN_S", 1.0)
        gate.spoil = lambda data: os.urandom(len(data))
        view.wait_for(Status.OFFLINE)
        reconnects, connections = view.source.reconnects, gate.connections
        wait_for(lambda: gate.connections >= connections + 2)
        assert view.source.reconnects == reconnects, "none of them brought a picture"
        gate.spoil = None
        monkeypatch.setattr(rtsp, "OPEN_S", 5.0)
        view.wait_for_frames(10)


def test_a_network_that_is_cut_without_a_word_is_noticed(server: Server, monkeypatch) -> None:
    be_strict(monkeypatch)
    with Gate(server.port) as gate, watch(f"rtsp://127.0.0.1:{gate.port}/clip.mp4?play_count=0") as view:
        view.wait_for_frames(20)
        gate.held.set()
        view.wait_for(Status.OFFLINE)
        epoch = view.source.epoch
        gate.held.clear()
        view.wait_for_epoch(epoch + 1)


def test_half_a_file_is_offered_again_and_again(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", seconds=3)
    os.truncate(whole, whole.stat().st_size // 2)
    with file_server(tmp_path, "whole.mp4") as server:
        assert "whole.mp4" in refuse(server.url.replace("rtsp://", "rtsp://me:secret@"))


def test_a_server_that_comes_back_with_another_size_starts_an_epoch(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4")
    with file_server(tmp_path, "clip.mp4?play_count=0") as server, watch(server.url) as view:
        view.wait_for_frames(20)
        server.kill()
        make_clip(tmp_path / "clip.mp4", size=(96, 128))
        server.start()
        view.wait_for_epoch(1)
        view.wait_for_frames(10)
    assert {(frame.epoch, frame.image.shape[:2]) for frame in view.frames} == {(0, (120, 160)), (1, (96, 128))}


@needs_gst
def test_a_stream_that_changes_its_size_starts_an_epoch() -> None:
    with gst_server("sizes") as server, watch(server.url) as view:
        view.wait_for_frames(5)
        server.tell(signal.SIGUSR1)
        view.wait_for_epoch(1)
        view.wait_for_frames(5)
    seen = {(frame.epoch, frame.image.shape[:2]) for frame in view.frames}
    assert seen == {(0, (240, 320)), (1, (120, 160))}
    assert view.source.reconnects == 0


@needs_gst
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_another_kind_of_server_over_both_transports(transport: str, monkeypatch) -> None:
    if transport == "udp":  # over TCP its end is noticed at once
        monkeypatch.setattr(rtsp, "SILENT_S", 2.0)
    with gst_server() as server, watch(server.url, transport=transport) as view:
        view.wait_for_frames(20)
        server.kill()
        view.wait_for(Status.OFFLINE)
        epoch = view.source.epoch
        server.start()
        view.wait_for_epoch(epoch + 1)
    assert view.source.fps == 30


@needs_gst
def test_digest_or_basic_as_the_server_wants() -> None:
    with gst_server("password") as server:
        path = f"127.0.0.1:{server.port}/cam"
        assert "refuses the user name or password" in refuse(f"rtsp://u:secret@{path}")
        with watch(f"rtsp://u:p%20w%3A1@{path}") as view:
            view.wait_for_frames(3)


@needs_gst
def test_capture_time_is_the_cameras_once_it_reports() -> None:
    with gst_server() as server, watch(server.url) as view:
        wait_for(lambda: bool(view.frames) and view.frames[-1].clock == "rtcp")
        view.wait_for_frames(30)
    assert view.frames[0].clock == "arrival"
    captured = [frame.captured_ns for frame in view.frames if frame.clock == "rtcp"]
    assert captured == sorted(captured)


def test_eight_cameras_of_which_one_is_dead(server: Server) -> None:
    urls = [server.url] * 7 + [f"rtsp://127.0.0.1:{free_port()}/dead"]
    views = [Viewer(source) for source in open_sources(urls)]
    for view in views:
        view.__enter__()
    try:
        for view in views[:7]:
            wait_for(lambda view=view: len(view.frames) >= 30)
        views[7].wait_for(Status.OFFLINE)
        assert not views[7].frames
    finally:
        for view in views:
            view.__exit__()


def test_addresses_without_their_secrets() -> None:
    assert camera_id("rtsp://me:secret@10.0.0.5/Streaming/Channels/101?token=x") == "10.0.0.5-Channels-101"
    assert camera_id("rtsp://10.0.0.5:8554/user=admin&password=secret&channel=1/") == "10.0.0.5-8554"
    assert camera_id("rtsp://[::1]:554/a%20b") == "1-a-20b"
    for ambiguous in ("rtsp://h:554/secret:a@x", "rtsp://me:12/34@h/x", "rtsp://me:p@h/x?secret@h"):
        assert camera_id(ambiguous) == "camera"
    assert with_environment("rtsp://${A}@h/x", {"A": "u:p@/"}) == "rtsp://u%3Ap%40%2F@h/x"
    assert with_environment("${URL}", {"URL": "rtsp://u:p@h/x"}) == "rtsp://u:p@h/x"
    with pytest.raises(UsageError, match="variable PASS is not set"):
        with_environment("rtsp://u:${PASS}@h/x", {})
    both = {"STREAMPOSE_RTSP_USER": "u", "STREAMPOSE_RTSP_PASSWORD": "p@"}
    assert with_credentials("rtsp://h:1/x@y", both) == "rtsp://u:p%40@h:1/x@y"
    assert with_credentials("rtsp://a:b@h/x", both) == "rtsp://a:b@h/x"
    assert with_credentials("rtsp://h/x", {}) == "rtsp://h/x"


@pytest.mark.parametrize("url", ["rtsp://", "rtsp:///x", "rtsp://h:0/x", "rtsp://h:99999/x", "rtsp://[::1/x"])
def test_urls_that_name_no_camera_are_usage_errors(url: str) -> None:
    with pytest.raises(UsageError, match=r"as in rtsp://"):
        open_source(url)


def test_a_camera_is_never_read_losslessly() -> None:
    with pytest.raises(UsageError, match="pace fast"):
        open_source("rtsp://me:secret@camera/1", pace="fast")


def test_where_haste_gave_nothing_the_next_connection_probes(server: Server, monkeypatch) -> None:
    asked = []

    def hasty(where: str, name: str, hwaccel: str | None, **how):
        asked.append("probesize" in how["options"])
        if asked[-1]:
            raise av.error.InvalidDataError(1, "cannot be told so soon", where)
        return open_video(where, name, hwaccel, **how)

    monkeypatch.setattr(rtsp, "open_video", hasty)
    with watch(server.url) as view:
        view.wait_for_frames(5)
    assert asked == [True, False]
