"""RTSP cameras whose times, reports and pictures are not as they should be, from a server that does as it is told."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streampose.sources import Camera, Status, open_source, rtsp
from streampose.sources.opening import connect

sys.path.insert(0, str(Path(__file__).parent))
from camera_kit import Viewer, wait_for
from rtsp_puppet import FPS, TICKS, Puppet, Wire, encode

pytestmark = pytest.mark.usefixtures("patient_cameras")


def watch(puppet: Puppet, **asked: object) -> Viewer:
    return Viewer(open_source(Camera(uri=puppet.url, **asked)))  # type: ignore[arg-type]


def playing(
    ticks: Callable[[int], int] = lambda number: number * TICKS,
    clock_s: float | None = 0.0,
    at_s: Callable[[int], float] = lambda number: number / FPS,
    due_s: list[float] | None = None,
    **how: int,
) -> Callable[[Wire], None]:
    """A camera: picture number n is sent at `at_s(n)` with `ticks(n)`; its clock, which it reports ten times a second
    from picture 10 on, is `clock_s` off (None: it reports none). `due_s` gets the monotonic time of each picture."""

    def play(wire: Wire) -> None:
        began_s = time.time() - (time.monotonic() - wire.began_s)
        for count, (number, data) in enumerate(encode(**how)):
            if due_s is not None:
                due_s.append(wire.began_s + at_s(count))
            wire.pause_until(at_s(count))
            if wire.closed.is_set():
                return
            if clock_s is not None and count >= 10 and count % 3 == 0:
                wire.report(ticks(number), began_s + number / FPS + clock_s)
            wire.send(data, ticks(number))

    return play


def test_the_puppet_is_a_camera_like_others() -> None:
    due_s: list[float] = []
    with Puppet(playing(due_s=due_s)) as puppet, watch(puppet) as view:
        view.wait_for_frames(60)
        wait_for(lambda: view.frames[-1].clock == "rtcp")
        view.wait_for_frames(20)
    assert view.frames[0].clock == "arrival"
    told = [frame for frame in view.frames if frame.clock == "rtcp"]
    assert np.median([frame.captured_ns / 1e9 - due_s[frame.index] for frame in told]) == pytest.approx(0, abs=0.05)
    assert all(frame.captured_ns / 1e9 > due_s[frame.index] - 0.05 for frame in view.frames)
    assert view.source.ring.drops.get("damaged", 0) == 0


def test_b_frames_come_in_order_and_whole() -> None:
    with Puppet(playing(b_frames=3)) as puppet, watch(puppet) as view:
        view.wait_for_frames(60)
    later = view.frames[5:]
    steps_s = np.diff([frame.pts_s for frame in later]) / np.diff([frame.index for frame in later])
    assert steps_s.min() > 0
    assert np.median(steps_s) == pytest.approx(1 / FPS, abs=1e-3)
    assert view.source.ring.drops.get("damaged", 0) == 0


def test_presentation_times_that_jump_back_begin_an_epoch() -> None:
    with Puppet(playing(lambda number: (number % 60) * TICKS)) as puppet, watch(puppet) as view:
        view.wait_for_epoch(1)
        view.wait_for_frames(10)
    assert np.diff([frame.pts_s for frame in view.frames]).min() > 0
    assert view.source.reconnects == 0


@pytest.mark.parametrize("off_s", [3600.0, -86400.0])
def test_a_camera_whose_clock_is_wrong_is_timed_by_arrival_and_named(caplog, off_s: float) -> None:
    due_s: list[float] = []
    play = playing(clock_s=off_s, due_s=due_s)
    with caplog.at_level("WARNING"), Puppet(play) as puppet, watch(puppet) as view:
        view.wait_for_frames(50)
        wait_for(lambda: "clock is" in caplog.text)
    assert {frame.clock for frame in view.frames} == {"arrival"}
    assert all(due_s[frame.index] <= frame.captured_ns / 1e9 <= time.monotonic() for frame in view.frames)
    (line,) = [text for text in caplog.messages if "clock" in text]
    said_s = float(line.partition("clock is ")[2].partition(" s off")[0])
    assert off_s - 60 < said_s < off_s + 1, "less what the first report took to come"


def test_a_network_slower_than_the_camera_never_makes_it_late(monkeypatch, caplog) -> None:
    """What it brings comes later and later; the camera's reports tell that, and the backlog is left by reconnecting."""
    be_impatient(monkeypatch, stalled_s=0.5, untimely_s=1.5)
    slow = playing(at_s=lambda number: number / FPS / 0.5)
    said = "s late; is the network slower than the camera?"
    with caplog.at_level("WARNING"), Puppet(slow) as puppet, watch(puppet) as view:
        wait_for(lambda: view.source.reconnects and any(said in text for text in caplog.messages))
        view.wait_for_epoch(view.source.epoch)
    assert view.source.ring.drops["stale"] > 1, "those that came late"


def be_impatient(monkeypatch, *, stalled_s: float, untimely_s: float) -> None:
    """What a camera must not do for longer is in the limits' own tests; here they only come soon."""
    monkeypatch.setattr("streampose.sources.pace.STALLED_S", stalled_s)
    monkeypatch.setattr(rtsp, "UNTIMELY_S", untimely_s)


def test_presentation_times_that_stand_still_are_named(monkeypatch) -> None:
    be_impatient(monkeypatch, stalled_s=0.3, untimely_s=1.0)
    with Puppet(playing(lambda _: 0)) as puppet, watch(puppet) as view:
        wait_for(lambda: "presentation times are wrong" in str(view.source.error))
        view.wait_for(Status.OFFLINE)
    assert not view.frames


def test_a_camera_without_a_key_frame_is_waited_for_longer(monkeypatch) -> None:
    """It is joined in the middle of a long group of pictures; what is not decodable until its end is no failure."""
    monkeypatch.setattr(rtsp, "UNDECODED_S", 0.5)
    group = 2 * FPS

    def play(wire: Wire) -> None:
        for number, data in enumerate(data for _, data in encode(gop=group)):
            wire.pause_until((number - 5) / FPS)
            if wire.closed.is_set():
                return
            if number >= 5:
                wire.send(data, number * TICKS)

    with Puppet(play) as puppet, watch(puppet) as view:
        view.wait_for_frames(5)
        assert view.source.reconnects == 0
    monkeypatch.setattr(rtsp, "KEYLESS_S", 0.5)
    with Puppet(play) as puppet, watch(puppet) as view:
        wait_for(lambda: view.source.status is Status.OFFLINE)
        assert "no key frame in 0 s" in str(view.source.error)


def test_the_first_picture_comes_without_looking_ahead() -> None:
    """More than three pictures are sent only to who has opened the stream: a probe would wait for them."""
    opened, early = threading.Event(), []

    def play(wire: Wire) -> None:
        for number, data in encode():
            if number == 3:
                early.append(opened.wait(20))
            if wire.closed.is_set():
                return
            wire.send(data, number * TICKS)
            wire.pause_until((number + 1) / FPS)

    with Puppet(play) as puppet:
        reader = connect(Camera(uri=puppet.url))
        opened.set()
        wait_for(lambda: early)
        next(reader.pictures())
        reader.close()
    assert early == [True]


def test_a_short_silence_begins_an_epoch_on_the_same_connection(monkeypatch) -> None:
    be_impatient(monkeypatch, stalled_s=1.0, untimely_s=120.0)
    go = threading.Event()

    def play(wire: Wire) -> None:
        held_s = 0.0
        for number, data in encode():
            if number == 60:
                assert go.wait(60)
                held_s = time.monotonic() - wire.began_s - number / FPS
            wire.pause_until(number / FPS + held_s)
            if wire.closed.is_set():
                return
            wire.send(data, number * TICKS + round(held_s * 90_000))

    with Puppet(play) as puppet, watch(puppet) as view:
        wait_for(lambda: view.source._index == 59)  # the last one comes out of FFmpeg with what follows it
        view.wait_for(Status.STALLED)
        epoch = view.source.epoch
        go.set()
        view.wait_for_epoch(epoch + 1)
        view.wait_for_frames(20)
    assert all((frame.epoch > epoch) == (frame.index >= 59) for frame in view.frames), "no window reaches over it"
    assert 59 not in {frame.index for frame in view.frames}, "nothing tells how old it is"
    assert view.source.reconnects == 0
    assert np.diff([frame.pts_s for frame in view.frames]).min() > 0


def test_half_a_picture_that_was_on_its_way_is_not_shown(monkeypatch) -> None:
    """The camera falls silent in the middle of picture 40; FFmpeg hands out what it has of it when it gives up."""
    monkeypatch.setattr(rtsp, "SILENT_S", 2.0)
    plays = []

    def play(wire: Wire) -> None:
        plays.append(wire)
        for number, data in encode(noise=True):
            wire.pause_until(number / FPS)
            if number == 40 and len(plays) == 1:
                wire.send(data, number * TICKS, share=0.5)
                wire.closed.wait(120)
            if wire.closed.is_set():
                return
            wire.send(data, number * TICKS)

    with Puppet(play) as puppet, watch(puppet) as view:
        wait_for(lambda: len(plays) > 1)
        view.wait_for_epoch(1)
    first = [frame.index for frame in view.frames if frame.epoch == 0]
    assert first
    assert max(first) < 40


def test_what_follows_a_time_without_a_decodable_picture_begins_an_epoch(monkeypatch) -> None:
    be_impatient(monkeypatch, stalled_s=1.0, untimely_s=120.0)
    noise, seen, held_s = np.random.default_rng(1), threading.Event(), 0.0

    def play(wire: Wire) -> None:
        nonlocal held_s
        for number, data in encode(gop=FPS):
            if number == 40:
                assert seen.wait(60)
                held_s = time.monotonic() - wire.began_s - number / FPS
            wire.pause_until(number / FPS + held_s)
            if wire.closed.is_set():
                return
            broken = 40 <= number < 90
            wire.send(b"\0\0\1\x41" + noise.bytes(300) if broken else data, number * TICKS + round(held_s * 90_000))

    with Puppet(play) as puppet, watch(puppet) as view:
        wait_for(lambda: view.source._index >= 39)
        epoch = view.source.epoch
        seen.set()
        view.wait_for_epoch(epoch + 1)
        view.wait_for_frames(50)
    before = [frame for frame in view.frames if frame.index < 39][-1]
    numbers = [before.index + (frame.pts_s - before.pts_s) * FPS for frame in view.frames]
    assert not [number for number in numbers if 39.5 < number < 89.5 + held_s * FPS]
    assert view.source.reconnects == 0


def test_a_camera_of_which_few_frames_are_wanted_is_not_stalled() -> None:
    """What is left out counts as heard of, too."""
    with Puppet(playing()) as puppet, watch(puppet, fps=0.4) as view:
        view.wait_for_frames(1)
        count, heard_ns = view.source.ring.drops.get("fps", 0), view.source._last_ns
        for _ in range(3):
            count += 10
            wait_for(lambda: view.source.ring.drops.get("fps", 0) >= count)  # noqa: B023
            assert view.source._last_ns > heard_ns
            heard_ns = view.source._last_ns
        assert len(view.frames) == 1
        view.wait_for_frames(1)
    assert view.states == [Status.WAITING, Status.ONLINE]


def test_a_firewall_that_stops_udp_is_hinted_at(monkeypatch) -> None:
    monkeypatch.setattr(rtsp, "OPEN_S", 0.5)
    monkeypatch.setattr(rtsp, "SILENT_S", 0.5)
    said = "over UDP; where a firewall stops that, use transport tcp"
    with Puppet(lambda wire: wire.pause_until(120)) as puppet, watch(puppet, transport="udp") as view:
        wait_for(lambda: said in str(view.source.error))
