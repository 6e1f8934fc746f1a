"""Figures of models and of predictions on data sets, against counts made by hand."""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

for package in ("pycocotools", "torch"):
    pytest.importorskip(package, reason="needs the [train] extra")

from streampose.errors import ModelError, OutputError, UsageError
from streampose.skeleton import COCO17
from streampose.train import coco_eval, pack_eval, predict
from streampose.train.coco import read_labels
from streampose.train.evaluate import run_eval
from streampose.train.pack import Person, Still
from streampose.train.person_figures import detector_figures
from streampose.train.person_score import Scene
from streampose.train.windows import Subject

RECTANGLES = {3: [(10, 20, 30, 70), (90, 30, 40, 60)], 8: [(50, 15, 24, 80)]}
"""The people of each picture, x, y, width, height, white on black in pictures of 120 x 160."""
CATEGORIES = [{"id": 4, "name": "dog"}, {"id": 9, "name": "person"}]

MakeSet = Callable[..., dict[str, Path]]


@pytest.fixture
def make_set(tmp_path: Path, joints: np.ndarray) -> MakeSet:
    """make_set(change) -> labels, pictures and perfect predictions of RECTANGLES; `change` edits the labels first."""

    def make(change: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Path]:
        labels: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
        (tmp_path / "pictures").mkdir(exist_ok=True)
        for number, rectangles in RECTANGLES.items():
            picture = np.zeros((120, 160, 3), np.uint8)
            labels["images"].append({"id": number, "file_name": f"val/{number}.png"})
            for x, y, width, height in rectangles:
                picture[y : y + height, x : x + width] = 255
                points = np.column_stack([joints * [width, height] + [x, y], np.full(17, 2.0)])
                labels["annotations"].append(
                    {
                        "id": len(labels["annotations"]),
                        "image_id": number,
                        "category_id": 9,
                        "bbox": [x, y, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                        "keypoints": points.ravel().tolist(),
                    }
                )
            assert cv2.imwrite(str(tmp_path / "pictures" / f"{number}.png"), picture)
        fields = ("image_id", "category_id", "bbox", "keypoints")
        perfect = [{**{name: a[name] for name in fields}, "score": 0.8} for a in labels["annotations"]]
        change(labels)
        return {
            "labels": write(tmp_path / "labels.json", labels),
            "images": tmp_path / "pictures",
            "pred": write(tmp_path / "pred.json", perfect),
        }

    return make


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def edit(path: Path, change: Callable[[Any], None]) -> Path:
    value = json.loads(path.read_text())
    change(value)
    return write(path, value)


def move_joints(entry: dict[str, Any], which: list[int], by_px: float) -> None:
    for joint in which:
        entry["keypoints"][3 * joint] += by_px


def test_perfect_predictions_have_perfect_figures(make_set: MakeSet) -> None:
    files = make_set()
    figures = run_eval("coco", files["labels"], None, pred=files["pred"])
    assert [figures[name] for name in ("ap", "ap50", "ar", "pck01")] == pytest.approx([1, 1, 1, 1])
    assert (figures["pictures"], figures["people"], figures["joints"]) == (2, 3, 51)
    assert figures["pck01_interval"] == {"low": 1, "high": 1}
    assert set(figures["pck01_by_joint"]) == set(COCO17.joints)
    assert figures["boxes"] == "predictions of pred.json"


def test_pck_counts_joints_within_a_tenth_of_the_longer_side(make_set: MakeSet) -> None:
    """Of a person 40 x 60 px joints off by 5.9 px are found and joints off by 6.1 px are not."""
    files = make_set()

    def change(entries: list[dict[str, Any]]) -> None:
        move_joints(entries[1], [5, 6], 5.9)
        move_joints(entries[1], [5, 9, 16], 0.2)

    edit(files["pred"], change)
    figures = run_eval("coco", files["labels"], None, pred=files["pred"])
    assert figures["pck01"] == pytest.approx(50 / 51)
    by_joint = figures["pck01_by_joint"]
    assert {name: share for name, share in by_joint.items() if share < 1} == {
        "left_shoulder": pytest.approx(2 / 3),
    }
    assert figures["pck01_interval"] == {
        "low": pytest.approx(33 / 34),
        "high": 1,
    }  # one picture has 33 of 34, the other 17 of 17


def test_joints_of_missed_people_are_missed_and_unlabelled_ones_do_not_count(make_set: MakeSet) -> None:
    def change(labels: dict[str, Any]) -> None:
        labels["annotations"][0]["keypoints"][: 3 * 5] = [0] * 15  # no face: 12 joints
        labels["annotations"][2]["keypoints"] = [0] * 51  # nothing labelled

    files = make_set(change)
    edit(files["pred"], lambda entries: entries.pop(1))
    figures = run_eval("coco", files["labels"], None, pred=files["pred"])
    assert (figures["people"], figures["joints"]) == (2, 29)
    assert figures["pck01"] == pytest.approx(12 / 29)
    assert figures["ar"] == pytest.approx(1 / 2)
    assert figures["pck01_by_joint"]["nose"] == 0
    assert figures["pck01_by_joint"]["left_hip"] == 1 / 2


def test_crowds_are_left_out(make_set: MakeSet) -> None:
    files = make_set(lambda labels: labels["annotations"][1].update(iscrowd=1))
    edit(files["pred"], lambda entries: entries.pop(1))
    figures = run_eval("coco", files["labels"], None, pred=files["pred"])
    assert (figures["people"], figures["pck01"], figures["ap"]) == (2, 1, pytest.approx(1))


def test_no_predictions_at_all_are_figures_too(make_set: MakeSet) -> None:
    files = make_set()
    write(files["pred"], [])
    figures = run_eval("coco", files["labels"], None, pred=files["pred"])
    assert [figures[name] for name in ("ap", "ap50", "ar", "pck01")] == [0, 0, 0, 0]


def test_predictions_are_matched_one_to_one(make_set: MakeSet) -> None:
    """Two predictions for one person do not find two; and their order does not matter."""
    files = make_set()

    def change(entries: list[dict[str, Any]]) -> None:
        entries[1] = {**entries[0], "score": 0.9, "keypoints": list(entries[0]["keypoints"])}
        move_joints(entries[1], list(range(17)), 1.0)
        entries.reverse()

    edit(files["pred"], change)
    figures = run_eval("coco", files["labels"], None, pred=files["pred"])
    assert figures["pck01"] == pytest.approx(34 / 51)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, engine: Any, detector: Any) -> Any:
    """The engine and the detector of the tests in place of bundled ones."""
    detector.name = "stub"
    monkeypatch.setattr(predict, "load_engine", lambda _: engine)
    monkeypatch.setattr(coco_eval, "PersonDetector", lambda _: detector)
    return engine


def test_model_at_labelled_boxes(make_set: MakeSet, stand_ins: Any) -> None:
    """The crop and its way back: the stand-in's joints land on the labels, through windows of five equal frames."""
    files = make_set()
    figures = run_eval("coco", files["labels"], "lite", images=files["images"])
    assert figures["pck01"] == 1
    assert figures["ap50"] == pytest.approx(1)
    assert figures["boxes"] == "gt"
    assert stand_ins.encoded == [2, 1]
    for features, transforms in stand_ins.fused:
        assert features.shape[1:] == (5, 3, 64, 48)
        assert (features == features[:, :1]).all()
        assert (transforms == np.eye(2, 3)).all()


def test_model_lands_where_the_labels_are(make_set: MakeSet, stand_ins: Any) -> None:
    people = read_labels(make_set()["labels"]).pictures[0].people
    image = cv2.imread(str(make_set()["images"] / "3.png"))
    found = predict.estimate_still(predict.BundleModel(stand_ins), image, np.stack([person.box for person in people]))
    for pose, person in zip(found, people, strict=True):
        assert np.abs(pose[:, :2] - person.keypoints[:, :2]).max() < 1.5  # a cell is about 1.5 px of the picture


@pytest.mark.usefixtures("stand_ins")
def test_model_at_detected_boxes(make_set: MakeSet) -> None:
    files = make_set()
    figures = run_eval("coco", files["labels"], "lite", images=files["images"], boxes="detector")
    assert figures["pck01"] == 1
    assert figures["boxes"] == "detector stub, score >= 0.40"


def test_model_at_boxes_of_a_file(make_set: MakeSet, stand_ins: Any) -> None:
    """Boxes for one of the three people only."""
    files = make_set()
    edit(files["pred"], lambda entries: entries.__delitem__(slice(0, 2)))
    figures = run_eval("coco", files["labels"], "lite", images=files["images"], boxes=str(files["pred"]))
    assert figures["pck01"] == pytest.approx(17 / 51)
    assert stand_ins.encoded == [1]


def test_of_two_alike_poses_at_boxes_of_a_file_the_best_stays(make_set: MakeSet, stand_ins: Any) -> None:
    files = make_set()
    edit(files["pred"], lambda entries: entries.append({**entries[2], "score": 0.9}))
    run_eval(
        "coco", files["labels"], "lite", images=files["images"], boxes=str(files["pred"]), save_pred=files["images"]
    )
    assert stand_ins.encoded == [2, 2]
    written = json.loads((files["images"] / "predictions.json").read_text())
    assert [entry["score"] for entry in written if entry["image_id"] == 8] == pytest.approx([0.9 * stand_ins.score])


@pytest.mark.usefixtures("stand_ins")
def test_a_models_poses_are_written_and_read_back(make_set: MakeSet) -> None:
    files = make_set()
    options = {"images": files["images"], "boxes": "detector", "save_pred": files["images"] / "new"}
    figures = run_eval("coco", files["labels"], "lite", **options)
    again = run_eval("coco", files["labels"], None, pred=files["images"] / "new" / "predictions.json")
    assert {**again, "boxes": ""} == {**figures, "boxes": ""}
    assert figures["ap50"] == pytest.approx(1)
    with pytest.raises(OutputError, match=r"cannot write .*predictions\.json"):
        run_eval("coco", files["labels"], "lite", **{**options, "save_pred": files["pred"]})


@pytest.mark.usefixtures("stand_ins")
def test_pictures_come_from_the_tars_beside_the_labels(make_set: MakeSet) -> None:
    def change(labels: dict[str, Any]) -> None:
        for number, image in enumerate(labels["images"]):
            image["tar"] = 2 * number

    files = make_set(change)
    for number, name in ((0, "3.png"), (2, "8.png")):
        with tarfile.open(files["labels"].with_name(f"labels_{number:02d}.tar"), "w") as tar:
            tar.add(files["images"] / name, f"val/{name}")
    assert run_eval("coco", files["labels"], "lite")["pck01"] == 1
    files["labels"].with_name("labels_02.tar").unlink()
    with pytest.raises(UsageError, match=r"labels_02\.tar is missing or no tar"):
        run_eval("coco", files["labels"], "lite")


def test_person_figures(make_set: MakeSet) -> None:
    """Three people, one of them missed; four boxes, one wrong, one in a crowd by more than half."""

    def change(labels: dict[str, Any]) -> None:
        crowd = {"id": 7, "image_id": 8, "category_id": 9, "bbox": [100, 0, 50, 100], "iscrowd": 1}
        dog = {"id": 8, "image_id": 8, "category_id": 4, "bbox": [0, 0, 20, 20]}
        labels["annotations"] += [crowd, dog]

    files = make_set(change)
    boxes = [(3, 10, 20, 30, 70, 0.9), (3, 0, 80, 9, 30, 0.8), (8, 51, 15, 24, 80, 0.6), (8, 80, 10, 50, 40, 0.95)]
    entries = [{"image_id": i, "category_id": 9, "bbox": box, "score": score} for i, *box, score in boxes]
    write(files["pred"], entries)
    figures = run_eval("person", files["labels"], None, pred=files["pred"])
    assert figures["people"] == 3
    assert figures["recall"] == pytest.approx(2 / 3)
    assert figures["precision"] == pytest.approx(2 / 3)  # the box in the crowd counts as neither
    assert figures["ap50"] == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)
    entries[3]["bbox"] = (74, 10, 50, 40)  # now 24 of its 50 columns are in the crowd
    write(files["pred"], entries)
    assert run_eval("person", files["labels"], None, pred=files["pred"])["precision"] == pytest.approx(2 / 4)


def test_short_people_do_not_count(make_set: MakeSet) -> None:
    files = make_set()
    edit(files["pred"], lambda entries: entries.pop(0))
    figures = run_eval("person", files["labels"], None, pred=files["pred"], min_height_px=65)
    assert (figures["people"], figures["recall"], figures["precision"]) == (2, 1 / 2, 1)
    with pytest.raises(UsageError, match="no people to find from 500 px tall"):
        run_eval("person", files["labels"], None, pred=files["pred"], min_height_px=500)


def test_person_figures_at_the_score_the_detector_ships_with(
    make_set: MakeSet, monkeypatch: pytest.MonkeyPatch, make_detector: Any
) -> None:
    """A box under the threshold counts for AP alone."""
    finder = make_detector([[(10, 20, 40, 90, 0.9), (90, 30, 130, 90, 0.3)], [(50, 15, 74, 95, 0.7)]])
    finder.name = "stub"
    seen = []
    strict = finder.detect
    finder.detect = lambda image, threshold: seen.append(threshold) or strict(image)
    monkeypatch.setattr(coco_eval, "PersonDetector", lambda _: finder)
    files = make_set()
    figures = run_eval("person", files["labels"], None, images=files["images"])
    assert figures["threshold"] == 0.4
    assert (figures["recall"], figures["precision"]) == (pytest.approx(2 / 3), 1)
    assert figures["ap50"] == pytest.approx(1)
    assert all(threshold < 0.3 for threshold in seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "posetrack"}, "posetrack needs a --model or predictions"),
        ({"dataset": "jhmdb"}, "jhmdb needs a --model or predictions"),
        ({"dataset": "coko"}, "no data set 'coko'; this version evaluates: posetrack, jhmdb, coco, person, pack"),
        ({"dataset": "coco"}, "needs a --model or predictions"),
        ({"dataset": "coco", "model": "lite", "pred": Path("x")}, "--pred and --model exclude each other"),
        ({"dataset": "person", "boxes": "detector"}, "--boxes goes with"),
        ({"dataset": "coco", "min_height_px": 5.0}, "--min-height goes with"),
        ({"dataset": "coco", "model": "lite", "boxes": "nowhere.json"}, "there is no file nowhere.json"),
        ({"dataset": "coco", "model": "lite"}, "names no tar of its pictures"),
        ({"dataset": "coco", "model": "lite", "images": Path("nowhere")}, "nowhere is not a folder"),
        ({"dataset": "coco", "pred": Path("nowhere.json")}, "nowhere.json cannot be read: No such file"),
        ({"dataset": "pack", "pred": Path("x")}, "no --images, no --pred"),
        ({"dataset": "pack", "detector": "none"}, "nothing to measure"),
    ],
)
@pytest.mark.usefixtures("stand_ins")
def test_options_that_cannot_be_are_one_line(make_set: MakeSet, options: dict[str, Any], message: str) -> None:
    call = {"model": None, **options}
    with pytest.raises(UsageError, match=message) as error:
        run_eval(gt=make_set()["labels"], **call)
    assert "\n" not in str(error.value)


def no_person(labels: dict[str, Any]) -> None:
    labels["categories"] = CATEGORIES[:1]


def no_joints(labels: dict[str, Any]) -> None:
    for annotation in labels["annotations"]:
        del annotation["keypoints"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_person, "none of its categories is called 'person'"),
        (no_joints, "no people with labelled keypoints"),
        (lambda labels: labels.update(images=[]), "has no pictures"),
        (lambda labels: labels["images"].append(labels["images"][0]), "two of its images have the same id"),
        (lambda labels: labels.pop("images"), "is not COCO labels: .*`images`"),
        (lambda labels: labels["annotations"][1].update(image_id=5), r"annotations\[1\] is of image 5"),
        (lambda labels: labels["annotations"][1].update(bbox=[1, 2]), r"is not COCO labels: .*annotations"),
        (lambda labels: labels["annotations"][2].update(keypoints=[1, 2, 2]), r"annotations\[2\]: keypoints are 17"),
    ],
)
def test_wrong_labels_are_one_line(make_set: MakeSet, change: Callable[[dict[str, Any]], None], message: str) -> None:
    files = make_set(change)
    with pytest.raises(UsageError, match=message) as error:
        run_eval("coco", files["labels"], None, pred=files["pred"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries[1].update(image_id=4), "entry 1 is of image 4, which .*labels.json does not have"),
        (lambda entries: entries[1].update(keypoints=[0.0] * 34), "entry 1: keypoints are 17 times x, y, v"),
        (lambda entries: entries[1].pop("keypoints"), "an entry of image 3 has no keypoints"),
        (lambda entries: entries[1].update(bbox=[1, 2, 0, 4]), "entry 1: bbox is x, y, width, height"),
        (lambda entries: entries[1].pop("score"), "is not a COCO result file: .*`score`"),
    ],
)
def test_wrong_predictions_are_one_line(make_set: MakeSet, change: Callable[[Any], None], message: str) -> None:
    files = make_set()
    edit(files["pred"], change)
    with pytest.raises(UsageError, match=message):
        run_eval("coco", files["labels"], None, pred=files["pred"])


@pytest.mark.usefixtures("stand_ins")
def test_text_that_is_no_json_and_pictures_that_are_none(make_set: MakeSet) -> None:
    files = make_set()
    (files["images"] / "8.png").write_bytes(b"not a picture")
    with pytest.raises(UsageError, match=r"8\.png is not a picture"):
        run_eval("coco", files["labels"], "lite", images=files["images"])
    (files["images"] / "8.png").unlink()
    with pytest.raises(UsageError, match=r"has no val/8\.png"):
        run_eval("coco", files["labels"], "lite", images=files["images"])
    files["labels"].write_text("{")
    with pytest.raises(UsageError, match=r"labels\.json is not COCO labels"):
        run_eval("coco", files["labels"], "lite", images=files["images"])


def test_boxes_without_area_are_left_out_with_a_warning(
    make_set: MakeSet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_set(lambda labels: labels["annotations"][1].update(bbox=[5, 5, 0, 9]))
    monkeypatch.setattr(logging.getLogger("streampose"), "propagate", True)
    with caplog.at_level(logging.WARNING, "streampose"):
        labels = read_labels(files["labels"])
    assert [len(picture.people) for picture in labels.pictures] == [1, 1]
    assert "left out 1 annotations" in caplog.text


def test_another_skeleton_is_refused(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    monkeypatch.setattr(predict, "load_engine", lambda _: engine)
    files = make_set()
    for skeleton, kind in (("other15", ModelError), ("posetrack", UsageError)):
        engine.manifest = type(engine.manifest)(skeleton=skeleton)
        with pytest.raises(kind, match=skeleton):
            run_eval("coco", files["labels"], "lite", images=files["images"])


def rectangle_subject(joints: np.ndarray, wrong: int, unlabelled: int, width: int, height: int) -> Subject:
    """A person drawn as a rectangle; the first `wrong` labels are off by 15 % of the longer side, then `unlabelled`."""
    picture = np.zeros((200, 200, 3), np.uint8)
    picture[40 : 40 + height, 60 : 60 + width] = 255
    points = joints * [width, height] + [60, 40]
    points[:wrong, 0] += 0.15 * height
    human = np.ones(17, np.bool_)
    human[wrong : wrong + unlabelled] = False
    box = np.array([60, 40, 60 + width, 40 + height], np.float32)
    keypoints = np.column_stack([points, np.ones(17)]).astype(np.float32)
    person = Person(box, keypoints, human, False, False, -1)
    return Subject(Still("lspet", "a.png", cv2.imencode(".png", picture)[1].tobytes(), (person,)), person)


def test_bundle_on_the_packs_windows(engine: Any, joints: np.ndarray) -> None:
    """Wrong labels count as not found, unlabelled joints not at all, and the window holds four moved frames."""
    subjects = [rectangle_subject(joints, 3, 4, 50, 100), rectangle_subject(joints, 2, 0, 60, 130)]
    assert pack_eval.engine_pck(engine, subjects, 0.0) == pytest.approx((10 + 15) / (13 + 17))
    features, transforms = engine.fused[0]
    assert features.shape[:2] == (1, 5)
    assert transforms.shape == (1, 5, 2, 2, 3)
    assert not (features[:, 1:] == features[:, :1]).all()
    assert pack_eval.engine_pck(engine, subjects, 0.0) == pack_eval.engine_pck(engine, subjects, 0.0)


def test_corrupting_touches_the_key_frame_alone(engine: Any, joints: np.ndarray) -> None:
    subjects = [rectangle_subject(joints, 0, 0, 50, 100)]
    pack_eval.engine_pck(engine, subjects, 0.0)
    pack_eval.engine_pck(engine, subjects, 1.0)
    (clean, _), (corrupt, _) = engine.fused
    assert not (clean[:, 0] == corrupt[:, 0]).all()


def test_detection_figures_of_the_pack_by_set_and_height(make_detector: Any) -> None:
    """By hand: people 100 and 70 px tall in set ccp, one 90 px in a clip; four pictures without people, one alarm."""

    def scene(group: str, *boxes: tuple[float, float, float, float]) -> Scene:
        people = [
            Person(np.array(b, np.float32), np.zeros((17, 3), np.float32), np.zeros(17, np.bool_), *(False,) * 2, -1)
            for b in boxes
        ]
        return Scene(cv2.imencode(".png", np.zeros((200, 200, 3), np.uint8))[1].tobytes(), tuple(people), group)

    tall, short, other = (10, 10, 50, 110), (100, 10, 130, 80), (20, 50, 60, 140)
    scenes = [scene("ccp", tall, short), scene("clip:walk", other), *[scene("davis_neg")] * 4]
    finder = make_detector(
        [
            [(*tall, 0.9), (*short, 0.3)],
            [(120, 90, 170, 190, 0.8)],
            [],
            [(0, 0, 40, 90, 0.5)],
            [(0, 0, 40, 90, 0.2)],
            [],
        ]
    )
    figures, _ = detector_figures(pack_eval.find(finder.detect, scenes), scenes, 0.4)
    assert (figures["pictures_without_people"], figures["nothing_found_without_people"]) == (4, 3 / 4)
    assert figures["nothing_found_without_people_95"] == pytest.approx((0.3006, 0.9544), abs=1e-4)
    from_80, from_60 = figures["from_80_px"], figures["from_60_px"]
    assert set(from_80) == {"all", "ccp", "clip"}
    assert [from_80[name]["people"] for name in ("all", "ccp", "clip")] == [2, 1, 1]
    assert [from_60[name]["people"] for name in ("all", "ccp", "clip")] == [3, 2, 1]
    assert (from_80["all"]["recall"], from_80["all"]["precision"]) == (1 / 2, pytest.approx(1 / 3))
    assert (from_80["ccp"]["recall"], from_80["ccp"]["ap50"]) == (1, 1)
    assert (from_60["ccp"]["recall"], from_60["ccp"]["precision"], from_60["ccp"]["ap50"]) == (1 / 2, 1, 1)
    assert (from_60["clip"]["recall"], from_60["clip"]["precision"]) == (0, 0)
