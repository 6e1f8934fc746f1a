"""PoseTrack's files of labels and of predictions, one a sequence: the form of 2018 and 2021, and that of 2017.

The form of 2018 and 2021 is COCO's (`images`, `annotations`, `categories`); that of 2017 is a list of frames
(`annolist`), whose joints are numbered as in `NUMBERED`. The rules by which a joint counts as labelled are those of the
benchmark's evaluator (poseval, `convert.py` and `eval_helpers.py`). Coordinates are the file's own: nothing is shifted.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from streampose.errors import UsageError
from streampose.skeleton import POSETRACK

Array = NDArray[np.float64]
_Read = TypeVar("_Read")

NUMBERED = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
    "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
    "head_bottom", "nose", "head_top",
)  # fmt: skip
"""The joints that PoseTrack evaluates, in the order of their numbers in files of 2017."""
PLACES = tuple(POSETRACK.joints.index(name) for name in NUMBERED)
"""Where each joint of `NUMBERED` is among `POSETRACK`'s."""


@dataclass(frozen=True, slots=True)
class PosetrackPerson:
    """A labelled or predicted person.

    Attributes:
        keypoints: (17, 3) float64 in `POSETRACK`'s order: x, y pixels and the file's flag (1 in files of 2017, which
            hold labelled joints only); zeros where there is no joint.
        known: (17,) bool, whether the joint counts as labelled or predicted. In files of 2018 it does unless x, y and
            flag are all 0.
        scores: (17,) float64, nan where the file has none.
        track_id: None where the file has none.
        head_box: (4,) float64 x1, y1, x2, y2, or None.
        box: (4,) float64 x1, y1, x2, y2 of the person, or None; files of 2017 have none.
        posed: the entry has a list of joints, however short. Files of 2017 have entries without.
    """

    keypoints: Array
    known: NDArray[np.bool_]
    scores: Array
    track_id: int | None
    head_box: Array | None
    box: Array | None
    posed: bool = True


@dataclass(frozen=True, slots=True)
class PosetrackFrame:
    """A frame of a sequence.

    Attributes:
        id: the file's `id`; None in files of 2017.
        file_name: of the picture, as the file has it.
        labelled: the file says so, or, where it says nothing, there are people.
        ignore_regions: polygons (K, 2) float64 whose inside says nothing.
    """

    id: int | None
    file_name: str
    labelled: bool
    people: tuple[PosetrackPerson, ...]
    ignore_regions: tuple[Array, ...] = ()


@dataclass(frozen=True, slots=True)
class PosetrackSequence:
    """A file: one sequence, in the file's order; its name is the file's."""

    path: Path
    frames: tuple[PosetrackFrame, ...]

    @property
    def name(self) -> str:
        return self.path.stem


class _Image18(msgspec.Struct):
    id: int
    file_name: str
    is_labeled: bool | int | None = None
    ignore_regions_x: list[list[float]] | None = None
    ignore_regions_y: list[list[float]] | None = None


class _Annotation18(msgspec.Struct):
    image_id: int
    keypoints: list[float]
    scores: list[float] | None = None
    track_id: float | None = None
    bbox_head: list[float] | None = None
    bbox: list[float] | None = None


class _Category18(msgspec.Struct):
    name: str
    keypoints: list[str] = []


class _File18(msgspec.Struct):
    images: list[_Image18]
    annotations: list[_Annotation18]
    categories: list[_Category18]


class _Corner17(msgspec.Struct):
    x: tuple[float]
    y: tuple[float]


class _Point17(msgspec.Struct):
    id: tuple[int]
    x: tuple[float]
    y: tuple[float]
    score: tuple[float] | None = None


class _Points17(msgspec.Struct):
    point: list[_Point17] | None = None


class _Region17(msgspec.Struct):
    point: list[_Corner17]


class _Rect17(msgspec.Struct):
    annopoints: list[_Points17] | None = None
    track_id: tuple[float] | None = None
    x1: tuple[float] | None = None
    y1: tuple[float] | None = None
    x2: tuple[float] | None = None
    y2: tuple[float] | None = None


class _Name17(msgspec.Struct):
    name: str


class _Image17(msgspec.Struct):
    image: tuple[_Name17]
    annorect: list[_Rect17]
    is_labeled: list[bool | int] | None = None
    ignore_regions: list[_Region17] | None = None


class _File17(msgspec.Struct):
    annolist: list[_Image17]


def read_sequences(folder: Path) -> list[PosetrackSequence]:
    """The sequences of a folder, by file name.

    Raises:
        UsageError: it is no folder, holds no `*.json`, or one of them is not what it must be.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; PoseTrack's labels and predictions are folders of *.json")
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UsageError(f"{folder} has no *.json; PoseTrack has one a sequence")
    return [read_sequence(file) for file in files]


def read_sequence(path: Path) -> PosetrackSequence:
    """One file of labels or predictions.

    Raises:
        UsageError: it cannot be read, is in neither form, contradicts itself, or holds numbers that are not finite.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    return parse_sequence(content, path)


def parse_sequence(content: Any, path: Path) -> PosetrackSequence:
    """The content of a file, decoded; see `read_sequence`. `path` names it."""
    if isinstance(content, Mapping) and "annolist" in content:
        frames = _frames_17(_convert(content, _File17, path), path)
    else:
        frames = _frames_18(_convert(content, _File18, path), path)
    if not frames:
        raise UsageError(f"{path} has no frames")
    return PosetrackSequence(path, frames)


def _convert(content: Any, kind: type[_Read], path: Path) -> _Read:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path} is not a PoseTrack file: {error}") from error


def _frames_18(file: _File18, path: Path) -> tuple[PosetrackFrame, ...]:
    category = next((c for c in file.categories if c.name == "person"), None)
    names = category.keypoints if category is not None else []
    missing = [name for name in NUMBERED if name not in names]
    if missing:
        raise UsageError(f"{path} has no joint {missing[0]!r} in its category 'person': it is not PoseTrack's")
    places = [POSETRACK.joints.index(name) if name in POSETRACK.joints else None for name in names]
    people: dict[int, list[PosetrackPerson]] = defaultdict(list)
    ids = {image.id for image in file.images}
    if len(ids) < len(file.images):
        raise UsageError(f"{path}: two of its images have the same id")
    for index, annotation in enumerate(file.annotations):
        where = f"{path}: annotations[{index}]"
        if annotation.image_id not in ids:
            raise UsageError(f"{where} is of image {annotation.image_id}, which is not in images")
        people[annotation.image_id].append(_person_18(annotation, places, where))
    return tuple(
        PosetrackFrame(
            image.id,
            image.file_name,
            bool(people[image.id]) if image.is_labeled is None else bool(image.is_labeled),
            tuple(people[image.id]),
            _regions_18(image, f"{path}: image {image.id}"),
        )
        for image in file.images
    )


def _person_18(annotation: _Annotation18, places: Sequence[int | None], where: str) -> PosetrackPerson:
    count = len(places)
    if len(annotation.keypoints) != 3 * count:
        given = len(annotation.keypoints)
        raise UsageError(f"{where}: keypoints are {count} times x, y, v, so {3 * count} numbers, not {given}")
    if annotation.scores and len(annotation.scores) != count:
        raise UsageError(f"{where}: scores are {count} numbers, one a joint, not {len(annotation.scores)}")
    points = _finite(annotation.keypoints, f"{where}: keypoints").reshape(count, 3)
    given_scores = _finite(annotation.scores, f"{where}: scores") if annotation.scores else np.full(count, np.nan)
    keypoints, known, scores = np.zeros((17, 3)), np.zeros(17, np.bool_), np.full(17, np.nan)
    for place, point, score in zip(places, points, given_scores, strict=True):
        if place is not None:
            keypoints[place], known[place], scores[place] = point, point.any(), score
    head, box = _box_18(annotation.bbox_head, f"{where}: bbox_head"), _box_18(annotation.bbox, f"{where}: bbox")
    return PosetrackPerson(keypoints, known, scores, _track_id(annotation.track_id, where), head, box)


def _box_18(xywh: Sequence[float] | None, where: str) -> Array | None:
    if not xywh:
        return None
    if len(xywh) != 4:
        raise UsageError(f"{where} is x, y, width, height, not {len(xywh)} numbers")
    x, y, width, height = _finite(xywh, where)
    return np.array([x, y, x + width, y + height])


def _regions_18(image: _Image18, where: str) -> tuple[Array, ...]:
    columns, rows = image.ignore_regions_x or [], image.ignore_regions_y or []
    if [len(column) for column in columns] != [len(row) for row in rows]:
        raise UsageError(f"{where}: ignore_regions_x and ignore_regions_y are not equally long")
    return tuple(np.column_stack([_finite(x, where), _finite(y, where)]) for x, y in zip(columns, rows, strict=True))


def _frames_17(file: _File17, path: Path) -> tuple[PosetrackFrame, ...]:
    frames = []
    for index, image in enumerate(file.annolist):
        where = f"{path}: annolist[{index}]"
        people = tuple(_person_17(r, f"{where}.annorect[{place}]") for place, r in enumerate(image.annorect))
        regions = tuple(
            _finite([value for corner in region.point for value in (*corner.x, *corner.y)], where).reshape(-1, 2)
            for region in image.ignore_regions or []
        )
        labelled = bool(image.is_labeled[0]) if image.is_labeled else bool(people)
        frames.append(PosetrackFrame(None, image.image[0].name, labelled, people, regions))
    return tuple(frames)


def _person_17(rect: _Rect17, where: str) -> PosetrackPerson:
    points = rect.annopoints[0].point if rect.annopoints else None
    keypoints, known, scores = np.zeros((17, 3)), np.zeros(17, np.bool_), np.full(17, np.nan)
    for point in points or []:
        if not 0 <= point.id[0] < len(PLACES):
            continue
        place = PLACES[point.id[0]]
        if not known[place]:  # of two points with one number the first counts
            keypoints[place], known[place] = [*_finite([*point.x, *point.y], f"{where}: point"), 1], True
            scores[place] = _finite(point.score, f"{where}: score")[0] if point.score else np.nan
    sides = (rect.x1, rect.y1, rect.x2, rect.y2)
    corners = [side[0] for side in sides if side is not None]
    head = _finite(corners, f"{where}: head box") if len(corners) == len(sides) else None
    track_id = _track_id(rect.track_id[0] if rect.track_id else None, where)
    return PosetrackPerson(keypoints, known, scores, track_id, head, None, points is not None)


def _track_id(value: float | None, where: str) -> int | None:
    if value is not None and not float(value).is_integer():
        raise UsageError(f"{where}: track_id is a whole number, not {value}")
    return None if value is None else int(value)


def _finite(values: Sequence[float], where: str) -> Array:
    numbers = np.array(values, np.float64)
    if not np.isfinite(numbers).all():
        raise UsageError(f"{where} holds {numbers[~np.isfinite(numbers)][0]}, which is not a number")
    return numbers
