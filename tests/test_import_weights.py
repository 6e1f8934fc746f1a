"""Public checkpoints come in under our names, whatever theirs are, and nothing in them is run."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [train] extra")

from safetensors.torch import save_file
from torch import Tensor, nn

from streampose.errors import ModelError, OutputError, UsageError
from streampose.model import fami_pose, import_weights, load
from streampose.model.hrnet import HRNet, public_name
from streampose.model.released import released_name

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def hrnet() -> HRNet:
    """A HRNet-W32 whose BatchNorm statistics have their say."""
    torch.manual_seed(0)
    network = HRNet(32)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    nn.init.normal_(network.head.weight, std=0.2)
    return network.eval()


@pytest.fixture(scope="module")
def public(hrnet: HRNet) -> State:
    """Its tensors as deep-high-resolution-net names them."""
    return {public_name(name): tensor for name, tensor in hrnet.state_dict().items()}


def mmpose(public: State, head: str) -> State:
    return {f"{head if n.startswith('final_layer') else 'backbone'}.{n}": t for n, t in public.items()}


NAMINGS: dict[str, tuple[Callable[[State], dict[str, object]], str, int]] = {
    "deep-high-resolution-net": (lambda p: dict(p), "coco17", 0),
    "wrapped": (lambda p: {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in p.items()}}, "coco17", 0),
    "mmpose 0": (lambda p: {"meta": {}, "state_dict": mmpose(p, "keypoint_head")}, "coco17", 0),
    "mmpose 1": (lambda p: {"state_dict": mmpose(p, "head")}, "coco17", 0),
    "DCPose": (
        lambda p: (
            {f"rough_pose_estimation_net.{n}": t for n, t in p.items()} | {"offset_layers.0.weight": torch.ones(2)}
        ),
        "posetrack",
        1,
    ),
    "PoseWarper": (
        lambda p: dict(p) | {"offset_feats.0.conv1.weight": torch.ones(2), "deform_conv1.weight": torch.ones(2)},
        "posetrack",
        2,
    ),
    "FAMI-Pose's backbone": (lambda p: {f"hrnet.{n}": t for n, t in p.items()}, "posetrack", 0),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_public_naming_is_read(naming: str, hrnet: HRNet, public: State, tmp_path: Path) -> None:
    rename, skeleton, left_over = NAMINGS[naming]
    torch.save(rename(public), tmp_path / "public.pth")
    report = import_weights(tmp_path / "public.pth", tmp_path / "ours.safetensors")
    assert (len(report.used), report.missing, report.reshaped) == (len(public), (), ())
    assert len(report.left_over) == left_over
    network = load(tmp_path / "ours.safetensors")
    assert (network.backbone, network.skeleton, network.heatmap) == ("hrnet-w32", skeleton, "gaussian-index")
    frames = torch.randn(1, 3, 64, 32)
    with torch.inference_mode():
        features = network.encode(frames)
        assert torch.equal(features, hrnet(frames))
        assert torch.equal(network.single(features), hrnet.head(features))


def test_safetensors_are_read_and_a_head_of_other_joints_is_told(public: State, tmp_path: Path) -> None:
    other = public | {"final_layer.weight": torch.zeros(16, 32, 1, 1), "final_layer.bias": torch.zeros(16)}
    save_file(other, tmp_path / "mpii.safetensors")
    report = import_weights(tmp_path / "mpii.safetensors", tmp_path / "ours.safetensors", "coco17")
    assert report.missing == ("head.weight", "head.bias")
    assert sorted(report.reshaped) == ["final_layer.bias", "final_layer.weight"]
    assert report.left_over == ()


def test_imagenets_hrnet_has_no_head(public: State, tmp_path: Path) -> None:
    imagenet = {n: t for n, t in public.items() if not n.startswith("final_layer")}
    imagenet |= {"incre_modules.0.0.conv1.weight": torch.ones(1), "classifier.weight": torch.ones(1000, 2)}
    torch.save(imagenet, tmp_path / "hrnetv2.pth")
    report = import_weights(tmp_path / "hrnetv2.pth", tmp_path / "ours.safetensors")
    assert report.missing == ("head.weight", "head.bias")
    assert len(report.left_over) == 2


@pytest.mark.slow
def test_the_released_network_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    network = fami_pose("hrnet-w48", variant="released")
    state = {f"module.{released_name(name)}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "fami.pth")
    report = import_weights(tmp_path / "fami.pth", tmp_path / "ours.safetensors")
    assert (report.kind, len(report.used)) == ("released FAMI-Pose", len(state))
    ours = load(tmp_path / "ours.safetensors")
    assert (ours.variant, ours.skeleton) == ("released", "posetrack")
    assert all(
        torch.equal(a, b) for a, b in zip(ours.state_dict().values(), network.state_dict().values(), strict=True)
    )
    state.pop("module.dcn_3.bias")
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ModelError, match=r"1 missing \(dcn_3.bias\)"):
        import_weights(tmp_path / "part.pth", tmp_path / "part.safetensors")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.marker,)


class Command(Bomb):
    """Runs a command."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.system, (f"touch {self.marker}",)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"state_dict": {"conv1.weight": Bomb(marker)}}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"conv1.weight": Bomb(marker)}, protocol=2))
    torch.save({"state_dict": {"conv1.weight": Command(marker)}}, tmp_path / "command.pth")
    for name in ("evil.pth", "plain.pth", "command.pth"):
        with pytest.raises(ModelError, match="holds pickled code or objects, which is refused"):
            import_weights(tmp_path / name, tmp_path / "ours.safetensors")
        with pytest.raises(ModelError, match="refused"):
            load(tmp_path / name)
    assert not marker.exists()
    assert not (tmp_path / "ours.safetensors").exists()


def test_numbers_of_numpy_and_nested_wrappers_are_no_code(public: State, tmp_path: Path) -> None:
    content = {"checkpoint": {"state_dict": public}, "best_score": np.float64(0.7), "history": np.arange(3)}
    torch.save(content, tmp_path / "public.pth")
    assert not import_weights(tmp_path / "public.pth", tmp_path / "ours.safetensors").missing


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv1.weight": torch.ones(64, 3, 7, 7), "layer1.0.conv1.weight": torch.ones(2)}, "holds no HRNet"),
        ({"stage2.0.branches.0.0.conv1.weight": torch.ones(18, 18, 3, 3)}, "width 18; known are 32 and 48"),
        ({"stage2.0.branches.0.0.conv1.weight": torch.ones(32, 32, 3, 3)}, r"lacks \d+ tensors of HRNet-W32"),
        ({"epoch": 3}, "holds no tensors where they are looked for; at its top are: epoch"),
        (
            {"state_dict": {"conv1.weight": torch.full((2,), torch.nan)}},
            "conv1.weight holds values that are not finite",
        ),
        ([torch.ones(2)], "holds a list"),
        (b"", "no checkpoint that torch can read"),
        (b"PK\x03\x04 cut off", "no checkpoint that torch can read"),
        (None, "is missing"),
    ],
)
def test_what_is_no_public_checkpoint_is_named(content: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "file.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(ModelError, match=message) as caught:
        import_weights(file, tmp_path / "ours.safetensors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours.safetensors").exists()


def test_nothing_is_overwritten_and_names_are_checked(public: State, tmp_path: Path) -> None:
    torch.save(public, tmp_path / "public.pth")
    out = tmp_path / "ours.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        import_weights(tmp_path / "public.pth", out)
    assert out.read_bytes() == b"mine"
    with pytest.raises(UsageError, match=r"ends with .safetensors"):
        import_weights(tmp_path / "public.pth", tmp_path / "ours.pt")
    with pytest.raises(UsageError, match="unknown skeleton 'hand21'"):
        import_weights(tmp_path / "public.pth", tmp_path / "new.safetensors", "hand21")
    with pytest.raises(OutputError, match="cannot write"):
        import_weights(tmp_path / "public.pth", tmp_path / "public.pth" / "new.safetensors")


def test_safetensors_of_others_are_not_loaded_as_ours(public: State, tmp_path: Path) -> None:
    save_file({"conv1.weight": public["conv1.weight"]}, tmp_path / "public.safetensors")
    with pytest.raises(ModelError, match="does not say what network it is"):
        load(tmp_path / "public.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ModelError, match="not a safetensors file"):
        load(tmp_path / "broken.safetensors")


def streampose(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streampose", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_command_line(public: State, tmp_path: Path) -> None:
    torch.save({"state_dict": public | {"classifier.weight": torch.ones(2)}}, tmp_path / "public.pth")
    done = streampose("import-weights", tmp_path / "public.pth", "--out", tmp_path / "ours.safetensors")
    assert done.returncode == 0, done.stderr
    first, used, missing, reshaped, left_over = done.stdout.splitlines()
    assert first == "HRNet: hrnet-w32, variant paper, joints of coco17"
    assert used.startswith(f"used: {len(public)}: conv1.weight, bn1.weight, ")
    assert (missing, reshaped) == ("missing: 0", "of another shape: 0")
    assert left_over == "left over: 1 (not used): classifier.weight"
    again = streampose("import-weights", tmp_path / "public.pth", "--out", tmp_path / "ours.safetensors")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    listed = streampose("import-weights", tmp_path / "public.pth", "--out", tmp_path / "b.safetensors", "--json")
    report = json.loads(listed.stdout)
    assert (report["left_over"], len(report["used"])) == (["classifier.weight"], len(public))
    (tmp_path / "none.pth").write_bytes(b"none")
    refused = streampose("import-weights", tmp_path / "none.pth", "--out", tmp_path / "c.safetensors")
    assert (refused.returncode, refused.stderr.count("\n")) == (4, 1)
