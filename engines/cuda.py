"""What engines do with a GPU, over NVIDIA's cuda-python and without torch: memory, streams, kernels, graphs.

One device and its primary context, which TensorRT shares. What holds memory frees it when nobody refers to it any more.
Every call that the driver refuses is a ModelError of one line.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from streampose.errors import MissingExtraError, ModelError


@lru_cache(maxsize=1)
def driver() -> Any:
    """The module of the driver's functions, initialised, with the first device's primary context current.

    Raises:
        MissingExtraError: cuda-python is not installed.
        ModelError: there is no driver or no GPU.
    """
    try:
        from cuda.bindings import driver as module
    except ModuleNotFoundError:
        raise MissingExtraError("cuda-bindings", "cuda") from None
    try:
        (status,) = module.cuInit(0)
    except RuntimeError:
        raise ModelError("there is no NVIDIA driver on this machine") from None
    if int(status):
        raise ModelError(f"the NVIDIA driver finds no GPU ({status.name})")
    context = _result(module.cuDevicePrimaryCtxRetain(_result(module.cuDeviceGet(0))))
    _result(module.cuCtxSetCurrent(context))
    return module


def make_current() -> None:
    """Let the calling thread use the device: contexts are current a thread."""
    module = driver()
    _result(module.cuCtxSetCurrent(_result(module.cuDevicePrimaryCtxRetain(_result(module.cuDeviceGet(0))))))


def architecture() -> str:
    """Of the first GPU: "sm_90", say."""
    module = driver()
    device = _result(module.cuDeviceGet(0))
    attributes = module.CUdevice_attribute
    major, minor = (
        _result(module.cuDeviceGetAttribute(attributes[f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}"], device))
        for part in ("MAJOR", "MINOR")
    )
    return f"sm_{major}{minor}"


class DeviceMemory:
    """Bytes on the device; `address` is where."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pointer = _result(driver().cuMemAlloc(max(size, 1)))
        self.address = int(self._pointer)

    def __del__(self) -> None:
        if hasattr(self, "_pointer"):
            driver().cuMemFree(self._pointer)


class PinnedArray:
    """A numpy array in page-locked host memory, which the device copies from and to while the host goes on.

    Attributes:
        array: the array; it is valid as long as this object.
        address: of its first byte.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._pointer = _result(driver().cuMemHostAlloc(max(size, 1), 0))
        self.address = int(self._pointer)
        buffer = (ctypes.c_byte * size).from_address(self.address)
        self.array: NDArray[Any] = np.frombuffer(memoryview(buffer), dtype).reshape(shape)

    def __del__(self) -> None:
        if hasattr(self, "_pointer"):
            driver().cuMemFreeHost(self._pointer)


class Stream:
    """A queue of work on the device; what is put into it runs in order, beside the host."""

    def __init__(self) -> None:
        flag = driver().CUstream_flags.CU_STREAM_NON_BLOCKING
        self._stream = _result(driver().cuStreamCreate(flag))
        self.handle = int(self._stream)

    def to_device(self, target: int, source: int, size: int) -> None:
        """Copy from page-locked host memory to device memory, bytes at addresses."""
        _result(driver().cuMemcpyHtoDAsync(target, source, size, self._stream))

    def to_host(self, target: int, source: int, size: int) -> None:
        """Copy from device memory to page-locked host memory."""
        _result(driver().cuMemcpyDtoHAsync(target, source, size, self._stream))

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy within device memory."""
        _result(driver().cuMemcpyDtoDAsync(target, source, size, self._stream))

    def launch(
        self, kernel: Kernel, grid: tuple[int, int, int], block: tuple[int, int, int], arguments: Sequence[int | float]
    ) -> None:
        """Run a kernel; `arguments` fit `kernel.kinds`."""
        values = (tuple(arguments), kernel.kinds)
        _result(driver().cuLaunchKernel(kernel.function, *grid, *block, 0, self._stream, values, 0))

    def wait(self) -> None:
        """Until everything that was put in has run."""
        _result(driver().cuStreamSynchronize(self._stream))

    def mark(self, event: Event) -> None:
        """Let an event stand for everything that was put in so far."""
        _result(driver().cuEventRecord(event.handle, self._stream))

    def follow(self, event: Event) -> None:
        """Let what is put in from now on run after what an event stands for, in whatever stream; the host goes on."""
        _result(driver().cuStreamWaitEvent(self._stream, event.handle, 0))

    @contextmanager
    def capture(self) -> Iterator[Callable[[], Graph]]:
        """Record what is put in instead of running it; call what this gives, after the block, for the graph."""
        module = driver()
        mode = module.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _result(module.cuStreamBeginCapture(self._stream, mode))
        recorded: list[Any] = []
        try:
            yield lambda: Graph(recorded[0], self._stream)
        finally:
            recorded.append(_result(module.cuStreamEndCapture(self._stream)))

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            driver().cuStreamDestroy(self._stream)


class Event:
    """A point in a stream, see `Stream.mark`; before it is marked the first time there is nothing to wait for."""

    def __init__(self) -> None:
        flag = int(driver().CUevent_flags.CU_EVENT_DISABLE_TIMING)
        self.handle = _result(driver().cuEventCreate(flag))

    def wait(self) -> None:
        """Until the device has come to it."""
        _result(driver().cuEventSynchronize(self.handle))

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            driver().cuEventDestroy(self.handle)


class Graph:
    """Recorded work, put into its stream by one call."""

    def __init__(self, recorded: Any, stream: Any) -> None:
        self._recorded, self._stream = recorded, stream
        self._ready = _result(driver().cuGraphInstantiate(recorded, 0))

    def run(self) -> None:
        _result(driver().cuGraphLaunch(self._ready, self._stream))

    def __del__(self) -> None:
        if hasattr(self, "_ready"):
            driver().cuGraphExecDestroy(self._ready)
            driver().cuGraphDestroy(self._recorded)


class Kernel:
    """A compiled kernel.

    Args:
        code: PTX or machine code.
        entry: its name.
        kinds: ctypes of its arguments.
    """

    def __init__(self, code: bytes, entry: str, kinds: tuple[Any, ...]) -> None:
        self._module = _result(driver().cuModuleLoadData(code))
        self.function = _result(driver().cuModuleGetFunction(self._module, entry.encode()))
        self.kinds = kinds

    def __del__(self) -> None:
        if hasattr(self, "_module"):
            driver().cuModuleUnload(self._module)


def _result(answer: tuple[Any, ...]) -> Any:
    """What a function of the driver returned, less its status."""
    status, *values = answer
    if int(status):
        raise ModelError(f"the NVIDIA driver refused a call: {status.name}")
    return values[0] if len(values) == 1 else tuple(values)
