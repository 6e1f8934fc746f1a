"""How far labels are trusted: a human's and the teachers' answers for one person become one label."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streampose.skeleton import COCO17
from streampose.train.ensemble import NEAR, TeacherPose

Array = NDArray[np.float32]
Annotation = dict[str, Any]

LIMB_GROUPS = {"arms": range(5, 11), "legs": range(11, 17)}
SWAPPED_GAIN = 0.5
"""A human's left and right are exchanged where that raises the share of joints near the teacher's by more than this."""
LEAST_COMPARED = 4
SURE, SURE_SPREAD = 0.5, 0.05
"""A teacher's joint that contradicts a human: at least this score, at most this spread in box sides."""
DOUBTED = 0.5
"""Weight of a human's joint that a sure teacher contradicts."""
LEAST_SCORE = 0.25
"""A teacher's joint with less is no label."""
SPREAD = 0.08
"""A teacher's joint with this spread counts 1/e of its score."""
LEAST_JOINTS = 6


def trust_teacher(annotation: Annotation, pose: TeacherPose, counts: Counter[str]) -> Annotation:
    """A person that no human labelled: the teacher's answer, each joint weighted by its score and spread."""
    weights = _weights(pose)
    weights[pose.keypoints[:, 2] < LEAST_SCORE] = 0
    counts["joints: unsure"] += int((weights == 0).sum())
    return _written(
        annotation, pose.keypoints[:, :2], weights, np.zeros(17, np.bool_), _reason(annotation, pose), counts
    )


def trust_human(annotation: Annotation, pose: TeacherPose, counts: Counter[str]) -> Annotation:
    """A person with human labels: they are kept, mended where left and right are exchanged, and weigh half where a sure
    teacher contradicts them; the teacher's joints fill the gaps."""
    labels = np.asarray(annotation["keypoints"], np.float32).reshape(17, 3)
    human = (labels[:, 2] > 0) & (np.asarray(annotation["kpt_score"]) == 1)
    side = max(annotation["bbox"][2:])
    points = labels[:, :2].copy()
    for name, joints in LIMB_GROUPS.items():
        if _exchanged(points, human, pose, list(joints), side):
            mirror = np.arange(17)
            mirror[list(joints)] = [COCO17.mirror[joint] for joint in joints]
            points, human = points[mirror], human[mirror]
            counts[f"people: left and right {name} exchanged, mended"] += 1
    off = np.linalg.norm(points - pose.keypoints[:, :2], axis=1) / side
    contradicted = human & (off > NEAR) & (pose.keypoints[:, 2] >= SURE) & (pose.spread <= SURE_SPREAD)
    counts["joints: a human's, contradicted, half weight"] += int(contradicted.sum())
    weights = _weights(pose)
    filled = ~human & (pose.keypoints[:, 2] >= LEAST_SCORE)
    weights[~filled] = 0
    weights[human] = np.where(contradicted[human], DOUBTED, 1.0)
    points = np.where(human[:, None], points, pose.keypoints[:, :2])
    return _written(annotation, points, weights, human, "", counts)


def _weights(pose: TeacherPose) -> Array:
    falloff = np.exp(-((pose.spread / SPREAD) ** 2))
    return np.asarray(np.clip(pose.keypoints[:, 2], 0, 1) * falloff, np.float32)


def _exchanged(points: Array, human: NDArray[np.bool_], pose: TeacherPose, joints: list[int], side: float) -> bool:
    """Whether a human's labels of a limb group fit the teacher's much better with left and right exchanged."""
    partners = [COCO17.mirror[joint] for joint in joints]
    teacher, sure = pose.keypoints[joints, :2], pose.keypoints[joints, 2] >= SURE
    compared = sure & human[joints] & human[partners]
    if compared.sum() < LEAST_COMPARED:
        return False
    as_is = np.linalg.norm(points[joints] - teacher, axis=1)[compared] < NEAR * side
    exchanged = np.linalg.norm(points[partners] - teacher, axis=1)[compared] < NEAR * side
    return bool(exchanged.mean() - as_is.mean() > SWAPPED_GAIN)


def _reason(annotation: Annotation, pose: TeacherPose) -> str:
    """Why a teacher's pose is not to be learnt; "" where nothing speaks against it."""
    if annotation.get("lr_swap_suspect") and pose.spread[5:17].mean() > SURE_SPREAD:
        return "left and right in doubt"
    why = [reason for reason in annotation.get("suspect_why", []) if reason != "few"]
    if annotation.get("suspect") and why:
        return f"was suspect ({', '.join(why)})"
    if (pose.keypoints[:, 2] >= LEAST_SCORE).sum() < LEAST_JOINTS:
        return "few joints"
    return ""


def _written(
    annotation: Annotation, points: Array, weights: Array, human: NDArray[np.bool_], reason: str, counts: Counter[str]
) -> Annotation:
    new = {k: v for k, v in annotation.items() if k not in ("lr_swap_suspect", "suspect", "suspect_why")}
    seen = weights > 0
    labelled = np.column_stack([np.where(seen[:, None], points, 0), np.where(seen, 2, 0)])
    new["keypoints"] = [round(float(value), 2) for value in labelled.ravel()]
    new["kpt_score"] = [round(float(value), 3) for value in weights]
    new["human"] = [bool(value) for value in human]
    new["num_keypoints"] = int(seen.sum())
    if reason:
        new["suspect"], new["suspect_why"] = True, [reason]
        counts[f"people: {reason}"] += 1
    else:
        counts["people: kept"] += 1
    return new
