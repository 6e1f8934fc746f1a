"""Figures on COCO labels: AP, AR and PCK of poses; AP, recall and precision of boxes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from streampose.errors import OutputError, UsageError
from streampose.people import PersonDetector
from streampose.skeleton import COCO17, oks
from streampose.train.coco import (
    CocoLabels,
    Found,
    LabelledPerson,
    LabelledPicture,
    read_labels,
    read_pictures,
    read_results,
)
from streampose.train.pose_nms import OKS_NMS, suppress_poses
from streampose.train.predict import PoseModel, estimate_still
from streampose.train.progress import tracked
from streampose.train.teachers import LOWEST_SCORE

PCK_SHARE = 0.1
DRAWS = 1000
SEED = 7

Image = NDArray[np.uint8]
Array = NDArray[np.float32]
Propose = Callable[[LabelledPicture, Image], tuple[Array, Array]]


@dataclass(frozen=True, slots=True)
class Poses:
    """The poses found in a picture.

    Attributes:
        keypoints: (N, 17, 3) float32 x, y pixels, score.
        scores: (N,) of the people.
        owners: (N,) int, index among the picture's people of whom each is; -1: of nobody.
    """

    keypoints: Array
    scores: Array
    owners: NDArray[np.intp]


def evaluate_coco(
    gt: Path,
    images: Path | None,
    model: PoseModel | None,
    pred: Path | None,
    boxes: str = "gt",
    detector: str = "person",
    oks_nms: float = OKS_NMS,
    save_pred: Path | None = None,
) -> dict[str, Any]:
    """Figures of a pose network, or of predictions, on COCO keypoint labels; all 0..1.

    A single picture is a window of equal frames. A pose's score is its box's times the mean of its joints'. Poses at
    labelled boxes belong to the boxes' people; others are matched to people one to one, so that the sum of OKS is
    largest.

    Args:
        gt: labels; images: the folder of their pictures, None for the tars beside the labels.
        model: a network; or pred: a COCO result file. One of them is None.
        boxes: "gt": labelled boxes of people with labelled joints; "detector": those of `detector` at the score it
            ships with; else a COCO result file with boxes.
        oks_nms: of two poses at boxes that are not labelled and with a larger OKS the lower-scored one goes.
        save_pred: folder to write the poses to, as `predictions.json` in COCO's result format.

    Returns:
        `ap`, `ap50`, `ar` as COCO's keypoint evaluation has them; `pck01`: which share of the labelled joints lies
        within 0.1 of the longer side of the person's labelled box, joints of people who were not found counting as not
        found; `pck01_interval`, its 95 % bootstrap interval over pictures; `pck01_by_joint`; `boxes`; and counts.

    Raises:
        UsageError: a file is not what it must be, nobody's joints are labelled, or the network has other joints.
        ModelError: the detector cannot be loaded.
        OutputError: the predictions cannot be written.
    """
    labels = read_labels(gt)
    people = [person for picture in labels.pictures for person in picture.people if person.posed]
    if not people:
        raise UsageError(f"{gt} has no people with labelled keypoints")
    if pred is not None:
        found, where = predicted_poses(labels, pred), f"predictions of {pred.name}"
    elif model is not None:
        if model.skeleton.name != COCO17.name:
            raise UsageError(f"the model has the joints of {model.skeleton.name}; COCO's labels need {COCO17.name}")
        found, where = _estimated_poses(labels, images, model, boxes, detector, oks_nms)
        if save_pred is not None:
            _write(save_pred / "predictions.json", _results(labels.pictures, found, labels.category))
    else:
        raise UsageError("coco needs a --model or predictions: --pred")
    right, total = count_joints(labels.pictures, found)
    low, high = bootstrap_interval(right.sum(axis=1), total.sum(axis=1))
    named = zip(COCO17.joints, right.sum(axis=0), total.sum(axis=0), strict=True)
    return {
        "pictures": len(labels.pictures),
        "people": len(people),
        "joints": int(total.sum()),
        "boxes": where,
        **average_precision(labels.pictures, found),
        "pck01": float(right.sum() / total.sum()),
        "pck01_interval": {"low": low, "high": high},
        "pck01_by_joint": {name: float(hits / count) for name, hits, count in named if count},
    }


def evaluate_person(
    gt: Path, images: Path | None, detector: str, pred: Path | None, min_height_px: float = 0.0
) -> dict[str, Any]:
    """Figures of a person detector, or of predicted boxes, on COCO labels at IoU 0.5; all 0..1.

    Crowds, and people under `min_height_px`, count neither as found nor as missed; a detection that lies in one by half
    of its own area or more does not count as wrong.

    Returns:
        `ap50`; `recall` and `precision` at `threshold`, the score that the detector ships with (0 for predictions: all
        of them); `boxes`; and counts.

    Raises:
        UsageError: a file is not what it must be, or nobody is labelled.
        ModelError: the detector cannot be loaded.
    """
    from streampose.train.pack import Person
    from streampose.train.person_score import match, summarise

    labels = read_labels(gt)
    if pred is not None:
        results = read_results(pred, labels)
        threshold, where = 0.0, f"predictions of {pred.name}"
        found = [_boxes_of(results.get(picture.id, []), pred) for picture in labels.pictures]
    else:
        finder = PersonDetector(detector)
        threshold, where = finder.threshold, f"detector {finder.name}"
        found = [finder.detect(image, LOWEST_SCORE) for _, image in _watched(labels, images)]
    scores, verdicts, count = [], [], 0
    for picture, (boxes, confidence) in zip(labels.pictures, found, strict=True):
        known = [Person(p.box, p.keypoints, p.keypoints[:, 2] > 0, False, p.crowd, -1) for p in picture.people]
        verdict, wanted = match(boxes, confidence, known, min_height_px)
        scores.append(confidence)
        verdicts.append(verdict)
        count += wanted
    if not count:
        raise UsageError(f"{gt} has no people to find" + (f" from {min_height_px:g} px tall" if min_height_px else ""))
    result = summarise(np.concatenate(scores), np.concatenate(verdicts), count, threshold)
    return {
        "pictures": len(labels.pictures),
        "people": count,
        "boxes": where,
        "threshold": threshold,
        "ap50": result.ap50,
        "recall": result.recall,
        "precision": result.precision,
    }


def predicted_poses(labels: CocoLabels, pred: Path) -> list[Poses]:
    """The poses of a result file, for each picture of the labels; raises UsageError where it holds none."""
    results = read_results(pred, labels)
    found = []
    for picture in labels.pictures:
        entries = results.get(picture.id, [])
        points = [entry.keypoints for entry in entries if entry.keypoints is not None]
        if len(points) < len(entries):
            raise UsageError(f"{pred}: an entry of image {picture.id} has no keypoints")
        keypoints = np.array(points, np.float32).reshape(-1, len(COCO17.joints), 3)
        scores = np.array([entry.score for entry in entries], np.float32)
        found.append(Poses(keypoints, scores, match_poses(picture.people, keypoints)))
    return found


def match_poses(people: Sequence[LabelledPerson], keypoints: Array) -> NDArray[np.intp]:
    """Whose each pose (N, 17, 3) is: (N,) indices of people, -1 of nobody; one to one, the sum of OKS largest."""
    owners = np.full(len(keypoints), -1, np.intp)
    wanted = [index for index, person in enumerate(people) if person.posed]
    if not wanted or not len(keypoints):
        return owners
    sure = keypoints.copy()
    sure[..., 2] = 1  # every joint counts, as in COCO's OKS
    similarity = np.array([[oks(people[i].keypoints, pose, people[i].area) for i in wanted] for pose in sure])
    for row, column in zip(*linear_sum_assignment(-similarity), strict=True):
        if similarity[row, column] > 0:
            owners[row] = wanted[column]
    return owners


def count_joints(
    pictures: Sequence[LabelledPicture], found: Sequence[Poses]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each picture and joint, how many labelled ones were found and how many there are: two (pictures, 17)."""
    right = np.zeros((len(pictures), len(COCO17.joints)), np.int64)
    total = np.zeros_like(right)
    for index, (picture, poses) in enumerate(zip(pictures, found, strict=True)):
        for who, person in enumerate(picture.people):
            if not person.posed:
                continue
            labelled = person.keypoints[:, 2] > 0
            total[index] += labelled
            for pose in poses.keypoints[poses.owners == who]:
                reach = PCK_SHARE * float((person.box[2:] - person.box[:2]).max())
                near = np.linalg.norm(pose[:, :2] - person.keypoints[:, :2], axis=1) <= reach
                right[index] += near & labelled
    return right, total


def bootstrap_interval(right: NDArray[np.int64], total: NDArray[np.int64]) -> tuple[float, float]:
    """The 95 % interval of sum(right) / sum(total) when the pictures are drawn anew, seeded; both (pictures,)."""
    rng = np.random.default_rng(SEED)
    shares = []
    for _ in range(DRAWS):
        times = np.bincount(rng.integers(len(total), size=len(total)), minlength=len(total))
        if times @ total:
            shares.append((times @ right) / (times @ total))
    low, high = np.percentile(shares, [2.5, 97.5])
    return float(low), float(high)


def average_precision(pictures: Sequence[LabelledPicture], found: Sequence[Poses]) -> dict[str, float]:
    """`ap`, `ap50` and `ar` of COCO's keypoint evaluation, 0..1, by pycocotools."""
    annotations: list[dict[str, Any]] = []
    for picture in pictures:
        for person in picture.people:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": picture.id,
                    "category_id": 1,
                    "bbox": [*person.box[:2].tolist(), *(person.box[2:] - person.box[:2]).tolist()],
                    "area": person.area,
                    "iscrowd": int(person.crowd),
                    "keypoints": person.keypoints.ravel().tolist(),
                    "num_keypoints": int((person.keypoints[:, 2] > 0).sum()),
                }
            )
    results = _results(pictures, found, 1)
    if not results:
        return {"ap": 0.0, "ap50": 0.0, "ar": 0.0}
    with redirect_stdout(io.StringIO()):  # pycocotools talks
        truth = COCO()
        truth.dataset = {
            "images": [{"id": picture.id} for picture in pictures],
            "annotations": annotations,
            "categories": [{"id": 1}],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50, ar = (float(evaluation.stats[index]) for index in (0, 1, 5))
    return {"ap": ap, "ap50": ap50, "ar": ar}


def _results(pictures: Sequence[LabelledPicture], found: Sequence[Poses], category: int) -> list[dict[str, Any]]:
    """Poses in COCO's result format."""
    return [
        {"image_id": picture.id, "category_id": category, "keypoints": pose.ravel().tolist(), "score": float(score)}
        for picture, poses in zip(pictures, found, strict=True)
        for pose, score in zip(poses.keypoints, poses.scores, strict=True)
    ]


def _write(path: Path, content: object) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(content))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _estimated_poses(
    labels: CocoLabels, images: Path | None, model: PoseModel, boxes: str, detector: str, oks_nms: float
) -> tuple[list[Poses], str]:
    propose, where = _proposals(labels, boxes, detector)
    found = []
    for picture, image in _watched(labels, images):
        places, scores = propose(picture, image)
        keypoints = estimate_still(model, image, places)
        scores = scores * keypoints[..., 2].mean(axis=1)
        if boxes == "gt":
            owners = np.array([index for index, person in enumerate(picture.people) if person.posed], np.intp)
        else:
            kept = suppress_poses(keypoints, scores, (places[:, 2:] - places[:, :2]).prod(axis=1), COCO17, oks_nms)
            keypoints, scores = keypoints[kept], scores[kept]
            owners = match_poses(picture.people, keypoints)
        found.append(Poses(keypoints, scores, owners))
    return found, where


def _proposals(labels: CocoLabels, boxes: str, detector: str) -> tuple[Propose, str]:
    """What gives a picture's boxes and their scores, and how to call it."""
    if boxes == "gt":
        return lambda picture, _: _labelled_boxes(picture), "gt"
    if boxes == "detector":
        finder = PersonDetector(detector)
        return lambda _, image: finder.detect(image), f"detector {finder.name}, score >= {finder.threshold:.2f}"
    path = Path(boxes)
    if not path.is_file():
        raise UsageError(f"--boxes is gt, detector or a COCO result file; there is no file {boxes}")
    results = read_results(path, labels)
    return lambda picture, _: _boxes_of(results.get(picture.id, []), path), f"boxes of {path.name}"


def _labelled_boxes(picture: LabelledPicture) -> tuple[Array, Array]:
    boxes = np.array([person.box for person in picture.people if person.posed], np.float32).reshape(-1, 4)
    return boxes, np.ones(len(boxes), np.float32)


def _boxes_of(entries: Sequence[Found], path: Path) -> tuple[Array, Array]:
    boxes = [entry.box for entry in entries if entry.box is not None]
    if len(boxes) < len(entries):
        raise UsageError(f"{path} has entries without a bbox")
    return np.array(boxes, np.float32).reshape(-1, 4), np.array([entry.score for entry in entries], np.float32)


def _watched(labels: CocoLabels, images: Path | None) -> Iterator[tuple[LabelledPicture, Image]]:
    """The pictures, with a progress bar on stderr if it is a terminal."""
    return tracked(read_pictures(labels, images), "pictures", len(labels.pictures))
