"""The TensorRT plugin: what it tells TensorRT, called through TensorRT's own bindings, and launched as it says."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_stubs
from host_kernel import host_kernels

torch = pytest.importorskip("torch", reason="needs the [train] extra")
onnx = pytest.importorskip("onnx", reason="needs the [train] extra")
pytest.importorskip("onnxscript", reason="needs the [train] extra")

import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from test_deform_conv import Convolution, tensors
from test_deform_conv_kernel import LITE, ODD, SIZE, W48, inputs, needs_compiler, reference, tolerance

from streampose.engines.export import export_onnx
from streampose.errors import MissingExtraError, ModelError, StreamposeError
from streampose.model import fami_pose
from streampose.model.network import KeypointFuser
from streampose.plugins.deform_conv import tensorrt_plugin
from streampose.plugins.deform_conv.geometry import STORAGES, Geometry, pack_weight, packed_size
from streampose.plugins.deform_conv.node import to_plugin
from streampose.plugins.deform_conv.tensorrt_plugin import ATTRIBUTES, check_tensors, geometry_of

PROGRAM = Path(__file__).with_name("plugin_calls.py")
KNOWN = {"height": SIZE[0], "width": SIZE[1]}  # what the plugin finds out of the tensors' shapes
PLUGINS = [  # W48 in both storages, and not knowing the size; k 3x2 with groups; two tiles of outputs; the barest
    replace(W48, **KNOWN),
    replace(W48, storage="fp32", **KNOWN),
    W48,
    replace(ODD, groups=2, offset_groups=3, **KNOWN),
    replace(ODD, channels=80, out_channels=136, groups=2, storage="fp32", has_bias=False, **KNOWN),
    replace(ODD, offset_groups=6, has_mask=False, has_bias=False, **KNOWN),
]
BATCHES = [1, 33]


def job(geometry: Geometry) -> dict[str, Any]:
    g, (out_h, out_w) = geometry, geometry.output_size(*SIZE)
    offset = [-1, 2 * g.offset_groups * g.taps, out_h, out_w]
    x = [-1, g.channels, *SIZE]
    mask = [-1, g.offset_groups * g.taps, out_h, out_w] if g.has_mask else x
    shapes = [x, offset, mask, [packed_size(g)], [g.out_channels] if g.has_bias else offset]
    declared = shapes if g.height else [[*shape[:2], -1, -1] if len(shape) == 4 else shape for shape in shapes]
    return {
        "arch": "sm_89", "storage": g.storage, "batches": BATCHES,
        "attributes": {name: int(getattr(g, name)) for name in ATTRIBUTES},
        "shapes": shapes, "declared": declared,
    }  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What TensorRT learns from the plugin, by geometry."""
    why = tensorrt_stubs.missing()
    if why:
        pytest.skip(why)
    pytest.importorskip("cuda.bindings", reason="needs the [cuda] extra")
    folder = tmp_path_factory.mktemp("tensorrt")
    environment = tensorrt_stubs.build(folder)
    jobs, out = folder / "jobs.json", folder / "answers.json"
    jobs.write_text(json.dumps([job(geometry) for geometry in PLUGINS]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(jobs), str(out)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    return {geometry.entry: answer for geometry, answer in zip(PLUGINS, found, strict=True)}


@pytest.mark.parametrize("geometry", PLUGINS, ids=lambda g: g.entry)
def test_shape_and_type_are_told(answers: dict[str, dict[str, Any]], geometry: Geometry) -> None:
    answer = answers[geometry.entry]
    assert answer["out_type"] == {"fp32": "DataType.FLOAT", "fp16": "DataType.HALF"}[geometry.storage]
    assert answer["out_sizes"] == [[batch, geometry.out_channels, *geometry.output_size(*SIZE)] for batch in BATCHES]
    assert answer["constant"] == [False, True, True, True]


@pytest.mark.parametrize("geometry", PLUGINS, ids=lambda g: g.entry)
def test_formats_are_offered(answers: dict[str, dict[str, Any]], geometry: Geometry) -> None:
    launches = answers[geometry.entry]["launches"]
    stored = {"fp32": "DataType.FLOAT", "fp16": "DataType.HALF"}[geometry.storage]
    assert all(one["types"] == [stored, "DataType.FLOAT", stored, stored, "DataType.FLOAT", stored] for one in launches)
    linear, last = "TensorFormat.LINEAR", "TensorFormat.HWC8"
    wanted = [[linear] * 6]
    if geometry.storage == "fp16" and geometry.channels % 8 == 0 and geometry.out_channels % 8 == 0:
        wanted.append([last, linear, linear, linear, linear, last])
    assert [one["formats"] for one in launches] == wanted


@pytest.mark.parametrize("geometry", PLUGINS, ids=lambda g: g.entry)
def test_the_kernel_is_ptx_for_the_architecture(answers: dict[str, dict[str, Any]], geometry: Geometry) -> None:
    answer = answers[geometry.entry]
    for one in answer["launches"]:
        last = "HWC8" in one["formats"][0]
        assert one["kernel"] == replace(geometry, channels_last=last).entry
        assert f".visible .entry {one['kernel']}(" in one["ptx"]
        assert ".target sm_89" in one["ptx"]
        assert f".version {answer['kernels'][one['kernel']]}\n" in one["ptx"]
    assert set(answer["kernels"]) == {one["kernel"] for one in answer["launches"]}


@needs_compiler
@pytest.mark.slow
def test_launched_as_told_it_computes_what_the_reference_does(answers: dict[str, dict[str, Any]]) -> None:
    """Grid, block and arguments are the plugin's own: inputs, extra numbers, output, for two batches of one engine."""
    launches = [(g, one) for g in PLUGINS for one in answers[g.entry]["launches"]]
    kinds = [replace(g, channels_last="HWC8" in one["formats"][0]) for g, one in launches]
    with host_kernels(*kinds) as kernels:
        for geometry, (_, one) in zip(kinds, launches, strict=True):
            stored, last = STORAGES[geometry.storage], geometry.channels_last
            for batch in BATCHES:
                given = inputs(geometry, batch, SIZE)
                x = given["x"].astype(stored)
                arguments: list[Any] = [
                    x.transpose(0, 2, 3, 1) if last else x,
                    given["offset"],
                    given["mask"].astype(stored) if geometry.has_mask else x,
                    pack_weight(given["weight"], geometry),
                    given["bias"] if geometry.has_bias else given["offset"],
                ]
                numbers = one["numbers"][str(batch)]
                *shape, shared_bytes = numbers["grid"]
                assert shared_bytes == 0  # all of it is static
                wanted = reference(geometry, given)
                size = wanted.transpose(0, 2, 3, 1).shape if last else wanted.shape
                found = kernels.launch(
                    one["kernel"], tuple(shape[:3]), tuple(shape[3:]), [*arguments, *numbers["extras"]], (size, stored)
                )
                found = found.transpose(0, 3, 1, 2) if last else found
                assert np.abs(found - wanted).max() < tolerance(geometry, wanted), (geometry.entry, batch)


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (-1, 47, 13, 9), "x is"),
        (1, (-1, 215, 13, 9), "offset is"),
        (1, (4, 216, 13), "offset is"),
        (2, (4, 108, 13, 8), "mask is"),
        (3, (20735,), "weight is"),
        (4, (47,), "bias is"),
        (0, (-1, 48, 14, 9), "its map makes"),
    ],
)
def test_tensors_that_do_not_fit_the_attributes_are_refused(
    position: int, shape: tuple[int, ...], message: str
) -> None:
    shapes = [(-1, 48, 13, 9), (-1, 216, 13, 9), (-1, 108, 13, 9), (packed_size(W48),), (48,)]
    check_tensors(W48, *shapes)
    check_tensors(W48, (-1, 48, -1, -1), (-1, 216, -1, -1), (-1, 108, -1, -1), *shapes[3:])
    shapes[position] = shape
    with pytest.raises(ModelError, match=message):
        check_tensors(W48, *shapes)


def test_everything_imports_without_the_extras() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(('cuda', 'cuda.bindings', 'tensorrt', 'torchvision')))\n"
    modules = ("deform_conv", "deform_conv.launch", "deform_conv.ptx", "deform_conv.tensorrt_plugin")
    script = blocked + "\n".join(f"import streampose.plugins.{module}" for module in modules)
    script += "\nfrom streampose.plugins.deform_conv import launch; print(launch.available())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    assert "pip install 'streampose[cuda]'" in done.stderr  # said in the log, once


def test_without_tensorrt_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"streampose\[tensorrt\]"):
        tensorrt_plugin.register("sm_90")


def test_without_nvrtc_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from streampose.plugins.deform_conv import ptx

    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingExtraError, match=r"streampose\[cuda\]"):
        ptx.compile_ptx(replace(W48, kernel_h=5), "sm_90")
    with pytest.raises(MissingExtraError, match=r"streampose\[cuda\]"):
        tensorrt_plugin.device_arch()


def test_without_a_gpu_an_architecture_must_be_named() -> None:
    pytest.importorskip("cuda.bindings", reason="needs the [cuda] extra")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(StreamposeError, match="name an architecture"):
        tensorrt_plugin.device_arch()


def plugin_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "deform_conv"]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


@pytest.fixture(scope="module")
def fusers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[onnx.ModelProto, dict[str, np.ndarray]]]:
    """Exported fusers and inputs for them, whose offsets and masks differ from cell to cell."""
    made = {}
    for name, arguments, size in (
        ("lite", {"backbone": "lite"}, (16, 12)),
        ("w48", {"backbone": "hrnet-w48"}, (12, 10)),
        ("released", {"backbone": "hrnet-w48", "variant": "released"}, (96, 72)),  # it takes no other
    ):
        torch.manual_seed(7)
        network = fami_pose(**arguments).eval()
        for parameter in network.fuser.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        path = tmp_path_factory.mktemp("fusers") / f"{name}.onnx"
        frames = 1 + len(network.offsets)
        window = {
            "features": torch.randn(2, frames, network.encoder.channels, *size),
            "transforms": torch.eye(2, 3).repeat(2, frames, 2, 1, 1) + 0.02 * torch.randn(2, frames, 2, 2, 3),
        }
        with torch.inference_mode():
            export_onnx(KeypointFuser(network), window, ["keypoints"], path, {})
        made[name] = onnx.load(path), {key: value.numpy() for key, value in window.items()}
    return made


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("storage", ["fp32", "fp16"])
@pytest.mark.parametrize(("name", "count", "geometry"), [
    ("lite", 1, LITE),
    ("w48", 1, W48),
    ("released", 4, replace(W48, padding_h=3, padding_w=3, dilation_h=3, dilation_w=3)),
])  # fmt: skip
def test_a_networks_fuser_takes_the_plugins_form(  # type: ignore[no-untyped-def]
    fusers, name: str, count: int, geometry: Geometry, storage: Any
) -> None:
    """Node for node: what ONNX Runtime's DeformConv makes of the network's own tensors, our kernel makes too."""
    model, window = fusers[name]
    converted = to_plugin(model, storage)
    onnx.checker.check_model(converted)
    assert not [node for node in converted.graph.node if node.op_type == "DeformConv"]
    before, nodes = [node for node in model.graph.node if node.op_type == "DeformConv"], plugin_nodes(converted)
    assert len(before) == len(nodes) == count
    casts = 3 if storage == "fp16" else 0  # map, mask and result
    assert len(converted.graph.node) == len(model.graph.node) + casts * count
    wanted_attributes = {name: int(getattr(geometry, name)) for name in ATTRIBUTES}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    for node in before:
        for tensor in (node.input[0], node.input[2], node.input[4], node.output[0]):
            watched.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [None] * 4))
    session = ort.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    values = dict(zip(names, session.run(names, window), strict=True))
    packed = {tensor.name: numpy_helper.to_array(tensor) for tensor in converted.graph.initializer}
    geometry = replace(geometry, storage=storage)
    with host_kernels(geometry, flags=["-O2"]) as kernels:
        for old, new in zip(before, nodes, strict=True):
            found = attributes(new)
            assert {key: found[key] for key in ATTRIBUTES} == wanted_attributes
            assert (new.domain, found["plugin_namespace"], found["plugin_version"], found["aot"]) == (
                "streampose", b"streampose", b"1", 1,
            )  # fmt: skip
            x, offset, mask = (values[old.input[index]] for index in (0, 2, 4))
            assert offset.std() > 0.1
            stored = STORAGES[geometry.storage]
            weight, bias = packed[new.input[3]], packed[new.input[4]]
            assert (weight.dtype, weight.shape) == (stored, (packed_size(geometry),))
            check_tensors(geometry, x.shape, offset.shape, mask.shape, weight.shape, bias.shape)
            wanted = values[old.output[0]]
            arguments = [x.astype(stored), offset, mask.astype(stored), weight, bias, *x.shape[2:], *offset.shape[2:]]
            grid_x = len(x) * -(-offset.shape[2] * offset.shape[3] // 64)
            made = kernels.launch(
                geometry.entry, (grid_x, 1, 1), (128, 1, 1), arguments, (wanted.shape, np.dtype(stored))
            )
            assert np.abs(made - wanted).max() < tolerance(geometry, wanted)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("storage", ["fp32", "fp16"])
def test_one_convolution_takes_the_plugins_form(whole: bool, storage: Any, tmp_path: Path) -> None:
    """The graph around the node: casts, stand-ins for what is not there, constants that are no longer needed."""
    groups, names = (2, 3), ("x", "offset", "mask")[: 3 if whole else 2]
    given = tensors(2, *groups)
    path = tmp_path / "one.onnx"
    with torch.inference_mode():
        module = Convolution(given, groups, with_bias=whole)
        export_onnx(module, {name: given[name].contiguous() for name in names}, ["y"], path, {})
    model = onnx.load(path)
    untouched = model.SerializeToString()
    converted = to_plugin(model, storage)
    assert model.SerializeToString() == untouched
    onnx.checker.check_model(converted)
    (node,) = plugin_nodes(converted)
    geometry = geometry_of(
        tuple(attributes(node)[name] for name in ATTRIBUTES), storage, channels_last=False
    )  # the way back, as the plugin takes it
    assert geometry == Geometry(
        12, 8, 3, 2, 2, 1, 1, 2, 1, 2, *groups, has_mask=whole, has_bias=whole, storage=storage
    )  # fmt: skip
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in converted.graph.initializer}
    assert np.array_equal(constants[node.input[3]], pack_weight(given["weight"].numpy(), geometry))
    assert len(constants) == 1 + whole
    if whole:
        assert np.array_equal(constants[node.input[4]], given["bias"].numpy())
        assert constants[node.input[4]].dtype == np.float32
    else:
        assert node.input[2] == node.input[0]
        assert node.input[4] == node.input[1]
    casts = {n.output[0]: (n.input[0], attributes(n)["to"]) for n in converted.graph.node if n.op_type == "Cast"}
    if storage == "fp32":
        assert not casts
        assert list(node.output) == ["y"]
    else:
        assert casts[node.input[0]] == ("x", TensorProto.FLOAT16)
        assert casts["y"] == (node.output[0], TensorProto.FLOAT)
        assert node.input[1] == "offset"  # stays float32
        assert len(casts) == 2 + whole


def deform_conv_graph(pads: list[int], weight_is_constant: bool) -> onnx.ModelProto:
    floats = {"x": [1, 4, 5, 5], "offset": [1, 18, 5, 5], **({} if weight_is_constant else {"w": [4, 4, 3, 3]})}
    node = helper.make_node("DeformConv", ["x", "w", "offset"], ["y"], name="here", pads=pads)
    weight = numpy_helper.from_array(np.zeros((4, 4, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in floats.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 5, 5])],
        [weight] if weight_is_constant else [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])


def test_what_the_plugin_cannot_stand_for_is_refused() -> None:
    assert len(plugin_nodes(to_plugin(deform_conv_graph([1, 1, 1, 1], True), "fp32"))) == 1
    with pytest.raises(ModelError, match="here: the plugin pads alike"):
        to_plugin(deform_conv_graph([1, 1, 0, 1], True), "fp32")
    with pytest.raises(ModelError, match="here: the plugin wants weights and bias as constants"):
        to_plugin(deform_conv_graph([1, 1, 1, 1], False), "fp32")


def test_a_graph_without_the_operator_stays_as_it_is() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph([node], "one", values[:1], values[1:]))
    assert to_plugin(model, "fp16").SerializeToString() == model.SerializeToString()
