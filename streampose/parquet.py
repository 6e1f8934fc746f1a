"""Recordings as Apache Parquet: a row a frame, the people in it nested. Needs the extra [record].

    source, run_id, seq, received_ns, epoch, frame_index, pts_s, captured_ns, published_ns, width, height, skeleton,
    dropped, missed, clock, smoothed, offsets,
    people: list of {track_id, score, filled, box: 4 float32, keypoints: list of 3 float32 (x, y, score)}

The file's metadata has, under `streampose`, a JSON object with the hellos and the changes of state.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from streampose.errors import MissingExtraError, OutputError, UsageError
from streampose.messages import Hello
from streampose.recording import Entry, Item, StateChange
from streampose.types import Pose, PoseFrame

try:
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.parquet as pq
except ModuleNotFoundError:
    raise MissingExtraError("pyarrow", "record") from None

ROWS = 2000
"""Frames of a row group."""
_ROWS_READ = 50
"""Frames that are read at once: few, since replay waits for them."""
_KEY = b"streampose"
_PERSON = pa.struct(
    [
        ("track_id", pa.int64()),
        ("score", pa.float64()),
        ("filled", pa.bool_()),
        ("box", pa.list_(pa.float32(), 4)),
        ("keypoints", pa.list_(pa.list_(pa.float32(), 3))),
    ]
)
SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("run_id", pa.string()),
        ("seq", pa.int64()),
        ("received_ns", pa.int64()),
        ("epoch", pa.int64()),
        ("frame_index", pa.int64()),
        ("pts_s", pa.float64()),
        ("captured_ns", pa.int64()),
        ("published_ns", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("skeleton", pa.string()),
        ("dropped", pa.int64()),
        ("missed", pa.int64()),
        ("clock", pa.string()),
        ("smoothed", pa.bool_()),
        ("offsets", pa.list_(pa.int32())),
        ("people", pa.list_(_PERSON)),
    ]
)
_OF_FRAME = (
    "source", "epoch", "frame_index", "pts_s", "captured_ns", "published_ns", "width", "height", "skeleton", "dropped",
    "missed", "clock", "smoothed",
)  # fmt: skip
_OF_ENTRY = ("run_id", "seq", "received_ns", "offsets")


class Extras(msgspec.Struct):
    """What a recording knows besides its frames."""

    hellos: dict[str, Hello]
    states: list[tuple[int, str, str]]


class ParquetWriter:
    """Writes a recording; it can be read once it is closed.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[Entry] = []
        self._extras = Extras({}, [])
        try:
            self._writer = pq.ParquetWriter(str(path), SCHEMA, compression="zstd")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from None

    def write(self, item: Item) -> None:
        """Append an item.

        Raises:
            OutputError: the disk is full.
        """
        if isinstance(item, Hello):
            self._extras.hellos[item.source] = item
        elif isinstance(item, StateChange):
            self._extras.states.append((item.received_ns, item.source, item.state))
        else:
            self._rows.append(item)
            if len(self._rows) >= ROWS:
                self._write_rows()

    def close(self) -> None:
        """Finish the file.

        Raises:
            OutputError: the disk is full.
        """
        self._write_rows()
        try:
            self._writer.add_key_value_metadata({_KEY: msgspec.json.encode(self._extras)})
            self._writer.close()
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from None

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def _write_rows(self) -> None:
        if not self._rows:
            return
        table = to_table(self._rows)
        self._rows = []
        try:
            self._writer.write_table(table)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from None


def to_table(entries: Sequence[Entry]) -> pa.Table:
    """Entries as rows."""
    columns: dict[str, Any] = {name: [getattr(entry.frame, name) for entry in entries] for name in _OF_FRAME}
    columns |= {name: [getattr(entry, name) for entry in entries] for name in _OF_ENTRY}
    people = [pose for entry in entries for pose in entry.frame.people]
    boxes = np.array([pose.box for pose in people], np.float32).reshape(-1)
    joints = np.concatenate([pose.keypoints for pose in people] or [np.empty((0, 3), np.float32)]).astype(np.float32)
    keypoints = pa.ListArray.from_arrays(
        _ends([len(pose.keypoints) for pose in people]), pa.FixedSizeListArray.from_arrays(joints.reshape(-1), 3)
    )
    persons = pa.StructArray.from_arrays(
        [
            pa.array([pose.track_id for pose in people], pa.int64()),
            pa.array([pose.score for pose in people], pa.float64()),
            pa.array([pose.filled for pose in people], pa.bool_()),
            pa.FixedSizeListArray.from_arrays(boxes, 4),
            keypoints,
        ],
        fields=list(_PERSON),
    )
    columns["people"] = pa.ListArray.from_arrays(_ends([len(entry.frame.people) for entry in entries]), persons)
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in SCHEMA}, schema=SCHEMA)


def _ends(lengths: Sequence[int]) -> pa.Array:
    """Where lists begin and end that lie one after another."""
    return pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32))


def read_parquet(path: Path) -> Iterator[Item]:
    """The items of a recording.

    Raises:
        UsageError: it is not one.
    """
    try:
        with pq.ParquetFile(str(path)) as file:
            metadata = file.metadata.metadata or {}
            if _KEY not in metadata or not _is_ours(file.schema_arrow):
                raise UsageError(f"{path} is not a recording of streampose")
            extras = msgspec.json.decode(metadata[_KEY], type=Extras)
            yield from extras.hellos.values()
            states = [msgspec.convert(state, StateChange) for state in map(_state, extras.states)]
            for batch in file.iter_batches(batch_size=_ROWS_READ):
                for entry in _read_batch(batch):
                    while states and states[0].received_ns <= entry.received_ns:
                        yield states.pop(0)
                    yield entry
            yield from states
    except (OSError, pa.ArrowException, msgspec.MsgspecError) as error:
        raise UsageError(f"{path} is not a recording of streampose, or damaged: {str(error).splitlines()[0]}") from None


def _is_ours(schema: pa.Schema) -> bool:
    return all(name in schema.names and schema.field(name).type == SCHEMA.field(name).type for name in SCHEMA.names)


def _state(fields: tuple[int, str, str]) -> dict[str, Any]:
    return dict(zip(("received_ns", "source", "state"), fields, strict=True))


def _read_batch(batch: pa.RecordBatch) -> Iterator[Entry]:
    """The entries of some rows, whose arrays are cut out of those of all rows: rows as lists would take far longer."""
    columns = {name: batch.column(name).to_pylist() for name in (*_OF_FRAME, *_OF_ENTRY)}
    counts = pa.compute.list_value_length(batch.column("people")).to_pylist()
    persons = dict(zip([field.name for field in _PERSON], batch.column("people").flatten().flatten(), strict=True))
    if any(column.null_count for column in (*batch.columns, *persons.values())):
        raise pa.ArrowInvalid("a value is missing")
    boxes = np.array(persons["box"].flatten(), np.float32).reshape(-1, 4)
    joints = np.array(persons["keypoints"].flatten().flatten(), np.float32).reshape(-1, 3)
    ends = np.cumsum(pa.compute.list_value_length(persons["keypoints"]), dtype=np.int64)[:-1]
    people = zip(
        persons["track_id"].to_pylist(), persons["score"].to_pylist(), persons["filled"].to_pylist(), boxes,
        np.split(joints, ends), strict=False,
    )  # fmt: skip
    for row, count in enumerate(counts):
        poses = tuple(
            Pose(track_id=track_id, score=score, filled=filled, box=box, keypoints=keypoints)
            for track_id, score, filled, box, keypoints in itertools.islice(people, count)
        )
        frame = PoseFrame(people=poses, **{name: columns[name][row] for name in _OF_FRAME})
        yield Entry(
            frame=frame,
            **{name: columns[name][row] for name in _OF_ENTRY} | {"offsets": tuple(columns["offsets"][row])},
        )
