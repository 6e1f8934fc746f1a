"""The bundled recipe `lite` from its first stage to its last, at a size for tests, on a made-up pack with maps."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [train] extra")

import torch

from streampose.model import load
from streampose.train.from_bundle import pose_of_bundle
from streampose.train.maps import pack_maps
from streampose.train.pack import STILL_SETS
from streampose.train.recipe import read_recipe
from streampose.train.run import run_recipe

FRAMES = 12
SMALL = (
    "size=[64, 64]", "clip_every=2", "validate_people=3", "loop.batch_size=2", "loop.steps=1", "loop.workers=0",
    "loop.warmup_steps=0", 'loop.device="cpu"',
)  # fmt: skip


def labels_of(person_id: int, image_id: int, maps: list[int], shift: int = 0) -> dict[str, Any]:
    keypoints = [value for joint in range(17) for value in (45 + shift + joint, 15 + 5 * joint, 2)]
    return {
        "id": person_id, "image_id": image_id, "bbox": [40 + shift, 10, 30, 95], "keypoints": keypoints,
        "kpt_score": [1] * 17, "source": "human+teacher", "track_id": 1, "maps": maps,
    }  # fmt: skip


@pytest.fixture
def pack(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    root = tmp_path / "pack"
    (root / "stills").mkdir(parents=True)
    (root / "clips" / "annotations").mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 256, (120, 120, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    spots = np.zeros((17, 64, 64), np.uint8)
    spots[:, 30:34, 30:34] = 255
    maps = pack_maps(spots)
    for name in STILL_SETS:
        images = []
        with tarfile.open(root / "stills" / f"{name}_00.tar", "w") as tar:
            for index in range(4):
                member = tarfile.TarInfo(f"{index}.jpg")
                member.size = len(jpeg)
                tar.addfile(member, io.BytesIO(jpeg))
                images.append(
                    {"id": index, "tar": 0, "file_name": member.name, "split": "val" if index == 3 else "train"}
                )
        annotations = [labels_of(index, index, [0, len(maps)]) for index in range(4)]
        (root / "stills" / f"{name}.json").write_text(json.dumps({"images": images, "annotations": annotations}))
        (root / "stills" / f"{name}.maps").write_bytes(maps)
    make_video("pack/clips/walk.mp4", frames=FRAMES)
    annotations = [labels_of(index, index, [0, len(maps)], index) for index in range(FRAMES)]
    clip = {"info": {"fps": "25"}, "images": [{"id": i} for i in range(FRAMES)], "annotations": annotations}
    (root / "clips" / "annotations" / "walk.json").write_text(json.dumps(clip))
    (root / "clips" / "annotations" / "walk.maps").write_bytes(maps)
    return root


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
