"""Engines built for TensorRT for RTX, whose builder needs no GPU; and the graphs as each target takes them."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

onnx = pytest.importorskip("onnx", reason="needs the [tensorrt] extra")
pytest.importorskip("cuda.bindings", reason="needs the [cuda] extra")
from onnx import TensorProto
from rich.console import Console

from streampose.engines import tensorrt_build
from streampose.engines.compile import compile_bundle
from streampose.engines.manifest import bundled_names, locate_bundle
from streampose.engines.tensorrt_build import build_plan, prepare
from streampose.errors import ModelError, UsageError

if "lite" not in bundled_names():
    pytest.skip("the bundled models are not built yet", allow_module_level=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engines_of_the_lite_network_are_built_for_rtx(precision: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the [tensorrt-rtx] extra")
    for name, model in zip(
        ("encoder", "fuser"), prepare(locate_bundle("lite"), "tensorrt-rtx", precision), strict=True
    ):
        plan = build_plan(trt, model, 8, name)
        weights = sum(np.prod(tensor.dims) for tensor in model.graph.initializer)
        assert len(plan) > weights * (2 if precision == "fp16" else 4) * 0.9


@pytest.mark.slow
def test_engines_of_the_w48_network_are_built_for_rtx(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the [tensorrt-rtx] extra")
    torch = pytest.importorskip("torch", reason="needs the [train] extra")
    from streampose.engines.export import export_network
    from streampose.model import fami_pose

    torch.manual_seed(0)
    export_network(fami_pose("hrnet-w48"), tmp_path, (384, 288))
    for name, model in zip(("encoder", "fuser"), prepare(tmp_path, "tensorrt-rtx", "fp16"), strict=True):
        assert len(build_plan(trt, model, 16, name)) > 1_000_000


def test_what_rtx_does_not_take_is_a_model_error() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the [tensorrt-rtx] extra")
    with pytest.raises(ModelError, match=r"tensorrt_rtx .* does not take fuser: .*deform_conv2d") as caught:
        build_plan(trt, onnx.load(locate_bundle("lite") / "fuser.onnx"), 4, "fuser")
    assert "\n" not in str(caught.value)


def test_tensorrt_gets_the_plugin_in_half_precision() -> None:
    encoder, fuser = prepare(locate_bundle("lite"), "tensorrt", "fp16")
    operators = [node.op_type for node in fuser.graph.node]
    assert operators.count("deform_conv") == 1
    assert "DeformConv" not in operators
    (node,) = (node for node in fuser.graph.node if node.op_type == "deform_conv")
    types = {tensor.name: tensor.data_type for tensor in fuser.graph.initializer}
    assert types[node.input[3]] == TensorProto.FLOAT16
    casts = {node.output[0]: node.attribute[0].i for node in fuser.graph.node if node.op_type == "Cast"}
    assert casts.get(node.input[1]) != TensorProto.FLOAT16
    assert encoder.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    assert fuser.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16


def test_a_grid_sample_fuser_in_half_precision_runs_on_onnx_runtime() -> None:
    """What is compiled for RTX, run where it can be run here: half precision costs little of the keypoints."""
    _, fuser = prepare(locate_bundle("lite"), "tensorrt-rtx", "fp16")
    rng = np.random.default_rng(0)
    feed = {
        "features": rng.normal(size=(1, 5, 32, 64, 48)).astype(np.float32),
        "transforms": np.tile(np.eye(2, 3, dtype=np.float32), (1, 5, 2, 1, 1)),
    }
    whole = ort.InferenceSession(str(locate_bundle("lite") / "fuser.onnx")).run(["heatmaps"], feed)[0]
    feed["features"] = feed["features"].astype(np.float16)
    half = ort.InferenceSession(fuser.SerializeToString()).run(["heatmaps"], feed)[0]
    assert np.corrcoef(whole.ravel(), half.ravel())[0, 1] > 0.9999


@pytest.mark.parametrize(
    ("target", "precision", "message"),
    [
        ("tensorflow", None, "unknown target 'tensorflow'; there are: onnxruntime, tensorrt"),
        ("tensorrt", "int4", "unknown precision 'int4'"),
        ("tensorrt", "int8", "tensorrt has no int8 here; it has: fp16, fp32"),
        ("onnxruntime", "fp16", "onnxruntime has no fp16 here; it has: fp32, int8"),
    ],
)
def test_targets_and_precisions_are_checked(target: str, precision: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        compile_bundle("lite", tmp_path / "out", target, precision)


def test_what_cannot_be_verified_here_is_not_written(tmp_path: Path) -> None:
    """Without a GPU the engines could be built for RTX, but not compared with torch."""
    pytest.importorskip("tensorrt_rtx", reason="needs the [tensorrt-rtx] extra")
    from streampose.engines.store import has_nvidia_gpu

    if has_nvidia_gpu():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelError, match="NVIDIA"):
        compile_bundle("lite", tmp_path / "out", "tensorrt-rtx")
    assert not list(tmp_path.iterdir())


def test_detectors_and_compiled_bundles_are_no_sources(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="detectors run on ONNX Runtime, as they are or in int8"):
        compile_bundle("person", tmp_path / "out", "tensorrt")
    with pytest.raises(UsageError, match="max-batch is at least 1"):
        compile_bundle("lite", tmp_path / "out", "tensorrt", max_batch=0)


def test_a_terminal_shows_the_phases_of_the_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the [tensorrt-rtx] extra")
    _, fuser = prepare(locate_bundle("lite"), "tensorrt-rtx", "fp32")
    for terminal in (True, False):
        shown = io.StringIO()
        monkeypatch.setattr(
            tensorrt_build, "Console",
            lambda shown=shown, terminal=terminal, **_: Console(file=shown, force_terminal=terminal, width=120),
        )  # fmt: skip
        assert build_plan(trt, fuser, 4, "the fuser")
        assert ("the fuser: Building engine" in shown.getvalue()) == terminal


def test_timings_are_kept_from_build_to_build(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a configuration that does as TensorRT's: the bytes that one build leaves are what the next starts from."""
    starts: list[bytes] = []

    class Config:
        def create_timing_cache(self, before: bytes) -> bytes:
            starts.append(before)
            return before

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            self.cache = cache
            return ignore_mismatch

        def get_timing_cache(self) -> Any:
            return SimpleNamespace(serialize=lambda: self.cache + b"+")

    file = tmp_path / "store" / "sm_90.timing"
    for _ in range(3):
        with tensorrt_build._timing_cache(Config(), file):
            pass
    assert starts == [b"", b"+", b"++"]
    (tmp_path / "a file").write_bytes(b"")
    with tensorrt_build._timing_cache(Config(), tmp_path / "a file" / "sm_90.timing"):
        pass
    assert caplog.messages[0].startswith("timings are not kept: ")
