"""Where the people are: the person detector, and when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from streampose.engines.manifest import GRAPHS, bundled_names, locate_bundle, read_manifest
from streampose.errors import ModelError
from streampose.geometry import box_iou

NMS_IOU = 0.45
_GREY = 114
_KIND = "person-detector"


class Detector(Protocol):
    """Whatever finds people."""

    threshold: float

    def detect(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """People of one picture: image (H, W, 3) uint8 BGR -> boxes (N, 4) xyxy pixels of the picture, scores (N,)
        0..1, best first."""


class PersonDetector:
    """A person detector in ONNX: `frames` uint8 (B, H, W, 3) BGR -> `boxes` (B, N, 4) xyxy input pixels, `scores`."""

    def __init__(self, path: str | Path = "person", threads: int = 2) -> None:
        """Load a detector.

        Args:
            path: "person" for the bundled one, a bundle folder, or an .onnx file.
            threads: how many threads one run uses.

        Raises:
            ModelError: there is none, or it is another kind of model.
        """
        file = locate_detector(path)
        self.name = file.parent.name if file.name == "detector.onnx" else file.name
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a class of its own for every kind of damage
            raise ModelError(f"{file} is not a person detector: ONNX Runtime cannot load it") from error
        self.input_size = _check_signature(file, self._session)
        meta = self._session.get_modelmeta().custom_metadata_map
        self.threshold = _threshold(file, meta)

    def detect(
        self, image: NDArray[np.uint8], threshold: float | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """People of one picture.

        Args:
            image: (H, W, 3) uint8 BGR.
            threshold: lowest score that counts, 0..1; by default the model's own.

        Returns:
            boxes (N, 4) float32 xyxy pixels of the picture, inside it, and scores (N,) float32 0..1; best first, after
            non-maximum suppression at IoU 0.45.
        """
        frames, ratio = letterbox(image, self.input_size)
        boxes, scores = self._session.run(["boxes", "scores"], {"frames": frames[None]})
        keep = scores[0] >= (self.threshold if threshold is None else threshold)
        height, width = image.shape[:2]
        boxes = np.clip(boxes[0][keep] / ratio, 0, np.array([width, height, width, height], np.float32))
        scores = scores[0][keep].astype(np.float32)
        solid = (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)
        boxes, scores = boxes[solid].astype(np.float32), scores[solid]
        kept = suppress(boxes, scores)
        return boxes[kept], scores[kept]


def letterbox(image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], float]:
    """The picture scaled to fit `size` (height, width), at its top left, grey elsewhere; and the scale.

    Args:
        image: (H, W, 3) uint8.
        size: of the result.

    Returns:
        (height, width, 3) uint8, and what picture coordinates were multiplied by.
    """
    height, width = image.shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    inner = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    board = np.full((*size, 3), _GREY, np.uint8)
    board[: inner[1], : inner[0]] = cv2.resize(image, inner, interpolation=cv2.INTER_LINEAR)
    return board, ratio


def suppress(boxes: NDArray[np.float32], scores: NDArray[np.float32], iou: float = NMS_IOU) -> NDArray[np.intp]:
    """Greedy non-maximum suppression: the indices that stay, best score first.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        iou: a box that overlaps a better one by more than this goes.
    """
    order = np.argsort(-scores, kind="stable")
    overlaps = box_iou(boxes, boxes)
    kept: list[int] = []
    for index in order:
        if not kept or overlaps[index, kept].max() <= iou:
            kept.append(int(index))
    return np.array(kept, np.intp)


def locate_detector(path: str | Path) -> Path:
    """The ONNX file of a detector's name, bundle or path; a bundle's files are those that its manifest describes.

    Raises:
        ModelError: there is none, or the bundle is damaged.
    """
    file = Path(path)
    bundled = str(path) in bundled_names()
    if bundled or file.is_dir():
        folder = locate_bundle(path)
        manifest = read_manifest(folder)
        if manifest.kind != _KIND:
            raise ModelError(f"{folder} is a {manifest.kind} model, not a person detector; give it as --model")
        return folder / GRAPHS[_KIND][0]
    if not file.suffix and len(file.parts) == 1:
        raise ModelError(
            f"no bundled person detector is called {str(path)!r}; give an .onnx file, a bundle's folder or person"
        )
    if not file.is_file():
        raise ModelError(f"{file}: no such person detector")
    return file


def _check_signature(file: Path, session: ort.InferenceSession) -> tuple[int, int]:
    """The (height, width) of the detector's input; raises ModelError where it is not a detector's."""
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    if set(inputs) != {"frames"} or not {"boxes", "scores"} <= set(outputs):
        raise ModelError(
            f"{file} is not a person detector: expected frames -> boxes, scores; "
            f"found {', '.join(inputs)} -> {', '.join(outputs)}"
        )
    frames = inputs["frames"]
    shape = frames.shape
    if frames.type != "tensor(uint8)" or len(shape) != 4 or shape[3] != 3:
        raise ModelError(
            f"{file} is not a person detector: frames must be uint8 (B, H, W, 3), not {frames.type} {shape}"
        )
    if not (isinstance(shape[1], int) and isinstance(shape[2], int)):
        raise ModelError(
            f"{file} is not a person detector that runs here: the height and width of frames must be fixed"
        )
    if len(outputs["boxes"].shape) != 3 or outputs["boxes"].shape[2] != 4 or len(outputs["scores"].shape) != 2:
        raise ModelError(
            f"{file} is not a person detector: boxes must be (B, N, 4) and scores (B, N), "
            f"not {outputs['boxes'].shape} and {outputs['scores'].shape}"
        )
    return shape[1], shape[2]


def _threshold(file: Path, meta: dict[str, str]) -> float:
    """The score threshold in the model's metadata; raises ModelError where the metadata are another model's."""
    if meta.get("streampose.kind") != _KIND:
        raise ModelError(
            f"{file} is not a person detector: its metadata say streampose.kind = "
            f"{json.dumps(meta.get('streampose.kind'))}, not {json.dumps(_KIND)}"
        )
    try:
        threshold = float(meta["streampose.score_threshold"])
    except (KeyError, ValueError) as error:
        raise ModelError(f"{file} is not a person detector: its metadata hold no streampose.score_threshold") from error
    if not 0 <= threshold <= 1:
        raise ModelError(f"{file}: streampose.score_threshold must be 0..1, not {threshold}")
    return threshold
