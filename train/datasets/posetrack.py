"""PoseTrack17, 18 and 21: labelled people of videos, in each of the layouts they are passed around in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from streampose.errors import UsageError
from streampose.skeleton import POSETRACK
from streampose.train.frame_files import FrameFiles, supports
from streampose.train.pack import Person
from streampose.train.posetrack_labels import PosetrackFrame, PosetrackPerson, PosetrackSequence, read_sequences
from streampose.train.windows import Subject

LABELS = (
    "annotations/{split}",
    "posetrack_data/{split}",
    "posetrack_data/annotations/{split}",
    "jsons/{split}",
    "{split}",
)
PICTURES = ("", "images", "images_renamed", "posetrack_data")
LAYOUT = (
    "a folder of one *.json a sequence, annotations/{split}/ (PoseTrack17 and 18, from posetrack.net) or "
    "posetrack_data/{split}/ (PoseTrack21, from github.com/anDoer/PoseTrack21), and the pictures under the names that "
    "the files have, from there, from images/ or from images_renamed/ on"
)
BOX_GROWTH = 0.15
"""How much of its side a box made of joints is grown at each end, where the labels have none (all of PoseTrack17)."""
SUFFIXES = (".jpg", ".jpeg", ".png")


def read_posetrack(root: Path, split: str, offsets: Sequence[int]) -> list[Subject]:
    """The labelled people of a PoseTrack folder; see `read_subjects`.

    A sequence's frames are the pictures in its folder, by name: PoseTrack17 counts from 00000001.jpg, 18 and 21 from
    000000.jpg, and supporting frames need no labels. People inside ignored regions and without labelled joints are left
    out; a joint whose flag is 0 is not labelled.
    """
    if split not in ("train", "val"):
        raise UsageError(f"PoseTrack has the splits train and val here, not {split!r}")
    folders = [root / pattern.format(split=split) for pattern in LABELS]
    labels = next((folder for folder in folders if any(folder.glob("*.json"))), None)
    if labels is None:
        raise UsageError(f"{root} is not a PoseTrack folder: expected {LAYOUT.format(split=split)}")
    subjects: list[Subject] = []
    for sequence in read_sequences(labels):
        subjects += _subjects(root, sequence, offsets)
    return subjects


def _subjects(root: Path, sequence: PosetrackSequence, offsets: Sequence[int]) -> list[Subject]:
    folder = _folder(root, sequence)
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    places = {path.name: place for place, path in enumerate(paths)}
    files = FrameFiles(paths)
    subjects = []
    for frame in sequence.frames:
        people = [_person(person) for person in frame.people if _usable(person, frame)] if frame.labelled else []
        if not people:
            continue
        name = Path(frame.file_name).name
        if name not in places:
            raise UsageError(f"{sequence.path} has labels for {frame.file_name}, but {folder} has no {name}")
        index = places[name]
        around = supports(index, offsets, len(paths))
        subjects += [Subject(files, person, index, around, POSETRACK) for person in people]
    return subjects


def _folder(root: Path, sequence: PosetrackSequence) -> Path:
    """The folder with the sequence's pictures."""
    name = sequence.frames[0].file_name
    for start in PICTURES:
        folder = (root / start / name).parent
        if folder.is_dir():
            return folder
    raise UsageError(
        f"{root} has no folder with the pictures of {sequence.path}, the first is {name}; expected {LAYOUT}"
    )


def _usable(person: PosetrackPerson, frame: PosetrackFrame) -> bool:
    labelled = _labelled(person)
    if not labelled.any():
        return False
    points = person.keypoints[labelled, :2]
    for region in frame.ignore_regions:
        polygon = region.astype(np.float32).reshape(-1, 1, 2)
        inside = [cv2.pointPolygonTest(polygon, (float(x), float(y)), False) >= 0 for x, y in points]
        if 2 * sum(inside) > len(inside):
            return False
    return True


def _labelled(person: PosetrackPerson) -> NDArray[np.bool_]:
    return person.known & (person.keypoints[:, 2] > 0)


def _person(labelled: PosetrackPerson) -> Person:
    known = _labelled(labelled)
    keypoints = np.zeros((len(POSETRACK.joints), 3), np.float32)
    keypoints[known, :2], keypoints[known, 2] = labelled.keypoints[known, :2], 1
    box = joints_box(keypoints[known, :2])
    if labelled.box is not None and (labelled.box[2:] - labelled.box[:2]).min() > 1:
        box = np.asarray(labelled.box, np.float32)
    track = -1 if labelled.track_id is None else labelled.track_id
    return Person(box, keypoints, known, suspect=False, ignore=False, track_id=track)


def joints_box(points: NDArray[np.float32], growth: float = BOX_GROWTH) -> NDArray[np.float32]:
    """The box (4,) xyxy around points (N, 2), larger at each end by `growth` of its longer side, at least by 4 px."""
    low, high = points.min(axis=0), points.max(axis=0)
    more = np.maximum(growth * (high - low).max(), 4.0)
    return np.concatenate([low - more, high + more]).astype(np.float32)
