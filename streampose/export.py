"""Recordings in the forms that other programs read: CSV, COCO results, PoseTrack 2018, people.jsonl, parquet."""

from __future__ import annotations

import csv
import json
import logging
import re
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count, islice
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from streampose.errors import OutputError, UsageError
from streampose.jsonl import PIXEL_DIGITS, SCORE_DIGITS
from streampose.messages import Hello
from streampose.recording import Choice, Entry, Item, find_recording, read_recording, to_recorded_line
from streampose.skeleton import COCO17, POSETRACK, SKELETONS
from streampose.types import Pose, PoseFrame

log = logging.getLogger(__name__)

FORMATS = ("csv", "coco", "posetrack", "jsonl", "parquet")
_FILES = 200
"""How many are written at a time: fewer than a process may have open."""
_NAME_BYTES = 150
_EARS = [POSETRACK.joints.index(name) for name in ("left_ear", "right_ear")]

_CSV_ENTRY = ("received_ns", "run_id", "seq")
_CSV_FRAME = (
    "source", "epoch", "frame_index", "pts_s", "captured_ns", "published_ns", "width", "height", "dropped", "missed",
)  # fmt: skip
_CSV_PERSON = ("track_id", "person_score", "filled", "box_x1", "box_y1", "box_x2", "box_y2")

Array = NDArray[np.float32]
T = TypeVar("T")


def form_of(out: Path) -> str:
    """The form that the ending of a file tells.

    Raises:
        UsageError: it tells none.
    """
    form = out.suffix.removeprefix(".").lower()
    if form not in FORMATS:
        raise UsageError(
            f"--out {out}: its ending does not tell the form; end it in .csv, .jsonl or .parquet, "
            f"or give --format: {', '.join(FORMATS)}"
        )
    return form


def export(recording: Path, out: Path, form: str, source: str | None = None) -> tuple[Path, ...]:
    """Write a recording, or one source of it, in another form.

    `csv` has a line a person; `coco` is the list of results that COCO's tools take, with `frame_index` as `image_id`;
    `posetrack` is one sequence in PoseTrack's form of 2018. These two are of one run of one source: where a recording
    has several, each gets its own file, named after it.

    Args:
        recording: of `record`, or people.jsonl of `run --save`; also one that was never finished.
        form: one of `FORMATS`.

    Returns:
        The files written.

    Raises:
        UsageError: the recording or the form is not one, there are no frames, `out` exists, or the skeleton has no such
            form.
        OutputError: a file cannot be written.
    """
    if form not in FORMATS:
        raise UsageError(f"--format is one of {', '.join(FORMATS)}, not {form!r}")
    find_recording(recording)  # before `out` is there, which may be of the same name
    try:
        if form in ("coco", "posetrack"):
            return _export_runs(recording, source, out, form)
        items = _chosen(recording, source)
        with _new(out):
            if form == "parquet":
                _write_parquet(items, out)
            else:
                with out.open("x", encoding="utf-8", newline="") as file:
                    (_write_csv if form == "csv" else _write_jsonl)(items, file)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}") from None
    return (out,)


@contextmanager
def _new(path: Path) -> Iterator[None]:
    """A block that makes a file, or leaves none behind."""
    if path.exists():
        raise UsageError(f"--out {path} exists; it is not overwritten")
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _write_parquet(items: Iterable[Item], out: Path) -> None:
    from streampose.parquet import ParquetWriter

    with ParquetWriter(out) as writer:
        for item in items:
            writer.write(item)


def _write_jsonl(items: Iterable[Item], file: IO[str]) -> None:
    for item in items:
        if isinstance(item, Entry):
            file.write(to_recorded_line(item).decode())


def _write_csv(items: Iterable[Item], file: IO[str]) -> None:
    """A line a person; a frame without people has one with no `track_id`."""
    writer = csv.writer(file)
    joints: tuple[str, ...] | None = None
    hellos: dict[str, Hello] = {}
    for item in items:
        if isinstance(item, Hello):
            hellos[item.source] = item
            continue
        if not isinstance(item, Entry):
            continue
        frame = item.frame
        named = _joints(frame, hellos)
        if joints is None:
            joints = named
            columns = [f"{joint}_{part}" for joint in joints for part in ("x", "y", "score")]
            writer.writerow([*_CSV_ENTRY, *_CSV_FRAME, *_CSV_PERSON, *columns])
        if named != joints:
            raise UsageError("the recording has sources of different skeletons; export them one by one with --source")
        start = [getattr(item, name) for name in _CSV_ENTRY] + [getattr(frame, name) for name in _CSV_FRAME]
        for pose in frame.people:
            box = np.round(pose.box.astype(float), PIXEL_DIGITS).tolist()
            points = _rounded(pose.keypoints).ravel().tolist()
            writer.writerow([*start, pose.track_id, _score(pose), int(pose.filled), *box, *points])
        if not frame.people:
            writer.writerow([*start, *[""] * (len(_CSV_PERSON) + 3 * len(joints))])


def _joints(frame: PoseFrame, hellos: dict[str, Hello]) -> tuple[str, ...]:
    known = SKELETONS.get(frame.skeleton)
    if known is not None:
        return known.joints
    if frame.source in hellos:
        return hellos[frame.source].joints
    raise UsageError(f"the recording does not say what the joints of skeleton {frame.skeleton!r} are")


Run = tuple[str, str]
"""Source and `run_id`."""


def _export_runs(recording: Path, source: str | None, out: Path, form: str) -> tuple[Path, ...]:
    """Read it once for the frames of each run, and once more for each group of files that are written together."""
    runs: dict[Run, array[int]] = {}
    for entry in _entries(recording, source):
        runs.setdefault((entry.frame.source, entry.run_id), array("q")).append(entry.frame.frame_index)
    paths = _name_files(runs, out)
    frames = sum(map(len, runs.values()))
    begin = _coco_file if form == "coco" else _posetrack_file
    with ExitStack() as made:
        for path in paths.values():
            made.enter_context(_new(path))
        named = iter(paths.items())
        while group := tuple(islice(named, _FILES)):
            with ExitStack() as stack:
                writers = {run: stack.enter_context(begin(path, run[0], runs.pop(run))) for run, path in group}
                for entry in islice(_entries(recording, source), frames):  # a recorder may have added some meanwhile
                    write = writers.get((entry.frame.source, entry.run_id))
                    if write is not None:
                        write(entry.frame)
    return tuple(paths.values())


def _entries(recording: Path, source: str | None) -> Iterator[Entry]:
    return (item for item in _chosen(recording, source) if isinstance(item, Entry))


def _chosen(recording: Path, source: str | None) -> Iterator[Item]:
    """The items of a recording, or of one source of it.

    Raises:
        UsageError: it is none; or, at its end, that there was no frame.
    """
    choice, frames = Choice(source), 0
    for item in read_recording(recording):
        if choice.takes(item):
            frames += isinstance(item, Entry)
            yield item
    if not frames:
        raise UsageError(f"{recording} has {choice.lack}")


def _file_name(source: str) -> str:
    """A source's id as part of a file's name."""
    return re.sub(r"[/\\\x00-\x1f\x7f]", "_", source).encode()[:_NAME_BYTES].decode(errors="ignore")


def _name_files(runs: Collection[Run], out: Path) -> dict[Run, Path]:
    """A file for each run, named after its source; another run of the same name has the next number that is free."""
    if len(runs) == 1:
        return dict.fromkeys(runs, out)
    names = {run: _file_name(run[0]) for run in runs}
    taken, last = set(names.values()), dict.fromkeys(names.values(), 0)
    paths = {}
    for run, name in names.items():
        unique = name
        while last[name] and unique in taken:
            last[name] += 1
            unique = f"{name}-run{last[name]}"
        last[name] = last[name] or 1
        taken.add(unique)
        paths[run] = out.with_stem(f"{out.stem}-{unique}")
    return paths


@contextmanager
def _coco_file(path: Path, source: str, frames: array[int]) -> Iterator[Callable[[PoseFrame], None]]:  # noqa: ARG001
    """A new file of COCO keypoint results; yields what adds the people of a frame."""
    with path.open("x", encoding="utf-8") as file:
        file.write("[")
        yield _JsonList[PoseFrame](file, to_coco).extend
        file.write("]")


@contextmanager
def _posetrack_file(path: Path, source: str, frames: array[int]) -> Iterator[Callable[[PoseFrame], None]]:
    """A new file of a PoseTrack sequence (2018's form, predictions); yields what adds the people of a frame.

    Args:
        frames: the `frame_index` of each frame that will come.
    """
    with path.open("x", encoding="utf-8") as file:
        file.write('{"images": [')
        images = _JsonList[int](file, lambda frame_index: [_to_image(source, frame_index, len(frames))])
        for frame_index in frames:
            images.extend(frame_index)
        file.write('], "annotations": [')
        ids = count()
        yield _JsonList[PoseFrame](file, lambda frame: to_posetrack(frame, ids)).extend
        categories = [{"supercategory": "person", "id": 1, "name": "person", "keypoints": list(POSETRACK.joints)}]
        file.write(f'], "categories": {json.dumps(categories)}}}')


class _JsonList(Generic[T]):
    """Writes the entries of a JSON list as they come, those that `make` makes of each thing."""

    def __init__(self, file: IO[str], make: Callable[[T], list[dict[str, Any]]]) -> None:
        self._file = file
        self._make = make
        self._between = ""

    def extend(self, thing: T) -> None:
        for entry in self._make(thing):
            self._file.write(self._between + json.dumps(entry))
            self._between = ", "


def to_coco(frame: PoseFrame) -> list[dict[str, Any]]:
    """COCO keypoint results of a frame; `track_id`, and `filled` where true, are added to COCO's fields.

    Raises:
        UsageError: the skeleton is not COCO's.
    """
    if frame.skeleton != COCO17.name:
        raise UsageError(f"COCO results have the joints of {COCO17.name}, the recording those of {frame.skeleton}")
    return [
        {
            "image_id": frame.frame_index,
            "category_id": 1,
            "keypoints": _rounded(pose.keypoints).ravel().tolist(),
            "score": _score(pose),
            "bbox": _xywh(pose.box),
            "track_id": pose.track_id,
            **_filled(pose),
        }
        for pose in frame.people
    ]


def _to_image(source: str, frame_index: int, frames: int) -> dict[str, Any]:
    """A frame as PoseTrack has it."""
    return {
        "id": frame_index,
        "frame_id": frame_index,
        "file_name": f"images/{source}/{frame_index:06d}.jpg",
        "nframes": frames,
    }


def to_posetrack(frame: PoseFrame, ids: Iterator[int]) -> list[dict[str, Any]]:
    """The people of a frame as PoseTrack's annotations; they take their `id` from `ids`.

    COCO's joints become PoseTrack's: `head_bottom` is the middle of the shoulders, `head_top` as far above the nose as
    that is below it; ears are never labelled there, and stay empty.

    Raises:
        UsageError: the skeleton is neither PoseTrack's nor COCO's.
    """
    annotations = []
    for pose in frame.people:
        points = _as_posetrack(pose.keypoints, frame.skeleton)
        places = np.column_stack([points[:, :2], (points[:, 2] > 0).astype(np.float32)])
        places[_EARS] = 0
        scores = points[:, 2].copy()
        scores[_EARS] = 0
        annotations.append(
            {
                "id": next(ids),
                "image_id": frame.frame_index,
                "category_id": 1,
                "track_id": pose.track_id,
                "keypoints": _rounded(places).ravel().tolist(),
                "scores": np.round(scores.astype(float), SCORE_DIGITS).tolist(),
                "score": _score(pose),
                "bbox": _xywh(pose.box),
                **_filled(pose),
            }
        )
    return annotations


def _as_posetrack(keypoints: Array, skeleton: str) -> Array:
    if skeleton == POSETRACK.name:
        return keypoints
    if skeleton != COCO17.name:
        raise UsageError(f"PoseTrack's joints can be made of {POSETRACK.name} or {COCO17.name}, not of {skeleton}")
    by_name = dict(zip(COCO17.joints, keypoints, strict=True))
    shoulders = np.stack([by_name["left_shoulder"], by_name["right_shoulder"]])
    neck = np.append(shoulders[:, :2].mean(axis=0), shoulders[:, 2].min())
    nose = by_name["nose"]
    by_name["head_bottom"] = neck
    by_name["head_top"] = np.append(2 * nose[:2] - neck[:2], min(nose[2], neck[2]))
    return np.stack([by_name[name] for name in POSETRACK.joints]).astype(np.float32)


def _rounded(points: Array) -> NDArray[np.float64]:
    """(J, 3) with the digits of people.jsonl."""
    rounded = np.asarray(np.round(points.astype(np.float64), SCORE_DIGITS), np.float64)
    rounded[:, :2] = np.round(rounded[:, :2], PIXEL_DIGITS)
    return rounded


def _xywh(box: Array) -> list[float]:
    x1, y1, x2, y2 = box.astype(float).tolist()
    return [round(value, PIXEL_DIGITS) for value in (x1, y1, x2 - x1, y2 - y1)]


def _filled(pose: Pose) -> dict[str, bool]:
    """Says of a pose that nobody estimated it, where that is so."""
    return {"filled": True} if pose.filled else {}


def _score(pose: Pose) -> float:
    return round(float(pose.score), SCORE_DIGITS)
