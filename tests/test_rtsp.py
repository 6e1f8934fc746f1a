"""RTSP against real servers: everything that a camera, its password, its network and its server can do to us."""

from __future__ import annotations

import base64
import os
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

sys.path.insert(0, str(Path(__file__).parent))
from camera_kit import Gate, Server, Viewer, file_server, free_port, gst_server, has_gst, make_clip, wait_for

needs_gst = pytest.mark.skipif(not has_gst(), reason="GStreamer's RTSP server is not installed")
GOP_S = 1.0


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


def test_a_camera_is_connected_to_at_once(server: Server) -> None:
    with watch(server.url) as view:
        assert view.wait_for_frames(1) < 2.0, "the first picture comes without probing"
        view.wait_for_frames(40)
    first, last = view.frames[0], view.frames[-1]
    assert first.image.shape == (120, 160, 3)
    assert {frame.epoch for frame in view.frames} == {0}
    steps = np.diff([frame.pts_s for frame in view.frames])
    assert steps.min() > 0
    assert np.median(steps) == pytest.approx(1 / 30, abs=0.005)
    assert last.clock == "rtcp", "the server reports its clock"
    assert last.captured_ns - first.captured_ns >= 0
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
        assert view.wait_for(Status.OFFLINE) < 0.5
        count = len(view.frames)
        server.start()
        assert view.wait_for_epoch(1) < waits_s[-1] + GOP_S + 1, "the wait under way, then a key frame"
        view.wait_for_frames(20)
    assert {frame.epoch for frame in view.frames[count:]} == {1}
    assert np.all(np.diff([frame.pts_s for frame in view.frames]) > 0), "presentation times go on"
    assert view.source.reconnects == 1
    assert view.states == [Status.WAITING, Status.ONLINE, Status.OFFLINE, Status.ONLINE]


def test_a_frozen_server_is_stalled_then_left_and_its_stale_frames_never_show(server: Server) -> None:
    with watch(server.url) as view:
        view.wait_for_frames(30)
        server.freeze()
        try:
            assert view.wait_for(Status.STALLED) < 2.0
            count = len(view.frames)
            view.wait_for(Status.OFFLINE)
            assert len(view.frames) == count, "the half frame that was on its way is not shown"
        finally:
            server.thaw()
        view.wait_for_epoch(1)
        view.wait_for_frames(30)
    assert {frame.epoch for frame in view.frames[count:]} == {1}


def test_a_short_freeze_keeps_the_connection_and_drops_what_it_held_back(server: Server) -> None:
    with watch(server.url) as view:
        view.wait_for_frames(30)
        server.freeze()
        try:
            view.wait_for(Status.STALLED)
            count = len(view.frames)
        finally:
            server.thaw()
        assert view.wait_for_frames(20) < 1.0 + 20 / 30 + 0.3
    after = view.frames[count:]
    assert {frame.epoch for frame in after} == {1}, "no window reaches over the stall"
    assert view.source.reconnects == 0
    assert view.source.ring.drops["stale"] > 1
    assert np.diff([frame.captured_ns for frame in after[5:]]).max() < 0.5e9


@pytest.mark.parametrize("fps", [5.0, 12.5])
def test_frames_above_the_asked_rate_are_dropped_evenly(server: Server, fps: float) -> None:
    with watch(server.url, fps=fps) as view:
        view.wait_for_frames(12)
    steps = np.diff([frame.pts_s for frame in view.frames])
    assert np.mean(steps) == pytest.approx(1 / fps, rel=0.2)
    assert view.source.ring.drops["fps"] > 10


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
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "no answer in 5 s", marks=pytest.mark.slow),
        pytest.param(os.urandom(4000), "no answer in 5 s", marks=pytest.mark.slow),
        (b"RTSP/1.0 503 Service Unavailable\r\nCSeq: 1\r\n\r\n", "answers with an error of its own"),
        (b"RTSP/1.0 403 Forbidden\r\nCSeq: 1\r\n\r\n", "forbids"),
    ],
    ids=["http", "noise", "busy", "forbidden"],
)
def test_whatever_answers_is_one_line(answer: bytes, text: str) -> None:
    with Gate(answer=lambda _: answer) as gate:
        assert text in refuse(f"rtsp://me:secret@127.0.0.1:{gate.port}/x")


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up() -> None:
    with Gate() as gate:
        assert "no answer in 5 s" in refuse(f"rtsp://me:secret@127.0.0.1:{gate.port}/x")


def test_no_traceback_holds_a_password() -> None:
    """Neither one that a program of somebody else shows, nor one that somebody else's logging writes."""
    password = "s3" + "cret"  # this file's own lines are in the traceback, too
    url = f"rtsp://me:{password}@127.0.0.1:{free_port()}/x"
    script = "import logging, os, streampose; logging.basicConfig(level=logging.DEBUG); "
    script += "next(iter(streampose.run(os.environ['CAMERA'], detector='none')))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False,
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


def test_garbage_in_the_stream_is_survived(server: Server) -> None:
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
        view.wait_for_frames(30, timeout_s=20)
        assert view.source.status is Status.ONLINE
        assert view.source.crash is None


@pytest.mark.slow
def test_noise_instead_of_a_stream_never_shows_a_frame(server: Server) -> None:
    with Gate(server.port) as gate, watch(f"rtsp://127.0.0.1:{gate.port}/clip.mp4?play_count=0") as view:
        view.wait_for_frames(20)
        gate.spoil = lambda data: os.urandom(len(data))
        view.wait_for(Status.OFFLINE)
        count = len(view.frames)
        wait_for(lambda: gate.connections >= 3)
        assert len(view.frames) == count
        gate.spoil = None
        view.wait_for_frames(10, timeout_s=20)


def test_a_network_that_is_cut_without_a_word_is_noticed(server: Server) -> None:
    with Gate(server.port) as gate, watch(f"rtsp://127.0.0.1:{gate.port}/clip.mp4?play_count=0") as view:
        view.wait_for_frames(20)
        gate.held.set()
        assert view.wait_for(Status.STALLED) < 2.0
        view.wait_for(Status.OFFLINE)
        gate.held.clear()
        view.wait_for_epoch(1, timeout_s=20)


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
        view.wait_for_epoch(1)
        view.wait_for_frames(5)
    seen = {(frame.epoch, frame.image.shape[:2]) for frame in view.frames}
    assert seen == {(0, (240, 320)), (1, (120, 160))}
    assert view.source.reconnects == 0


@needs_gst
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_another_kind_of_server_over_both_transports(transport: str) -> None:
    with gst_server() as server, watch(server.url, transport=transport) as view:
        view.wait_for_frames(20)
        server.kill()
        assert view.wait_for(Status.OFFLINE) < (0.5 if transport == "tcp" else 3.0)
        server.start()
        view.wait_for_epoch(1)
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
    captured = [frame.captured_ns for frame in view.frames]
    assert captured == sorted(captured)


def test_eight_cameras_of_which_one_is_dead(server: Server) -> None:
    urls = [server.url] * 7 + [f"rtsp://127.0.0.1:{free_port()}/dead"]
    views = [Viewer(source) for source in open_sources(urls)]
    for view in views:
        view.__enter__()
    try:
        for view in views[:7]:
            wait_for(lambda view=view: len(view.frames) >= 30, 20)
        counts = [len(view.frames) for view in views]
        assert counts[7] == 0
        assert views[7].source.status is Status.OFFLINE
        assert min(counts[:7]) >= 30
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
