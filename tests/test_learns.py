"""The whole way of training learns: eight windows by heart, encoder and fuser one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [train] extra")
pytest.importorskip("tensorboard", reason="needs the [train] extra")

from torch.utils.data import Dataset

from streampose.model import FamiPose, fami_pose, load
from streampose.skeleton import COCO17
from streampose.train.loop import fit
from streampose.train.pack import Person, Still
from streampose.train.pose import EncoderTask, FuserTask, PoseData, predict_windows
from streampose.train.recipe import EncoderStage, FuserStage
from streampose.train.settings import LoopSettings
from streampose.train.windows import Subject, WindowSettings, make_window

SIZE = (128, 96)
OFFSETS = (-2, -1)


def drawn_person(rng: np.random.Generator) -> Subject:
    """Somebody made of coloured limbs, in a pose of their own, before noise."""
    image = rng.integers(0, 90, (160, 128, 3)).astype(np.uint8)
    keypoints = np.ones((17, 3), np.float32)
    keypoints[:, :2] = rng.uniform([20, 20], [108, 140], (17, 2))
    for place, (a, b) in enumerate(COCO17.edges):
        ends = [tuple(int(v) for v in keypoints[joint, :2]) for joint in (a, b)]
        cv2.line(image, ends[0], ends[1], (40 + 12 * place, 250 - 12 * place, 80 + 90 * (place % 2)), 3)
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    person = Person(np.array([14, 10, 114, 150], np.float32), keypoints, np.ones(17, np.bool_), False, False, -1)
    return Subject(Still("drawn", "one.jpg", jpeg, (person,)), person)


class Eight(Dataset[dict[str, Any]]):
    """The same eight windows again and again."""

    def __init__(self, people: list[Subject], settings: WindowSettings) -> None:
        self.samples = [make_window(person, settings, np.random.default_rng(i)) for i, person in enumerate(people)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[index % 8]


def pck(network: FamiPose, windows: Eight) -> list[float]:
    """PCK@0.1 of the encoder's head, and of the fused windows, if there are supporting frames."""
    points = np.stack([sample["points"] for sample in windows.samples])
    reach = 0.1 * np.array([sample["side"] for sample in windows.samples])[:, None]
    found = predict_windows(network, windows.samples)
    return [float((np.linalg.norm(f[..., :2] - points, axis=2) <= reach).mean()) for f in found]


@pytest.mark.slow
def test_eight_windows_are_learnt_by_heart(tmp_path: Path) -> None:
    """PCK@0.1 is 1.0 in the end, by the encoder alone and by fused windows, through checkpoints as a recipe does. Half
    of the fused windows' key frames are corrupted: there the encoder alone must fail."""
    rng = np.random.default_rng(5)
    people = [drawn_person(rng) for _ in range(8)]
    loop = LoopSettings(
        steps=100, batch_size=8, lr=4e-3, warmup_steps=10, ema_decay=0.9, workers=0, validate_every=100, threads=1,
        checkpoint_every=100, seed=1,
    )  # fmt: skip
    stage = EncoderStage(name="encoder", size=SIZE, loop=loop, shares={"drawn": 1.0})
    torch.manual_seed(1)
    network = fami_pose("lite", ())
    network.encoder.trunk.load_imagenet()  # type: ignore[union-attr]
    single = Eight(people, WindowSettings.for_evaluation(SIZE, (), 0.0))
    fit(EncoderTask(network, PoseData(single, 8, people, COCO17), stage), loop, tmp_path / "encoder")
    trained = load(tmp_path / "encoder" / "checkpoint.pt")
    assert pck(trained, single) == [1.0]

    fuser_stage = FuserStage(
        name="fuser", size=SIZE, loop=loop, shares={"drawn": 1.0}, offsets=OFFSETS, support_information=0.3
    )
    network = fami_pose("lite", OFFSETS)
    network.encoder.load_state_dict(trained.encoder.state_dict())
    windows = Eight(people, WindowSettings.for_evaluation(SIZE, OFFSETS, 0.5))
    task = FuserTask(network, PoseData(windows, 8, people, COCO17), fuser_stage)
    fit(task, loop, tmp_path / "fuser")
    alone, fused = pck(load(tmp_path / "fuser" / "checkpoint.pt"), windows)
    assert fused == 1.0
    assert alone < 0.9
    assert (tmp_path / "fuser" / "sheets" / "step-0000100.jpg").exists()
