"""Hard examples: the worst quarter is found, and drawn as often as asked."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [train] extra")

from streampose.errors import UsageError
from streampose.geometry import crop_affine, invert, transform
from streampose.model import fami_pose
from streampose.train.from_bundle import pose_of_bundle
from streampose.train.hard import fastest, hardest
from streampose.train.pack import Person
from streampose.train.pose import predict_windows
from streampose.train.recipe import read_recipe
from streampose.train.windows import Subject, Windows, WindowSettings, make_window

BOX = np.array([20, 20, 100, 180], np.float32)


class Wall:
    moving = False

    def image(self, _index: int = 0) -> np.ndarray:
        return np.full((200, 120, 3), 128, np.uint8)


def labelled(points: np.ndarray) -> Subject:
    keypoints = np.column_stack([points, np.ones(17)]).astype(np.float32)
    return Subject(Wall(), Person(BOX, keypoints, np.ones(17, np.bool_), False, False, -1))


def test_those_whose_labels_are_farthest_from_the_answer_are_hard() -> None:
    model = fami_pose("lite", ()).eval()
    model.encoder.load_state_dict(pose_of_bundle("lite").encoder.state_dict())
    settings = WindowSettings.for_evaluation((256, 192), (), 0.0)
    window = make_window(labelled(np.full((17, 2), 60.0)), settings, np.random.default_rng(0))
    answer = transform(predict_windows(model, [window])[0][0, :, :2], invert(crop_affine(BOX, (256, 192))))
    people = [labelled(answer + shift) for shift in (0, 1, 20, 2, 0, 1, 30, 2)]
    assert sorted(hardest(model, people, (256, 192))) == [2, 6]


def test_hard_ones_are_drawn_as_often_as_asked() -> None:
    people = [labelled(np.full((17, 2), 40.0 + number)) for number in range(10)]
    windows = Windows([(people, 1.0)], WindowSettings((64, 64)))
    windows.prefer([np.array([3])], 0.5)
    drawn = [windows._draw(np.random.default_rng((1, index))) for index in range(200)]
    share = np.mean([subject is people[3] for subject in drawn])
    assert 0.45 < share < 0.65


def test_hard_belongs_to_the_pack() -> None:
    with pytest.raises(UsageError, match="hard is a share"):
        read_recipe("coco_hrnet_w48", ["encoder.hard=0.2"])


def went(by: float, clip: Wall, whole: float = 0.0) -> Subject:
    """One joint went by so much inside the box, and all of the person by `whole`."""
    now, points = labelled(np.full((17, 2), 60.0)).person, np.full((17, 2), 60.0)
    points[3] -= by
    then = labelled(points - whole).person
    then = Person(BOX - np.float32(whole), then.keypoints, then.human, False, False, -1)
    return Subject(clip, now, 9, (8, 5), support_people=(now, then))


def test_fast_ones_are_those_whose_joints_went_far_inside_the_box() -> None:
    ways = [(0, 90), (1, 0), (20, 0), (2, 0), (0, 50), (1, 0), (30, 0), (2, 0)]
    people = [went(by, Wall(), whole) for by, whole in ways] + [labelled(np.full((17, 2), 60.0))]
    assert sorted(fastest(people)) == [2, 6]
    assert len(fastest([labelled(np.full((17, 2), 60.0))] * 5)) == 5  # stills: nobody moves


def test_no_clip_gives_most_of_the_fast_ones() -> None:
    wild, others = Wall(), [Wall() for _ in range(20)]
    people = [went(30, wild) for _ in range(60)] + [went(5, others[place % 20]) for place in range(20)]
    chosen = fastest(people)
    assert len(chosen) == 20
    assert sum(people[index].source is wild for index in chosen) == 4


def test_fast_and_strides_belong_to_the_pack() -> None:
    with pytest.raises(UsageError, match="fast and clip_strides belong"):
        read_recipe("posetrack17_fami_w48", ["fuser.fast=0.2"])
    with pytest.raises(UsageError, match="clip_strides are whole numbers"):
        read_recipe("lite", ["fuser.clip_strides=[0]"])
