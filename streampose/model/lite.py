"""The lite encoder: EfficientNet-Lite0 and a light feature pyramid, features at stride 4."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from streampose.model.align import Alignment, zero
from streampose.model.mobile import EfficientNetLite0, conv_bn

PYRAMID_CHANNELS = 64
FEATURE_CHANNELS = 32


def separable(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Depthwise, then pointwise convolution, each with BatchNorm and ReLU6."""
    return nn.Sequential(conv_bn(inputs, inputs, kernel, groups=inputs), conv_bn(inputs, outputs))


class LiteEncoder(nn.Module):
    """Features of single frames, and the single-frame heads that train them.

    Forward: (B, 3, H, W) float32 normalised, H and W divisible by 32 -> (B, 32, H/4, W/4) float32.
    """

    def __init__(self, joints: int = 17) -> None:
        super().__init__()
        self.trunk = EfficientNetLite0()
        self.channels = FEATURE_CHANNELS
        self.lateral = nn.ModuleList(conv_bn(c, PYRAMID_CHANNELS, act=False) for c in self.trunk.channels)
        self.smooth = nn.ModuleList(separable(PYRAMID_CHANNELS, PYRAMID_CHANNELS, 5) for _ in self.trunk.channels)
        self.out = nn.Sequential(
            separable(PYRAMID_CHANNELS, PYRAMID_CHANNELS), conv_bn(PYRAMID_CHANNELS, self.channels)
        )
        self.head = nn.Conv2d(self.channels, joints, 1)
        self.coarse_heads = nn.ModuleList(nn.Conv2d(PYRAMID_CHANNELS, joints, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.pyramid(x)[-1]

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """The maps at strides 32, 16, 8 (64 channels each) and the features at stride 4."""
        maps = self.trunk(x)
        top: Tensor | None = None
        levels = []
        for level in reversed(range(len(maps))):
            y = self.lateral[level](maps[level])
            if top is not None:
                y = y + functional.interpolate(top, scale_factor=2.0, mode="nearest")
            top = self.smooth[level](y)
            levels.append(top)
        levels[-1] = self.out(levels[-1])
        return levels


class LiteFuser(nn.Module):
    """Five frames' features to the key frame's heatmaps.

    Alignment runs on maps narrowed to stride 8: the deformable convolution is what costs most, and the features that
    a heatmap is made of are smooth. The aligned maps are weighed against each other at each cell and added to the key
    frame's features as a correction that starts at zero: with the encoder's head, an untrained fuser is the
    single-frame network. Works for any number of supporting frames.

    Forward: features (B, T, 32, h, w) with the key frame first, transforms (B, T, 2, 3) from key-crop to that frame's
    crop pixels -> heatmaps (B, J, h, w), whose softmax is each joint's distribution.
    """

    def __init__(self, joints: int = 17, motion_channels: int = 32) -> None:
        super().__init__()
        channels = FEATURE_CHANNELS
        self.narrow = nn.Conv2d(channels, motion_channels, 2, 2)
        self.alignment = Alignment(motion_channels)
        self.trust = nn.Sequential(conv_bn(2 * motion_channels, 16), nn.Conv2d(16, 1, 1))
        self.gather = conv_bn(2 * motion_channels, 48)
        self.correct = nn.Sequential(
            conv_bn(channels + 48, 48), separable(48, 48, 5), separable(48, 48), nn.Conv2d(48, channels, 1)
        )
        last = self.correct[-1]
        assert isinstance(last, nn.Conv2d)
        zero(last)
        self.head = nn.Conv2d(channels, joints, 1)

    def forward(self, features: Tensor, transforms: Tensor) -> Tensor:
        batch, frames = features.shape[:2]
        motion = self.narrow(features.flatten(0, 1)).unflatten(0, (batch, frames))
        key, supports = motion[:, 0], motion[:, 1:]
        aligned, _ = self.alignment(key, supports, transforms[:, 1:], cell_px=8.0)
        pairs = torch.cat([key.unsqueeze(1).expand_as(aligned), aligned], dim=2)
        trust = self.trust(pairs.flatten(0, 1)).unflatten(0, (batch, frames - 1)).softmax(dim=1)
        gathered = self.gather(torch.cat([key, (trust * aligned).sum(dim=1)], dim=1))
        gathered = functional.interpolate(gathered, scale_factor=2.0, mode="bilinear", align_corners=False)
        correction = self.correct(torch.cat([features[:, 0], gathered], dim=1))
        heatmaps: Tensor = self.head(features[:, 0] + correction)
        return heatmaps
