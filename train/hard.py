"""Hard examples: whom a network gets most wrong, to be seen more often."""

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
