"""Recordings: what `record` wrote and `replay` and `export` read: parquet, the journal of one, or lines of JSON."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from streampose.errors import UsageError
from streampose.journal import read_journal
from streampose.jsonl import to_line
from streampose.ledger import Ledger
from streampose.messages import (
    PEOPLE_LIMIT,
    SOURCES_LIMIT,
    Clock,
    Heartbeat,
    Hello,
    Integer,
    Name,
    Natural,
    Offsets,
    PictureMessage,
    Pixels,
    PoseMessage,
    Score,
    State,
)
from streampose.types import Pose, PoseFrame
from streampose.wire import MessageError, decode

log = logging.getLogger(__name__)

FORMATS = (".parquet", ".jsonl")


@dataclass(frozen=True, slots=True)
class Entry:
    """One recorded frame.

    Attributes:
        received_ns: when it reached the recorder, nanoseconds since 1970.
        run_id, seq: as they were published, see `PoseHeader`.
        offsets: the same.
        frame: its `missed` counts what the recorder did not get just before it.
    """

    received_ns: int
    run_id: str
    seq: int
    frame: PoseFrame
    offsets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StateChange:
    """A source was told to be online, stalled, offline or ended."""

    received_ns: int
    source: str
    state: State


Item = Entry | StateChange | Hello


def source_of(item: Item) -> str:
    """The source that an item is about."""
    return item.frame.source if isinstance(item, Entry) else item.source


class Choice:
    """Which items of a recording are asked for: those of one source, or all of them.

    Args:
        source: None takes them all.
    """

    def __init__(self, source: str | None) -> None:
        self._source = source
        self._others: set[str] = set()

    def takes(self, item: Item) -> bool:
        """Whether an item is asked for; notes whose frames are there besides."""
        of = source_of(item)
        if self._source in (None, of):
            return True
        if isinstance(item, Entry) and len(self._others) < SOURCES_LIMIT:
            self._others.add(of)
        return False

    @property
    def lack(self) -> str:
        """What to say of a recording, read to its end, of which no frame was taken."""
        if self._source is None:
            return "no frames"
        others = ", ".join(sorted(self._others))
        return f"no frames of a source {self._source!r}" + (f", but of {others}" if others else "")


def journal_of(path: Path) -> Path:
    """The journal of a recording that is under way, or died."""
    return path.with_name(f"{path.name}.journal")


def read_recording(path: Path) -> Iterator[Item]:
    """What was recorded, in the order in which it came; each source's hello before its first frame where it is known.

    Args:
        path: .parquet or .jsonl. Where the recorder died, the journal of the parquet file is read instead.

    Raises:
        UsageError: it is not there, empty, or not a recording.
    """
    found = find_recording(path)
    if found == path and not path.stat().st_size:
        raise UsageError(f"{path} is empty: no frame was ever written to it")
    if found.suffix == ".jsonl":
        return _read_lines(found)
    if found != path:
        log.warning("%s was not finished; reading %s", path, found.name)
        return _read_journal(found)
    from streampose.parquet import read_parquet

    return read_parquet(found)


def find_recording(path: Path) -> Path:
    """The file that a recording is read from: its own, or its journal where it was not finished.

    Raises:
        UsageError: it is not there, or has no name of a recording.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: a recording ends in .parquet or .jsonl")
    if path.is_file():
        return path
    if path.suffix == ".parquet" and journal_of(path).is_file():
        return journal_of(path)
    raise UsageError(f"there is no recording {path}")


def _read_journal(path: Path) -> Iterator[Item]:
    ledger = Ledger()
    for received_ns, *parts in read_journal(path):
        try:
            item = to_item(received_ns, parts, ledger)
        except MessageError as error:
            raise UsageError(f"{path} is damaged: {error}") from None
        if item is not None:
            yield item


def to_item(received_ns: int, parts: list[bytes], ledger: Ledger, source: str | None = None) -> Item | None:
    """A message as an item of a recording; None where it is a repetition or not to be recorded.

    Args:
        source: record, and enter into the ledger, this source only.

    Raises:
        MessageError: the message is malformed.
    """
    message = decode(parts)
    if isinstance(message, Heartbeat | PictureMessage):
        return None
    if source not in (None, message.header.source if isinstance(message, PoseMessage) else message.source):
        return None
    if isinstance(message, PoseMessage):
        header = message.header
        missed = ledger.enter(header)
        if missed is None:
            return None
        frame = dataclasses.replace(message.frame, missed=missed)
        return Entry(received_ns, header.run_id, header.seq, frame, header.offsets)
    if not ledger.is_news(message):
        return None
    return message if isinstance(message, Hello) else StateChange(received_ns, message.source, message.state)


def to_recorded_line(entry: Entry) -> bytes:
    """A recorded frame as a line of people.jsonl, with all that it says besides."""
    extra = {
        "received_ns": entry.received_ns,
        "run_id": entry.run_id,
        "seq": entry.seq,
        "clock": entry.frame.clock,
        "offsets": entry.offsets,
    }
    return to_line(entry.frame, with_missed=True, extra=extra)


class _Person(msgspec.Struct):
    track_id: Integer
    box: tuple[float, float, float, float]
    score: Score
    keypoints: list[tuple[float, float, float]]
    filled: bool = False


class _Line(msgspec.Struct):
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
    people: Annotated[list[_Person], Meta(max_length=PEOPLE_LIMIT)]
    clock: Clock = "arrival"
    missed: Natural = 0
    received_ns: Integer | None = None
    run_id: Name = "file"
    seq: Natural | None = None
    offsets: Offsets = ()
    smoothed: bool = False


def _read_lines(path: Path) -> Iterator[Item]:
    """Lines of people.jsonl, those of `run --save` too: these have no `received_ns`, and are taken as published."""
    decoder = msgspec.json.Decoder(_Line)
    next_seq: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if not text.endswith(b"\n"):
                    log.warning("%s ends inside of line %d, which is left out", path, number)
                    return
                try:
                    line = decoder.decode(text)
                except msgspec.MsgspecError as error:
                    raise UsageError(f"{path} line {number} is not one of people.jsonl: {error}") from None
                seq = next_seq.get(line.source, 0) if line.seq is None else line.seq
                next_seq[line.source] = seq + 1
                yield _entry(line, seq)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def _entry(line: _Line, seq: int) -> Entry:
    people = tuple(
        Pose(
            track_id=person.track_id,
            box=np.array(person.box, np.float32),
            score=person.score,
            keypoints=np.array(person.keypoints, np.float32).reshape(-1, 3),
            filled=person.filled,
        )
        for person in line.people
    )
    frame = PoseFrame(
        source=line.source,
        epoch=line.epoch,
        frame_index=line.frame_index,
        pts_s=line.pts_s,
        captured_ns=line.captured_ns,
        published_ns=line.published_ns,
        width=line.width,
        height=line.height,
        skeleton=line.skeleton,
        dropped=line.dropped,
        people=people,
        missed=line.missed,
        clock=line.clock,
        smoothed=line.smoothed,
    )
    received_ns = line.published_ns if line.received_ns is None else line.received_ns
    return Entry(received_ns, line.run_id, seq, frame, line.offsets)
