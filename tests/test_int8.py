"""Networks in int8: what torch simulates is what ONNX Runtime's integers compute, and what training keeps of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [train] extra")
onnx = pytest.importorskip("onnx", reason="needs the [train] extra")

import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from pack_kit import write_pack
from torch import Tensor, nn

from streampose.engines import load_engine, read_manifest, whole_pictures
from streampose.engines.build import build_bundle
from streampose.engines.compile import build_engine
from streampose.engines.onnxruntime import OnnxRuntimeEngine
from streampose.engines.parity import check, compare, read_reference
from streampose.engines.store import verify
from streampose.errors import ModelError, UsageError
from streampose.model import FamiPose, fami_pose, load, normalise
from streampose.model.int8 import calibrate, exactly, to_int8
from streampose.model.rounding import Convolution8, Rounding
from streampose.train.from_bundle import pose_of_bundle
from streampose.train.recipe import read_recipe
from streampose.train.run import run_recipe

SMALL = (
    "size=[64, 64]", "clip_every=2", "validate_people=3", "calibration=4", "loop.batch_size=2", "loop.steps=1",
    "loop.workers=0", "loop.warmup_steps=0", 'loop.device="cpu"',
)  # fmt: skip
CHANGES = [f"int8.{key}" for key in SMALL]
SIZE = (64, 64)


def windows(count: int = 2) -> tuple[Tensor, Tensor]:
    """Crops (B, 5, 64, 64, 3) uint8 of smooth noise, and transforms that move some of them."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (count, 5, 8, 8, 3), np.uint8)
    transforms = torch.eye(2, 3).repeat(count, 5, 2, 1, 1)
    transforms[0, 1:, ..., 2] = 3.5
    return torch.from_numpy(coarse.repeat(8, axis=2).repeat(8, axis=3)), transforms


@pytest.fixture(scope="module")
def shipped() -> FamiPose:
    return pose_of_bundle("lite")


@pytest.fixture(scope="module")
def network(shipped: FamiPose) -> FamiPose:
    """The bundled network in int8, calibrated and not trained."""
    network = to_int8(shipped)
    crops, transforms = windows()

    def run() -> None:
        features = network.encode(normalise(crops.flatten(0, 1)))
        network.fuse(features.unflatten(0, (2, 5)), transforms)

    calibrate(network, run)
    return network


@pytest.fixture(scope="module")
def bundle(network: FamiPose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("int8") / "small"
    build_bundle(network, folder, "small", SIZE)
    return folder


@pytest.fixture
def pack(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    return write_pack(tmp_path / "pack", make_video)


def quantised(x: np.ndarray, step: float, zero: int) -> np.ndarray:
    """What ONNX Runtime makes of x by QuantizeLinear and DequantizeLinear, each by itself."""
    constants = [
        numpy_helper.from_array(np.float32(step), "step"), numpy_helper.from_array(np.uint8(zero), "zero")
    ]  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["whole"]),
        helper.make_node("DequantizeLinear", ["whole", "step", "zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name in "xy"]
    graph = helper.make_graph(nodes, "rounding", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    return np.asarray(session.run(["y"], {"x": x})[0])


@pytest.mark.parametrize(("bounded", "step"), [(True, 6 / 255), (True, 0.0117), (False, 2.0**-5), (False, 2.0)])
def test_rounding_is_onnx_quantise_and_dequantise_bit_for_bit(bounded: bool, step: float) -> None:
    rounding = Rounding(bounded)
    rounding.step.fill_(step)
    rounding.exact = True
    ties = (np.arange(-300, 300) + 0.5) * step
    x = np.concatenate([np.random.default_rng(0).normal(0, 90 * step, 20000), ties, [0, 1e30, -1e30]])
    x = x.astype(np.float32)
    found = rounding(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(found, quantised(x, step, rounding.zero))
    rounding.exact = False
    nearly = rounding(torch.from_numpy(x)).numpy()
    assert np.abs(nearly - found).max() <= 1.01 * step
    assert (nearly[:20000] != found[:20000]).mean() < 1e-3


def test_gradients_pass_what_is_rounded_and_stop_at_what_is_cut_off() -> None:
    rounding = Rounding(bounded=True)
    rounding.step.fill_(6 / 255)
    x = torch.tensor([-1.0, 0.5, 5.9, 7.0], requires_grad=True)
    rounding(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_steps_fit_what_was_seen() -> None:
    torch.manual_seed(1)
    signed, bounded = Rounding(bounded=False), Rounding(bounded=True)
    for rounding, values in ((signed, torch.randn(4, 500)), (bounded, torch.rand(4, 500) * 3)):
        rounding.watching = True
        assert rounding(values) is values
        rounding.settle()
        off = (rounding(values) - values).abs()
        assert 0 < float(off.mean()) < 0.02
    assert float(signed.step.log2()) == round(float(signed.step.log2()))
    assert float(bounded.step) == pytest.approx(3 / 255, rel=0.02)
    with pytest.raises(ValueError, match="never passed"):
        Rounding(bounded=True).settle()


def test_a_channel_of_bias_alone_stays_within_what_float32_counts() -> None:
    convolution = Convolution8(nn.Conv2d(3, 2, 1), bounded=True)
    with torch.no_grad():
        convolution.weight[0], convolution.bias[0] = 1e-9, 4.0
    convolution.input_step.fill_(1.0)
    assert float(convolution.whole_bias().abs().max()) <= 2**21
    assert float(convolution.whole_weight()[1].abs().max()) == 63


@torch.inference_mode()
def test_it_computes_nearly_what_it_was_made_from(network: FamiPose, shipped: FamiPose) -> None:
    crops, transforms = windows()
    frames = normalise(crops.flatten(0, 1))
    wanted, features = shipped.encode(frames), network.encode(frames)
    assert float((features - wanted).square().mean() / wanted.var()) < 0.05
    maps = [n.fuse(f.unflatten(0, (2, 5)), transforms) for n, f in ((shipped, wanted), (network, features))]
    assert float(torch.corrcoef(torch.stack([m.flatten() for m in maps]))[0, 1]) > 0.97


@pytest.mark.slow  # the export
def test_the_bundle_passes_the_gate_bit_for_bit(bundle: Path, network: FamiPose) -> None:
    manifest = read_manifest(bundle)
    assert (manifest.target, manifest.precision) == ("onnxruntime", "int8")
    assert manifest.parity["joints"] > 100
    assert manifest.parity["keypoints_p99_px"] < 0.5
    assert "99 of 100 joints within" in verify(bundle, manifest)
    crops, _ = windows()
    engine = load_engine(bundle)
    found = np.stack([engine.read(feature) for feature in engine.encode(whole_pictures(crops[0].numpy()))])
    with torch.inference_mode():
        wanted = exactly(network).encode(normalise(crops[0])).numpy()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow
def test_onnx_runtime_runs_its_convolutions_and_additions_in_int8(bundle: Path, tmp_path: Path) -> None:
    for name, expected in (
        ("encoder", {"QLinearConv": 63, "QLinearAdd": 12, "Conv": 0, "Add": 0, "Resize": 0}),
        ("fuser", {"QLinearConv": 16, "Conv": 2, "DeformConv": 1}),  # the head, twice
    ):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        ort.InferenceSession(str(bundle / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
        kinds = Counter(node.op_type for node in onnx.load(tmp_path / f"{name}.onnx").graph.node)
        assert {kind: kinds[kind] for kind in expected} == expected


@pytest.mark.slow
def test_a_wrong_step_fails_the_gate(bundle: Path, tmp_path: Path) -> None:
    """One of the encoder's convolutions writes with another step than the next one reads."""
    manifest = read_manifest(bundle)
    for name in manifest.files:
        (tmp_path / name).write_bytes((bundle / name).read_bytes())
    model = onnx.load(bundle / "encoder.onnx")
    writing = [node for node in model.graph.node if node.op_type == "QuantizeLinear"][40]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.01), "wrong"))
    writing.input[1] = "wrong"
    onnx.save(model, tmp_path / "encoder.onnx")
    parity = compare(OnnxRuntimeEngine(tmp_path, manifest), read_reference(bundle))
    with pytest.raises(ModelError, match=r"keypoints_p99_px is \d+\.?\d*, int8 may have 2"):
        check("small", "int8", parity)


@pytest.mark.slow  # three runs of a recipe
def test_training_keeps_its_steps_when_resumed_and_a_checkpoint_says_that_it_is_int8(
    pack: Path, tmp_path: Path
) -> None:
    checkpoint = run_recipe("lite_int8", pack, tmp_path / "run", overrides=CHANGES)
    content = torch.load(checkpoint, weights_only=True)
    assert content["network"]["precision"] == "int8"
    steps = [name for name in content["model"] if name.endswith("step")]
    assert len(steps) > 150
    for part in ("model", "ema"):
        content[part][steps[5]] *= 2
    torch.save(content, checkpoint)
    more = [*CHANGES, "int8.loop.steps=3"]
    after = torch.load(run_recipe("lite_int8", pack, tmp_path / "run", True, more), weights_only=True)
    assert after["step"] == 3
    for part in ("model", "ema"):
        assert all(torch.equal(after[part][name], content[part][name]) for name in steps)
    moved = [n for n, tensor in content["model"].items() if not torch.equal(tensor, after["model"][n])]
    assert len(moved) > 100
    rows = (tmp_path / "run" / "int8" / "log.csv").read_text()
    assert all(term in rows for term in ("loss,divergence", "loss,features", "val,fp32_pck01_clean_five"))
    network = load(checkpoint)
    assert isinstance(network.encoder.out[1][0], Convolution8)
    arguments = {"max_batch": 1, "out": tmp_path / "out"}
    for target, precision in (("onnxruntime", "fp32"), ("tensorrt", None)):
        with pytest.raises(UsageError, match="was trained in int8, which is for --target onnxruntime"):
            build_engine(None, checkpoint, target, precision, **arguments)
    with pytest.raises(ModelError, match="is in int8, and a stage begins with float32"):
        run_recipe("lite_int8", pack, tmp_path / "again", overrides=[*CHANGES, f'int8.weights="{checkpoint}"'])


def test_what_cannot_be_int8_is_named(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int8 is for lite networks with supporting frames"):
        to_int8(fami_pose("lite", ()))
    with pytest.raises(UsageError, match="int8 is for lite networks with supporting frames"):
        to_int8(fami_pose("hrnet-w32"))
    with pytest.raises(UsageError, match="distil belongs to the other stages"):
        read_recipe("lite_int8", ["int8.distil=0.5"])
    with pytest.raises(UsageError, match="needs a fuser stage before it, or weights"):
        run_recipe("lite_int8", pack, tmp_path / "run", overrides=[*CHANGES, 'int8.weights=""'])
    with pytest.raises(ModelError, match="which this stage trains"):
        run_recipe("lite_int8", pack, tmp_path / "run", overrides=[*CHANGES, "int8.offsets=[-2, -1]"])
