"""Training windows: labels and crop transforms say where things really are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [train] extra")

from streampose.skeleton import COCO17
from streampose.train.pack import Person, Still
from streampose.train.windows import Subject, Windows, WindowSettings, make_window

OFFSETS = (-4, -3, -2, -1)
JOINT = 9  # the left wrist; its mirror is 10


def subject() -> Subject:
    """A black picture whose only bright spot is the left wrist."""
    image = np.zeros((240, 320, 3), np.uint8)
    cv2.circle(image, (150, 100), 4, (255, 255, 255), -1)
    ok, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 98])
    assert ok
    keypoints = np.zeros((17, 3), np.float32)
    keypoints[JOINT] = 150.5, 100.5, 1
    box = np.array([110, 60, 190, 200], np.float32)
    person = Person(box, keypoints, keypoints[:, 2] > 0, suspect=False, ignore=False, track_id=-1)
    return Subject(Still("made", "one.jpg", jpeg.tobytes(), (person,)), person)


def spot(crop: np.ndarray) -> np.ndarray:
    """Centre (x, y) of what is bright, continuous pixels."""
    weight = crop.astype(np.float64).sum(axis=2)
    weight[weight < 0.4 * weight.max()] = 0
    y, x = np.indices(weight.shape)
    return np.array([(weight * (x + 0.5)).sum(), (weight * (y + 0.5)).sum()]) / weight.sum()


PLAIN = WindowSettings(offsets=OFFSETS, occlude=0, corrupt_key=0, motion=0, born=0, shade=0, crop_drift=0.08)


@pytest.mark.parametrize("seed", range(12))
def test_labels_and_transforms_find_the_joint_in_every_frame(seed: int) -> None:
    window = make_window(subject(), PLAIN, np.random.default_rng(seed))
    joint = int(window["weights"].argmax())
    assert joint in (JOINT, COCO17.mirror[JOINT])
    point = window["points"][joint]
    for crop, transform in zip(window["crops"], window["transforms"], strict=True):
        assert spot(crop) == pytest.approx(transform[:, :2] @ point + transform[:, 2], abs=1.5)
    peak = np.unravel_index(window["targets"][joint].argmax(), (64, 48))
    assert np.array(peak[::-1]) * 4 + 2 == pytest.approx(point, abs=3)


def test_some_crops_differ_and_some_do_not() -> None:
    identity = np.eye(2, 3, dtype=np.float32)
    same = [
        bool((make_window(subject(), PLAIN, np.random.default_rng(seed))["transforms"][1] == identity).all())
        for seed in range(20)
    ]
    assert 4 <= sum(same) <= 16


def test_a_flip_exchanges_left_and_right() -> None:
    settings = WindowSettings(rotation_deg=0, scale=0, shift=0, occlude=0, shade=0, flip=1)
    window = make_window(subject(), settings, np.random.default_rng(0))
    assert window["weights"].argmax() == COCO17.mirror[JOINT]
    assert window["human"].argmax() == COCO17.mirror[JOINT]
    assert spot(window["crops"][0]) == pytest.approx(window["points"][COCO17.mirror[JOINT]], abs=1)


def test_a_young_track_repeats_its_oldest_frame() -> None:
    settings = WindowSettings(offsets=OFFSETS, occlude=0, corrupt_key=0, born=1, shade=0, motion=0.03)
    windows = [make_window(subject(), settings, np.random.default_rng(seed)) for seed in range(10)]
    assert all((window["crops"][1] == window["crops"][2]).all() for window in windows if _age(window) < 3)
    assert {_age(window) for window in windows} >= {0, 2}


def _age(window: dict[str, np.ndarray]) -> int:
    """How many different frames there are before the key frame."""
    return len({crop.tobytes() for crop in window["crops"]}) - 1


def test_only_the_key_frame_is_corrupted() -> None:
    clean = WindowSettings.for_evaluation((256, 192), OFFSETS, 0)
    corrupted = WindowSettings.for_evaluation((256, 192), OFFSETS, 1)
    changed = 0
    for seed in range(6):
        a, b = (make_window(subject(), settings, np.random.default_rng(seed)) for settings in (clean, corrupted))
        assert (a["crops"][1:] == b["crops"][1:]).all()
        changed += bool((a["crops"][0] != b["crops"][0]).any())
    assert changed >= 5


def test_a_sample_depends_on_seed_and_number_alone() -> None:
    a, b = (Windows([([subject()], 1.0)], PLAIN, seed=5) for _ in range(2))
    assert (a[7]["crops"] == b[7]["crops"]).all()
    assert (a[7]["crops"] != a[8]["crops"]).any()
