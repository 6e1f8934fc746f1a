"""Two detectors on the same made-up pictures, whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [train] extra")

from streampose.train.bootstrap import wilson
from streampose.train.operating_point import choose, operating_points
from streampose.train.pack import Person
from streampose.train.pack_eval import person_figures
from streampose.train.person_figures import detection_figures, human_labelled, judge, quietest
from streampose.train.person_score import Scene

BOX = np.array([10, 10, 50, 110], np.float32)
OTHER = np.array([100, 10, 140, 110], np.float32)
NOBODY = np.array([200, 10, 240, 110], np.float32)
JOINTS = np.column_stack([np.linspace(14, 46, 17), np.linspace(20, 100, 17), np.ones(17)]).astype(np.float32)
Found = tuple[np.ndarray, np.ndarray]


def person(box: np.ndarray, human: bool = False) -> Person:
    return Person(box, JOINTS.copy(), np.full(17, human), False, False, -1)


def scene(group: str, *people: Person) -> Scene:
    return Scene(b"", people, group)


def found(*detections: tuple[np.ndarray, float]) -> Found:
    boxes = np.array([box for box, _ in detections], np.float32).reshape(-1, 4)
    return boxes, np.array([score for _, score in detections], np.float32)


def crowd(pictures: int = 200) -> tuple[list[Scene], list[Found], list[Found]]:
    """A human-labelled person and another in each picture. The others' detector finds the former in 70 % and raises an
    alarm in 20 %; ours finds 90 % with scores that fall from 0.9, and raises alarms in half of the pictures, of scores
    that fall from 0.8."""
    rng = np.random.default_rng(5)
    scenes, ours, theirs = [], [], []
    for index in range(pictures):
        scenes.append(scene("lspet", person(OTHER), person(BOX, human=True)))
        theirs.append(
            found(*([(BOX, 0.9)] if rng.random() < 0.7 else []), *([(NOBODY, 0.6)] if rng.random() < 0.2 else []))
        )
        sure, wrong = 0.9 - 0.6 * index / pictures, 0.8 - 0.6 * index / pictures
        ours.append(
            found(
                *([(BOX, sure)] if rng.random() < 0.9 else []),
                *([(NOBODY, wrong)] if rng.random() < 0.5 else []),
                (OTHER, 0.95),
            )
        )
    return scenes, ours, theirs


def test_at_equal_false_alarms_ours_is_judged_at_another_threshold() -> None:
    scenes, ours, theirs = crowd()
    figures = human_labelled(ours, theirs, scenes, (0.1, 0.4))["from_80_px"]
    assert (figures["people"], figures["pictures"]) == (200, 200)
    alarms = figures["theirs"]["false_alarms"]
    assert alarms == pytest.approx(0.2, abs=0.06)
    equal = figures["ours_at_their_false_alarms"]
    assert equal["false_alarms"] <= alarms < figures["ours"]["false_alarms"]
    assert 0.4 < equal["threshold"] < 0.75, "two fifths of our alarms, which lie evenly from 0.8 to 0.2, are allowed"
    by_hand = sum(bool((s >= equal["threshold"])[0]) for b, s in ours if len(b) and (b[0] == BOX).all()) / 200
    assert equal["recall"] == pytest.approx(by_hand)
    assert figures["gain"] == pytest.approx(equal["recall"] - figures["theirs"]["recall"])
    low, high = figures["gain_95"]
    assert low < figures["gain"] < high
    assert figures["gain_shipped_95"][0] > 0, "0.9 against 0.7 of 200 people is no chance"


def test_somebody_else_who_is_found_is_neither_a_hit_nor_an_alarm() -> None:
    scenes = [scene("lspet", person(BOX, human=True), person(OTHER))] * 3
    figures = human_labelled([found((OTHER, 0.9))] * 3, [found()] * 3, scenes, (0.5, 0.5))["from_60_px"]
    assert figures["ours"]["recall"] == figures["ours"]["false_alarms"] == 0
    assert figures["ours"]["recall_95"] == pytest.approx(wilson(0, 3))


def test_people_where_a_human_put_their_joints() -> None:
    """A box that the pack's label equals and the joints do not fill counts by the label alone."""
    wide = np.array([10, 10, 130, 110], np.float32)
    scenes = [scene("lspet", person(wide, human=True))]
    theirs = [found((wide, 0.9))]
    by_label = human_labelled(theirs, theirs, scenes, (0.5, 0.5))["from_80_px"]
    by_joints = human_labelled(theirs, theirs, scenes, (0.5, 0.5), by_joints=True)["from_80_px"]
    assert (by_label["ours"]["recall"], by_joints["ours"]["recall"]) == (1, 0)


def test_the_quietest_threshold_allows_as_many_alarms_as_asked() -> None:
    judged = judge([found((BOX, 0.9), (NOBODY, 0.6), (NOBODY + 100, 0.5), (OTHER, 0.4))], [scene("x", person(BOX))], 60)
    one = np.ones(1, np.intp)
    assert [round(quietest(judged, one, alarms), 2) for alarms in (0, 1, 2, 3)] == [0.9, 0.6, 0.5, 0.4]
    first = judge([found((NOBODY, 0.9))], [scene("x", person(BOX))], 60)
    assert quietest(first, one, 0) == 1.0


def test_intervals_of_all_right_of_nobody_and_of_clips() -> None:
    judged = judge([found((BOX, 0.9))] * 30, [scene("ccp", person(BOX))] * 30, 60)
    figures, draws = detection_figures(judged, 0.5)
    assert (figures["recall"], figures["precision"], figures["ap50"]) == (1, 1, 1)
    assert figures["recall_95"] == figures["precision_95"] == pytest.approx(wilson(30, 30))
    assert (draws["ap50"] == 1).all()
    nobody, _ = detection_figures(judge([found()] * 3, [scene("ccp")] * 3, 60), 0.5)
    assert (nobody["recall"], nobody["people"], nobody["recall_95"]) == (0, 0, (0, 1))
    frames = judge([found((BOX, 0.9))] * 30, [scene(f"clip:{i // 10}", person(BOX)) for i in range(30)], 60)
    assert detection_figures(frames, 0.5)[0]["recall_95"] == pytest.approx(wilson(3, 3)), "a clip's frames are alike"


def test_drawn_average_precision_is_that_of_the_pictures_drawn() -> None:
    rng = np.random.default_rng(6)
    scenes = [scene("ccp", person(BOX), person(OTHER)) for _ in range(12)]
    answers = [
        found(*((box, float(rng.random())) for box in (BOX, OTHER, NOBODY) if rng.random() < 0.7)) for _ in scenes
    ]
    whole, draws = detection_figures(judge(answers, scenes, 60), 0.3)
    drawn = np.random.default_rng(0).integers(12, size=(1000, 12))
    for row in (0, 7):
        again, _ = detection_figures(judge([answers[i] for i in drawn[row]], [scenes[i] for i in drawn[row]], 60), 0.3)
        for name in ("ap50", "recall", "precision"):
            assert draws[name][row] == pytest.approx(again[name], abs=1e-6)
    assert whole["ap50_95"][0] < whole["ap50"] < whole["ap50_95"][1]


def test_ours_less_theirs_on_the_same_pictures() -> None:
    scenes, ours, theirs = crowd(60)
    pictures = [*scenes, scene("davis_neg")]
    figures = person_figures([*ours, found()], [*theirs, found((NOBODY, 0.5))], pictures, (0.1, 0.4))
    less = figures["person_less_yolox_nano"]["from_60_px"]["lspet"]
    assert less["recall"] == pytest.approx(
        figures["person"]["from_60_px"]["lspet"]["recall"] - figures["yolox_nano"]["from_60_px"]["lspet"]["recall"]
    )
    assert 0 < less["recall_95"][0] < less["recall"] < less["recall_95"][1]
    assert figures["person"]["nothing_found_without_people"] == 1
    assert figures["yolox_nano"]["nothing_found_without_people"] == 0
    same = person_figures(ours, ours, scenes, (0.1, 0.1))["person_less_yolox_nano"]["from_60_px"]["all"]
    assert same["recall_95"] == same["ap50_95"] == (0, 0)


def test_the_lowest_threshold_that_keeps_the_rule_is_chosen() -> None:
    """Precision asks for 0.4 at least, the pictures without people for 0.6, the alarms for 0.5 or nothing."""
    scenes = [scene("lspet", person(BOX, human=True))] * 20 + [scene("davis_neg")] * 10
    answers = (
        [found((BOX, 0.8), (NOBODY, 0.395))] * 6 + [found((BOX, 0.55), (NOBODY, 0.495))] + [found((BOX, 0.7))] * 13
    )
    answers += [found((NOBODY, 0.595))] + [found()] * 9
    points = operating_points(answers, scenes)
    chosen = choose(points, 0.05)
    assert chosen is not None
    assert (chosen.threshold, chosen.recall, chosen.silent, chosen.false_alarms) == (0.6, 0.95, 1, 0)
    at = {point.threshold: point for point in points}
    assert at[0.39].faults(0.05) == ("precision", "false alarms", "silence")
    assert at[0.45].faults(0.05) == ("silence",)
    assert at[0.45].faults(0.02) == ("false alarms", "silence")
    assert (at[0.45].human_recall, at[0.45].false_alarms, at[0.45].silent) == (1, 0.05, 0.9)
    assert choose([at[0.39], at[0.45]], 0.05) is None
