"""RTSP cameras whose times, reports and pictures are not as they should be, from a server that does as it is told."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streampose.sources import Camera, Status, open_source, rtsp

sys.path.insert(0, str(Path(__file__).parent))
from camera_kit import Viewer, wait_for
from rtsp_puppet import FPS, TICKS, Puppet, Wire, encode


def watch(puppet: Puppet, **asked: object) -> Viewer:
    return Viewer(open_source(Camera(uri=puppet.url, **asked)))  # type: ignore[arg-type]


def playing(
    ticks: Callable[[int], int] = lambda number: number * TICKS,
    clock_s: float | None = 0.0,
    at_s: Callable[[int], float] = lambda number: number / FPS,
    **how: int,
) -> Callable[[Wire], None]:
    """A camera: picture number n is sent at `at_s(n)` with `ticks(n)`; its clock, which it reports ten times a second
    from picture 10 on, is `clock_s` off (None: it reports none)."""

    def play(wire: Wire) -> None:
        began_s = time.time()
        for count, (number, data) in enumerate(encode(**how)):
            wire.pause_until(at_s(count))
            if wire.closed.is_set():
                return
            if clock_s is not None and count >= 10 and count % 3 == 0:
                wire.report(ticks(number), began_s + number / FPS + clock_s)
            wire.send(data, ticks(number))

    return play


def test_the_puppet_is_a_camera_like_others() -> None:
    with Puppet(playing()) as puppet, watch(puppet) as view:
        view.wait_for_frames(60)
    assert view.frames[0].clock == "arrival"
    assert view.frames[-1].clock == "rtcp"
    assert np.median(view.ages_s[30:]) < 0.5
    assert view.source.ring.drops.get("damaged", 0) == 0


def test_b_frames_come_in_order_and_whole() -> None:
    with Puppet(playing(b_frames=3)) as puppet, watch(puppet) as view:
        view.wait_for_frames(60)
    steps_s = np.diff([frame.pts_s for frame in view.frames[5:]])
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
    with caplog.at_level("WARNING"), Puppet(playing(clock_s=off_s)) as puppet, watch(puppet) as view:
        view.wait_for_frames(50)
    assert {frame.clock for frame in view.frames} == {"arrival"}
    assert np.median(view.ages_s) < 0.5
    (line,) = [text for text in caplog.messages if "clock" in text]
    assert f"clock is {off_s:.1f} s off" in line or f"clock is {off_s - 0.1:.1f} s off" in line


def test_a_network_slower_than_the_camera_never_makes_it_late(monkeypatch, caplog) -> None:
    """What it brings comes later and later; the camera's reports tell that, and the backlog is left by reconnecting."""
    monkeypatch.setattr(rtsp, "UNTIMELY_S", 1.5)
    slow = playing(at_s=lambda number: number / FPS / 0.5)
    with caplog.at_level("WARNING"), Puppet(slow) as puppet, watch(puppet) as view:
        wait_for(lambda: view.source.reconnects == 1)
        view.wait_for_frames(10)
    assert np.quantile(view.ages_s, 0.9) < 1.0, "it would be two seconds by then"
    assert {Status.STALLED, Status.OFFLINE} <= set(view.states)
    assert any("s late; is the network slower than the camera?" in text for text in caplog.messages)
    assert view.frames[-1].epoch >= 1


def test_presentation_times_that_stand_still_are_named(monkeypatch) -> None:
    monkeypatch.setattr(rtsp, "UNTIMELY_S", 1.0)
    with Puppet(playing(lambda _: 0)) as puppet, watch(puppet) as view:
        wait_for(lambda: view.source.status is Status.OFFLINE)
        assert "presentation times are wrong" in str(view.source.error)
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


def test_what_follows_a_time_without_a_decodable_picture_begins_an_epoch() -> None:
    noise = np.random.default_rng(1)

    def play(wire: Wire) -> None:
        for number, data in encode(gop=FPS):
            wire.pause_until(number / FPS)
            if wire.closed.is_set():
                return
            broken = 40 <= number < 90
            wire.send(b"\0\0\1\x41" + noise.bytes(300) if broken else data, number * TICKS)

    with Puppet(play) as puppet, watch(puppet) as view:
        view.wait_for_epoch(1)
        view.wait_for_frames(50)
    assert Status.STALLED in view.states
    later = [frame for frame in view.frames if frame.epoch >= 1]
    assert {round(frame.pts_s * FPS) for frame in later} & set(range(39, 90)) == set()
    assert view.source.reconnects == 0


def test_a_camera_of_which_few_frames_are_wanted_is_not_stalled() -> None:
    with Puppet(playing()) as puppet, watch(puppet, fps=0.4) as view:
        view.wait_for_frames(2)
        assert view.states == [Status.WAITING, Status.ONLINE]
        assert view.source.ring.drops["fps"] > 60


def test_a_firewall_that_stops_udp_is_hinted_at(monkeypatch) -> None:
    monkeypatch.setattr(rtsp, "OPEN_S", 0.5)
    with Puppet(lambda wire: wire.pause_until(60)) as puppet, watch(puppet, transport="udp") as view:
        view.wait_for(Status.OFFLINE)
        assert "over UDP; where a firewall stops that, use transport tcp" in str(view.source.error)
