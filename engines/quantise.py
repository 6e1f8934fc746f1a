"""int8 after training, for ONNX Runtime on a CPU: the encoder's convolutions, calibrated on people of the bundled clip.
What is trained in int8 needs none of this, see `streampose.engines.export_int8`.

Static quantisation in QDQ form: weights int8 a channel, activations uint8 a tensor, ranges by minimum and maximum. The
first convolution block stays float32 (its filters amplify rounding most), and so does the fuser: its convolutions are a
third of its time, and it computes sampling positions.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)  # fmt: skip
from onnxruntime.quantization.shape_inference import quant_pre_process

from streampose.engines.bundle import versions_of
from streampose.engines.compile import Job, Made
from streampose.engines.manifest import graph_files
from streampose.engines.parity import demo_frames
from streampose.geometry import crop_affine, cut
from streampose.people import PersonDetector

FLOAT_CONVOLUTIONS = 3
"""How many convolutions at the start stay float32."""
CALIBRATION_FRAMES = range(50, 100, 5)
"""Of the bundled clip; the windows of the gate end before."""
OPERATORS = ("Conv", "Clip", "Relu", "Add", "Resize")


def compile_graphs(job: Job) -> Made:
    """Write the quantised encoder and the fuser as it is; see `streampose.engines.compile`."""
    encoder, fuser = graph_files("pose", "onnxruntime")
    crops = people_crops(job.manifest.input_size)
    quantise_file(job.source / encoder, job.out / encoder, "crops", crops, first_convolutions)
    shutil.copyfile(job.source / fuser, job.out / fuser)
    return Made(versions_of(("onnxruntime",)))


def quantise_file(
    source: Path, out: Path, name: str, pictures: Sequence[NDArray[np.uint8]], left_out: Callable[[Path], list[str]]
) -> None:
    """Write a graph with its convolutions quantised.

    Args:
        source: the graph in float32.
        out: the file to write.
        name: of its input.
        pictures: typical ones, of the shape that it takes without the batch.
        left_out: of the graph's file, once it is prepared: names of the nodes that stay float32.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared), str(out), _Pictures(name, pictures),
            quant_format=QuantFormat.QDQ, calibrate_method=CalibrationMethod.MinMax, op_types_to_quantize=OPERATORS,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True,
            nodes_to_exclude=left_out(prepared),
        )  # fmt: skip


def first_convolutions(file: Path) -> list[str]:
    """Names of a graph's first convolutions."""
    return [node.name for node in onnx.load(file).graph.node if node.op_type == "Conv"][:FLOAT_CONVOLUTIONS]


def people_crops(size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Crops, (H, W, 3) uint8 BGR, of the people that the bundled detector finds in the calibration frames."""
    frames = demo_frames(1 + CALIBRATION_FRAMES[-1])
    detector = PersonDetector()
    return [
        cut(frames[index], crop_affine(box, size), size)
        for index in CALIBRATION_FRAMES
        for box in detector.detect(frames[index])[0]
    ]


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    """One picture after the other, as ONNX Runtime's calibration asks for them."""

    def __init__(self, name: str, pictures: Sequence[NDArray[np.uint8]]) -> None:
        self._name = name
        self._rest: Iterator[NDArray[np.uint8]] = iter(pictures)

    def get_next(self) -> dict[str, Any] | None:
        picture = next(self._rest, None)
        return None if picture is None else {self._name: picture[None]}


@contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's quantisation logs advice to the root logger."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
