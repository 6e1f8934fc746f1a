"""What is sent is what is read; what is damaged is refused with one kind of error."""

import dataclasses
import gc
import random
import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streampose.errors import UsageError
from streampose.skeleton import SKELETONS
from streampose.types import Pose, PoseFrame
from streampose.wire import (
    SCHEMA,
    Heartbeat,
    Hello,
    MessageError,
    PictureHeader,
    PoseMessage,
    Status,
    check_name,
    decode,
    encode_heartbeat,
    encode_hello,
    encode_picture,
    encode_pose,
    encode_status,
)


def make_frame(people=3, *, source="cam.1", joints=17, seed=0):
    rng = np.random.default_rng(seed)
    return PoseFrame(
        source=source,
        epoch=2,
        frame_index=41,
        pts_s=1.3666666,
        captured_ns=123_456_789_012,
        published_ns=123_456_999_999,
        width=768,
        height=576,
        skeleton="coco17" if joints == 17 else "other",
        dropped=7,
        clock="rtcp",
        people=tuple(
            Pose(
                track_id=10 + i,
                box=rng.uniform(0, 700, 4).astype(np.float32),
                score=i / 64,
                keypoints=rng.uniform(0, 1, (joints, 3)).astype(np.float32),
            )
            for i in range(people)
        ),
    )


def make_hello():
    return Hello(
        schema=SCHEMA, run_id="r", source="cam.1", skeleton="three", joints=("a", "b", "c"), edges=((0, 1), (1, 2)),
        width=768, height=576, model="lite", offsets=(-4, -3, -2, -1),
    )  # fmt: skip


def make_picture():
    return PictureHeader(
        schema=SCHEMA, run_id="r", source="cam.1", epoch=0, frame_index=3, captured_ns=4, width=768, height=576
    )


def make_messages():
    return [
        encode_pose(make_frame(2), run_id="r", seq=5, offsets=(-2, -1)),
        encode_pose(make_frame(0), run_id="r", seq=6),
        encode_hello(make_hello()),
        encode_status(Status(schema=SCHEMA, run_id="r", source="cam.1", state="online")),
        encode_heartbeat(Heartbeat(schema=SCHEMA, run_id="r", sent_ns=1)),
        encode_picture(make_picture(), b"\xff\xd8\xff some picture"),
    ]


def change(parts, **fields):
    """The message with other header fields."""
    header = msgspec.msgpack.decode(parts[1])
    return parts[0], msgspec.msgpack.encode(header | fields), parts[2]


@pytest.mark.parametrize(("people", "joints"), [(0, 17), (1, 17), (33, 17), (2, 5)])
def test_a_frame_comes_back_as_it_was(people, joints):
    sent = make_frame(people, joints=joints)
    message = decode(encode_pose(sent, run_id="r", seq=5, offsets=(-2, -1)))
    assert isinstance(message, PoseMessage)
    assert (message.header.run_id, message.header.seq, message.header.offsets) == ("r", 5, (-2, -1))
    assert (message.header.clock, message.header.schema) == ("rtcp", SCHEMA)
    got = message.frame
    for name in (
        "source",
        "epoch",
        "frame_index",
        "pts_s",
        "captured_ns",
        "published_ns",
        "width",
        "height",
        "dropped",
        "clock",
    ):
        assert getattr(got, name) == getattr(sent, name)
    assert [p.track_id for p in got.people] == [p.track_id for p in sent.people]
    assert [p.score for p in got.people] == [p.score for p in sent.people]
    for mine, theirs in zip(got.people, sent.people, strict=True):
        np.testing.assert_array_equal(mine.box, theirs.box)
        np.testing.assert_array_equal(mine.keypoints, theirs.keypoints)


def test_the_layout_is_the_documented_one():
    """Read with msgpack and numpy alone, as a stranger would."""
    frame = make_frame(2)
    topic, header, blob = encode_pose(frame, run_id="r", seq=0)
    assert topic == b"pose.cam.1"
    fields = msgspec.msgpack.decode(header)
    assert fields["people"] == [{"track_id": 10, "score": 0.0}, {"track_id": 11, "score": 1 / 64}]
    values = np.frombuffer(blob, "<f4")
    np.testing.assert_array_equal(values[4:8], frame.people[1].box)
    np.testing.assert_array_equal(values[8:].reshape(2, 17, 3)[1], frame.people[1].keypoints)


def test_other_messages_come_back():
    hello = make_hello()
    status = Status(schema=SCHEMA, run_id="r", source="cam.1", state="stalled")
    beat = Heartbeat(schema=SCHEMA, run_id="r", sent_ns=-5)
    assert decode(encode_hello(hello)) == hello
    assert decode(encode_status(status)) == status
    assert decode(encode_heartbeat(beat)) == beat
    picture = decode(encode_picture(make_picture(), b"\xff\xd8\xff..."))
    assert (picture.header, picture.jpeg) == (make_picture(), b"\xff\xd8\xff...")


def test_a_field_of_a_later_version_is_ignored():
    assert isinstance(decode(change(make_messages()[0], weather="fine")), PoseMessage)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda m: m[:2], "3 parts"),
        (lambda m: (b"pose.other", m[1], m[2]), "topic of source"),
        (lambda m: (b"prose.cam.1", m[1], b""), "unknown topic"),
        (lambda m: (m[0], b"\xc1", m[2]), "cannot be read"),
        (lambda m: (m[0], b"\x91" * 100_000, m[2]), "cannot be read"),
        (lambda m: (m[0], bytes(2 << 20), m[2]), "at most"),
        (lambda m: (m[0], m[1], m[2][:-4]), "cannot hold"),
        (lambda m: (m[0], m[1], m[2] + bytes(24)), "cannot hold"),
        (lambda m: (m[0], m[1], b""), "cannot hold"),
        (lambda m: (m[0], m[1], m[2][:-4] + np.float32("nan").tobytes()), "not finite"),
        (lambda m: (m[0], m[1], np.float32(2e6).tobytes() + m[2][4:]), "far outside"),
        (lambda m: (m[0], m[1], m[2][:-4] + np.float32(1.5).tobytes()), "between 0 and 1"),
        (lambda m: change(m, people=[{"track_id": 1, "score": 0.5}] * 1001), "people"),
        (lambda m: change(m, captured_ns=2**63), "captured_ns"),
        (lambda m: change(m, offsets=[0] * 65), "offsets"),
        (lambda m: change(m, people=[{"track_id": 1, "score": float("nan")}] * 2), "score"),
        (lambda m: change(m, run_id="\x07"), "run_id"),
        (lambda m: change(m, skeleton="\x07"), "skeleton"),
        (lambda m: change(m, people=[]), "nobody"),
        (lambda m: change(m, schema=2), "schema 2"),
        (lambda m: change(m, schema=2, seq="new format"), "schema 2"),
        (lambda m: change(m, seq=-1), "seq"),
        (lambda m: change(m, width=0), "width"),
        (lambda m: change(m, clock="sundial"), "clock"),
        (lambda m: change(m, pts_s=float("inf")), "pts_s"),
        (lambda m: change(m, people=[{"track_id": 1, "score": 1.5}] * 2), "score"),
    ],
)
def test_a_damaged_message_says_what_is_wrong(damage, says):
    with pytest.raises(MessageError, match=says):
        decode(damage(make_messages()[0]))


def test_an_edge_needs_its_joints():
    with pytest.raises(MessageError, match="edge"):
        decode(change(encode_hello(make_hello()), edges=[(0, 3)]))


def mutate(parts, rng):
    """A message with one to four damages: bytes, lengths, order, or fields of its header."""
    parts = [bytearray(part) for part in parts]
    for _ in range(rng.randint(1, 4)):
        part = rng.choice(parts)
        at = rng.randrange(len(part) + 1)
        match rng.randrange(6):
            case 0 if at < len(part):
                part[at] = rng.randrange(256)
            case 1:
                del part[at : at + rng.randint(1, 8)]
            case 2:
                part[at:at] = rng.randbytes(rng.randint(1, 8))
            case 3:
                part[at:at] = part[: rng.randint(0, len(part))]
            case 4 if len(part) >= 4:
                at = 4 * rng.randrange(len(part) // 4)
                part[at : at + 4] = np.float32(rng.choice([np.nan, np.inf, 1e38, -1, 2, 1e-40])).tobytes()
            case _:
                parts[1] = bytearray(_with_odd_field(parts[1], rng))
    if rng.random() < 0.02:
        rng.shuffle(parts)
    return [bytes(part) for part in parts]


ODD = (
    None,
    True,
    -1,
    0,
    2**63,
    -(2**63) - 1,
    2**64 - 1,
    1e308,
    float("nan"),
    "",
    "a" * 300,
    "\x1b[2J",
    b"x",
    [],
    [[]],
    {},
)


def _with_odd_field(header, rng):
    try:
        fields = msgspec.msgpack.decode(header)
        fields[rng.choice(sorted(fields))] = rng.choice(ODD)
        return msgspec.msgpack.encode(fields)
    except (msgspec.MsgspecError, TypeError, AttributeError, OverflowError, IndexError, UnicodeError):
        return header


def check_valid(message):
    """A message that was let through is all that the protocol says."""
    if isinstance(message, PoseMessage):
        frame = message.frame
        assert np.isfinite(frame.pts_s)
        assert frame.source.isprintable()
        assert len(frame.people) <= 1000
        for person in frame.people:
            assert person.keypoints.shape == (17, 3) or frame.skeleton not in SKELETONS
            assert (np.abs(person.keypoints) <= 1e6).all()
            assert (person.keypoints[:, 2] >= 0).all()
            assert (person.keypoints[:, 2] <= 1).all()
            assert 0 <= person.score <= 1
    elif isinstance(message, Hello):
        assert all(max(edge) < len(message.joints) for edge in message.edges)


@pytest.mark.slow
def test_a_hundred_thousand_mutated_messages():
    """Each is read as a valid message or refused with MessageError, and none leaves anything behind."""
    rng = random.Random(7)
    messages = make_messages()
    outcomes = {"read": 0, "refused": 0}
    refusals = set()

    def run(count):
        for _ in range(count):
            try:
                message = decode(mutate(rng.choice(messages), rng))
            except MessageError as error:
                refusals.add(str(error).isprintable())
                outcomes["refused"] += 1
            else:
                check_valid(message)
                outcomes["read"] += 1

    run(20_000)
    gc.collect()
    tracemalloc.start()
    run(10_000)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    run(70_000)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 200_000
    assert min(outcomes.values()) > 1000
    assert refusals == {True}  # safe to show on a terminal


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.integers(0, 5), st.data())
def test_any_value_in_any_field(which, data):
    topic, header, blob = make_messages()[which]
    fields = msgspec.msgpack.decode(header)
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(VALUES)
    changed = msgspec.msgpack.encode(fields)
    try:
        check_valid(decode((topic, changed, data.draw(st.just(blob) | st.binary(max_size=300)))))
    except MessageError:
        return


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_any_parts_at_all(parts):
    try:
        check_valid(decode(parts))
    except MessageError:
        return


def test_names_that_cannot_be_shown_are_refused():
    """A terminal must not be steered by the name of a camera."""
    for name in ("\x1b[2Jcam", "a\nb", "\u202ecam", "\ud800"):
        with pytest.raises(UsageError, match="printable"):
            check_name(name)
    message = make_messages()[3]
    header = msgspec.msgpack.encode(msgspec.msgpack.decode(message[1]) | {"source": "\x1b[2J"})
    with pytest.raises(MessageError, match="cannot be shown"):
        decode((b"status.\x1b[2J", header, b""))


def test_what_a_model_overshoots_is_sent_within_range():
    frame = make_frame(1)
    frame.people[0].keypoints[0] = 1e9, -1e9, 1.01
    got = decode(encode_pose(frame, run_id="r", seq=0)).frame.people[0].keypoints
    np.testing.assert_array_equal(got[0], np.array([1e6, -1e6, 1], np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_joint_that_is_not_finite_is_sent_as_not_found(value):
    frame = make_frame(people=2)
    before = frame.people[0].keypoints.copy()
    for joint, place in ((0, 0), (1, 1), (2, 2)):
        frame.people[0].keypoints[joint, place] = value
    frame.people[1].box[3] = value
    people = (frame.people[0], dataclasses.replace(frame.people[1], score=value))
    message = decode(encode_pose(dataclasses.replace(frame, people=people), run_id="r", seq=0))
    check_valid(message)
    first, second = message.frame.people
    np.testing.assert_array_equal(first.keypoints[:3], np.zeros((3, 3)))
    np.testing.assert_array_equal(first.keypoints[3:], before[3:])
    np.testing.assert_array_equal(second.keypoints, frame.people[1].keypoints)
    assert second.box[3] == (0 if np.isnan(value) else np.copysign(1e6, value))
    assert second.score == (1 if value == np.inf else 0)
    with pytest.raises(UsageError, match=r"frame \d+ of cam\.1 cannot be published: its pts_s is"):
        encode_pose(dataclasses.replace(frame, pts_s=value), run_id="r", seq=0)


def test_filled_and_smoothed_are_told_only_where_true():
    frame = make_frame(2)
    filled = dataclasses.replace(frame.people[1], filled=True)
    frame = dataclasses.replace(frame, people=(frame.people[0], filled), smoothed=True)
    parts = encode_pose(frame, run_id="r", seq=0)
    fields = msgspec.msgpack.decode(parts[1])
    assert [sorted(person) for person in fields["people"]] == [["score", "track_id"], ["filled", "score", "track_id"]]
    assert fields["smoothed"] is True
    got = decode(parts).frame
    assert ([person.filled for person in got.people], got.smoothed) == ([False, True], True)
    assert "smoothed" not in msgspec.msgpack.decode(make_messages()[0][1])
    assert decode(make_messages()[0]).frame.smoothed is False
