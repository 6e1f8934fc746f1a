"""What a track's frames say of each other: outliers found, the rest smoothed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import savgol_filter  # type: ignore[import-untyped]

Array = NDArray[np.float32]

OUTLIER = 0.12
"""A joint this far from the middle of its neighbours in time, in box sides, is an outlier where they agree."""
AGREED = 0.08
"""Neighbours agree where they lie within this of their own middle, in box sides."""
SMOOTHED_FRAMES, ORDER = 5, 2
JITTER = 0.03
"""What smoothing moves by this many box sides, counts 1/e."""


def smooth_track(keypoints: Array, sides: Array) -> tuple[Array, NDArray[np.bool_]]:
    """The joints of one person on consecutive frames.

    Args:
        keypoints: (F, J, 3) x, y in pixels, weight 0..1 (0: no label).
        sides: (F,) longer sides of the person's boxes, pixels.

    Returns:
        (F, J, 3): outliers have weight 0; where five labelled frames follow each other, positions are those of a
        parabola fitted to five frames (Savitzky and Golay 1964), and weights fall with the distance to it. And which
        joints (F, J) are outliers.
    """
    smooth = keypoints.astype(np.float64)
    outliers = _outliers(smooth, sides)
    smooth[outliers, 2] = 0
    for joint in range(keypoints.shape[1]):
        for first, last in _runs(smooth[:, joint, 2] > 0):
            if last - first < SMOOTHED_FRAMES:
                continue
            raw = smooth[first:last, joint, :2].copy()
            fitted = savgol_filter(raw, SMOOTHED_FRAMES, ORDER, axis=0, mode="interp")
            moved = np.linalg.norm(raw - fitted, axis=1) / sides[first:last]
            smooth[first:last, joint, :2] = fitted
            smooth[first:last, joint, 2] *= np.exp(-((moved / JITTER) ** 2))
    return smooth.astype(np.float32), outliers


def _outliers(keypoints: NDArray[np.float64], sides: Array) -> NDArray[np.bool_]:
    found = np.zeros(keypoints.shape[:2], np.bool_)
    for frame in range(2, len(keypoints) - 2):
        near = keypoints[[frame - 2, frame - 1, frame + 1, frame + 2]]
        middle = np.median(near[..., :2], axis=0)
        apart = np.linalg.norm(near[..., :2] - middle, axis=2).max(axis=0) / sides[frame]
        off = np.linalg.norm(keypoints[frame, :, :2] - middle, axis=1) / sides[frame]
        labelled = (near[..., 2] > 0).all(axis=0) & (keypoints[frame, :, 2] > 0)
        found[frame] = labelled & (apart < AGREED) & (off > OUTLIER)
    return found


def _runs(there: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and one past the last place of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], there.astype(np.int8), [0]])))
    return [(int(first), int(last)) for first, last in zip(edges[::2], edges[1::2], strict=True)]
