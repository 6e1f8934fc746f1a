"""The kernel on torch's CUDA tensors: compiled for the device when first needed, launched on torch's current stream."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from streampose.errors import StreamposeError
from streampose.plugins.deform_conv.geometry import THREADS, Geometry, Storage, grid, packing
from streampose.plugins.deform_conv.ptx import compile_cubin

STORAGES: dict[torch.dtype, Storage] = {torch.float32: "fp32", torch.float16: "fp16"}
LARGEST = 2**31 - 1
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch, ready but for the compiled kernel.

    Attributes:
        geometry: which kernel.
        blocks: of the grid; each has `THREADS` threads.
        arguments: tensors, as addresses, and int32 numbers, in the kernel's order; the last is the result.
        y: the result, (B, O, h, w), to be written.
    """

    geometry: Geometry
    blocks: tuple[int, int, int]
    arguments: tuple[Tensor | int | None, ...]
    y: Tensor


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether kernels can be launched here; says once in the log if not."""
    found = importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.bindings") is not None
    if not found:
        LOG.warning(
            "deformable convolution runs by grid_sample on this GPU: cuda-bindings is not installed; "
            "pip install 'streampose[cuda]' brings the kernel"
        )
    return found


def fits(x: Tensor) -> bool:
    """Whether the kernel takes such a map."""
    return x.is_cuda and x.dtype in STORAGES and available()


def order_of(x: Tensor) -> torch.memory_format:
    """How the kernel's result lies in memory: as its map does."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def prepare(
    x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Launch:
    """Bring tensors into the form in which the kernel takes them.

    Args:
        x .. bias: as `deform_conv2d` takes them, of any strides.
        geometry: with whatever `channels_last` and map size; the map's own order is kept.

    Raises:
        ValueError: a map or offsets too large for the kernel's indices.
    """
    order = order_of(x)
    geometry = replace(geometry, channels_last=order is torch.channels_last, height=x.shape[2], width=x.shape[3])
    batch, (height, width), (out_h, out_w) = x.shape[0], x.shape[2:], offset.shape[2:]
    largest = max(x[:1].numel(), offset[:1].numel(), geometry.out_channels * out_h * out_w)
    blocks = grid(geometry, batch, out_h, out_w)
    if largest > LARGEST or blocks[0] > LARGEST or blocks[1] > 65535:
        raise ValueError(f"x {tuple(x.shape)} and offset {tuple(offset.shape)} are too large for the kernel")
    y = torch.empty((batch, geometry.out_channels, out_h, out_w), dtype=x.dtype, device=x.device, memory_format=order)
    flat = torch.cat([weight.detach().reshape(-1), weight.new_zeros(1)]).to(x.dtype)
    tensors = (
        x.contiguous(memory_format=order), offset.float().contiguous(),
        None if mask is None else mask.to(x.dtype).contiguous(), flat[_places(geometry, x.device)],
        None if bias is None else bias.float().contiguous(),
    )  # fmt: skip
    return Launch(geometry, blocks, (*tensors, height, width, out_h, out_w, y), y)


def launch(prepared: Launch) -> Tensor:
    """Enqueue a launch on the current stream of its tensors' device; return the result.

    Raises:
        MissingExtraError: NVRTC is not installed.
        StreamposeError: the driver refuses the kernel.
    """
    if not prepared.y.numel():
        return prepared.y
    from cuda.bindings import driver

    device = prepared.y.device
    with torch.cuda.device(device):
        _enter_context(driver, torch.cuda.current_device())
        function = _function(prepared.geometry, torch.cuda.current_device())
        values, kinds = [], []
        for argument in prepared.arguments:
            number = isinstance(argument, int)
            values.append(argument if number else 0 if argument is None else argument.data_ptr())  # type: ignore[union-attr]
            kinds.append(ctypes.c_int32 if number else ctypes.c_void_p)
        stream = torch.cuda.current_stream(device).cuda_stream
        (status,) = driver.cuLaunchKernel(
            function, *prepared.blocks, THREADS, 1, 1, 0, stream, (tuple(values), tuple(kinds)), 0
        )
    if int(status):
        raise StreamposeError(f"the driver does not launch {prepared.geometry.entry}: {status.name}")
    return prepared.y


def _enter_context(driver: Any, device: int) -> None:
    """Make torch's context current in a thread that has not used the device yet."""
    status, current = driver.cuCtxGetCurrent()
    if not int(status) and not int(current):
        status, context = driver.cuDevicePrimaryCtxRetain(device)
        if not int(status):
            (status,) = driver.cuCtxSetCurrent(context)
    if int(status):
        raise StreamposeError(f"the driver gives no context on device {device}: {status.name}")


@lru_cache(maxsize=64)
def _places(geometry: Geometry, device: torch.device) -> Tensor:
    return torch.from_numpy(packing(geometry)).to(device)


@lru_cache(maxsize=64)
def _function(geometry: Geometry, device: int) -> Any:
    """The compiled kernel, loaded into the current context, where it stays."""
    from cuda.bindings import driver

    kernel = compile_cubin(geometry, "sm_{}{}".format(*torch.cuda.get_device_capability(device)))
    status, module = driver.cuModuleLoadData(kernel.code)
    if not int(status):
        status, function = driver.cuModuleGetFunction(module, kernel.entry.encode())
    if int(status):
        raise StreamposeError(f"the driver does not load {kernel.entry} for {kernel.arch}: {status.name}")
    return function
