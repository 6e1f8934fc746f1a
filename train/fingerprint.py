"""Near-duplicate pictures by difference hashes (256 bits)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 16
ALIKE_BITS = 12
"""Pictures whose hashes differ in at most this many of 256 bits are near-duplicates."""


def fingerprint(image: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """(4,) uint64: for 16 x 16 places, whether the picture (H, W, 3) gets brighter to the right."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1]).view(np.uint64)


def first_alike(hashes: NDArray[np.uint64], first: Sequence[bool]) -> NDArray[np.int64]:
    """For each of N pictures the one that it is a near-duplicate of, or -1.

    Args:
        hashes: (N, 4) fingerprints.
        first: pictures that are never duplicates but may have some, such as a validation split's.

    Returns:
        (N,) index of a `first` picture or of an earlier one that is itself no duplicate.
    """
    fixed = np.asarray(first, np.bool_)
    original = np.full(len(hashes), -1, np.int64)
    kept = list(np.flatnonzero(fixed))
    for index in np.flatnonzero(~fixed):
        if kept:
            bits = np.bitwise_count(hashes[kept] ^ hashes[index]).sum(axis=1)
            nearest = int(bits.argmin())
            if bits[nearest] <= ALIKE_BITS:
                original[index] = kept[nearest]
                continue
        kept.append(index)
    return original
