"""Sub-JHMDB's figures of a network and of its predictions, on white rectangles."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.io import savemat

pytest.importorskip("torch", reason="needs the [train] extra")

from streampose.errors import OutputError, UsageError
from streampose.skeleton import COCO17, JHMDB, Skeleton
from streampose.train import jhmdb_eval, predict
from streampose.train.evaluate import run_eval
from streampose.train.frame_files import FrameFiles
from streampose.train.pack import Person
from streampose.train.windows import Subject

SIZE = (40, 80)
"""Width and height of the rectangle; it walks right by 5 px a frame."""
SHARES = np.random.default_rng(11).uniform(0.1, 0.9, (15, 2))


class Video(FrameFiles):
    def __init__(self, name: str) -> None:
        super().__init__([Path("pictures") / name / "00001.png"])

    def image(self, index: int) -> np.ndarray:
        picture = np.zeros((120, 160, 3), np.uint8)
        picture[20:100, 30 + 5 * index : 70 + 5 * index] = 255
        return picture


@dataclass
class Model:
    """Sees the joints of a rectangle at their shares of it."""

    skeleton: Skeleton = JHMDB
    size: tuple[int, int] = (128, 96)
    offsets: tuple[int, ...] = (-1, 1)
    seen: list[np.ndarray] = field(default_factory=list)

    def estimate(self, crops: np.ndarray) -> np.ndarray:
        self.seen.append(crops)
        found = []
        for key in crops[:, 0, :, :, 0]:
            x, y, width, height = cv2.boundingRect((key > 125).astype(np.uint8))
            found.append(np.column_stack([SHARES * [width, height] + [x, y], np.full(15, 0.9)]))
        return np.array(found, np.float32)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """The model that `--model stub` opens, and two videos of three frames as split 2."""

    def read_subjects(name: str, root: Path, split: str, offsets: tuple[int, ...]) -> list[Subject]:
        assert (name, root, split) == ("jhmdb", Path("data"), "test2")
        subjects = []
        for video in (Video("run/a"), Video("walk/b")):
            for index in range(3):
                box = np.array([30 + 5 * index, 20, 70 + 5 * index, 100], np.float32)
                points = np.column_stack([SHARES * SIZE + box[:2], np.ones(15)]).astype(np.float32)
                supports = tuple(min(max(index + offset, 0), 2) for offset in offsets)
                person = Person(box, points, points[:, 2] > 0, False, False, -1)
                subjects.append(Subject(video, person, index, supports, JHMDB))
        return subjects

    stub = Model()
    monkeypatch.setattr(jhmdb_eval, "read_subjects", read_subjects)
    monkeypatch.setattr(predict, "open_model", lambda *_: stub)
    return stub


def evaluate(**options: Any) -> dict[str, Any]:
    return run_eval("jhmdb", Path("data"), "stub", split=2, **options)


def test_at_labelled_boxes(model: Model) -> None:
    figures = evaluate()
    assert (figures["split"], figures["frames"], figures["boxes"]) == (2, 6, "gt")
    assert figures["pck_person"]["mean_15"] == figures["pck_torso"]["mean"] == 100
    (crops,) = model.seen
    assert crops.shape == (6, 3, 128, 96, 3)
    assert (crops[0, 1] == crops[0, 0]).all()
    assert not (crops[1, 1] == crops[1, 0]).all()


@pytest.mark.usefixtures("model")
def test_at_detected_boxes(monkeypatch: pytest.MonkeyPatch, make_detector: Any) -> None:
    """The best of two boxes; a frame without any counts as not found."""
    good, bad = (30, 20, 70, 100, 0.9), (0, 0, 20, 20, 0.5)
    finder = make_detector([[bad, good], [], *[[(x, 20, x + 40, 100, 0.8)] for x in (40, 30, 35, 40)]])
    finder.name = "stub"
    monkeypatch.setattr(jhmdb_eval, "PersonDetector", lambda _: finder)
    figures = evaluate(boxes="detector")
    assert figures["boxes"] == "detector stub, best of score >= 0.40"
    assert figures["pck_person"]["mean"] == pytest.approx(500 / 6)


@pytest.mark.usefixtures("model")
def test_at_boxes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    entry = {"image_name": "walk/b/00002.png", "category_id": 1}
    path.write_text(
        json.dumps([{**entry, "bbox": [35, 20, 40, 80], "score": 0.3}, {**entry, "bbox": [0, 0, 9, 9], "score": 0.1}])
    )
    assert evaluate(boxes=str(path))["pck_person"]["head"] == pytest.approx(100 / 6)
    path.write_text(json.dumps([{**entry, "image_name": "b.png", "bbox": [35, 20, 40, 80], "score": 0.3}]))
    with pytest.raises(UsageError, match="has no boxes for these pictures"):
        evaluate(boxes=str(path))


@pytest.mark.usefixtures("model")
def test_predictions_are_written_and_read_back(tmp_path: Path) -> None:
    figures = evaluate(save_pred=tmp_path / "out")
    path = tmp_path / "out" / "predictions.json"
    entries = json.loads(path.read_text())
    assert [(entry["video"], entry["frame"]) for entry in entries][2:4] == [("run/a", 2), ("walk/b", 0)]
    again = run_eval("jhmdb", Path("data"), None, pred=path, split=2)
    assert again == {**figures, "boxes": "predictions of predictions.json"}
    entries[4]["keypoints"][3 * JHMDB.joints.index("face")] += 1000
    path.write_text(json.dumps(entries[:5]))
    fewer = run_eval("jhmdb", Path("data"), None, pred=path, split=2)["pck_torso"]
    assert fewer["head"] == pytest.approx(400 / 6)
    assert fewer["knee"] == pytest.approx(500 / 6)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*predictions\.json"):
        evaluate(save_pred=tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries[1].update(video="run/c"), "entry 1 is of run/c frame 1: not in split 2"),
        (lambda entries: entries[1].update(frame=9), "entry 1 is of run/a frame 9: not in split 2"),
        (lambda entries: entries.append(entries[0]), "entry 6 is the second of run/a frame 0"),
        (lambda entries: entries[2]["keypoints"].pop(), "entry 2: keypoints are 45 numbers, not 44"),
        (lambda entries: entries[0].pop("video"), "is not a list of poses: .*`video`"),
        (lambda entries: entries[0]["keypoints"].append(float("nan")), "is not a list of poses"),
    ],
)
@pytest.mark.usefixtures("model")
def test_damaged_predictions(tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    evaluate(save_pred=tmp_path)
    path = tmp_path / "predictions.json"
    entries = json.loads(path.read_text())
    change(entries)
    path.write_text(json.dumps(entries))
    with pytest.raises(UsageError, match=message):
        run_eval("jhmdb", Path("data"), None, pred=path, split=2)


def test_what_cannot_be(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json cannot be read"):
        run_eval("jhmdb", Path("data"), None, pred=tmp_path / "none.json", split=2)
    model.skeleton = COCO17
    with pytest.raises(UsageError, match="the joints of coco17; Sub-JHMDB needs those of jhmdb"):
        evaluate()


def test_on_the_data_sets_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clips of an action, one for training, in Sub-JHMDB's layout; pixels of its files count from 1."""
    for clip in ("one", "two"):
        folder = tmp_path / "Rename_Images" / "run" / clip
        folder.mkdir(parents=True)
        positions = np.zeros((2, 15, 3))
        for index in range(3):
            assert cv2.imwrite(str(folder / f"{index + 1:05d}.png"), Video("run/one").image(index))
            positions[:, :, index] = (SHARES * SIZE + [30 + 5 * index, 20]).T + 0.5
        (tmp_path / "joint_positions" / "run" / clip).mkdir(parents=True)
        savemat(tmp_path / "joint_positions" / "run" / clip / "joint_positions.mat", {"pos_img": positions})
    (tmp_path / "sub_splits").mkdir()
    (tmp_path / "sub_splits" / "run_test_split_3.txt").write_text("one 1\ntwo 2\n")
    stub = Model()
    monkeypatch.setattr(predict, "open_model", lambda *_: stub)
    figures = run_eval("jhmdb", tmp_path, "stub", split=3, save_pred=tmp_path / "out")
    assert figures["frames"] == 3
    assert figures["pck_torso"]["mean_15"] == pytest.approx(100)
    assert np.abs(stub.seen[0].astype(int)[2, 2] - stub.seen[0][2, 0]).max() == 0  # the last frame supports itself
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [(entry["video"], entry["frame"]) for entry in entries] == [("run/two", index) for index in range(3)]
    again = run_eval("jhmdb", tmp_path, None, pred=tmp_path / "out" / "predictions.json", split=3)
    assert again["pck_person"] == figures["pck_person"]
    with pytest.raises(UsageError, match=r"is not Sub-JHMDB's folder"):
        run_eval("jhmdb", tmp_path, "stub", split=2)
