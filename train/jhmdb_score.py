"""Sub-JHMDB's figures: PCK, normalised by the person's size or by the torso's.

A joint is found within 0.2 of the person's size, the longer side of the labelled box (Luo et al., "LSTM Pose Machines",
CVPR 2018, section 4.2), or of the torso's, the distance of the labelled left shoulder and right hip (Song et al.,
"Thin-Slicing Network", CVPR 2017, as in mmpose's tPCK).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streampose.skeleton import JHMDB

SHARE = 0.2
GROUPS: Mapping[str, tuple[str, ...]] = {
    "head": ("face",),
    "shoulder": ("left_shoulder", "right_shoulder"),
    "elbow": ("left_elbow", "right_elbow"),
    "wrist": ("left_wrist", "right_wrist"),
    "hip": ("left_hip", "right_hip"),
    "knee": ("left_knee", "right_knee"),
    "ankle": ("left_ankle", "right_ankle"),
}
"""What the literature's tables have; neck and belly are in none of its columns."""

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Pck:
    """In percent; nan where nothing is labelled.

    Attributes:
        joints: (15,) float64 in `JHMDB`'s order.
    """

    joints: NDArray[np.float64]

    def as_json(self) -> dict[str, Any]:
        """The seven groups, each the mean of its joints; `mean`, that of the groups; and `mean_15`, of all joints."""
        groups = {
            name: _mean(self.joints[[JHMDB.joints.index(joint) for joint in joints]]) for name, joints in GROUPS.items()
        }
        known = np.array([value for value in groups.values() if value is not None])
        return {**groups, "mean": _mean(known), "mean_15": _mean(self.joints)}


def pck(found: Array, truth: Array, sizes: Array) -> Pck:
    """Which share of the labelled joints was found.

    Args:
        found: (N, 15, 2 or more) x, y in frame pixels; nan where a person was not found.
        truth: (N, 15, 3) x, y and weight; a joint is labelled where the weight is above 0.
        sizes: (N,) pixels, see `person_sizes` and `torso_sizes`; where it is nan, the person does not count.
    """
    labelled = (truth[..., 2] > 0) & np.isfinite(sizes)[:, None]
    distance = np.linalg.norm(found[..., :2] - truth[..., :2], axis=2)
    right = (distance <= SHARE * sizes[:, None]) & labelled
    total = labelled.sum(axis=0)
    return Pck(np.where(total > 0, 100 * right.sum(axis=0) / np.maximum(total, 1), np.nan))


def person_sizes(boxes: Array) -> Array:
    """The longer sides (N,) of boxes (N, 4) xyxy."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0), np.float32)


def torso_sizes(truth: Array) -> Array:
    """Distance (N,) of left shoulder and right hip of (N, 15, 3); nan where one of them is not labelled."""
    ends = [JHMDB.joints.index(name) for name in ("left_shoulder", "right_hip")]
    length = np.linalg.norm(truth[:, ends[0], :2] - truth[:, ends[1], :2], axis=1)
    return np.where((truth[:, ends, 2] > 0).all(axis=1), length, np.nan).astype(np.float32)


def _mean(values: NDArray[np.float64]) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None
