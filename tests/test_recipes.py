"""Every bundled recipe is valid and runs, from its data set's layout to a checkpoint; wrong keys are named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [train] extra")
pytest.importorskip("tensorboard", reason="needs the [train] extra")

from streampose.errors import ModelError, OutputError, UsageError
from streampose.model import fami_pose, load
from streampose.skeleton import POSETRACK
from streampose.train import run_recipe
from streampose.train.loop import InterruptedTrainingError
from streampose.train.recipe import RECIPES, FuserStage, read_recipe

PAPER = ("posetrack17_fami_w48", "posetrack18_fami_w48", "posetrack21_fami_w48", "jhmdb_fami_w48")
SMALL = (
    '*.backbone="lite"', "*.size=[64, 64]", "*.loop.batch_size=2", "*.loop.workers=0", '*.loop.device="cpu"',
    "*.loop.threads=1", '*.loop.precision="fp32"', "*.loop.warmup_steps=0", "*.loop.milestones=[1]", "*.loop.epochs=2",
)  # fmt: skip


def test_all_recipes_are_valid() -> None:
    names = {path.stem for path in RECIPES.glob("*.toml")}
    assert names == {"lite", "lite_int8", "person", "coco_hrnet_w48", *PAPER}
    assert all(read_recipe(name).name == name for name in names)


@pytest.mark.parametrize("name", PAPER)
def test_fami_recipes_have_the_papers_settings(name: str) -> None:
    """FAMI-Pose, section 4.1, and the released configuration."""
    encoder, fuser = read_recipe(name).stage
    assert isinstance(fuser, FuserStage)
    assert (fuser.backbone, fuser.size, fuser.sigma, fuser.heatmap) == ("hrnet-w48", (384, 288), 3.0, "gaussian")
    assert fuser.offsets == (-2, -1, 1, 2)
    loop = fuser.loop
    assert (loop.optimizer, loop.lr, loop.epochs, loop.batch_size) == ("adam", 1e-3, 21, 48)
    assert (loop.schedule, loop.milestones, loop.lr_factor) == ("step", (8, 12, 16), 0.1)
    for stage in (encoder, fuser):
        wanted = {"rotation_deg": 45, "scale": 0.35, "half_body": 0.3}
        assert {key: stage.augment[key] for key in wanted} == wanted  # type: ignore[union-attr]


@pytest.fixture
def posetrack(tmp_path: Path) -> Path:
    """PoseTrack18 with one sequence of four frames a split, three people."""
    root = tmp_path / "PoseTrack18"
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        folder = root / f"images/{split}/000001_mpii_{split}"
        folder.mkdir(parents=True)
        for index in range(4):
            assert cv2.imwrite(str(folder / f"{index:06d}.jpg"), rng.integers(0, 255, (90, 120, 3)).astype(np.uint8))
        images = [
            {"id": 100 + i, "file_name": f"images/{split}/{folder.name}/{i:06d}.jpg", "is_labeled": i in (1, 2)}
            for i in range(4)
        ]
        points = np.column_stack([rng.uniform([30, 20], [90, 80], (17, 2)), np.ones(17)])
        people = [
            {"image_id": image, "id": image * 10 + track, "track_id": track, "category_id": 1,
             "bbox": [25, 15, 70, 70], "bbox_head": [40, 20, 10, 10], "keypoints": points.ravel().tolist()}
            for image, track in ((101, 0), (101, 1), (102, 0), (102, 1))
        ]  # fmt: skip
        content = {
            "images": images, "annotations": people,
            "categories": [{"id": 1, "name": "person", "keypoints": list(POSETRACK.joints)}],
        }  # fmt: skip
        labels = root / f"annotations/{split}/000001_mpii_{split}.json"
        labels.parent.mkdir(parents=True)
        labels.write_text(json.dumps(content))
    return root


def trained(tmp_path: Path, data: Path, name: str = "out", more: Sequence[str] = (), **options: Any) -> Path:
    return run_recipe("posetrack18_fami_w48", data, tmp_path / name, overrides=[*SMALL, *more], **options)


def test_the_posetrack_recipe_trains_encoder_and_fuser(posetrack: Path, tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, posetrack)
    network = load(checkpoint)
    assert (network.backbone, network.skeleton, network.heatmap) == ("lite", "posetrack", "gaussian")
    assert network.offsets == (-2, -1, 1, 2)
    encoder = load(tmp_path / "out/encoder/checkpoint.pt")
    assert encoder.offsets == ()
    same = zip(encoder.encoder.state_dict().values(), network.encoder.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    rows = (tmp_path / "out/fuser/log.csv").read_text()
    assert "loss,heatmap" in rows
    assert "loss,support" in rows
    assert "val,pck01_corrupt_five" in rows
    assert torch.load(checkpoint, weights_only=True)["step"] == 2 * (4 // 2)
    assert json.loads((tmp_path / "out/recipe.json").read_text())["stage"][0]["backbone"] == "lite"


def test_a_stage_begins_with_given_weights(posetrack: Path, tmp_path: Path) -> None:
    """Of other joints: the head is new, everything else is taken. Of another backbone: refused."""
    start = fami_pose("lite", ())
    torch.save({"ema": start.state_dict(), "network": start.description}, tmp_path / "start.pt")
    frozen = ["encoder.loop.lr=1e-12", f'encoder.weights="{tmp_path / "start.pt"}"']
    trained(tmp_path, posetrack, more=frozen)
    after = load(tmp_path / "out/encoder/checkpoint.pt").encoder.state_dict()
    for name, before in start.encoder.state_dict().items():
        if name.endswith("weight") and not name.startswith(("head.", "coarse_heads.")):
            assert torch.allclose(after[name], before, atol=1e-6), name
    with pytest.raises(ModelError, match="has the backbone lite, this stage trains hrnet-w32"):
        trained(tmp_path, posetrack, "other", [*frozen, '*.backbone="hrnet-w32"'])
    with pytest.raises(ModelError, match="is missing"):
        trained(tmp_path, posetrack, "none", ['encoder.weights="nowhere.pt"'])


def command(data: Path, out: Path, *more: str) -> list[str]:
    """The same at the command line, with a process of its own that makes the samples."""
    options = [word for setting in (*SMALL, "*.loop.workers=1") for word in ("--set", setting)]
    return [
        sys.executable, "-m", "streampose", "train", "posetrack18_fami_w48", "--data", str(data), "--out", str(out),
        *options, *more,
    ]  # fmt: skip


def test_workers_make_samples_for_one_stage_after_the_other(posetrack: Path, tmp_path: Path) -> None:
    done = subprocess.run(command(posetrack, tmp_path / "out"), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out/fuser/checkpoint.pt'}\n"


def test_a_signal_to_the_whole_process_group_stops_after_a_checkpoint(posetrack: Path, tmp_path: Path) -> None:
    out, moment = tmp_path / "out", threading.Event()
    long = ("--set", "*.loop.epochs=5000", "--set", "*.loop.validate_every=0", "--set", "*.loop.milestones=[9]")
    with (tmp_path / "log.txt").open("w+") as log:
        process = subprocess.Popen(command(posetrack, out, *long), stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 240
        while not (out / "encoder/log.csv").exists() and process.poll() is None and time.monotonic() < deadline:
            moment.wait(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        code = process.wait(240)
        log.seek(0)
        said = log.read()
    assert code == 0, said
    assert "stopped at step" in said
    assert "--resume" in said
    assert "Traceback" not in said
    assert torch.load(out / "encoder/checkpoint.pt", weights_only=True)["step"] > 0


def test_a_broken_picture_is_one_error_though_a_worker_meets_it(posetrack: Path, tmp_path: Path) -> None:
    for picture in posetrack.glob("images/train/*/*.jpg"):
        picture.write_bytes(picture.read_bytes()[:100])
    with pytest.raises(UsageError, match=r"00000\d\.jpg") as caught:
        trained(tmp_path, posetrack, more=["*.loop.workers=1"])
    assert "\n" not in str(caught.value)


def test_data_that_are_not_there_leave_nothing_behind(posetrack: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        trained(tmp_path, tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()
    trained(tmp_path, posetrack)


def test_a_run_is_continued_and_never_overwritten(posetrack: Path, tmp_path: Path) -> None:
    trained(tmp_path, posetrack)
    before = (tmp_path / "out/fuser/checkpoint.pt").read_bytes()
    with pytest.raises(UsageError, match="holds a run already"):
        trained(tmp_path, posetrack)
    trained(tmp_path, posetrack, resume=True)
    assert (tmp_path / "out/fuser/checkpoint.pt").read_bytes() == before


def test_the_information_term_is_weighed_as_the_squared_error_is(posetrack: Path, tmp_path: Path) -> None:
    """`total` is the heatmap's error and 0.5 / (16 x 16 cells) of the term, which is logged in nats."""
    trained(tmp_path, posetrack, more=["*.loop.log_every=1"])
    rows = [row.split(",") for row in (tmp_path / "out/fuser/log.csv").read_text().splitlines()]
    first = {name: float(value) for step, group, name, value in rows if (step, group) == ("1", "loss")}
    assert first["support"] > 1
    assert first["total"] == pytest.approx(first["heatmap"] + 0.5 / 256 * first["support"], rel=1e-4)


def test_another_recipe_does_not_go_on_with_a_run(posetrack: Path, tmp_path: Path) -> None:
    trained(tmp_path, posetrack)
    saved = (tmp_path / "out/recipe.json").read_bytes()
    for change, message in (
        ("fuser.loop.lr=0.5", "fuser.loop.lr = 0.001, not 0.5"),
        ('*.backbone="hrnet-w32"', "encoder.backbone = 'lite', not 'hrnet-w32'"),
        ("encoder.loop.seed=9", "encoder.loop.seed"),
        ("fuser.sigma=5.0", "fuser.sigma"),
    ):
        with pytest.raises(UsageError, match=message):
            trained(tmp_path, posetrack, more=[change], resume=True)
    with pytest.raises(UsageError, match=r"out/fuser was trained on encoder after 4 steps, which is to have 6 now"):
        trained(tmp_path, posetrack, more=["encoder.loop.epochs=3"], resume=True)
    assert (tmp_path / "out/recipe.json").read_bytes() == saved
    trained(tmp_path, posetrack, more=["fuser.loop.epochs=3", "*.loop.log_every=1"], resume=True)
    assert torch.load(tmp_path / "out/fuser/checkpoint.pt", weights_only=True)["step"] == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("fuser.loop.lr=nan", "lr is a finite number, got nan"),
        ("fuser.augment={half_body=-1.0}", "augment.half_body is a number, not negative"),
        ("fuser.augment={rotation_deg=nan}", "augment.rotation_deg is a number"),
        ("fuser.sigma=nan", "sigma is above 0"),
        ('fuser.name="../evil"', "a stage's name is letters"),
        ("fuser.loop.stepz=7", "stepz"),
        ("fuser.offset=[1]", "offset"),
        ("nobody.loop.steps=7", "stages are: encoder, fuser"),
        ("fuser.loop.epochs=many", "no TOML"),
        ("fuser.loop.epochs=0", "one of steps and epochs"),
        ("fuser.size=[100, 96]", "divisible by 32"),
        ('fuser.data="pack"', "shares of sets belong"),
        ('fuser.alignment="both"', "alignment"),
        ("fuser.sigma=0.0", "sigma is above 0"),
    ],
)
def test_a_wrong_key_is_named(change: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_recipe("posetrack18_fami_w48", [change])
    assert "\n" not in str(caught.value)


def test_a_wrong_augmentation_or_data_set_is_named(posetrack: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no augmentation wobble; there are .*half_body"):
        trained(tmp_path, posetrack, "a", ["encoder.augment.wobble=1.0"])
    with pytest.raises(UsageError, match="no data set 'mpii'"):
        trained(tmp_path, posetrack, "b", ['*.data="mpii"'])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="PoseTrack21"):
        trained(tmp_path, tmp_path / "empty", "c")


def test_a_wrong_key_says_where_it_comes_from() -> None:
    with pytest.raises(UsageError) as caught:
        read_recipe("lite", ["encoder.loop.step=3"])
    assert str(caught.value).startswith("recipe lite with --set encoder.loop.step=3: ")
    assert str(caught.value).endswith("at encoder loop")


def test_places_that_are_not_there_are_named_before_anything_is_read(posetrack: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such folder of data"):
        run_recipe("lite", tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*file/run: .*file is no folder that can be written to"):
        run_recipe("lite", posetrack, tmp_path / "file" / "run")


def test_ctrl_c_while_data_are_read_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("streampose.train.run.encoder_task", interrupted)
    with pytest.raises(InterruptedTrainingError, match="stopped before encoder-small began; nothing was trained yet"):
        run_recipe("lite", tmp_path, tmp_path / "out", overrides=['*.loop.device="cpu"'])


def test_an_unknown_recipe_names_the_bundled_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="coco_hrnet_w48, jhmdb_fami_w48, lite, lite_int8, person"):
        read_recipe("nothing")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        read_recipe(tmp_path / "folder.toml")
