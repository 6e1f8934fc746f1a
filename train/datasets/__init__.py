"""Readers of public data sets, as people to make windows of. `docs/training.md` says where each comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from streampose.errors import UsageError
from streampose.skeleton import COCO17, JHMDB, POSETRACK, Skeleton
from streampose.train.datasets.coco_people import read_coco
from streampose.train.datasets.jhmdb import read_jhmdb
from streampose.train.datasets.posetrack import read_posetrack
from streampose.train.windows import Subject

SKELETON_OF: dict[str, Skeleton] = {
    "coco": COCO17,
    "posetrack17": POSETRACK,
    "posetrack18": POSETRACK,
    "posetrack21": POSETRACK,
    "jhmdb": JHMDB,
}
"""The joints of each data set; the keys are their names in recipes."""
_READERS: dict[str, Callable[[Path, str, Sequence[int]], list[Subject]]] = {
    "coco": read_coco,
    "posetrack17": read_posetrack,
    "posetrack18": read_posetrack,
    "posetrack21": read_posetrack,
    "jhmdb": read_jhmdb,
}


def read_subjects(name: str, root: Path, split: str, offsets: Sequence[int]) -> list[Subject]:
    """The labelled people of a data set, each with its supporting frames.

    Args:
        name: of `SKELETON_OF`.
        root: the data set's folder.
        split: "train" or "val"; of jhmdb "train1" to "train3" and "test1" to "test3".
        offsets: supporting frames relative to the key frame. Before the first and after the last frame of a sequence,
            the nearest there is on that side stands in.

    Returns:
        People in the order of the files.

    Raises:
        UsageError: no such data set or split, the folder has another layout, or there is nobody in it.
    """
    if name not in _READERS:
        raise UsageError(f"no data set {name!r}; there are: pack, {', '.join(_READERS)}")
    subjects = _READERS[name](root, split, offsets)
    if not subjects:
        raise UsageError(f"{root}: the split {split} of {name} has nobody with labelled joints")
    return subjects


__all__ = ["SKELETON_OF", "read_subjects"]
