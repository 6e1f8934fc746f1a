"""Ids by what people look like, and in pictures of a camera that moves."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from streampose.camera_motion import CameraMotion
from streampose.follower import Track
from streampose.geometry import transform
from streampose.looks import LENGTH, covered, look, look_likeness
from streampose.meetings import Meetings
from streampose.tracked import Life, Tracked
from streampose.tracker import Tracker

SIZE = (240, 320)
DT_S = 0.04
SHARES = np.random.default_rng(3).uniform(0.05, 0.95, (17, 2))
RED, BLUE, GREEN, BLACK, WHITE = (30, 30, 200), (200, 60, 30), (40, 160, 40), (15, 15, 15), (235, 235, 235)
Picture = NDArray[np.uint8]
Box = NDArray[np.float32]
Clothes = tuple[tuple[int, int, int], tuple[int, int, int]]


def scenery(height: int, width: int) -> Picture:
    """Something with corners."""
    rough = np.random.default_rng(0).integers(60, 200, (height // 12, width // 12, 3), np.uint8)
    return np.asarray(cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def dress(picture: Picture, box: Box, clothes: Clothes) -> None:
    x1, y1, x2, y2 = (int(v) for v in box)
    waist = (y1 + y2) // 2
    picture[max(y1, 0) : waist, max(x1, 0) : x2], picture[waist:y2, max(x1, 0) : x2] = clothes


def pose_in(box: Box) -> NDArray[np.float32]:
    points = box[:2] + SHARES * (box[2:] - box[:2])
    return np.concatenate([points, np.full((17, 1), 0.8)], axis=1).astype(np.float32)


def standing(x: float, y: float = 60) -> Box:
    return np.array([x, y, x + 40, y + 120], np.float32)


def test_looks_are_alike_in_the_same_clothes_and_not_in_others() -> None:
    picture = scenery(*SIZE)
    worn: list[Clothes] = [(RED, BLACK), (BLACK, RED), (RED, WHITE), (BLACK, BLACK), (WHITE, WHITE)]
    looks = []
    for clothes in worn:
        dress(picture, standing(100), clothes)
        found = look(picture, standing(100))
        assert found is not None
        assert found.shape == (LENGTH,)
        assert np.isclose(found[:-1].sum(), 1)
        moved = look(picture, standing(104, 63))
        assert moved is not None
        assert look_likeness(found, moved) > 0.9
        looks.append(found)
    for place, found in enumerate(looks):
        for other in looks[:place]:
            assert look_likeness(found, other) < 0.8


def test_nobody_is_seen_outside_the_picture() -> None:
    assert look(scenery(*SIZE), standing(-200)) is None
    assert look(scenery(*SIZE), standing(400)) is None


def test_what_covers_the_core_counts_and_what_touches_the_arm_does_not() -> None:
    np.testing.assert_array_equal(covered(np.stack([standing(100), standing(130)])), np.zeros((2, 2)))
    shares = covered(np.stack([standing(100), standing(100), standing(300)]))
    np.testing.assert_array_equal(shares, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert covered(np.zeros((0, 4), np.float32)).shape == (0, 0)


def test_light_makes_nobody_another() -> None:
    """A shade that takes 60 % of the light away changes a look less than other clothes do."""
    picture = scenery(*SIZE)
    rough = np.random.default_rng(9).normal(1, 0.2, (*SIZE, 1))
    looks = {}
    for name, clothes in (("brown", ((60, 90, 140), (50, 45, 40))), ("red", (RED, BLACK)), ("white", (WHITE, WHITE))):
        dress(picture, standing(100), clothes)
        for light in (1.0, 0.4):
            lit = np.clip(picture * rough * light, 0, 255).astype(np.uint8)
            looks[name, light] = look(lit, standing(100))
    for name in ("brown", "red", "white"):
        assert look_likeness(looks[name, 1.0], looks[name, 0.4]) > 0.9
        for other in {"brown", "red", "white"} - {name}:
            assert look_likeness(looks[name, 1.0], looks[other, 0.4]) < 0.85


def meet_and_turn_back(clothes: list[Clothes], looked_at: bool = True) -> tuple[list[int], list[int]]:
    """Two people walk towards one another until the second hides the first, and back again.

    Returns:
        The ids, the first's before the second's, that were published before they met and at the end.
    """
    tracker, ids = Tracker(), []
    for frame in range(90):
        way = 3.0 * min(frame, 89 - frame)
        people = [standing(20 + way), standing(260 - way, 64)]
        near = abs(people[0][0] - people[1][0]) < 34
        picture = scenery(*SIZE)
        for box, worn in zip(people, clothes, strict=True):
            dress(picture, box, worn)
        seen = people[1:] if near else people
        found = (np.stack(seen), np.full(len(seen), 0.9, np.float32)) if frame % 3 == 0 else None
        tracks = tracker.advance(frame * DT_S, SIZE, found, picture if looked_at else None)
        nearest = [min(seen, key=lambda box, at=track.crop_box: float(np.abs(box - at).sum())) for track in tracks]
        poses = tracker.settle(frame * DT_S, tracks, [pose_in(box) for box in nearest])
        ids.append([p.track_id for box in people for p in poses if np.abs(p.box - box).max() < 15])
    return ids[20], ids[-1]


def test_two_who_meet_and_turn_back_keep_their_ids_by_their_clothes() -> None:
    before, after = meet_and_turn_back([(RED, BLACK), (BLUE, WHITE)])
    assert before == after == [1, 2]


@pytest.mark.parametrize("looked_at", [False, True])
def test_without_a_picture_or_in_the_same_clothes_they_are_expected_to_go_on(looked_at: bool) -> None:
    """So the test before is of their clothes, and likeness alone exchanges nobody."""
    before, after = meet_and_turn_back([(GREEN, BLACK)] * 2, looked_at)
    assert (before, after) == ([1, 2], [2, 1])


def pass_by_into_shade(shade: float) -> tuple[list[int], list[int]]:
    """Two people in the same rough clothes pass one another and go on; the right half is `shade` as bright.

    Returns:
        The ids, the first's before the second's, before they met and at the end.
    """
    tracker, ids = Tracker(), []
    rough = np.random.default_rng(9).normal(1, 0.25, (*SIZE, 1))
    light = np.where(np.arange(SIZE[1]) < SIZE[1] // 2, 1.0, shade)[None, :, None]
    for frame in range(85):
        people = [standing(10 + 3.0 * frame), standing(270 - 3.0 * frame, 64)]
        near = abs(people[0][0] - people[1][0]) < 34
        picture = scenery(*SIZE)
        for box in people:
            dress(picture, box, ((60, 90, 140), (50, 45, 40)))
        picture = np.clip(picture * rough * light, 0, 255).astype(np.uint8)
        seen = people[1:] if near else people
        found = (np.stack(seen), np.full(len(seen), 0.9, np.float32)) if frame % 3 == 0 else None
        tracks = tracker.advance(frame * DT_S, SIZE, found, picture)
        nearest = [min(seen, key=lambda box, at=track.crop_box: float(np.abs(box - at).sum())) for track in tracks]
        poses = tracker.settle(frame * DT_S, tracks, [pose_in(box) for box in nearest])
        ids.append([p.track_id for box in people for p in poses if np.abs(p.box - box).max() < 15])
    return ids[15], ids[-8]


@pytest.mark.parametrize("shade", [1.0, 0.6])
def test_who_walks_on_into_the_shade_keeps_their_id(shade: float) -> None:
    assert pass_by_into_shade(shade) == ([1, 2], [1, 2])


def test_a_flat_half_of_the_picture_hides_no_motion_of_the_camera() -> None:
    wide = scenery(400, 600)
    wide[:200] = 180
    camera = CameraMotion()
    for frame in range(4):
        picture = wide[60 : 60 + SIZE[0], 20 * frame : 20 * frame + SIZE[1]]
        affine = camera.follow(frame * DT_S, picture, np.zeros((0, 4), np.float32))
    assert affine is not None
    np.testing.assert_allclose(transform(np.float32([[160, 200]]), affine)[0], [140, 200], atol=0.5)


def test_after_a_reset_nothing_of_before_is_known() -> None:
    """Neither the last picture, of which the next would be taken as a motion, nor who met whom."""
    wide, tracker = scenery(400, 800), Tracker()
    for left in (0, 20, 40):
        found = (np.stack([standing(100)]), np.full(1, 0.9, np.float32))
        tracker.advance(left * DT_S, SIZE, found, wide[60 : 60 + SIZE[0], left : left + SIZE[1]])
    assert tracker._camera.since(0) is not None
    tracker._meetings._open[1, 2] = 0.0
    tracker.reset()
    assert tracker._camera.since(0) is None
    assert tracker._camera._last is None
    assert not tracker._meetings._open


def test_the_motion_of_the_background_is_found_beside_people_who_move() -> None:
    wide = scenery(400, 600)
    camera, last = CameraMotion(), np.array([0, 0])
    for frame in range(8):
        corner = np.array([40 + 6 * frame, 30 + 2 * frame])
        picture = wide[corner[1] : corner[1] + SIZE[0], corner[0] : corner[0] + SIZE[1]].copy()
        box = standing(100 + 9 * frame)
        dress(picture, box, (RED, BLACK))
        affine = camera.follow(frame * DT_S, picture, box[None])
        if frame:
            assert affine is not None
            np.testing.assert_allclose(transform(np.float32([[160, 120]]), affine)[0], [154, 118], atol=0.5)
        last = corner
    whole = camera.since(3 * DT_S)
    assert whole is not None
    moved = transform(np.float32([[160, 120]]), whole)[0] - [160, 120]
    np.testing.assert_allclose(moved, [40 + 18 - last[0], 30 + 6 - last[1]], atol=1)


def test_a_camera_that_rests_or_sees_no_background_does_not_move() -> None:
    picture = scenery(*SIZE)
    noise = np.random.default_rng(1)
    camera = CameraMotion()
    for frame in range(5):
        noisy = np.clip(picture + noise.integers(-2, 3, picture.shape), 0, 255).astype(np.uint8)
        dress(noisy, standing(50 + 8 * frame), (RED, BLACK))
        assert camera.follow(frame * DT_S, noisy, standing(50 + 8 * frame)[None]) is None
    camera.clear()
    for frame in range(3):
        assert camera.follow(frame * DT_S, np.full((*SIZE, 3), 60 * frame, np.uint8), np.zeros((0, 4))) is None
    assert camera.since(0) is None


def shaken(looked_at: bool, delay: int = 0) -> set[tuple[int, ...]]:
    """The ids of two people who stand still before a camera that swings to and fro, left before right; poses come as
    many frames late as `delay` says."""
    wide, tracker, ids = scenery(400, 800), Tracker(), set()
    waiting: list[tuple[float, tuple[Track, ...], list[Box]]] = []
    for frame in range(60):
        left = 240 + round(75 * np.sin(frame / 2.0))
        picture = wide[60 : 60 + SIZE[0], left : left + SIZE[1]].copy()
        people = [standing(x - left) for x in (330, 410)]
        for box, clothes in zip(people, [(RED, BLACK), (BLUE, WHITE)], strict=True):
            dress(picture, box, clothes)
        found = (np.stack(people), np.full(2, 0.9, np.float32)) if frame % 3 == 0 else None
        tracks = tracker.advance(frame * DT_S, SIZE, found, picture if looked_at else None)
        waiting.append((frame * DT_S, tracks, people))
        if len(waiting) <= delay:
            continue
        pts_s, tracks, people = waiting.pop(0)
        nearest = [min(people, key=lambda box, at=track.box: float(np.abs(box - at).sum())) for track in tracks]
        poses = tracker.settle(pts_s, tracks, [pose_in(box) for box in nearest])
        ids.add(tuple(p.track_id for p in sorted(poses, key=lambda p: p.box[0])))
    return ids


@pytest.mark.parametrize("delay", [0, 2])
def test_ids_stay_in_a_picture_that_is_swung_to_and_fro(delay: int) -> None:
    assert shaken(True, delay) == {(1, 2)}
    assert shaken(False, delay) != {(1, 2)}, "the test is of the camera's motion"


def somebody(key: int, seen: NDArray[np.float32]) -> Tracked:
    box = standing(50.0 * key)
    return Tracked(key, box, box.copy(), 0.9, 0.0, 0.0, Life.ACTIVE, track_id=key, look=seen)


def colours(**shares: float) -> NDArray[np.float32]:
    """A look of these shares of colours, of the same brightness."""
    seen = np.zeros(LENGTH, np.float32)
    for name, share in shares.items():
        seen["abcd".index(name)] = share
    seen[-1] = 7.0
    return seen


@pytest.mark.parametrize(
    ("now", "exchanged", "decided"),
    [
        pytest.param((colours(b=1), colours(a=1)), True, True, id="each looks like the other"),
        pytest.param((colours(a=1), colours(b=1)), False, True, id="each looks like themselves"),
        pytest.param((colours(b=1), colours(a=0.2, b=0.3, c=0.5)), False, False, id="one of them only"),
        pytest.param((colours(a=0.49, b=0.51), colours(a=0.51, b=0.49)), False, False, id="hardly"),
    ],
)
def test_ids_are_exchanged_where_each_clearly_looks_like_the_other(now, exchanged: bool, decided: bool) -> None:
    people = somebody(1, colours(a=1)), somebody(2, colours(b=1))
    assert Meetings()._told(*people, {1: now[0], 2: now[1]}) is decided
    assert [person.track_id for person in people] == ([2, 1] if exchanged else [1, 2])


def test_looks_say_nothing_of_two_who_look_the_same() -> None:
    people = somebody(1, colours(a=0.5, b=0.5)), somebody(2, colours(a=0.4, b=0.6))
    assert not Meetings()._told(*people, {1: colours(b=1), 2: colours(a=1)})
    assert [person.track_id for person in people] == [1, 2]


def test_a_meeting_goes_on_with_who_comes_back_under_another_key() -> None:
    meetings = Meetings()
    meetings._open[1, 2] = 0.5
    meetings.renew(1, 7)
    assert meetings._open == {(7, 2): 0.5}


def seen_by(meetings: Meetings, people: list[Tracked], boxes: list[Box], worn: list[Clothes], now_s: float) -> None:
    """A frame in which everybody is detected; who comes later in the list is in front."""
    picture = scenery(*SIZE)
    for box, clothes in zip(boxes, worn, strict=True):
        dress(picture, box, clothes)
    meetings.see(picture, people, {p.key: box for p, box in zip(people, boxes, strict=True)}, now_s)


def test_nobody_is_looked_at_who_is_partly_covered() -> None:
    people = [somebody(1, colours(a=1)), somebody(2, colours(b=1))]
    known = [person.look for person in people]
    boxes, worn = [standing(100), standing(124)], [(RED, BLACK), (BLUE, WHITE)]
    assert 0.1 < covered(np.stack(boxes))[0, 1] < 0.3
    seen_by(meetings := Meetings(), people, boxes, worn, 0.0)
    assert not meetings._open
    assert all(person.look is look_before for person, look_before in zip(people, known, strict=True))
    seen_by(meetings, people, [standing(100), standing(160)], worn, 0.1)
    assert not any(np.array_equal(person.look, before) for person, before in zip(people, known, strict=True))


def test_looks_are_not_learnt_while_it_is_open_who_is_who() -> None:
    """Two dressed as nobody has seen them: nothing tells who is who, so neither look changes until that is given up."""
    people = [somebody(1, colours(a=1)), somebody(2, colours(b=1))]
    known = [np.copy(person.look) for person in people if person.look is not None]
    worn = [(RED, BLACK), (BLUE, WHITE)]
    seen_by(meetings := Meetings(), people, [standing(100), standing(110)], worn, 0.0)
    for now_s in (0.5, 1.0, 1.9):
        seen_by(meetings, people, [standing(60), standing(200)], worn, now_s)
        assert list(meetings._open) == [(1, 2)]
        assert all(np.array_equal(person.look, before) for person, before in zip(people, known, strict=True))
    seen_by(meetings, people, [standing(60), standing(200)], worn, 2.1)
    assert not meetings._open
    assert not any(np.array_equal(person.look, before) for person, before in zip(people, known, strict=True))


def test_a_motion_that_few_corners_share_is_none_of_the_camera() -> None:
    """Three strips of the background move three ways: no half of it agrees."""
    wide, camera = scenery(400, 600), CameraMotion()
    for frame in range(4):
        strips = [
            wide[60 + 80 * i : 140 + 80 * i, 200 + way * frame :][:, : SIZE[1]] for i, way in enumerate((-20, 8, 20))
        ]
        affine = camera.follow(frame * DT_S, np.vstack(strips), np.zeros((0, 4), np.float32))
        assert affine is None
