"""How well people are found: recall, precision and AP at IoU 0.5, with regions that say nothing left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from streampose.geometry import box_iou
from streampose.model.network import normalise
from streampose.model.person import PersonNetwork
from streampose.people import letterbox, suppress
from streampose.train.pack import Person

MATCH_IOU = 0.5
Boxes = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture (JPEG bytes), its people, and the set or clip it is of."""

    jpeg: bytes
    people: tuple[Person, ...]
    group: str

    def image(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 BGR."""
        return np.asarray(cv2.imdecode(np.frombuffer(self.jpeg, np.uint8), cv2.IMREAD_COLOR), np.uint8)


@dataclass(frozen=True, slots=True)
class DetectionScore:
    """Figures at `threshold`; all 0..1 except `people`, how many count."""

    ap50: float
    recall: float
    precision: float
    threshold: float
    people: int


def match(boxes: Boxes, scores: Boxes, people: Sequence[Person], min_height_px: float) -> tuple[Boxes, int]:
    """Judge the detections of one picture, best first.

    Args:
        boxes: (N, 4) xyxy, scores: (N,).
        people: labels; ignored regions and people under `min_height_px` count neither as found nor as missed.

    Returns:
        (N,) float32: 1 right, 0 wrong, -1 leave out; and how many people there are to find.
    """
    verdict, _ = assign(boxes, scores, people, min_height_px)
    return verdict, sum(counts(person, min_height_px) for person in people)


def assign(
    boxes: Boxes, scores: Boxes, people: Sequence[Person], min_height_px: float
) -> tuple[Boxes, NDArray[np.intp]]:
    """As `match`, but with whom each detection found: (N,) indices into `people`, -1 nobody."""
    places = np.array([place for place, p in enumerate(people) if counts(p, min_height_px)], np.intp)
    wanted = np.array([people[place].box for place in places], np.float32).reshape(-1, 4)
    void = np.array([p.box for p in people if not counts(p, min_height_px)], np.float32).reshape(-1, 4)
    verdict, owner = np.zeros(len(boxes), np.float32), np.full(len(boxes), -1, np.intp)
    overlap, in_void = box_iou(boxes, wanted), share_inside(boxes, void)
    free = np.ones(len(wanted), np.bool_)
    for index in np.argsort(-scores, kind="stable"):
        best = int(np.argmax(overlap[index] * free)) if free.any() else -1
        if best >= 0 and free[best] and overlap[index, best] >= MATCH_IOU:
            free[best] = False
            verdict[index], owner[index] = 1, places[best]
        elif (in_void[index] >= 0.5).any() or boxes[index, 3] - boxes[index, 1] < min_height_px:
            verdict[index] = -1
    return verdict, owner


def counts(person: Person, min_height_px: float) -> bool:
    """Whether somebody is to be found: no region to ignore, and tall enough."""
    return not person.ignore and float(person.box[3] - person.box[1]) >= min_height_px


def share_inside(boxes: Boxes, regions: Boxes) -> Boxes:
    """(N, M): which share of each box lies inside each region."""
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(axis=2)
    return np.asarray(inter / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-6)[:, None], np.float32)


def summarise(scores: Boxes, verdicts: Boxes, people: int, threshold: float | None = None) -> DetectionScore:
    """Figures over all pictures; without a threshold, the one where recall and precision are closest to each other."""
    keep = verdicts >= 0
    order = np.argsort(-scores[keep], kind="stable")
    ranked, right = scores[keep][order], verdicts[keep][order]
    hits = np.cumsum(right)
    recall = hits / max(people, 1)
    precision = hits / np.maximum(np.arange(1, len(hits) + 1), 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    ap50 = float(np.sum(np.diff(np.concatenate([[0.0], recall])) * envelope))
    if not len(ranked):
        return DetectionScore(0.0, 0.0, 0.0, threshold or 0.5, people)
    if threshold is None:
        threshold = float(ranked[int(np.argmin(np.abs(recall - precision) + (recall < 0.1)))])
    at = int((ranked >= threshold).sum()) - 1
    if at < 0:
        return DetectionScore(ap50, 0.0, 0.0, threshold, people)
    return DetectionScore(ap50, float(recall[at]), float(precision[at]), threshold, people)


@torch.inference_mode()
def detect(model: PersonNetwork, image: NDArray[np.uint8], size: int) -> tuple[Boxes, Boxes]:
    """Boxes and scores of one picture, in its pixels, above 0.05 and after non-maximum suppression."""
    board, ratio = letterbox(image, (size, size))
    found = model(normalise(torch.from_numpy(board[None])).contiguous(memory_format=torch.channels_last))
    scores = found.logits[0].sigmoid().numpy()
    keep = scores > 0.05
    boxes, scores = found.boxes[0].numpy()[keep] / ratio, scores[keep]
    chosen = suppress(boxes, scores)
    return boxes[chosen], scores[chosen]


def score_scenes(model: PersonNetwork, scenes: Sequence[Scene], size: int, min_height_px: float) -> DetectionScore:
    """Figures of a network on some scenes, at the threshold that balances recall and precision."""
    scores, verdicts, people = [], [], 0
    for scene in scenes:
        boxes, confidence = detect(model, scene.image(), size)
        verdict, count = match(boxes, confidence, scene.people, min_height_px)
        scores.append(confidence)
        verdicts.append(verdict)
        people += count
    return summarise(np.concatenate(scores), np.concatenate(verdicts), people)
