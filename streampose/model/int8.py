"""A lite network in int8: what it is made of, how it gets its steps, and the form in which it is exported."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from streampose.errors import UsageError
from streampose.model.fuser import Fuser
from streampose.model.lite import LiteEncoder
from streampose.model.mobile import RoundingPlace, folded
from streampose.model.network import IMAGENET_MEAN, IMAGENET_STD, FamiPose
from streampose.model.rounding import Convolution8, Pixels, Rounding

PRECISION = "int8"
M = TypeVar("M", bound=nn.Module)


def is_int8(network: FamiPose) -> bool:
    """Whether a network computes in int8."""
    return network.description.get("precision") == PRECISION


def to_int8(network: FamiPose) -> FamiPose:
    """A copy that computes in int8 all but the heads and what lies between the fuser's convolutions: sampling, trust
    and decoding. BatchNorm is folded. `calibrate` gives it its steps.

    Raises:
        UsageError: not a lite network with supporting frames.
    """
    encoder, fuser = network.encoder, network.fuser
    if not isinstance(encoder, LiteEncoder) or not isinstance(fuser, Fuser):
        raise UsageError("int8 is for lite networks with supporting frames")
    encoder, fuser = _converted(encoder), _converted(fuser)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    stem = encoder.trunk.stem
    _take_pixels(stem[0], mean, deviation)
    encoder.trunk.stem = nn.Sequential(Pixels(mean, deviation), stem)
    fuser.taken = features_rounding(encoder)
    return FamiPose(encoder, fuser, network.description | {"precision": PRECISION}).eval()


def features_rounding(encoder: LiteEncoder) -> Rounding:
    """What rounds the features of an encoder in int8."""
    block = encoder.out[-1]
    assert isinstance(block, nn.Sequential)
    last = block[0]
    assert isinstance(last, Convolution8)
    return last.out


def _converted(module: M) -> M:
    copy = folded(module)
    _convert(copy)
    assert isinstance(copy, type(module))
    return copy


def _convert(module: nn.Module) -> None:
    """Put a `Convolution8` in the place of each convolution but the heads', and a `Rounding` in each place for one."""
    for name, part in module.named_children():
        if name in ("head", "coarse_heads"):
            continue
        if isinstance(part, RoundingPlace):
            setattr(module, name, Rounding(part.bounded))
        elif isinstance(part, nn.Conv2d):
            bounded = isinstance(module, nn.Sequential) and isinstance(module[-1], nn.ReLU6)
            setattr(module, name, Convolution8(part, bounded))
        elif isinstance(part, nn.ReLU6):
            setattr(module, name, nn.Identity())
        else:
            _convert(part)


@torch.no_grad()
def _take_pixels(stem: nn.Module, mean: Tensor, deviation: Tensor) -> None:
    """Let the first convolution take what `Pixels` gives."""
    assert isinstance(stem, Convolution8)
    stem.weight.div_(deviation * Pixels.STEP)
    stem.bias.add_((stem.weight * (Pixels.PIXEL_ZERO - mean) * Pixels.STEP).sum(dim=(1, 2, 3)))


@torch.no_grad()
def calibrate(network: FamiPose, run: Callable[[], object]) -> None:
    """Choose all steps by what passes while `run` runs a network of `to_int8` on typical windows, unrounded."""
    roundings = [part for part in network.modules() if isinstance(part, Rounding)]
    convolutions = [part for part in network.modules() if isinstance(part, Convolution8)]
    parts: list[Rounding | Convolution8] = [*roundings, *convolutions]
    for part in parts:
        part.watching = True
    run()
    for part in parts:
        part.settle()


def exactly(network: FamiPose) -> FamiPose:
    """A copy for inference that computes what ONNX Runtime's integers do, see `streampose.model.rounding`."""
    copy = deepcopy(network).eval()
    for part in copy.modules():
        if isinstance(part, Rounding | Convolution8):
            part.exact = True
    return copy
