"""The deformable convolution as one torch operator, so that an exported graph holds it as one node."""

from __future__ import annotations

import torch
from torch import Tensor

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

    Args:
        x: (B, C, H, W) floating point.
        offset: (B, offset_groups * kh * kw * 2, h, w) in pixels of `x`, interleaved (dy, dx).
        mask: (B, offset_groups * kh * kw, h, w) factors of the samples, or None for ones.
        weight: (O, C / groups, kh, kw).
        bias: (O,) or None.
        stride, padding, dilation: (vertical, horizontal).

    Returns:
        (B, O, h, w).

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check(x, offset, mask, weight, bias, stride, padding, dilation, groups, offset_groups)
    if torch.compiler.is_exporting():
        geometry = (list(stride), list(padding), list(dilation), groups, offset_groups)
        exported: Tensor = torch.ops.streampose.deform_conv2d(x, offset, mask, weight, bias, *geometry)
        return exported
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


@_operator.register_fake
def _(x: Tensor, offset: Tensor, _mask: Tensor | None, weight: Tensor, *_rest: object) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0], *offset.shape[2:]))


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
