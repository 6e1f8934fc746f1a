"""Bundles compiled from bundles, and the gate that stops those that compute something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the [train] extra")
from numpy.typing import NDArray
from onnx import TensorProto, helper

from streampose.engines import load_engine, read_manifest
from streampose.engines.compile import build_engine, compile_bundle
from streampose.engines.graphs import to_grid_sample, to_half
from streampose.engines.manifest import Manifest, bundled_names, graph_files, locate_bundle
from streampose.engines.onnxruntime import OnnxRuntimeEngine
from streampose.engines.parity import check, compare, read_reference
from streampose.errors import ModelError, UsageError

if "lite" not in bundled_names():
    pytest.skip("the bundled models are not built yet", allow_module_level=True)

Change = Callable[[Any, Any], tuple[Any, Any]]


class HalfEngine(OnnxRuntimeEngine):
    """Graphs in half precision, as they are compiled for GPUs, on ONNX Runtime."""

    def _run(self, session: Any, output: str, feed: dict[str, NDArray[Any]]) -> NDArray[Any]:
        types = {node.name: np.float16 for node in session.get_inputs() if node.type == "tensor(float16)"}
        return super()._run(session, output, {name: v.astype(types.get(name, v.dtype)) for name, v in feed.items()})


def figures_of(folder: Path, change: Change) -> dict[str, float]:
    """What the gate measures of the bundled model in half precision, changed."""
    source = locate_bundle("lite")
    names = graph_files("pose", "onnxruntime")
    encoder, fuser = (onnx.load(source / name) for name in names)
    for name, model in zip(names, change(to_half(encoder), to_half(to_grid_sample(fuser))), strict=True):
        onnx.save(model, folder / name)
    manifest: Manifest = msgspec.structs.replace(read_manifest(source), precision="fp16")
    return compare(HalfEngine(folder, manifest), read_reference(source))


def broken_kernel(encoder: Any, fuser: Any) -> tuple[Any, Any]:
    """Its look-up is off by half a pixel at the edges."""
    for node in fuser.graph.node:
        for attribute in node.attribute:
            if node.op_type == "GridSample" and attribute.name == "align_corners":
                attribute.i = 1
    return encoder, fuser


def broken_cast(encoder: Any, fuser: Any) -> tuple[Any, Any]:
    """Features pass through whole numbers."""
    last = next(node for node in encoder.graph.node if "features" in node.output)
    last.output[0] = "exact"
    for source, target, kind in (("exact", "whole", TensorProto.INT8), ("whole", "features", TensorProto.FLOAT16)):
        encoder.graph.node.append(helper.make_node("Cast", [source], [target], to=kind))
    return encoder, fuser


def test_half_precision_passes_the_gate(tmp_path: Path) -> None:
    """Torch's own half of a pixel for 99 joints in 100, heatmaps that correlate to 0.999: as for a GPU."""
    figures = figures_of(tmp_path, lambda encoder, fuser: (encoder, fuser))
    assert figures["joints"] > 100
    check("lite", "fp16", figures)


@pytest.mark.parametrize("change", [broken_kernel, broken_cast])
def test_a_broken_kernel_or_cast_fails_the_gate(change: Change, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="lite does not compute what the network computes in torch"):
        check("lite", "fp16", figures_of(tmp_path, change))


def test_int8_that_moves_joints_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limit of half precision, which the bundled network in int8 does not keep (docs/engines.md)."""
    from streampose.engines import parity

    monkeypatch.setitem(parity.LIMITS, "int8", {"keypoints_p99_px": 0.5})
    with pytest.raises(ModelError, match=r"keypoints_p99_px is \d+\.?\d*, int8 may have 0\.5"):
        compile_bundle("lite", tmp_path / "int8", "onnxruntime", "int8")
    assert not list(tmp_path.iterdir())


def test_int8_halves_the_encoder_and_keeps_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streampose.engines import parity

    monkeypatch.setitem(parity.LIMITS, "int8", {"heatmaps_uncorrelated": 1e-2})
    source = locate_bundle("lite")
    manifest = compile_bundle(source, tmp_path / "int8", "onnxruntime", "int8")
    assert (manifest.name, manifest.target, manifest.precision) == ("lite", "onnxruntime", "int8")
    assert manifest == read_manifest(tmp_path / "int8")
    assert manifest.compiled_from == {n: read_manifest(source).files[n] for n in graph_files("pose", "onnxruntime")}
    assert manifest.parity["heatmaps_uncorrelated"] < 1e-2
    assert (tmp_path / "int8/encoder.onnx").stat().st_size < 0.4 * (source / "encoder.onnx").stat().st_size
    assert (tmp_path / "int8/fuser.onnx").read_bytes() == (source / "fuser.onnx").read_bytes()
    assert load_engine(tmp_path / "int8").encode([]) == []
    with pytest.raises(ModelError, match="compile from a bundle for onnxruntime in fp32"):
        compile_bundle(tmp_path / "int8", tmp_path / "again", "onnxruntime", "fp32")
    with pytest.raises(UsageError, match="exists already"):
        compile_bundle("lite", tmp_path / "int8", "onnxruntime", "int8")


def test_one_source_and_one_place(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"precision": None, "max_batch": 4}
    with pytest.raises(UsageError, match="keeps its own threshold"):
        build_engine("person", None, "onnxruntime", "int8", 4, tmp_path / "a", score_threshold=0.5)
    with pytest.raises(UsageError, match="one of --model and --checkpoint"):
        build_engine(None, None, "onnxruntime", out=tmp_path / "a", **arguments)
    with pytest.raises(UsageError, match="is there for onnxruntime in fp32 already"):
        build_engine("lite", None, "onnxruntime", out=tmp_path / "a", **arguments)
    with pytest.raises(UsageError, match="--checkpoint needs --out"):
        build_engine(None, tmp_path / "checkpoint.pt", "onnxruntime", out=None, **arguments)
