"""The pose network on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from numpy.typing import NDArray

from streampose.engines.manifest import GRAPHS, Manifest
from streampose.errors import ModelError

STRIDE = 4
CHUNK = 4
"""People a run: on a CPU, eight at once cost half as much again a person, since their maps no longer fit its cache."""
ENCODER, FUSER = GRAPHS["pose"]
NAMES = [["crops", "features"], ["features", "transforms", "keypoints"]]


def open_session(file: Path, threads: int) -> ort.InferenceSession:
    """A session on the CPU whose threads sleep while it is idle: several spinning ones slow each other down sixfold.

    Raises:
        ModelError: ONNX Runtime cannot load the file.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a class of its own for every kind of damage
        raise ModelError(f"{file} cannot be loaded by ONNX Runtime {ort.__version__}") from error


class OnnxRuntimeEngine:
    """See `streampose.engines.Engine`."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int = 2) -> None:
        self.manifest = manifest
        self._encoder = open_session(folder / ENCODER, threads)
        self._fuser = open_session(folder / FUSER, threads)
        sessions = (self._encoder, self._fuser)
        names = [[node.name for node in (*session.get_inputs(), *session.get_outputs())] for session in sessions]
        if names != NAMES:
            raise ModelError(f"{folder}: {ENCODER} and {FUSER} are no encoder and fuser of streampose")
        taken = tuple(self._encoder.get_inputs()[0].shape[1:])
        if taken != (*manifest.input_size, 3):
            raise ModelError(f"{folder}: {ENCODER} takes crops of {taken}, the manifest says {manifest.input_size}")
        windows = tuple(self._fuser.get_inputs()[0].shape[1:])
        expected = (1 + len(manifest.offsets), *self._encoder.get_outputs()[0].shape[1:])
        if windows != expected:
            raise ModelError(f"{folder}: {FUSER} takes windows of {windows}, {ENCODER} and the offsets make {expected}")
        self._channels = int(self._encoder.get_outputs()[0].shape[1])
        self._joints = int(self._fuser.get_outputs()[0].shape[1])

    def encode(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        height, width = self.manifest.input_size
        if crops.dtype != np.uint8 or crops.shape[1:] != (height, width, 3):
            raise ValueError(f"crops are uint8 (P, {height}, {width}, 3), not {crops.dtype} {crops.shape}")
        if not len(crops):
            return np.zeros((0, self._channels, height // STRIDE, width // STRIDE), np.float32)
        parts = [self._encoder.run(["features"], {"crops": crops[part]})[0] for part in _chunks(len(crops))]
        return np.asarray(parts[0] if len(parts) == 1 else np.concatenate(parts), np.float32)

    def fuse(self, features: NDArray[np.float32], transforms: NDArray[np.float32]) -> NDArray[np.float32]:
        if transforms.shape != (*features.shape[:2], 2, 3):
            raise ValueError(f"transforms are {(*features.shape[:2], 2, 3)}, not {transforms.shape}")
        if not len(features):
            return np.zeros((0, self._joints, 3), np.float32)
        parts = [
            self._fuser.run(["keypoints"], {"features": features[part], "transforms": transforms[part]})[0]
            for part in _chunks(len(features))
        ]
        return np.concatenate(parts)


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]
