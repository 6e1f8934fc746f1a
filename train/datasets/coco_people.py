"""COCO's people with labelled joints: single pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from streampose.errors import UsageError
from streampose.skeleton import COCO17
from streampose.train.coco import LabelledPerson, read_labels
from streampose.train.frame_files import FrameFiles
from streampose.train.pack import Person
from streampose.train.windows import Subject

LAYOUT = (
    "annotations/person_keypoints_train2017.json and _val2017.json, with the pictures in train2017/ and val2017/ "
    "(from cocodataset.org: 2017 Train and Val images, 2017 Train/Val annotations)"
)


def read_coco(root: Path, split: str, offsets: Sequence[int]) -> list[Subject]:
    """The people of COCO 2017; see `read_subjects`. Supporting frames are the picture, moved a little.

    A joint that COCO labels as hidden counts like one that is seen. Crowds and people without joints are left out.
    """
    if split not in ("train", "val"):
        raise UsageError(f"COCO has the splits train and val, not {split!r}")
    labels = root / "annotations" / f"person_keypoints_{split}2017.json"
    pictures = root / f"{split}2017"
    if not labels.is_file() or not pictures.is_dir():
        raise UsageError(f"{root} is not COCO's folder: expected {LAYOUT}")
    supports = (0,) * len(offsets)
    subjects = []
    for picture in read_labels(labels).pictures:
        files = FrameFiles([pictures / picture.file_name])
        people = [_person(person) for person in picture.people if person.posed]
        subjects += [Subject(files, person, 0, supports, COCO17) for person in people]
    return subjects


def _person(labelled: LabelledPerson) -> Person:
    keypoints = labelled.keypoints.copy()
    keypoints[:, 2] = keypoints[:, 2] > 0
    return Person(labelled.box, keypoints, keypoints[:, 2] > 0, suspect=False, ignore=False, track_id=-1)
