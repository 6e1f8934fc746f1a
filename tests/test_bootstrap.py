"""Intervals with known answers: how often they hold the truth, pairs, and where drawing anew says nothing."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [train] extra")

from streampose.train.bootstrap import draw, ends, gain_interval, medians, ratios, share_interval, wilson


def test_each_draw_draws_as_many_units_as_there_are_and_the_seed_decides() -> None:
    counts = draw(50, 200)
    assert counts.shape == (200, 50)
    assert (counts.sum(axis=1) == 50).all()
    assert (counts == draw(50, 200)).all()
    assert (counts != draw(50, 200, seed=1)).any()
    assert draw(0, 3).shape == (3, 0)


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    """People with 5 to 15 joints each, whose own share of found joints differs: joints are no independent trials."""
    rng = np.random.default_rng(0)
    held = naive = 0
    for _ in range(200):
        joints = rng.integers(5, 16, 120)
        found = rng.binomial(joints, rng.beta(2, 1, 120))
        low, high = share_interval(found, joints)
        held += low <= 2 / 3 <= high
        low, high = wilson(int(found.sum()), int(joints.sum()))
        naive += low <= 2 / 3 <= high
    assert 180 <= held <= 198, "0.9 to 0.99 of them, where 0.95 are promised"
    assert naive < 160, "joints as trials would promise too much"


def test_a_pair_is_surer_than_its_parts() -> None:
    rng = np.random.default_rng(1)
    joints = np.full(150, 12)
    worse = rng.binomial(joints, rng.beta(2, 2, 150))
    better = np.minimum(worse + rng.binomial(1, 0.5, 150), joints)
    low, high = gain_interval(better, worse, joints)
    gain = (better.sum() - worse.sum()) / joints.sum()
    assert low < gain < high
    assert low > 0
    assert high - low < 0.3 * np.subtract(*share_interval(better, joints)[::-1])
    assert gain_interval(worse, worse, joints) == (0, 0)


def test_all_right_and_none_right_are_not_certain() -> None:
    whole = np.full(25, 2)
    assert share_interval(whole, whole) == pytest.approx(wilson(25, 25))
    assert share_interval(0 * whole, whole) == pytest.approx(wilson(0, 25))
    assert share_interval(np.zeros(3), np.zeros(3)) == (0, 1)
    assert share_interval(np.zeros(0), np.zeros(0)) == (0, 1)


def test_wilsons_interval_is_the_textbooks() -> None:
    assert wilson(20, 20) == pytest.approx((0.8389, 1), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(10, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert wilson(0, 0) == (0, 1)


def test_ratios_and_medians_of_counts_are_those_of_the_units_drawn() -> None:
    rng = np.random.default_rng(2)
    counts, units = draw(6, 40), rng.integers(6, size=31)
    values, whole = rng.normal(size=31), rng.integers(1, 9, 6)
    part = rng.binomial(whole, 0.5)
    for row, ratio, median in zip(counts, ratios(counts, part, whole), medians(counts, values, units), strict=True):
        drawn = np.repeat(np.arange(6), row)
        assert ratio == pytest.approx(part[drawn].sum() / whole[drawn].sum())
        pool = np.sort(np.concatenate([values[units == unit] for unit in drawn]))
        assert median == pool[(len(pool) - 1) // 2]


def test_draws_without_a_value_do_not_count() -> None:
    assert np.isnan(ratios(draw(2, 5), np.zeros(2), np.zeros(2))).all()
    assert ends(np.array([np.nan, 0.5, 0.5])) == (0.5, 0.5)
    assert np.isnan(ends(np.full(4, np.nan))).all()
    assert np.isnan(medians(draw(2, 5), np.zeros(0), np.zeros(0, int))).all()
