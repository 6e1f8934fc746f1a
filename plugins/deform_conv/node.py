"""ONNX graphs with the plugin's node in the place of DeformConv."""

from __future__ import annotations

from typing import Any

import numpy as np

from streampose.errors import MissingExtraError, ModelError
from streampose.plugins.deform_conv.geometry import Geometry, Storage, pack_weight
from streampose.plugins.deform_conv.tensorrt_plugin import ATTRIBUTES, NAME, NAMESPACE, VERSION

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ModuleNotFoundError as error:
    raise MissingExtraError("onnx", "train") from error

TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}


def to_plugin(model: onnx.ModelProto, storage: Storage) -> onnx.ModelProto:
    """Put `streampose::deform_conv` in the place of every DeformConv; the model given stays as it is.

    Map, mask and weights become of the storage's type and offsets float32, by Cast nodes where they are not; the result
    is cast back to the type that DeformConv had. Weights and bias are packed here, so they must be initialisers.

    Args:
        storage: of the plugin's map, mask, weights and result.

    Raises:
        ModelError: a DeformConv that the plugin cannot stand for.
    """
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    graph = converted.graph
    types = _types(converted)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += _replacement(node, graph, constants, types, storage) if node.op_type == "DeformConv" else [node]
    if not any(node.op_type == NAME and node.domain == NAMESPACE for node in nodes):
        return converted
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    converted.opset_import.append(helper.make_opsetid(NAMESPACE, int(VERSION)))
    return converted


def geometry_of_node(node: onnx.NodeProto, weight_shape: tuple[int, ...], storage: Storage) -> Geometry:
    """The geometry of a DeformConv node.

    Raises:
        ModelError: it pads differently before and after the map, or its numbers do not fit.
    """
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    pads = given.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:]:
        raise ModelError(f"{node.name}: the plugin pads alike on both sides, this node pads by {pads}")
    stride, dilation = given.get("strides", [1, 1]), given.get("dilations", [1, 1])
    groups, offset_groups = given.get("group", 1), given.get("offset_group", 1)
    _, _, _, bias, mask = [*node.input, "", ""][:5]
    try:
        return Geometry.of(
            weight_shape, stride, pads[:2], dilation, groups, offset_groups, bool(mask), bool(bias), storage
        )
    except ValueError as error:
        raise ModelError(f"{node.name}: {error}") from None


def _replacement(
    node: onnx.NodeProto, graph: onnx.GraphProto, constants: dict[str, Any], types: dict[str, int], storage: Storage
) -> list[onnx.NodeProto]:
    """The plugin's node and its casts; packed constants go into the graph."""
    x, weight, offset, bias, mask = [*node.input, "", ""][:5]
    if weight not in constants or (bias and bias not in constants):
        raise ModelError(f"{node.name}: the plugin wants weights and bias as constants of the graph")
    array = numpy_helper.to_array(constants[weight]).astype(np.float32)
    geometry = geometry_of_node(node, array.shape, storage)
    name = node.name or node.output[0]
    packed = numpy_helper.from_array(pack_weight(array, geometry), f"{name}.packed")
    graph.initializer.append(packed)
    if bias:
        whole = numpy_helper.to_array(constants[bias]).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(whole, f"{name}.bias"))
    nodes: list[onnx.NodeProto] = []

    def cast(tensor: str, to: int, role: str) -> str:
        if types.get(tensor) == to:
            return tensor
        nodes.append(helper.make_node("Cast", [tensor], [f"{name}.{role}"], name=f"{name}.{role}.cast", to=to))
        return f"{name}.{role}"

    stored, result = TYPES[storage], types.get(node.output[0], types.get(x, TensorProto.FLOAT))
    x, offset = cast(x, stored, "x"), cast(offset, TensorProto.FLOAT, "offset")
    # where there is no mask or bias, a tensor of its type stands in its place, unread
    inputs = [x, offset, cast(mask, stored, "mask") if mask else x, packed.name, f"{name}.bias" if bias else offset]
    out = node.output[0] if result == stored else f"{name}.y"
    numbers: dict[str, Any] = {attribute: int(getattr(geometry, attribute)) for attribute in ATTRIBUTES}
    nodes.append(
        helper.make_node(
            NAME, inputs, [out], name=name, domain=NAMESPACE, plugin_namespace=NAMESPACE, plugin_version=VERSION, aot=1,
            **numbers,
        )
    )  # fmt: skip
    if result != stored:
        nodes.append(helper.make_node("Cast", [out], [node.output[0]], name=f"{name}.y.cast", to=result))
    return nodes


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor that is known by inference."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    known = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.value_info, *graph.output]}
    return {**known, **{tensor.name: tensor.data_type for tensor in graph.initializer}}
