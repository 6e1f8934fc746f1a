"""Which pictures are fresh: simulated cameras, networks and freezes, on clocks of their own."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from streampose.sources.pace import STALLED_S, Pace


def judge(pictures: Iterable[tuple[float, float]]) -> tuple[Pace, list[bool]]:
    """Pictures as (presentation time, arrival), seconds."""
    pace = Pace()
    return pace, [pace.judge(pts_s, arrived_s) for pts_s, arrived_s in pictures]


def steady(count: int, fps: float = 30, start: float = 0.0, delay: float = 100.0) -> list[tuple[float, float]]:
    return [(start + i / fps, start + i / fps + delay) for i in range(count)]


def test_all_but_the_first_of_a_steady_camera_are_fresh() -> None:
    pace, fresh = judge(steady(300))
    assert fresh == [False] + [True] * 299
    assert (pace.section, pace.stall_s) == (0, STALLED_S)


def test_an_uneven_network_loses_nothing() -> None:
    random = np.random.default_rng(3)
    arrivals = np.maximum.accumulate(np.arange(600) / 30 + random.uniform(0, 0.2, 600))
    _, fresh = judge(zip(np.arange(600) / 30, arrivals, strict=True))
    assert all(fresh[2:])


def test_pictures_in_threes_are_fresh() -> None:
    """A radio link that sends every 100 ms what came meanwhile."""
    _, fresh = judge((i / 30, (i // 3) * 0.1 + 0.11 + (i % 3) * 1e-3) for i in range(300))
    assert all(fresh[4:])


def test_a_burst_at_the_start_is_stale_until_it_is_over() -> None:
    burst = [(i / 30, 100.0 + i * 0.001) for i in range(25)]
    live = [(i / 30, 100.024 + (i - 24) / 30) for i in range(25, 60)]
    _, fresh = judge([*burst, *live])
    assert not any(fresh[:25])
    assert all(fresh[25:])


def test_what_a_frozen_server_held_back_is_stale() -> None:
    """Three seconds of silence, then all of it within 0.3 s, then live again."""
    held = [(2 + i / 30, 105.0 + i / 300) for i in range(90)]
    live = [(5.3 + i / 30, 105.3 + i / 30) for i in range(30)]
    pace, fresh = judge([*steady(60), *held, *live])
    assert not any(fresh[60:150])
    assert all(fresh[152:])
    assert pace.section == 1


def test_a_camera_whose_clock_stood_still_is_fresh_again_within_a_second() -> None:
    """The presentation times go on where they were, three seconds late for ever."""
    frozen = [(2 + i / 30, 105.0 + i / 30) for i in range(90)]
    pace, fresh = judge([*steady(60), *frozen])
    assert not fresh[60]
    assert all(fresh[60 + 30 :])
    assert pace.section == 1


def test_a_slow_catching_up_is_stale_to_its_end() -> None:
    """Half a second and more behind, sent at 1.5 times its pace: two seconds late for a start."""
    held = [(2 + i / 30, 104.0 + i / 45) for i in range(180)]
    _, fresh = judge([*steady(60), *held])
    late_s = [arrived - pts - 100 for pts, arrived in held]
    for freshness, late in zip(fresh[60:], late_s, strict=True):
        assert not freshness or late <= 0.55


@pytest.mark.parametrize("fps", [0.2, 1, 2, 5])
def test_slow_cameras_are_not_stalled_for_being_slow(fps: float) -> None:
    pace, fresh = judge(steady(20, fps))
    assert sum(fresh) >= 18
    assert pace.stall_s >= 3 / fps


def test_clocks_that_drift_apart_make_nothing_late() -> None:
    """A camera whose clock runs a thousandth slow, for an hour."""
    _, fresh = judge((i / 10, i / 10 * 1.001 + 7) for i in range(36_000))
    assert all(fresh[1:])


def test_presentation_times_that_begin_anew_are_fresh_soon() -> None:
    again = [(i / 30, 110.0 + i / 30) for i in range(60)]
    _, fresh = judge([*steady(300), *again])
    assert all(fresh[300 + 30 :])


def slower_network(reports: bool, share: float = 0.6) -> list[tuple[float, float, float | None]]:
    """Ten seconds as they should be, then a network that brings so much of it only: later and later."""
    good = [(i / 30, 100 + i / 30) for i in range(300)]
    slow = [(10 + i / 30, 110 + i / 30 / share) for i in range(300)]
    return [(pts, arrived, 5000 + pts if reports else None) for pts, arrived in [*good, *slow]]


def test_what_comes_later_and_later_is_stale_where_the_camera_tells_its_clock() -> None:
    pace = Pace()
    pictures = slower_network(reports=True)
    fresh = [pace.judge(*picture) for picture in pictures]
    late_s = [arrived - pts - 100 for pts, arrived, _ in pictures]
    assert max(late for late, shown in zip(late_s, fresh, strict=True) if shown) < 0.55
    assert not any(fresh[330:])
    assert pace.late_s > 5


def test_without_the_cameras_clock_it_is_taken_for_a_slow_one() -> None:
    pace = Pace()
    fresh = [pace.judge(*picture) for picture in slower_network(reports=False)]
    assert sum(fresh[300:]) > 150


def test_presentation_times_that_run_slow_are_told_by_the_cameras_clock() -> None:
    """Half as fast as they should; every five seconds a report of the camera's clock sets that right."""
    pace = Pace()
    fresh = []
    for i in range(900):
        reported = i - i % 150
        fresh.append(pace.judge(i / 60, 100 + i / 30, 5000 + reported / 30 + (i - reported) / 60))
    assert sum(fresh[300:]) > 300


def test_a_wrong_clock_makes_nothing_stale() -> None:
    """Reports of a clock that stands still, or jumps about."""
    random = np.random.default_rng(2)
    for reported in (np.full(600, 7.0), random.uniform(-1e9, 1e9, 600)):
        pace = Pace()
        assert all([pace.judge(i / 30, 100 + i / 30, float(reported[i])) for i in range(600)][1:])


def test_a_network_that_was_slow_for_a_while_begins_a_section() -> None:
    slow = [(2 + i / 30, 102 + i / 15) for i in range(60)]
    burst = [(4 + i / 30, 106.01 + i / 300) for i in range(67)]
    live = [(6.24 + i / 30, 106.25 + i / 30) for i in range(60)]
    pace = Pace()
    fresh = [pace.judge(pts, arrived, 5000 + pts) for pts, arrived in [*steady(60), *slow, *burst, *live]]
    late_s = [arrived - pts - 100 for pts, arrived in [*steady(60), *slow, *burst, *live]]
    assert max(late for late, shown in zip(late_s, fresh, strict=True) if shown) < 0.55
    assert all(fresh[-55:])
    assert pace.section == 1
