"""int8 for ONNX Runtime on a CPU: the encoder's convolutions, calibrated on people of the bundled clip.

Static quantisation in QDQ form: weights int8 a channel, activations uint8 a tensor, ranges by minimum and maximum. The
first convolution block stays float32 (its filters amplify rounding most), and so does the fuser: its convolutions are a
third of its time, and it computes sampling positions.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
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
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(job.source / encoder), str(prepared), skip_symbolic_shape=True)
        convolutions = [node.name for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
        quantize_static(
            str(prepared), str(job.out / encoder), _Crops(people_crops(job.manifest.input_size)),
            quant_format=QuantFormat.QDQ, calibrate_method=CalibrationMethod.MinMax, op_types_to_quantize=OPERATORS,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True,
            nodes_to_exclude=convolutions[:FLOAT_CONVOLUTIONS],
        )  # fmt: skip
    shutil.copyfile(job.source / fuser, job.out / fuser)
    return Made(versions_of(("onnxruntime",)))


def people_crops(size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Crops, (H, W, 3) uint8 BGR, of the people that the bundled detector finds in the calibration frames."""
    frames = demo_frames(1 + CALIBRATION_FRAMES[-1])
    detector = PersonDetector()
    return [
        cut(frames[index], crop_affine(box, size), size)
        for index in CALIBRATION_FRAMES
        for box in detector.detect(frames[index])[0]
    ]


class _Crops(CalibrationDataReader):  # type: ignore[misc]
    """One crop after the other, as ONNX Runtime's calibration asks for them."""

    def __init__(self, crops: Sequence[NDArray[np.uint8]]) -> None:
        self._rest: Iterator[NDArray[np.uint8]] = iter(crops)

    def get_next(self) -> dict[str, Any] | None:
        crop = next(self._rest, None)
        return None if crop is None else {"crops": crop[None]}


@contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's quantisation logs advice to the root logger."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
