"""Networks of every backbone, alignment and kind of heatmap: shapes, streaming, what is frozen, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [train] extra")

from torch import Tensor, nn

from streampose.errors import UsageError
from streampose.model import FamiPose, align, decode, fami_pose, normalise

SIZE = (64, 32)


def randomised(
    backbone: str = "hrnet-w32", offsets: Sequence[int] = (-1, 1), alignment: str = "per-frame", **options: Any
) -> FamiPose:
    """A network in which no layer answers zero."""
    torch.manual_seed(0)
    network = fami_pose(backbone, offsets, alignment=alignment, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = 1.0
    assert network.fuser is not None
    for parameter in network.fuser.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=float(np.prod(parameter.shape[1:])) ** -0.5)
    nn.init.normal_(network.encoder.head.weight, std=0.2)
    with torch.no_grad():
        network.train()(windows(1 + len(network.offsets)))
    return network.eval()


def windows(frames: int, batch: int = 2) -> Tensor:
    base = torch.randn(batch, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    big = nn.functional.interpolate(base, size=(96, 80), mode="bicubic")
    return torch.stack([big[:, :, 2 * t : 2 * t + SIZE[0], t : t + SIZE[1]] for t in range(frames)], dim=1)


def still(frames: int, batch: int = 2) -> Tensor:
    return torch.eye(2, 3).expand(batch, frames, 2, 2, 3)


@pytest.mark.parametrize(
    ("backbone", "channels", "offsets"),
    [("lite", 32, (-4, -3, -2, -1)), ("hrnet-w32", 32, (-2, -1, 1, 2)), ("hrnet-w48", 48, (-2, -1, 1, 2))],
)
@torch.inference_mode()
def test_backbones_are_one_argument_apart(backbone: str, channels: int, offsets: tuple[int, ...]) -> None:
    network = fami_pose(backbone).eval()
    assert (network.backbone, network.offsets, network.variant) == (backbone, offsets, "paper")
    for height, width in ((64, 96), (96, 64)):
        features = network.encode(torch.randn(5, 3, height, width))
        assert features.shape == (5, channels, height // 4, width // 4)
        assert network.fuse(features[None], still(5, 1)).shape == (1, 17, height // 4, width // 4)


@torch.inference_mode()
def test_a_side_that_is_not_divisible_by_32_is_named() -> None:
    with pytest.raises(ValueError, match=r"divisible by 32, got \(64, 40\)"):
        fami_pose("hrnet-w32").encode(torch.zeros(1, 3, 64, 40))


@pytest.mark.parametrize("alignment", ["per-frame", "joint"])
@pytest.mark.parametrize("backbone", ["lite", "hrnet-w32"])
@torch.inference_mode()
def test_streaming_gives_what_the_whole_window_gives(backbone: str, alignment: str) -> None:
    network = randomised(backbone, alignment=alignment)
    frames = windows(3)
    features = torch.stack([network.encode(frames[:, t]) for t in range(3)], dim=1)
    streamed, whole = network.fuse(features, still(3)), network(frames)
    assert (streamed - whole).abs().max() <= 1e-4 * whole.std()
    other = features.clone()
    other[:, 2] = features[:, 0]
    assert (network.fuse(other, still(3)) - whole).abs().max() > 0.01 * whole.std()
    moved = still(3).clone()
    moved[:, 1, :, 0, 2] = 8.0
    assert (network.fuse(features, moved) - whole).abs().max() > 0.01 * whole.std()


@torch.inference_mode()
def test_each_frame_aligned_by_itself_takes_any_number_of_them() -> None:
    network = randomised(offsets=(-1, 1))
    for supports in (1, 2, 6):
        features = network.encode(windows(1 + supports).flatten(0, 1)).unflatten(0, (2, 1 + supports))
        parts = network.fuse_parts(features, still(1 + supports))
        assert parts.heatmaps.shape == (2, 17, 16, 8)
        assert parts.aligned.shape == (2, supports, 32, 16, 8)
        assert parts.translations.shape == (2, supports, 2)
        assert parts.fused.shape == (2, 32, 16, 8)


@torch.inference_mode()
def test_a_joint_alignment_is_made_for_its_number_of_frames() -> None:
    network = randomised(alignment="joint", offsets=(-1, 1))
    features = network.encode(windows(4).flatten(0, 1)).unflatten(0, (2, 4))
    assert network.fuse_parts(features[:, :3], still(3)).aligned.shape == (2, 1, 32, 16, 8)
    with pytest.raises(ValueError, match="made for 2 supporting frames, got 3"):
        network.fuse(features, still(4))


@torch.inference_mode()
def test_without_offsets_it_is_a_single_frame_network() -> None:
    network = fami_pose("hrnet-w32", ()).eval()
    nn.init.normal_(network.encoder.head.weight)
    features = network.encode(windows(1)[:, 0])
    assert torch.equal(network.fuse(features[:, None], still(1)), network.single(features))
    with pytest.raises(ValueError, match="nothing to fuse"):
        network.fuse_parts(features[:, None], still(1))


def test_a_frozen_encoder_keeps_weights_and_statistics() -> None:
    network = randomised()
    network.freeze_encoder()
    before = {name: tensor.clone() for name, tensor in network.encoder.state_dict().items()}
    network.train()
    network(windows(3) * 3 + 1).square().mean().backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in network.encoder.parameters())
    assert network.fuser is not None
    assert network.fuser.training
    assert all(p.grad is not None for p in network.fuser.parameters())


def test_masks_are_bounded() -> None:
    """However far the features are from what the network knows, each sample counts 0 to 1 times."""
    network = randomised("lite")
    seen = []

    def watch(*arguments: Any, **_: Any) -> Tensor:
        seen.append(arguments[2])
        return torch.zeros_like(arguments[0])

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(align, "deform_conv2d", watch)
        network.fuse(1000 * torch.randn(2, 3, 32, 16, 8), still(3))
    assert 0 <= float(seen[0].min()) < float(seen[0].max()) <= 1


@torch.inference_mode()
def test_autocast_leaves_sampling_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    network = randomised()
    frames = windows(3)
    exact = network(frames)
    dtypes, before = [], align.deform_conv2d

    def watch(x: Tensor, offset: Tensor, mask: Tensor, *rest: Any, **options: Any) -> Tensor:
        dtypes.append((x.dtype, offset.dtype, mask.dtype, torch.is_autocast_enabled("cpu")))
        return before(x, offset, mask, *rest, **options)

    monkeypatch.setattr(align, "deform_conv2d", watch)
    with torch.autocast("cpu", torch.bfloat16):
        features = network.encode(frames.flatten(0, 1))
        assert features.dtype == torch.bfloat16
        found = network.fuse(features.unflatten(0, (2, 3)), still(3)).float()
    assert dtypes == [(torch.float32, torch.float32, torch.float32, False)]
    assert torch.isfinite(found).all()
    assert torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), dim=0) > 0.98


def test_kinds_of_heatmap_are_decoded_by_the_network() -> None:
    maps = torch.randn(1, 17, 16, 8)
    assert fami_pose("lite").heatmap == "distribution"
    assert fami_pose("hrnet-w32").heatmap == "gaussian"
    for backbone, kind in (("lite", "gaussian"), ("hrnet-w32", "distribution")):
        network = fami_pose(backbone, (), heatmap=kind)
        assert torch.equal(network.decode(maps), decode(maps, kind))
    assert not torch.equal(decode(maps, "gaussian"), decode(maps, "distribution"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "vit"}, "unknown backbone 'vit'; there are: lite, hrnet-w32, hrnet-w48"),
        ({"variant": "draft"}, "unknown variant 'draft'"),
        ({"skeleton": "hand21"}, "unknown skeleton 'hand21'"),
        ({"heatmap": "flat"}, "unknown heatmap 'flat'"),
        ({"alignment": "none"}, "alignment is"),
        ({"offsets": (0, 1)}, r"each once, got \[0, 1\]"),
        ({"offsets": (-1, -1)}, "each once"),
    ],
)
def test_unknown_names_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fami_pose(**arguments)


@pytest.mark.slow
def test_a_compiled_hrnet_equals_torch(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the [train] extra")
    from streampose.engines import load_engine, whole_pictures
    from streampose.engines.build import build_bundle

    network = randomised(skeleton="posetrack")
    manifest = build_bundle(network, tmp_path / "w32", "w32", (64, 64))
    assert (manifest.skeleton, manifest.offsets, manifest.input_size) == ("posetrack", (-1, 1), (64, 64))
    engine = load_engine(tmp_path / "w32")
    crops = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        features = network.encode(normalise(torch.from_numpy(crops)))
        wanted = network.decode(network.fuse(features[None], still(3, 1)))[0].numpy()
    found = engine.fuse([engine.encode(whole_pictures(crops))], still(3, 1).numpy())[0]
    assert np.median(np.abs(found - wanted)) < 0.01
