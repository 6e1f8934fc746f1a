"""The bundled clip, models and pipeline together: all three people are found and stay who they are."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import streampose
from streampose.geometry import box_iou
from streampose.types import PoseFrame

LABELLED_FRAMES = (0, 11, 22, 33, 44, 55, 66, 77, 88, 99)
# Boxes x1, y1, x2, y2 drawn by eye on frames shrunk to half their size.
WALKER = (
    (132, 27, 240, 262), (120, 27, 234, 262), (108, 33, 234, 262), (108, 44, 230, 263), (106, 28, 234, 262),
    (85, 36, 238, 264), (124, 46, 242, 271), (104, 42, 242, 291), (64, 36, 278, 292), (78, 44, 256, 292),
)  # fmt: skip
WATCHER = (
    (18, 104, 113, 374), (18, 104, 115, 372), (17, 104, 114, 372), (22, 106, 134, 372), (24, 118, 116, 370),
    (0, 104, 116, 368), (2, 106, 115, 368), (2, 104, 116, 368), (5, 104, 116, 368), (8, 102, 118, 370),
)  # fmt: skip
BYSTANDER = ((246, 54, 270, 180),) * 10
SCALE = 2


@pytest.fixture(scope="module")
def results() -> list[PoseFrame]:
    return list(streampose.run("demo"))


def labelled_boxes(person: tuple[tuple[int, int, int, int], ...]) -> NDArray[np.float32]:
    """(100, 4) boxes in pixels of the clip, linear between the labelled frames."""
    sides = np.array(person, np.float64) * SCALE
    return np.stack([np.interp(np.arange(100), LABELLED_FRAMES, sides[:, k]) for k in range(4)], axis=1).astype(
        np.float32
    )


def test_every_frame_has_one_result_in_order(results: list[PoseFrame]) -> None:
    assert [frame.frame_index for frame in results] == list(range(100))


@pytest.mark.parametrize("person", [WALKER, WATCHER, BYSTANDER], ids=["walker", "watcher", "bystander"])
def test_a_visible_person_is_found_in_95_percent_of_frames_and_keeps_one_id(
    results: list[PoseFrame], person: tuple[tuple[int, int, int, int], ...]
) -> None:
    ids = []
    for frame, box in zip(results, labelled_boxes(person), strict=True):
        if frame.people:
            overlaps = box_iou(np.stack([pose.box for pose in frame.people]), box[None])[:, 0]
            if overlaps.max() >= 0.5:
                ids.append(frame.people[int(overlaps.argmax())].track_id)
    assert len(ids) >= 95
    assert len(set(ids)) == 1


def test_nobody_else_is_seen(results: list[PoseFrame]) -> None:
    assert len({pose.track_id for frame in results for pose in frame.people}) == 3


def test_joints_lie_on_their_person(results: list[PoseFrame]) -> None:
    walker = labelled_boxes(WALKER)
    inside = []
    for frame, box in zip(results, walker, strict=True):
        pose = max(frame.people, key=lambda pose: float(box_iou(pose.box[None], box[None])[0, 0]))
        margin = 0.1 * (box[2:] - box[:2])
        points = pose.keypoints[pose.keypoints[:, 2] > 0.3, :2]
        assert len(points) >= 6
        inside.append(((points > box[:2] - margin) & (points < box[2:] + margin)).all(axis=1).mean())
    assert np.mean(inside) > 0.95
