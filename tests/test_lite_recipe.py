"""The bundled recipe `lite` from its first stage to its last, at a size for tests, on a made-up pack with maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the [train] extra")

import torch
from pack_kit import write_pack

from streampose.model import load
from streampose.train.from_bundle import pose_of_bundle
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
    stages = [stage.name for stage in read_recipe("lite").stage]
    changes = [f"{stage}.{key}" for stage in stages for key in SMALL]
    checkpoint = run_recipe("lite", pack, tmp_path / "run", overrides=changes)
    network = load(checkpoint)
    assert network.offsets == (-4, -3, -2, -1)
    for stage in stages:
        rows = (tmp_path / "run" / stage / "log.csv").read_text()
        assert "loss,heatmap" in rows
        assert ("loss,tremble" in rows) == stage.startswith("fuser")


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
