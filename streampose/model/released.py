"""The network that FAMI-Pose's authors released (class Alignment_V15), tensor by tensor, to load their weights and to
compare with. What it does differently from `variant="paper"` is listed in docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from streampose.errors import ModelError
from streampose.model.align import scaled, warp
from streampose.model.fuser import STRIDE, Fused
from streampose.model.hrnet import chain, own_name, public_name
from streampose.plugins.deform_conv import deform_conv2d

CHANNELS = 48
JOINTS = 17
SUPPORTS = 4
SIZE = (384, 288)
GROUPS = 12
DILATION = 3
TAPS = 9
BACKBONE = "hrnet."


class Chain(nn.Module):
    """Basic blocks under the authors' name `layers`."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.layers = chain(inputs, outputs, blocks)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class Convolution(nn.Module):
    """A 3x3 convolution under the authors' name `conv`; with `stride` 2 also BatchNorm (`bn`) and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation)
        self.bn = nn.BatchNorm2d(outputs) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y if self.bn is None else torch.relu(self.bn(y))


class DeformConv(nn.Module):
    """Weight and bias of a 3x3 deformable convolution, dilation 3, 12 offset groups; masks are taken as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(CHANNELS, CHANNELS, 3, 3))
        self.bias = nn.Parameter(torch.zeros(CHANNELS))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        same = (DILATION, DILATION)
        return deform_conv2d(x, offset, mask, self.weight, self.bias, padding=same, dilation=same, offset_groups=GROUPS)


class ReleasedFuser(nn.Module):
    """From the HRNet's features on: global translation of each supporting map, one aggregate, four deformable
    convolutions, fusion.

    Forward: features (B, 5, 48, 96, 72) with the key frame first, transforms (B, 5, 2, 2, 3) as `Fuser`
    takes them -> `Fused`; `aligned` is (B, 1, 48, 96, 72).
    """

    aligned_channels = CHANNELS

    def __init__(self) -> None:
        super().__init__()
        down = [Convolution(16, 16, stride=2) for _ in range(5)]
        linear = [nn.Linear(16 * 9, 64), nn.Linear(64, 64), nn.Linear(64, 2)]
        self.feat_global_offset_layers = nn.Sequential(Chain(CHANNELS, 16, 1), *down, nn.Flatten(), *linear)
        self.combined_feat_layers = Chain(2 * CHANNELS, CHANNELS, 1)
        for step in (1, 2, 3, 4):
            self.add_module(f"dcn_offset_{step}", Convolution(CHANNELS, 2 * TAPS * GROUPS, dilation=DILATION))
            self.add_module(f"dcn_mask_{step}", Convolution(CHANNELS, TAPS * GROUPS, dilation=DILATION))
            self.add_module(f"dcn_{step}", DeformConv())
        self.sup_agg_block = Chain(SUPPORTS * CHANNELS, CHANNELS, 2)
        self.init_feature_agg_block = Chain(2 * CHANNELS, CHANNELS, 3)
        self.agg_final_layer = nn.Conv2d(CHANNELS, JOINTS, 3, 1, 1)

    def forward(self, features: Tensor, transforms: Tensor) -> Fused:
        frames = features.shape[1]
        size = (SIZE[0] // STRIDE, SIZE[1] // STRIDE)
        if frames != 1 + SUPPORTS or tuple(features.shape[3:]) != size:
            raise ValueError(
                f"the released network takes windows of {1 + SUPPORTS} crops of {SIZE[0]}x{SIZE[1]}, not of {frames} "
                f"crops of {STRIDE * features.shape[3]}x{STRIDE * features.shape[4]}"
            )
        key, moved, translations = features[:, 0], [], []
        for frame in range(1, frames):
            support = _undo(features[:, frame], transforms[:, frame, 0])
            translations.append(self.feat_global_offset_layers(support - key))
            moved.append(translate(support, translations[-1]))
        aggregate = self.sup_agg_block(torch.cat(moved, dim=1))
        combined = self.combined_feat_layers(torch.cat([aggregate, key], dim=1))
        combined = self._deform(1, combined, combined)
        combined = self._deform(2, combined, combined)
        aligned = self._deform(3, aggregate, combined)
        aligned = self._deform(4, aligned, aligned)
        fused = self.init_feature_agg_block(torch.cat([key, aligned], dim=1))
        return Fused(self.agg_final_layer(fused), aligned.unsqueeze(1), torch.stack(translations, dim=1), fused)

    def _deform(self, step: int, x: Tensor, guide: Tensor) -> Tensor:
        """Deformable convolution number `step` of x, with offsets and masks from `guide`."""
        offset, mask = self.get_submodule(f"dcn_offset_{step}")(guide), self.get_submodule(f"dcn_mask_{step}")(guide)
        y: Tensor = self.get_submodule(f"dcn_{step}")(x, offset, mask)
        return y


def _undo(support: Tensor, transform: Tensor) -> Tensor:
    """A supporting map (B, C, h, w) as the key frame's crop would have shown it; exactly itself where `transform`, from
    key-crop to its crop pixels, is the identity."""
    same = (transform == torch.eye(2, 3, device=transform.device)).flatten(1).all(dim=1)
    return torch.where(same[:, None, None, None], support, warp(support, scaled(transform, float(STRIDE))))


def translate(maps: Tensor, shift: Tensor) -> Tensor:
    """Move maps (B, C, h, w) by `shift` (B, 2) x, y in cells, bilinear, zeros outside.

    With offsets of thousands of cells, which unbounded masks allow, the network amplifies a last bit to another
    result. So this rounds as kornia's `warp_affine` (0.9), the authors' tool, does: corner-aligned coordinates, from
    the inverse (by cofactors) of the normalised matrix.
    """
    height, width = maps.shape[2:]
    per_x = torch.tensor(2.0 / (width - 1), device=maps.device)
    per_y = torch.tensor(2.0 / (height - 1), device=maps.device)
    pixels_x, pixels_y = per_y / (per_x * per_y), per_x / (per_x * per_y)
    scale_x, scale_y = per_x * pixels_x, per_y * pixels_y
    offset_x, offset_y = per_x * (pixels_x + shift[:, 0]) - 1, per_y * (pixels_y + shift[:, 1]) - 1
    determinant = scale_x * scale_y
    x = scale_y / determinant * torch.linspace(-1, 1, width, device=maps.device)
    y = scale_x / determinant * torch.linspace(-1, 1, height, device=maps.device)
    x = x - (offset_x * scale_y / determinant)[:, None]
    y = y - (scale_x * offset_y / determinant)[:, None]
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1)
    return functional.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def from_released(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' tensors under our names.

    Args:
        state: by the authors' names.
        wanted: our network's tensors, which say what there must be.

    Raises:
        ModelError: tensors are missing, left over or of another shape.
    """
    ours = {own_released_name(name): tensor for name, tensor in state.items()}
    missing = [released_name(name) for name in wanted if name not in ours]
    left_over = [released_name(name) for name in ours if name not in wanted]
    wrong = [released_name(n) for n, t in ours.items() if n in wanted and t.shape != wanted[n].shape]
    faults = (("missing", missing), ("left over", left_over), ("of another shape", wrong))
    found = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in faults
        if names
    ]
    if found:
        raise ModelError(f"these are not the tensors of the released FAMI-Pose: {'; '.join(found)}")
    return ours


def own_released_name(name: str) -> str:
    """Our name of one of the authors' tensors."""
    if name.startswith(BACKBONE):
        return f"encoder.{own_name(name.removeprefix(BACKBONE))}"
    return f"fuser.{name}"


def released_name(name: str) -> str:
    """The authors' name of one of our tensors."""
    if name.startswith("encoder."):
        return BACKBONE + public_name(name.removeprefix("encoder."))
    return name.removeprefix("fuser.")
