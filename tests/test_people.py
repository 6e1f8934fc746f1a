"""The person detector: what it accepts, and boxes in the picture's own pixels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streampose.errors import ModelError
from streampose.people import PersonDetector, letterbox, locate_detector, suppress

onnx = pytest.importorskip("onnx", reason="builds little models; the [train] extra has onnx")
from onnx import TensorProto, helper

META = {"streampose.kind": "person-detector", "streampose.score_threshold": "0.4"}
MakeModel = Callable[..., Path]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """make_model(boxes, scores): a detector of 64 x 96 pictures that always answers the same."""

    def make(
        boxes: list[list[float]],
        scores: list[float],
        meta: dict[str, str] = META,
        frames: str = "frames",
        kind: int = TensorProto.UINT8,
        shape: tuple[int | str, ...] = ("B", 64, 96, 3),
        name: str = "detector.onnx",
    ) -> Path:
        count = len(boxes)
        constants = [
            helper.make_tensor("zero_box", TensorProto.FLOAT, [1, count, 4], np.array(boxes, np.float32).ravel()),
            helper.make_tensor("zero_score", TensorProto.FLOAT, [1, count], np.array(scores, np.float32)),
            helper.make_tensor("nothing", TensorProto.FLOAT, [1], [0.0]),
        ]
        nodes = [
            helper.make_node("Cast", [frames], ["real"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["real"], ["most"], keepdims=0),
            helper.make_node("Mul", ["most", "nothing"], ["zero"]),
            helper.make_node("Add", ["zero_box", "zero"], ["boxes"]),
            helper.make_node("Add", ["zero_score", "zero"], ["scores"]),
        ]
        graph = helper.make_graph(
            nodes,
            "stub",
            [helper.make_tensor_value_info(frames, kind, shape)],
            [
                helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, count, 4]),
                helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, count]),
            ],
            constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        helper.set_model_props(model, meta)
        path = tmp_path / name
        onnx.save(model, str(path))
        return path

    return make


def test_boxes_come_back_in_pixels_of_the_picture(make_model) -> None:
    detector = PersonDetector(make_model([[10, 8, 30, 40], [50, 8, 60, 40]], [0.5, 0.9]))
    assert detector.threshold == pytest.approx(0.4)
    assert detector.input_size == (64, 96)
    boxes, scores = detector.detect(np.zeros((128, 120, 3), np.uint8))
    assert boxes.dtype == scores.dtype == np.float32
    np.testing.assert_allclose(boxes, [[100, 16, 120, 80], [20, 16, 60, 80]])
    np.testing.assert_allclose(scores, [0.9, 0.5])


def test_low_scores_repeats_and_flat_boxes_go(make_model) -> None:
    boxes = [[10, 10, 30, 50], [11, 10, 31, 50], [60, 10, 80, 50], [40, 10, 40.2, 50]]
    detector = PersonDetector(make_model(boxes, [0.7, 0.8, 0.3, 0.9]))
    picture = np.zeros((64, 96, 3), np.uint8)
    np.testing.assert_allclose(detector.detect(picture)[0], [boxes[1]])
    assert len(detector.detect(picture, threshold=0.2)[0]) == 2


def test_nobody_is_an_empty_answer(make_model) -> None:
    boxes, scores = PersonDetector(make_model([[1, 1, 9, 9]], [0.1])).detect(np.zeros((32, 48, 3), np.uint8))
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


def test_a_bundle_without_its_manifest_is_refused(make_model) -> None:
    with pytest.raises(ModelError, match="no engine bundle"):
        PersonDetector(make_model([[1, 1, 9, 9]], [0.9]).parent)


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(locate_detector("person").parent, folder)
    assert PersonDetector(folder).name == "copy"
    with (folder / "detector.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match="sha256 differs"):
        PersonDetector(folder)


def test_the_bundled_name_means_the_bundled_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "person").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate_detector("person").is_file()


def test_a_pose_model_is_no_detector() -> None:
    with pytest.raises(ModelError, match="give it as --model"):
        PersonDetector("lite")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": "crops"}, "expected frames -> boxes, scores; found crops"),
        ({"kind": TensorProto.FLOAT}, r"frames must be uint8 \(B, H, W, 3\)"),
        ({"shape": ("B", "H", "W", 3)}, "height and width of frames must be fixed"),
        ({"shape": ("B", 3, 64, 96)}, "frames must be uint8"),
        ({"meta": {}}, "streampose.kind = null"),
        ({"meta": {**META, "streampose.kind": "pose"}}, 'streampose.kind = "pose"'),
        ({"meta": {"streampose.kind": "person-detector"}}, "no streampose.score_threshold"),
        ({"meta": {**META, "streampose.score_threshold": "1.5"}}, "must be 0..1"),
    ],
)
def test_other_models_are_refused_in_one_line(make_model, change: dict[str, object], message: str) -> None:
    path = make_model([[1, 1, 9, 9]], [0.9], **change)
    with pytest.raises(ModelError, match=message) as failure:
        PersonDetector(path)
    assert str(path) in str(failure.value)
    assert "\n" not in str(failure.value)


def test_garbage_is_no_detector(tmp_path: Path) -> None:
    path = tmp_path / "garbage.onnx"
    path.write_bytes(b"this is no model")
    with pytest.raises(ModelError, match=r"garbage\.onnx is not a person detector"):
        PersonDetector(path)


@pytest.mark.parametrize(
    ("name", "message"), [("nobody", "no bundled person detector"), ("missing.onnx", "no such person detector")]
)
def test_a_missing_detector_is_named(tmp_path: Path, monkeypatch, name: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message):
        PersonDetector(name)


def test_letterbox_puts_the_picture_at_the_top_left() -> None:
    picture = np.full((50, 100, 3), 200, np.uint8)
    board, ratio = letterbox(picture, (64, 96))
    assert ratio == pytest.approx(0.96)
    assert board.shape == (64, 96, 3)
    assert (board[:48, :96] == 200).all()
    assert (board[48:] == 114).all()


def test_suppression_keeps_the_best_of_each_heap() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5], [20, 0, 30, 10]], np.float32)
    kept = suppress(boxes, np.array([0.5, 0.9, 0.4, 0.7], np.float32), iou=0.6)
    assert kept.tolist() == [1, 3, 2]
    assert suppress(np.zeros((0, 4), np.float32), np.zeros(0, np.float32)).shape == (0,)
