"""The bundled clip, models and pipeline together: both people are found, stay who they are, and look like people."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import streampose
from streampose.geometry import box_iou
from streampose.types import PoseFrame

LABELLED_FRAMES = (0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99)
# Boxes x1, y1, x2, y2 drawn by eye on frames shrunk to a width of 273 px.
WALKER = (
    (40, 82, 167, 320), (40, 83, 168, 318), (46, 87, 162, 301), (47, 85, 209, 278), (37, 71, 242, 278),
    (40, 63, 259, 278), (46, 66, 252, 278), (53, 71, 221, 278), (62, 69, 190, 279), (62, 72, 187, 275),
    (37, 65, 189, 250), (51, 60, 186, 248),
)  # fmt: skip
WATCHER = (
    (163, 65, 241, 196), (164, 65, 240, 196), (159, 64, 240, 196), (159, 65, 238, 196), (147, 69, 240, 195),
    (155, 69, 240, 191), (152, 61, 247, 195), (149, 61, 248, 195), (148, 62, 242, 197), (152, 62, 240, 197),
    (160, 62, 242, 197), (156, 62, 236, 197),
)  # fmt: skip
SCALE = 576 / 273


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


@pytest.mark.parametrize("person", [WALKER, WATCHER], ids=["walker", "watcher"])
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
    assert len({pose.track_id for frame in results for pose in frame.people}) == 2


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
