"""The person detector in int8: what is quantised, that it finds the same people, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="needs the [train] extra")

from typer.testing import CliRunner

from streampose.cli.commands import app
from streampose.engines import quantise_detector
from streampose.engines.compile import build_engine, compile_bundle
from streampose.engines.manifest import locate_bundle, read_manifest, rebuilding
from streampose.engines.parity import demo_frames
from streampose.errors import MissingExtraError, ModelError, UsageError
from streampose.geometry import box_iou
from streampose.people import PersonDetector

FRAMES = (0, 20, 40)
"""Not those that it is calibrated on."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled detector in int8, by the command."""
    folder: Path = tmp_path_factory.mktemp("int8") / "person-int8"
    run = CliRunner().invoke(app, ["build-engine", "--model", "person", "--precision", "int8", "--out", str(folder)])
    assert run.exit_code == 0, run.output
    assert run.stdout.splitlines()[-1] == str(folder)
    return folder


def test_it_finds_who_the_float_network_finds(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert (manifest.kind, manifest.precision, manifest.target) == ("person-detector", "int8", "onnxruntime")
    quantised, original = PersonDetector(bundle), PersonDetector("person")
    assert quantised.threshold == original.threshold
    clip = demo_frames(1 + FRAMES[-1])
    for frame in FRAMES:
        sure, _ = original.detect(clip[frame], original.threshold + 0.1)
        found, _ = quantised.detect(clip[frame])
        assert len(sure) > 0
        assert box_iou(sure, found).max(axis=1).min() > 0.85


def test_trunk_and_pyramid_are_in_int8_and_boxes_are_not(bundle: Path) -> None:
    graph = onnx.load(bundle / "detector.onnx").graph
    made_by = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    in_int8 = [
        node for node in convolutions
        if all(made_by[name].op_type == "DequantizeLinear" for name in node.input[:2] if name in made_by)
        and node.input[0] in made_by and node.input[1] in made_by
    ]  # fmt: skip
    levels, heads, tower, first = 3, 2, 4, 3
    assert len(in_int8) == len(convolutions) - levels * (heads + tower) - first
    assert len(in_int8) > len(convolutions) / 2
    for output in ("boxes", "scores"):  # back to the convolutions, nothing is rounded
        waiting = [output]
        while waiting:
            node = made_by[waiting.pop()]
            assert node.op_type not in ("QuantizeLinear", "DequantizeLinear"), output
            waiting += [] if node.op_type == "Conv" else [name for name in node.input if name in made_by]


def test_it_is_smaller(bundle: Path) -> None:
    original = locate_bundle("person") / "detector.onnx"
    assert (bundle / "detector.onnx").stat().st_size < 0.6 * original.stat().st_size


def test_what_does_not_find_the_same_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dark(size: tuple[int, int]) -> list[NDArray[np.uint8]]:
        return [np.zeros((*size, 3), np.uint8)]

    monkeypatch.setattr(quantise_detector, "calibration_pictures", dark)
    with pytest.raises(ModelError, match="person in int8 does not find what it finds in float32"):
        compile_bundle("person", tmp_path / "out", "onnxruntime", "int8")
    assert not list(tmp_path.iterdir())


def test_it_wants_a_folder_to_be_named_and_names_it_when_it_is_to_be_rebuilt(bundle: Path) -> None:
    with pytest.raises(UsageError, match="--out BUNDLE"):
        build_engine("person", None, "onnxruntime", "int8", 16, None)
    command = "streampose build-engine --model person --target onnxruntime --precision int8 --out "
    assert rebuilding(read_manifest(bundle), bundle).endswith(f"{command}{bundle}")


@pytest.mark.parametrize("finds", [True, False])
def test_a_checkpoint_becomes_one_if_it_finds_somebody(tmp_path: Path, finds: bool) -> None:
    torch = pytest.importorskip("torch", reason="needs the [train] extra")
    from streampose.model.checkpoint import DETECTOR
    from streampose.model.person import PersonNetwork

    torch.manual_seed(0)
    network = PersonNetwork((96, 96))
    torch.nn.init.constant_(network.score.bias, 0.0 if finds else -4.0)
    description = {DETECTOR: "person", "input_size": [96, 96]}
    torch.save({"network": description, "ema": network.state_dict()}, tmp_path / "checkpoint.pt")
    out = tmp_path / "own"
    if not finds:
        with pytest.raises(ModelError, match="finds nobody"):
            build_engine(None, tmp_path / "checkpoint.pt", "onnxruntime", "int8", 16, out, 0.4)
        assert not out.exists()
        return
    manifest, folder = build_engine(None, tmp_path / "checkpoint.pt", "onnxruntime", "int8", 16, out, 0.35)
    assert (manifest.name, manifest.precision, manifest.score_threshold) == ("own", "int8", 0.35)
    assert PersonDetector(folder).threshold == 0.35


def test_a_damaged_one_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes((bundle / "manifest.json").read_bytes())
    content = (bundle / "detector.onnx").read_bytes()
    (tmp_path / "detector.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelError, match="sha256 differs"):
        PersonDetector(tmp_path)


def test_without_onnx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("streampose.engines.quantise_detector", "streampose.engines.quantise"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(sys.modules["streampose.engines"], "quantise_detector", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"streampose\[train\]"):
        compile_bundle("person", tmp_path / "out", "onnxruntime", "int8")
    assert not list(tmp_path.iterdir())
