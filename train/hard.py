"""Hard examples: whom a network gets most wrong, and who moves fast, to be seen more often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streampose.model import FamiPose
from streampose.train.pose import frozen_encoder, predict_windows
from streampose.train.windows import Subject, WindowSettings, make_window

HARDEST = 0.25
"""Share of a set's people who count as hard."""
FAR = 0.3
"""Joints farther off, in box sides, count no more: the label may be wrong."""
BATCH = 16
FASTEST = 0.25
"""Share of a set's windows in which people count as fast."""


def hardest(model: FamiPose, subjects: Sequence[Subject], size: tuple[int, int]) -> NDArray[np.intp]:
    """Which of some people a network gets most wrong on their plain crops, single frames.

    Args:
        size: (height, width) of the crops.

    Returns:
        The indices of the worst quarter, by the mean distance of their joints from the labels, weighted by trust.
    """
    settings = WindowSettings.for_evaluation(size, (), 0.0)
    encoder = frozen_encoder(model)
    off = np.zeros(len(subjects))
    for start in range(0, len(subjects), BATCH):
        part = subjects[start : start + BATCH]
        samples = [make_window(subject, settings, np.random.default_rng(0)) for subject in part]
        keypoints = predict_windows(model, samples, encoder)[0]
        for place, (sample, found) in enumerate(zip(samples, keypoints, strict=True), start):
            far = np.linalg.norm(found[:, :2] - sample["points"], axis=1) / sample["side"]
            off[place] = np.average(np.minimum(far, FAR), weights=sample["weights"] + 1e-6)
    return np.argsort(-off, kind="stable")[: max(1, int(HARDEST * len(subjects)))]


def fastest(subjects: Sequence[Subject]) -> NDArray[np.intp]:
    """In which windows people move most.

    Returns:
        The indices of the fastest quarter, by how far their joints lie, on average and in box sides, from where they
        were in the oldest supporting frame; all indices where nothing is known to move.
    """
    moved = np.array([_moved(subject) for subject in subjects])
    if not moved.any():
        return np.arange(len(subjects))
    return np.argsort(-moved, kind="stable")[: max(1, int(FASTEST * len(subjects)))]


def _moved(subject: Subject) -> float:
    there = [place for place, person in enumerate(subject.support_people) if person is not None]
    if not there:
        return 0.0
    now = subject.person
    then = subject.support_people[min(there, key=lambda place: subject.support_indices[place])]
    assert then is not None
    known = (now.keypoints[:, 2] > 0) & (then.keypoints[:, 2] > 0)
    if not known.any():
        return 0.0
    far = np.linalg.norm(now.keypoints[known, :2] - then.keypoints[known, :2], axis=1).mean()
    return float(far / max(1.0, float(max(now.box[2:] - now.box[:2]))))
