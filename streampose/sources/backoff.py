"""How long to wait before trying again."""

from __future__ import annotations

import random

FIRST_S = 0.25
LONGEST_S = 5.0


class Backoff:
    """Waits that double from 0.25 to 5 s, each shortened by a random part of up to a half, so that cameras behind one
    switch do not all come back in the same instant."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self._tries = 0

    def reset(self) -> None:
        """Begin anew: it went well."""
        self._tries = 0

    def next_s(self) -> float:
        """The next wait, seconds."""
        longest = min(LONGEST_S, FIRST_S * 2.0**self._tries)
        self._tries = min(self._tries + 1, 16)
        return max(FIRST_S, longest * self._random.uniform(0.5, 1.0))
