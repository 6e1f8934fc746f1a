"""Modulated deformable convolution (DCNv2, arXiv 1811.11168, equation 1) by bilinear look-up and a matrix product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Pair = tuple[int, int]


def deform_conv2d_reference(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    offset_groups: int = 1,
) -> Tensor:
    """See `deform_conv2d`, which has the contract. Differentiable in every tensor."""
    if x.dtype in (torch.float16, torch.bfloat16):
        whole = [None if tensor is None else tensor.float() for tensor in (mask, bias)]
        y = deform_conv2d_reference(
            x.float(), offset, whole[0], weight.float(), whole[1], stride, padding, dilation, groups, offset_groups
        )
        return y.to(x.dtype)
    offset = offset.to(x.dtype)
    batch, channels, height, width = x.shape
    outputs, per_group, kernel_h, kernel_w = weight.shape
    taps = kernel_h * kernel_w
    out_h, out_w = offset.shape[2:]
    shifts = offset.reshape(batch * offset_groups, taps, 2, out_h, out_w)
    tap = torch.arange(taps, device=x.device)
    rows = torch.arange(out_h, device=x.device) * stride[0] - padding[0]
    columns = torch.arange(out_w, device=x.device) * stride[1] - padding[1]
    y = (rows[:, None] + (tap // kernel_w * dilation[0])[:, None, None]) + shifts[:, :, 0]
    x_at = (columns + (tap % kernel_w * dilation[1])[:, None, None]) + shifts[:, :, 1]
    grid = torch.stack([(x_at + 0.5) * 2 / width - 1, (y + 0.5) * 2 / height - 1], dim=-1)
    maps = x.reshape(batch * offset_groups, channels // offset_groups, height, width)
    flat_grid = grid.reshape(batch * offset_groups, taps * out_h, out_w, 2)
    sampled = functional.grid_sample(maps, flat_grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    sampled = sampled.view(batch, offset_groups, channels // offset_groups, taps, out_h, out_w)
    if mask is not None:
        sampled = sampled * mask.reshape(batch, offset_groups, 1, taps, out_h, out_w)
    filters = weight.reshape(outputs, per_group * taps, 1, 1)
    return functional.conv2d(sampled.reshape(batch, channels * taps, out_h, out_w), filters, bias, groups=groups)
