"""Aligning supporting features to the key frame: known crop transform, global transformation, deformable convolution.

FAMI-Pose (arXiv 2203.15227, section 3.2) warps a supporting map by a learned global translation and then corrects it
locally by deformable convolutions. Here the two warps and the known transform from crop to crop are composed into the
deformable convolution's sampling positions, so that a supporting map is resampled once and not blurred three times.
Where the crops are the same, the known transform is the identity and nothing of it is left.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from streampose.model.mobile import RoundingPlace, conv_bn
from streampose.plugins.deform_conv import deform_conv2d

KERNEL = 3
TAPS = KERNEL * KERNEL


def zero(layer: nn.Linear | nn.Conv2d) -> None:
    """Let a layer start by answering zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """No autocast: sampling positions are never of reduced precision."""
    if torch.is_autocast_enabled(like.device.type):
        return torch.autocast(like.device.type, enabled=False)
    return nullcontext()


def cell_grid(height: int, width: int, like: Tensor) -> Tensor:
    """(2, height, width) continuous x, y of the centres of a map's cells."""
    y = torch.arange(height, dtype=like.dtype, device=like.device) + 0.5
    x = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
    return torch.stack([x[None, :].expand(height, width), y[:, None].expand(height, width)])


def scaled(transforms: Tensor, cell_px: float) -> Tensor:
    """(..., 2, 3) affines of crop pixels, for maps whose cells are `cell_px` crop pixels wide."""
    return torch.cat([transforms[..., :2], transforms[..., 2:] / cell_px], dim=-1)


def warp(maps: Tensor, affines: Tensor) -> Tensor:
    """Look up each map where its affine points, bilinear, zeros outside.

    Args:
        maps: (B, C, h, w).
        affines: (B, 2, 3) from cells of the result to cells of `maps` (continuous).
    """
    height, width = maps.shape[2:]
    cells = cell_grid(height, width, maps).flatten(1).T
    cells = torch.cat([cells, torch.ones_like(cells[:, :1])], dim=1)
    per_cell = torch.tensor([[2 / width], [2 / height]], dtype=maps.dtype, device=maps.device)
    corner = torch.tensor([0.0, 0.0, 1.0], dtype=maps.dtype, device=maps.device)  # grid_sample counts from -1 to 1
    places = cells @ (affines * per_cell - corner).transpose(1, 2)
    places = places.reshape(-1, height, width, 2)
    return functional.grid_sample(maps, places, mode="bilinear", padding_mode="zeros", align_corners=False)


class GlobalTransformation(nn.Module):
    """The translation that brings a supporting map to the key frame's as a whole (FAMI-Pose, equation 3).

    Forward: key and supporting maps, both (N, C, h, w) -> (N, 2) x, y in cells of those maps. Starts at zero.
    """

    def __init__(self, channels: int, hidden: int = 32) -> None:
        super().__init__()
        self.pair = RoundingPlace()
        self.match = nn.Sequential(conv_bn(2 * channels, hidden, 3), conv_bn(hidden, hidden, 3, 2))
        self.translation = nn.Linear(hidden, 2)
        zero(self.translation)

    def forward(self, key: Tensor, support: Tensor) -> Tensor:
        pair = self.pair(torch.cat([key, support], dim=1))
        y: Tensor = self.translation(self.match(pair).mean(dim=(2, 3)))
        return y


class LocalOffsets(nn.Module):
    """Sampling offsets and modulation of the deformable convolution.

    Forward: key and warped supporting maps, both (N, C, h, w) -> offsets (N, G, K, 2, h, w) as y, x in cells, and masks
    (N, G*K, h, w) in 0..1 (a sigmoid bounds them; the released network leaves them unbounded). Offsets start at zero
    and masks at one half.
    """

    def __init__(self, channels: int, groups: int, hidden: int = 48) -> None:
        super().__init__()
        self.groups = groups
        self.pair = RoundingPlace()
        self.body = nn.Sequential(
            conv_bn(2 * channels, hidden), conv_bn(hidden, hidden, 5, groups=hidden), conv_bn(hidden, hidden)
        )
        self.out = nn.Conv2d(hidden, groups * TAPS * 3, 1)
        zero(self.out)

    def forward(self, key: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
        y = self.out(self.body(self.pair(torch.cat([key, support], dim=1))))
        split = 2 * self.groups * TAPS
        return y[:, :split].unflatten(1, (self.groups, TAPS, 2)), y[:, split:].sigmoid()


def sampling_offsets(local: Tensor, affines: Tensor) -> Tensor:
    """Deformable-convolution offsets that sample where `affines` takes key cell + tap + local offset.

    Args:
        local: (N, G, K, 2, h, w) y, x in cells.
        affines: (N, 2, 3) from key cells to supporting cells (continuous).

    Returns:
        (N, G*K*2, h, w), interleaved (dy, dx) as DeformConv wants them. An identity affine returns `local`.
    """
    height, width = local.shape[-2:]
    x, y = cell_grid(height, width, local)
    reach = KERNEL // 2
    taps = torch.arange(TAPS, device=local.device)
    tap_y, tap_x = (taps // KERNEL - reach).view(-1, 1, 1), (taps % KERNEL - reach).view(-1, 1, 1)
    at_y, at_x = (y + tap_y).flatten(1), (x + tap_x).flatten(1)
    places = torch.stack([at_y, at_x, torch.ones_like(at_x)], dim=1)  # (K, 3, h*w)
    turned = affines.flip(1)[:, :, [1, 0, 2]]  # y before x
    identity = torch.eye(2, 3, dtype=affines.dtype, device=affines.device)
    moved = (turned - identity)[:, None] @ places  # (N, K, 2, h*w)
    offsets = turned[:, None, None, :, :2] @ local.flatten(4) + moved[:, None]
    return offsets.reshape(*offsets.shape[:-1], height, width).flatten(1, 3)


class Alignment(nn.Module):
    """Supporting maps resampled to fit the key frame's, each by itself.

    Args:
        channels: C of the maps.
        groups: offset groups of the deformable convolution.
    """

    def __init__(self, channels: int, groups: int = 4) -> None:
        super().__init__()
        self.groups = groups
        self.global_transformation = GlobalTransformation(channels)
        self.local_offsets = LocalOffsets(channels, groups)
        weight = torch.zeros(channels, channels, KERNEL, KERNEL)
        weight[torch.arange(channels), torch.arange(channels), KERNEL // 2, KERNEL // 2] = 2.0
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, key: Tensor, supports: Tensor, transforms: Tensor, cell_px: float) -> tuple[Tensor, Tensor]:
        """Align.

        Args:
            key: (B, C, h, w).
            supports: (B, S, C, h, w).
            transforms: (B, S, 2, 3) from key-crop to supporting-crop pixels.
            cell_px: crop pixels a cell.

        Returns:
            aligned (B, S, C, h, w), translations (B, S, 2) x, y in cells.
        """
        batch, count = supports.shape[:2]
        flat = supports.flatten(0, 1)
        repeated = key.unsqueeze(1).expand_as(supports).flatten(0, 1)
        affines, translation = self.place(repeated, flat, transforms.flatten(0, 1), cell_px)
        aligned = self.sample(repeated, flat, affines)
        return aligned.view_as(supports), translation.view(batch, count, 2)

    def place(self, key: Tensor, supports: Tensor, known: Tensor, cell_px: float) -> tuple[Tensor, Tensor]:
        """Known transform, then the learned translation.

        Args:
            key, supports: (N, C, h, w).
            known: (N, 2, 3) from key-crop to supporting-crop pixels.

        Returns:
            affines (N, 2, 3) from key cells to supporting cells, translations (N, 2) in cells.
        """
        small, key_small = functional.avg_pool2d(supports, 2), functional.avg_pool2d(key, 2)
        with full_precision(supports):
            near = warp(small.float(), scaled(known, 2 * cell_px))
        translation = 2 * self.global_transformation(key_small, near).float()
        affines = scaled(known, cell_px)
        return torch.cat([affines[:, :, :2], affines[:, :, 2:] + translation[:, :, None]], dim=2), translation

    def sample(self, key: Tensor, supports: Tensor, affines: Tensor) -> Tensor:
        """The deformable convolution: supports (N, C, h, w) looked up where `affines` and the local offsets point."""
        with full_precision(supports):
            moved = warp(supports.float(), affines)
        local, masks = self.local_offsets(key, moved)
        with full_precision(supports):
            offsets = sampling_offsets(local.float(), affines)
            return deform_conv2d(
                supports.float(), offsets, masks.float(), self.weight, self.bias, padding=(1, 1),
                offset_groups=self.groups,
            )  # fmt: skip


class JointAlignment(nn.Module):
    """The released network's order: every supporting map is moved as a whole, all are aggregated to one map, and the
    aggregate is aligned.

    Args:
        channels: C of the maps.
        supports: S, how many supporting maps there always are.
        groups: offset groups of the deformable convolution.

    Forward: as `Alignment`, but aligned is (B, 1, C, h, w).
    """

    def __init__(self, channels: int, supports: int, groups: int = 4) -> None:
        super().__init__()
        self.supports = supports
        self.single = Alignment(channels, groups)
        self.moved = RoundingPlace()
        self.aggregate = conv_bn(supports * channels, channels)

    def forward(self, key: Tensor, supports: Tensor, transforms: Tensor, cell_px: float) -> tuple[Tensor, Tensor]:
        batch, count = supports.shape[:2]
        if count != self.supports:
            raise ValueError(f"this network was made for {self.supports} supporting frames, got {count}")
        flat = supports.flatten(0, 1)
        repeated = key.unsqueeze(1).expand_as(supports).flatten(0, 1)
        affines, translation = self.single.place(repeated, flat, transforms.flatten(0, 1), cell_px)
        with full_precision(flat):
            moved = warp(flat.float(), affines)
        merged = self.aggregate(self.moved(moved.view(batch, -1, *moved.shape[2:])))
        still = torch.eye(2, 3, device=key.device).expand(batch, 2, 3)
        return self.single.sample(key, merged, still).unsqueeze(1), translation.view(batch, count, 2)
