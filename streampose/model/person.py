"""The person detector: one class, no anchors, distances to the four sides at each cell (FCOS, arXiv 1904.01355)."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from streampose.model.mobile import EfficientNetLite0, Stage, conv_bn, separable
from streampose.model.network import centre, take_bgr

STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 1),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 2),
    Stage(5, 1, 6, 112, 2),
    Stage(5, 2, 6, 192, 1),
)
"""EfficientNet-Lite0 with fewer repeats and without its last stage: what fits into the time of one YOLOX-nano run."""
CHANNELS = 48
STRIDES = (8, 16, 32)


class Detections(NamedTuple):
    """Raw answers of all N cells, finest stride first: boxes (B, N, 4) xyxy input pixels and score logits (B, N)."""

    boxes: Tensor
    logits: Tensor


PERSON_SIZE = (384, 384)
"""Input of a detector that was not told another one."""


class PersonNetwork(nn.Module):
    """Forward: (B, 3, H, W) float32 normalised, H and W divisible by 32 -> `Detections`.

    Attributes:
        input_size: (height, width) that it is best at, for it was trained on such pictures last.
    """

    def __init__(self, input_size: tuple[int, int] = PERSON_SIZE) -> None:
        super().__init__()
        self.input_size = input_size
        self.trunk = EfficientNetLite0(STAGES)
        self.lateral = nn.ModuleList(conv_bn(c, CHANNELS, act=False) for c in self.trunk.channels[1:])
        self.smooth = nn.ModuleList(separable(CHANNELS, CHANNELS, 5) for _ in STRIDES)
        self.tower = nn.Sequential(separable(CHANNELS, CHANNELS, 5), separable(CHANNELS, CHANNELS, 5))
        self.score = nn.Conv2d(CHANNELS, 1, 1)
        self.sides = nn.Conv2d(CHANNELS, 4, 1)
        assert self.score.bias is not None
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.constant_(self.score.bias, -4.0)

    def forward(self, x: Tensor) -> Detections:
        maps = self.trunk(x)[1:]
        top: Tensor | None = None
        levels: list[Tensor] = []
        for level in reversed(range(len(maps))):
            y = self.lateral[level](maps[level])
            if top is not None:
                y = y + functional.interpolate(top, scale_factor=2.0, mode="nearest")
            top = self.smooth[level](y)
            levels.insert(0, top)
        boxes, logits = [], []
        for stride, features in zip(STRIDES, levels, strict=True):
            y = self.tower(features)
            sides = self.sides(y).clamp(-4, 6).exp().flatten(2).transpose(1, 2) * stride
            points = cell_centres(features.shape[2], features.shape[3], stride, features)
            boxes.append(torch.cat([points - sides[..., :2], points + sides[..., 2:]], dim=2))
            logits.append(self.score(y).flatten(1))
        return Detections(torch.cat(boxes, dim=1), torch.cat(logits, dim=1))


def cell_centres(height: int, width: int, stride: int, like: Tensor) -> Tensor:
    """(height * width, 2) x, y of the cells' centres in input pixels, row by row."""
    y, x = torch.meshgrid(
        torch.arange(height, device=like.device), torch.arange(width, device=like.device), indexing="ij"
    )
    return (torch.stack([x, y], dim=2).reshape(-1, 2).to(like.dtype) + 0.5) * stride


class PersonExport(nn.Module):
    """What is exported: frames (B, H, W, 3) uint8 BGR -> boxes (B, N, 4) xyxy input pixels, scores (B, N) 0..1."""

    def __init__(self, network: PersonNetwork) -> None:
        super().__init__()
        self.network = deepcopy(network)
        take_bgr(self.network.trunk)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        boxes, logits = self.network(centre(frames))
        return boxes, logits.sigmoid()
