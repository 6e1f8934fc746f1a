"""How sure a figure is: 95 % intervals from units (people, pictures, clips) drawn anew.

Nothing is matched or estimated again: a figure is made of what each unit contributes, and a draw says how often each
unit counts. Figures of two methods on the same units are compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SAMPLES = 1000
SEED = 0
ENDS = (0.025, 0.975)
_Z = 1.959964
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Interval = tuple[float, float]


def draw(units: int, samples: int = SAMPLES, seed: int = SEED) -> Counts:
    """How often each unit is drawn, (samples, units): each row draws `units` times, with replacement."""
    if units == 0:
        return np.zeros((samples, 0), np.int64)
    drawn = np.random.default_rng(seed).integers(units, size=(samples, units))
    flat = (drawn + units * np.arange(samples)[:, None]).ravel()
    return np.bincount(flat, minlength=samples * units).reshape(samples, units)


def ends(figures: Floats) -> Interval:
    """The 95 % interval of a figure's values on the draws, (samples,); draws without a value (nan) do not count.

    Returns:
        Low and high; both nan where no draw has a value.
    """
    known = figures[~np.isnan(figures)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, ENDS)
    return float(low), float(high)


def ratios(counts: Counts, part: NDArray[np.number], whole: NDArray[np.number]) -> Floats:
    """sum(part) / sum(whole) over the units of each draw, (samples,); nan where the whole is 0."""
    below = counts @ np.asarray(whole, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(below > 0, (counts @ np.asarray(part, np.float64)) / below, np.nan))


def share_interval(part: NDArray[np.number], whole: NDArray[np.number]) -> Interval:
    """The 95 % interval of sum(part) / sum(whole), a share 0..1, over units drawn anew.

    Where every unit has all or none of its whole, drawing anew says nothing: then Wilson's interval of as many trials
    as there are units with something to find.

    Args:
        part, whole: (units,) what each has, 0 <= part <= whole.
    """
    full = np.asarray(whole) > 0
    found, there = float(np.sum(part)), float(np.sum(whole))
    if found in (0.0, there):
        trials = int(full.sum())
        return wilson(trials if found else 0, trials)
    return ends(ratios(draw(len(part)), part, whole))


def gain_interval(better: NDArray[np.number], worse: NDArray[np.number], whole: NDArray[np.number]) -> Interval:
    """The 95 % interval of (sum(better) - sum(worse)) / sum(whole): two methods on the same units, drawn together."""
    return ends(ratios(draw(len(whole)), np.asarray(better, np.float64) - np.asarray(worse, np.float64), whole))


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's 95 % score interval of a share of independent trials; (0, 1) where there are none."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, _Z**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    reach = _Z * np.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, float(middle - reach)), min(1.0, float(middle + reach))


def medians(counts: Counts, values: NDArray[np.floating], units: Sequence[int] | NDArray[np.integer]) -> Floats:
    """The median on each draw, (samples,), of values that come with their units; nan where a draw has none.

    Args:
        values: (N,).
        units: (N,) whose each value is, an index into the columns of `counts`.

    Returns:
        The lower of the two middle values where their number is even.
    """
    order = np.argsort(values, kind="stable")
    ranked = np.asarray(values, np.float64)[order]
    passed = np.cumsum(counts[:, np.asarray(units)[order]], axis=1)
    if passed.shape[1] == 0:
        return np.full(len(counts), np.nan)
    place = (2 * passed < passed[:, -1:]).sum(axis=1)
    return np.where(passed[:, -1] > 0, ranked[np.minimum(place, len(ranked) - 1)], np.nan)
