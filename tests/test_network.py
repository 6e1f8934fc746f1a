"""The network as it streams equals the network on whole windows, and the compiled one equals torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [train] extra")
pytest.importorskip("onnxscript", reason="needs the [train] extra")

from torch import Tensor, nn
from torch.nn import functional

from streampose.engines import build, load_engine, read_manifest, whole_pictures
from streampose.engines.build import build_bundle, build_from_checkpoint
from streampose.errors import ModelError, OutputError, UsageError
from streampose.geometry import between_crops
from streampose.model import FamiPose, fami_pose, normalise
from streampose.model.align import cell_grid, sampling_offsets, warp
from streampose.model.mobile import folded
from streampose.model.network import CropEncoder, KeypointFuser
from streampose.model.person import PersonNetwork
from streampose.people import PersonDetector

SIZE = (32, 64)


def randomised(seed: int = 0, offsets: tuple[int, ...] = (-4, -3, -2, -1)) -> FamiPose:
    """A network in which nothing is zero or one any more: each layer and statistic has its say."""
    torch.manual_seed(seed)
    network = fami_pose(offsets=offsets)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = 1.0
    for name, parameter in network.fuser.named_parameters():
        if "bn" not in name and parameter.dim() != 1:
            nn.init.normal_(parameter, std=float(np.prod(parameter.shape[1:])) ** -0.5)
    for module in (
        network.fuser.alignment.local_offsets.out,
        network.fuser.alignment.global_transformation.translation,
    ):
        nn.init.normal_(module.bias, std=0.5)
    with torch.no_grad():
        network.train()(moving_frames(1 + len(offsets)))  # sets the statistics, so that the input's share does not fade
    return network.eval()


def moving_frames(count: int, batch: int = 2) -> Tensor:
    """(B, T, 3, H, W) smooth pictures that move from frame to frame."""
    base = torch.randn(batch, 3, 16, 20, generator=torch.Generator().manual_seed(1))
    big = functional.interpolate(base, size=(SIZE[0] + 40, SIZE[1] + 40), mode="bicubic")
    views = [big[:, :, 8 + 3 * t : 8 + 3 * t + SIZE[0], 20 - 2 * t : 20 - 2 * t + SIZE[1]] for t in range(count)]
    return torch.stack(views, dim=1)


def identity(batch: int, frames: int) -> Tensor:
    return torch.eye(2, 3).repeat(batch, frames, 2, 1, 1)


@pytest.mark.parametrize("supports", [1, 4, 6])
@torch.inference_mode()
def test_encoding_each_frame_once_equals_the_network_on_whole_windows(supports: int) -> None:
    network = randomised(offsets=tuple(range(-supports, 0)))
    stream = moving_frames(supports + 3)
    ring = [network.encode(stream[:, t]) for t in range(stream.shape[1])]
    for key in range(supports, stream.shape[1]):
        order = [key, *(key + offset for offset in network.offsets)]
        streamed = network.fuse(torch.stack([ring[t] for t in order], dim=1), identity(2, len(order)))
        whole = network(stream[:, order])
        assert (streamed - whole).abs().max() <= 1e-4 * whole.std()


@torch.inference_mode()
def test_supporting_frames_matter() -> None:
    network = randomised()
    frames = moving_frames(5)
    other = frames.clone()
    other[:, 3] = frames[:, 0]
    whole = network(frames)
    assert (network(other) - whole).abs().max() > 0.1 * whole.std()


@torch.inference_mode()
def test_an_untrained_fuser_is_the_single_frame_network_but_for_averaging() -> None:
    torch.manual_seed(2)
    network = fami_pose().eval()
    network.fuser.head.load_state_dict(network.encoder.head.state_dict())
    features = network.encode(moving_frames(5).flatten(0, 1)).unflatten(0, (2, 5))
    parts = network.fuse_parts(features, identity(2, 5))
    assert torch.equal(network.fuser.head(parts.fused), network.single(features[:, 0]))


@torch.inference_mode()
def test_transforms_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"are \(1, 5, 2, 2, 3\), not \(1, 5, 2, 3\)"):
        fami_pose().fuse(torch.zeros(1, 5, 32, 16, 16), torch.eye(2, 3).repeat(1, 5, 1, 1))


def smooth_features(columns: int) -> Tensor:
    """(1, 5, 32, 32, columns) features of five frames that vary over several cells, as real ones do."""
    coarse = torch.randn(5, 32, 8, columns // 4, generator=torch.Generator().manual_seed(5))
    return functional.interpolate(coarse, scale_factor=4, mode="bicubic")[None]


@pytest.mark.parametrize(("shift_px", "bound", "gain"), [(8, 1e-4, 100), (4, 0.05, 2)])
@torch.inference_mode()
def test_a_known_transform_undoes_a_crop_that_moved(shift_px: int, bound: float, gain: float) -> None:
    """Supporting crops that were cut elsewhere give the result of equal crops, away from the rim (there the supporting
    crops show something else) and as long as the global translation, which looks at the whole crop, is left out:
    exactly where they moved by whole cells of the aligned maps (8 px), and at half a cell, the worst case, up to what
    bilinear look-up between cells blurs. Ignoring the movement costs many times as much."""
    network = randomised()
    nn.init.zeros_(network.fuser.alignment.global_transformation.translation.weight)
    nn.init.zeros_(network.fuser.alignment.global_transformation.translation.bias)
    wide = smooth_features(96)
    cells = shift_px // 4
    same, moved = wide[..., 8:-8], wide[..., 8:-8].clone()
    moved[:, 1:] = wide[:, 1:, ..., 8 + cells : -8 + cells]
    known = identity(1, 5)
    known[:, 1:, :, 0, 2] = -float(shift_px)
    whole = network.fuse_parts(same, identity(1, 5)).fused
    inside = (..., slice(None), slice(24, -24))
    right = (network.fuse_parts(moved, known).fused - whole)[inside].abs().mean() / whole.std()
    ignored = (network.fuse_parts(moved, identity(1, 5)).fused - whole)[inside].abs().mean() / whole.std()
    assert right < bound
    assert ignored > gain * right


def test_between_equal_crops_the_transform_is_exactly_the_identity() -> None:
    affine = np.array([[1.37, 0.21, -55.3], [-0.21, 1.37, 12.9]], np.float32)
    assert (between_crops(affine[None], affine[None])[0] == np.eye(2, 3)).all()


def test_an_identity_leaves_the_local_offsets_alone() -> None:
    local = torch.randn(3, 4, 9, 2, 6, 5)
    assert torch.equal(sampling_offsets(local, torch.eye(2, 3).repeat(3, 1, 1)), local.flatten(1, 3))


def test_sampling_offsets_compose_the_affine_with_the_local_ones() -> None:
    local = torch.randn(1, 1, 9, 2, 4, 5, dtype=torch.float64)
    affine = torch.tensor([[[1.1, 0.2, -3.0], [-0.1, 0.9, 2.0]]], dtype=torch.float64)
    found = sampling_offsets(local, affine).view(9, 2, 4, 5)
    x, y = cell_grid(4, 5, local)
    for tap in range(9):
        at = torch.stack([x + tap % 3 - 1 + local[0, 0, tap, 1], y + tap // 3 - 1 + local[0, 0, tap, 0]]).flatten(1)
        wanted = (affine[0, :, :2] @ at + affine[0, :, 2:]).view(2, 4, 5)
        sampled = torch.stack([x + tap % 3 - 1 + found[tap, 1], y + tap // 3 - 1 + found[tap, 0]])
        assert torch.allclose(sampled, wanted)


def test_a_warp_by_whole_cells_is_a_shift() -> None:
    maps = torch.randn(1, 2, 7, 9)
    shifted = warp(maps, torch.tensor([[[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]]]))
    assert torch.allclose(shifted[:, :, :-1, :-2], maps[:, :, 1:, 2:], atol=1e-5)
    assert (shifted[:, :, -1] == 0).all()


@torch.inference_mode()
def test_the_folded_encoder_and_the_exported_stem_compute_the_same() -> None:
    network = randomised()
    crops = torch.randint(0, 256, (2, *SIZE, 3), dtype=torch.uint8)
    features = network.encode(normalise(crops))
    assert (folded(network.encoder)(normalise(crops)) - features).abs().max() < 1e-3 * features.std()
    assert (CropEncoder(network)(crops) - features).abs().max() < 1e-3 * features.std()


def test_the_batchnorm_of_a_frozen_encoder_stays_as_it_is() -> None:
    network = randomised()
    network.freeze_encoder()
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    network.train()
    network(moving_frames(5)).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in network.encoder.state_dict().items())
    assert network.fuser.training
    assert all(parameter.grad is None for parameter in network.encoder.parameters())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "small"
    build_bundle(randomised(), out, "small", SIZE)
    return out


@pytest.mark.parametrize("people", [1, 3, 6])
@torch.inference_mode()
def test_onnx_runtime_equals_torch(bundle: Path, people: int) -> None:
    network, engine = randomised(), load_engine(bundle)
    rng = np.random.default_rng(people)
    crops = rng.integers(0, 256, (people * 5, *SIZE, 3), dtype=np.uint8)
    found_features = engine.encode(whole_pictures(crops))
    features = np.stack([engine.read(feature) for feature in found_features])
    wanted = network.encode(normalise(torch.from_numpy(crops)))
    assert np.abs(features - wanted.numpy()).max() <= 1e-3 * float(wanted.std())
    transforms = np.tile(np.eye(2, 3, dtype=np.float32), (people, 5, 2, 1, 1))
    transforms[:, 1:, ..., 2] = rng.normal(0, 3, (people, 4, 2, 2))
    windows = [found_features[start : start + 5] for start in range(0, people * 5, 5)]
    window = torch.from_numpy(features.reshape(people, 5, *features.shape[1:]))
    wanted_keypoints, wanted_maps = (t.numpy() for t in KeypointFuser(network)(window, torch.from_numpy(transforms)))
    found = engine.fuse(windows, transforms)
    assert (np.abs(found - wanted_keypoints).max(axis=(0, 1)) <= 1e-3 * wanted_keypoints.std(axis=(0, 1))).all()
    maps = engine.heatmaps(windows, transforms)
    assert np.abs(maps - wanted_maps).max() <= 1e-3 * wanted_maps.std()


def test_deformable_convolution_is_the_standard_node_and_files_name_no_machine(bundle: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(bundle / "fuser.onnx").graph
    assert [node.domain for node in graph.node if node.op_type == "DeformConv"] == [""]
    for name in ("encoder.onnx", "fuser.onnx"):
        assert str(Path(__file__).parents[1]).encode() not in (bundle / name).read_bytes()


def test_a_bundle_is_never_overwritten(bundle: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        build_bundle(randomised(), bundle, "small", SIZE)


def test_a_network_that_onnx_runtime_gets_wrong_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The export is broken on purpose: the deformable convolution ignores its mask."""
    from onnxscript import opset22

    from streampose.engines import export

    def without_mask(x, offset, mask, weight, bias, stride, padding, dilation, groups, offset_groups):  # type: ignore[no-untyped-def]  # noqa: ARG001
        return opset22.DeformConv(
            x, weight, offset, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1], offset_group=offset_groups
        )

    monkeypatch.setattr(export, "translations", lambda: {torch.ops.streampose.deform_conv2d.default: without_mask})
    with pytest.raises(ModelError, match="does not compute what the network computes in torch"):
        build_bundle(randomised(), tmp_path / "wrong", "wrong", SIZE)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def person_checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    file = tmp_path / "checkpoint.pt"
    torch.save({"ema": PersonNetwork().state_dict(), "network": {"detector": "person"}}, file)
    return file


def test_a_detector_is_built_from_its_checkpoint(person_checkpoint: Path, tmp_path: Path) -> None:
    manifest = build_from_checkpoint(person_checkpoint, tmp_path / "mine", score_threshold=0.35)
    assert (manifest.kind, manifest.name, manifest.score_threshold) == ("person-detector", "mine", 0.35)
    assert read_manifest(tmp_path / "mine") == manifest
    detector = PersonDetector(tmp_path / "mine")
    assert (detector.threshold, detector.input_size) == (0.35, manifest.input_size)
    with pytest.raises(ModelError, match="give it as --detector"):
        load_engine(tmp_path / "mine")


def test_a_checkpoint_of_the_pose_network_becomes_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = randomised()
    torch.save({"ema": network.state_dict(), "network": network.description}, tmp_path / "checkpoint.pt")
    built: list[tuple[bool, Path, str]] = []
    monkeypatch.setattr(build, "build_bundle", lambda network, *rest: built.append((network.training, *rest)))
    build_from_checkpoint(tmp_path / "checkpoint.pt", tmp_path / "mine")
    assert built == [(False, tmp_path / "mine", "mine")]


LITE = {"backbone": "lite", "variant": "paper", "skeleton": "coco17", "offsets": [-1], "alignment": "per-frame",
        "heatmap": "distribution"}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing; train one"),
        ("folder", "cannot be read"),
        (b"", "is no checkpoint"),
        (b"nonsense", "is no checkpoint"),
        ({"ema": {"encoder.head.weight": torch.zeros(1)}}, "is no checkpoint"),
        ({"ema": {"encoder.head.weight": torch.zeros(1)}, "network": LITE}, "its tensors are not those of lite"),
        (
            {"ema": {"encoder.head.weight": torch.zeros(1)}, "network": {"detector": "person"}},
            "are not those of the person",
        ),
        ({"ema": {}, "network": LITE | {"backbone": "vit"}}, "does not know: unknown backbone 'vit'"),
        ({"ema": {}, "network": {"backbone": "lite"}}, "does not know"),
        ({"ema": torch.zeros(3), "network": LITE}, "is no checkpoint"),
        ({"ema": {1: 2}, "network": LITE}, "its tensors are not those of lite"),
        (torch.zeros(3), "is no checkpoint"),
        ({"model": {}}, "is no checkpoint"),
        ([1], "is no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(content: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    if content == "folder":
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(ModelError, match=message) as caught:
        build_from_checkpoint(file, tmp_path / "out")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_built_is_refused(person_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        build_from_checkpoint(person_checkpoint, tmp_path / "out", score_threshold=1.5)
    with pytest.raises(OutputError, match="cannot write"):
        build_from_checkpoint(person_checkpoint, person_checkpoint / "out")
