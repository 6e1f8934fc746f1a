"""torch-tensorrt: the package itself converts and builds our networks, our converter makes the plugin; no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_stubs
import torch_tensorrt_calls

torch = pytest.importorskip("torch", reason="needs the [train] extra")
pytest.importorskip("cuda.bindings", reason="needs the [cuda] extra")

from streampose.engines.compile import compile_bundle
from streampose.engines.manifest import bundled_names
from streampose.engines.torch_tensorrt import example_inputs, export_program, fold_batch_norm, torch_modules
from streampose.errors import MissingExtraError, ModelError, StreamposeError
from streampose.model import fami_pose
from streampose.model.network import CropEncoder, KeypointFuser
from streampose.plugins.deform_conv.geometry import STORAGES, Geometry, pack_weight

PROGRAM = Path(__file__).with_name("torch_tensorrt_calls.py")
needs_package = pytest.mark.skipif(
    torch_tensorrt_calls.missing() is not None, reason=str(torch_tensorrt_calls.missing())
)


def call(part: str, network: list[str], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What torch_tensorrt_calls.py answers."""
    answer = folder / "answer.json"
    paths = [
        str(torch_tensorrt_calls.build(folder / "package")),
        environment.get("PYTHONPATH", ""),
        str(PROGRAM.parent),
    ]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), part, str(answer), str(folder), *network],
        env={**environment, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
@needs_package
def test_the_converter_makes_the_plugin_and_nothing_is_left_to_torch(tmp_path: Path) -> None:
    if tensorrt_stubs.missing():
        pytest.skip(str(tensorrt_stubs.missing()))
    (tmp_path / "stubs").mkdir()
    found = call("plugin", ["lite", "fp16", "fuser"], tmp_path, tensorrt_stubs.build(tmp_path / "stubs"))
    assert found["without"] == ["streampose.deform_conv2d.default"]
    assert found["with"] == []
    added = found["added"]
    half, single = "DataType.HALF", "DataType.FLOAT"
    assert added["types"] == [half, single, half, half, single]
    assert added["attributes"] == {
        "channels": 32, "out_channels": 32, "kernel_h": 3, "kernel_w": 3, "stride_h": 1, "stride_w": 1, "padding_h": 1,
        "padding_w": 1, "dilation_h": 1, "dilation_w": 1, "groups": 1, "offset_groups": 4, "has_mask": 1, "has_bias": 1,
    }  # fmt: skip
    assert [name.startswith("cast of ") for name in added["names"]] == [True, False, True]
    assert added["map"] == added["result"] == single
    weight = np.array(added["weight"], np.float32)
    geometry = Geometry.of(weight.shape, (1, 1), (1, 1), (1, 1), 1, 4, True, True, "fp16")
    np.testing.assert_array_equal(np.array(added["packed"], STORAGES["fp16"]), pack_weight(weight, geometry))
    assert added["bias"] == [0.0] * 32


@pytest.mark.slow
@needs_package
@pytest.mark.parametrize(
    "network", [["lite", "fp16", "encoder", "fuser"], ["hrnet-w48", "fp16", "fuser"]], ids=" ".join
)
def test_the_package_converts_and_builds_whole_graphs(network: list[str], tmp_path: Path) -> None:
    """Both ways to decode, and what no converter of the package's own does for batches of any size."""
    pytest.importorskip("tensorrt_rtx", reason="needs the [tensorrt-rtx] extra")
    found = call("engines", network, tmp_path, dict(os.environ))
    assert len(found) == len(network) - 2
    for sizes in found.values():
        assert sizes["plan"] > sizes["weights"] * 2 * 0.9  # bytes of half precision


@pytest.fixture(scope="module")
def lite() -> Any:
    """With weights that use every part, which start at zero otherwise."""
    torch.manual_seed(0)
    network = fami_pose("lite")
    with torch.no_grad():
        for parameter in network.fuser.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.mark.slow
@torch.no_grad()
def test_half_precision_leaves_positions_and_decoding_alone(lite: Any) -> None:
    """In torch's own arithmetic: near the network, and after the last layer with weights no position in the exported
    graph is of half precision."""
    encoder, fuser = torch_modules(lite, "fp16")
    (crops,), (features, transforms) = example_inputs(lite, (128, 96), "fp16", 4)
    crops.random_(0, 256)
    features.normal_()
    transforms[:, 1:, ..., 2] += 3 * torch.randn(2, 4, 2, 2)
    made = encoder(crops)
    wanted = CropEncoder(lite).eval()(crops)
    assert made.dtype == torch.float16
    assert float((made - wanted).abs().max() / wanted.std()) < 2e-2
    program = export_program(fuser, (features, transforms), 4)
    keypoints, heatmaps = program.module()(features, transforms)
    wanted_keypoints, wanted_heatmaps = KeypointFuser(lite)(features.float(), transforms)
    assert keypoints.dtype == heatmaps.dtype == torch.float32
    assert float(torch.corrcoef(torch.stack([heatmaps.ravel(), wanted_heatmaps.ravel()]))[0, 1]) > 0.999
    assert float((keypoints - wanted_keypoints).abs()[..., :2].median()) < 0.5
    (node,) = (n for n in program.graph.nodes if n.target is torch.ops.streampose.deform_conv2d.default)
    samplers = [n for n in program.graph.nodes if "grid_sample" in str(n.target)]
    positions = [node.args[1], *(sampler.args[1] for sampler in samplers)]
    assert len(positions) == 4
    waiting, seen = list(positions), set()
    while waiting:
        position = waiting.pop()
        learned = any(layer in str(position.target) for layer in ("conv", "linear"))
        if position in seen or position.op != "call_function" or learned:
            continue
        seen.add(position)
        moves = any(kind in str(position.target) for kind in ("view", "slice"))  # and computes nothing
        assert moves or getattr(position.meta["val"], "dtype", None) != torch.float16, position  # sizes have none
        waiting.extend(position.all_input_nodes)
    assert len(seen) > 20


@torch.inference_mode()
def test_folded_networks_compute_the_same() -> None:
    for backbone in ("lite", "hrnet-w32"):
        torch.manual_seed(0)
        network = fami_pose(backbone).eval()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        frames = torch.randn(1, 5, 3, 64, 64)
        wanted = network(frames)
        fold_batch_norm(network)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
        assert float((network(frames) - wanted).abs().max() / wanted.std()) < 1e-3


@pytest.mark.skipif("lite" not in bundled_names(), reason="the bundled models are not built yet")
def test_what_cannot_be_built_is_said_in_one_line_and_not_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="compiled from a checkpoint, not from a bundle; give --checkpoint FILE"):
        compile_bundle("lite", tmp_path / "out", "torch-tensorrt")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(StreamposeError) as caught:
        compile_bundle("lite", tmp_path / "out", "torch-tensorrt", checkpoint=tmp_path / "checkpoint.pt")
    assert isinstance(caught.value, MissingExtraError | ModelError)
    assert "torch_tensorrt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
