"""What becomes of poses that were estimated at several boxes of one person."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streampose.skeleton import Skeleton, oks

OKS_NMS = 0.9
SURE_JOINT = 0.2
JUST_BELOW_0 = -1e-9

Array = NDArray[np.float32]


def rescored(box_scores: Array, keypoints: Array) -> Array:
    """Scores (N,) of poses: the box's times the mean of the joints' that are above 0.2 (Sun et al., HRNet, 2019).

    Args:
        box_scores: (N,) 0..1.
        keypoints: (N, J, 3) x, y, score.

    Returns:
        (N,) float32; 0 where no joint is above 0.2.
    """
    scores = keypoints[..., 2]
    sure = scores > SURE_JOINT
    mean = (scores * sure).sum(axis=1) / np.maximum(sure.sum(axis=1), 1)
    return np.asarray(box_scores * mean, np.float32)


def suppress_poses(
    keypoints: Array, scores: Array, areas: Array, skeleton: Skeleton, threshold: float = OKS_NMS
) -> NDArray[np.intp]:
    """Greedy non-maximum suppression of poses (Papandreou et al., G-RMI, 2017, section 3.3).

    Args:
        keypoints: (N, J, 3) of one picture, in pixels; joints whose score is negative do not count.
        scores: (N,) of the poses.
        areas: (N,) of their boxes in square pixels; two poses are compared at the mean of theirs.
        threshold: a pose goes if its OKS with a better-scored one that stays is larger.

    Returns:
        Indices of the poses that stay, best first.
    """
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        alike = (
            pose_similarity(keypoints[index], keypoints[other], (areas[index], areas[other]), skeleton)
            for other in kept
        )
        if all(value <= threshold for value in alike):
            kept.append(int(index))
    return np.array(kept, np.intp)


def pose_similarity(one: Array, other: Array, areas: tuple[float, float], skeleton: Skeleton) -> float:
    """OKS, 0..1, of two poses (J, 3) of boxes with these areas; joints with a negative score do not count."""
    return oks(one, other, sum(areas) / 2, JUST_BELOW_0, skeleton)
