"""The teachers, as the pack describes them: YOLOX-nano for boxes, MoveNet Thunder for keypoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from streampose.engines.onnxruntime import open_session
from streampose.errors import UsageError
from streampose.geometry import crop_affine, cut, invert, transform
from streampose.people import letterbox, suppress
from streampose.train.maps import MAP_CROP_SIZE

YOLOX_SIZE = (416, 416)
YOLOX_STRIDES = (8, 16, 32)
THUNDER_SIZE = MAP_CROP_SIZE
THUNDER_MAPS = "StatefulPartitionedCall/truediv_3:0"
"""Inside Thunder's graph: how likely each cell holds each joint of the person in the middle, (1, 64, 64, 17)."""
LOWEST_SCORE = 0.05


class YoloxNano:
    """YOLOX-nano's people; see the pack's `teachers/README.md` for what goes in and comes out."""

    threshold = 0.4

    def __init__(self, folder: Path, threads: int = 2) -> None:
        self._session = open_session(_file(folder, "yolox_nano.onnx"), threads)
        cells = []
        for stride in YOLOX_STRIDES:
            y, x = np.indices((YOLOX_SIZE[0] // stride, YOLOX_SIZE[1] // stride))
            cells.append(np.stack([x.ravel(), y.ravel(), np.full(x.size, stride)], axis=1))
        self._cells = np.concatenate(cells).astype(np.float32)

    def detect(
        self, image: NDArray[np.uint8], threshold: float = LOWEST_SCORE
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Boxes (N, 4) xyxy in the picture's pixels and scores (N,) of its people."""
        board, ratio = letterbox(image, YOLOX_SIZE)
        raw = self._session.run(None, {"images": board.transpose(2, 0, 1)[None].astype(np.float32)})[0][0]
        scores = raw[:, 4] * raw[:, 5]
        keep = scores >= threshold
        raw, cells, scores = raw[keep], self._cells[keep], scores[keep]
        middle = (raw[:, :2] + cells[:, :2]) * cells[:, 2:]
        half = np.exp(raw[:, 2:4]) * cells[:, 2:] / 2
        boxes = (np.concatenate([middle - half, middle + half], axis=1) / ratio).astype(np.float32)
        kept = suppress(boxes, scores, iou=0.45)
        return boxes[kept], scores[kept]


class Thunder:
    """MoveNet Thunder's keypoints of one person at a given box.

    Args:
        folder: that holds `movenet_thunder.onnx`.
        maps: whether `look` answers the maps, too; costs a little.
    """

    def __init__(self, folder: Path, threads: int = 2, maps: bool = False) -> None:
        file = _file(folder, "movenet_thunder.onnx")
        if maps:
            graph = onnx.load(file)
            graph.graph.output.append(onnx.helper.make_tensor_value_info(THUNDER_MAPS, onnx.TensorProto.FLOAT, None))
            self._session = open_session(graph.SerializeToString(), threads)
        else:
            self._session = open_session(file, threads)

    def keypoints(self, image: NDArray[np.uint8], box: NDArray[np.float32]) -> NDArray[np.float32]:
        """(17, 3) x, y in the picture's pixels and score, of the person in `box` (4,) xyxy."""
        affine = crop_affine(box, THUNDER_SIZE)
        keypoints = self.look(cut(image, affine, THUNDER_SIZE))[0]
        return np.column_stack([transform(keypoints[:, :2], invert(affine)), keypoints[:, 2]]).astype(np.float32)

    def look(self, crop: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Keypoints (17, 3), x, y in crop pixels and score, of the person in the middle of a crop (256, 256, 3) uint8
        BGR; and, where asked for, the maps (17, 64, 64) >= 0 that they come from, at a quarter of the resolution."""
        answer = self._session.run(None, {"input:0": crop[None, :, :, ::-1].astype(np.int32)})
        y, x, score = answer[0][0, 0].T
        keypoints = np.stack([x * THUNDER_SIZE[1], y * THUNDER_SIZE[0], score], axis=1).astype(np.float32)
        return keypoints, answer[1][0].transpose(2, 0, 1) if len(answer) > 1 else None


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise UsageError(f"{folder / name} is missing; give the folder that holds the teachers (docs/training.md)")
    return folder / name
