"""What people look like: the colours of the upper and the lower half of their clothes.

Somebody who walks from the light into the shade stays who they are: hue and saturation do not change with the
strength of light, brightness counts as a share of the person's own mean, and that mean only where it differs by more
than light does.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_LEFT, _TOP, _RIGHT, _BOTTOM = 0.3, 0.15, 0.7, 0.9
"""The core of a box: between its arms, below the head, above the feet; what lies there is seldom background."""
_WIDTH, _HEIGHT, _WAIST = 12, 32, 15
"""A core's picture, and the row at which the legs begin, pixels."""
_HUES, _SATURATIONS, _VALUES = 12, 4, 8
_BINS = 2 * (_HUES * _SATURATIONS + _VALUES)
LENGTH = _BINS + 1
_DARKEST, _MIDDLE = 4.0, 112.0
_LIGHT, _PAINT = 1.5, 3.0
"""By how many octaves the light of one scene makes somebody brighter at most, and from how many on two people wear
clothes of different brightness."""
_UNLIKE = 0.5
Array = NDArray[np.float32]


def core(boxes: Array) -> Array:
    """The parts (..., 4) of boxes (..., 4) that are looked at."""
    low, size = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    ends = (
        low + size * share for share in (np.array([_LEFT, _TOP], np.float32), np.array([_RIGHT, _BOTTOM], np.float32))
    )
    return np.concatenate(list(ends), axis=-1)


def covered(boxes: Array) -> Array:
    """(N, N): the share of the core of each of boxes (N, 4) that each other one covers, 0..1; 0 on the diagonal."""
    part = core(boxes)
    low = np.maximum(part[:, None, :2], boxes[None, :, :2])
    high = np.minimum(part[:, None, 2:], boxes[None, :, 2:])
    whole = np.maximum((part[:, 2:] - part[:, :2]).prod(axis=1), np.float32(1e-6))
    shares = np.asarray(np.clip(high - low, 0, None).prod(axis=2) / whole[:, None], np.float32)
    np.fill_diagonal(shares, 0)
    return shares


def look(image: NDArray[np.uint8], box: Array) -> Array | None:
    """What somebody looks like.

    Args:
        image: (H, W, 3) uint8 BGR.
        box: (4,) xyxy pixels of the picture, the whole person.

    Returns:
        (LENGTH,) histograms of hue by saturation and of brightness as a share of its mean, of the upper and of the
        lower part, of sum 1, and last the mean brightness in octaves; None where the core is not in the picture.
    """
    height, width = image.shape[:2]
    part = core(box)
    x1, y1 = np.maximum(np.floor(part[:2]), 0).astype(int)
    x2, y2 = np.minimum(np.ceil(part[2:]), (width, height)).astype(int)
    if x2 - x1 < 2 or y2 - y1 < 4:
        return None
    small = cv2.resize(image[y1:y2, x1:x2], (_WIDTH, _HEIGHT), interpolation=cv2.INTER_NEAREST)
    hsv = cv2.cvtColor(small, cv2.COLOR_BGR2HSV)
    mean = max(float(hsv[..., 2].mean()), _DARKEST)
    hsv[..., 2] = cv2.convertScaleAbs(hsv[..., 2], alpha=_MIDDLE / mean)
    counts = []
    for rows in (hsv[:_WAIST], hsv[_WAIST:]):
        share = np.float32(1 / (4 * rows.shape[0] * _WIDTH))
        colours = cv2.calcHist([rows], [0, 1], None, [_HUES, _SATURATIONS], [0, 180, 0, 256])
        brightness = cv2.calcHist([rows], [2], None, [_VALUES], [0, 256])
        counts += [colours.ravel() * share, _spread(np.asarray(brightness.ravel(), np.float32)) * share]
    return np.concatenate([*counts, [np.log2(mean)]]).astype(np.float32)


def _spread(counts: Array) -> Array:
    """A histogram half of whose counts go to the bins beside, so that a small step in brightness stays a small one."""
    padded = np.pad(counts, 1, "symmetric")
    return np.asarray(0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:], np.float32)


def look_likeness(first: Array, second: Array) -> float:
    """How alike two looks (LENGTH,) are, 0..1: Bhattacharyya's coefficient of the histograms, half of it where one is
    brighter by more than any light makes it."""
    alike = float(np.sqrt(first[:_BINS] * second[:_BINS]).sum())
    return alike * float(np.interp(abs(float(first[-1] - second[-1])), [_LIGHT, _PAINT], [1.0, _UNLIKE]))
