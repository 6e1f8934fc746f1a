"""The pose network on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from streampose.engines.crops import Crops, cut_all
from streampose.engines.manifest import GRAPHS, Manifest
from streampose.errors import ModelError

if TYPE_CHECKING:
    from streampose.engines import Feature

CHUNK = 4
"""People a run: on a CPU, eight at once cost half as much again a person, since their maps no longer fit its cache."""
ENCODER, FUSER = GRAPHS["pose"]
FEATURE_STEP = "streampose.feature_step"
"""Property of an encoder in int8, whose features are uint8: what one is worth."""
NAMES = [["crops", "features"], ["features", "transforms", "keypoints", "heatmaps"]]


ON_CPU: tuple[Any, ...] = ("CPUExecutionProvider",)
"""ONNX Runtime's providers, as `open_session` takes them."""


def open_session(file: Path | bytes, threads: int, providers: Sequence[Any] = ON_CPU) -> ort.InferenceSession:
    """A session, of a file or a model in memory, whose threads sleep while it is idle: several spinning ones slow each
    other down sixfold.

    Raises:
        ModelError: ONNX Runtime cannot load the file.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        model = file if isinstance(file, bytes) else str(file)
        return ort.InferenceSession(model, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime has a class of its own for every kind of damage
        name = "a model in memory" if isinstance(file, bytes) else file
        raise ModelError(f"{name} cannot be loaded by ONNX Runtime {ort.__version__}") from error


class OnnxRuntimeEngine:
    """See `streampose.engines.Engine`."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int = 2, providers: Sequence[Any] = ON_CPU) -> None:
        self.manifest = manifest
        self._encoder = open_session(folder / ENCODER, threads, providers)
        self._fuser = open_session(folder / FUSER, threads, providers)
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
        properties = self._encoder.get_modelmeta().custom_metadata_map
        self._feature_step = np.float32(properties.get(FEATURE_STEP, 1))
        self._shapes = {node.name: tuple(node.shape[1:]) for node in self._fuser.get_outputs()}

    def encode(self, crops: Sequence[Crops]) -> list[Feature]:
        pixels = cut_all(crops, self.manifest.input_size)
        features: list[Feature] = []
        for part in _chunks(len(pixels)):
            features.extend(self._run(self._encoder, "features", {"crops": pixels[part]}))
        return features

    def fuse(self, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._fuse("keypoints", windows, transforms)

    def heatmaps(self, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._fuse("heatmaps", windows, transforms)

    def read(self, feature: Feature) -> NDArray[np.float32]:
        assert isinstance(feature, np.ndarray)
        return feature if feature.dtype == np.float32 else feature * self._feature_step

    def _fuse(
        self, output: str, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        self._check_windows(windows, transforms)
        parts = [np.zeros((0, *self._shapes[output]), np.float32)]
        for part in _chunks(len(windows)):
            features = np.stack([np.asarray(feature) for window in windows[part] for feature in window])
            features = features.reshape(-1, len(windows[0]), *features.shape[1:])
            parts.append(self._run(self._fuser, output, {"features": features, "transforms": transforms[part]}))
        return np.concatenate(parts)

    def _check_windows(self, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]) -> None:
        expected = (len(windows), 1 + len(self.manifest.offsets), 2, 2, 3)
        if transforms.shape != expected or any(len(window) != expected[1] for window in windows):
            raise ValueError(f"transforms of {len(windows)} windows are {expected}, not {transforms.shape}")

    def _run(self, session: ort.InferenceSession, output: str, feed: dict[str, NDArray[Any]]) -> NDArray[Any]:
        try:
            return np.asarray(session.run([output], feed)[0])
        except Exception as error:  # ONNX Runtime has a class of its own for every kind of failure
            raise ModelError(f"{self.manifest.name}: ONNX Runtime failed: {error}") from error


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]
