"""What is sent is what is read; what is damaged is refused with one kind of error."""

import random

import msgspec
import numpy as np
import pytest

from streampose.types import Pose, PoseFrame
from streampose.wire import (
    SCHEMA,
    Heartbeat,
    Hello,
    MessageError,
    PoseMessage,
    Status,
    decode,
    encode_heartbeat,
    encode_hello,
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


def make_messages():
    return [
        encode_pose(make_frame(2), run_id="r", seq=5, offsets=(-2, -1)),
        encode_pose(make_frame(0), run_id="r", seq=6),
        encode_hello(make_hello()),
        encode_status(Status(schema=SCHEMA, run_id="r", source="cam.1", state="online")),
        encode_heartbeat(Heartbeat(schema=SCHEMA, run_id="r", sent_ns=1)),
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


def test_no_mutation_gets_past_the_decoder():
    """Thousands of seeded damages: each is read as a valid message or refused with MessageError."""
    rng = random.Random(7)
    messages = make_messages()
    outcomes = {"read": 0, "refused": 0}
    for _ in range(5000):
        parts = [bytearray(part) for part in rng.choice(messages)]
        for _ in range(rng.randint(1, 4)):
            part = rng.choice(parts)
            at = rng.randrange(len(part) + 1)
            match rng.randrange(4):
                case 0 if at < len(part):
                    part[at] = rng.randrange(256)
                case 1:
                    del part[at : at + rng.randint(1, 8)]
                case 2:
                    part[at:at] = rng.randbytes(rng.randint(1, 8))
                case _:
                    part[at:at] = part[: rng.randint(0, len(part))]
        try:
            message = decode([bytes(part) for part in parts])
        except MessageError:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        if isinstance(message, PoseMessage):
            for person in message.frame.people:
                assert np.isfinite(person.keypoints).all()
                assert 0 <= person.score <= 1
    assert min(outcomes.values()) > 50
