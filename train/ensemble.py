"""Teachers asked several times, on mirrored, scaled and shifted pictures: better labels, and how far to trust them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from streampose.geometry import BOX_MARGIN, box_iou, compose, crop_affine, cut, invert, transform
from streampose.people import suppress
from streampose.skeleton import COCO17
from streampose.train.maps import MAP_CELLS
from streampose.train.teachers import THUNDER_SIZE, Thunder, YoloxNano

Array = NDArray[np.float32]
Image = NDArray[np.uint8]

NEAR = 0.1
"""Answers within this share of the box's longer side of each other are one answer."""
FAINT = 0.1
"""Cells of a teacher's map under this share of its peak say nothing."""
LARGE_PX = 700
"""Pictures with a longer side are also looked at in four tiles."""
TILE = 0.6
SAME_BOX_IOU = 0.5


class Pass(NamedTuple):
    """One look at a person: the crop's margin around the box, its shift in box sides, and whether it is mirrored."""

    margin: float
    shift: tuple[float, float]
    mirrored: bool


PASSES = (
    Pass(BOX_MARGIN, (0.0, 0.0), False),
    Pass(BOX_MARGIN, (0.0, 0.0), True),
    Pass(1.5, (0.03, -0.02), False),
    Pass(1.1, (-0.02, 0.03), True),
    Pass(1.1, (0.02, 0.03), False),
    Pass(1.5, (-0.03, -0.02), True),
)


@dataclass(frozen=True, slots=True)
class TeacherPose:
    """What the looks at one person agree on.

    Attributes:
        keypoints: (17, 3) float32 x, y in the picture's pixels and score 0..1: the mean of the looks' scores, times the
            share of them that are near the answer.
        spread: (17,) float32: how far the looks lie from the answer (root of the mean square), in box sides.
        maps: (17, 64, 64) uint8, each with a peak of 255 or all zeros: where the joints are in the square crop around
            the box x1.25, averaged over the looks.
    """

    keypoints: Array
    spread: Array
    maps: NDArray[np.uint8]


class PoseEnsemble:
    """MoveNet Thunder, asked `passes` times about each person.

    Args:
        teacher: with maps.
        passes: 1 to 6; the first two are the plain and the mirrored crop.
    """

    def __init__(self, teacher: Thunder, passes: int = 4) -> None:
        self._teacher = teacher
        self._passes = PASSES[:passes]

    def estimate(self, image: Image, box: Array, known: Array | None = None) -> TeacherPose:
        """One person's pose.

        Args:
            image: (H, W, 3) uint8 BGR; box: (4,) xyxy pixels.
            known: (17, 3) an answer that is there already, one more voice; joints with a score of 0 are none.
        """
        side = float((box[2:] - box[:2]).max())
        whole = crop_affine(box, THUNDER_SIZE)
        voices, maps = [], np.zeros((17, MAP_CELLS, MAP_CELLS), np.float32)
        for look in self._passes:
            shifted = box + side * np.tile(np.array(look.shift, np.float32), 2)
            affine = crop_affine(shifted, THUNDER_SIZE, look.margin)
            if look.mirrored:
                affine = compose(np.array([[-1, 0, THUNDER_SIZE[1]], [0, 1, 0]], np.float32), affine)
            keypoints, found = self._teacher.look(cut(image, affine, THUNDER_SIZE))
            assert found is not None
            keypoints[:, :2] = transform(keypoints[:, :2], invert(affine))
            if look.mirrored:
                keypoints, found = keypoints[list(COCO17.mirror)], found[list(COCO17.mirror)]
            voices.append(keypoints)
            maps += _moved(_shares(found), compose(whole, invert(affine))) * keypoints[:, 2, None, None]
        if known is not None:
            voices.append(known)
        keypoints, spread = agree(np.stack(voices), side)
        return TeacherPose(keypoints, spread, _bytes(maps))


def agree(voices: Array, side: float) -> tuple[Array, Array]:
    """Of several answers (V, 17, 3) one (17, 3), and their spread (17,) in `side`s; see `TeacherPose`.

    The answer with the most weight near it decides, and those near it are averaged by their scores. An answer with a
    score of 0 is none.
    """
    points, scores = voices[..., :2], voices[..., 2]
    apart = np.linalg.norm(points[:, None] - points[None], axis=3) / side  # (V, V, 17)
    support = ((apart < NEAR) * scores[None]).sum(axis=1) * (scores > 0)
    chosen = support.argmax(axis=0)
    near = np.take_along_axis(apart, chosen[None, None], axis=1)[:, 0] < NEAR
    weights = scores * near
    total = np.maximum(weights.sum(axis=0), 1e-9)
    mean = (weights[..., None] * points).sum(axis=0) / total[:, None]
    answers = np.maximum((scores > 0).sum(axis=0), 1)
    score = scores.sum(axis=0) / answers * (near & (scores > 0)).sum(axis=0) / answers
    off = np.linalg.norm(points - mean, axis=2) / side
    spread = np.sqrt((scores * off**2).sum(axis=0) / np.maximum(scores.sum(axis=0), 1e-9))
    return np.column_stack([mean, score]).astype(np.float32), spread.astype(np.float32)


def _shares(maps: Array) -> Array:
    """Each map without its faint cells, scaled to sum 1."""
    peak = maps.max(axis=(1, 2), keepdims=True)
    maps = np.where(maps > FAINT * peak, maps, 0)
    return np.asarray(maps / np.maximum(maps.sum(axis=(1, 2), keepdims=True), 1e-9), np.float32)


def _moved(maps: Array, affine: Array) -> Array:
    """Maps (17, 64, 64) through an affine between crops of 256 x 256 pixels."""
    cells = affine.astype(np.float64).copy()
    cells[:, 2] /= THUNDER_SIZE[0] / MAP_CELLS
    cells[:, 2] += cells[:, :2] @ [0.5, 0.5] - 0.5
    size = (MAP_CELLS, MAP_CELLS)
    return np.stack([cv2.warpAffine(one, cells, size, flags=cv2.INTER_LINEAR) for one in maps]).astype(np.float32)


def _bytes(maps: Array) -> NDArray[np.uint8]:
    peak = maps.max(axis=(1, 2), keepdims=True)
    return np.asarray(np.rint(255 * maps / np.maximum(peak, 1e-12)), np.uint8)


class BoxEnsemble:
    """YOLOX-nano on a picture, on its mirror image and, where it is large, on four overlapping tiles."""

    def __init__(self, teacher: YoloxNano) -> None:
        self._teacher = teacher

    def find(self, image: Image) -> tuple[Array, Array]:
        """Boxes (N, 4) xyxy and scores (N,): of a person that both ways found, their mean; of one that one way found,
        half that way's score."""
        plain, scores = self._look(image)
        mirrored, other = self._look(np.ascontiguousarray(image[:, ::-1]))
        width = image.shape[1]
        mirrored = np.stack([width - mirrored[:, 2], mirrored[:, 1], width - mirrored[:, 0], mirrored[:, 3]], axis=1)
        return join_boxes(plain, scores, mirrored.astype(np.float32), other)

    def _look(self, image: Image) -> tuple[Array, Array]:
        boxes, scores = self._teacher.detect(image)
        height, width = image.shape[:2]
        if max(height, width) <= LARGE_PX:
            return boxes, scores
        all_boxes, all_scores = [boxes], [scores]
        rows, columns = int(TILE * height), int(TILE * width)
        for top in (0, height - rows):
            for left in (0, width - columns):
                found, score = self._teacher.detect(image[top : top + rows, left : left + columns])
                whole = _uncut(found, (left, top, left + columns, top + rows), (width, height))
                all_boxes.append(found[whole] + np.array([left, top, left, top], np.float32))
                all_scores.append(score[whole])
        return join_tiles(np.concatenate(all_boxes), np.concatenate(all_scores))


def join_boxes(a: Array, a_scores: Array, b: Array, b_scores: Array) -> tuple[Array, Array]:
    """Two looks' boxes as one, pair by pair, best first; see `BoxEnsemble.find`."""
    overlap = box_iou(a, b)
    free = np.ones(len(b), np.bool_)
    boxes, scores = [], []
    for index in np.argsort(-a_scores, kind="stable"):
        partner = int(np.argmax(overlap[index] * free)) if free.any() else -1
        if partner >= 0 and free[partner] and overlap[index, partner] >= SAME_BOX_IOU:
            free[partner] = False
            boxes.append((a[index] + b[partner]) / 2)
            scores.append((a_scores[index] + b_scores[partner]) / 2)
        else:
            boxes.append(a[index])
            scores.append(a_scores[index] / 2)
    for index in np.flatnonzero(free):
        boxes.append(b[index])
        scores.append(b_scores[index] / 2)
    order = np.argsort(-np.array(scores), kind="stable")
    return np.array(boxes, np.float32).reshape(-1, 4)[order], np.array(scores, np.float32)[order]


def join_tiles(boxes: Array, scores: Array) -> tuple[Array, Array]:
    """Non-maximum suppression over the tiles' and the whole picture's boxes."""
    kept = suppress(boxes, scores, iou=0.6)
    return boxes[kept], scores[kept]


def _uncut(boxes: Array, tile: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which boxes, in a tile's pixels, do not touch those sides of the tile that lie inside the picture."""
    width, height = tile[2] - tile[0], tile[3] - tile[1]
    cut_left = (boxes[:, 0] < 2) & (tile[0] > 0)
    cut_top = (boxes[:, 1] < 2) & (tile[1] > 0)
    cut_right = (boxes[:, 2] > width - 2) & (tile[2] < size[0])
    cut_bottom = (boxes[:, 3] > height - 2) & (tile[3] < size[1])
    return np.asarray(~(cut_left | cut_top | cut_right | cut_bottom), np.bool_)
