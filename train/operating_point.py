"""Which score threshold a detector ships with: what it does at each, and the rule that chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streampose.train.person_figures import EMPTY_SET, HUMAN_SET, Found, judge
from streampose.train.person_score import Scene

LEAST_PRECISION = 0.85
LEAST_SILENT = 0.98
HEIGHT_PX = 60.0
THRESHOLDS = tuple(np.round(np.arange(0.10, 0.901, 0.01), 2).tolist())


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What a detector does at a threshold, on people from 60 px tall; 0..1 except `false_alarms`.

    Attributes:
        recall, precision: against all the pack's boxes.
        human_recall: of the people whose joints a human labelled.
        false_alarms: a picture, on the pictures of these.
        silent: share of the pictures without people on which nothing is found.
    """

    threshold: float
    recall: float
    precision: float
    human_recall: float
    false_alarms: float
    silent: float

    def faults(self, most_alarms: float) -> tuple[str, ...]:
        """Which of the rule's conditions do not hold."""
        held = {
            "precision": self.precision >= LEAST_PRECISION,
            "false alarms": self.false_alarms <= most_alarms,
            "silence": self.silent >= LEAST_SILENT,
        }
        return tuple(name for name, holds in held.items() if not holds)


def operating_points(
    found: Found, scenes: Sequence[Scene], thresholds: Sequence[float] = THRESHOLDS
) -> list[OperatingPoint]:
    """What a detector does at each threshold; pictures of a kind that is not there count as 0 recall and all silent."""
    every = judge(found, scenes, HEIGHT_PX)
    group = np.array([scene.group for scene in scenes])
    of_humans, people = (group == HUMAN_SET)[every.scene], max(int(every.humans[group == HUMAN_SET].sum()), 1)
    best = np.array(
        [float(scores.max(initial=0)) for (_, scores), g in zip(found, group, strict=True) if g == EMPTY_SET]
    )
    points = []
    for threshold in thresholds:
        said = every.scores >= threshold
        right, wrong = said & (every.verdicts == 1), said & (every.verdicts == 0)
        points.append(
            OperatingPoint(
                threshold,
                float(right.sum() / max(int(every.people.sum()), 1)),
                float(right.sum() / max(int((right | wrong).sum()), 1)),
                float((said & every.human & of_humans).sum() / people),
                float((wrong & of_humans).sum() / max(int((group == HUMAN_SET).sum()), 1)),
                float((best < threshold).mean()) if len(best) else 1.0,
            )
        )
    return points


def choose(points: Sequence[OperatingPoint], most_alarms: float) -> OperatingPoint | None:
    """The lowest threshold, so the highest recall, that keeps the rule; None where none does.

    The rule: precision is 0.85 at least, no more false alarms on human-labelled pictures than `most_alarms` a picture
    (YOLOX-nano's at its own threshold), and nothing found on 98 % of the pictures without people.
    """
    held = [point for point in points if not point.faults(most_alarms)]
    return min(held, key=lambda point: point.threshold) if held else None
