"""Fingerprints of pictures: difference hashes of 256 bits, alike where pictures are."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 16
Hashes = NDArray[np.uint64]
"""(N, 4) fingerprints."""


def fingerprint(image: NDArray[np.uint8]) -> Hashes:
    """(4,) uint64: for 16 x 16 places, whether the picture (H, W, 3) gets brighter to the right."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1]).view(np.uint64)


def bits_apart(one: Hashes, many: Hashes) -> NDArray[np.int64]:
    """(N,): in how many of 256 bits a fingerprint (4,) differs from each of (N, 4)."""
    return np.asarray(np.bitwise_count(many ^ one).sum(axis=1), np.int64)


def share_alike(frames: Hashes, others: Hashes, bits: int) -> float:
    """The share, 0..1, of the fingerprints `frames` (N, 4) that differ from one of `others` in at most `bits`."""
    return float(np.mean([bits_apart(frame, others).min() <= bits for frame in frames]))
