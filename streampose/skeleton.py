"""The joints of a person: names, limbs, mirror pairs and OKS falloffs. Nowhere else are they written down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A set of joints. Left and right are the person's own.

    Attributes:
        name: how messages and manifests call it.
        joints: J joint names, in the order of every keypoint array.
        edges: pairs of joint indices that are drawn as a limb.
        mirror: for each joint the index of the joint it becomes when the picture is flipped.
        sigmas: OKS falloff of each joint (COCO's; unitless).
    """

    name: str
    joints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    mirror: tuple[int, ...]
    sigmas: tuple[float, ...]


COCO17 = Skeleton(
    name="coco17",
    joints=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear",
        "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
        "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
    ),
    edges=(
        (0, 1), (0, 2), (1, 3), (2, 4),
        (5, 6), (5, 7), (7, 9), (6, 8), (8, 10),
        (5, 11), (6, 12), (11, 12),
        (11, 13), (13, 15), (12, 14), (14, 16),
    ),
    mirror=(0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
    sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072,
        0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
    ),
)  # fmt: skip

POSETRACK = Skeleton(
    name="posetrack",
    joints=(
        "nose", "head_bottom", "head_top", "left_ear", "right_ear",
        "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
        "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
    ),
    edges=(
        (2, 0), (0, 1), (1, 5), (1, 6), (5, 7), (7, 9), (6, 8), (8, 10),
        (5, 11), (6, 12), (11, 12),
        (11, 13), (13, 15), (12, 14), (14, 16),
    ),
    mirror=(0, 1, 2, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
    sigmas=(
        0.026, 0.079, 0.079, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072,
        0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
    ),
)  # fmt: skip
"""PoseTrack18's 17 places, of which the ears are never labelled; head_bottom is the neck of PoseTrack17. COCO has no
falloff for the two ends of the head: they take the shoulders'."""

JHMDB = Skeleton(
    name="jhmdb",
    joints=(
        "neck", "belly", "face", "right_shoulder", "left_shoulder", "right_hip", "left_hip", "right_elbow",
        "left_elbow", "right_knee", "left_knee", "right_wrist", "left_wrist", "right_ankle", "left_ankle",
    ),
    edges=(
        (2, 0), (0, 1), (0, 3), (0, 4), (3, 7), (7, 11), (4, 8), (8, 12),
        (1, 5), (1, 6), (5, 9), (9, 13), (6, 10), (10, 14),
    ),
    mirror=(0, 1, 2, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13),
    sigmas=(
        0.079, 0.107, 0.026, 0.079, 0.079, 0.107, 0.107, 0.072, 0.072, 0.087, 0.087, 0.062, 0.062, 0.089, 0.089,
    ),
)  # fmt: skip
"""J-HMDB's 15 joints in the order of its files. Falloffs are COCO's where it has the joint, else of the nearest one."""

SKELETONS = {skeleton.name: skeleton for skeleton in (COCO17, POSETRACK, JHMDB)}


def oks(
    a: NDArray[np.float32], b: NDArray[np.float32], area_px: float, min_score: float = 0.0, skeleton: Skeleton = COCO17
) -> float:
    """Object keypoint similarity of two poses, 0..1 (COCO keypoint evaluation).

    Args:
        a, b: (J, 3) keypoints, x, y in pixels of the same picture, score 0..1.
        area_px: area of the person in square pixels, > 0.
        min_score: joints count only where both scores are above this.

    Returns:
        The mean of exp(-d^2 / (2 area (2 sigma)^2)) over the joints that count, 0 where none does.
    """
    seen = (a[:, 2] > min_score) & (b[:, 2] > min_score)
    if not seen.any():
        return 0.0
    squared = ((a[seen, :2] - b[seen, :2]) ** 2).sum(axis=1)
    falloff = (2 * np.asarray(skeleton.sigmas)[seen]) ** 2
    return float(np.exp(-squared / (2 * max(area_px, 1e-6) * falloff)).mean())
