"""A detector's figures with 95 % intervals, and two detectors on the same pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streampose.train.bootstrap import Counts, Floats, Interval, draw, ends, ratios, share_interval, wilson
from streampose.train.pack import Person
from streampose.train.person_score import Boxes, Scene, assign, counts, summarise

HEIGHTS_PX = (80, 60)
HUMAN_SET, EMPTY_SET = "lspet", "davis_neg"
"""The pictures with one human-labelled person each, and those without people."""
JOINTS_MARGIN = 1.2
Found = Sequence[tuple[Boxes, Boxes]]
"""Of each scene boxes and scores."""
Ints = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Judged:
    """A detector's answers on some scenes, best first.

    Attributes:
        scores, verdicts: (N,), see `match`.
        scene: (N,) which scene each is of.
        human: (N,) bool, whether it found somebody whose joints a human labelled.
        people, humans: (S,) how many there are to find in each scene, in all and human-labelled.
        unit: (S,) what is drawn anew: each picture for itself, the frames of a clip together.
    """

    scores: Boxes
    verdicts: Boxes
    scene: Ints
    human: NDArray[np.bool_]
    people: Ints
    humans: Ints
    unit: Ints

    def per_unit(self, chosen: NDArray[np.bool_]) -> Ints:
        """How many of the chosen detections (N,) each unit has."""
        return np.bincount(self.unit[self.scene[chosen]], minlength=int(self.unit.max(initial=-1)) + 1)

    def labels_per_unit(self, labels: Ints) -> Ints:
        """How many labels each unit has, of (S,) a scene."""
        return np.bincount(self.unit, weights=labels, minlength=int(self.unit.max(initial=-1)) + 1).astype(np.intp)


def judge(found: Found, scenes: Sequence[Scene], min_height_px: float) -> Judged:
    """Match detections with the people of the scenes."""
    scores, verdicts, places, human = [], [], [], []
    for place, ((boxes, confidence), scene) in enumerate(zip(found, scenes, strict=True)):
        verdict, owner = assign(boxes, confidence, scene.people, min_height_px)
        labelled = np.array([*(p.human.any() for p in scene.people), False], np.bool_)
        scores.append(confidence)
        verdicts.append(verdict)
        places.append(np.full(len(boxes), place, np.intp))
        human.append(labelled[owner])
    order = np.argsort(-np.concatenate([np.zeros(0, np.float32), *scores]), kind="stable")
    names = [s.group if s.group.startswith("clip:") else str(place) for place, s in enumerate(scenes)]
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    wanted = [[p for p in scene.people if counts(p, min_height_px)] for scene in scenes]
    return Judged(
        np.concatenate([np.zeros(0, np.float32), *scores])[order],
        np.concatenate([np.zeros(0, np.float32), *verdicts])[order],
        np.concatenate([np.zeros(0, np.intp), *places])[order],
        np.concatenate([np.zeros(0, np.bool_), *human])[order],
        np.array([len(people) for people in wanted], np.intp),
        np.array([sum(bool(p.human.any()) for p in people) for people in wanted], np.intp),
        np.array([number[name] for name in names], np.intp),
    )


def detection_figures(judged: Judged, threshold: float) -> tuple[dict[str, Any], dict[str, Floats]]:
    """AP50, and recall and precision at a threshold, each with its interval "..._95"; and their values on the draws."""
    score = asdict(summarise(judged.scores, judged.verdicts, int(judged.people.sum()), threshold))
    right = (judged.verdicts == 1) & (judged.scores >= threshold)
    said = (judged.verdicts >= 0) & (judged.scores >= threshold)
    hits, people = judged.per_unit(right), judged.labels_per_unit(judged.people)
    drawn = draw(len(people))
    draws = {
        "ap50": _average_precisions(judged, drawn, people),
        "recall": ratios(drawn, hits, people),
        "precision": ratios(drawn, hits, judged.per_unit(said)),
    }
    score["ap50_95"] = ends(draws["ap50"])
    score["recall_95"] = share_interval(hits, people)
    score["precision_95"] = share_interval(hits, judged.per_unit(said))
    return score, draws


def _average_precisions(judged: Judged, drawn: Counts, people: Ints) -> Floats:
    keep = judged.verdicts >= 0
    unit, right = judged.unit[judged.scene[keep]], judged.verdicts[keep]
    there = drawn @ people
    figures = np.full(len(drawn), np.nan)
    for row in np.flatnonzero(there):
        weights = drawn[row, unit]
        hits = np.cumsum(weights * right)
        precision = hits / np.maximum(np.cumsum(weights), 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        figures[row] = float(np.sum(weights * right * envelope)) / there[row]
    return figures


def detector_figures(found: Found, scenes: Sequence[Scene], threshold: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of one detector by height and set, and on pictures without people; and the draws, by height and set."""
    figures: dict[str, Any] = {"threshold": threshold}
    all_draws: dict[str, Any] = {}
    groups = sorted({scene.group.partition(":")[0] for scene in scenes})
    for height in HEIGHTS_PX:
        name = f"from_{height}_px"
        figures[name], all_draws[name] = {}, {}
        for group in ("all", *groups):
            places = [i for i, s in enumerate(scenes) if group in ("all", s.group.partition(":")[0])]
            judged = judge([found[i] for i in places], [scenes[i] for i in places], height)
            if group == "all" or judged.people.any():
                figures[name][group], all_draws[name][group] = detection_figures(judged, threshold)
    empty = [place for place, scene in enumerate(scenes) if scene.group == EMPTY_SET]
    silent = sum(not (found[place][1] >= threshold).any() for place in empty)
    figures["nothing_found_without_people"] = silent / max(len(empty), 1)
    figures["nothing_found_without_people_95"] = wilson(silent, len(empty))
    figures["pictures_without_people"] = len(empty)
    return figures, all_draws


def differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], our_draws: Mapping[str, Any], their_draws: Mapping[str, Any]
) -> dict[str, Any]:
    """Ours less theirs, of what `detector_figures` gave for both on the same scenes: the same pictures are drawn."""
    return {
        height: {
            group: {
                key: value
                for name in draws
                for key, value in (
                    (name, ours[height][group][name] - theirs[height][group][name]),
                    (f"{name}_95", ends(draws[name] - their_draws[height][group][name])),
                )
            }
            for group, draws in groups.items()
        }
        for height, groups in our_draws.items()
    }


def human_labelled(
    ours: Found, theirs: Found, scenes: Sequence[Scene], thresholds: tuple[float, float], by_joints: bool = False
) -> dict[str, Any]:
    """Recall of the people whose joints a human labelled, at our threshold and where we raise as many false alarms as
    they do at theirs, on the same pictures.

    Args:
        thresholds: ours and theirs.
        by_joints: people are where a human put their joints: their extent, enlarged by a fifth, is the box; the pack's
            boxes are mostly the teacher's own, where these overlap the joints.

    Returns:
        By height: "people", "pictures"; for "ours", "theirs" and "ours_at_their_false_alarms" the threshold, recall
        and false alarms a picture; "gain", recall of ours less theirs at equal false alarms, and "gain_shipped", at
        both shipped thresholds, each with its interval over pictures drawn anew (which choose the threshold anew, too).
        A false alarm may be a person whom nobody labelled.
    """
    places = [place for place, scene in enumerate(scenes) if scene.group == HUMAN_SET]
    chosen = [_by_joints(scenes[place]) if by_joints else scenes[place] for place in places]
    return {
        f"from_{height}_px": _human_labelled(
            judge([ours[place] for place in places], chosen, height),
            judge([theirs[place] for place in places], chosen, height),
            thresholds,
        )
        for height in HEIGHTS_PX
    }


def _human_labelled(ours: Judged, theirs: Judged, thresholds: tuple[float, float]) -> dict[str, Any]:
    people = ours.labels_per_unit(ours.humans)
    alarms = int(((theirs.verdicts == 0) & (theirs.scores >= thresholds[1])).sum())
    level = quietest(ours, np.ones(len(people), np.intp), alarms)
    drawn = draw(len(people))
    their_hits = theirs.per_unit(theirs.human & (theirs.scores >= thresholds[1]))
    our_hits = ours.per_unit(ours.human & (ours.scores >= thresholds[0]))
    their_recalls = ratios(drawn, their_hits, people)
    equal = np.array([_equal_recall(ours, theirs, row, thresholds[1], people) for row in drawn])
    figures: dict[str, Any] = {
        "people": int(people.sum()),
        "pictures": len(people),
        "ours": _at(ours, thresholds[0], people),
        "theirs": _at(theirs, thresholds[1], people),
        "ours_at_their_false_alarms": _at(ours, level, people),
    }
    figures["ours_at_their_false_alarms"]["recall_95"] = ends(equal)
    their_recall = figures["theirs"]["recall"]
    figures["gain"] = figures["ours_at_their_false_alarms"]["recall"] - their_recall
    figures["gain_95"] = ends(equal - their_recalls)
    figures["gain_shipped"] = figures["ours"]["recall"] - their_recall
    figures["gain_shipped_95"] = ends(ratios(drawn, our_hits, people) - their_recalls)
    return figures


def _equal_recall(ours: Judged, theirs: Judged, row: Ints, threshold: float, people: Ints) -> float:
    """Recall of ours on one draw at the false alarms that theirs raise on it."""
    weights = row[theirs.unit[theirs.scene]]
    alarms = int(weights[(theirs.verdicts == 0) & (theirs.scores >= threshold)].sum())
    level = quietest(ours, row, alarms)
    there = int(row @ people)
    hits = row[ours.unit[ours.scene[ours.human & (ours.scores >= level)]]].sum()
    return float(hits / there) if there else float("nan")


def quietest(judged: Judged, drawn: Ints, alarms: int) -> float:
    """The lowest score down to which no more than so many false alarms are raised.

    Args:
        drawn: (units,) how often each counts.
        alarms: how many are allowed.

    Returns:
        A score of one of the detections; 1 where the first is one too many.
    """
    wrong = np.cumsum(drawn[judged.unit[judged.scene]] * (judged.verdicts == 0))
    too_many = np.flatnonzero(wrong > alarms)
    within = judged.scores if not len(too_many) else judged.scores[judged.scores > judged.scores[too_many[0]]]
    return float(within[-1]) if len(within) else 1.0


def _at(judged: Judged, threshold: float, people: Ints) -> dict[str, Any]:
    hits = judged.per_unit(judged.human & (judged.scores >= threshold))
    alarms = judged.per_unit((judged.verdicts == 0) & (judged.scores >= threshold))
    interval: Interval = ends(ratios(draw(len(people)), alarms, np.ones(len(people))))
    return {
        "threshold": threshold,
        "recall": float(hits.sum() / max(int(people.sum()), 1)),
        "recall_95": share_interval(hits, people),
        "false_alarms": float(alarms.sum() / max(len(people), 1)),
        "false_alarms_95": interval,
    }


def _by_joints(scene: Scene) -> Scene:
    return replace(scene, people=tuple(_boxed_by_joints(person) for person in scene.people))


def _boxed_by_joints(person: Person) -> Person:
    points = person.keypoints[person.human, :2]
    if not len(points):
        return person
    low, high = points.min(axis=0), points.max(axis=0)
    reach = (high - low) * JOINTS_MARGIN / 2
    middle = (low + high) / 2
    return replace(person, box=np.concatenate([middle - reach, middle + reach]).astype(np.float32))
