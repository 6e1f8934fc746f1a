"""The bundled recipe `lite` from its first stage to its last, at a size for tests, on a made-up pack with maps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the [train] extra")

import torch
from pack_kit import write_pack

from streampose.errors import UsageError
from streampose.model import load
from streampose.train.from_bundle import pose_of_bundle
from streampose.train.pack_eval import evaluate_pack
from streampose.train.person import validation_scenes
from streampose.train.recipe import read_recipe
from streampose.train.run import run_recipe

SMALL = (
    "size=[64, 64]", "clip_every=2", "validate_people=3", "loop.batch_size=2", "loop.steps=1", "loop.workers=0",
    "loop.warmup_steps=0", 'loop.device="cpu"',
)  # fmt: skip


@pytest.fixture
def pack(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    return write_pack(tmp_path / "pack", make_video)


def test_every_stage_runs_and_the_last_is_a_five_frame_network(tmp_path: Path, pack: Path) -> None:
    torch.manual_seed(0)
    stages = read_recipe("lite").stage
    changes = [f"{stage.name}.{key}" for stage in stages for key in SMALL]
    checkpoint = run_recipe("lite", pack, tmp_path / "run", overrides=changes)
    network = load(checkpoint)
    assert network.offsets == (-4, -3, -2, -1)
    for stage in stages:
        rows = (tmp_path / "run" / stage.name / "log.csv").read_text()
        assert "loss,heatmap" in rows
        assert ("loss,tremble" in rows) == bool(getattr(stage, "steadiness", 0))
        assert ("val,pck005_clips_five" in rows) == (stage.name.startswith("fuser"))
    assert stages[-1].steadiness


def last_stage(tmp_path: Path) -> Path:
    """A recipe of the fuser's last stage alone."""
    text = (Path(__file__).parents[1] / "train" / "recipes" / "lite.toml").read_text()
    recipe = tmp_path / "fuser.toml"
    recipe.write_text('name = "lite"\n\n' + text[text.rindex("[[stage]]") :])
    return recipe


def test_a_pack_of_ones_own_trains_the_fuser_with_or_without_clips(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    own = write_pack(tmp_path / "own", make_video, ["street"])
    small = [f"fuser.{key}" for key in (*SMALL, 'weights="lite"')]
    with pytest.raises(
        UsageError, match=r"no stills/lspet.json, to which the recipe gives a share; its sets are: street"
    ):
        run_recipe(last_stage(tmp_path), own, tmp_path / "a", overrides=small)
    for name, shares in (("b", "{street = 0.5, clips = 0.5}"), ("c", "{street = 1}")):
        if name == "c":
            shutil.rmtree(own / "clips")
        run_recipe(last_stage(tmp_path), own, tmp_path / name, overrides=[*small, f"fuser.shares={shares}"])
        rows = (tmp_path / name / "fuser" / "log.csv").read_text()
        assert "val,pck01_clean_five" in rows
        assert ("val,pck01_clips_five" in rows) == (name == "b")


def test_a_pack_of_ones_own_pictures_is_seen_by_the_detectors_recipe(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    own = write_pack(tmp_path / "own", make_video, ["street"])
    shutil.rmtree(own / "clips")
    (scene,) = validation_scenes(own)
    assert len(scene.people) == 1
    with pytest.raises(UsageError, match="its sets are: street; name them"):
        run_recipe("person", own, tmp_path / "run", overrides=['*.loop.device="cpu"'])


def test_a_pack_without_validation_pictures_has_no_figures(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    own = write_pack(tmp_path / "own", make_video, ["street"])
    labels = json.loads((own / "stills" / "street.json").read_text())
    labels["images"] = labels["images"][:3]
    (own / "stills" / "street.json").write_text(json.dumps(labels))
    shutil.rmtree(own / "clips")
    with pytest.raises(UsageError, match="no people in validation pictures to measure on"):
        evaluate_pack(own, "lite", "none")
    with pytest.raises(UsageError, match="no validation pictures to measure on"):
        evaluate_pack(own, None)


def test_a_stride_that_no_clip_is_long_enough_for_is_named(tmp_path: Path, pack: Path) -> None:
    small = [f"fuser.{key}" for key in (*SMALL, 'weights="lite"', "clip_strides=[1, 9]")]
    with pytest.raises(UsageError, match="no clip is long enough for clip_strides with 9"):
        run_recipe(last_stage(tmp_path), pack, tmp_path / "run", overrides=small)


def test_what_ships_can_be_trained_further(tmp_path: Path, pack: Path) -> None:
    """From the bundle, with hard examples, a tiny step changes little: it is the network that ships that goes on."""
    (first, *_) = read_recipe("lite").stage
    small = [f"{first.name}.{key}" for key in (*SMALL, 'weights="lite"', "hard=0.5", "loop.lr=1e-6")]
    recipe = tmp_path / "more.toml"
    text = (Path(__file__).parents[1] / "train" / "recipes" / "lite.toml").read_text()
    recipe.write_text(text[: text.index("[[stage]]", text.index("[[stage]]") + 1)])
    network = load(run_recipe(recipe, pack, tmp_path / "run", overrides=small))
    shipped = pose_of_bundle("lite").encoder.state_dict()
    convolutions = [name for name, tensor in shipped.items() if tensor.ndim == 4 and "coarse" not in name]
    assert len(convolutions) > 60
    for name in convolutions:
        torch.testing.assert_close(network.encoder.state_dict()[name], shipped[name], atol=1e-4, rtol=0)
