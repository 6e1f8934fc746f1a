"""The estimator: one encoder run a person and frame, windows in the manifest's order, keypoints in frame pixels."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from streampose.errors import ModelError
from streampose.estimator import Estimator
from streampose.feature_ring import FeatureRing
from streampose.follower import Track
from streampose.geometry import crop_affine, transform
from streampose.types import Frame

IDENTITY = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
PERSON = (100.0, 40.0, 140.0, 140.0)


def frame(
    index: int, box: tuple[float, ...] = PERSON, source: str = "a", epoch: int = 0, pts_s: float | None = None
) -> Frame:
    image = np.zeros((200, 300, 3), np.uint8)
    x1, y1, x2, y2 = (round(v) for v in box)
    image[y1:y2, x1:x2] = 255
    return Frame(image, source, index, index / 25 if pts_s is None else pts_s, 0, epoch)


def track(box: tuple[float, ...] = PERSON, key: int = 1) -> Track:
    wide = np.array(box, np.float32)
    return Track(key, wide, wide, 0.9)


def levels(features: NDArray[np.float32]) -> list[float]:
    return features.reshape(len(features), -1).mean(axis=1).tolist()


def push(ring: FeatureRing, *indices: int) -> None:
    for index in indices:
        ring.push(np.full((2, 3, 3), index, np.float32), np.full((2, 2, 3), index, np.float32), index)


def window(ring: FeatureRing, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32], list[int]]:
    features, affines, indices = ring.window(index)
    return np.array(features), affines, indices


def test_a_ring_gives_the_key_first_then_the_offsets() -> None:
    ring = FeatureRing((-4, -3, -2, -1))
    push(ring, *range(10, 17))
    features, affines, indices = window(ring, 16)
    assert indices == [16, 12, 13, 14, 15]
    assert levels(features) == [16, 12, 13, 14, 15]
    assert affines[:, 0, 0, 0].tolist() == [16, 12, 13, 14, 15]
    assert ring.capacity == 5


def test_supports_that_do_not_exist_are_the_nearest_there_are() -> None:
    ring = FeatureRing((-4, -3, -2, -1))
    push(ring, 7)
    assert window(ring, 7)[2] == [7, 7, 7, 7, 7]
    push(ring, 8, 9)
    assert window(ring, 9)[2] == [9, 7, 7, 7, 8]


def test_a_ring_with_later_supports_has_its_key_in_the_middle() -> None:
    ring = FeatureRing((-2, -1, 1, 2))
    push(ring, 3, 4, 5, 6, 7, 8)
    assert window(ring, 6)[2] == [6, 4, 5, 7, 8]
    assert window(ring, 7)[2] == [7, 5, 6, 8, 8]


def test_a_ring_refuses_what_it_does_not_hold() -> None:
    ring = FeatureRing((-1,))
    with pytest.raises(LookupError):
        window(ring, 0)
    push(ring, 1, 2, 3)
    with pytest.raises(LookupError, match="frame 1 "):
        window(ring, 1)
    feature = weakref.ref(ring.window(3)[0][0])
    ring.clear()
    assert len(ring) == 0
    assert feature() is None, "a cleared ring keeps features on the device"
    with pytest.raises(ValueError, match="offset 0"):
        FeatureRing((-1, 0))


def test_keypoints_are_in_frame_pixels(engine, joints) -> None:
    estimator = Estimator(engine)
    box = (100.0, 40.0, 140.0, 140.0)
    off_centre = Track(1, np.array(box, np.float32), np.array([90, 30, 135, 150], np.float32), 0.9)
    ((estimate),) = estimator.estimate([(frame(0, box), [off_centre])])
    (points,) = estimate.keypoints
    expected = np.array(box[:2]) + joints * [40, 100]
    np.testing.assert_allclose(points[:, :2], expected, atol=3.2)
    assert (points[:, 2] == np.float32(0.9)).all()
    assert points.dtype == np.float32


def test_each_person_is_encoded_once_a_frame_and_all_in_one_batch(engine) -> None:
    estimator = Estimator(engine)
    for index in range(6):
        people = [track(key=1), track((160, 40, 200, 140), key=2)]
        estimates = estimator.estimate([(frame(index), people), (frame(index, source="b"), [track()])])
        assert [len(estimate.keypoints) for estimate in estimates] == [2, 1]
        assert [estimate.frame.source_id for estimate in estimates] == ["a", "b"]
    assert engine.encoded == [3] * 6
    assert [features.shape for features, _ in engine.fused] == [(3, 5, 3, 64, 48)] * 6


def test_a_crop_that_rests_gives_exact_identities(engine) -> None:
    estimator = Estimator(engine)
    for index in range(5):
        estimator.estimate([(frame(index), [track()])])
    _, transforms = engine.fused[-1]
    np.testing.assert_array_equal(transforms, np.broadcast_to(IDENTITY, (1, 5, 2, 2, 3)))


@pytest.mark.parametrize("crop_follows", [True, False])
def test_transforms_lead_to_where_person_and_picture_are_in_the_supports_crop(engine, crop_follows: bool) -> None:
    """Whether the crop follows a person who walks, or rests while the person walks through it."""
    estimator = Estimator(engine)
    boxes = [np.array([100 + 7 * i, 40 - 2 * i, 140 + 7 * i, 140 - 2 * i], np.float32) for i in range(6)]
    crops = boxes if crop_follows else [np.array([90, 20, 190, 150], np.float32)] * 6
    for index, (box, crop) in enumerate(zip(boxes, crops, strict=True)):
        estimator.estimate([(frame(index, tuple(box)), [Track(1, box, crop, 0.9)])])
    features, transforms = engine.fused[-1]
    on_the_person = np.array([[10.0, 30.0], [35.0, 90.0]], np.float32)
    key = transform(boxes[5][:2] + on_the_person, crop_affine(crops[5], (256, 192)))
    for slot, index in enumerate([5, 1, 2, 3, 4]):
        there = transform(boxes[index][:2] + on_the_person, crop_affine(crops[index], (256, 192)))
        np.testing.assert_allclose(transform(key, transforms[0, slot, 0]), there, atol=1e-3)
        same_place = transform(boxes[5][:2] + on_the_person, crop_affine(crops[index], (256, 192)))
        np.testing.assert_allclose(transform(key, transforms[0, slot, 1]), same_place, atol=1e-3)
        rows, columns = np.nonzero(features[0, slot, 0] > 125)
        middle = transform((boxes[index][:2] + boxes[index][2:])[None] / 2, crop_affine(crops[index], (256, 192)))[0]
        np.testing.assert_allclose([columns.mean() * 4 + 2, rows.mean() * 4 + 2], middle, atol=4)
    np.testing.assert_array_equal(transforms[0, 0], np.stack([IDENTITY, IDENTITY]))


def test_windows_do_not_cross_epochs_sources_or_tracks(engine) -> None:
    estimator = Estimator(engine)
    grown = (90.0, 20.0, 150.0, 160.0)
    estimator.estimate([(frame(0), [track()])])
    estimator.estimate([(frame(1, grown, epoch=1), [track(grown)])])
    estimator.estimate([(frame(1, grown, source="b"), [track(grown)])])
    estimator.estimate([(frame(1, grown), [track(grown, key=2)])])
    for _, transforms in engine.fused:
        np.testing.assert_array_equal(transforms, np.broadcast_to(IDENTITY, (1, 5, 2, 2, 3)))


@pytest.mark.parametrize(("gap_s", "supported"), [(0.4, True), (0.6, False)])
def test_offsets_count_estimated_frames_over_short_gaps(engine, gap_s: float, supported: bool) -> None:
    estimator = Estimator(engine)
    grown = (90.0, 20.0, 150.0, 160.0)
    estimator.estimate([(frame(0), [track()])])
    estimator.estimate([(frame(9, grown, pts_s=gap_s), [track(grown)])])
    _, transforms = engine.fused[-1]
    assert (transforms[0, 4] != IDENTITY).any() == supported


def test_forgotten_tracks_leave_no_windows(engine) -> None:
    estimator = Estimator(engine)
    estimator.estimate([(frame(0), [track(key=1), track(key=2)]), (frame(0, source="b"), [track(key=1)])])
    estimator.keep("a", [2])
    assert set(estimator._windows) == {("a", 0, 2), ("b", 0, 1)}


def test_nobody_calls_no_engine(engine) -> None:
    (estimate,) = Estimator(engine).estimate([(frame(0), [])])
    assert estimate.keypoints == ()
    assert engine.encoded == engine.fused == []


def test_later_supports_delay_the_estimates_and_flushing_ends_the_wait(engine) -> None:
    engine.manifest = replace(engine.manifest, offsets=(-2, -1, 1, 2))
    estimator = Estimator(engine)
    done = [[e.frame.index for e in estimator.estimate([(frame(i), [track()])])] for i in range(5)]
    assert done == [[], [], [0], [1], [2]]
    estimator.keep("a", [])
    assert [estimate.frame.index for estimate in estimator.flush("a")] == [3, 4]
    assert estimator.flush("a") == []
    assert engine.encoded == [1] * 5


def test_an_interruption_flushes_what_waits(engine) -> None:
    engine.manifest = replace(engine.manifest, offsets=(-2, -1, 1, 2))
    estimator = Estimator(engine)
    estimator.estimate([(frame(0), [track()])])
    estimator.estimate([(frame(1), [track()])])
    later = estimator.estimate([(frame(2, pts_s=3.0), [track()])])
    assert [estimate.frame.index for estimate in later] == [0, 1]
    assert [len(estimate.keypoints) for estimate in later] == [1, 1]


def test_an_engine_that_answers_nonsense_is_a_model_error(engine) -> None:
    for answer, message in (
        (np.zeros((1, 16, 3), np.float32), r"\(1, 16, 3\) instead of \(1, 17, 3\)"),
        (np.full((1, 17, 3), np.nan, np.float32), "not numbers"),
    ):
        engine.fuse = lambda windows, transforms, answer=answer: answer  # noqa: ARG005
        with pytest.raises(ModelError, match=message):
            Estimator(engine).estimate([(frame(0), [track()])])


def test_an_unknown_skeleton_is_a_model_error(engine) -> None:
    engine.manifest = replace(engine.manifest, skeleton="octopus")
    with pytest.raises(ModelError, match="unknown skeleton 'octopus'; known: coco17"):
        Estimator(engine)
