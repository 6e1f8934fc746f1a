"""The pose network on TensorRT, or TensorRT for RTX: crops, features and windows stay on the GPU; without torch.

A frame is uploaded once and its crops are cut on the device. Features lie in slots of device memory that `encode` hands
out and that are free again when nobody refers to them. What a batch of n people costs the host is one launch of a CUDA
graph, recorded the first time that n people come.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streampose.engines import cuda
from streampose.engines.crops import Crops
from streampose.engines.manifest import Manifest, graph_files, rebuilding
from streampose.errors import MissingExtraError, ModelError
from streampose.geometry import invert

if TYPE_CHECKING:
    from streampose.engines import Feature

log = logging.getLogger(__name__)

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx", "torch-tensorrt": "tensorrt"}
KERNELS = "crops.ptx"
"""The kernels of `streampose.plugins.crops`, compiled when the bundle was built."""
_BLOCK = (32, 8, 1)
_COPY_THREADS = 256
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int


def import_tensorrt(target: str) -> Any:
    """TensorRT's Python module for a target.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(MODULES[target])
    except ModuleNotFoundError:
        raise MissingExtraError(MODULES[target], target) from None


def make_logger(trt: Any) -> Any:
    """What TensorRT says, in our log at the level debug: what stops a run or a build is raised besides."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:  # noqa: ARG002
            log.debug("TensorRT: %s", message)

    return Logger()


def open_tensorrt(folder: Path, manifest: Manifest) -> TensorrtEngine:
    """The engine of a bundle for "tensorrt", "tensorrt-rtx" or "torch-tensorrt".

    Raises:
        MissingExtraError: packages are missing.
        ModelError: there is no GPU, it is of another architecture, or TensorRT is of another version.
    """
    trt = import_tensorrt(manifest.target)
    rebuild = rebuilding(manifest)
    built_with = manifest.versions.get(trt.__name__)
    if built_with != trt.__version__:
        raise ModelError(f"{folder} was built with {trt.__name__} {built_with}, here is {trt.__version__}; {rebuild}")
    here = cuda.architecture()
    if manifest.gpu_architecture not in ("", here):
        raise ModelError(f"{folder} is for the GPU architecture {manifest.gpu_architecture}, here is {here}; {rebuild}")
    return TensorrtEngine(trt, folder, manifest)


class TensorrtEngine:
    """See `streampose.engines.Engine`. Used by one thread at a time."""

    def __init__(self, trt: Any, folder: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self._stream = cuda.Stream()
        logger = make_logger(trt)
        runtime = trt.Runtime(logger)
        encoder, fuser = graph_files("pose", manifest.target)
        self._encoder = _Network(trt, runtime, folder / encoder, manifest.max_batch)
        self._fuser = _Network(trt, runtime, folder / fuser, manifest.max_batch)
        code = (folder / KERNELS).read_bytes()
        self._cut = cuda.Kernel(
            code, "cut_crops", (_POINTER, _INT, _INT, _POINTER, _POINTER, _INT, _INT, _INT)
        )  # fmt: skip
        self._move = cuda.Kernel(code, "move_blocks", (_POINTER, _POINTER, _INT, _INT))
        self._slots = _Slots(self._encoder.outputs["features"].item_bytes)
        self._frame = _FrameBuffer()
        batch, frames = manifest.max_batch, 1 + len(manifest.offsets)
        self._inverses = _Mirror((batch, 2, 3), np.float32)
        self._from, self._to = (_Mirror((batch * frames,), np.uint64) for _ in range(2))
        self._transforms = _Mirror((batch, frames, 2, 3), np.float32, self._fuser.inputs["transforms"].memory)
        self._results = {
            name: cuda.PinnedArray((batch, *tensor.shape), tensor.dtype) for name, tensor in self._fuser.outputs.items()
        }
        self._graphs: dict[tuple[str, int], cuda.Graph] = {}

    def encode(self, crops: Sequence[Crops]) -> list[Feature]:
        cuda.make_current()
        features: list[Feature] = []
        for part in crops:
            self._frame.upload(part.image, self._stream)
            for start in range(0, len(part.affines), self.manifest.max_batch):
                features.extend(self._encode(part, part.affines[start : start + self.manifest.max_batch]))
        return features

    def fuse(self, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._fuse("keypoints", windows, transforms)

    def heatmaps(self, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._fuse("heatmaps", windows, transforms)

    def read(self, feature: Feature) -> NDArray[np.float32]:
        cuda.make_current()
        tensor = self._encoder.outputs["features"]
        host = cuda.PinnedArray(tensor.shape, tensor.dtype)
        self._stream.to_host(host.address, _address(feature), tensor.item_bytes)
        self._stream.wait()
        return host.array.astype(np.float32)

    def _encode(self, part: Crops, affines: NDArray[np.float32]) -> list[Feature]:
        """Cut and encode some crops of the picture that was uploaded; nothing here waits for the device's results."""
        count = len(affines)
        height, width = self.manifest.input_size
        crops = self._encoder.inputs["crops"].memory
        self._stream.wait()  # what is copied from is free to be written
        self._inverses.host[:count] = invert(affines)
        self._inverses.upload(count, self._stream)
        grid = (-(-width // _BLOCK[0]), -(-height // _BLOCK[1]), count)
        picture = (self._frame.address, *part.image.shape[:2])
        arguments = (*picture, self._inverses.address, crops.address, count, height, width)
        self._stream.launch(self._cut, grid, _BLOCK, arguments)
        tensor = self._encoder.outputs["features"]
        features = [self._slots.take() for _ in range(count)]
        self._from.host[:count] = tensor.memory.address + np.arange(count, dtype=np.uint64) * tensor.item_bytes
        self._to.host[:count] = [feature.address for feature in features]
        self._run(("encode", count), lambda: self._put_encode(count))
        return list(features)

    def _put_encode(self, count: int) -> None:
        self._encoder.put(count, self._stream)
        self._put_moves(count)

    def _fuse(
        self, output: str, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        frames = 1 + len(self.manifest.offsets)
        if transforms.shape != (len(windows), frames, 2, 3) or any(len(window) != frames for window in windows):
            expected = (len(windows), frames, 2, 3)
            raise ValueError(f"transforms of {len(windows)} windows are {expected}, not {transforms.shape}")
        cuda.make_current()
        parts = [np.zeros((0, *self._fuser.outputs[output].shape), np.float32)]
        for start in range(0, len(windows), self.manifest.max_batch):
            part = slice(start, start + self.manifest.max_batch)
            parts.append(self._fuse_batch(output, windows[part], transforms[part]))
        return np.concatenate(parts)

    def _fuse_batch(
        self, output: str, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        count = len(windows)
        addresses = [_address(feature) for window in windows for feature in window]
        target, item = self._fuser.inputs["features"].memory.address, self._slots.item_bytes
        self._stream.wait()
        self._from.host[: len(addresses)] = addresses
        self._to.host[: len(addresses)] = target + np.arange(len(addresses), dtype=np.uint64) * item
        self._transforms.host[:count] = transforms
        self._run(("fuse", count), lambda: self._put_fuse(count, len(addresses)))
        self._stream.wait()
        return np.asarray(self._results[output].array[:count], np.float32).copy()

    def _put_fuse(self, count: int, blocks: int) -> None:
        self._put_moves(blocks)
        self._transforms.upload(count, self._stream)
        self._fuser.put(count, self._stream)
        for name, tensor in self._fuser.outputs.items():
            host = self._results[name]
            self._stream.to_host(host.address, tensor.memory.address, count * tensor.item_bytes)

    def _put_moves(self, blocks: int) -> None:
        self._from.upload(blocks, self._stream)
        self._to.upload(blocks, self._stream)
        words = self._slots.item_bytes // 4
        arguments = (self._from.address, self._to.address, words, blocks)
        self._stream.launch(self._move, (-(-words // _COPY_THREADS), blocks, 1), (_COPY_THREADS, 1, 1), arguments)

    def _run(self, name: tuple[str, int], put: Callable[[], None]) -> None:
        """Run work whose addresses are always the same: as it is the first time, as a recorded graph from then on."""
        graph = self._graphs.get(name)
        if graph is not None:
            graph.run()
            return
        put()  # TensorRT settles shapes and memory in a run that is not recorded
        self._stream.wait()
        with self._stream.capture() as recorded:
            put()
        self._graphs[name] = recorded()


@dataclass(slots=True)
class _Tensor:
    """One input or output of a network, for its largest batch, on the device."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    memory: cuda.DeviceMemory

    @property
    def item_bytes(self) -> int:
        """Bytes of one of the batch."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class _Network:
    """One TensorRT engine with its tensors in place."""

    def __init__(self, trt: Any, runtime: Any, file: Path, max_batch: int) -> None:
        self._engine = runtime.deserialize_cuda_engine(file.read_bytes())
        if self._engine is None:
            raise ModelError(f"{file} cannot be loaded by {trt.__name__} {trt.__version__}")
        self._contexts: dict[int, Any] = {}  # one a batch size: a recorded graph is bound to its context's shapes
        self.inputs: dict[str, _Tensor] = {}
        self.outputs: dict[str, _Tensor] = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            shape = tuple(self._engine.get_tensor_shape(name))[1:]
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            tensor = _Tensor(shape, dtype, cuda.DeviceMemory(max_batch * int(np.prod(shape)) * dtype.itemsize))
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs)[name] = tensor

    def put(self, count: int, stream: cuda.Stream) -> None:
        """Put a run of a batch into a stream."""
        if count not in self._contexts:
            self._contexts[count] = self._prepare(count)
        if not self._contexts[count].execute_async_v3(stream.handle):
            raise ModelError("TensorRT refused to run the engine; its log says why (streampose --debug)")

    def _prepare(self, count: int) -> Any:
        context = self._engine.create_execution_context()
        for name, tensor in (self.inputs | self.outputs).items():
            context.set_tensor_address(name, tensor.memory.address)
            if name in self.inputs:
                context.set_input_shape(name, (count, *tensor.shape))
        return context


class _Mirror:
    """An array on the host and on the device: written here, uploaded in parts."""

    def __init__(self, shape: tuple[int, ...], dtype: type, memory: cuda.DeviceMemory | None = None) -> None:
        self._pinned = cuda.PinnedArray(shape, dtype)
        self._item_bytes = self._pinned.array.nbytes // shape[0]
        self._memory = memory or cuda.DeviceMemory(self._pinned.array.nbytes)
        self.host = self._pinned.array
        self.address = self._memory.address

    def upload(self, count: int, stream: cuda.Stream) -> None:
        stream.to_device(self.address, self._pinned.address, count * self._item_bytes)


class _FrameBuffer:
    """The picture that crops are cut from, on the device; as large as the largest so far."""

    def __init__(self) -> None:
        self._pinned: cuda.PinnedArray | None = None
        self._memory: cuda.DeviceMemory | None = None
        self.address = 0

    def upload(self, image: NDArray[np.uint8], stream: cuda.Stream) -> None:
        if self._pinned is None or self._memory is None or self._memory.size < image.nbytes:
            stream.wait()
            self._pinned = cuda.PinnedArray((image.nbytes,), np.uint8)
            self._memory = cuda.DeviceMemory(image.nbytes)
            self.address = self._memory.address
        stream.wait()  # the picture before it has been copied
        self._pinned.array[: image.nbytes] = image.reshape(-1)
        stream.to_device(self.address, self._pinned.address, image.nbytes)


class _DeviceFeature:
    """One crop's features in a slot, which is free again when this is gone."""

    __slots__ = ("_slots", "address")

    def __init__(self, slots: _Slots, address: int) -> None:
        self._slots = slots
        self.address = address

    def __del__(self) -> None:
        self._slots.free.append(self.address)


class _Slots:
    """Device memory in slots of one size, taken and given back; grows by blocks and never shrinks."""

    BLOCK = 64

    def __init__(self, item_bytes: int) -> None:
        self.item_bytes = item_bytes
        self.free: list[int] = []
        self._blocks: list[cuda.DeviceMemory] = []

    def take(self) -> _DeviceFeature:
        if not self.free:
            block = cuda.DeviceMemory(self.BLOCK * self.item_bytes)
            self._blocks.append(block)
            self.free.extend(block.address + index * self.item_bytes for index in range(self.BLOCK))
        return _DeviceFeature(self, self.free.pop())


def _address(feature: Feature) -> int:
    assert isinstance(feature, _DeviceFeature)
    return feature.address
