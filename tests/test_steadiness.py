"""Learning not to flicker: the views of a longer window, and the loss on the bends of paths."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [train] extra")

import torch

from streampose.errors import UsageError
from streampose.geometry import between_crops, compose, crop_affine, transform
from streampose.train.pack import Person
from streampose.train.recipe import read_recipe
from streampose.train.steadiness import longer_offsets, tremble_loss, views
from streampose.train.windows import Subject, WindowSettings, make_window

OFFSETS = (-3, -1)
SETTINGS = WindowSettings((96, 64), longer_offsets(OFFSETS), corrupt_key=0, born=0, all_frames=1, box_noise=0)


class Street:
    """Twelve frames in which a person walks to the right, ever faster."""

    moving = True

    def image(self, index: int) -> np.ndarray:
        return np.full((120, 200, 3), 10 * index, np.uint8)


def walker(frame: int, pace: float = 0.5) -> Person:
    place = 10 + pace * frame**2
    box = np.array([place, 10, place + 30, 100], np.float32)
    rows = np.linspace(15, 95, 17)
    points = np.column_stack([np.full(17, place + 15) + np.arange(17) % 3, rows, np.ones(17)]).astype(np.float32)
    return Person(box, points, np.zeros(17, np.bool_), False, False, 4)


def batch(seeds: range, pace: float = 0.5) -> dict[str, torch.Tensor]:
    indices = [9 + offset for offset in SETTINGS.offsets]
    people = tuple(walker(i, pace) for i in indices)
    subject = Subject(Street(), walker(9, pace), 9, tuple(indices), support_people=people)
    samples = [make_window(subject, SETTINGS, np.random.default_rng(seed)) for seed in seeds]
    return {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in samples[0]}


def test_each_of_the_three_newest_frames_is_seen_as_key_frame() -> None:
    assert longer_offsets(OFFSETS) == (-5, -4, -3, -2, -1)
    features = torch.tensor([0.0, -5, -4, -3, -2, -1]).view(1, 6, 1, 1, 1)
    window = batch(range(1))
    seen = list(views(window, features, OFFSETS))
    ages = [[int(value) for value in view.features.flatten()] for view in seen]
    assert ages == [[0, -3, -1], [-1, -4, -2], [-2, -5, -3]]
    slots = [0, 5, 4]
    for view, slot in zip(seen, slots, strict=True):
        assert torch.equal(view.points, window["frame_points"][:, slot])
        torch.testing.assert_close(view.transforms[:, 0], torch.eye(2, 3).expand(1, 2, 2, 3), atol=1e-4, rtol=0)
        back = transform(view.points[0].numpy(), view.back[0].numpy())
        again = transform(back, window["transforms"][0, slot, 0].numpy())
        np.testing.assert_allclose(again, view.points[0], atol=1e-3)


def test_transforms_lead_from_the_key_frame_that_is_meant() -> None:
    rng = np.random.default_rng(4)
    affines = np.stack([crop_affine(np.array([5, 5, 40 + i, 90], np.float32), (96, 64)) for i in range(6)])
    affines[:, :, 2] += rng.normal(0, 2, (6, 2))
    places = np.stack([affines, affines[::-1]], axis=1)
    transforms = torch.from_numpy(between_crops(np.stack([places[0]] * 6), places))[None]
    labels = {"frame_points": torch.zeros(1, 6, 2, 2), "frame_weights": torch.ones(1, 6, 2)}
    seen = list(views({"transforms": transforms, **labels}, torch.zeros(1, 6, 1, 1, 1), OFFSETS))
    expected = between_crops(places[5], places[1 + 1])
    np.testing.assert_allclose(seen[1].transforms[0, 1], expected, atol=1e-3)
    np.testing.assert_allclose(compose(affines[0], np.eye(2, 3, dtype=np.float32)), affines[0], atol=1e-5)


def test_following_the_labels_costs_nothing_and_trembling_costs() -> None:
    window = batch(range(6), pace=0.02)
    seen = list(views(window, torch.zeros(6, 6, 1, 1, 1), OFFSETS))
    exact = [view.points for view in seen]
    assert float(tremble_loss(exact, seen, window["side"])) < 0.3  # log(1 + 0.2 % / 0.5 %)
    shifted = [view.points + 5 for view in seen]
    assert float(tremble_loss(shifted, seen, window["side"])) < 1.4  # 1.5 %: crops turn
    jump = [exact[0], exact[1] + 5, exact[2]]
    assert float(tremble_loss(jump, seen, window["side"])) > 2.0  # 5 %: log(1 + 5 / 0.5), by 0.89 since the label moves


def test_labels_of_all_frames_follow_the_person_through_every_variation() -> None:
    """Seen from the person, whose box goes with them, joints rest, whatever the crops do."""
    for seed in range(8):
        window = batch(range(seed, seed + 1))
        seen = list(views(window, torch.zeros(1, 6, 1, 1, 1), OFFSETS))
        path = [transform(view.points[0].numpy(), view.back[0].numpy()) for view in seen]
        bend = np.linalg.norm(path[0] - 2 * path[1] + path[2], axis=1)
        np.testing.assert_allclose(bend, 0, atol=0.02)


def test_what_steadiness_does_not_go_with_is_refused() -> None:
    read_recipe("lite", ["fuser.steadiness=0.1"])
    for change in ("fuser.support_information=0.3", "fuser.offsets=[-2, 2]"):
        with pytest.raises(UsageError, match="steadiness goes with"):
            read_recipe("lite", ["fuser.steadiness=0.1", change])


def test_flicker_counts_less_on_what_moves() -> None:
    """Of two joints that jump by the same, the one whose label rests decides."""
    window = batch(range(1))
    seen = list(views(window, torch.zeros(1, 6, 1, 1, 1), OFFSETS))
    weights = torch.zeros(1, 17)
    weights[:, :2] = 1
    still = {"weights": weights, "back": torch.eye(2, 3)[None]}
    resting = [view._replace(points=seen[0].points.clone(), **still) for view in seen]
    resting[2].points[:, 1, 0] -= 0.2 * float(window["side"][0])  # joint 1 goes by 20 % of the box
    resting[1].points[:, 1, 0] -= 0.1 * float(window["side"][0])
    losses = []
    for joint in (0, 1):
        found = [view.points.clone() for view in resting]
        found[1][:, joint, 0] += 0.05 * float(window["side"][0])
        losses.append(float(tremble_loss(found, resting, window["side"])))
    assert losses[0] > 20 * losses[1]
    fast = [view._replace(weights=view.weights * (torch.arange(17) == 1)) for view in resting]
    jumping = [view.points.clone() for view in fast]
    jumping[1][:, 1, 0] += 0.05 * float(window["side"][0])
    assert float(tremble_loss(jumping, fast, window["side"])) < 0.05, "nor where all that is labelled moves"
