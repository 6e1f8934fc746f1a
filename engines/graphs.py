"""The exported ONNX graphs, rewritten: deformable convolution as GridSample; half precision.

Needs onnx, and no torch. Every rewriting returns a new model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from streampose.errors import ModelError


@dataclass(frozen=True, slots=True)
class _DeformConv:
    """A DeformConv node with its attributes and the shapes that do not depend on the batch."""

    node: NodeProto
    channels: int
    size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]
    dilations: tuple[int, int]
    groups: int
    offset_groups: int

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]


def to_grid_sample(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every DeformConv as GridSample, a product with the mask and a 1x1 convolution: for what takes no plugin.

    Raises:
        ModelError: a node without mask or bias, or with padding that differs from side to side.
    """
    model = _copy(model)
    for index, conv in enumerate(_deform_convs(model)):
        _replace(model, conv.node, _as_grid_sample(model, conv, f"{conv.node.name or 'deform'}_{index}"))
    onnx.checker.check_model(model)
    return model


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convolutions and all between them in float16; sampling positions, sampling and decoding stay float32.

    `features`, the seam between encoder and fuser, becomes float16 too; the other inputs and outputs stay as they are.
    A node is float32 if a sampling position or the heatmaps depend on it with no convolution between, if it depends on
    the heatmaps, or if it looks maps up.
    """
    model = _copy(model)
    graph = model.graph
    nodes = _Nodes(model)
    single = nodes.before([node.input[place] for node in graph.node for place in _positions(node)], stop="Conv")
    single |= nodes.before(["heatmaps"], stop="Conv") | nodes.after(["heatmaps"])
    looked_up = {node.output[0] for node in graph.node if node.op_type in ("GridSample", "DeformConv")}
    starts = [output for node in graph.node if node.op_type == "Conv" for output in node.output]
    features = [value for value in (*graph.input, *graph.output) if value.name == "features"]
    half = nodes.after([*starts, *(value.name for value in features)])
    half |= set(starts)
    _retype(model, half - single - looked_up, nodes.types)
    return model


def to_float_input(model: onnx.ModelProto) -> onnx.ModelProto:
    """An encoder whose uint8 `crops` become float32 at once: TensorRT does nothing else with uint8."""
    model = _copy(model)
    first = helper.make_node("Cast", ["crops"], ["crops_single"], name="cast_crops", to=TensorProto.FLOAT)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = "crops_single" if name == "crops" else name
    model.graph.node.insert(0, first)
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model


class _Nodes:
    """Who reads and writes what."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._writer = {output: node for node in model.graph.node for output in node.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        inferred = onnx.shape_inference.infer_shapes(model).graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}

    def before(self, names: Iterable[str], stop: str) -> set[str]:
        """First outputs of the nodes that some tensors depend on, up to nodes of the type `stop`, exclusive."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            node = self._writer.get(waiting.pop())
            if node is not None and node.op_type != stop and node.output[0] not in found:
                found.add(node.output[0])
                waiting.extend(node.input)
        return found

    def after(self, names: Iterable[str]) -> set[str]:
        """First outputs of the nodes that depend on some tensors."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            for node in self._readers.get(waiting.pop(), ()):
                if node.output[0] not in found:
                    found.add(node.output[0])
                    waiting.extend(node.output)
        return found


def _positions(node: NodeProto) -> tuple[int, ...]:
    """Which inputs of a node are sampling positions."""
    return {"GridSample": (1,), "DeformConv": (2,)}.get(node.op_type, ())


def _retype(model: onnx.ModelProto, half: set[str], types: Mapping[str, int]) -> None:
    """Make the nodes whose first output is in `half` compute in float16, with casts where types meet."""
    graph = model.graph
    floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    now_half = {value.name for value in graph.input if value.name == "features"}
    nodes: list[NodeProto] = []
    casts: dict[tuple[str, bool], str] = {}

    def as_type(name: str, to_half: bool) -> str:
        if name not in floats or (name in now_half) == to_half:
            return name
        key = (name, to_half)
        if key not in casts:
            casts[key] = f"{name}_{'half' if to_half else 'single'}"
            if name in constants:
                value = numpy_helper.to_array(constants[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(value, casts[key]))
            else:
                kind = TensorProto.FLOAT16 if to_half else TensorProto.FLOAT
                nodes.append(helper.make_node("Cast", [name], [casts[key]], name=f"cast_{casts[key]}", to=kind))
        return casts[key]

    outputs = {value.name for value in graph.output}
    for node in graph.node:
        is_half = node.output[0] in half
        single = {*_positions(node), *((1, 2) if node.op_type == "Resize" else ())}
        for place, name in enumerate(node.input):
            node.input[place] = as_type(name, is_half and place not in single)
        nodes.append(node)
        if is_half and node.op_type != "Cast":
            now_half.update(name for name in node.output if name in floats)
    renamed = {name: f"{name}_half" for name in outputs & now_half if name != "features"}
    for node in nodes:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = renamed.get(name, name)
    for name, inner in renamed.items():
        nodes.append(helper.make_node("Cast", [inner], [name], name=f"cast_{name}", to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output):
        if value.name == "features":
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del graph.value_info[:]
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _deform_convs(model: onnx.ModelProto) -> list[_DeformConv]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*inferred.value_info, *inferred.input, *inferred.output]
    } | {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type != "DeformConv":
            continue
        values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        pads = values.get("pads", [0, 0, 0, 0])
        if len(node.input) != 5 or not all(node.input) or pads[:2] != pads[2:]:
            raise ModelError(f"{node.name}: a DeformConv has mask, bias and the same padding on opposite sides here")
        x, weight, offset = (shapes[name] for name in node.input[:3])
        found.append(
            _DeformConv(
                node, x[1], (x[2], x[3]), (offset[2], offset[3]), (weight[2], weight[3]),
                _pair(values.get("strides", [1, 1])), _pair(pads[:2]), _pair(values.get("dilations", [1, 1])),
                values.get("group", 1), values.get("offset_group", 1),
            )
        )  # fmt: skip
    return found


def _pair(values: list[int]) -> tuple[int, int]:
    first, second = values
    return first, second


def _as_grid_sample(model: onnx.ModelProto, conv: _DeformConv, name: str) -> list[NodeProto]:
    """Positions p become GridSample's (p + 0.5) * 2 / size - 1, where -1 and 1 are the map's edges."""
    x, weight, offset, bias, mask = conv.node.input
    taps, groups, (height, width), (out_h, out_w) = conv.taps, conv.offset_groups, conv.size, conv.out_size
    tap = np.arange(taps)
    y = np.arange(out_h) * conv.strides[0] - conv.pads[0] + (tap // conv.kernel[1] * conv.dilations[0])[:, None]
    x_at = np.arange(out_w) * conv.strides[1] - conv.pads[1] + (tap % conv.kernel[1] * conv.dilations[1])[:, None]
    at = np.empty((1, taps, 2, out_h, out_w), np.float32)
    at[0, :, 0], at[0, :, 1] = y[:, :, None], x_at[:, None, :]
    scale = np.array([2 / height, 2 / width], np.float32).reshape(1, 1, 2, 1, 1)
    constants: dict[str, NDArray[Any]] = {
        "by_tap": np.array([-1, taps, 2, out_h, out_w]),
        "scale": scale,
        "start": ((at + np.float32(0.5)) * scale - 1).astype(np.float32),
        "x_first": np.array([1, 0]),
        "flat_grid": np.array([-1, taps * out_h, out_w, 2]),
        "maps": np.array([-1, conv.channels // groups, height, width]),
        "by_group": np.array([-1, groups, conv.channels // groups, taps, out_h, out_w]),
        "mask_by_group": np.array([-1, groups, 1, taps, out_h, out_w]),
        "columns": np.array([-1, conv.channels * taps, out_h, out_w]),
        "filters": np.array([0, -1, 1, 1]),
    }
    for key, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, f"{name}_{key}"))
    nodes: list[NodeProto] = []

    def put(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        names = [f"{name}_{i}" if i in constants else i for i in inputs]
        target = output if output in conv.node.output else f"{name}_{output}"
        nodes.append(helper.make_node(kind, names, [target], name=f"{name}_{len(nodes)}", **attributes))
        return target

    shifts = put("Mul", [put("Reshape", [offset, "by_tap"], "shifts"), "scale"], "scaled")
    places = put("Gather", [put("Add", [shifts, "start"], "places"), "x_first"], "xy", axis=2)
    grid = put("Reshape", [put("Transpose", [places], "last", perm=[0, 1, 3, 4, 2]), "flat_grid"], "grid")
    sampled = put(
        "GridSample", [put("Reshape", [x, "maps"], "grouped"), grid], "sampled",
        mode="linear", padding_mode="zeros", align_corners=0,
    )  # fmt: skip
    masks = put("Reshape", [mask, "mask_by_group"], "masks")
    product = put("Mul", [put("Reshape", [sampled, "by_group"], "by_groups"), masks], "masked")
    filters = put("Reshape", [weight, "filters"], "kernels")
    put("Conv", [put("Reshape", [product, "columns"], "im2col"), filters, bias], conv.node.output[0], group=conv.groups)
    return nodes


def _replace(model: onnx.ModelProto, old: NodeProto, new: list[NodeProto]) -> None:
    place = list(model.graph.node).index(old)
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*rest[:place], *new, *rest[place + 1 :]])


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
