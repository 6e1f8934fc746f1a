"""The lite encoder: EfficientNet-Lite0 and a light feature pyramid, features at stride 4."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from streampose.model.mobile import EfficientNetLite0, RoundingPlace, conv_bn, separable

PYRAMID_CHANNELS = 64
FEATURE_CHANNELS = 32


class LiteEncoder(nn.Module):
    """Features of single frames, and the single-frame heads that train them.

    Forward: (B, 3, H, W) float32 normalised, H and W divisible by 32 -> (B, 32, H/4, W/4) float32.
    """

    def __init__(self, joints: int = 17) -> None:
        super().__init__()
        self.trunk = EfficientNetLite0()
        self.channels = FEATURE_CHANNELS
        self.lateral = nn.ModuleList(conv_bn(c, PYRAMID_CHANNELS, act=False) for c in self.trunk.channels)
        self.sums = nn.ModuleList(RoundingPlace() for _ in self.trunk.channels[1:])
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
                y = self.sums[level](y + functional.interpolate(top, scale_factor=2.0, mode="nearest"))
            top = self.smooth[level](y)
            levels.append(top)
        levels[-1] = self.out(levels[-1])
        return levels
