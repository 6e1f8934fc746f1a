"""The tracker: ids that stay, crops that rest, and people who are neither doubled nor invented."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from streampose.boxes import extent, recentre, visible_share, widened
from streampose.follower import Track, WholeFrame
from streampose.tracker import Tracker
from streampose.types import Pose

SIZE = (480, 640)
DT_S = 0.04
SHARES = np.random.default_rng(3).uniform(0.05, 0.95, (17, 2))

Box = tuple[float, float, float, float]


def pose_in(box: Iterable[float], score: float = 0.8) -> NDArray[np.float32]:
    """Joints that lie the same way in every box."""
    x1, y1, x2, y2 = box
    points = np.array([x1, y1]) + SHARES * [x2 - x1, y2 - y1]
    return np.concatenate([points, np.full((17, 1), score)], axis=1).astype(np.float32)


def found(*boxes: tuple[float, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Detections: (x1, y1, x2, y2) with score 0.9, or with a fifth number as the score."""
    table = np.array([(*box, 0.9)[:5] for box in boxes], np.float32).reshape(-1, 5)
    return table[:, :4], table[:, 4]


class Scene:
    """Moves a tracker frame by frame, with poses that sit in the boxes where people really are."""

    def __init__(self) -> None:
        self.tracker = Tracker()
        self.frame = 0
        self.tracks: tuple[Track, ...] = ()

    def step(
        self,
        people: list[Box],
        detections: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
        score: float = 0.8,
    ) -> tuple[Pose, ...]:
        self.tracks = self.tracker.advance(self.frame * DT_S, SIZE, detections)
        self.frame += 1
        poses = []
        for track in self.tracks:
            middle = (track.box[:2] + track.box[2:]) / 2
            nearest = min(
                people, key=lambda box: float(np.linalg.norm(middle - np.add(box[:2], box[2:]) / 2)), default=None
            )
            poses.append(pose_in(track.box if nearest is None else nearest, 0.0 if nearest is None else score))
        return self.tracker.settle((self.frame - 1) * DT_S, self.tracks, poses)


def walking(frame: int, left: float = 50, speed: float = 4) -> Box:
    return (left + speed * frame, 100, left + 60 + speed * frame, 280)


def test_ids_stay_while_people_cross_the_frame_with_a_rare_detector() -> None:
    scene = Scene()
    seen = []
    for frame in range(60):
        people = [walking(frame), walking(frame, left=500, speed=-2)]
        poses = scene.step(people, found(*people) if frame % 3 == 0 else None)
        seen.append({pose.track_id: pose.box for pose in poses})
        if frame >= 6:
            np.testing.assert_allclose(seen[-1][1], people[0], atol=6)
            np.testing.assert_allclose(seen[-1][2], people[1], atol=6)
    assert all(set(ids) == {1, 2} for ids in seen)


def test_ids_survive_people_who_pass_each_other() -> None:
    scene = Scene()
    for frame in range(100):
        left, right = walking(frame, left=50, speed=4), walking(frame, left=450, speed=-4)
        right = (right[0], right[1] + 40, right[2], right[3] + 40)
        tracks = scene.tracker.advance(frame * DT_S, SIZE, found(left, right) if frame % 3 == 0 else None)
        poses = scene.tracker.settle(
            frame * DT_S, tracks, [pose_in(left if track.key == 1 else right) for track in tracks]
        )
    boxes = {pose.track_id: pose.box for pose in poses}
    np.testing.assert_allclose(boxes[1], left, atol=8)
    np.testing.assert_allclose(boxes[2], right, atol=8)


def pass_by(ways: list[list[Box]], hidden: range, detect_every: int = 3) -> list[set[int]]:
    """Two people, the second in front: while the first is hidden, one detection and one pose are all there is.

    Returns:
        Of each person, the ids that were nearest to them while both were to be seen.
    """
    tracker, ids = Tracker(), [set[int](), set[int]()]
    for frame, (back, front) in enumerate(zip(*ways, strict=True)):
        seen = [front] if frame in hidden else [back, front]
        tracks = tracker.advance(frame * DT_S, SIZE, found(*seen) if frame % detect_every == 0 else None)
        middles = [(track.crop_box[:2] + track.crop_box[2:]) / 2 for track in tracks]
        nearest = [min(seen, key=lambda b: float(np.hypot(*(m - np.add(b[:2], b[2:]) / 2)))) for m in middles]
        poses = tracker.settle(frame * DT_S, tracks, [pose_in(box) for box in nearest])
        assert len(poses) <= len(seen), "nobody is published twice"
        for person, box in zip(ids, (back, front), strict=True):
            if frame not in hidden and frame > 3:
                fits = [pose.track_id for pose in poses if np.abs(pose.box - box).max() < 20]
                person.update(fits)
    return ids


def test_ids_go_through_a_crossing_in_which_one_hides_the_other() -> None:
    ways = [
        [walking(frame, left=50, speed=4) for frame in range(80)],
        [walking(f, left=370, speed=-4) for f in range(80)],
    ]
    assert pass_by(ways, range(33, 48)) == [{1}, {2}]


def test_somebody_who_walks_behind_a_wall_comes_out_with_their_id() -> None:
    scene = Scene()
    for frame in range(60):
        there = [walking(frame)] if not 25 <= frame < 42 else []
        poses = scene.step(there, found(*there) if frame % 3 == 0 else None)
        if 5 < frame < 25 or frame > 46:
            assert [pose.track_id for pose in poses] == [1]


def test_who_is_hidden_for_too_long_is_let_go() -> None:
    """Two tracks with the pose of one of them, for ever: after two seconds the other is forgotten."""
    scene, front, back = Scene(), (100.0, 100.0, 160.0, 280.0), (170.0, 100.0, 230.0, 280.0)
    for _ in range(6):
        assert len(scene.step([back, front], found(back, front))) == 2
    for _ in range(60):
        assert [pose.track_id for pose in scene.step([front], found(front))] == [2]
    assert len(scene.tracker.keys) == 1


def test_the_crop_of_somebody_who_trembles_stays_identical() -> None:
    scene, rng = Scene(), np.random.default_rng(0)
    crops = []
    for frame in range(45):
        box = (100, 100, 160, 280)
        noisy = tuple(np.add(box, rng.normal(0, 3, 4)))
        scene.step([box], found(noisy) if frame % 3 == 0 else None)
        crops.append(scene.tracks[0].crop_box)
    assert len({tuple(crop.tolist()) for crop in crops}) <= 2
    assert all((crop == crops[10]).all() for crop in crops[10:])


def test_the_crop_follows_somebody_who_walks() -> None:
    scene = Scene()
    for frame in range(40):
        scene.step([walking(frame)], found(walking(frame)) if frame % 3 == 0 else None)
        middle = (scene.tracks[0].crop_box[:2] + scene.tracks[0].crop_box[2:]) / 2
        assert np.abs(middle - (np.array(walking(frame)[:2]) + walking(frame)[2:]) / 2).max() < 0.06 * 180 + 6


def test_a_waving_arm_moves_no_box() -> None:
    scene, box = Scene(), (100.0, 100.0, 160.0, 280.0)
    scene.step([box], found(box))
    for frame in range(1, 8):
        (track,) = scene.tracker.advance(frame * DT_S, SIZE, None)
        pose = pose_in(box)
        pose[[7, 9], 0] += 15 * frame
        scene.tracker.settle(frame * DT_S, [track], [pose])
    np.testing.assert_allclose(track.box, box, atol=1)


def test_a_weak_detection_is_published_at_its_second_time() -> None:
    scene, box = Scene(), (100.0, 100.0, 160.0, 280.0)
    assert scene.step([box], found((*box, 0.45))) == ()
    assert scene.tracker.undecided
    poses = scene.step([box], found((*box, 0.45)))
    assert [pose.track_id for pose in poses] == [1]
    assert not scene.tracker.undecided


def test_a_weak_detection_that_does_not_return_leaves_nothing() -> None:
    scene, box = Scene(), (100.0, 100.0, 160.0, 280.0)
    scene.step([box], found((*box, 0.45)))
    assert scene.step([box], found()) == ()
    assert scene.tracker.keys == ()


def test_somebody_without_detections_lives_on_good_keypoints_only() -> None:
    box = (100.0, 100.0, 160.0, 280.0)
    for score, alive in ((0.8, True), (0.2, False)):
        scene = Scene()
        scene.step([box], found(box), score)
        for _ in range(4):
            poses = scene.step([box], found(), score)
        assert bool(poses) is alive


def test_keypoints_alone_carry_a_track_for_a_while_only() -> None:
    scene, box = Scene(), (100.0, 100.0, 160.0, 280.0)
    scene.step([box], found(box))
    lived = 0
    while scene.step([box], found()) and lived < 200:
        lived += 1
    assert 70 <= lived <= 80


def test_a_lost_track_comes_back_under_its_id_within_a_second() -> None:
    for pause, expected in ((15, 1), (40, 2)):
        scene, box = Scene(), (100.0, 100.0, 160.0, 280.0)
        for _ in range(3):
            scene.step([box], found(box))
        for _ in range(pause):
            scene.step([], found())
        (pose,) = scene.step([box], found(box))
        assert pose.track_id == expected


def test_a_reborn_pose_takes_its_old_id_though_the_box_is_another() -> None:
    scene, box = Scene(), (100.0, 100.0, 160.0, 280.0)
    for _ in range(3):
        scene.step([box], found(box))
    for _ in range(3):
        scene.step([], found())
    head = (115.0, 100.0, 145.0, 140.0)
    (track,) = scene.tracker.advance(scene.frame * DT_S, SIZE, found(head))
    (pose,) = scene.tracker.settle(scene.frame * DT_S, [track], [pose_in(box)])
    assert pose.track_id == 1


def test_of_two_tracks_with_one_pose_the_younger_goes() -> None:
    scene, box = Scene(), (100.0, 100.0, 160.0, 280.0)
    for _ in range(3):
        scene.step([box], found(box))
    upper = (100.0, 100.0, 160.0, 170.0)
    for _ in range(6):
        tracks = scene.tracker.advance(scene.frame * DT_S, SIZE, found(box, upper))
        poses = scene.tracker.settle(scene.frame * DT_S, tracks, [pose_in(box) for _ in tracks])
        scene.frame += 1
        assert [pose.track_id for pose in poses] == [1]
    other = (400.0, 100.0, 460.0, 280.0)
    poses = scene.step([box, other], found(box, other))
    assert [pose.track_id for pose in poses] == [1, 2], "a killed double uses up no id"


def test_two_people_side_by_side_are_two() -> None:
    scene = Scene()
    people = [(100.0, 100.0, 160.0, 280.0), (130.0, 100.0, 190.0, 280.0)]
    for _ in range(10):
        poses = scene.step(people, found(*people))
    assert sorted(pose.track_id for pose in poses) == [1, 2]


def test_somebody_who_leaves_is_let_go() -> None:
    scene = Scene()
    for frame in range(60):
        box = walking(frame, left=560)
        inside = (box[0], box[1], min(box[2], 640), box[3])
        poses = scene.step([box], found(inside) if inside[2] - inside[0] > 15 else found())
    assert poses == ()
    assert scene.tracker.undecided


def test_a_box_that_neither_detector_nor_pose_believes_is_not_published() -> None:
    scene, post = Scene(), (100.0, 100.0, 120.0, 160.0)
    for _ in range(5):
        poses = scene.step([post], found((*post, 0.45)), score=0.02)
    assert poses == ()


def test_scores_multiply_the_detection_with_the_sure_joints() -> None:
    scene, box = Scene(), (100.0, 100.0, 160.0, 280.0)
    (track,) = scene.tracker.advance(0.0, SIZE, found((*box, 0.8)))
    pose = pose_in(box, 0.5)
    pose[:4, 2] = 0.1
    (published,) = scene.tracker.settle(0.0, [track], [pose])
    assert np.isclose(published.score, 0.8 * 0.5)
    np.testing.assert_array_equal(published.keypoints, pose)


def test_reset_forgets_people_and_goes_on_counting() -> None:
    scene, box = Scene(), (100.0, 100.0, 160.0, 280.0)
    scene.step([box], found(box))
    scene.tracker.reset()
    assert scene.tracker.keys == ()
    (pose,) = scene.step([box], found(box))
    assert pose.track_id == 2


def test_the_whole_frame_is_one_person() -> None:
    follower = WholeFrame()
    (track,) = follower.advance(0.0, (480, 640), None)
    np.testing.assert_array_equal(track.crop_box, [0, 0, 640, 480])
    (pose,) = follower.settle(0.0, [track], [pose_in((0, 0, 640, 480), 0.6)])
    assert pose.track_id == 1
    assert np.isclose(pose.score, 0.6)


def test_recentring_waits_for_six_percent_of_place_and_eight_of_size() -> None:
    box = np.array([0, 0, 50, 100], np.float32)
    for goal, moves in (
        ([5, 5, 55, 105], False),
        ([7, 0, 57, 100], True),
        ([0, 0, 50, 107], False),
        ([0, -5, 50, 105], True),
        ([0, 5, 50, 95], True),
    ):
        crop = recentre(box, np.array(goal, np.float32))
        np.testing.assert_array_equal(crop, goal if moves else box)


def test_a_crop_widens_for_joints_outside_but_not_far() -> None:
    box = np.array([0, 0, 50, 100], np.float32)
    points = np.array([[25, 110, 0.9], [-90, 50, 0.9], [400, 50, 0.1]], np.float32)
    np.testing.assert_allclose(widened(box, points, 0.3), [-15, 0, 50, 110])
    np.testing.assert_array_equal(widened(box, None, 0.3), box)


def test_the_extent_of_a_pose_needs_sure_joints() -> None:
    pose = pose_in((100, 100, 160, 280))
    box = extent(pose, 0.3)
    assert box is not None
    assert (box[:2] < pose[:, :2].min(axis=0)).all()
    assert (box[2:] > pose[:, :2].max(axis=0)).all()
    assert extent(pose_in((100, 100, 160, 280), 0.1), 0.3) is None


def test_visible_share() -> None:
    assert visible_share(np.array([-50, 0, 50, 100], np.float32), (480, 640)) == 0.5
    assert visible_share(np.array([700, 0, 800, 100], np.float32), (480, 640)) == 0.0
