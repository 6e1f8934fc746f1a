"""A network in int8 as ONNX graphs whose QuantizeLinear and DequantizeLinear stand where it rounds.

ONNX Runtime fuses them with what lies between: convolutions become QLinearConv, additions QLinearAdd. Features stay
uint8 from the encoder's graph to the fuser's.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnxscript import opset22
from torch import Tensor, nn
from torch.nn import functional

from streampose.engines.export import export_onnx
from streampose.engines.manifest import graph_files
from streampose.engines.onnxruntime import FEATURE_STEP
from streampose.model import FamiPose
from streampose.model.fuser import Fuser
from streampose.model.int8 import features_rounding
from streampose.model.lite import LiteEncoder
from streampose.model.rounding import Convolution8, Pixels, Rounding


@torch.library.custom_op("streampose::quantise", mutates_args=())
def quantise(x: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """ONNX's QuantizeLinear: float32 -> uint8."""
    return ((x / step).round() + zero).clamp(0, 255).to(torch.uint8)


@torch.library.custom_op("streampose::dequantise", mutates_args=())
def dequantise(x: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """ONNX's DequantizeLinear: whole numbers -> float32; with a step for each element of the first axis, or one."""
    shape = (-1, *(1 for _ in x.shape[1:])) if step.ndim else ()
    return (x.to(torch.int32) - zero.to(torch.int32).view(shape)).float() * step.view(shape)


@quantise.register_fake
def _(x: Tensor, step: Tensor, zero: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x, dtype=torch.uint8)


@dequantise.register_fake
def _(x: Tensor, step: Tensor, zero: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x, dtype=torch.float32)


def _quantise_node(x: Any, step: Any, zero: Any) -> Any:
    return opset22.QuantizeLinear(x, step, zero)


def _dequantise_node(x: Any, step: Any, zero: Any) -> Any:
    return opset22.DequantizeLinear(x, step, zero, axis=0)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.streampose.quantise.default: _quantise_node,
    torch.ops.streampose.dequantise.default: _dequantise_node,
}


class _Steps(nn.Module):
    """Rounds: float32 to uint8, if `inward`, and back, if `outward`."""

    step: Tensor
    zero: Tensor

    def __init__(self, like: Rounding, inward: bool = True, outward: bool = True) -> None:
        super().__init__()
        self.register_buffer("step", like.step.clone())
        self.register_buffer("zero", torch.tensor(like.zero, dtype=torch.uint8))
        self.inward, self.outward = inward, outward

    def forward(self, x: Tensor) -> Tensor:
        if self.inward:
            x = torch.ops.streampose.quantise(x, self.step, self.zero)
        return torch.ops.streampose.dequantise(x, self.step, self.zero) if self.outward else x


class _Convolution(nn.Module):
    """A convolution whose weights and bias are whole numbers times steps."""

    def __init__(self, like: Convolution8) -> None:
        super().__init__()
        self.geometry = like.geometry
        scales = like.scales()
        for name, values, step, kind in (
            ("weight", like.whole_weight(), scales, torch.int8),
            ("bias", like.whole_bias(), like.input_step * scales, torch.int32),
        ):
            self.register_buffer(name, values.to(kind))
            self.register_buffer(f"{name}_step", step.clone())
            self.register_buffer(f"{name}_zero", torch.zeros(len(step), dtype=kind))
        self.out = _Steps(like.out)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (
            torch.ops.streampose.dequantise(*(self.get_buffer(f"{name}{part}") for part in ("", "_step", "_zero")))
            for name in ("weight", "bias")
        )
        y: Tensor = self.out(functional.conv2d(x, weight, bias, *self.geometry))
        return y


def _deploy(module: nn.Module) -> None:
    for name, part in module.named_children():
        if isinstance(part, Convolution8):
            setattr(module, name, _Convolution(part))
        elif isinstance(part, Rounding):
            setattr(module, name, _Steps(part, inward=not isinstance(part, Pixels)))
        else:
            _deploy(part)


class _Encoder(nn.Module):
    """(P, H, W, 3) uint8 BGR crops -> (P, C, H/4, W/4) uint8 features."""

    def __init__(self, network: FamiPose) -> None:
        super().__init__()
        encoder = deepcopy(network.encoder)
        assert isinstance(encoder, LiteEncoder)
        with torch.no_grad():
            first: Any = encoder.trunk.stem[1][0]  # type: ignore[index]
            first.weight.copy_(first.weight.flip(1))
        last = features_rounding(encoder)
        _deploy(encoder)
        encoder.out[-1][0].out = _Steps(last, outward=False)  # type: ignore[index]
        self.encoder = encoder

    def forward(self, crops: Tensor) -> Tensor:
        features: Tensor = self.encoder(crops.permute(0, 3, 1, 2))
        return features


class _Fuser(nn.Module):
    """Features (P, T, C, h, w) uint8 and transforms (P, T, 2, 2, 3) -> keypoints and heatmaps, see `KeypointFuser`."""

    def __init__(self, network: FamiPose) -> None:
        super().__init__()
        fuser, heatmap = deepcopy(network.fuser), network.decode
        assert isinstance(fuser, Fuser)
        taken = fuser.taken
        assert isinstance(taken, Rounding)
        _deploy(fuser)
        fuser.taken = _Steps(taken, inward=False)
        self.fuser, self.decode = fuser, heatmap

    def forward(self, features: Tensor, transforms: Tensor) -> tuple[Tensor, Tensor]:
        heatmaps: Tensor = self.fuser(features, transforms).heatmaps
        return self.decode(heatmaps), heatmaps


def export_int8(network: FamiPose, folder: Path, input_size: tuple[int, int]) -> None:
    """Write a network of `streampose.model.int8` as the two graphs of a bundle; arguments as of `export_network`."""
    frames = 1 + len(network.offsets)
    encoder, fuser = (folder / name for name in graph_files("pose", "onnxruntime"))
    two = torch.zeros(2, *input_size, 3, dtype=torch.uint8)
    assert isinstance(network.encoder, LiteEncoder)
    properties = {"streampose.kind": "encoder", FEATURE_STEP: repr(float(features_rounding(network.encoder).step))}
    export_onnx(_Encoder(network), {"crops": two}, ["features"], encoder, properties, TRANSLATIONS)
    model = onnx.load(encoder)
    double_bytes(model)
    encoder.write_bytes(model.SerializeToString())
    shape = (2, frames, network.encoder.channels, input_size[0] // 4, input_size[1] // 4)
    window = {
        "features": torch.zeros(shape, dtype=torch.uint8),
        "transforms": torch.eye(2, 3).repeat(2, frames, 2, 1, 1),
    }
    export_onnx(_Fuser(network), window, ["keypoints", "heatmaps"], fuser, {"streampose.kind": "fuser"}, TRANSLATIONS)


def double_bytes(model: onnx.ModelProto) -> None:
    """Let nearest-neighbour Resizes by two double uint8 rows and columns, channels last, where they doubled float32:
    ONNX Runtime then keeps the addition that follows in int8, and its Resize is several times slower."""
    graph = model.graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    makers = {name: node for node in graph.node for name in node.output}
    for node in [node for node in graph.node if node.op_type == "Resize"]:
        back = makers[node.input[0]]
        _, channels, height, width = shapes[node.input[0]]
        name = f"{node.name}_bytes"
        constants = {
            "apart": [-1, height, 1, width, 1, channels],
            "twice": [1, height, 2, width, 2, channels],
            "joined": [-1, 2 * height, 2 * width, channels],
        }
        for key, values in constants.items():
            graph.initializer.append(numpy_helper.from_array(np.array(values), f"{name}_{key}"))
        steps: list[tuple[str, list[str], dict[str, Any]]] = [
            ("Transpose", [], {"perm": [0, 2, 3, 1]}),
            ("Reshape", [f"{name}_apart"], {}),
            ("Expand", [f"{name}_twice"], {}),
            ("Reshape", [f"{name}_joined"], {}),
            ("Transpose", [], {"perm": [0, 3, 1, 2]}),
        ]
        place, value, added = list(graph.node).index(node), back.input[0], []
        for index, (kind, inputs, attributes) in enumerate(steps):
            output = f"{name}_{index}"
            added.append(helper.make_node(kind, [value, *inputs], [output], name=output, **attributes))
            value = output
        added.append(helper.make_node("DequantizeLinear", [value, *back.input[1:]], [node.output[0]], name=name))
        rest = list(graph.node)
        del graph.node[:]
        graph.node.extend([*rest[:place], *added, *rest[place + 1 :]])
