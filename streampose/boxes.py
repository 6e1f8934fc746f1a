"""Arithmetic of people's boxes, xyxy in frame pixels: how they move, and when a crop follows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CENTRE_SLACK = 0.06
"""A crop stays while its person's centre is off by less than this share of the person's longer side."""
SIZE_SLACK = 0.08
"""A crop stays while the person's longer side differs by less than this share."""
LARGEST_WIDENING = 0.15
"""A crop box grows on each side by at most this share of the person's longer side, for joints that lie outside."""
_ROOM = (0.03, 0.12, 0.03, 0.05)
"""What a person's box has around the joints on its left, top, right and bottom: shares of the joints' longer extent."""


def centre(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centres (..., 2) of boxes (..., 4)."""
    middle: NDArray[np.float32] = (boxes[..., :2] + boxes[..., 2:]) / np.float32(2)
    return middle


def longer_sides(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Longer sides (N,) of boxes (N, 4), pixels, at least 1."""
    sides = np.empty(len(boxes), np.float32)
    np.max(boxes[:, 2:] - boxes[:, :2], axis=1, initial=1, out=sides)
    return sides


def longer_side(box: NDArray[np.float32]) -> float:
    """Longer side of one box (4,), pixels, at least 1."""
    return float(longer_sides(box[None])[0])


def shifted(box: NDArray[np.float32], by: NDArray[np.float32]) -> NDArray[np.float32]:
    """A box (4,) moved by (2,) pixels."""
    moved: NDArray[np.float32] = box + np.concatenate([by, by])
    return moved


def extent(keypoints: NDArray[np.float32], floor: float) -> NDArray[np.float32] | None:
    """The box (4,) that a person with these joints has, or None where too few are sure.

    Args:
        keypoints: (J, 3) x, y in pixels, score.
        floor: joints with a lower score do not count.
    """
    points = keypoints[keypoints[:, 2] > floor, :2]
    if len(points) < 6:
        return None
    low, high = points.min(axis=0), points.max(axis=0)
    left, top, right, bottom = np.array(_ROOM, np.float32) * max(float((high - low).max()), 1.0)
    return np.array([low[0] - left, low[1] - top, high[0] + right, high[1] + bottom], np.float32)


def widened(box: NDArray[np.float32], keypoints: NDArray[np.float32] | None, floor: float) -> NDArray[np.float32]:
    """A box (4,) that takes in its person's joints, each side moved out by `LARGEST_WIDENING` at most."""
    if keypoints is None:
        return box
    points = keypoints[keypoints[:, 2] > floor, :2]
    if not len(points):
        return box
    reach = np.float32(LARGEST_WIDENING * longer_side(box))
    low = np.maximum(np.minimum(box[:2], points.min(axis=0)), box[:2] - reach)
    high = np.minimum(np.maximum(box[2:], points.max(axis=0)), box[2:] + reach)
    return np.concatenate([low, high]).astype(np.float32)


def recentre(crop_box: NDArray[np.float32], goal: NDArray[np.float32]) -> NDArray[np.float32]:
    """The next crop box (4,): the same one while `goal` is near it in place and size, else `goal`."""
    side = longer_side(crop_box)
    drift = float(np.abs(centre(goal) - centre(crop_box)).max()) / side
    growth = longer_side(goal) / side
    if drift <= CENTRE_SLACK and 1 / (1 + SIZE_SLACK) <= growth <= 1 + SIZE_SLACK:
        return crop_box
    return goal.copy()


def joints_inside(keypoints: NDArray[np.float32], boxes: NDArray[np.float32], floor: float) -> NDArray[np.float32]:
    """For each box (N, 4) the share of the sure joints of (J, 3) that lie in it: (N,), 0 where no joint is sure."""
    points = keypoints[keypoints[:, 2] > floor, :2]
    if not len(points):
        return np.zeros(len(boxes), np.float32)
    inside = (points >= boxes[:, None, :2]) & (points <= boxes[:, None, 2:])
    return np.asarray(inside.all(axis=2).mean(axis=1), np.float32)


def visible_share(box: NDArray[np.float32], size: tuple[int, int]) -> float:
    """How much of a box (4,) lies in a frame of (height, width), 0..1."""
    limit = np.array([size[1], size[0]], np.float32)
    shown = np.clip(box[2:], 0, limit) - np.clip(box[:2], 0, limit)
    return float(shown.prod() / max(float((box[2:] - box[:2]).prod()), 1e-6))
