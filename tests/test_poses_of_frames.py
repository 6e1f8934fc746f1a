"""What happens to the poses of a frame after they are estimated: scores, suppression, tracks, PCK."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [train] extra")

from streampose.skeleton import COCO17, JHMDB, POSETRACK
from streampose.train.jhmdb_score import pck, person_sizes, torso_sizes
from streampose.train.pose_nms import rescored, suppress_poses
from streampose.train.pose_tracks import GreedyTracker

SHAPE = np.random.default_rng(3).uniform(0, 100, (17, 2))


def pose(x: float, y: float = 0.0, score: float = 0.9) -> np.ndarray:
    return np.column_stack([SHAPE + np.array([x, y]), np.full(17, score)]).astype(np.float32)


def box(x: float, y: float = 0.0) -> np.ndarray:
    return np.array([x, y, x + 100, y + 100], np.float32)


def test_a_score_is_the_boxs_times_the_mean_of_the_sure_joints() -> None:
    keypoints = np.stack([pose(0), pose(0), pose(0, score=0.2)])
    keypoints[1, :15, 2] = 0.1
    keypoints[1, 15:, 2] = (0.4, 0.8)
    scores = rescored(np.array([0.5, 1.0, 1.0], np.float32), keypoints)
    assert scores == pytest.approx([0.45, 0.6, 0])


def test_of_two_alike_poses_the_better_scored_stays() -> None:
    """Poses 1 px apart have an OKS of nearly 1, poses 40 px apart of much less."""
    keypoints = np.stack([pose(0), pose(1), pose(40)])
    scores, areas = np.array([0.5, 0.8, 0.4], np.float32), np.full(3, 1e4, np.float32)
    assert suppress_poses(keypoints, scores, areas, COCO17).tolist() == [1, 2]
    assert suppress_poses(keypoints, scores, areas, COCO17, 1.0).tolist() == [1, 0, 2]
    assert suppress_poses(keypoints, scores, areas, COCO17, 0.01).tolist() == [1]
    assert suppress_poses(keypoints, scores, areas / 1e4, COCO17).tolist() == [1, 0, 2]  # 1 px is far for tiny people
    assert suppress_poses(keypoints[:0], scores[:0], areas[:0], COCO17).tolist() == []


def test_poses_are_compared_at_the_mean_of_their_areas() -> None:
    """An OKS of exp(-d^2 / (2 area (2 sigma)^2)), by hand at one joint."""
    keypoints = np.stack([pose(0), pose(0)])
    keypoints[:, :5, 2] = keypoints[:, 6:, 2] = -1
    keypoints[1, 5, 0] += 30
    scores, areas = np.array([0.5, 0.8], np.float32), np.array([1e4, 3e4], np.float32)
    alike = np.exp(-900 / (2 * 2e4 * (2 * COCO17.sigmas[5]) ** 2))
    assert len(suppress_poses(keypoints, scores, areas, COCO17, alike - 0.01)) == 1
    assert len(suppress_poses(keypoints, scores, areas, COCO17, alike + 0.01)) == 2


def test_suppression_leaves_out_joints_with_a_negative_score() -> None:
    keypoints = np.stack([pose(0), pose(0)])
    keypoints[1, :8, :2] += 500
    scores, areas = np.array([0.5, 0.8], np.float32), np.full(2, 1e4, np.float32)
    assert len(suppress_poses(keypoints, scores, areas, COCO17)) == 2
    keypoints[:, :8, 2] = -1
    assert suppress_poses(keypoints, scores, areas, COCO17).tolist() == [1]


def test_tracks_follow_the_most_alike() -> None:
    tracker = GreedyTracker(POSETRACK)
    assert tracker.update(np.stack([pose(0), pose(300)]), np.stack([box(0), box(300)])) == [0, 1]
    assert tracker.update(np.stack([pose(295), pose(600), pose(5)]), np.stack([box(295), box(600), box(5)])) == [
        1,
        2,
        0,
    ]
    crossed = np.stack([pose(20), pose(40)])
    assert tracker.update(crossed, np.stack([box(20), box(40)])) == [0, 3]  # the second is near nobody who is left


def test_a_track_is_remembered_for_three_frames() -> None:
    for missing, expected in ((3, 0), (4, 1)):
        tracker = GreedyTracker(POSETRACK)
        tracker.update(pose(0)[None], box(0)[None])
        for _ in range(missing):
            assert tracker.update(np.zeros((0, 17, 3), np.float32), np.zeros((0, 4), np.float32)) == []
        assert tracker.update(pose(2)[None], box(2)[None]) == [expected]


def test_a_track_goes_where_its_person_goes() -> None:
    tracker = GreedyTracker(POSETRACK)
    for x in range(0, 400, 20):
        assert tracker.update(pose(x)[None], box(x)[None]) == [0]


def test_a_box_alone_keeps_a_track() -> None:
    """A pose that changed wholly in a box that did not."""
    tracker = GreedyTracker(POSETRACK)
    tracker.update(pose(0)[None], box(0)[None])
    other = pose(0)
    other[:, :2] = other[::-1, :2]
    assert tracker.update(other[None], box(3)[None]) == [0]
    assert tracker.update(other[None] + np.float32(500), box(500)[None]) == [1]


def jhmdb_people() -> tuple[np.ndarray, np.ndarray]:
    """Two people 100 x 60 px with a torso of 50 px; labels (2, 15, 3) and boxes (2, 4)."""
    truth = np.zeros((2, 15, 3), np.float32)
    truth[..., :2] = np.random.default_rng(5).uniform(10, 50, (2, 15, 2))
    truth[..., 2] = 1
    truth[:, JHMDB.joints.index("left_shoulder"), :2] = (10, 10)
    truth[:, JHMDB.joints.index("right_hip"), :2] = (40, 50)
    return truth, np.array([[0, 0, 60, 100], [5, 5, 105, 65]], np.float32)


def test_pck_reaches_a_fifth_of_the_persons_size() -> None:
    """20 px for the longer side, 10 for the torso."""
    truth, boxes = jhmdb_people()
    found = truth.copy()
    for name, by in (("face", 19.9), ("left_wrist", 20.1), ("right_wrist", 10.1), ("belly", 9.9)):
        found[0, JHMDB.joints.index(name), 0] += by
    person = pck(found, truth, person_sizes(boxes)).as_json()
    assert person["head"] == 100
    assert person["wrist"] == pytest.approx(75)
    assert person["mean"] == pytest.approx((6 * 100 + 75) / 7)
    assert person["mean_15"] == pytest.approx((14 * 100 + 50) / 15)
    torso = pck(found, truth, torso_sizes(truth)).as_json()
    assert list(torso) == ["head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "mean", "mean_15"]
    assert torso["head"] == pytest.approx(50)
    assert torso["wrist"] == pytest.approx(50)
    assert torso["mean_15"] == pytest.approx((12 * 100 + 3 * 50) / 15)


def test_pck_of_people_not_found_and_joints_not_labelled() -> None:
    truth, boxes = jhmdb_people()
    found = truth.copy()
    found[1] = np.nan
    truth[1, :2, 2] = 0
    truth[:, 2, 2] = 0
    shares = pck(found, truth, person_sizes(boxes)).joints
    assert shares[:2].tolist() == [100, 100]
    assert np.isnan(shares[2])
    assert shares[3:].tolist() == [50] * 12
    figures = pck(found, truth, person_sizes(boxes)).as_json()
    assert figures["head"] is None
    assert figures["mean"] == pytest.approx(50)
    truth[1, JHMDB.joints.index("right_hip"), 2] = 0
    assert pck(found, truth, torso_sizes(truth)).joints[8] == 100  # the second person has no torso and does not count
