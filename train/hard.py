"""Hard examples: whom a network gets most wrong, and who moves fast, to be seen more often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streampose.model import FamiPose
from streampose.train.pack import Person
from streampose.train.pose import LEAST_WEIGHT, frozen_encoder, predict_windows
from streampose.train.windows import Subject, WindowSettings, make_window

HARDEST = 0.25
"""Share of a set's people who count as hard."""
FAR = 0.3
"""Joints farther off, in box sides, count no more: the label may be wrong."""
BATCH = 16
FASTEST = 0.25
"""Share of a set's windows in which people count as fast."""
ONE_CLIP = 0.2
"""No clip gives more than this share of them."""


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
    """In which windows limbs move most.

    Returns:
        The indices of the fastest quarter, by how far joints move, on average and in box sides, inside the person's own
        box since the oldest supporting frame in which they are labelled; no clip gives more than a fifth of them. All
        indices where nothing is known to move.
    """
    moved = np.array([_moved(subject) for subject in subjects])
    if not moved.any():
        return np.arange(len(subjects))
    wanted = max(1, int(FASTEST * len(subjects)))
    chosen: list[int] = []
    by_clip: Counter[int] = Counter()
    for index in np.argsort(-moved, kind="stable"):
        clip = id(subjects[index].source)
        if moved[index] > 0 and by_clip[clip] < max(1, int(ONE_CLIP * wanted)):
            by_clip[clip] += 1
            chosen.append(int(index))
    return np.array(chosen[:wanted])


def _moved(subject: Subject) -> float:
    there = [place for place, person in enumerate(subject.support_people) if person is not None]
    if not there:
        return 0.0
    now = subject.person
    then = subject.support_people[min(there, key=lambda place: subject.support_indices[place])]
    assert then is not None
    known = (now.keypoints[:, 2] >= LEAST_WEIGHT) & (then.keypoints[:, 2] >= LEAST_WEIGHT)
    if not known.any():
        return 0.0
    return float(np.linalg.norm(in_box(now)[known] - in_box(then)[known], axis=1).mean())


def in_box(person: Person) -> NDArray[np.float32]:
    """Joints (J, 2) from the middle of the person's box, in its longer sides."""
    box = person.box
    side = np.float32(max(1.0, float(max(box[2:] - box[:2]))))
    return np.asarray((person.keypoints[:, :2] - (box[:2] + box[2:]) / 2) / side, np.float32)
