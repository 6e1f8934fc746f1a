"""What people look like: the colours of the upper and the lower half of their clothes."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_LEFT, _TOP, _RIGHT, _BOTTOM = 0.3, 0.15, 0.7, 0.9
"""The core of a box: between its arms, below the head, above the feet; what lies there is seldom background."""
_WIDTH, _HEIGHT, _WAIST = 12, 32, 15
"""A core's picture, and the row at which the legs begin, pixels."""
_HUES, _SATURATIONS, _VALUES = 12, 4, 8
LENGTH = 2 * (_HUES * _SATURATIONS + _VALUES)
Array = NDArray[np.float32]


def core(boxes: Array) -> Array:
    """The parts (..., 4) of boxes (..., 4) that are looked at."""
    low, size = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    ends = (
        low + size * share for share in (np.array([_LEFT, _TOP], np.float32), np.array([_RIGHT, _BOTTOM], np.float32))
    )
    return np.concatenate(list(ends), axis=-1)


def covered(box: Array, others: Array) -> float:
    """The largest share of the core of a box (4,) that one of others (N, 4) covers, 0..1."""
    if not len(others):
        return 0.0
    part = core(box)
    low, high = np.maximum(part[:2], others[:, :2]), np.minimum(part[2:], others[:, 2:])
    return float(np.clip(high - low, 0, None).prod(axis=1).max() / max(float((part[2:] - part[:2]).prod()), 1e-6))


def look(image: NDArray[np.uint8], box: Array) -> Array | None:
    """What somebody looks like.

    Args:
        image: (H, W, 3) uint8 BGR.
        box: (4,) xyxy pixels of the picture, the whole person.

    Returns:
        (LENGTH,) histograms of hue by saturation and of brightness, of the upper and of the lower part, of sum 1; None
        where the core of the box is not in the picture.
    """
    height, width = image.shape[:2]
    part = core(box)
    x1, y1 = np.maximum(np.floor(part[:2]), 0).astype(int)
    x2, y2 = np.minimum(np.ceil(part[2:]), (width, height)).astype(int)
    if x2 - x1 < 2 or y2 - y1 < 4:
        return None
    small = cv2.resize(image[y1:y2, x1:x2], (_WIDTH, _HEIGHT), interpolation=cv2.INTER_NEAREST)
    hsv = cv2.cvtColor(small, cv2.COLOR_BGR2HSV)
    counts = []
    for rows in (hsv[:_WAIST], hsv[_WAIST:]):
        share = np.float32(1 / (4 * rows.shape[0] * _WIDTH))
        colours = cv2.calcHist([rows], [0, 1], None, [_HUES, _SATURATIONS], [0, 180, 0, 256])
        brightness = cv2.calcHist([rows], [2], None, [_VALUES], [0, 256])
        counts += [colours.ravel() * share, brightness.ravel() * share]
    return np.concatenate(counts).astype(np.float32)


def look_likeness(first: Array, second: Array) -> float:
    """How alike two looks (LENGTH,) are, 0..1 (Bhattacharyya's coefficient)."""
    return float(np.sqrt(first * second).sum())
