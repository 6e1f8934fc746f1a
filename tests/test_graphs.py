"""ONNX graphs rewritten for targets compute what the exported ones do."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

onnx = pytest.importorskip("onnx", reason="needs the [train] extra")
from numpy.typing import NDArray
from onnx import TensorProto, helper

from streampose.engines.graphs import to_float_input, to_grid_sample, to_half
from streampose.engines.manifest import bundled_names, locate_bundle
from streampose.errors import ModelError

needs_lite = pytest.mark.skipif("lite" not in bundled_names(), reason="the bundled models are not built yet")


def run(model: Any, feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    halves = {node.name for node in session.get_inputs() if "float16" in node.type}
    return list(session.run(None, {k: v.astype(np.float16) if k in halves else v for k, v in feed.items()}))


def deformable(
    channels: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int],
    dilation: tuple[int, int], groups: int, offset_groups: int, size: tuple[int, int],
) -> tuple[Any, dict[str, NDArray[np.float32]]]:  # fmt: skip
    """A graph of one DeformConv, and a feed of three pictures whose offsets leave the map."""
    rng = np.random.default_rng(0)
    out = [(size[i] + 2 * pad[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    taps = offset_groups * kernel[0] * kernel[1]
    shapes = {"x": (channels, *size), "offset": (2 * taps, *out), "mask": (taps, *out)}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", *s]) for n, s in shapes.items()]
    node = helper.make_node(
        "DeformConv", ["x", "weight", "offset", "bias", "mask"], ["y"], name="deform", kernel_shape=kernel,
        strides=stride, pads=[*pad, *pad], dilations=dilation, group=groups, offset_group=offset_groups,
    )  # fmt: skip
    weights = [
        onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in (("weight", (outputs, channels // groups, *kernel)), ("bias", (outputs,)))
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", outputs, *out])
    graph = helper.make_graph([node], "one", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    feed = {name: rng.normal(size=(3, *shape)).astype(np.float32) for name, shape in shapes.items()}
    feed["offset"] *= 4
    return model, feed


ASYMMETRIC = {
    "channels": 12, "outputs": 10, "kernel": (3, 2), "stride": (2, 1), "pad": (2, 1), "dilation": (1, 2), "groups": 2,
    "offset_groups": 3, "size": (11, 8),
}  # fmt: skip


@pytest.mark.parametrize("change", [{}, {"groups": 1}, {"offset_groups": 1}, {"size": (5, 17)}, {"stride": (1, 3)}])
def test_grid_sample_computes_what_deform_conv_does(change: dict[str, Any]) -> None:
    model, feed = deformable(**(ASYMMETRIC | change))
    rewritten = to_grid_sample(model)
    assert "DeformConv" not in {node.op_type for node in rewritten.graph.node}
    (wanted,), (found,) = run(model, feed), run(rewritten, feed)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_a_deformable_convolution_without_a_mask_is_refused() -> None:
    model, _ = deformable(**ASYMMETRIC)
    del model.graph.node[0].input[4]
    with pytest.raises(ModelError, match="has mask, bias and the same padding"):
        to_grid_sample(model)


@pytest.fixture(scope="module")
def lite() -> dict[str, Any]:
    return {name: onnx.load(locate_bundle("lite") / f"{name}.onnx") for name in ("encoder", "fuser")}


@pytest.fixture(scope="module")
def window() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    transforms = np.tile(np.eye(2, 3, dtype=np.float32), (2, 5, 2, 1, 1))
    transforms[:, 1:, ..., 2] += rng.normal(0, 4, (2, 4, 2, 2))
    return {"features": rng.normal(size=(2, 5, 32, 64, 48)).astype(np.float32), "transforms": transforms}


@needs_lite
def test_the_fuser_in_grid_sample_form(lite: dict[str, Any], window: dict[str, Any]) -> None:
    for wanted, found in zip(run(lite["fuser"], window), run(to_grid_sample(lite["fuser"]), window), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-3)


@needs_lite
def test_in_half_precision_positions_are_float32(lite: dict[str, Any]) -> None:
    """What reaches a grid or offsets is never rounded to float16 after the last convolution."""
    model = to_half(lite["fuser"])
    writer = {output: node for node in model.graph.node for output in node.output}
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    to_float16 = {
        node.output[0] for node in casts if helper.get_attribute_value(node.attribute[0]) == TensorProto.FLOAT16
    }
    positions = {"GridSample": 1, "DeformConv": 2}
    waiting = [node.input[positions[node.op_type]] for node in model.graph.node if node.op_type in positions]
    assert len(waiting) == 4
    seen = set()
    while waiting:
        name = waiting.pop()
        node = writer.get(name)
        if node is None or name in seen or node.op_type == "Conv":
            continue
        seen.add(name)
        assert name not in to_float16, name
        waiting.extend(node.input)
    halves = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    assert sum(node.op_type == "Conv" for node in model.graph.node) == sum(
        node.op_type == "Conv" and node.input[1] in halves for node in model.graph.node
    )


@needs_lite
def test_half_precision_keeps_the_heatmaps(lite: dict[str, Any], window: dict[str, Any]) -> None:
    (_, wanted), (_, found) = run(lite["fuser"], window), run(to_half(to_grid_sample(lite["fuser"])), window)
    assert found.dtype == np.float32
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.9999
    crops = np.random.default_rng(1).integers(0, 256, (2, 256, 192, 3), dtype=np.uint8)
    (features,), (half,) = run(lite["encoder"], {"crops": crops}), run(to_half(lite["encoder"]), {"crops": crops})
    assert half.dtype == np.float16
    assert np.corrcoef(half.astype(np.float32).ravel(), features.ravel())[0, 1] > 0.9999


@needs_lite
def test_a_float_input_changes_nothing(lite: dict[str, Any]) -> None:
    crops = np.random.default_rng(1).integers(0, 256, (2, 256, 192, 3), dtype=np.uint8)
    rewritten = to_float_input(lite["encoder"])
    readers = [node.op_type for node in rewritten.graph.node if "crops" in node.input]
    assert readers == ["Cast"]
    (wanted,), (found,) = run(lite["encoder"], {"crops": crops}), run(rewritten, {"crops": crops})
    np.testing.assert_allclose(found, wanted, atol=1e-5)
