"""Sheets of predictions: crops with what a network sees in them, beside the labels."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from streampose.skeleton import Skeleton

COLUMNS = 6
LEFT, RIGHT, MIDDLE = (60, 200, 255), (255, 160, 60), (200, 200, 200)
"""BGR: the person's left is orange, the right is blue."""
LOWEST_SCORE = 0.1
Image = NDArray[np.uint8]


def draw_sheet(
    crops: Sequence[Image], keypoints: NDArray[np.float32], labels: NDArray[np.float32], skeleton: Skeleton
) -> Image:
    """Crops in rows of six, each with its predicted limbs; a ring shows where a joint is labelled. The
    person's left is orange, the right is blue.

    Args:
        crops: (H, W, 3) uint8 BGR each, all of one size.
        keypoints: (N, J, 3) x, y in crop pixels and score 0..1; joints below 0.1 are left out.
        labels: (N, J, 3) x, y in crop pixels and weight, 0 where there is none.

    Returns:
        (rows * H, 6 * W, 3) uint8 BGR; places without a crop are black.
    """
    height, width = crops[0].shape[:2]
    rows = -(-len(crops) // COLUMNS)
    sheet = np.zeros((rows * height, COLUMNS * width, 3), np.uint8)
    for index, (crop, found, truth) in enumerate(zip(crops, keypoints, labels, strict=True)):
        tile = crop.copy()
        for a, b in skeleton.edges:
            if min(found[a, 2], found[b, 2]) >= LOWEST_SCORE:
                colour = _colour(skeleton.joints[a], skeleton.joints[b])
                cv2.line(tile, _pixel(found[a]), _pixel(found[b]), colour, 2, cv2.LINE_AA)
        for name, joint in zip(skeleton.joints, truth, strict=True):
            if joint[2] > 0:
                cv2.circle(tile, _pixel(joint), 3, _colour(name), 1, cv2.LINE_AA)
        row, column = divmod(index, COLUMNS)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = tile
    return sheet


def _colour(*names: str) -> tuple[int, int, int]:
    """Of a joint, or of a limb between two."""
    if all(name.startswith("left") for name in names):
        return LEFT
    return RIGHT if all(name.startswith("right") for name in names) else MIDDLE


def _pixel(joint: NDArray[np.float32]) -> tuple[int, int]:
    """The pixel that holds a continuous point; far ones are kept within what OpenCV can draw."""
    x, y = np.clip(joint[:2], -9999, 9999)
    return int(np.floor(x)), int(np.floor(y))
