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
from streampose.engines.staging import (
    DeviceFeature,
    EncodePlace,
    FusePlace,
    Moves,
    Picture,
    Ring,
    Running,
    Slots,
)  # fmt: skip
from streampose.errors import MissingExtraError, ModelError
from streampose.geometry import invert

if TYPE_CHECKING:
    from streampose.engines import Feature

log = logging.getLogger(__name__)

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx", "torch-tensorrt": "tensorrt"}
KERNELS = "crops.ptx"
"""The kernels of `streampose.plugins.crops`, compiled when the bundle was built."""
IN_FLIGHT = 2
"""Batches under way: one that the device computes, one that the host prepares."""
PICTURES = 8
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
    rebuild = rebuilding(manifest, folder)
    built_with = manifest.versions.get(trt.__name__)
    if built_with != trt.__version__:
        raise ModelError(f"{folder} was built with {trt.__name__} {built_with}, here is {trt.__version__}; {rebuild}")
    here = cuda.architecture()
    if manifest.gpu_architecture not in ("", here):
        raise ModelError(f"{folder} is for the GPU architecture {manifest.gpu_architecture}, here is {here}; {rebuild}")
    return TensorrtEngine(trt, folder, manifest)


class TensorrtEngine:
    """See `streampose.engines.Engine` and `Overlapping`. Used by one thread at a time.

    Two batches may be under way. All work of the device is in one stream, in order; pictures are uploaded beside it in
    another one. What the host writes for a batch, and where its results come, is there twice.
    """

    def __init__(self, trt: Any, folder: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self._stream, self._uploads = cuda.Stream(), cuda.Stream()
        logger = make_logger(trt)
        runtime = trt.Runtime(logger)
        encoder, fuser = graph_files("pose", manifest.target)
        batch, frames = manifest.max_batch, 1 + len(manifest.offsets)
        self._encoder = _Network(trt, runtime, folder / encoder, batch, ("features",))
        self._fuser = _Network(trt, runtime, folder / fuser, batch, ("keypoints", "heatmaps"))
        code = (folder / KERNELS).read_bytes()
        self._cut = cuda.Kernel(
            code, "cut_crops", (_POINTER, _INT, _INT, _POINTER, _POINTER, _INT, _INT, _INT)
        )  # fmt: skip
        self._move = cuda.Kernel(code, "move_blocks", (_POINTER, _POINTER, _INT, _INT))
        self._slots = Slots(self._encoder.outputs["features"].item_bytes)
        self._pictures = Ring(Picture, PICTURES)
        self._encode_places = Ring(lambda: EncodePlace(batch), IN_FLIGHT)
        transforms = self._fuser.inputs["transforms"].memory
        self._fuse_places = Ring(lambda: FusePlace(batch, frames, transforms, self._fuser.outputs), IN_FLIGHT)
        self._graphs: dict[tuple[object, ...], cuda.Graph] = {}

    def encode(self, crops: Sequence[Crops]) -> list[Feature]:
        """As in `Engine`; people of all pictures are batched. Nothing here waits for the device's results."""
        cuda.make_current()
        features: list[Feature] = []
        place, filled = self._encode_places.take(), 0
        place.free.wait()
        for part in crops:
            picture = self._pictures.take()
            picture.upload(part.image, self._uploads)
            self._stream.follow(picture.there)
            start = 0
            while start < len(part.affines):
                affines = part.affines[start : start + self.manifest.max_batch - filled]
                self._put_cut(picture, part.image.shape[:2], affines, place, filled)
                start, filled = start + len(affines), filled + len(affines)
                if filled == self.manifest.max_batch:
                    features.extend(self._encode(place, filled))
                    place, filled = self._encode_places.take(), 0
                    place.free.wait()
            self._stream.mark(picture.used)
        return [*features, *self._encode(place, filled)] if filled else features

    def fuse(self, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._begin("keypoints", windows, transforms)()

    def begin_fuse(
        self, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]
    ) -> Callable[[], NDArray[np.float32]]:
        return self._begin("keypoints", windows, transforms)

    def heatmaps(self, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._begin("heatmaps", windows, transforms)()

    def read(self, feature: Feature) -> NDArray[np.float32]:
        cuda.make_current()
        tensor = self._encoder.outputs["features"]
        host = cuda.PinnedArray(tensor.shape, tensor.dtype)
        self._stream.to_host(host.address, _address(feature), tensor.item_bytes)
        self._stream.wait()
        return host.array.astype(np.float32)

    def _put_cut(
        self, picture: Picture, size: tuple[int, ...], affines: NDArray[np.float32], place: EncodePlace, first: int
    ) -> None:
        """Put the cutting of some crops into the stream; they become the encoder's inputs from number `first` on."""
        count = len(affines)
        height, width = self.manifest.input_size
        crops = self._encoder.inputs["crops"]
        place.inverses.host[first : first + count] = invert(affines)
        inverses = place.inverses.upload(count, self._stream, first)
        grid = (-(-width // _BLOCK[0]), -(-height // _BLOCK[1]), count)
        target = crops.memory.address + first * crops.item_bytes
        arguments = (picture.address, *size, inverses, target, count, height, width)
        self._stream.launch(self._cut, grid, _BLOCK, arguments)

    def _encode(self, place: EncodePlace, count: int) -> list[Feature]:
        """Put the encoder's run of the crops that were cut into the stream."""
        tensor = self._encoder.outputs["features"]
        features = [self._slots.take() for _ in range(count)]
        sources = tensor.memory.address + np.arange(count, dtype=np.uint64) * tensor.item_bytes
        place.moves.fill(sources, [feature.address for feature in features])

        def put() -> None:
            self._encoder.put(count, self._stream)
            self._put_moves(place.moves, count)

        self._run((place, count), put)
        self._stream.mark(place.free)
        return list(features)

    def _begin(
        self, output: str, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]
    ) -> Callable[[], NDArray[np.float32]]:
        """Put windows into the stream; what is returned waits for an output of theirs."""
        frames = 1 + len(self.manifest.offsets)
        expected = (len(windows), frames, 2, 2, 3)
        if transforms.shape != expected or any(len(window) != frames for window in windows):
            raise ValueError(f"transforms of {len(windows)} windows are {expected}, not {transforms.shape}")
        cuda.make_current()
        running = []
        for start in range(0, len(windows), self.manifest.max_batch):
            part = slice(start, start + self.manifest.max_batch)
            running.append(self._begin_batch(output, windows[part], transforms[part]))
        nobody = np.zeros((0, *self._fuser.outputs[output].shape), np.float32)
        return lambda: np.concatenate([nobody, *(part.collect() for part in running)])

    def _begin_batch(
        self, output: str, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]
    ) -> Running:
        count = len(windows)
        addresses = [_address(feature) for window in windows for feature in window]
        target, item = self._fuser.inputs["features"].memory.address, self._slots.item_bytes
        place = self._fuse_places.take()
        place.clear()
        place.moves.fill(addresses, target + np.arange(len(addresses), dtype=np.uint64) * item)
        place.transforms.host[:count] = transforms

        def put() -> None:
            self._put_moves(place.moves, len(addresses))
            place.transforms.upload(count, self._stream)
            self._fuser.put(count, self._stream)
            tensor, host = self._fuser.outputs[output], place.results[output]
            self._stream.to_host(host.address, tensor.memory.address, count * tensor.item_bytes)

        self._run((place, count, output), put)
        self._stream.mark(place.done)
        return place.begin(output, count)

    def _put_moves(self, moves: Moves, blocks: int) -> None:
        moves.put(blocks, self._slots.item_bytes // 4, self._move, _COPY_THREADS, self._stream)

    def _run(self, name: tuple[object, ...], put: Callable[[], None]) -> None:
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
    """One input or output of a network, by the engine's own name, for its largest batch, on the device."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    memory: cuda.DeviceMemory

    @property
    def item_bytes(self) -> int:
        """Bytes of one of the batch."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class _Network:
    """One TensorRT engine with its tensors in place.

    Args:
        outputs: their names, in order, where they have none of their own: torch-tensorrt counts them.
    """

    def __init__(self, trt: Any, runtime: Any, file: Path, max_batch: int, outputs: Sequence[str]) -> None:
        self._engine = runtime.deserialize_cuda_engine(file.read_bytes())
        if self._engine is None:
            raise ModelError(f"{file} cannot be loaded by {trt.__name__} {trt.__version__}")
        self._contexts: dict[int, Any] = {}  # one a batch size: a recorded graph is bound to its context's shapes
        # they run one after another, and each by itself would take what the largest batch needs
        self._scratch = cuda.DeviceMemory(self._engine.device_memory_size_v2)
        self._strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.inputs: dict[str, _Tensor] = {}
        self.outputs: dict[str, _Tensor] = {}
        counted = {f"output{index}": name for index, name in enumerate(outputs)}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            shape = tuple(self._engine.get_tensor_shape(name))[1:]
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            memory = cuda.DeviceMemory(max_batch * int(np.prod(shape)) * dtype.itemsize)
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs)[counted.get(name, name)] = _Tensor(name, shape, dtype, memory)

    def put(self, count: int, stream: cuda.Stream) -> None:
        """Put a run of a batch into a stream."""
        if count not in self._contexts:
            self._contexts[count] = self._prepare(count)
        if not self._contexts[count].execute_async_v3(stream.handle):
            raise ModelError("TensorRT refused to run the engine; its log says why (streampose --debug)")

    def _prepare(self, count: int) -> Any:
        context = self._engine.create_execution_context(self._strategy)
        context.set_device_memory(self._scratch.address, self._scratch.size)
        for tensor in (*self.inputs.values(), *self.outputs.values()):
            context.set_tensor_address(tensor.name, tensor.memory.address)
        for tensor in self.inputs.values():
            context.set_input_shape(tensor.name, (count, *tensor.shape))
        return context


def _address(feature: Feature) -> int:
    assert isinstance(feature, DeviceFeature)
    return feature.address
