"""People put together on paths that cross: what is known of them, and what a tracker makes of it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [train] extra")
pytest.importorskip("motmetrics", reason="needs the [train] extra")

from streampose.train.crossing_eval import detect, estimate, evaluate_crossings
from streampose.train.crossings import (
    HEIGHT_PX,
    KINDS,
    LEAST_VISIBLE,
    SIZE,
    Crossing,
    Walk,
    compose,
    find_walks,
    shaken,
)
from streampose.train.pack import Clip, Person

DATA = Path(__file__).parents[2] / "shared" / "data"
JOINTS = np.column_stack([np.linspace(0.1, 0.9, 17), np.linspace(0.05, 0.95, 17)])
CANVAS = np.full((*SIZE, 3), 200, np.uint8)


def walk(speed: float, colour: int, frames: int = 40) -> Walk:
    """Somebody of 30 x 75 px who goes to the right, a rectangle of one grey."""
    left = 10 + speed * np.arange(frames)
    boxes = np.stack([left, np.full(frames, 20.0), left + 30, np.full(frames, 95.0)], axis=1).astype(np.float32)
    points = boxes[:, None, :2] + JOINTS * [30, 75]
    keypoints = np.concatenate([points, np.ones((frames, 17, 1))], axis=2).astype(np.float32)
    cutout = np.dstack([np.full((75, 30, 3), colour, np.uint8), np.full((75, 30), 255, np.uint8)])
    return Walk(boxes, keypoints, (cutout,) * frames, 10.0)


def sequence(kind: str) -> Crossing:
    return compose(kind, kind, [walk(3, 50), walk(4, 120)], CANVAS, np.random.default_rng(0))


@pytest.mark.parametrize("kind", KINDS)
def test_somebody_is_hidden_in_the_middle_and_nobody_at_the_ends(kind: str) -> None:
    crossing = sequence(kind)
    assert len(crossing) > 90
    assert crossing.visible(0).min() == crossing.visible(len(crossing) - 1).min() == 1
    middle = len(crossing) // 2
    assert crossing.visible(middle)[0] < LEAST_VISIBLE
    assert crossing.people(middle)[0].ignore
    assert not any(person.ignore for person in crossing.people(0))


def test_directions_are_those_of_the_kind() -> None:
    ways = {
        kind: [np.ptp(a.boxes[:, 0]) * np.sign(a.boxes[-1, 0] - a.boxes[0, 0]) for a in sequence(kind).actors]
        for kind in KINDS
    }
    assert ways["crossing"][0] > 100 > -100 > ways["crossing"][1]
    assert 0 < ways["overtaking"][0] < ways["overtaking"][1]
    back = sequence("turning back").actors
    for actor in back:
        np.testing.assert_allclose(actor.boxes[0], actor.boxes[-1], atol=12)
    assert len(ways["behind a wall"]) == 1


def test_joints_go_with_the_box_and_the_picture_shows_who_is_in_front() -> None:
    crossing = sequence("crossing")
    for actor in crossing.actors:
        share = (actor.keypoints[..., :2] - actor.boxes[:, None, :2]) / (actor.boxes[:, 2:] - actor.boxes[:, :2])[
            :, None
        ]
        across = 1 - JOINTS[:, 0] if actor.mirrored else JOINTS[:, 0]
        np.testing.assert_allclose(
            share, np.broadcast_to(np.column_stack([across, JOINTS[:, 1]]), share.shape), atol=0.03
        )
        assert np.isclose((actor.boxes[:, 3] - actor.boxes[:, 1]).mean(), HEIGHT_PX)
    for index, colours in ((0, (50, 120)), (len(crossing) // 2, (120, 120))):
        image = crossing.image(index)
        for actor, colour in zip(crossing.actors, colours, strict=True):
            x, y = ((actor.boxes[index, :2] + actor.boxes[index, 2:]) / 2).astype(int)
            assert abs(int(image[y, x, 0]) - colour) <= 1


def test_walkers_are_found_who_walk_with_nobody_near() -> None:
    def person(x: float, track: int) -> Person:
        box = np.array([x, 20, x + 30, 95], np.float32)
        return Person(box, np.zeros((17, 3), np.float32), np.zeros(17, np.bool_), False, False, track)

    frames = [(person(10 + 4 * i, 1), person(400, 2), person(600, 3), person(605, 4)) for i in range(40)]
    picture = np.zeros((120, 700, 3), np.uint8)

    clip = Clip("clip", 10.0, (cv2.imencode(".jpg", picture)[1].tobytes(),) * 40, tuple(frames))
    (only,) = find_walks(clip, None)
    assert len(only.boxes) == 40, "who stands and who is in company are no walkers"
    assert (only.keypoints[..., 2] == 0).all()
    np.testing.assert_allclose(only.keypoints[0, 0, :2], [25, 57.5])


def test_seen_badly_is_who_is_hidden() -> None:
    people, rng = sequence("crossing").people(0), np.random.default_rng(1)
    plain = [len(detect(people, np.ones(2, np.float32), rng)[0]) for _ in range(100)]
    assert 180 < sum(plain) < 200, "one in twenty is missed"
    behind = [len(detect(people, np.array([0.1, 1], np.float32), rng)[0]) for _ in range(100)]
    assert 85 < sum(behind) <= 100
    mixed = estimate(people[0].box, people, np.ones(2, np.float32), rng)
    assert np.abs(mixed[:, :2] - people[0].keypoints[:, :2]).max() < 0.1 * HEIGHT_PX


def test_a_moving_camera_shows_the_same_people_elsewhere() -> None:
    wide = np.full((SIZE[0] + 400, SIZE[1] + 400, 3), 200, np.uint8)
    resting = compose("crossing", "crossing", [walk(3, 50), walk(4, 120)], wide, np.random.default_rng(0))
    moving = shaken(resting)
    assert moving.camera is not None
    assert np.ptp(moving.camera, axis=0).min() > 20
    for index in (0, len(moving) // 2, len(moving) - 1):
        for still, moved in zip(resting.people(index), moving.people(index), strict=True):
            np.testing.assert_allclose(still.box - moved.box, np.tile(moving.camera[index], 2), atol=1e-3)
            np.testing.assert_allclose(
                (still.keypoints - moved.keypoints)[:, :2], np.tile(moving.camera[index], (17, 1)), atol=1e-3
            )
    x, y = ((moving.people(0)[0].box[:2] + moving.people(0)[0].box[2:]) / 2).astype(int)
    assert abs(int(moving.image(0)[y, x, 0]) - 50) <= 1


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the training pack is not at {DATA}")
def test_the_tracker_keeps_ids_through_crossings_of_real_walkers() -> None:
    figures = evaluate_crossings(DATA, pairs=(6, 0))
    assert figures["alone"]["sequences"] == 24
    for name in ("alone", "moving_camera"):
        kinds = figures[name]["kinds"]
        assert kinds["crossing"]["idf1"] > 0.95
        assert kinds["crossing"]["num_switches"] <= 2
        assert kinds["turning back"]["idf1"] > 0.85
        assert kinds["behind a wall"]["idf1"] > 0.9
        assert figures[name]["all"]["mota"] > 0.85
