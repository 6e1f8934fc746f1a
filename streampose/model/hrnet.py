"""HRNet (Sun et al., arXiv 1902.09212) as encoder: four branches of falling resolution that exchange what they know.

Modules and tensors have the names of the public checkpoints, but for the single-frame head, here `head` for
`final_layer`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

STEM = 64
DEEPEST_STRIDE = 32


def norm_conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Convolution without bias, then BatchNorm."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which a 1x1 convolution fits where the number of channels changes.

    Forward: (B, inputs, h, w) -> (B, outputs, h, w).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = norm_conv(inputs, outputs, 3)
        self.conv2, self.bn2 = norm_conv(outputs, outputs, 3)
        self.downsample = nn.Sequential(*norm_conv(inputs, outputs, 1)) if inputs != outputs else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions to four times `width` channels, and a shortcut as in `BasicBlock`."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = norm_conv(inputs, width, 1)
        self.conv2, self.bn2 = norm_conv(width, width, 3)
        self.conv3, self.bn3 = norm_conv(width, outputs, 1)
        self.downsample = nn.Sequential(*norm_conv(inputs, outputs, 1)) if inputs != outputs else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


def chain(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """`blocks` basic blocks, the first from `inputs` to `outputs` channels."""
    return nn.Sequential(BasicBlock(inputs, outputs), *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))


def _down(inputs: int, outputs: int, halvings: int, last_relu: bool) -> nn.Sequential:
    """Strided 3x3 convolutions; the last one changes the number of channels."""
    steps = []
    for step in range(halvings):
        last = step == halvings - 1
        layers = norm_conv(inputs, outputs if last else inputs, 3, 2)
        if not last or last_relu:
            layers.append(nn.ReLU(inplace=True))
        steps.append(nn.Sequential(*layers))
    return nn.Sequential(*steps)


class Exchange(nn.Module):
    """Four basic blocks a branch, then every branch gets the sum of all, brought to its resolution.

    Args:
        widths: channels of each branch; each has half the resolution of the one before.
        outputs: how many branches are computed.

    Forward: maps of all branches -> maps of the first `outputs` branches.
    """

    def __init__(self, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(chain(width, width, 4) for width in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._path(widths, source, target) for source in range(len(widths)))
            for target in range(outputs)
        )
        self.relu = nn.ReLU(inplace=True)

    @staticmethod
    def _path(widths: Sequence[int], source: int, target: int) -> nn.Module:
        if source == target:
            return nn.Identity()
        if source < target:
            return _down(widths[source], widths[target], target - source, last_relu=False)
        up = nn.Upsample(scale_factor=float(2 ** (source - target)), mode="nearest")
        return nn.Sequential(*norm_conv(widths[source], widths[target], 1), up)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for paths in self.fuse_layers:
            assert isinstance(paths, nn.ModuleList)
            total = paths[0](maps[0])
            for path, x in zip(paths[1:], maps[1:], strict=True):
                total = total + path(x)
            fused.append(self.relu(total))
        return fused


class HRNet(nn.Module):
    """Features of single frames, and the single-frame head that trains them.

    Args:
        width: channels of the finest branch: 32 or 48 in the paper. The others have twice, four and eight times that.
        joints: maps of the head.

    Forward: (B, 3, H, W) float32 normalised, H and W divisible by 32 -> (B, width, H/4, W/4).
    """

    def __init__(self, width: int, joints: int = 17) -> None:
        super().__init__()
        self.channels = width
        widths = [width << branch for branch in range(4)]
        self.conv1, self.bn1 = norm_conv(3, STEM, 3, 2)
        self.conv2, self.bn2 = norm_conv(STEM, STEM, 3, 2)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Bottleneck(STEM, 64), *(Bottleneck(256, 64) for _ in range(3)))
        same = nn.Sequential(*norm_conv(256, widths[0], 3), nn.ReLU(inplace=True))
        self.transition1 = nn.ModuleList([same, _down(256, widths[1], 1, last_relu=True)])
        self.stage2 = nn.ModuleList([Exchange(widths[:2], 2)])
        self.transition2 = self._transition(widths, 2)
        self.stage3 = nn.ModuleList(Exchange(widths[:3], 3) for _ in range(4))
        self.transition3 = self._transition(widths, 3)
        self.stage4 = nn.ModuleList(Exchange(widths, outputs) for outputs in (4, 4, 1))
        self.head = nn.Conv2d(width, joints, 1)
        nn.init.normal_(self.head.weight, std=0.001)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    @staticmethod
    def _transition(widths: Sequence[int], branches: int) -> nn.ModuleList:
        added = _down(widths[branches - 1], widths[branches], 1, last_relu=True)
        return nn.ModuleList([*(nn.Identity() for _ in range(branches)), added])

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.layer1(x)
        maps = [transition(x) for transition in self.transition1]
        for exchange in self.stage2:
            maps = exchange(maps)
        for transition, stage in ((self.transition2, self.stage3), (self.transition3, self.stage4)):
            maps = [*maps, transition[len(maps)](maps[-1])]
            for exchange in stage:
                maps = exchange(maps)
        finest: Tensor = maps[0]
        return finest


def public_name(name: str) -> str:
    """How public checkpoints call a tensor of `HRNet`."""
    return f"final_layer.{name.removeprefix('head.')}" if name.startswith("head.") else name


def own_name(public: str) -> str:
    """How `HRNet` calls a tensor of a public checkpoint."""
    return f"head.{public.removeprefix('final_layer.')}" if public.startswith("final_layer.") else public


def detect_width(state: dict[str, Tensor]) -> int | None:
    """The width of the HRNet that tensors with public names are of; None if they are of none."""
    first = state.get("stage2.0.branches.0.0.conv1.weight")
    return None if first is None or not isinstance(first, torch.Tensor) or first.dim() != 4 else int(first.shape[0])
