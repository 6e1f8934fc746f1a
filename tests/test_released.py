"""The released network equals the authors' program, whose results are in ../shared/reference."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="needs the [train] extra")

from torch import Tensor
from torch.nn import functional

from streampose.errors import ModelError, UsageError
from streampose.model import FamiPose, fami_pose
from streampose.model import released as released_module
from streampose.model.released import released_name, translate
from streampose.plugins.deform_conv import deform_conv2d

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"
needs_reference = pytest.mark.skipif(
    not (REFERENCE / "parity.npz").exists(), reason="needs ../shared/reference/parity.npz"
)
BOUND = 1e-3


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """As the vectors were made: with one thread, torch's convolutions round otherwise, and with offsets of thousands of
    cells this network makes other results of other last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def fill(name: str, shape: list[int], seed: int) -> NDArray[np.generic]:
    """A tensor by the recipe that stands beside the vectors."""
    rng = np.random.default_rng(zlib.crc32(name.encode()) + seed)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith(("running_mean", "bias")):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    if len(shape) == 1:
        return rng.uniform(0.5, 1.0, shape).astype(np.float32)
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def moving_frames(seed: int) -> Tensor:
    """(1, 5, 3, 384, 288): the key frame and four shifted ones, by the same recipe."""
    base = np.random.default_rng(seed).standard_normal((3, 60, 48)).astype(np.float32)
    big = functional.interpolate(torch.from_numpy(base)[None], size=(480, 384), mode="bicubic", align_corners=False)[0]
    shifts = [(0, 0), (-6, 4), (-3, 2), (3, -2), (6, -4)]
    return torch.stack([big[:, 48 + dy : 432 + dy, 48 + dx : 336 + dx] for dy, dx in shifts])[None]


def tensors(seed: int) -> dict[str, Tensor]:
    """All tensors by the authors' names."""
    names = [(released_name(name), list(tensor.shape)) for name, tensor in released().state_dict().items()]
    return {name: torch.from_numpy(np.asarray(fill(name, shape, seed))) for name, shape in names}


def released() -> FamiPose:
    return fami_pose("hrnet-w48", variant="released")


@needs_reference
def test_its_tensors_are_the_released_ones() -> None:
    ours = {released_name(name): list(tensor.shape) for name, tensor in released().state_dict().items()}
    theirs = {name: list(shape) for name, shape in json.loads((REFERENCE / "released_state_dict.json").read_text())}
    assert ours == theirs


@needs_reference
@pytest.mark.slow
@torch.inference_mode()
def test_it_equals_the_authors_program() -> None:
    wanted = np.load(REFERENCE / "parity.npz")
    seed = int(wanted["seed"])
    network = released()
    network.load_released(tensors(seed))
    network.eval()
    features = network.encode(moving_frames(seed)[0])[None]
    parts = network.fuse_parts(features, torch.eye(2, 3).expand(1, 5, 2, 2, 3))
    found = {
        "backbone_features_mean": features[0].mean(dim=(2, 3)),
        "backbone_heatmaps": network.single(features[:, 0]),
        "translations": parts.translations[0],
        "heatmaps": parts.heatmaps,
    }
    for name, tensor in found.items():
        assert tensor.shape == wanted[name].shape
        assert np.abs(tensor.numpy() - wanted[name]).max() <= BOUND * wanted[name].std(), name


@pytest.mark.slow
@torch.inference_mode()
def test_every_deformable_convolution_is_the_standard_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another seed, step by step: given a step's input, ONNX Runtime's DeformConv computes the same. From end
    to end two programs part at once, since offsets of thousands of cells make other results of other last bits."""
    onnx = pytest.importorskip("onnx", reason="needs the [train] extra")
    import onnxruntime as ort

    steps: list[float] = []

    def spy(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
        found = deform_conv2d(x, offset, mask, weight, bias, **options)
        pad, dilation = options["padding"], options["dilation"]
        node = onnx.helper.make_node(
            "DeformConv", list("xwobm"), ["y"], kernel_shape=weight.shape[2:], pads=[*pad, *pad], dilations=dilation,
            offset_group=options["offset_groups"],
        )  # fmt: skip
        feed = dict(zip("xwobm", (t.contiguous().numpy() for t in (x, weight, offset, bias, mask)), strict=True))
        declared = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, v.shape) for n, v in feed.items()]
        output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * 4)
        graph = onnx.helper.make_graph([node], "one", declared, [output])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10)
        wanted = ort.InferenceSession(model.SerializeToString()).run(None, feed)[0]
        steps.append(float(np.abs(found.numpy() - wanted).max() / wanted.std()))
        return found

    monkeypatch.setattr(released_module, "deform_conv2d", spy)
    network = released()
    network.load_released(tensors(5))
    network.eval()(moving_frames(5))
    assert len(steps) >= 4
    assert max(steps) <= BOUND


@pytest.mark.slow
@torch.inference_mode()
def test_streaming_gives_what_the_whole_window_gives() -> None:
    network = released()
    network.load_released(tensors(3))
    network.eval()
    frames = moving_frames(3)
    features = network.encode(frames[0])[None]
    same = torch.eye(2, 3).expand(1, 5, 2, 2, 3)
    whole = network.fuse(features, same)
    assert torch.equal(network(frames), whole)
    moved = same.clone()
    moved[:, 1:, :, 0, 2] = 8.0
    assert not torch.allclose(network.fuse(features, moved), whole)


def test_translation_moves_by_whole_and_half_cells() -> None:
    maps = torch.randn(2, 3, 96, 72)
    moved = translate(maps, torch.tensor([[2.0, 0.0], [0.0, -1.5]]))
    assert torch.allclose(moved[0, :, :, 2:], maps[0, :, :, :-2], atol=1e-4)
    assert (moved[0, :, :, :2].abs() < 1e-4).all()
    between = (maps[1, :, 1:-1] + maps[1, :, 2:]) / 2
    assert torch.allclose(moved[1, :, :-2], between, atol=1e-4)


def test_wrong_tensors_are_named() -> None:
    network, state = released(), tensors(0)
    weight = state.pop("dcn_2.weight")
    with pytest.raises(ModelError, match=r"1 missing \(dcn_2.weight\)"):
        network.load_released(state)
    with pytest.raises(ModelError, match=r"1 left over \(dcn_5.weight\)"):
        network.load_released(state | {"dcn_2.weight": weight, "dcn_5.weight": weight})
    with pytest.raises(ModelError, match=r"1 of another shape \(dcn_2.weight\)"):
        network.load_released(state | {"dcn_2.weight": weight[:3]})


def test_what_the_released_network_cannot_do_is_said() -> None:
    with pytest.raises(UsageError, match="hrnet-w48 with four supporting frames"):
        fami_pose("hrnet-w32", variant="released")
    with pytest.raises(UsageError, match="hrnet-w48 with four supporting frames"):
        fami_pose("hrnet-w48", (-1, 1), variant="released")
    with pytest.raises(ValueError, match="5 crops of 384x288, not of 3 crops of 64x32"):
        released().fuse(torch.zeros(1, 3, 48, 16, 8), torch.eye(2, 3).expand(1, 3, 2, 2, 3))
    with pytest.raises(UsageError, match="load_released is for"):
        fami_pose("lite").load_released({})
