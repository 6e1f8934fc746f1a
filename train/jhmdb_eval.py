"""Sub-JHMDB figures of a prediction file, and of a pose network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from streampose.errors import OutputError, UsageError
from streampose.people import PersonDetector
from streampose.skeleton import JHMDB
from streampose.train.box_file import BoxFile
from streampose.train.datasets import read_subjects
from streampose.train.frame_files import FrameFiles
from streampose.train.jhmdb_score import pck, person_sizes, torso_sizes
from streampose.train.predict import BATCH, Place, PoseModel, Window, estimate_subjects
from streampose.train.progress import tracked
from streampose.train.windows import Subject

Array = NDArray[np.float32]
JOINTS = len(JHMDB.joints)
Propose = Callable[[Subject], Array | None]


class _Entry(msgspec.Struct):
    """A pose of a prediction file: frames count from 0, keypoints are 15 times x, y, score."""

    video: str
    frame: int
    keypoints: list[float]


def evaluate_split_predictions(root: Path, split: int, pred: Path) -> dict[str, Any]:
    """Figures of a file of predictions, in percent.

    Args:
        root: the data's folder; see `train.datasets.jhmdb`.
        split: 1 to 3; its test videos count.
        pred: a JSON list of `{"video": "action/name", "frame": 0, "keypoints": [x, y, score, ...]}`, what
            `evaluate_split` writes. Frames that it lacks count as not found.

    Returns:
        `pck_person` and `pck_torso`, see `Pck.as_json`; `split`, `frames` and `boxes`.

    Raises:
        UsageError: a file is missing or not what it must be.
    """
    subjects = read_subjects("jhmdb", root, f"test{split}", ())
    found = np.full((len(subjects), JOINTS, 3), np.nan, np.float32)
    places = {(_video(subject), subject.index): place for place, subject in enumerate(subjects)}
    seen = set()
    for index, entry in enumerate(_read(pred)):
        key = (entry.video, entry.frame)
        if key not in places:
            raise UsageError(f"{pred}: entry {index} is of {entry.video} frame {entry.frame}: not in split {split}")
        if key in seen:
            raise UsageError(f"{pred}: entry {index} is the second of {entry.video} frame {entry.frame}")
        if len(entry.keypoints) != 3 * JOINTS:
            raise UsageError(f"{pred}: entry {index}: keypoints are {3 * JOINTS} numbers, not {len(entry.keypoints)}")
        seen.add(key)
        found[places[key]] = np.reshape(entry.keypoints, (JOINTS, 3))
    return _figures(subjects, found, split, f"predictions of {pred.name}")


def evaluate_split(
    root: Path,
    split: int,
    model: PoseModel,
    boxes: str = "gt",
    detector: str = "person",
    save_pred: Path | None = None,
) -> dict[str, Any]:
    """Figures of a pose network on the test videos of a split; see `evaluate_split_predictions`.

    Args:
        model: its joints are `JHMDB`'s.
        boxes: "gt", the labelled boxes; "detector", the best-scored of `detector` in the frame; or a file in COCO's
            result format with `image_name` "action/name/00001.png", the best-scored.
        save_pred: folder to write the predictions to, as `predictions.json`.

    Raises:
        UsageError: a file is missing or not what it must be, or the network has other joints.
        OutputError: the predictions cannot be written.
    """
    if model.skeleton.name != JHMDB.name:
        raise UsageError(f"the model has the joints of {model.skeleton.name}; Sub-JHMDB needs those of {JHMDB.name}")
    subjects = read_subjects("jhmdb", root, f"test{split}", model.offsets)
    propose, where = _proposals(boxes, detector, subjects)
    found = np.full((len(subjects), JOINTS, 3), np.nan, np.float32)
    for places in _batches(len(subjects)):
        proposed = {place: propose(subjects[place]) for place in places}
        seen = [place for place in places if proposed[place] is not None]
        found[seen] = estimate_subjects(model, [_window(subjects[place], proposed[place]) for place in seen])
    if save_pred is not None:
        _write(save_pred / "predictions.json", subjects, found)
    return _figures(subjects, found, split, where)


def _video(subject: Subject) -> str:
    """The name of a subject's video, "action/clip"."""
    assert isinstance(subject.source, FrameFiles)
    return subject.source.name


def _figures(subjects: Sequence[Subject], found: Array, split: int, where: str) -> dict[str, Any]:
    truth = np.stack([subject.person.keypoints for subject in subjects])
    boxes = np.stack([subject.person.box for subject in subjects])
    return {
        "split": split,
        "frames": len(subjects),
        "boxes": where,
        "pck_person": pck(found, truth, person_sizes(boxes)).as_json(),
        "pck_torso": pck(found, truth, torso_sizes(truth)).as_json(),
    }


def _proposals(boxes: str, detector: str, subjects: Sequence[Subject]) -> tuple[Propose, str]:
    """What gives somebody's box, None where there is none, and how to call it."""
    if boxes == "gt":
        return lambda subject: subject.person.box, "gt"
    if boxes == "detector":
        finder = PersonDetector(detector)
        where = f"detector {finder.name}, best of score >= {finder.threshold:.2f}"
        return lambda subject: _best(*finder.detect(subject.source.image(subject.index))), where
    file = BoxFile(Path(boxes))
    file.check([(None, picture_name(subject)) for subject in subjects])
    return lambda subject: _best(*file.boxes(None, picture_name(subject))), f"boxes of {file.path.name}"


def picture_name(subject: Subject) -> str:
    """How box files call a subject's picture: "action/name/00001.png" is the first."""
    return f"{_video(subject)}/{subject.index + 1:05d}.png"


def _best(boxes: Array, scores: Array) -> Array | None:
    return boxes[int(scores.argmax())] if len(scores) else None


def _window(subject: Subject, box: Array | None) -> Window:
    assert box is not None
    return Window(subject.source, Place(box), subject.index, subject.support_indices)


def _batches(count: int) -> Iterator[range]:
    """The places 0 to count in parts, with a progress bar on stderr if it is a terminal."""
    return tracked([range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)], "windows")


def _read(path: Path) -> list[_Entry]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[_Entry])
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a list of poses: {error}") from error


def _write(path: Path, subjects: Sequence[Subject], found: Array) -> None:
    entries = [
        {"video": _video(subject), "frame": subject.index, "keypoints": pose.ravel().tolist()}
        for subject, pose in zip(subjects, found, strict=True)
        if not np.isnan(pose).any()
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(entries))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
