"""PoseTrack's figures against the benchmark's evaluator's, and against counts made by hand."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [train] extra")

from streampose.errors import UsageError
from streampose.skeleton import POSETRACK
from streampose.train.evaluate import run_eval
from streampose.train.mot import ClearMot
from streampose.train.posetrack_labels import NUMBERED, read_sequence
from streampose.train.posetrack_score import EVALUATED, inside

VECTORS = json.loads(Path(__file__).with_name("posetrack_vectors.json").read_text())
"""Small made-up sequences in both forms with whatever is odd (ties, borders, people without joints, repeated ids), and
what the evaluator's rules give for them with the packages that it uses, motmetrics 1.4 and shapely 2.2."""
REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "posetrack_ap"

Content = dict[str, Any]
Evaluate = Callable[[Content, Content], dict[str, Any]]


def person(track: int, x: float, score: float = 0.5, joints: Sequence[str] = NUMBERED, y: float = 100.0) -> Content:
    """Somebody whose joints stand 20 px apart in a column, so that only near people share joints; head 30 x 40."""
    keypoints, scores = np.zeros((17, 3)), np.zeros(17)
    for name in joints:
        place = POSETRACK.joints.index(name)
        keypoints[place], scores[place] = (x, y + 20 * NUMBERED.index(name), 1), score
    return {
        "track_id": track,
        "keypoints": keypoints.ravel().tolist(),
        "scores": scores.tolist(),
        "bbox_head": [x, y, 30, 40],
    }


def sequence(*frames: Sequence[Content], ignore: Sequence[Sequence[tuple[float, float]]] = ()) -> Content:
    """A file of 2018's form; `ignore`: polygons of every frame."""
    content: Content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "person", "keypoints": list(POSETRACK.joints)}],
    }
    for number, people in enumerate(frames):
        image: Content = {"id": 7000 + number, "file_name": f"images/val/000007_test/{number:06d}.jpg"}
        if ignore:
            image["ignore_regions_x"] = [[x for x, _ in region] for region in ignore]
            image["ignore_regions_y"] = [[y for _, y in region] for region in ignore]
        content["images"].append(image)
        content["annotations"] += [{**copy.deepcopy(entry), "image_id": image["id"]} for entry in people]
    return content


def as_2017(content: Content) -> Content:
    """The same in the form of 2017."""
    frames = []
    for image in content["images"]:
        rects = []
        for entry in content["annotations"]:
            if entry["image_id"] != image["id"]:
                continue
            points = []
            for place, (x, y, flag) in enumerate(np.reshape(entry["keypoints"], (17, 3)).tolist()):
                if flag and POSETRACK.joints[place] in NUMBERED:
                    number = NUMBERED.index(POSETRACK.joints[place])
                    points.append({"id": [number], "x": [x], "y": [y], "score": [entry["scores"][place]]})
            x, y, width, height = entry["bbox_head"]
            head = {"x1": [x], "y1": [y], "x2": [x + width], "y2": [y + height]}
            rects.append({"track_id": [entry["track_id"]], "annopoints": [{"point": points}], **head})
        regions = [
            {"point": [{"x": [x], "y": [y]} for x, y in zip(xs, ys, strict=True)]}
            for xs, ys in zip(image.get("ignore_regions_x", []), image.get("ignore_regions_y", []), strict=True)
        ]
        frames.append({"image": [{"name": image["file_name"]}], "annorect": rects, "ignore_regions": regions})
    return {"annolist": frames}


@pytest.fixture
def evaluate(tmp_path: Path) -> Evaluate:
    """evaluate(labels, predictions) -> the figures of one sequence."""

    def run(truth: Content, found: Content) -> dict[str, Any]:
        for folder, content in (("gt", truth), ("pred", found)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "000007_test.json").write_text(json.dumps(content))
        return run_eval("posetrack", tmp_path / "gt", None, pred=tmp_path / "pred")

    return run


def test_figures_are_the_official_evaluators() -> None:
    if not REFERENCE.is_dir():
        pytest.skip(f"{REFERENCE} is not there")
    expected = json.loads((REFERENCE / "expected.json").read_text())
    figures = run_eval("posetrack", REFERENCE / "gt", None, pred=REFERENCE / "pred")
    assert list(figures) == list(expected)
    for name in ("ap", "precision", "recall"):
        assert figures[name] == pytest.approx(expected[name], abs=1e-6)
        assert list(figures[name]) == list(EVALUATED)
    assert figures["ap_total"] == pytest.approx(expected["ap_total"], abs=1e-6)
    assert set(figures["mota"]) == set(expected["mota"])
    for name, row in expected["mota"].items():
        assert figures["mota"][name] == pytest.approx(row, abs=1e-4)


@pytest.mark.parametrize("vector", VECTORS)
def test_figures_of_odd_sequences(evaluate: Evaluate, vector: Content) -> None:
    figures, expected = evaluate(vector["gt"], vector["pred"]), vector["expected"]
    for name in ("ap", "precision", "recall"):
        assert figures[name] == pytest.approx(expected[name], abs=1e-9)
    assert figures["ap_total"] == pytest.approx(expected["ap_total"], abs=1e-9)
    for name, row in expected["mota"].items():
        assert figures["mota"][name] == pytest.approx(row, abs=1e-9)


def test_two_tracks_of_one_id() -> None:
    """Both objects had the track last, and each keeps one; distances are as motmetrics 1.4 sums them."""
    mot, nan = ClearMot(), np.nan
    mot.update([2], [5], np.array([[0.1]]))
    mot.update([1], [5], np.array([[0.1]]))
    mot.update([1, 2], [5, 5], np.array([[0.1, nan], [nan, 0.2]]))
    assert (mot.matches, mot.switches, mot.misses, mot.false_positives) == (4, 0, 0, 0)
    assert mot.distance == pytest.approx(1.2)


@pytest.mark.parametrize("forms", [(as_2017, as_2017), (as_2017, dict), (dict, as_2017)])
def test_both_forms_are_the_same(evaluate: Evaluate, forms: tuple[Callable[[Content], Content], ...]) -> None:
    truth = sequence([person(0, 50), person(1, 300)], [person(0, 55)], [], ignore=[[(280, 0), (320, 0), (300, 900)]])
    found = sequence([person(4, 52, 0.9), person(5, 305, 0.3)], [person(5, 40, 0.7)], [person(6, 9)])
    assert evaluate(forms[0](truth), forms[1](found)) == evaluate(truth, found)


def test_perfect_predictions(evaluate: Evaluate) -> None:
    """Three frames; tracking leaves out the last, which has the only fault."""
    frames = [person(3, 50), person(4, 300)], [person(3, 60), person(4, 290)], [person(3, 70)]
    perfect = evaluate(sequence(*frames), sequence(*frames))
    assert list(perfect["ap"].values()) == pytest.approx([100] * 15)
    assert perfect["mota"]["mota"] == [100] * 16
    spoilt = evaluate(sequence(*frames), sequence(frames[0], frames[1], [person(9, 70), person(8, 500)]))
    assert list(spoilt["precision"].values()) == pytest.approx([500 / 6] * 15)
    assert spoilt["mota"]["mota"] == [100] * 16


def test_reach_is_half_of_the_heads_size(evaluate: Evaluate) -> None:
    """A head box of 30 x 40 has size 30: 15 px are within reach, a little more is not."""
    truth = sequence([person(0, 50)], [person(0, 50)])
    for x, ap in ((65.0, 100), (65.01, 25)):  # 25: the worse-scored of two is right, 1/2 of 1/2
        found = sequence([person(0, 50, joints=NUMBERED[1:])], [person(0, 50)])
        joint = 3 * POSETRACK.joints.index("right_ankle")
        found["annotations"][0]["keypoints"][joint : joint + 3] = [x, 100, 1]
        found["annotations"][0]["scores"][joint // 3] = 0.9
        figures = evaluate(truth, found)
        assert figures["ap"]["right_ankle"] == pytest.approx(
            ap or 25
        )  # of two the worse-scored one is right: 1/2 of 1/2
        assert figures["ap"]["left_ankle"] == pytest.approx(100)


def test_average_precision_by_hand(evaluate: Evaluate) -> None:
    """Ranked right, wrong, right of three labelled: 1/3 * 1 + 1/3 * 2/3."""
    truth = sequence([person(0, 50), person(1, 300)], [person(0, 50)])
    found = sequence([person(0, 50, 0.9), person(1, 900, 0.8)], [person(0, 50, 0.7)])
    figures = evaluate(truth, found)
    assert figures["ap_total"] == pytest.approx(100 * (1 / 3 + 2 / 9))
    assert figures["precision"]["neck"] == pytest.approx(200 / 3)
    assert figures["recall"]["neck"] == pytest.approx(200 / 3)


def test_a_pose_belongs_to_one_person_only(evaluate: Evaluate) -> None:
    """Two predictions on one person: the one with more joints right owns it, the other's right joints are wrong."""
    truth = sequence([person(0, 50)])
    found = sequence([person(0, 50, 0.9, NUMBERED[:7]), person(1, 50, 0.8, NUMBERED[:9])])
    figures = evaluate(truth, found)
    assert figures["precision"]["right_ankle"] == pytest.approx(50)
    assert figures["ap"]["right_ankle"] == pytest.approx(50)  # the better-scored one is the wrong one
    assert figures["precision"]["right_shoulder"] == pytest.approx(100)


def test_a_labelled_joint_that_was_not_predicted_is_missed(evaluate: Evaluate) -> None:
    frames = [person(0, 50)], [person(0, 50)]
    without = [name for name in NUMBERED if name != "nose"]
    figures = evaluate(sequence(*frames), sequence([person(0, 50, joints=without)], frames[1]))
    assert (figures["recall"]["nose"], figures["precision"]["nose"]) == (50, 100)
    assert figures["recall"]["neck"] == 100
    nose = EVALUATED.index("nose")
    assert figures["mota"]["mota"][nose] == 0  # of the frames before the last there is one, and there it is missed
    assert figures["mota"]["mota"][-1] == pytest.approx(100 * 14 / 15)


def test_a_joint_that_nobody_labelled_has_no_ap(evaluate: Evaluate) -> None:
    frames = [person(0, 50, joints=NUMBERED[1:])], [person(0, 50, joints=NUMBERED[1:])]
    figures = evaluate(sequence(*frames), sequence([person(0, 50)], frames[1]))
    assert figures["ap"]["right_ankle"] is None
    assert figures["recall"]["right_ankle"] is None
    assert figures["precision"]["right_ankle"] == 0
    assert figures["ap_total"] == pytest.approx(100)
    assert figures["mota"]["mota"][0] is None
    assert figures["mota"]["pre"][0] == 0
    nowhere = evaluate(sequence(*frames), sequence(*frames))
    assert nowhere["ap"]["right_ankle"] == 0  # neither labelled nor predicted
    assert nowhere["ap_total"] == pytest.approx(100 * 14 / 15)


def test_ignore_regions_take_joints_from_both_sides(evaluate: Evaluate) -> None:
    """The region holds the second person but for the last joint, and a false positive."""
    region = [(280.0, 0.0), (620.0, 0.0), (620.0, 370.0), (280.0, 370.0)]
    truth = sequence([person(0, 50), person(1, 300)], [person(0, 50)], ignore=[region])
    found = sequence([person(0, 50), person(7, 600)], [person(0, 50)])
    figures = evaluate(truth, found)
    assert figures["recall"]["right_ankle"] == 100
    assert figures["precision"]["right_ankle"] == 100
    assert figures["recall"]["head_top"] == pytest.approx(200 / 3)  # at y 380 they stay
    assert figures["precision"]["head_top"] == pytest.approx(200 / 3)


def test_the_border_of_a_region_is_outside() -> None:
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4.0]])
    bow = np.array([[0, 0], [4, 4], [4, 0], [0, 4.0]])
    points = np.array([[2, 2], [0, 2], [4, 4], [2, 0], [-1, 2], [2, 3.9], [1, 2.0]])
    assert inside(points, square).tolist() == [True, False, False, False, False, True, True]
    assert inside(points, bow).tolist() == [False, False, False, False, False, False, True]


def test_a_frame_without_labels_does_not_count(evaluate: Evaluate) -> None:
    frames = [person(0, 50)], [person(0, 50)], [person(0, 50)]
    figures = evaluate(sequence(frames[0], [], frames[2]), sequence(*frames))
    assert list(figures["precision"].values()) == [100] * 15


def test_a_labelled_frame_whose_people_are_all_ignored(evaluate: Evaluate) -> None:
    """Predictions are wrong there; and tracking counts a miss and a false positive in frames where a side is empty."""
    region = [(0.0, 0.0), (100.0, 0.0), (100.0, 900.0), (0.0, 900.0)]
    truth = sequence([person(0, 300)], [person(0, 50)], [person(0, 300)], ignore=[region])
    figures = evaluate(truth, sequence([person(0, 300)], [person(0, 300)], [person(0, 300)]))
    assert figures["precision"]["neck"] == pytest.approx(200 / 3)
    assert figures["recall"]["neck"] == 100
    assert figures["mota"]["mota"] == [0] * 16  # two objects, of which one missed, and one false positive


def test_predictions_of_nothing(evaluate: Evaluate) -> None:
    figures = evaluate(sequence([person(0, 50)], [person(0, 50)]), sequence([], []))
    assert set(figures["ap"].values()) == set(figures["precision"].values()) == set(figures["recall"].values()) == {0}
    assert figures["mota"]["mota"] == [-100] * 16


def test_identity_switches(evaluate: Evaluate) -> None:
    """Tracks 4 and 5 change places once in three frames that count: two switches of six objects."""
    truth = sequence(*[[person(0, 50), person(1, 300)]] * 4)
    kept, changed = [person(4, 50), person(5, 300)], [person(5, 50), person(4, 300)]
    figures = evaluate(truth, sequence(kept, changed, changed, changed))
    assert figures["mota"]["mota"] == [pytest.approx(100 * 4 / 6)] * 16
    assert figures["ap_total"] == pytest.approx(100)


def test_an_old_pair_is_kept_though_another_is_nearer(evaluate: Evaluate) -> None:
    truth = sequence(*[[person(0, 50)]] * 3)
    found = sequence([person(4, 50)], [person(4, 60), person(5, 51)], [])
    figures = evaluate(truth, found)
    assert figures["mota"]["mota"] == [pytest.approx(50)] * 16  # one false positive, no switch


def test_a_joint_without_a_score_comes_last(evaluate: Evaluate) -> None:
    truth = sequence([person(0, 50)], [person(0, 50)])
    found = sequence([person(0, 50)], [person(0, 900, -5.0)])
    found["annotations"][0]["scores"] = []
    assert evaluate(truth, found)["ap_total"] == pytest.approx(25)
    del found["annotations"][0]["scores"]
    assert evaluate(truth, found)["ap_total"] == pytest.approx(25)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("streampose"), "propagate", True)
    caplog.set_level(logging.WARNING, "streampose")
    return caplog


def test_without_track_ids_there_is_no_mot(evaluate: Evaluate, warnings: pytest.LogCaptureFixture) -> None:
    frames = [person(0, 50)], [person(0, 50)]
    found = sequence(*frames)
    del found["annotations"][0]["track_id"]
    figures = evaluate(sequence(*frames), found)
    assert figures["ap_total"] == pytest.approx(100)
    assert figures["mota"]["mota"] == [None] * 16
    assert "track_id" in warnings.text


def test_a_track_id_twice_in_a_frame_is_told(evaluate: Evaluate, warnings: pytest.LogCaptureFixture) -> None:
    frames = [person(0, 50), person(1, 300)], [person(0, 50)]
    figures = evaluate(sequence(*frames), sequence([person(4, 50), person(4, 300)], frames[1]))
    assert "track_id twice" in warnings.text
    assert figures["mota"]["mota"] == [100] * 16


def test_a_joint_at_the_origin_counts_if_it_has_a_flag(tmp_path: Path) -> None:
    content = sequence([person(0, 50)])
    content["annotations"][0]["keypoints"][:9] = [0, 0, 0, 0, 0, 1, 3, 4, 0]
    path = tmp_path / "one.json"
    path.write_text(json.dumps(content))
    read = read_sequence(path).frames[0].people[0]
    assert read.known[:4].tolist() == [False, True, True, False]
    assert read.keypoints[2].tolist() == [3, 4, 0]


def test_of_two_points_with_one_number_the_first_counts(tmp_path: Path) -> None:
    content = as_2017(sequence([person(0, 50)]))
    points = content["annolist"][0]["annorect"][0]["annopoints"][0]["point"]
    points += [{"id": [0], "x": [9], "y": [9], "score": [1.0]}, {"id": [15], "x": [9], "y": [9]}]
    path = tmp_path / "one.json"
    path.write_text(json.dumps(content))
    read = read_sequence(path).frames[0].people[0]
    assert read.keypoints[POSETRACK.joints.index("right_ankle")].tolist() == [50, 100, 1]
    assert read.known.sum() == 15


def damage(key: str, value: Any) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content["annotations"][0][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].pop(), r"000007_test\.json: annotations\[1\] is of image 7001, which is not in images"),
        (lambda c: c["images"].append(c["images"][0]), "two of its images have the same id"),
        (damage("keypoints", [1.0] * 48), r"annotations\[0\]: keypoints are 17 times x, y, v, so 51 numbers, not 48"),
        (damage("scores", [0.5] * 15), r"annotations\[0\]: scores are 17 numbers, one a joint, not 15"),
        (damage("scores", [float("nan")] * 17), r"annotations\[0\]: scores holds nan, which is not a number"),
        (damage("keypoints", [float("inf")] * 51), r"annotations\[0\]: keypoints holds inf"),
        (damage("track_id", 1.5), r"annotations\[0\]: track_id is a whole number, not 1.5"),
        (damage("bbox_head", [1, 2, 3]), r"annotations\[0\]: bbox_head is x, y, width, height, not 3 numbers"),
        (damage("keypoints", "many"), r"is not a PoseTrack file: Expected `array`, got `str`"),
        (lambda c: c["categories"][0]["keypoints"].remove("head_top"), "has no joint 'head_top'"),
        (lambda c: c.pop("categories"), "missing required field `categories`"),
        (lambda c: c["images"].append({"id": 1, "file_name": "more.jpg"}), "has 3 frames, .*gt.* 2"),
        (lambda c: c["images"].reverse(), "has its frames in another order"),
        (lambda c: (c["images"].clear(), c["annotations"].clear()), "has no frames"),
    ],
)
def test_damaged_predictions(evaluate: Evaluate, change: Callable[[Content], None], message: str) -> None:
    frames = [person(0, 50)], [person(0, 50)]
    found = sequence(*frames)
    change(found)
    with pytest.raises(UsageError, match=message):
        evaluate(sequence(*frames), found)


def test_wrong_folders(tmp_path: Path, evaluate: Evaluate) -> None:
    frames = sequence([person(0, 50)], [person(0, 50)])
    evaluate(frames, frames)
    gt, pred = tmp_path / "gt", tmp_path / "pred"
    for wrong, message in ((tmp_path / "none", "is not a folder"), (tmp_path, r"has no \*\.json")):
        with pytest.raises(UsageError, match=message):
            run_eval("posetrack", wrong, None, pred=pred)
    with pytest.raises(UsageError, match="none is not a folder"):
        run_eval("posetrack", gt, None, pred=tmp_path / "none")
    (pred / "000007_test.json").write_text("{")
    with pytest.raises(UsageError, match=r"000007_test\.json is not JSON"):
        run_eval("posetrack", gt, None, pred=pred)
    (pred / "000007_test.json").unlink()
    with pytest.raises(UsageError, match=r"000007_test\.json is missing"):
        run_eval("posetrack", gt, None, pred=pred)
    truth = json.loads((gt / "000007_test.json").read_text())
    del truth["annotations"][0]["bbox_head"]
    with pytest.raises(UsageError, match=r"a person of images/val/000007_test/000000\.jpg has no head box"):
        evaluate(truth, frames)
