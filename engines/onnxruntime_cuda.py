"""The pose network on ONNX Runtime's CUDA provider: features and windows stay on the GPU.

The provider comes with the package onnxruntime-gpu, which stands in the place of onnxruntime. What keeps the features
apart, and brings them together in windows, is `streampose.engines.cuda`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from streampose.engines import cuda
from streampose.engines.crops import Crops, cut_all
from streampose.engines.manifest import Manifest
from streampose.engines.onnxruntime import OnnxRuntimeEngine
from streampose.engines.staging import DeviceFeature, Slots
from streampose.errors import ModelError

if TYPE_CHECKING:
    from streampose.engines import Feature

PROVIDER = "CUDAExecutionProvider"
ON_CUDA = ((PROVIDER, {"use_tf32": "0"}), "CPUExecutionProvider")
"""Without tf32, whose ten bits are not float32; the CPU for operators that the provider lacks."""
DEVICE = "cuda"
BATCH = 16


def is_offered() -> bool:
    """Whether this ONNX Runtime was built with the provider; that is no promise that it starts."""
    return PROVIDER in ort.get_available_providers()


def open_onnxruntime_cuda(folder: Path, manifest: Manifest, threads: int) -> OnnxCudaEngine:
    """The engine of a bundle for "onnxruntime" in fp32.

    Raises:
        ModelError: ONNX Runtime has no CUDA provider, or it does not start: nothing is left to the CPU in silence.
        MissingExtraError: cuda-python is not installed.
    """
    if manifest.precision != "fp32":
        raise ModelError(f"{folder} is in {manifest.precision}, for CPUs; ONNX Runtime's CUDA provider runs fp32")
    if not is_offered():
        raise ModelError(
            f"this ONNX Runtime {ort.__version__} has no CUDA provider; "
            "get one with: pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
        )
    cuda.driver()
    return OnnxCudaEngine(folder, manifest, threads, ON_CUDA)


class OnnxCudaEngine(OnnxRuntimeEngine):
    """See `streampose.engines.Engine`. Used by one thread at a time."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int, providers: Sequence[Any]) -> None:
        super().__init__(folder, manifest, threads, providers)
        wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
        if any(wanted not in session.get_providers() for session in (self._encoder, self._fuser)):
            raise ModelError(f"ONNX Runtime {ort.__version__} cannot start its {wanted} here")
        self._feature_shape = tuple(self._encoder.get_outputs()[0].shape[1:])
        self._stream = cuda.Stream()
        self._slots = Slots(int(np.prod(self._feature_shape)) * 4)
        item = self._slots.item_bytes
        self._encoded = cuda.DeviceMemory(BATCH * item)
        self._windows = cuda.DeviceMemory(BATCH * (1 + len(manifest.offsets)) * item)

    def encode(self, crops: Sequence[Crops]) -> list[Feature]:
        cuda.make_current()
        pixels = cut_all(crops, self.manifest.input_size)
        features: list[Feature] = []
        for start in range(0, len(pixels), BATCH):
            part = pixels[start : start + BATCH]
            binding = self._encoder.io_binding()
            binding.bind_cpu_input("crops", part)
            shape = (len(part), *self._feature_shape)
            binding.bind_output("features", DEVICE, 0, np.float32, shape, self._encoded.address)
            self._run_bound(self._encoder, binding)
            taken = [self._slots.take() for _ in part]
            for index, feature in enumerate(taken):
                item = self._slots.item_bytes
                self._stream.copy(feature.address, self._encoded.address + index * item, item)
            self._stream.wait()
            features.extend(taken)
        return features

    def read(self, feature: Feature) -> NDArray[np.float32]:
        cuda.make_current()
        host = cuda.PinnedArray(self._feature_shape, np.float32)
        self._stream.to_host(host.address, _address(feature), self._slots.item_bytes)
        self._stream.wait()
        return host.array.copy()

    def _fuse(
        self, output: str, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        self._check_windows(windows, transforms)
        cuda.make_current()
        parts = [np.zeros((0, *self._shapes[output]), np.float32)]
        for start in range(0, len(windows), BATCH):
            part = slice(start, start + BATCH)
            parts.append(self._fuse_batch(output, windows[part], transforms[part]))
        return np.concatenate(parts)

    def _fuse_batch(
        self, output: str, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        item = self._slots.item_bytes
        for index, feature in enumerate(feature for window in windows for feature in window):
            self._stream.copy(self._windows.address + index * item, _address(feature), item)
        self._stream.wait()
        binding = self._fuser.io_binding()
        shape = (len(windows), len(windows[0]), *self._feature_shape)
        binding.bind_input("features", DEVICE, 0, np.float32, shape, self._windows.address)
        binding.bind_cpu_input("transforms", np.ascontiguousarray(transforms))
        binding.bind_output(output, "cpu")
        self._run_bound(self._fuser, binding)
        return np.asarray(binding.copy_outputs_to_cpu()[0], np.float32)

    def _run_bound(self, session: ort.InferenceSession, binding: ort.IOBinding) -> None:
        try:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:  # as in OnnxRuntimeEngine
            raise ModelError(f"{self.manifest.name}: ONNX Runtime failed: {error}") from error


def _address(feature: Feature) -> int:
    assert isinstance(feature, DeviceFeature)
    return feature.address
