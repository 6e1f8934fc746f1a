"""The kernel as a TensorRT plugin, `streampose::deform_conv`, compiled ahead of time into the engine.

`register()` makes it known to the builder; an engine that holds it needs neither Python nor this package. The plugin's

inputs are    x (B, C, H, W), offset (B, G * taps * 2, h, w) float32, mask (B, G * taps, h, w), weight as `pack_weight`
              packs it, bias (O,) float32; x, mask and weight are of one type, float32 or float16, and so is
output        y (B, O, h, w).
attributes    `ATTRIBUTES`: the integers of `Geometry`, each under its name; has_mask and has_bias are 0 or 1, and where
              one is 0 any tensor of the type may stand for the mask or the bias.

`node.py` writes such nodes. The ONNX parser finds the plugin by the node's op_type `deform_conv`, and the attributes
plugin_namespace "streampose", plugin_version "1" and aot 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from inspect import Parameter, Signature
from types import GenericAlias
from typing import Any

import numpy as np

from streampose.errors import MissingExtraError, ModelError, StreamposeError
from streampose.plugins.deform_conv.geometry import THREADS, TILE, Geometry, Storage, packed_size, plan
from streampose.plugins.deform_conv.ptx import Compiled, compile_ptx

NAMESPACE, NAME, VERSION = "streampose", "deform_conv", "1"
TENSORS = ("x", "offset", "mask", "weight", "bias")
ATTRIBUTES = (
    "channels", "out_channels", "kernel_h", "kernel_w", "stride_h", "stride_w", "padding_h", "padding_w", "dilation_h",
    "dilation_w", "groups", "offset_groups", "has_mask", "has_bias",
)  # fmt: skip
Shape = tuple[int, ...]


@dataclass(slots=True)
class Registration:
    """The plugin as TensorRT knows it in this process.

    Attributes:
        arch: what kernels are compiled for, as in "sm_90"; None asks the driver for the current device.
        kernels: what has been compiled for engines since `register` was last called, by entry.
    """

    arch: str | None = None
    kernels: dict[str, Compiled] = field(default_factory=dict)


_REGISTRATION = Registration()
_known = False


def register(arch: str | None = None) -> Registration:
    """Make the plugin known to TensorRT; further calls only set the architecture and forget what was compiled.

    Args:
        arch: to compile kernels for, as in "sm_90"; the current device's by default.

    Raises:
        MissingExtraError: TensorRT, NVRTC or its bindings are not installed.
    """
    global _known
    if not _known:
        _define()
        _known = True
    _REGISTRATION.arch = arch
    _REGISTRATION.kernels.clear()
    return _REGISTRATION


def device_arch() -> str:
    """The architecture of the first GPU, as in "sm_90".

    Raises:
        MissingExtraError: the CUDA bindings are not installed.
        StreamposeError: there is no driver or no GPU.
    """
    try:
        from cuda.bindings import driver
    except ModuleNotFoundError as error:
        raise MissingExtraError("cuda-bindings", "cuda") from error
    try:
        statuses = [driver.cuInit(0)[0]]
        attributes = driver.CUdevice_attribute
        parts = []
        for part in ("MAJOR", "MINOR"):
            attribute = attributes[f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}"]
            status, number = driver.cuDeviceGetAttribute(attribute, 0)
            statuses.append(status)
            parts.append(number)
    except RuntimeError:  # the driver's library is not there
        raise StreamposeError("no NVIDIA driver here; name an architecture, as in sm_90") from None
    if any(int(status) for status in statuses):
        raise StreamposeError(f"no NVIDIA GPU here ({statuses[0].name}); name an architecture, as in sm_90")
    return "sm_{}{}".format(*parts)


def geometry_of(numbers: tuple[int, ...], storage: Storage, channels_last: bool) -> Geometry:
    """The geometry that a node's attributes, in the order of `ATTRIBUTES`, stand for."""
    named = dict(zip(ATTRIBUTES, numbers, strict=True))
    flags = {name: bool(named.pop(name)) for name in ("has_mask", "has_bias")}
    return Geometry(**named, **flags, storage=storage, channels_last=channels_last)  # type: ignore[arg-type]


def check_tensors(geometry: Geometry, x: Shape, offset: Shape, mask: Shape, weight: Shape, bias: Shape) -> None:
    """Compare the shapes of a node's tensors with its attributes; a size that is not known yet is -1.

    Raises:
        ModelError: they do not fit; the kernel would read past a tensor's end.
    """
    g, size = geometry, offset[2:]
    expected = {
        "x": (x, (-1, g.channels, -1, -1)),
        "offset": (offset, (-1, 2 * g.offset_groups * g.taps, -1, -1)),
        "mask": (mask, (-1, g.offset_groups * g.taps, *size) if g.has_mask else mask),
        "weight": (weight, (packed_size(g),)),
        "bias": (bias, (g.out_channels,) if g.has_bias else bias),
    }
    for name, (found, wanted) in expected.items():
        if len(found) != len(wanted) or any(a != b for a, b in zip(found, wanted, strict=True) if -1 not in (a, b)):
            raise ModelError(f"a deform_conv node's {name} is {found}, its attributes want {wanted}")
    if -1 not in (*x[2:], *size) and size != g.output_size(x[2], x[3]):
        raise ModelError(f"a deform_conv node's offset is for {size}, its map makes {g.output_size(x[2], x[3])}")


def _define() -> None:
    """Hand TensorRT the three functions of the plugin."""
    trt, trtp = _tensorrt()
    plugin = f"{NAMESPACE}::{NAME}"
    storages: dict[Any, Storage] = {trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16"}
    tensors = dict.fromkeys(TENSORS, trtp.TensorDesc)
    kernel = GenericAlias(tuple, (str, bytes, trtp.KernelLaunchParams, trtp.SymIntExprs))

    def describe(x: Any, offset: Any, *_rest: Any, out_channels: Any, **_numbers: Any) -> Any:
        shape = (x.shape_expr[0], _number(out_channels), offset.shape_expr[2], offset.shape_expr[3])
        return trtp.from_shape_expr(shape, x.dtype)

    def formats(x: Any, *rest: Any) -> Any:
        channels, out_channels = (_number(attribute) for attribute in rest[-3:-1])  # the outputs come last
        storage = storages[x.dtype].upper()
        types = f"{storage}, FP32, {storage}, {storage}, FP32, {storage}"
        last = storage == "FP16" and channels % 8 == 0 and out_channels % 8 == 0  # HWC8 without filling
        ends = "LINEAR|HWC8" if last else "LINEAR"
        return [trtp.AutoTuneCombination(types, f"{ends}, LINEAR, LINEAR, LINEAR, LINEAR, {ends}")]

    def implement(*given: Any) -> Any:
        (x, offset, *rest), numbers = given[: len(TENSORS)], tuple(map(_number, given[len(TENSORS) : -2]))
        geometry = geometry_of(numbers, storages[x.dtype], x.format == trt.TensorFormat.HWC8)
        if -1 not in tuple(x.shape)[2:]:
            geometry = replace(geometry, height=x.shape[2], width=x.shape[3])
        check_tensors(geometry, *(tuple(tensor.shape) for tensor in (x, offset, *rest)))
        compiled = compile_ptx(geometry, _REGISTRATION.arch or device_arch())
        _REGISTRATION.kernels[compiled.entry] = compiled
        batch, height, width = (x.shape_expr[axis] for axis in (0, 2, 3))
        out_height, out_width = (offset.shape_expr[axis] for axis in (2, 3))
        launch = trtp.KernelLaunchParams()
        launch.grid_x = batch * trtp.cdiv(out_height * out_width, TILE)
        launch.grid_y = geometry.groups * plan(geometry).output_tiles
        launch.block_x = THREADS
        extra = trtp.SymIntExprs(4)
        for index, size in enumerate((height, width, out_height, out_width)):
            extra[index] = size
        return compiled.entry, compiled.code, launch, extra

    all_numbers, outputs = dict.fromkeys(ATTRIBUTES, _declared(trt)), {"outputs": Parameter.empty}
    trtp.register(plugin)(_signed(describe, {**tensors, **all_numbers}, trtp.TensorDesc))
    two_numbers = {name: all_numbers[name] for name in ("channels", "out_channels")}
    trtp.autotune(plugin)(_signed(formats, {**tensors, **two_numbers, **outputs}, Parameter.empty))
    last = {**outputs, "tactic": int}
    trtp.aot_impl(plugin)(_signed(implement, {**tensors, **all_numbers, **last}, kernel))


def attributes_of(geometry: Geometry) -> dict[str, Any]:
    """A geometry as arguments of `tensorrt.plugin.op.streampose.deform_conv`."""
    trt, _ = _tensorrt()
    numbers = {name: int(getattr(geometry, name)) for name in ATTRIBUTES}
    if _declared(trt) is int:
        return numbers
    return {name: np.array([number], np.int64) for name, number in numbers.items()}


def _declared(trt: Any) -> Any:
    """The type of attributes. Before 11.4 TensorRT makes integers in a way that numpy 2.4 refuses; arrays it leaves."""
    version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    return int if version >= (11, 4) else np.ndarray[Any, np.dtype[np.int64]]


def _number(attribute: Any) -> int:
    """An attribute as TensorRT hands it over, an integer or an array of one."""
    return int(np.asarray(attribute).reshape(-1)[0])


def _signed(function: Any, parameters: dict[str, Any], answer: Any) -> Any:
    """Give a function the parameters by whose names and types TensorRT knows what to call it with."""
    kind = Parameter.POSITIONAL_OR_KEYWORD
    function.__signature__ = Signature(
        [Parameter(name, kind, annotation=annotation) for name, annotation in parameters.items()],
        return_annotation=answer,
    )
    return function


def _tensorrt() -> tuple[Any, Any]:
    try:
        import tensorrt
        from tensorrt import plugin
    except ModuleNotFoundError as error:
        raise MissingExtraError("tensorrt", "tensorrt") from error
    return tensorrt, plugin
