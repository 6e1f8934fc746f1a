"""A GPU that is none: the few functions of the driver that `streampose.engines.cuda` calls, and TensorRT's runtime.

Memory is the host's, kernels are Python, engines are ONNX graphs on ONNX Runtime. What is put into streams runs as late
as it may, or at random moments, so that whoever does not wait where it must reads or overwrites the wrong bytes. Every
copy must lie within memory that was allocated and not freed.
"""

# ruff: noqa: N802, N815 (the driver's names)
from __future__ import annotations

import ctypes
import random
from collections import deque
from collections.abc import Callable, Iterator
from enum import IntEnum
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort

from streampose.geometry import cut, invert

Work = Callable[[], None]
MEMORY: dict[int, Any] = {}
"""Of all of them: what is allocated on one may be let go of when there is another."""


class Status(IntEnum):
    CUDA_SUCCESS = 0


class Stream:
    """Work in order."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.waiting: deque[Work] = deque()
        self.recorded: list[Work] | None = None
        self.put_in = self.done = 0

    def __int__(self) -> int:
        return id(self)

    def put(self, work: Work) -> None:
        if self.recorded is not None:
            self.recorded.append(work)
            return
        self.waiting.append(work)
        self.put_in += 1
        self.gpu.pass_time()

    def run(self, until: int | None = None) -> None:
        """What was put in, up to a count."""
        until = self.put_in if until is None else until
        while self.done < until:
            work = self.waiting.popleft()
            self.done += 1
            work()


class Gpu:
    """See the module. Stands where `streampose.engines.cuda.driver()` gives the driver's module.

    Args:
        eagerness: chance that a stream does a piece of its work whenever something is put in; 0 is as late as it may.
    """

    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUdevice_attribute: ClassVar[dict[str, str]] = {
        f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}": part for part in ("MAJOR", "MINOR")
    }

    def __init__(self, eagerness: float) -> None:
        self.eagerness = eagerness
        self.chance = random.Random(0)
        self.streams: list[Stream] = []
        self.kernels: list[str] = []
        self.copied_to_device = self.copied_to_host = self.graphs = self.waits = 0

    def pass_time(self) -> None:
        for stream in self.streams:
            while stream.waiting and self.chance.random() < self.eagerness:
                stream.run(stream.done + 1)

    def bytes_at(self, address: int, size: int) -> Any:
        """Memory as an array of uint8.

        Raises:
            AssertionError: it is not allocated.
        """
        inside = [(start, buffer) for start, buffer in MEMORY.items() if start <= address < start + len(buffer)]
        assert inside, f"nothing is allocated at {address}"
        ((start, buffer),) = inside
        assert address + size <= start + len(buffer), "beyond the end of what is allocated"
        return np.frombuffer(buffer, np.uint8)[address - start : address - start + size]

    def array_at(self, address: int, shape: tuple[int, ...], dtype: Any) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.bytes_at(address, size).view(dtype).reshape(shape)

    def cuInit(self, _flags: int) -> Any:
        return (Status(0),)

    def cuDeviceGet(self, number: int) -> Any:
        return Status(0), number

    def cuDevicePrimaryCtxRetain(self, _device: int) -> Any:
        return Status(0), 1

    def cuCtxSetCurrent(self, _context: int) -> Any:
        return (Status(0),)

    def cuDeviceGetAttribute(self, attribute: str, _device: int) -> Any:
        return Status(0), {"MAJOR": 9, "MINOR": 0}[attribute]

    def cuMemAlloc(self, size: int) -> Any:
        buffer = (ctypes.c_uint8 * size)()
        ctypes.memset(buffer, 0xA5, size)
        MEMORY[ctypes.addressof(buffer)] = buffer
        return Status(0), ctypes.addressof(buffer)

    def cuMemHostAlloc(self, size: int, _flags: int) -> Any:
        return self.cuMemAlloc(size)

    def cuMemFree(self, address: int) -> Any:
        del MEMORY[address]
        return (Status(0),)

    cuMemFreeHost = cuMemFree

    def cuStreamCreate(self, _flags: int) -> Any:
        self.streams.append(Stream(self))
        return Status(0), self.streams[-1]

    def cuStreamDestroy(self, stream: Stream) -> Any:
        stream.gpu.streams.remove(stream)
        return (Status(0),)

    def cuStreamSynchronize(self, stream: Stream) -> Any:
        assert stream.recorded is None
        self.waits += 1
        stream.run()
        return (Status(0),)

    def _copy(self, target: int, source: int, size: int) -> Work:
        def work() -> None:
            self.bytes_at(target, size)[:] = self.bytes_at(source, size)

        return work

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: Stream) -> Any:
        self.copied_to_device += size
        stream.put(self._copy(target, source, size))
        return (Status(0),)

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: Stream) -> Any:
        self.copied_to_host += size
        stream.put(self._copy(target, source, size))
        return (Status(0),)

    def cuMemcpyDtoDAsync(self, target: int, source: int, size: int, stream: Stream) -> Any:
        stream.put(self._copy(target, source, size))
        return (Status(0),)

    def cuEventCreate(self, _flags: int) -> Any:
        return Status(0), SimpleNamespace(stream=None, count=0)

    def cuEventDestroy(self, _event: Any) -> Any:
        return (Status(0),)

    def cuEventRecord(self, event: Any, stream: Stream) -> Any:
        assert stream.recorded is None
        event.stream, event.count = stream, stream.put_in
        return (Status(0),)

    def cuEventSynchronize(self, event: Any) -> Any:
        self.waits += 1
        if event.stream is not None:
            event.stream.run(event.count)
        return (Status(0),)

    def cuStreamWaitEvent(self, stream: Stream, event: Any, _flags: int) -> Any:
        other, count = event.stream, event.count
        if other is not None:
            stream.put(lambda: other.run(count))
        return (Status(0),)

    def cuStreamBeginCapture(self, stream: Stream, _mode: int) -> Any:
        stream.recorded = []
        return (Status(0),)

    def cuStreamEndCapture(self, stream: Stream) -> Any:
        recorded, stream.recorded = stream.recorded, None
        return Status(0), recorded

    def cuGraphInstantiate(self, recorded: Any, _flags: int) -> Any:
        return Status(0), recorded

    def cuGraphLaunch(self, ready: Any, stream: Stream) -> Any:
        self.graphs += 1
        for work in ready:
            stream.put(work)
        return (Status(0),)

    def cuGraphExecDestroy(self, _ready: Any) -> Any:
        return (Status(0),)

    def cuGraphDestroy(self, _recorded: Any) -> Any:
        return (Status(0),)

    def cuModuleLoadData(self, code: bytes) -> Any:
        return Status(0), code

    def cuModuleGetFunction(self, _module: bytes, entry: bytes) -> Any:
        return Status(0), entry.decode()

    def cuModuleUnload(self, _module: bytes) -> Any:
        return (Status(0),)

    def cuLaunchKernel(self, entry: str, *rest: Any) -> Any:
        *_grid, _shared, stream, (values, kinds), _extra = rest
        assert len(values) == len(kinds)
        self.kernels.append(entry)
        stream.put(lambda: getattr(self, entry)(*values))
        return (Status(0),)

    def cut_crops(
        self, frame: int, frame_h: int, frame_w: int, inverses: int, crops: int, count: int, height: int, width: int
    ) -> None:
        picture = self.array_at(frame, (frame_h, frame_w, 3), np.uint8).copy()
        out = self.array_at(crops, (count, height, width, 3), np.uint8)
        for crop, inverse in zip(out, self.array_at(inverses, (count, 2, 3), np.float32), strict=True):
            crop[:] = cut(picture, invert(inverse), (height, width))

    def move_blocks(self, sources: int, targets: int, words: int, count: int) -> None:
        pairs = (self.array_at(address, (count,), np.uint64).tolist() for address in (sources, targets))
        for source, target in zip(*pairs, strict=True):
            self._copy(target, source, 4 * words)()


class TensorRT:
    """TensorRT's module: plans are ONNX files. `run` counts the runs of engines."""

    __name__ = "tensorrt_rtx"
    __version__ = "1.7.1.116"
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="by the user")

    class ILogger:
        def __init__(self) -> None:
            pass

    def __init__(self, gpu: Gpu, counted_outputs: bool = False) -> None:
        self.gpu, self.counted_outputs, self.runs = gpu, counted_outputs, 0

    def nptype(self, kind: str) -> Any:
        return {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}[kind]

    def Runtime(self, _logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: _Plan(self, plan))


class _Plan:
    def __init__(self, module: TensorRT, plan: bytes) -> None:
        self.module = module
        self.session = ort.InferenceSession(plan)
        outputs = self.session.get_outputs()
        self.nodes = {node.name: (node, "input") for node in self.session.get_inputs()}
        names = [f"output{index}" if module.counted_outputs else node.name for index, node in enumerate(outputs)]
        self.nodes |= {name: (node, "output") for name, node in zip(names, outputs, strict=True)}
        self.num_io_tensors = len(self.nodes)
        self.device_memory_size_v2 = 4096

    def get_tensor_name(self, index: int) -> str:
        return list(self.nodes)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.nodes[name][0].shape[1:])

    def get_tensor_dtype(self, name: str) -> str:
        return str(self.nodes[name][0].type)

    def get_tensor_mode(self, name: str) -> str:
        return self.nodes[name][1]

    def create_execution_context(self, strategy: str) -> _Context:
        assert strategy == "by the user"
        return _Context(self)


class _Context:
    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.addresses: dict[str, int] = {}
        self.batch = 0

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.plan.device_memory_size_v2
        self.plan.module.gpu.bytes_at(address, size)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        assert tuple(shape)[1:] == self.plan.get_tensor_shape(name)[1:]
        self.batch = shape[0]

    def execute_async_v3(self, handle: int) -> bool:
        gpu = self.plan.module.gpu
        (stream,) = (stream for stream in gpu.streams if int(stream) == handle)
        stream.put(self._run)
        return True

    def _run(self) -> None:
        tensors = dict(self._tensors("input"))
        results = dict(self._tensors("output"))
        self.plan.module.runs += 1
        for name, value in zip(results, self.plan.session.run(list(results), tensors), strict=True):
            results[name][:] = value

    def _tensors(self, mode: str) -> Iterator[tuple[str, Any]]:
        module = self.plan.module
        for name, (node, kind) in self.plan.nodes.items():
            if kind == mode:
                shape = (self.batch, *node.shape[1:])
                yield node.name, module.gpu.array_at(self.addresses[name], shape, module.nptype(node.type))
