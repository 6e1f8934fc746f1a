"""Messages on the wire: three parts, topic, msgpack header, float32 blob. docs/protocol.md describes them for others.

Whatever arrives is checked here, once: a message that is not exactly what the protocol says raises `MessageError`, and
nothing else. Unknown header fields are ignored, so that fields can be added without a new schema.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from streampose.errors import StreamposeError
from streampose.skeleton import SKELETONS
from streampose.types import Pose, PoseFrame

SCHEMA = 1
"""Version of everything in this module; a message of another one is refused."""

HEADER_LIMIT = 1 << 20
"""Longest header that is read, bytes."""

Parts = tuple[bytes, bytes, bytes]
Clock = Literal["rtcp", "arrival"]
State = Literal["online", "stalled", "offline", "ended"]

Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Score = Annotated[float, Meta(ge=0.0, le=1.0)]


class MessageError(StreamposeError):
    """A message that is not what docs/protocol.md says: damaged, of another schema, or from another program."""


class PersonHeader(msgspec.Struct, frozen=True):
    """What the header says of one person; box and keypoints are in the blob."""

    track_id: int
    score: Score


class PoseHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Header of `pose.<source>`. Fields as in `PoseFrame`, and:

    Attributes:
        run_id: a new one each time a publisher starts.
        seq: 0, 1, ... over the messages of this topic and run; a gap is loss.
        offsets: the frames that supported the key frame, relative to it.
        clock: what `captured_ns` rests on: the camera's clock ("rtcp") or the time of arrival.
    """

    schema: int
    run_id: Name
    seq: Natural
    source: Name
    epoch: Natural
    frame_index: Natural
    pts_s: float
    captured_ns: int
    published_ns: int
    width: Positive
    height: Positive
    skeleton: Name
    dropped: Natural
    offsets: tuple[int, ...]
    clock: Clock
    people: tuple[PersonHeader, ...]


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """Header of `hello.<source>`: what a subscriber must know to read the poses.

    Attributes:
        skeleton: name of the joint set; `joints` names its J joints in order, `edges` pairs their indices to limbs.
        width, height: size of the source's frames in pixels.
        model: name of the model.
    """

    schema: int
    run_id: Name
    source: Name
    skeleton: Name
    joints: tuple[str, ...]
    edges: tuple[tuple[Natural, Natural], ...]
    width: Positive
    height: Positive
    model: Name
    offsets: tuple[int, ...]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Header of `status.<source>`: sent when the state changes, and to each new subscriber."""

    schema: int
    run_id: Name
    source: Name
    state: State


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """Header of `heartbeat`: the publisher lives. `sent_ns` is its monotonic clock."""

    schema: int
    run_id: Name
    sent_ns: int


class PoseMessage(msgspec.Struct, frozen=True):
    """A decoded `pose.<source>`: the header as it came, and the frame it makes (`missed` is 0)."""

    header: PoseHeader
    frame: PoseFrame


Message = PoseMessage | Hello | Status | Heartbeat

_encode = msgspec.msgpack.Encoder().encode
_pose = msgspec.msgpack.Decoder(PoseHeader)
_hello = msgspec.msgpack.Decoder(Hello)
_status = msgspec.msgpack.Decoder(Status)
_heartbeat = msgspec.msgpack.Decoder(Heartbeat)
_Header = TypeVar("_Header", PoseHeader, Hello, Status, Heartbeat)


def encode_pose(
    frame: PoseFrame, *, run_id: str, seq: int, offsets: Sequence[int] = (), clock: Clock = "arrival"
) -> Parts:
    """The message of one frame.

    Args:
        frame: any number of people, all with the same number of joints.
        run_id, seq, offsets, clock: as in `PoseHeader`.
    """
    header = PoseHeader(
        schema=SCHEMA,
        run_id=run_id,
        seq=seq,
        source=frame.source,
        epoch=frame.epoch,
        frame_index=frame.frame_index,
        pts_s=frame.pts_s,
        captured_ns=frame.captured_ns,
        published_ns=frame.published_ns,
        width=frame.width,
        height=frame.height,
        skeleton=frame.skeleton,
        dropped=frame.dropped,
        offsets=tuple(offsets),
        clock=clock,
        people=tuple(PersonHeader(int(p.track_id), float(p.score)) for p in frame.people),
    )
    blob = b""
    if frame.people:
        boxes = np.stack([p.box for p in frame.people]).astype("<f4")
        keypoints = np.stack([p.keypoints for p in frame.people]).astype("<f4")
        blob = boxes.tobytes() + keypoints.tobytes()
    return f"pose.{frame.source}".encode(), _encode(header), blob


def encode_hello(hello: Hello) -> Parts:
    """The message that describes a source."""
    return f"hello.{hello.source}".encode(), _encode(hello), b""


def encode_status(status: Status) -> Parts:
    """The message that tells a source's state."""
    return f"status.{status.source}".encode(), _encode(status), b""


def encode_heartbeat(heartbeat: Heartbeat) -> Parts:
    """The message that tells that the publisher lives."""
    return b"heartbeat", _encode(heartbeat), b""


def decode(parts: Sequence[bytes]) -> Message:
    """Read one message as it came from the socket.

    Raises:
        MessageError: it is not a message of this protocol and schema, in any way.
    """
    if len(parts) != 3:
        raise MessageError(f"a message has 3 parts, this one {len(parts)}")
    topic, header, blob = parts
    kind, _, source = topic.partition(b".")
    if kind == b"pose":
        pose = _read(_pose, header)
        _check_source(source, pose.source)
        return PoseMessage(pose, _frame(pose, blob))
    if blob:
        raise MessageError(f"only pose messages have a blob, this one has {len(blob)} bytes")
    if kind == b"hello":
        hello = _read(_hello, header)
        _check_source(source, hello.source)
        if any(max(edge) >= len(hello.joints) for edge in hello.edges):
            raise MessageError(f"hello names {len(hello.joints)} joints, but an edge leads to another one")
        return hello
    if kind == b"status":
        status = _read(_status, header)
        _check_source(source, status.source)
        return status
    if topic == b"heartbeat":
        return _read(_heartbeat, header)
    raise MessageError(f"unknown topic {topic[:40]!r}")


def _read(decoder: msgspec.msgpack.Decoder[_Header], data: bytes) -> _Header:
    """Decode and check a header."""
    if len(data) > HEADER_LIMIT:
        raise MessageError(f"a header of {len(data)} bytes; at most {HEADER_LIMIT} are read")
    try:
        header = decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError) as error:
        _check_schema(data)
        raise MessageError(f"a header that cannot be read: {str(error).splitlines()[0][:200]}") from None
    if header.schema != SCHEMA:
        raise MessageError(f"schema {header.schema}; this version of streampose reads schema {SCHEMA}")
    return header


class _Schema(msgspec.Struct):
    schema: int


def _check_schema(data: bytes) -> None:
    """Say of an unreadable header that it is of another schema, where that is so."""
    try:
        schema = msgspec.msgpack.decode(data, type=_Schema).schema
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError):
        return
    if schema != SCHEMA:
        raise MessageError(f"schema {schema}; this version of streampose reads schema {SCHEMA}")


def _check_source(topic: bytes, header: str) -> None:
    if topic != header.encode(errors="replace"):
        raise MessageError(f"topic of source {topic[:40]!r}, header of source {header[:40]!r}")


def _frame(header: PoseHeader, blob: bytes) -> PoseFrame:
    """The frame of a checked header and a blob that is still to be checked."""
    if not math.isfinite(header.pts_s):
        raise MessageError(f"pts_s is {header.pts_s}")
    boxes, keypoints = _arrays(header, blob)
    people = tuple(
        Pose(track_id=p.track_id, box=box, score=p.score, keypoints=joints)
        for p, box, joints in zip(header.people, boxes, keypoints, strict=True)
    )
    return PoseFrame(
        source=header.source,
        epoch=header.epoch,
        frame_index=header.frame_index,
        pts_s=header.pts_s,
        captured_ns=header.captured_ns,
        published_ns=header.published_ns,
        width=header.width,
        height=header.height,
        skeleton=header.skeleton,
        dropped=header.dropped,
        people=people,
    )


def _arrays(header: PoseHeader, blob: bytes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes (P, 4) and keypoints (P, J, 3), both finite and writable; J is the skeleton's where it is a known one."""
    count = len(header.people)
    if count == 0:
        if blob:
            raise MessageError(f"nobody in the header, but {len(blob)} bytes of people")
        return np.empty((0, 4), np.float32), np.empty((0, 0, 3), np.float32)
    joints, rest = divmod(len(blob) - count * 16, count * 12)
    known = SKELETONS.get(header.skeleton)
    if rest or joints < 1 or (known is not None and joints != len(known.joints)):
        raise MessageError(f"{len(blob)} bytes cannot hold {count} people of skeleton {header.skeleton[:40]!r}")
    values = np.frombuffer(blob, "<f4").astype(np.float32)
    if not np.isfinite(values).all():
        raise MessageError("a box or a keypoint is not finite")
    return values[: count * 4].reshape(count, 4), values[count * 4 :].reshape(count, joints, 3)
