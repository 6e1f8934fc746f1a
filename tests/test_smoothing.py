"""Smoothing: calmer at rest, prompt in motion, honest about what it made up."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streampose.errors import UsageError
from streampose.messages import PEOPLE_LIMIT
from streampose.publish import Publisher
from streampose.smoothing import BRIDGE_FRAMES, Smoother, Smoothing
from streampose.subscribe import Subscriber
from streampose.types import Pose, PoseFrame

HZ = 30

pytestmark = pytest.mark.usefixtures("patient_stream")


def make_frame(index, positions, scores=None, source="cam", epoch=0, box=(0, 0, 100, 200)):
    """Frame `index` with a person a position (x, y): all 17 joints are there. `positions` may be {id: (x, y)}."""
    people = positions if isinstance(positions, dict) else dict(enumerate(positions, 1))
    poses = []
    for track_id, at in people.items():
        keypoints = np.column_stack([np.tile(at, (17, 1)), np.full(17, 0.9)]).astype(np.float32)
        if scores is not None:
            keypoints[:, 2] = scores
        poses.append(Pose(track_id=track_id, box=np.array(box, np.float32), score=0.8, keypoints=keypoints))
    return PoseFrame(
        source=source, epoch=epoch, frame_index=index, pts_s=index / HZ, captured_ns=index, published_ns=index,
        width=640, height=480, skeleton="coco17", dropped=0, people=tuple(poses),
    )  # fmt: skip


def run(smoother, path, **kwargs):
    """Where the first joint of one person is, frame by frame: (N, 2)."""
    frames = [smoother.smooth(make_frame(index, [at], **kwargs)) for index, at in enumerate(path)]
    return np.array([frame.people[0].keypoints[0, :2] for frame in frames])


def one_euro(path, settings, size_px):
    """The filter as its paper has it, one number after the other: the oracle."""
    made, speed, raw = [path[0]], np.zeros(2), path[0]

    def share(cutoff):
        return 1 / (1 + HZ / (2 * math.pi * cutoff))

    for point in path[1:]:
        speed = speed + share(settings.speed_cutoff_hz) * ((point - raw) * HZ - speed)
        cutoff = settings.min_cutoff_hz + settings.beta_hz * math.hypot(*speed) / size_px
        made.append(made[-1] + share(cutoff) * (point - made[-1]))
        raw = point
    return np.array(made)


def test_it_is_the_filter_of_the_paper():
    rng = np.random.default_rng(3)
    path = np.cumsum(rng.normal(0, 4, (200, 2)), axis=0) + 300
    settings = Smoothing(min_cutoff_hz=0.8, beta_hz=3, speed_cutoff_hz=1.3)
    np.testing.assert_allclose(run(Smoother(settings), path), one_euro(path, settings, 200), atol=1e-3)


def test_who_stands_still_trembles_less():
    rng = np.random.default_rng(0)
    path = np.array([300, 200]) + rng.normal(0, 2, (300, 2))
    smooth = run(Smoother(Smoothing()), path)[30:]
    assert (
        np.linalg.norm(np.diff(smooth, axis=0), axis=1).mean()
        < 0.4 * np.linalg.norm(np.diff(path, axis=0), axis=1).mean()
    )
    assert np.linalg.norm(smooth - [300, 200], axis=1).mean() < np.linalg.norm(path - [300, 200], axis=1).mean()


def test_who_moves_fast_is_followed():
    """A walk of two body heights a second: it is less than 50 ms behind after half a second."""
    speed_px = 400.0
    path = np.array([(100 + speed_px * index / HZ, 200) for index in range(60)])
    smooth = run(Smoother(Smoothing()), path)
    lag_s = (path[15:, 0] - smooth[15:, 0]) / speed_px
    assert lag_s.max() < 0.05


def test_far_and_near_people_are_smoothed_alike():
    """The same motion at a third of the size gives the same path at a third of the size."""
    rng = np.random.default_rng(1)
    path = np.cumsum(rng.normal(0, 3, (50, 2)), axis=0)
    near = run(Smoother(Smoothing()), path, box=(0, 0, 100, 300))
    far = run(Smoother(Smoothing()), path / 3, box=(0, 0, 33, 100))
    np.testing.assert_allclose(far, near / 3, atol=1e-3)


def test_the_first_frame_is_as_it_came_and_nothing_else_changes():
    frame = make_frame(0, [(10, 20), (30, 40)])
    smooth = Smoother(Smoothing()).smooth(frame)
    assert dataclasses.replace(smooth, people=()) == dataclasses.replace(frame, people=(), smoothed=True)
    for mine, theirs in zip(smooth.people, frame.people, strict=True):
        np.testing.assert_array_equal(mine.keypoints, theirs.keypoints)
        np.testing.assert_array_equal(mine.box, theirs.box)
        assert (mine.track_id, mine.score, mine.filled) == (theirs.track_id, theirs.score, False)


@pytest.mark.parametrize("change", [{"epoch": 1}, {"source": "other"}])
def test_another_epoch_or_source_begins_anew(change):
    smoother = Smoother(Smoothing(fill_s=0.5))
    for index in range(10):
        smoother.smooth(make_frame(index, [(100, 100)]))
    frame = smoother.smooth(make_frame(10, {1: (300, 300)}, **change))
    np.testing.assert_array_equal(frame.people[0].keypoints[0, :2], [300, 300])


def test_a_source_that_is_gone_is_forgotten_and_others_are_not():
    smoother = Smoother(Smoothing())
    for source in ("gone", "kept"):
        smoother.smooth(make_frame(0, [(100, 100)], source=source))
    smoother.keep({"kept", "new"})
    assert set(smoother._scenes) == {"kept"}
    back, kept = (smoother.smooth(make_frame(1, [(300, 300)], source=source)) for source in ("gone", "kept"))
    assert back.people[0].keypoints[0, 0] == 300
    assert 100 < kept.people[0].keypoints[0, 0] < 300


def test_time_that_goes_back_begins_anew():
    smoother = Smoother(Smoothing())
    smoother.smooth(make_frame(10, [(100, 100)]))
    assert smoother.smooth(make_frame(3, [(300, 300)])).people[0].keypoints[0, 0] == 300


def test_a_short_gap_is_bridged_and_said_so():
    smoother = Smoother(Smoothing(fill_s=0.21))
    for index in range(30):
        smoother.smooth(make_frame(index, [(100 + 4 * index, 100)]))
    filled = [smoother.smooth(make_frame(index, [])) for index in range(30, 40)]
    counts = [len(frame.people) for frame in filled]
    assert counts == [1] * 6 + [0] * 4  # 0.21 s at 30 Hz
    people = [frame.people[0] for frame in filled[:6]]
    assert all(person.filled and person.track_id == 1 for person in people)
    x = [person.keypoints[0, 0] for person in people]
    assert 212 < x[0] < x[1] < x[5] < 240  # goes on, and comes to rest
    scores = [person.score for person in people]
    assert scores == sorted(scores, reverse=True)
    assert scores[5] < 0.1


def test_new_people_in_every_frame_are_bounded():
    """A stranger's frames, a microsecond apart, each full of people who were never there before."""
    smoother = Smoother(Smoothing(fill_s=1.0))
    for index in range(4):
        ids = range(700 * index, 700 * (index + 1))
        frame = make_frame(index, dict.fromkeys(ids, (100, 100)))
        got = smoother.smooth(dataclasses.replace(frame, pts_s=index * 1e-6)).people
        assert len(got) == min(PEOPLE_LIMIT, 700 * (index + 1))
        assert [person.track_id for person in got[:700]] == list(ids)
        assert all(700 * (index - 1) <= person.track_id for person in got)  # those seen last
        assert len(smoother._scenes["cam"].tracks) == len(got)


def test_a_bridge_ends_after_so_many_frames_too():
    smoother = Smoother(Smoothing(fill_s=1.0))
    smoother.smooth(make_frame(0, [(100, 100)]))
    frames = [
        smoother.smooth(dataclasses.replace(make_frame(index, []), pts_s=index * 1e-6))
        for index in range(1, BRIDGE_FRAMES + 10)
    ]
    assert [len(frame.people) for frame in frames] == [1] * BRIDGE_FRAMES + [0] * 9


def test_nothing_is_bridged_unasked():
    smoother = Smoother(Smoothing())
    smoother.smooth(make_frame(0, [(100, 100)]))
    assert smoother.smooth(make_frame(1, [])).people == ()


def test_a_joint_that_is_lost_for_a_moment_is_bridged_too():
    smoother = Smoother(Smoothing(fill_s=0.2))
    for index in range(20):
        smoother.smooth(make_frame(index, [(100, 100)]))
    scores = np.full(17, 0.9)
    scores[4] = 0.05
    got = [smoother.smooth(make_frame(index, [(400, 100)], scores=scores)).people[0] for index in range(20, 30)]
    assert got[0].keypoints[4, 0] == pytest.approx(100, abs=1)
    assert 0.2 < got[0].keypoints[4, 2] < 0.9
    assert (got[9].keypoints[4, 0], got[9].keypoints[4, 2]) == (400, np.float32(0.05))  # as it came, after the gap
    assert got[0].keypoints[3, 0] > 150
    assert not got[0].filled


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(
        st.dictionaries(
            st.integers(1, 3), st.tuples(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32)), max_size=3
        ),
        max_size=30,
    ),
    st.floats(0, 1),
    st.lists(st.floats(0, 1, width=32), min_size=17, max_size=17),
)
def test_whatever_comes_what_goes_is_finite(frames, fill_s, scores):
    smoother = Smoother(Smoothing(fill_s=fill_s))
    for index, people in enumerate(frames):
        frame = smoother.smooth(make_frame(index, people, scores=scores))
        assert people.keys() <= {person.track_id for person in frame.people}
        for person in frame.people:
            assert np.isfinite(person.keypoints).all()
            assert np.isfinite(person.box).all()
            assert (person.keypoints[:, 2] >= 0).all()
            assert (person.keypoints[:, 2] <= 1).all()
            assert 0 <= person.score <= 1


@pytest.mark.filterwarnings("error")
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.booleans()), max_size=12),
    st.sampled_from([0.0, 0.2, 1.0]),
)
def test_a_clock_that_leaps_does_no_harm(steps, fill_s):
    """Times as a stranger may send them, and people who jump from one end of what can be sent to the other."""
    smoother = Smoother(Smoothing(fill_s=fill_s))
    for index, (pts_s, here) in enumerate(steps):
        people = {1: (1e6, -1e6) if index % 2 else (-1e6, 1e6)} if here else {}
        frame = smoother.smooth(dataclasses.replace(make_frame(index, people), pts_s=pts_s))
        for person in frame.people:
            assert (np.abs(person.keypoints) <= 1e6).all()
            assert (np.abs(person.box) <= 1e6).all()


def test_a_bridge_stays_within_what_can_be_sent():
    smoother = Smoother(Smoothing(fill_s=1.0))
    for index, x in enumerate((-1e6, 1e6)):
        smoother.smooth(make_frame(index, [(x, 0)]))
    bridged = [smoother.smooth(make_frame(index, [])).people[0].keypoints[:, 0].max() for index in range(2, 8)]
    assert max(bridged) == 1e6


@pytest.mark.parametrize(
    "wrong", [{"min_cutoff_hz": 0}, {"beta_hz": -1}, {"fill_s": 2}, {"speed_cutoff_hz": math.inf}, {"min_score": 2}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(UsageError):
        Smoothing(**wrong)


def test_a_subscriber_smooths_on_request():
    with Publisher("tcp://127.0.0.1:*", model="lite") as publisher, Subscriber(
        publisher.endpoint, "lossless", smooth=Smoothing()
    ) as smooth, Subscriber(publisher.endpoint, "lossless") as raw:  # fmt: skip
        while not (smooth.heard_s and raw.heard_s):
            assert smooth.receive(0.01) is None
        for index, x in enumerate((100, 104, 100, 104)):
            publisher.publish(make_frame(index, [(x, 50)]))
        frames = [[stream.receive(10) for _ in range(4)] for stream in (raw, smooth)]
    assert [[frame.smoothed for frame in of] for of in frames] == [[False] * 4, [True] * 4]
    plain, got = ([frame.people[0].keypoints[0, 0] for frame in of] for of in frames)
    assert plain == [100, 104, 100, 104]
    assert got[0] == 100
    assert 100 < got[1] < 103
