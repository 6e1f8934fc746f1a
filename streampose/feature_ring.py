"""The features of one person's last crops: what makes one encoder run a frame enough."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streampose.engines import Feature


class FeatureRing:
    """The newest encoded crops of one track, each with where the person is in it and its frame's index."""

    def __init__(self, offsets: Sequence[int]) -> None:
        """An empty ring, as long as the offsets reach.

        Args:
            offsets: which frames support the key frame, counted in encoded frames; -4 is four before it, 2 two after.

        Raises:
            ValueError: an offset is 0, which is the key frame itself.
        """
        if 0 in offsets:
            raise ValueError("offset 0 is the key frame itself and supports nothing")
        self._offsets = tuple(offsets)
        self.capacity = 1 + max(0, *offsets, 0) - min(0, *offsets, 0)
        self._places = np.zeros((self.capacity, 2, 2, 3), np.float32)
        self._features: list[Feature] = [None] * self.capacity
        self._indices = [-1] * self.capacity
        self._pushed = 0

    def __len__(self) -> int:
        return min(self._pushed, self.capacity)

    def push(self, feature: Feature, place: NDArray[np.float32], index: int) -> None:
        """Add the newest crop over the oldest one.

        Args:
            feature: what the engine made of the crop.
            place: (2, 2, 3), where person and picture are in the crop; see `place_in_crop`.
            index: of the frame.
        """
        slot = self._pushed % self.capacity
        self._features[slot] = feature
        self._places[slot] = place
        self._indices[slot] = index
        self._pushed += 1

    def clear(self) -> None:
        """Forget all crops."""
        self._pushed = 0
        self._features = [None] * self.capacity

    def window(self, index: int) -> tuple[list[Feature], NDArray[np.float32], list[int]]:
        """What the fuser needs for a frame as the key frame: the key first, then in the order of the offsets.

        A supporting frame that does not exist is replaced by the nearest there is: the oldest, or the newest.

        Args:
            index: of the key frame, one of the last `capacity` pushed.

        Returns:
            T features, where person and picture are in their crops (T, 2, 2, 3), and the indices of their frames.

        Raises:
            LookupError: that frame is not in the ring.
        """
        ages = [age for age in range(len(self)) if self._indices[self._slot(age)] == index]
        if not ages:
            raise LookupError(f"frame {index} is not in the feature ring")
        slots = [self._slot(ages[0] - offset) for offset in (0, *self._offsets)]
        return [self._features[slot] for slot in slots], self._places[slots], [self._indices[slot] for slot in slots]

    def _slot(self, age: int) -> int:
        age = min(max(age, 0), len(self) - 1)
        return (self._pushed - 1 - age) % self.capacity
