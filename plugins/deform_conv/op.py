"""The deformable convolution as one torch operator, so that an exported graph holds it as one node.

On the CPU it is the reference; on CUDA tensors of float32 and float16 it is the kernel, where the `cuda` extra is
installed, and the reference elsewhere. Gradients are the reference's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from streampose.plugins.deform_conv.geometry import Geometry
from streampose.plugins.deform_conv.launch import STORAGES, fits, launch, order_of, prepare
from streampose.plugins.deform_conv.reference import Pair, deform_conv2d_reference


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    offset_groups: int = 1,
) -> Tensor:
    """Modulated deformable convolution, zeros outside the map; the same as ONNX's DeformConv (opset 19).

    Coordinates and sums are of float32 or better, also where `x` is of half precision.

    Args:
        x: (B, C, H, W) floating point.
        offset: (B, offset_groups * kh * kw * 2, h, w) in pixels of `x`, interleaved (dy, dx); best float32.
        mask: (B, offset_groups * kh * kw, h, w) factors of the samples, or None for ones.
        weight: (O, C / groups, kh, kw).
        bias: (O,) or None.
        stride, padding, dilation: (vertical, horizontal).

    Returns:
        (B, O, h, w) of the type of `x`.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check(x, offset, mask, weight, bias, stride, padding, dilation, groups, offset_groups)
    if torch.compiler.is_exporting() or fits(x):
        geometry = (list(stride), list(padding), list(dilation), groups, offset_groups)
        result: Tensor = torch.ops.streampose.deform_conv2d(x, offset, mask, weight, bias, *geometry)
        return result
    return deform_conv2d_reference(x, offset, mask, weight, bias, stride, padding, dilation, groups, offset_groups)


@torch.library.custom_op("streampose::deform_conv2d", mutates_args=())
def _operator(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    offset_groups: int,
) -> Tensor:
    steps = ((stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]))
    return deform_conv2d_reference(x, offset, mask, weight, bias, *steps, groups, offset_groups)


@_operator.register_kernel("cuda")
def _(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    offset_groups: int,
) -> Tensor:
    steps = ((stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]))
    if not fits(x):
        return deform_conv2d_reference(x, offset, mask, weight, bias, *steps, groups, offset_groups)
    has_mask, has_bias, storage = mask is not None, bias is not None, STORAGES[x.dtype]
    geometry = Geometry.of(weight.shape, *steps, groups, offset_groups, has_mask, has_bias, storage)
    return launch(prepare(x, offset, mask, weight, bias, geometry))


@_operator.register_fake
def _(x: Tensor, offset: Tensor, _mask: Tensor | None, weight: Tensor, *_rest: object) -> Tensor:
    order = order_of(x) if fits(x) else torch.contiguous_format
    shape = (x.shape[0], weight.shape[0], *offset.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=order)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:5])
    ctx.numbers = inputs[5:]


def _gradients(ctx: Any, outward: Tensor) -> tuple[Tensor | None, ...]:
    """By the gradients of the reference, computed once more."""
    stride, padding, dilation, groups, offset_groups = ctx.numbers
    steps = ((stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]))
    with torch.enable_grad():
        leaves = [
            None if saved is None else saved.detach().requires_grad_(wanted)
            for saved, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad[:5], strict=True)
        ]
        x, offset, mask, weight, bias = leaves
        assert x is not None
        assert offset is not None
        assert weight is not None
        result = deform_conv2d_reference(x, offset, mask, weight, bias, *steps, groups, offset_groups)
        sought = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        found = iter(torch.autograd.grad(result, sought, outward))
    gradients = [next(found) if leaf is not None and leaf.requires_grad else None for leaf in leaves]
    return (*gradients, *(None for _ in ctx.numbers))


_operator.register_autograd(_gradients, setup_context=_save)


def _check(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    offset_groups: int,
) -> None:
    outputs, per_group, kernel_h, kernel_w = weight.shape
    batch, channels = x.shape[:2]
    if channels != per_group * groups or outputs % groups or channels % offset_groups:
        raise ValueError(
            f"{channels} channels, weight {tuple(weight.shape)}, {groups} groups and {offset_groups} offset groups "
            "do not fit each other"
        )
    kernel = (kernel_h, kernel_w)
    size = tuple(
        (x.shape[axis + 2] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    )
    samples = offset_groups * kernel_h * kernel_w
    if tuple(offset.shape) != (batch, 2 * samples, *size):
        raise ValueError(f"offset is {tuple(offset.shape)}, expected {(batch, 2 * samples, *size)}")
    if mask is not None and tuple(mask.shape) != (batch, samples, *size):
        raise ValueError(f"mask is {tuple(mask.shape)}, expected {(batch, samples, *size)}")
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise ValueError(f"bias is {tuple(bias.shape)}, expected {(outputs,)}")
