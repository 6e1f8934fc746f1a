"""Boxes, and the one affine that takes frame pixels to crop pixels.

All coordinates are continuous: (0, 0) is the upper left corner of the upper left pixel, (0.5, 0.5) its centre, so that
a point scales with the picture. OpenCV puts pixel centres at whole numbers; `cut` translates, and nothing else has to.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

BOX_MARGIN = 1.25
"""How much larger than the person's box the crop is (FAMI-Pose, section 4.1; HRNet's convention)."""


def crop_affine(
    box: NDArray[np.float32], size: tuple[int, int], margin: float = BOX_MARGIN, rotation_deg: float = 0.0
) -> NDArray[np.float32]:
    """The affine from frame pixels to crop pixels.

    Args:
        box: (4,) x1, y1, x2, y2 in frame pixels.
        size: (height, width) of the crop in pixels.
        margin: the crop shows the box's centre and this many times its extent; the shorter side is widened to `size`'s
            aspect.
        rotation_deg: counter-clockwise turn of the picture about the box's centre, degrees.

    Returns:
        (2, 3) float32, to be applied to (x, y, 1).

    Raises:
        ValueError: the box has no area or is not finite.
    """
    x1, y1, x2, y2 = (float(v) for v in box)
    if not (np.isfinite(box).all() and x2 > x1 and y2 > y1):
        raise ValueError(f"a box needs x2 > x1 and y2 > y1, got {[x1, y1, x2, y2]}")
    height, width = size
    scale = 1.0 / (margin * max((x2 - x1) / width, (y2 - y1) / height))
    angle = np.deg2rad(rotation_deg)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[cos, sin], [-sin, cos]])
    centre = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
    shift = np.array([width / 2, height / 2]) - linear @ centre
    return np.concatenate([linear, shift[:, None]], axis=1).astype(np.float32)


def invert(affine: NDArray[np.float32]) -> NDArray[np.float32]:
    """The inverse of (..., 2, 3) affines, same shape."""
    linear = np.linalg.inv(affine[..., :2].astype(np.float64))
    shift = -linear @ affine[..., 2:].astype(np.float64)
    return np.concatenate([linear, shift], axis=-1).astype(np.float32)


def compose(outer: NDArray[np.float32], inner: NDArray[np.float32]) -> NDArray[np.float32]:
    """The affine that applies `inner`, then `outer`; both (..., 2, 3)."""
    linear = outer[..., :2].astype(np.float64) @ inner[..., :2]
    shift = outer[..., :2].astype(np.float64) @ inner[..., 2:] + outer[..., 2:]
    return np.concatenate([linear, shift], axis=-1).astype(np.float32)


def between_crops(key: NDArray[np.float32], support: NDArray[np.float32]) -> NDArray[np.float32]:
    """The affine from pixels of the key frame's crop to pixels of a supporting frame's crop.

    Args:
        key, support: (..., 2, 3) affines from pixels of the frames, or of the person (`place_in_crop`), to crop pixels.
            Equal ones give the identity, exactly.
    """
    identity = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    same = (key == support).all(axis=(-2, -1))[..., None, None]
    return np.where(same, identity, compose(support, invert(key))).astype(np.float32)


def place_in_crop(box: NDArray[np.float32], affine: NDArray[np.float32]) -> NDArray[np.float32]:
    """Where a person and the picture are in a crop.

    `between_crops` of two such places leads from the one crop to where the person's middle is in the other one, whoever
    moved: person, camera or crop; and to the same place of the picture.

    Args:
        box: (4,) xyxy, the person, frame pixels.
        affine: (2, 3) from frame to crop pixels.

    Returns:
        (2, 2, 3) to crop pixels: from the person's own coordinates, frame pixels from the middle of the box, and from
        frame pixels.
    """
    person: NDArray[np.float32] = affine.copy()
    person[:, 2] = (affine[:, :2] @ (box[:2] + box[2:]) / 2 + affine[:, 2]).astype(np.float32)
    return np.stack([person, affine])


def transform(points: NDArray[np.float32], affine: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 2) points through a (2, 3) affine, float32."""
    return (points @ affine[:, :2].T + affine[:, 2]).astype(np.float32)


def cut(image: NDArray[np.uint8], affine: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The (height, width) crop that `affine` (frame to crop pixels) shows of `image`; bilinear, black outside."""
    centred = affine.astype(np.float64).copy()
    centred[:, 2] += affine[:, :2].astype(np.float64) @ [0.5, 0.5] - 0.5
    crop = cv2.warpAffine(image, centred, (size[1], size[0]), flags=cv2.INTER_LINEAR)
    return np.asarray(crop, np.uint8)


def box_iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of each of (N, 4) with each of (M, 4) xyxy boxes: (N, M), 0..1."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(axis=2)
    area_a = np.clip(a[:, 2:] - a[:, :2], 0, None).prod(axis=1)
    area_b = np.clip(b[:, 2:] - b[:, :2], 0, None).prod(axis=1)
    union = area_a[:, None] + area_b[None, :] - inter
    return np.asarray(inter / np.maximum(union, 1e-9), np.float32)
