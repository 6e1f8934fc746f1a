"""How the camera itself moved from one frame to the next: where the background went."""

from __future__ import annotations

from collections import deque
from functools import reduce

import cv2
import numpy as np
from numpy.typing import NDArray

from streampose.geometry import compose

_WIDTH = 160
"""Width of the picture that is looked at, pixels."""
_CORNERS = 60
_FEWEST = 12
"""Corners of the background that must have gone the same way."""
_STILL_GREY, _STILL_SHARE = 2, 0.125
"""While no more than this share of the background changed by more than so many grey levels of 255, the camera rests."""
_STILL_PX = 0.1
"""The same for the way of the background, pixels of the small picture."""
_LEAST_SHARE = 0.5
_REMEMBERED = 32
Array = NDArray[np.float32]


class CameraMotion:
    """Finds the motion of one source's background, frame by frame: sparse optical flow at small scale."""

    def __init__(self) -> None:
        self._last: NDArray[np.uint8] | None = None
        self._moves: deque[tuple[float, Array]] = deque(maxlen=_REMEMBERED)

    def clear(self) -> None:
        """Forget the last frame, and all motion."""
        self._last = None
        self._moves.clear()

    def follow(self, pts_s: float, image: NDArray[np.uint8], people: Array) -> Array | None:
        """Go on to a frame.

        Args:
            pts_s: the frame's time, seconds.
            image: (H, W, 3) uint8 BGR.
            people: (N, 4) boxes in the frame before that are no background.

        Returns:
            (2, 3) from pixels of the frame before to pixels of this one; None where the camera rests, or where the
            background does not tell.
        """
        small, scale = _shrunk(image)
        last, self._last = self._last, small
        if last is None or last.shape != small.shape:
            return None
        background = _background(last.shape, people / scale)
        changed = cv2.threshold(cv2.absdiff(last, small), _STILL_GREY, 255, cv2.THRESH_BINARY)[1]
        if cv2.countNonZero(cv2.bitwise_and(changed, background)) <= _STILL_SHARE * cv2.countNonZero(background):
            return None
        affine = _motion(last, small, background)
        if affine is None:
            return None
        affine[:, 2] *= scale
        self._moves.append((pts_s, affine))
        return affine

    def since(self, pts_s: float) -> Array | None:
        """(2, 3) from pixels of the frame at `pts_s` to pixels of the last one; None where nothing moved."""
        moves = [affine for moved_s, affine in self._moves if moved_s > pts_s]
        return reduce(lambda before, after: compose(after, before), moves) if moves else None


def _shrunk(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float]:
    """A grey picture `_WIDTH` wide, and how many pixels one of its own stands for."""
    height = max(1, round(image.shape[0] * _WIDTH / image.shape[1]))
    double = cv2.resize(image, (2 * _WIDTH, 2 * height), interpolation=cv2.INTER_NEAREST)
    small = cv2.resize(cv2.cvtColor(double, cv2.COLOR_BGR2GRAY), (_WIDTH, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8), image.shape[1] / _WIDTH


def _background(shape: tuple[int, ...], people: Array) -> NDArray[np.uint8]:
    """255 where none of the boxes (N, 4) is, else 0."""
    mask = np.full(shape, 255, np.uint8)
    for x1, y1, x2, y2 in people.astype(int):
        mask[max(y1, 0) : max(y2 + 1, 0), max(x1, 0) : max(x2 + 1, 0)] = 0
    return mask


def _motion(last: NDArray[np.uint8], small: NDArray[np.uint8], background: NDArray[np.uint8]) -> Array | None:
    """The similarity (2, 3) that most corners of the background follow; None where too few do, or it is too small."""
    corners = cv2.goodFeaturesToTrack(last, _CORNERS, 0.01, 5, mask=background)
    if corners is None or len(corners) < _FEWEST:
        return None
    moved, found, _ = cv2.calcOpticalFlowPyrLK(last, small, corners, corners.copy(), winSize=(13, 13), maxLevel=3)
    there = found[:, 0] == 1
    if there.sum() < _FEWEST:
        return None
    affine, inliers = cv2.estimateAffinePartial2D(corners[there], moved[there], ransacReprojThreshold=0.7)
    if affine is None or inliers.sum() < max(_FEWEST, _LEAST_SHARE * there.sum()):
        return None
    middle = np.array([small.shape[1] / 2, small.shape[0] / 2])
    if float(np.abs(affine[:, :2] @ middle + affine[:, 2] - middle).max()) < _STILL_PX:
        return None
    return np.asarray(affine, np.float32)
