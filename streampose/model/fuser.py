"""Features of a window to the key frame's heatmaps: align the supporting frames, weigh them, correct the key frame, and
average where frames agree."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from streampose.errors import UsageError
from streampose.model.align import Alignment, JointAlignment, zero
from streampose.model.calm import COARSER, average
from streampose.model.mobile import RoundingPlace, conv_bn, separable

STRIDE = 4


class Fused(NamedTuple):
    """What a fuser computes of a window.

    Attributes:
        heatmaps: (B, J, h, w) of the key frame.
        aligned: (B, S, C', h', w') supporting maps aligned to the key frame, at the alignment's resolution; S is 1
            where they are aggregated before.
        translations: (B, S, 2) x, y of the global transformation, in cells of the alignment's maps.
        fused: (B, C, h, w) the features that the head reads.
    """

    heatmaps: Tensor
    aligned: Tensor
    translations: Tensor
    fused: Tensor


class Fuser(nn.Module):
    """The streaming half of the network, for any encoder.

    Alignment runs on maps narrowed by `narrow`: the deformable convolution is what costs most, and the features that a
    heatmap is made of are smooth. The aligned maps are weighed against each other at each cell and added to the key
    frame's features as a correction that starts at zero: with the encoder's head, an untrained fuser is the
    single-frame network, averaged where frames agree.

    On HRNet-W48 at 384x288 (no narrowing, 12 offset groups) a window of five costs 3.8 GFLOPs and 0.14 M parameters,
    where the released network has 14.7 GFLOPs and 1.1 M.

    Args:
        channels: C of the features.
        joints: maps of the head.
        supports: S, supporting frames of a window; "per-frame" alignment takes any number all the same.
        motion_channels: channels of the maps that are aligned.
        narrow: their stride on the features: 1 or 2.
        groups: offset groups of the deformable convolution.
        width: channels of the correction's layers.
        alignment: "per-frame" aligns each supporting map; "joint" aggregates the globally moved maps and aligns the
            aggregate, in the order of the released network.
        calm: average the maps with those of supporting frames that agree, see `streampose.model.calm`; they are logits.

    Forward: features (B, T, C, h, w) with the key frame first, transforms (B, T, 2, 2, 3) from key-crop to that frame's
    crop pixels, to the same place of the person and of the picture -> `Fused`.
    """

    def __init__(
        self, channels: int, joints: int, supports: int, motion_channels: int, narrow: int, groups: int = 4,
        width: int = 48, alignment: str = "per-frame", calm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if alignment not in ("per-frame", "joint"):
            raise UsageError(f'alignment is "per-frame" or "joint", not {alignment!r}')
        self.narrowing = narrow
        self.aligned_channels = motion_channels
        self.calm = calm
        self.taken: nn.Module = RoundingPlace(bounded=True)
        self.narrow = nn.Conv2d(channels, motion_channels, narrow, narrow)
        joint = alignment == "joint"
        self.alignment = (
            JointAlignment(motion_channels, supports, groups) if joint else Alignment(motion_channels, groups)
        )
        self.pair, self.known = RoundingPlace(), RoundingPlace()
        self.trust = nn.Sequential(conv_bn(2 * motion_channels, 16), nn.Conv2d(16, 1, 1))
        self.gather = conv_bn(2 * motion_channels, width)
        first, depth = conv_bn(channels + width, width), (separable(width, width, 5), separable(width, width))
        self.finest = RoundingPlace(bounded=True)
        last = nn.Conv2d(width, channels, 1)
        zero(last)
        self.correct = nn.Sequential(first, *depth, last)
        self.head = nn.Conv2d(channels, joints, 1)

    def start_from(self, head: nn.Conv2d) -> None:
        """Begin as the single-frame network with this head: the correction is zero."""
        self.head.load_state_dict(head.state_dict())
        last = self.correct[-1]
        assert isinstance(last, nn.Conv2d)
        zero(last)

    def forward(self, features: Tensor, transforms: Tensor) -> Fused:
        batch, frames = features.shape[:2]
        taken = self.taken(features.flatten(0, 1))
        motion = self.narrow(taken).unflatten(0, (batch, frames))
        key, supports = motion[:, 0], motion[:, 1:]
        aligned, translations = self.alignment(
            key, supports, transforms[:, 1:, 0], cell_px=float(STRIDE * self.narrowing)
        )
        pairs = torch.cat([key.unsqueeze(1).expand_as(aligned), aligned], dim=2)
        trust = self.trust(self.pair(pairs.flatten(0, 1))).unflatten(0, (batch, aligned.shape[1])).softmax(dim=1)
        gathered = self.gather(self.known(torch.cat([key, (trust * aligned).sum(dim=1)], dim=1)))
        if self.narrowing > 1:
            gathered = functional.interpolate(
                gathered, scale_factor=float(self.narrowing), mode="bilinear", align_corners=False
            )
        now = taken.unflatten(0, (batch, frames))[:, 0]
        fused = now + self.correct(self.finest(torch.cat([now, gathered], dim=1)))
        heatmaps = self.head(fused)
        if self.calm:
            alone = self.head(functional.avg_pool2d(taken, COARSER)).unflatten(0, (batch, frames))
            heatmaps = average(heatmaps, alone, transforms[:, :, 1], float(STRIDE))
        return Fused(heatmaps, aligned, translations, fused)
