"""How alike a tracked person and a detection are, or two poses: what people are told apart by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streampose.boxes import centre, joints_inside, longer_side, longer_sides
from streampose.geometry import box_iou
from streampose.skeleton import Skeleton, oks

FEWEST_JOINTS = 5
"""How many joints two poses must share to be called the same."""
SHORT_REACH = 0.1
"""How far a person's centre may be from a detection's to be as alike as 0.4, in longer sides of the box."""
Array = NDArray[np.float32]


def box_likeness(box: Array, found: Array, pose: Array | None, joint_score: float, reach: float = SHORT_REACH) -> Array:
    """How alike a person's box and detections are.

    Args:
        box: (4,) where the person is expected; found: (N, 4) detections.
        pose: (J, 3) the joints that are expected; None where nothing is known of them.
        joint_score: joints below it say nothing.
        reach: at this distance of the centres, in longer sides of the box, boxes of one size are as alike as 0.4,
            whether they overlap or not.

    Returns:
        (N,) 0..1: the box's IoU, or its nearness, and the share of the joints that the detection holds.
    """
    overlap = box_iou(box[None], found)[0]
    gap = np.linalg.norm(centre(found) - centre(box), axis=1) / longer_side(box)
    ratio = longer_sides(found) / longer_side(box)
    alike = np.maximum(overlap, np.where((ratio > 0.6) & (ratio < 1.7), 0.5 - gap * SHORT_REACH / reach, 0.0))
    if pose is not None:
        share = joints_inside(pose, found, joint_score)
        alike = np.where(alike > 0.05, 0.7 * alike + 0.3 * share, alike)
    return np.asarray(alike, np.float32)


def pose_likeness(first: Array | None, second: Array | None, joint_score: float, skeleton: Skeleton) -> float:
    """OKS of two poses (J, 3) over the joints that both are sure of, at the size these span; 0 where they are fewer
    than five, or a pose is missing."""
    if first is None or second is None:
        return 0.0
    both = (first[:, 2] > joint_score) & (second[:, 2] > joint_score)
    if both.sum() < FEWEST_JOINTS:
        return 0.0
    points = np.concatenate([first[both, :2], second[both, :2]])
    area = float(np.ptp(points, axis=0).prod())
    return oks(first, second, area, joint_score, skeleton)


def pose_likenesses(poses: Array, joint_score: float, skeleton: Skeleton) -> Array:
    """`pose_likeness` of each two of poses (N, J, 3): (N, N)."""
    sure = poses[..., 2] > joint_score
    both = sure[:, None] & sure[None]
    first, second = poses[:, None, :, :2], poses[None, :, :, :2]
    there = both[..., None]
    low = np.where(there, np.minimum(first, second), np.inf).min(axis=2)
    high = np.where(there, np.maximum(first, second), -np.inf).max(axis=2)
    count = both.sum(axis=2)
    enough = count >= FEWEST_JOINTS
    area = np.where(enough, np.where(enough[..., None], high - low, 0).prod(axis=2), 1).clip(min=1e-6)
    falloff = (2 * np.asarray(skeleton.sigmas)) ** 2
    near = np.exp(-((first - second) ** 2).sum(axis=3) / (2 * area[..., None] * falloff))
    return np.asarray(np.where(enough, (near * both).sum(axis=2) / np.maximum(count, 1), 0), np.float32)


def astray(expected: Array | None, pose: Array) -> float:
    """How far a pose (J, 3) is from where it was expected: the median over the joints, pixels; infinite where no pose
    was expected."""
    if expected is None:
        return float("inf")
    return float(np.median(np.linalg.norm(pose[:, :2] - expected[:, :2], axis=1)))
