"""The headers of protocol v1: every field with its type and range. docs/protocol.md and the schema come from here."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from streampose.types import PoseFrame

SCHEMA = 1
"""Version of everything in this module; a message of another one is refused."""

PART_LIMIT = 1 << 20
"""Longest header or blob that is sent or read, bytes."""
PEOPLE_LIMIT = 1000
NAME_LIMIT = 200
"""Longest name of a source, a run, a skeleton, a joint or a model, characters."""
JOINTS_LIMIT = 512
EDGES_LIMIT = 2048
OFFSETS_LIMIT = 64
OFFSET_LIMIT = 1000
"""Farthest supporting frame, before or after."""
SIZE_LIMIT = 1 << 20
"""Largest width or height of a frame, pixels."""
COORDINATE_LIMIT = 1e6
"""Boxes and joints lie within so many pixels of the frame's corner, on either side."""
SOURCES_LIMIT = 1000
"""Sources of one stream that a publisher greets with, and a receiver keeps account of."""

Parts = tuple[bytes, bytes, bytes]
Clock = Literal["rtcp", "arrival"]
State = Literal["online", "stalled", "offline", "ended"]

Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Natural = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Pixels = Annotated[int, Meta(ge=1, le=SIZE_LIMIT)]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_LIMIT)]
Score = Annotated[float, Meta(ge=0.0, le=1.0)]
Offset = Annotated[int, Meta(ge=-OFFSET_LIMIT, le=OFFSET_LIMIT)]
Offsets = Annotated[tuple[Offset, ...], Meta(max_length=OFFSETS_LIMIT)]
Joint = Annotated[int, Meta(ge=0, le=JOINTS_LIMIT - 1)]


class PersonHeader(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the header says of one person; box and keypoints are in the blob.

    Attributes:
        track_id: the same number as long as the person is followed.
        score: confidence of the person, 0..1.
        filled: the pose bridges a gap: nobody was estimated in this frame. Left out where false.
    """

    track_id: Integer
    score: Score
    filled: bool = False


class PoseHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Header of `pose.<source>`.

    Attributes:
        schema: version of the protocol.
        run_id: another one each time a publisher starts.
        seq: 0, 1, ... over the messages of this topic and run; a gap is loss, a number once more a repetition.
        source: name of the source.
        epoch: +1 at each reconnect, stall and change of size of the source.
        frame_index: number of the frame as decoded from the source.
        pts_s: presentation time of the frame, seconds from the start of the source.
        captured_ns: when the frame was captured: the publishing machine's monotonic clock, nanoseconds.
        published_ns: when its result left the pipeline, on the same clock.
        width: of the frame, pixels.
        height: of the frame, pixels.
        skeleton: name of the joint set; hello lists its joints.
        dropped: frames of this source that were decoded and never estimated, so far.
        offsets: the frames that supported this one, relative to it.
        clock: what `captured_ns` rests on: the camera's clock ("rtcp") or the time of arrival.
        people: P people, in the order of the blob.
        smoothed: keypoints are filtered over time, not raw. Left out where false.
    """

    schema: Integer
    run_id: Name
    seq: Natural
    source: Name
    epoch: Natural
    frame_index: Natural
    pts_s: float
    captured_ns: Integer
    published_ns: Integer
    width: Pixels
    height: Pixels
    skeleton: Name
    dropped: Natural
    offsets: Offsets
    clock: Clock
    people: Annotated[tuple[PersonHeader, ...], Meta(max_length=PEOPLE_LIMIT)]
    smoothed: bool = False


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """Header of `hello.<source>`: what a subscriber must know to read the poses.

    Attributes:
        schema: version of the protocol.
        run_id: as in `pose`.
        source: name of the source.
        skeleton: name of the joint set.
        joints: names of its J joints, in the order of the keypoints.
        edges: pairs of joint indices that are drawn as limbs.
        width: of the source's frames, pixels.
        height: of the source's frames, pixels.
        model: name of the model.
        offsets: the frames that support a frame, relative to it.
    """

    schema: Integer
    run_id: Name
    source: Name
    skeleton: Name
    joints: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=JOINTS_LIMIT)]
    edges: Annotated[tuple[tuple[Joint, Joint], ...], Meta(max_length=EDGES_LIMIT)]
    width: Pixels
    height: Pixels
    model: Name
    offsets: Offsets


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Header of `status.<source>`: sent when the state changes, and to each new subscriber.

    Attributes:
        schema: version of the protocol.
        run_id: as in `pose`.
        source: name of the source.
        state: online; stalled: open, but without a frame for a second, or for four intervals of a slow source; offline:
            lost; ended: at its end.
    """

    schema: Integer
    run_id: Name
    source: Name
    state: State


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """Header of `heartbeat`: the publisher lives.

    Attributes:
        schema: version of the protocol.
        run_id: as in `pose`.
        sent_ns: the publishing machine's monotonic clock, nanoseconds.
    """

    schema: Integer
    run_id: Name
    sent_ns: Integer


class PictureHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Header of `picture.<source>`: a small JPEG, now and then, while somebody subscribes to it by name.

    Attributes:
        schema: version of the protocol.
        run_id: as in `pose`.
        source: name of the source.
        epoch: as in `pose`.
        frame_index: of the frame that is shown.
        captured_ns: as in `pose`.
        width: of the source's frames, pixels; the JPEG is as large or smaller.
        height: of the source's frames, pixels.
    """

    schema: Integer
    run_id: Name
    source: Name
    epoch: Natural
    frame_index: Natural
    captured_ns: Integer
    width: Pixels
    height: Pixels


class PoseMessage(msgspec.Struct, frozen=True):
    """A decoded `pose.<source>`: the header as it came, and the frame it makes (`missed` is 0)."""

    header: PoseHeader
    frame: PoseFrame


class PictureMessage(msgspec.Struct, frozen=True):
    """A decoded `picture.<source>`: the header as it came, and the bytes of a JPEG."""

    header: PictureHeader
    jpeg: bytes


Message = PoseMessage | PictureMessage | Hello | Status | Heartbeat
