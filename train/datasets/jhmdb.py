"""Sub-JHMDB: the videos of J-HMDB whose whole body is in view, in three splits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat  # type: ignore[import-untyped]

from streampose.errors import UsageError
from streampose.skeleton import JHMDB
from streampose.train.datasets.posetrack import joints_box
from streampose.train.frame_files import FrameFiles, supports
from streampose.train.pack import Person
from streampose.train.windows import Subject

LAYOUT = (
    "Rename_Images/<action>/<clip>/00001.png, joint_positions/<action>/<clip>/joint_positions.mat, "
    "sub_splits/<action>_test_split_<1|2|3>.txt and, if there, puppet_mask/<action>/<clip>/puppet_mask.mat "
    "(from jhmdb.is.tue.mpg.de)"
)
TRAIN, TEST = 1, 2
"""What the split files write behind a clip's name."""
BOX_GROWTH = 0.1
Array = NDArray[np.float32]


def read_jhmdb(root: Path, split: str, offsets: Sequence[int]) -> list[Subject]:
    """The person of each frame of Sub-JHMDB's clips; see `read_subjects`.

    Boxes are the extent of the puppet masks, or of the joints, grown by a tenth, where there are none. Joints are at
    `pos_img`, which counts pixels from 1; those outside the picture are not labelled.
    """
    found = re.fullmatch(r"(train|test)([123])", split)
    if found is None:
        raise UsageError(f"Sub-JHMDB has the splits train1, test1, ... train3, test3, not {split!r}")
    wanted, number = (TRAIN if found[1] == "train" else TEST), found[2]
    lists = sorted((root / "sub_splits").glob(f"*_test_split_{number}.txt"))
    if not lists:
        raise UsageError(f"{root} is not Sub-JHMDB's folder: expected {LAYOUT}")
    subjects: list[Subject] = []
    for file in lists:
        action = file.name.removesuffix(f"_test_split_{number}.txt")
        for clip, part in _clips(file):
            if part == wanted:
                subjects += _subjects(root, action, clip, offsets)
    return subjects


def _clips(file: Path) -> list[tuple[str, int]]:
    """Names and parts of a split file's clips."""
    clips = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        name, _, part = line.strip().rpartition(" ")
        if not name or part not in (str(TRAIN), str(TEST)):
            raise UsageError(f"{file}:{number}: expected a clip's name and 1 (train) or 2 (test), not {line.strip()!r}")
        clips.append((name.strip().removesuffix(".avi"), int(part)))
    return clips


def _subjects(root: Path, action: str, clip: str, offsets: Sequence[int]) -> list[Subject]:
    folder = root / "Rename_Images" / action / clip
    paths = sorted(folder.glob("*.png")) or sorted(folder.glob("*.jpg"))
    if not paths:
        raise UsageError(f"{folder} has no pictures; expected {LAYOUT}")
    positions = _matrix(root / "joint_positions" / action / clip / "joint_positions.mat", "pos_img")
    if positions.shape[:2] != (2, len(JHMDB.joints)) or positions.ndim != 3:
        raise UsageError(f"joint positions of {action}/{clip} are (2, 15, frames), not {positions.shape}")
    files = FrameFiles(paths)
    height, width = files.image(0).shape[:2]
    masks = _masks(root / "puppet_mask" / action / clip / "puppet_mask.mat")
    subjects = []
    for index in range(min(len(paths), positions.shape[2])):
        points = (positions[:, :, index].T - 0.5).astype(np.float32)
        person = _person(points, (height, width), masks[:, :, index] if masks is not None else None)
        if person is not None:
            subjects.append(Subject(files, person, index, supports(index, offsets, len(paths)), JHMDB))
    return subjects


def _matrix(path: Path, name: str) -> NDArray[np.float64]:
    if not path.is_file():
        raise UsageError(f"{path} is missing; expected {LAYOUT}")
    try:
        content: dict[str, Any] = loadmat(path, variable_names=[name])
    except Exception as error:  # scipy raises many kinds on damaged files
        raise UsageError(f"{path} is not a MATLAB file that can be read") from error
    if name not in content:
        raise UsageError(f"{path} has no {name}")
    return np.asarray(content[name], np.float64)


def _masks(path: Path) -> NDArray[np.float64] | None:
    return _matrix(path, "part_mask") if path.is_file() else None


def _person(points: Array, size: tuple[int, int], mask: NDArray[np.float64] | None) -> Person | None:
    """The person of a frame; None where no joint is inside the picture."""
    labelled = np.all((points >= 0) & (points <= np.array(size[::-1])), axis=1)
    if not labelled.any():
        return None
    keypoints = np.column_stack([points, labelled]).astype(np.float32)
    box = joints_box(points[labelled], BOX_GROWTH)
    if mask is not None and (mask > 0).any():
        rows, columns = np.nonzero(mask > 0)
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
    return Person(box, keypoints, labelled, suspect=False, ignore=False, track_id=-1)
