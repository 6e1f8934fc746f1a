"""Arithmetic in eight bits, simulated in float32.

What is rounded stays float32: multiples of a step. Training rounds weights and values by torch's fused operators, whose
gradients pass as if nothing was rounded, and are zero where a value is cut off (Jacob et al., arXiv 1712.05877).

`exact` computes what ONNX Runtime's integers do, bit for bit: a convolution brings its operands to whole numbers, whose
sums float32 holds exactly below 2^24, and rounds sum * scale once, half to even, as QLinearConv. Where values of both
signs are added, steps are powers of two, so that the addition is exact too. Less would not do: in a deep network a
single value rounded to the other side moves its neighbours' rounding in the next layer, until all is rounded otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 255
LARGEST = 6.0
"""Of ReLU6."""
WEIGHT_LIMIT = 63
"""Weights are -63..63: with 255 times twice that, ONNX Runtime's 16-bit sums on CPUs without VNNI cannot overflow."""
BIAS_LIMIT = 2**21
"""A channel whose weights are next to nothing beside its bias gets larger steps, or its sums would be too large."""
SIGNED_ZERO = 128
WATCHED_VALUES = 8192
"""So many values of each batch decide about a step."""
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Steps that are tried, as shares of the one that holds the largest value."""


class Rounding(nn.Module):
    """Rounds to one of 256 multiples of a step.

    Attributes:
        step: the step; 0 until it is known.
        bounded: values lie in 0..6 and use 0..255; others use -128..127, and their step is a power of two.
        watching: let everything pass unrounded and remember it, see `settle`.
        exact: as ONNX Runtime; without gradients.
    """

    step: Tensor
    _zero: Tensor

    def __init__(self, bounded: bool) -> None:
        super().__init__()
        self.register_buffer("step", torch.tensor(0.0))
        self.register_buffer("_zero", torch.tensor(0 if bounded else SIGNED_ZERO, dtype=torch.int32), persistent=False)
        self.bounded = bounded
        self.watching = False
        self.exact = False
        self._seen: list[Tensor] = []
        self._largest = 0.0

    @property
    def zero(self) -> int:
        """What uint8 stands for 0."""
        return 0 if self.bounded else SIGNED_ZERO

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest multiple."""
        return -self.zero, LEVELS - self.zero

    def forward(self, x: Tensor) -> Tensor:
        if self.watching:
            return self.watch(x)
        if self.exact:
            return (x / self.step).round().clamp(*self.limits) * self.step
        return torch.fake_quantize_per_tensor_affine(x, self.step, self._zero, 0, LEVELS)

    def watch(self, x: Tensor) -> Tensor:
        """Remember some values of x; it leaves marked, for the convolution that it goes into."""
        flat = x.detach().flatten()
        self._seen.append(flat[:: flat.numel() // WATCHED_VALUES | 1].clone())
        self._largest = max(self._largest, float(flat.abs().max()))
        x.rounded_by = self  # type: ignore[attr-defined]
        return x

    def settle(self) -> None:
        """Choose the step that moves what was seen least.

        Raises:
            ValueError: nothing was seen.
        """
        if not self._seen:
            raise ValueError("a place where the network rounds was never passed")
        seen, largest = torch.cat(self._seen), max(self._largest, 1e-6)
        low, high = self.limits
        steps = torch.tensor(SHARES) * min(largest, LARGEST) / high
        if not self.bounded:
            steps = torch.tensor(largest / high).log2().ceil() - torch.arange(4)
            steps = torch.exp2(steps)
        errors = [((seen / step).round().clamp(low, high) * step - seen).square().mean() for step in steps]
        self.step.copy_(steps[int(torch.stack(errors).argmin())])
        self._seen, self._largest, self.watching = [], 0.0, False


class Pixels(Rounding):
    """Normalised pixels back to those of an 8-bit picture, less `PIXEL_ZERO`, in units of 64, so that the weights that
    meet them are of the size of others, and learn as fast."""

    PIXEL_ZERO = 114
    STEP = 1 / 64

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        """
        Args:
            mean, deviation: (1, 3, 1, 1), of the normalisation, in 0..255.
        """
        super().__init__(bounded=True)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)
        self.step.fill_(self.STEP)

    @property
    def zero(self) -> int:
        return self.PIXEL_ZERO

    def forward(self, x: Tensor) -> Tensor:
        pixels = ((x * self.deviation + self.mean).round() - self.PIXEL_ZERO) * self.step
        pixels.rounded_by = self  # type: ignore[attr-defined]
        return pixels

    def settle(self) -> None:
        self.watching = False


class Convolution8(nn.Module):
    """A convolution in eight bits, with what rounds its result. Its input was rounded before.

    Args:
        like: whose weights, bias and geometry are taken over.
        bounded: whether a ReLU6 follows, which the rounding's limits are then.

    Attributes:
        input_step: of what comes in; 0 until it is known.
        watching, exact: as of `Rounding`.
    """

    input_step: Tensor

    def __init__(self, like: nn.Conv2d, bounded: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(like.weight.detach().clone())
        bias = torch.zeros(like.out_channels) if like.bias is None else like.bias.detach().clone()
        self.bias = nn.Parameter(bias)
        self.geometry: tuple[Any, ...] = (like.stride, like.padding, like.dilation, like.groups)
        self.register_buffer("input_step", torch.tensor(0.0))
        self.out = Rounding(bounded)
        self.watching = False
        self.exact = False
        self._source: tuple[Rounding, ...] = ()

    def scales(self) -> Tensor:
        """(O,) float32: the step of each output channel's weights, and with `input_step` of its bias."""
        by_weight = self.weight.detach().abs().amax(dim=(1, 2, 3)) / WEIGHT_LIMIT
        by_bias = self.bias.detach().abs() / (self.input_step * BIAS_LIMIT)
        return torch.maximum(by_weight, by_bias).clamp(min=1e-12)

    def whole_weight(self) -> Tensor:
        """The weights as multiples of `scales`, without gradients."""
        step = self.scales().view(-1, 1, 1, 1)
        return (self.weight.detach() / step).round().clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)

    def whole_bias(self) -> Tensor:
        """The bias as multiples of `input_step * scales`, without gradients."""
        return (self.bias.detach() / (self.input_step * self.scales())).round()

    def forward(self, x: Tensor) -> Tensor:
        if self.watching:
            return self._watch(x)
        if self.exact:
            sums = functional.conv2d(
                (x / self.input_step).round(), self.whole_weight(), self.whole_bias(), *self.geometry
            )
            scale = self.input_step * self.scales() / self.out.step
            return (sums * scale.view(1, -1, 1, 1)).round().clamp(*self.out.limits) * self.out.step
        scales = self.scales()
        weight = torch.fake_quantize_per_channel_affine(
            self.weight, scales, torch.zeros_like(scales, dtype=torch.int32), 0, -WEIGHT_LIMIT, WEIGHT_LIMIT
        )
        y: Tensor = self.out(functional.conv2d(x, weight, self.bias, *self.geometry))
        return y

    def _watch(self, x: Tensor) -> Tensor:
        source = getattr(x, "rounded_by", None)
        if source is None:
            raise ValueError("a convolution in int8 is given what was not rounded")
        self._source = (source,)
        y = functional.conv2d(x, self.weight, self.bias, *self.geometry)
        return self.out.watch(y.clamp(0, LARGEST) if self.out.bounded else y)

    def settle(self) -> None:
        """Take over the step of what comes in."""
        (source,) = self._source
        self.input_step.copy_(source.step)
        self._source, self.watching = (), False
