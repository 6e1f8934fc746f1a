"""Messages on the wire: three parts, topic, msgpack header, blob. docs/protocol.md describes them for others.

Whatever arrives is checked here, once: a message that is not exactly what the protocol says raises `MessageError`, and
nothing else. Unknown header fields are ignored, so that fields can be added without a new schema.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from streampose.errors import StreamposeError, UsageError
from streampose.messages import (
    COORDINATE_LIMIT,
    JOINTS_LIMIT,
    NAME_LIMIT,
    PART_LIMIT,
    PEOPLE_LIMIT,
    SCHEMA,
    Heartbeat,
    Hello,
    Integer,
    Message,
    Parts,
    PersonHeader,
    PictureHeader,
    PictureMessage,
    PoseHeader,
    PoseMessage,
    Status,
)
from streampose.skeleton import SKELETONS
from streampose.types import Pose, PoseFrame


class MessageError(StreamposeError):
    """A message that is not what docs/protocol.md says: damaged, or from another program."""


class OtherSchemaError(MessageError):
    """A message of another version of the protocol."""


_FARTHEST = np.float32(COORDINATE_LIMIT)
_LEAST = np.array([-COORDINATE_LIMIT, -COORDINATE_LIMIT, 0], np.float32)
_MOST = np.array([COORDINATE_LIMIT, COORDINATE_LIMIT, 1], np.float32)
_encode = msgspec.msgpack.Encoder().encode
_pose = msgspec.msgpack.Decoder(PoseHeader)
_picture = msgspec.msgpack.Decoder(PictureHeader)
_hello = msgspec.msgpack.Decoder(Hello)
_status = msgspec.msgpack.Decoder(Status)
_heartbeat = msgspec.msgpack.Decoder(Heartbeat)
_Header = TypeVar("_Header", PoseHeader, PictureHeader, Hello, Status, Heartbeat)


def check_name(source: str) -> str:
    """The name of a source, if it can be a topic.

    Raises:
        UsageError: it is empty, longer than 200 characters, or holds something that cannot be shown.
    """
    if not _is_name(source):
        raise UsageError(f"a source named {source[:40]!r} cannot be published: give it a name of printable characters")
    return source


def encode_pose(frame: PoseFrame, *, run_id: str, seq: int, offsets: Sequence[int] = ()) -> Parts:
    """The message of one frame.

    Args:
        frame: at most `PEOPLE_LIMIT` people, all with the same number of joints; those above are left out. Scores and
            coordinates are brought within range. A joint with a number that is not finite is sent as one that was not
            found: 0, 0 with score 0.
        run_id, seq, offsets: as in `PoseHeader`.

    Raises:
        UsageError: `pts_s` is not finite.
    """
    if not math.isfinite(frame.pts_s):
        raise UsageError(f"frame {frame.frame_index} of {frame.source} cannot be published: its pts_s is {frame.pts_s}")
    people = frame.people[:PEOPLE_LIMIT]
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
        clock=frame.clock,
        people=tuple(PersonHeader(int(p.track_id), min(1.0, max(0.0, float(p.score))), p.filled) for p in people),
        smoothed=frame.smoothed,
    )
    blob = b""
    if people:
        boxes = np.concatenate([p.box for p in people])
        keypoints = np.concatenate([p.keypoints for p in people])
        boxes[np.isnan(boxes)] = 0
        keypoints[~np.isfinite(keypoints).all(axis=1)] = 0
        np.minimum(np.maximum(boxes, -_FARTHEST, out=boxes), _FARTHEST, out=boxes)
        np.minimum(np.maximum(keypoints, _LEAST, out=keypoints), _MOST, out=keypoints)
        blob = boxes.astype("<f4", copy=False).tobytes() + keypoints.astype("<f4", copy=False).tobytes()
    return f"pose.{frame.source}".encode(), _encode(header), blob


def encode_picture(header: PictureHeader, jpeg: bytes) -> Parts:
    """The message of one picture."""
    return f"picture.{header.source}".encode(), _encode(header), jpeg


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
        OtherSchemaError: it is of another version of the protocol.
        MessageError: it is not a message of this protocol, in any way.
    """
    if len(parts) != 3:
        raise MessageError(f"a message has 3 parts, this one {len(parts)}")
    topic, header, blob = parts
    kind, _, source = topic.partition(b".")
    if kind == b"pose":
        pose = _read(_pose, header)
        _check_source(source, pose.source)
        return PoseMessage(pose, _frame(pose, blob))
    if kind == b"picture":
        picture = _read(_picture, header)
        _check_source(source, picture.source)
        if not blob.startswith(b"\xff\xd8\xff") or len(blob) > PART_LIMIT:
            raise MessageError(f"a picture of {len(blob)} bytes that is no JPEG, or too long")
        return PictureMessage(picture, blob)
    if blob:
        raise MessageError(f"only poses and pictures have a blob, this message has {len(blob)} bytes")
    if kind == b"hello":
        hello = _read(_hello, header)
        _check_source(source, hello.source)
        if any(max(edge) >= len(hello.joints) for edge in hello.edges):
            raise MessageError(f"hello names {len(hello.joints)} joints, but an edge leads to another one")
        if not all(map(_is_name, (hello.skeleton, hello.model, *hello.joints))):
            raise MessageError("hello has a name that cannot be shown")
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
    if len(data) > PART_LIMIT:
        raise MessageError(f"a header of {len(data)} bytes; at most {PART_LIMIT} are read")
    try:
        header = decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError) as error:
        _check_schema(data)
        raise MessageError(f"a header that cannot be read: {str(error).splitlines()[0][:200]}") from None
    if header.schema != SCHEMA:
        raise OtherSchemaError(f"schema {header.schema}; this version of streampose reads schema {SCHEMA}")
    if not _is_name(header.run_id):
        raise MessageError("a run_id that cannot be shown")
    return header


class _Schema(msgspec.Struct):
    schema: Integer


_schema = msgspec.msgpack.Decoder(_Schema)


def _check_schema(data: bytes) -> None:
    """Say of an unreadable header that it is of another schema, where that is so."""
    try:
        schema = _schema.decode(data).schema
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError):
        return
    if schema != SCHEMA:
        raise OtherSchemaError(f"schema {schema}; this version of streampose reads schema {SCHEMA}")


def _is_name(text: str) -> bool:
    """Whether a name can be shown to people, on a terminal too."""
    return 0 < len(text) <= NAME_LIMIT and text.isprintable()


def _check_source(topic: bytes, header: str) -> None:
    if topic != header.encode(errors="replace"):
        raise MessageError(f"topic of source {topic[:40]!r}, header of source {header[:40]!r}")
    if not _is_name(header):
        raise MessageError(f"a source name that cannot be shown: {header[:40]!r}")


def _frame(header: PoseHeader, blob: bytes) -> PoseFrame:
    """The frame of a checked header and a blob that is still to be checked."""
    if not math.isfinite(header.pts_s):
        raise MessageError(f"pts_s is {header.pts_s}")
    if not _is_name(header.skeleton):
        raise MessageError("a skeleton's name that cannot be shown")
    boxes, keypoints = _arrays(header, blob)
    people = tuple(
        Pose(track_id=p.track_id, box=box, score=p.score, keypoints=joints, filled=p.filled)
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
        clock=header.clock,
        smoothed=header.smoothed,
    )


def _arrays(header: PoseHeader, blob: bytes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes (P, 4) and keypoints (P, J, 3), checked and writable; J is the skeleton's where it is a known one."""
    count = len(header.people)
    if count == 0:
        if blob:
            raise MessageError(f"nobody in the header, but {len(blob)} bytes of people")
        return np.empty((0, 4), np.float32), np.empty((0, 0, 3), np.float32)
    if len(blob) > PART_LIMIT:
        raise MessageError(f"a blob of {len(blob)} bytes; at most {PART_LIMIT} are read")
    joints, rest = divmod(len(blob) - count * 16, count * 12)
    known = SKELETONS.get(header.skeleton)
    if rest or not 1 <= joints <= JOINTS_LIMIT or (known is not None and joints != len(known.joints)):
        raise MessageError(f"{len(blob)} bytes cannot hold {count} people of skeleton {header.skeleton[:40]!r}")
    values = np.frombuffer(blob, "<f4").astype(np.float32)
    if not (np.abs(values) <= COORDINATE_LIMIT).all():
        raise MessageError("a box or a keypoint is not finite, or far outside of the frame")
    boxes, keypoints = values[: count * 4].reshape(count, 4), values[count * 4 :].reshape(count, joints, 3)
    scores = keypoints[:, :, 2]
    if (scores < 0).any() or (scores > 1).any():
        raise MessageError("a joint's score is not between 0 and 1")
    return boxes, keypoints
