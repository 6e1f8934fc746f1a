"""Which people of a picture count: those in one of a camera's regions."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Region = Sequence[tuple[float, float]]


def inside(boxes: NDArray[np.float32], size: tuple[int, int], regions: Sequence[Region]) -> NDArray[np.bool_]:
    """Whether the centre of each box lies in a region, borders included.

    Args:
        boxes: (N, 4) xyxy frame pixels.
        size: (height, width) of the frame.
        regions: polygons, corners (x, y) in shares 0..1 of width and height; none stands for the whole frame.

    Returns:
        (N,) bool.
    """
    if not regions:
        return np.ones(len(boxes), np.bool_)
    height, width = size
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / np.array([width, height], np.float32)
    polygons = [np.array(region, np.float32) for region in regions]
    return np.array(
        [
            any(cv2.pointPolygonTest(polygon, (float(x), float(y)), False) >= 0 for polygon in polygons)
            for x, y in centres
        ],
        np.bool_,
    )
