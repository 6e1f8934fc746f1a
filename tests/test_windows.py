"""Training windows: labels and crop transforms say where things really are."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [train] extra")

from torch.utils.data import DataLoader

from streampose.skeleton import COCO17, JHMDB
from streampose.train.augment import half_body_box
from streampose.train.pack import Clip, Person, Still
from streampose.train.windows import (
    ShuffledWindows,
    Subject,
    Windows,
    WindowSettings,
    clip_subjects,
    make_window,
)

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


PLAIN = WindowSettings(
    offsets=OFFSETS, box_noise=0, occlude=0, corrupt_key=0, motion=0, born=0, shade=0, crop_drift=0.08
)


@pytest.mark.parametrize("seed", range(12))
def test_labels_and_transforms_find_the_joint_in_every_frame(seed: int) -> None:
    window = make_window(subject(), PLAIN, np.random.default_rng(seed))
    joint = int(window["weights"].argmax())
    assert joint in (JOINT, COCO17.mirror[JOINT])
    point = window["points"][joint]
    for crop, (transform, _) in zip(window["crops"], window["transforms"], strict=True):
        assert spot(crop) == pytest.approx(transform[:, :2] @ point + transform[:, 2], abs=1.5)


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


def test_half_a_body_fills_the_crop_and_labels_follow() -> None:
    keypoints = subject().person.keypoints.copy()
    keypoints[5:11] = [[130, 80, 1], [170, 80, 1], [120, 90, 1], [180, 90, 1], [150.5, 100.5, 1], [175, 110, 1]]
    keypoints[11:17] = [[140, 130, 1], [160, 130, 1], [140, 160, 1], [160, 160, 1], [140, 195, 1], [160, 195, 1]]
    whole = subject()
    person = Person(whole.person.box, keypoints, whole.person.human, suspect=False, ignore=False, track_id=-1)
    settings = WindowSettings(rotation_deg=0, scale=0, shift=0, occlude=0, shade=0, flip=0, half_body=1)
    seen = set()
    for seed in range(12):
        window = make_window(Subject(whole.source, person), settings, np.random.default_rng(seed))
        inside = ((window["points"] >= 0) & (window["points"] <= [192, 256])).all(axis=1)
        upper, lower = inside[5:11].all(), inside[11:17].all()
        assert upper or lower
        seen.add((bool(upper), bool(lower)))
        if upper:
            assert spot(window["crops"][0]) == pytest.approx(window["points"][JOINT], abs=2)
    assert {(True, False), (False, True)} <= seen


def test_half_a_body_needs_enough_joints() -> None:
    keypoints = np.zeros((17, 3), np.float32)
    keypoints[:7] = [[x, x, 1] for x in range(7)]
    rng = np.random.default_rng(0)
    assert half_body_box(keypoints, COCO17, 8, rng) is None
    box = half_body_box(keypoints, COCO17, 7, rng)
    assert box is not None
    assert (box[:2] < 0).all()
    assert (box[2:] > 6).all()


@pytest.mark.parametrize("seed", range(4))
def test_crops_have_no_bias_of_half_a_pixel(seed: int) -> None:
    """Over many turned, scaled and flipped crops the spot is where the label says, on average to a tenth of a pixel."""
    settings = WindowSettings(occlude=0, shade=0)
    errors = []
    for index in range(60):
        window = make_window(subject(), settings, np.random.default_rng((seed, index)))
        errors.append(spot(window["crops"][0]) - window["points"][int(window["weights"].argmax())])
    assert np.abs(np.mean(errors, axis=0)).max() < 0.1


def test_other_joints_have_their_own_mirror() -> None:
    whole = subject()
    keypoints = np.zeros((15, 3), np.float32)
    wrist = JHMDB.joints.index("left_wrist")
    keypoints[wrist] = 150.5, 100.5, 1
    person = Person(whole.person.box, keypoints, keypoints[:, 2] > 0, suspect=False, ignore=False, track_id=-1)
    settings = WindowSettings(rotation_deg=0, scale=0, shift=0, occlude=0, shade=0, flip=1)
    window = make_window(Subject(whole.source, person, skeleton=JHMDB), settings, np.random.default_rng(0))
    assert window["weights"].argmax() == JHMDB.joints.index("right_wrist")


def people(count: int) -> list[Subject]:
    """People who differ in their labelled joint only."""
    whole = subject()
    found = []
    for joint in range(count):
        keypoints = np.zeros((17, 3), np.float32)
        keypoints[joint] = 150.5, 100.5, 1
        person = Person(whole.person.box, keypoints, keypoints[:, 2] > 0, suspect=False, ignore=False, track_id=-1)
        found.append(Subject(whole.source, person))
    return found


PLAINEST = WindowSettings(size=(32, 32), flip=0, shade=0, occlude=0)


def test_an_epoch_has_everyone_once_in_an_order_of_its_own() -> None:
    windows = ShuffledWindows(people(9), PLAINEST, seed=3)
    epochs = [[int(windows[9 * epoch + i]["weights"].argmax()) for i in range(9)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(9)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    again = ShuffledWindows(people(9), PLAINEST, seed=3)
    assert (again[22]["crops"] == windows[22]["crops"]).all()
    assert (again[4]["points"] == windows[4]["points"]).all()


def test_samples_do_not_depend_on_the_number_of_workers() -> None:
    alone, shared = (
        [batch["points"] for batch in DataLoader(ShuffledWindows(people(8), PLAINEST), 4, sampler=range(16),
                                                 num_workers=workers)]
        for workers in (0, 2)
    )  # fmt: skip
    assert all(a.equal(b) for a, b in zip(alone, shared, strict=True))


def test_spinning_turns_people_by_any_angle_and_labels_follow() -> None:
    """The joint lies above the box's middle; spun, it comes out in every direction from the crop's."""
    settings = replace(PLAIN, offsets=(), spin=1.0)
    directions = []
    for seed in range(24):
        window = make_window(subject(), settings, np.random.default_rng(seed))
        point = window["points"][int(window["weights"].argmax())]
        assert spot(window["crops"][0]) == pytest.approx(point, abs=1.5)
        away = point - np.array([96, 128])
        directions.append(int(np.arctan2(away[1], away[0]) // (np.pi / 2)))
    assert set(directions) == {-2, -1, 0, 1}


def test_a_limb_moves_by_itself_and_its_label_with_it() -> None:
    settings = replace(PLAIN, crop_drift=0, limb_motion=0.03, all_frames=1, rotation_deg=0)
    moved = []
    for seed in range(8):
        window = make_window(subject(), settings, np.random.default_rng(seed))
        joint = int(window["weights"].argmax())
        for crop, points in zip(window["crops"], window["frame_points"], strict=True):
            assert spot(crop) == pytest.approx(points[joint], abs=1.5)
        at = window["frame_points"][:, joint]
        np.testing.assert_array_equal(at[0], window["points"][joint])
        steps = [at[0] - at[4], at[4] - at[3], at[3] - at[2], at[2] - at[1]]  # frames 0, -1, -2, -3, -4
        np.testing.assert_allclose(steps, np.tile(steps[0], (4, 1)), atol=0.02)
        moved.append(float(np.linalg.norm(steps[0]) / window["side"]))
    assert max(moved) <= 0.03 + 1e-3
    assert np.median(moved) > 0.005


class Walk:
    """A bright spot, the left wrist, that goes to the right by eight pixels a frame."""

    moving = True

    def image(self, index: int) -> np.ndarray:
        image = np.zeros((240, 400, 3), np.uint8)
        return np.asarray(cv2.circle(image, (60 + 8 * index, 100), 4, (255, 255, 255), -1), np.uint8)


def walker(index: int) -> Person:
    keypoints = np.zeros((17, 3), np.float32)
    keypoints[JOINT] = 60.5 + 8 * index, 100.5, 1
    box = np.array([20 + 8 * index, 60, 100 + 8 * index, 200], np.float32)
    return Person(box, keypoints, np.zeros(17, np.bool_), suspect=False, ignore=False, track_id=1)


def test_supporting_frames_are_cut_by_their_own_boxes_where_asked() -> None:
    """And transforms lead to where the person is, whether the crop follows or not."""
    indices = tuple(12 + offset for offset in OFFSETS)
    people = tuple(walker(index) for index in indices)
    walk = Subject(Walk(), walker(12), 12, indices, support_people=people)
    places = {}
    for own in (0.0, 1.0):
        settings = replace(PLAIN, crop_drift=0, own_crops=own, flip=0)
        window = make_window(walk, settings, np.random.default_rng(1))
        for crop, (transform, _) in zip(window["crops"], window["transforms"], strict=True):
            assert spot(crop) == pytest.approx(transform[:, :2] @ window["points"][JOINT] + transform[:, 2], abs=1.5)
        places[own] = [spot(crop) for crop in window["crops"]]
    assert np.ptp(places[0.0], axis=0).max() > 25
    assert np.ptp(places[1.0], axis=0).max() < 3


def test_people_are_followed_through_the_made_up_motion_of_a_still_nearly() -> None:
    """Boxes in supporting frames are off by a little, as a tracker's are; the key frame's is not."""
    off = []
    for seed in range(12):
        settings = replace(PLAIN, crop_drift=0, motion=0.04, box_noise=0.01, flip=0)
        window = make_window(subject(), settings, np.random.default_rng(seed))
        for crop, (transform, _) in list(zip(window["crops"], window["transforms"], strict=True))[1:]:
            off.append(np.linalg.norm(spot(crop) - transform[:, :2] @ window["points"][JOINT] - transform[:, 2]))
        np.testing.assert_array_equal(window["transforms"][0], np.tile(np.eye(2, 3, dtype=np.float32), (2, 1, 1)))
    assert 0.3 < np.median(off) < 6


def test_every_nth_frame_of_a_clip_is_a_faster_clip() -> None:
    clip = Clip("walk", 25.0, (b"",) * 30, tuple((labelled_walker(index),) for index in range(30)))
    subjects = clip_subjects([clip], OFFSETS, every=5, stride=3)
    assert [s.index for s in subjects] == [15, 20, 25]
    assert subjects[0].support_indices == (3, 6, 9, 12)
    assert [p.keypoints[0, 0] for p in subjects[0].support_people if p] == [3, 6, 9, 12]


def labelled_walker(index: int) -> Person:
    keypoints = np.full((17, 3), [index, 100, 1], np.float32)
    return Person(np.array([0, 0, 50, 90], np.float32), keypoints, np.zeros(17, np.bool_), False, False, track_id=2)


def test_windows_of_people_who_are_labelled_in_the_key_frame_alone() -> None:
    """As PoseTrack's and Sub-JHMDB's are: there is no box to follow, and no label but the key frame's."""
    lonely = Subject(Walk(), walker(12), 12, tuple(12 + offset for offset in OFFSETS))
    for all_frames in (0, 1):
        settings = replace(PLAIN, own_crops=1, limb_motion=0.03, all_frames=all_frames, crop_drift=0)
        window = make_window(lonely, settings, np.random.default_rng(2))
        np.testing.assert_allclose(window["transforms"], np.tile(np.eye(2, 3), (5, 2, 1, 1)), atol=1e-6)
        if all_frames:
            assert window["frame_weights"].sum(axis=1).tolist() == [1, 0, 0, 0, 0]


def test_limbs_of_single_frames_do_not_move() -> None:
    window = make_window(subject(), WindowSettings(limb_motion=0.03), np.random.default_rng(0))
    assert window["crops"].shape[0] == 1
