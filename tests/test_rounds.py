"""How many frames go into a round, by what rounds cost."""

from __future__ import annotations

import numpy as np
import pytest

from streampose.rounds import RoundSize


def settle(call_s: float, frame_s: float, waiting: int = 16, noise: float = 0.1) -> list[int]:
    """The sizes of 400 rounds of an engine with these costs, while so many frames wait."""
    random = np.random.default_rng(2)
    rounds, sizes = RoundSize(16, 0.1), []
    for _ in range(400):
        size = min(rounds.frames, waiting)
        rounds.learn(size, (call_s + frame_s * size) * random.uniform(1 - noise, 1 + noise))
        sizes.append(size)
    return sizes[-100:]


@pytest.mark.parametrize(
    ("call_s", "frame_s", "least", "most"),
    [
        (0.01, 0.001, 16, 16),  # all within the time wanted
        (0.0, 0.1, 1, 1),  # a CPU, where frames cost the same alone
        (0.0, 0.02, 4, 6),
        (0.2, 0.0, 12, 16),  # a call costs the same for all: never fewer, whatever it takes
        (0.2, 0.01, 10, 16),
    ],
)
def test_the_size_follows_the_costs(call_s: float, frame_s: float, least: int, most: int) -> None:
    assert least <= np.median(settle(call_s, frame_s)) <= most


def test_one_camera_is_never_held_up() -> None:
    assert set(settle(0.5, 0.5, waiting=1)) == {1}
