"""PoseTrack figures of prediction files, and of a pose network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from streampose.errors import OutputError, UsageError
from streampose.people import PersonDetector
from streampose.skeleton import POSETRACK
from streampose.train.box_file import BoxFile
from streampose.train.datasets.posetrack import SUFFIXES, joints_box
from streampose.train.frame_files import FrameFiles, Image, find_root, supports
from streampose.train.pose_nms import OKS_NMS, rescored, suppress_poses
from streampose.train.pose_tracks import GreedyTracker
from streampose.train.posetrack_labels import (
    NUMBERED,
    PosetrackFrame,
    PosetrackPerson,
    PosetrackSequence,
    parse_sequence,
    read_sequence,
    read_sequences,
)
from streampose.train.posetrack_score import require_heads, score_posetrack
from streampose.train.predict import Place, PoseModel, Window, estimate_subjects
from streampose.train.progress import tracked
from streampose.train.submission import FramePoses, posetrack_submission

log = logging.getLogger(__name__)


UNLABELLED = [POSETRACK.joints.index(name) for name in POSETRACK.joints if name not in NUMBERED]
"""The ears: nobody can have learnt them, so they count nowhere."""

Array = NDArray[np.float32]
Propose = Callable[[PosetrackFrame, Callable[[], Image]], tuple[Array, Array]]


def evaluate_predictions(gt: Path, pred: Path) -> dict[str, Any]:
    """Figures of a folder of predictions, in percent; None where one is not defined.

    Args:
        gt: folder of labels, one `*.json` a sequence, in the form of 2017, 2018 or 2021.
        pred: folder with a prediction file of the same name for each; others in it are not looked at.

    Returns:
        `ap`, `precision` and `recall` by joint, `ap_total`, and `mota` with four lists (`mota`, `motp`, `pre`, `rec`):
        the joints in the same order, then their mean.

    Raises:
        UsageError: a file is missing or not what it must be.
    """
    truth = read_sequences(gt)
    if not pred.is_dir():
        raise UsageError(f"{pred} is not a folder; PoseTrack's predictions are a folder of *.json, named as the labels")
    return score_posetrack(truth, [_prediction(sequence, pred) for sequence in truth]).as_json()


def evaluate_model(
    gt: Path,
    images: Path | None,
    model: PoseModel,
    boxes: str = "gt",
    detector: str = "person",
    oks_nms: float = OKS_NMS,
    save_pred: Path | None = None,
) -> dict[str, Any]:
    """Figures of a pose network on labelled sequences; see `evaluate_predictions`.

    It runs on the labelled frames, or on all where a sequence has none. Windows reach into the pictures around, whether
    they are in the labels or not; see `supports`.

    Args:
        images: folder that the labels' file names start from; None: it is looked for above `gt`.
        model: its joints are `POSETRACK`'s.
        boxes: "gt", the boxes of labelled people with joints; "detector"; or a file in COCO's result format.
        detector: see `PersonDetector`.
        oks_nms: of two poses with a larger OKS the lower-scored one goes.
        save_pred: folder to write the predictions to, a file a sequence, which `evaluate_predictions` reads.

    Returns:
        Those figures, and `boxes`, which were used.

    Raises:
        UsageError: a file is missing or not what it must be, or the network has other joints.
        OutputError: a prediction file cannot be written.
    """
    if model.skeleton.name != POSETRACK.name:
        raise UsageError(
            f"the model has the joints of {model.skeleton.name}, which lack head_top and head_bottom; "
            f"PoseTrack needs a model with those of {POSETRACK.name}"
        )
    truth = read_sequences(gt)
    require_heads(truth)
    root = find_root(images, gt, truth[0].frames[0].file_name)
    propose, where = _proposals(boxes, detector, truth)
    found = []
    for sequence in tracked(truth, "sequences"):
        poses = _estimate(sequence, root, model, propose, oks_nms)
        content = posetrack_submission(sequence, poses)
        if save_pred is not None:
            _write(save_pred / sequence.path.name, content)
        found.append(parse_sequence(content, sequence.path))
    return {"boxes": where, **score_posetrack(truth, found).as_json()}


def _estimate(
    sequence: PosetrackSequence, root: Path, model: PoseModel, propose: Propose, oks_nms: float
) -> dict[int, FramePoses]:
    """The poses of a sequence, by place."""
    paths = _pictures(root / sequence.frames[0].file_name)
    frames, at = FrameFiles(paths), {path.name: place for place, path in enumerate(paths)}
    tracker = GreedyTracker(model.skeleton)
    wanted = [place for place, frame in enumerate(sequence.frames) if frame.labelled or frame.people]
    found = {}
    for place in wanted or range(len(sequence.frames)):
        frame = sequence.frames[place]
        index = at.get(Path(frame.file_name).name)
        if index is None:
            raise UsageError(f"{root / frame.file_name} is missing; {sequence.path} has it")
        places, scores = propose(frame, partial(frames.image, index))
        around = supports(index, model.offsets, len(paths))
        keypoints = estimate_subjects(model, [Window(frames, Place(box), index, around) for box in places])
        keypoints[:, UNLABELLED, 2] = -1
        scores = rescored(scores, keypoints)
        kept = suppress_poses(keypoints, scores, (places[:, 2:] - places[:, :2]).prod(axis=1), POSETRACK, oks_nms)
        ids = tuple(tracker.update(keypoints[kept], places[kept]))
        found[place] = FramePoses(keypoints[kept], places[kept], scores[kept], ids)
    return found


def _pictures(first: Path) -> list[Path]:
    """The pictures beside the first one, in order: those of the sequence, whether in the labels or not."""
    return sorted(path for path in first.parent.iterdir() if path.suffix.lower() in SUFFIXES)


def _proposals(boxes: str, detector: str, truth: Sequence[PosetrackSequence]) -> tuple[Propose, str]:
    """What gives a frame's boxes and their scores, and how to call it."""
    if boxes == "gt":
        return lambda frame, _: _labelled_boxes(frame), "gt"
    if boxes == "detector":
        finder = PersonDetector(detector)
        return lambda _, image: finder.detect(image()), f"detector {finder.name}, score >= {finder.threshold:.2f}"
    file = BoxFile(Path(boxes))
    file.check([(frame.id, frame.file_name) for sequence in truth for frame in sequence.frames])
    return lambda frame, _: file.boxes(frame.id, frame.file_name), f"boxes of {file.path.name}"


def _labelled_boxes(frame: PosetrackFrame) -> tuple[Array, Array]:
    boxes = [person_box(person) for person in frame.people if person.known.any()]
    return np.array(boxes, np.float32).reshape(-1, 4), np.ones(len(boxes), np.float32)


def person_box(person: PosetrackPerson) -> Array:
    """The box (4,) xyxy of somebody with labelled joints: the file's, or that of the joints, as in training."""
    if person.box is not None and (person.box[2:] > person.box[:2]).all():
        return person.box.astype(np.float32)
    return joints_box(person.keypoints[person.known, :2].astype(np.float32))


def _prediction(sequence: PosetrackSequence, folder: Path) -> PosetrackSequence:
    path = folder / sequence.path.name
    if not path.is_file():
        raise UsageError(f"{path} is missing; every sequence of {sequence.path.parent} needs its predictions")
    return read_sequence(path)


def _write(path: Path, content: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(content))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
