"""A network on labelled sequences: its windows, boxes and predictions, with the stand-in engine on white rectangles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [train] extra")

from streampose.errors import OutputError, UsageError
from streampose.skeleton import POSETRACK
from streampose.train import posetrack_eval, predict
from streampose.train.evaluate import run_eval
from streampose.train.frame_files import supports
from streampose.train.posetrack_labels import NUMBERED

FRAMES, LABELLED = 6, (1, 2, 5)
BOXES = ((20, 30, 40, 80), (100, 20, 30, 70))
"""The people of frame 0, x, y, width, height; they walk right by 3 px a frame, white on black, 200 x 120 pixels."""


def rectangles(index: int) -> list[tuple[int, int, int, int]]:
    return [(x + 3 * index, y, width, height) for x, y, width, height in BOXES]


@pytest.fixture
def root(tmp_path: Path, joints: np.ndarray) -> Path:
    """A data set's folder: images/val/000007_test/ and annotations/val/000007_test.json."""
    folder = tmp_path / "images" / "val" / "000007_test"
    folder.mkdir(parents=True)
    labels: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "person", "keypoints": list(POSETRACK.joints)}],
    }
    for index in range(FRAMES):
        picture = np.zeros((120, 200, 3), np.uint8)
        name = f"images/val/000007_test/{index:06d}.png"
        labels["images"].append({"id": 100 + index, "file_name": name, "is_labeled": index in LABELLED})
        for track, (x, y, width, height) in enumerate(rectangles(index)):
            picture[y : y + height, x : x + width] = 255
            if index in LABELLED:
                points = np.column_stack([joints * [width, height] + [x, y], np.ones(17)])
                points[3:5] = 0
                labels["annotations"].append(
                    {
                        "image_id": 100 + index,
                        "track_id": track,
                        "keypoints": points.ravel().tolist(),
                        "bbox": [x, y, width, height],
                        "bbox_head": [x, y, 9, 12],
                    }
                )
        assert cv2.imwrite(str(tmp_path / name), picture)
    (tmp_path / "annotations" / "val").mkdir(parents=True)
    (tmp_path / "annotations" / "val" / "000007_test.json").write_text(json.dumps(labels))
    return tmp_path


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, engine: Any, detector: Any) -> Any:
    """The engine and the detector of the tests in place of bundled ones, with PoseTrack's joints."""
    engine.manifest = type(engine.manifest)(skeleton="posetrack", offsets=(-2, 1))
    detector.name = "stub"
    monkeypatch.setattr(predict, "load_engine", lambda _: engine)
    monkeypatch.setattr(posetrack_eval, "PersonDetector", lambda _: detector)
    return engine


def evaluate(root: Path, **options: Any) -> dict[str, Any]:
    return run_eval("posetrack", root / "annotations" / "val", "lite", **options)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_supports_stay_within_the_sequence() -> None:
    assert supports(3, (-2, -1, 1, 2), 8) == (1, 2, 4, 5)
    assert supports(1, (-4, -1, 1), 8) == (0, 0, 2)
    assert supports(0, (-2, -1), 8) == (0, 0)
    assert supports(6, (1, 2, 4), 8) == (7, 7, 7)
    assert supports(0, (-1, 1), 1) == (0, 0)


def test_at_labelled_boxes(root: Path, stub: Any) -> None:
    """The joints land on the labels; windows are of the frames around, and stay within the sequence."""
    figures = evaluate(root)
    assert figures["boxes"] == "gt"
    assert list(figures["ap"].values()) == pytest.approx([100] * 15)
    assert figures["mota"]["mota"] == pytest.approx([100] * 16)
    assert stub.encoded == [6, 6, 6]  # two people, three frames
    features, transforms = stub.fused[0]
    assert features.shape[:2] == (2, 3)
    assert (transforms == np.eye(2, 3)).all()
    shifts = [[_left(window[0]) for window in person] for person in features]
    assert shifts[0][0] - shifts[0][1] == pytest.approx(3 * _scale(0), abs=1)  # frame 1 is supported by 0, not -1,
    assert shifts[0][2] - shifts[0][0] == pytest.approx(3 * _scale(0), abs=1)  # and by 2
    last = [_left(window[0]) for window in stub.fused[2][0][0]]
    assert last[2] == last[0]  # frame 5 by itself
    assert last[0] - last[1] == pytest.approx(6 * _scale(0), abs=1)


def _scale(person: int) -> float:
    """Feature cells a pixel: crops 256 x 192 show 1.25 times the box."""
    _, _, width, height = BOXES[person]
    return min(192 / width, 256 / height) / 1.25 / 4


def _left(grey: np.ndarray) -> int:
    """The first column of the rectangle in the crop's middle row."""
    middle = grey[grey.shape[0] // 2]
    return int(np.flatnonzero(middle > 125)[0])


@pytest.mark.usefixtures("stub")
def test_at_detected_boxes(root: Path) -> None:
    figures = evaluate(root, boxes="detector", save_pred=root / "out")
    assert figures["boxes"] == "detector stub, score >= 0.40"
    assert figures["ap_total"] == pytest.approx(100)
    written = json.loads((root / "out" / "000007_test.json").read_text())
    assert {entry["image_id"] for entry in written["annotations"]} == {100 + index for index in LABELLED}


@pytest.mark.parametrize("key", ["image_id", "image_name"])
def test_at_boxes_of_a_file(root: Path, stub: Any, key: str) -> None:
    """One person in one frame, twice: of two equal poses the worse-scored goes; other pictures do not count."""
    x, y, width, height = rectangles(2)[0]
    names = {"image_id": (102, 999), "image_name": ("images/val/000007_test/000002.png", "elsewhere.png")}[key]
    entry = {"category_id": 1, "bbox": [x, y, width, height]}
    entries = [
        {**entry, key: names[0], "score": 0.5},
        {**entry, key: names[0], "score": 0.8},
        {**entry, key: names[0], "score": 0.9, "category_id": 3},
        {**entry, key: names[1], "score": 0.5},
    ]
    boxes = root / "boxes.json"
    boxes.write_text(json.dumps(entries))
    figures = evaluate(root, boxes=str(boxes), save_pred=root / "out")
    assert figures["boxes"] == "boxes of boxes.json"
    assert list(figures["recall"].values()) == pytest.approx([100 / 6] * 15)
    assert list(figures["precision"].values()) == [100] * 15
    assert sum(stub.encoded) == 2 * 3
    written = json.loads((root / "out" / "000007_test.json").read_text())
    assert [entry["score"] for entry in written["annotations"]] == pytest.approx([0.8 * 0.9])
    assert evaluate(root, boxes=str(boxes), oks_nms=1.0)["precision"]["nose"] == 50


@pytest.mark.usefixtures("stub")
def test_predictions_are_written_and_read_back(root: Path) -> None:
    edit(root / "annotations" / "val" / "000007_test.json", lambda c: c["annotations"][1].update(bbox=[90, 20, 50, 60]))
    figures = evaluate(root, save_pred=root / "out" / "pred")
    again = run_eval("posetrack", root / "annotations" / "val", None, pred=root / "out" / "pred")
    assert figures.pop("boxes") == "gt"
    assert again == figures
    written = json.loads((root / "out" / "pred" / "000007_test.json").read_text())
    assert [image["id"] for image in written["images"]] == list(range(100, 106))
    assert [entry["image_id"] for entry in written["annotations"]] == [101, 101, 102, 102, 105, 105]
    assert [entry["track_id"] for entry in written["annotations"]] == [0, 1, 0, 1, 0, 1]
    assert written["annotations"][0]["keypoints"][9:15] == [0] * 6  # ears
    assert written["annotations"][0]["scores"][:5] == pytest.approx([0.9, 0.9, 0.9, 0, 0])
    assert written["annotations"][0]["bbox"] == list(rectangles(1)[0])


def test_ears_count_nowhere(root: Path, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = stub.fuse

    def fuse(features: np.ndarray, transforms: np.ndarray) -> np.ndarray:
        keypoints = strict(features, transforms)
        keypoints[:, 3:5] = [9, 9, 0.3]
        return keypoints

    monkeypatch.setattr(stub, "fuse", fuse)
    evaluate(root, save_pred=root / "out")
    written = json.loads((root / "out" / "000007_test.json").read_text())
    assert [entry["score"] for entry in written["annotations"]] == pytest.approx([0.9] * 6)


@pytest.mark.usefixtures("stub")
def test_people_keep_their_ids_where_poses_are_suppressed(root: Path) -> None:
    entries = [
        {"image_id": 100 + index, "category_id": 1, "bbox": rectangle, "score": score}
        for index in LABELLED
        for score, rectangle in zip((0.9, 0.5), rectangles(index)[::-1], strict=True)
        for _ in range(2)
    ]
    (root / "boxes.json").write_text(json.dumps(entries))
    evaluate(root, boxes=str(root / "boxes.json"), save_pred=root / "out")
    written = json.loads((root / "out" / "000007_test.json").read_text())
    assert [entry["track_id"] for entry in written["annotations"]] == [0, 1] * 3


@pytest.mark.usefixtures("stub")
def test_labels_of_2017(root: Path) -> None:
    """No boxes: they are the joints' with some room. No ids: boxes of files go by name."""
    path = root / "annotations" / "val" / "000007_test.json"
    labels = json.loads(path.read_text())
    frames = []
    for image in labels["images"]:
        rects = []
        for entry in labels["annotations"]:
            if entry["image_id"] == image["id"]:
                points = np.reshape(entry["keypoints"], (17, 3))
                x, y, width, height = entry["bbox_head"]
                named = [
                    {"id": [number], "x": [points[place, 0]], "y": [points[place, 1]]}
                    for number, place in enumerate(POSETRACK.joints.index(name) for name in NUMBERED)
                ]
                head = {"x1": [x], "y1": [y], "x2": [x + width], "y2": [y + height]}
                rects.append({"track_id": [entry["track_id"]], "annopoints": [{"point": named}], **head})
        frames.append({"image": [{"name": image["file_name"]}], "annorect": rects})
    path.write_text(json.dumps({"annolist": frames}))
    figures = evaluate(root, save_pred=root / "out")
    assert figures["ap_total"] == pytest.approx(100)
    assert run_eval("posetrack", path.parent, None, pred=root / "out")["ap"] == figures["ap"]
    boxes = root / "boxes.json"
    boxes.write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 1}]))
    with pytest.raises(UsageError, match=r"boxes\.json has no boxes for these pictures"):
        evaluate(root, boxes=str(boxes))


@pytest.mark.usefixtures("stub")
def test_without_any_labels_all_frames_are_estimated(root: Path) -> None:
    def unlabel(content: dict[str, Any]) -> None:
        content["annotations"].clear()
        for image in content["images"]:
            image["is_labeled"] = False

    edit(root / "annotations" / "val" / "000007_test.json", unlabel)
    evaluate(root, boxes="detector", save_pred=root / "out")
    written = json.loads((root / "out" / "000007_test.json").read_text())
    assert len(written["annotations"]) == 2 * FRAMES


@pytest.mark.usefixtures("stub")
def test_pictures_and_files_that_are_missing(root: Path) -> None:
    with pytest.raises(UsageError, match=r"val has no images/val/000007_test/000000\.png; give --images"):
        evaluate(root, images=root / "images" / "val")
    picture = root / "images" / "val" / "000007_test" / "000003.png"
    picture.write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"000003\.png is not a picture"):
        evaluate(root)
    picture.unlink()
    (root / "images" / "val" / "000007_test" / "000002.png").unlink()
    with pytest.raises(UsageError, match=r"000002\.png is missing"):
        evaluate(root)
    with pytest.raises(UsageError, match=r"there is no file .*nowhere\.json"):
        evaluate(root, boxes=str(root / "nowhere.json"))
    (root / "boxes.json").write_text('[{"image_id": 1}]')
    with pytest.raises(UsageError, match=r"boxes\.json is not a file of boxes"):
        evaluate(root, boxes=str(root / "boxes.json"))
    (root / "boxes.json").write_text('[{"bbox": [1, 2, 3, 4], "score": 1}]')
    with pytest.raises(UsageError, match="entry 0 has neither image_id nor image_name"):
        evaluate(root, boxes=str(root / "boxes.json"))
    (root / "boxes.json").write_text('[{"image_id": 1, "bbox": [1, 2, 0, 4], "score": 1}]')
    with pytest.raises(UsageError, match="entry 0: bbox is x, y, width, height with an area"):
        evaluate(root, boxes=str(root / "boxes.json"))


@pytest.mark.usefixtures("stub")
def test_predictions_that_cannot_be_written(root: Path) -> None:
    (root / "out").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write .*000007_test\.json"):
        evaluate(root, save_pred=root / "out")


def test_a_model_with_other_joints_is_refused(root: Path, stub: Any) -> None:
    stub.manifest = type(stub.manifest)(skeleton="coco17")
    with pytest.raises(UsageError, match="the joints of coco17, which lack head_top and head_bottom"):
        evaluate(root)


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip_test": True}, "--flip-test goes with a checkpoint"),
        ({"input_size": (384, 288)}, "--input-size goes with a checkpoint"),
        ({"split": 2}, "--split goes with --dataset jhmdb only"),
        ({"oks_nms": 0.0}, "--oks-nms is above 0 and at most 1"),
    ],
)
def test_options_that_do_not_go_together(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(root, **options)


@pytest.mark.parametrize("options", [{"boxes": "detector"}, {"flip_test": True}, {"save_pred": Path("x")}])
def test_options_of_a_model_do_not_go_with_predictions(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="goes with --dataset posetrack, jhmdb, coco and a --model only"):
        run_eval("posetrack", tmp_path, None, pred=tmp_path, **options)


def test_labels_without_head_boxes_are_refused_before_anything_runs(root: Path, stub: Any) -> None:
    def headless(content: dict[str, Any]) -> None:
        del content["annotations"][0]["bbox_head"]

    edit(root / "annotations/val/000007_test.json", headless)
    with pytest.raises(UsageError, match="has no head box"):
        evaluate(root)
    assert stub.encoded == []


def test_labels_are_never_overwritten_by_predictions(root: Path, stub: Any) -> None:
    labels = root / "annotations/val/000007_test.json"
    before = labels.read_bytes()
    with pytest.raises(UsageError, match="has json files already, labels perhaps; give a new folder"):
        evaluate(root, save_pred=labels.parent)
    assert labels.read_bytes() == before
    assert stub.encoded == []
