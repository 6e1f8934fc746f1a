"""Training the person detector on the pack's boxes: pictures put together at random, cells assigned, losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from streampose.errors import UsageError
from streampose.model.checkpoint import DETECTOR, load_detector
from streampose.model.network import normalise
from streampose.model.person import STRIDES, PersonNetwork, cell_centres
from streampose.people import letterbox
from streampose.train.from_bundle import detector_of_bundle, is_bundle, settle
from streampose.train.loop import Batch
from streampose.train.pack import (
    STILL_SETS,
    Clip,
    Person,
    Still,
    check_filled,
    check_set,
    read_clips,
    read_stills,
    still_sets,
)
from streampose.train.person_score import Scene, detect, score_scenes
from streampose.train.recipe import PersonStage

GREY = 114
MOST_BOXES = 96
LEVEL_RANGES_PX = ((0.0, 80.0), (48.0, 176.0), (112.0, 1e9))
"""Square root of the area of the boxes that each stride answers for; neighbours overlap."""
CENTRE_RADIUS = 1.5
TURNED, TURN_DEG = 0.3, 25.0
"""Share of the pasted pictures that are turned, and by how much at most."""
BACKGROUND_TRIES, BACKGROUND_LEAST_PX = 12, 64
SHEET_PICTURES, SHEET_SCORE = 12, 0.4
SETTLING_SAMPLES = 64
"""BatchNorm of a bundle's detector gets its statistics from so many samples."""
Rng = np.random.Generator


class Mosaics(Dataset[dict[str, Any]]):
    """Endless varied pictures; sample `i` depends on the seed and `i` alone.

    A sample holds `picture` (S, S, 3) uint8 BGR, `boxes` (96, 4) float32 xyxy, `kinds` (96,) int64: 1 person, 2 ignore,
    0 nothing.
    """

    def __init__(
        self,
        groups: Sequence[tuple[Sequence[Scene], float]],
        size: int,
        mosaic: float,
        seed: int,
        background: float = 0.0,
    ) -> None:
        self.groups = [list(scenes) for scenes, _ in groups]
        shares = np.array([share for _, share in groups])
        self.shares = shares / shares.sum()
        self.size = size
        self.mosaic = mosaic
        self.seed = seed
        self.background = background

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        canvas = np.full((self.size, self.size, 3), GREY, np.uint8)
        people: list[tuple[NDArray[np.float32], bool]] = []
        if rng.random() < self.mosaic:
            middle = (rng.uniform(0.35, 0.65, 2) * self.size).astype(int)
            for low_x, high_x in ((0, middle[0]), (middle[0], self.size)):
                for low_y, high_y in ((0, middle[1]), (middle[1], self.size)):
                    tile = np.array([low_x, low_y, high_x, high_y])
                    people += _paste(canvas, tile, *self._draw(rng), float(rng.uniform(0.9, 1.7)), rng)
        else:
            tile = np.array([0, 0, self.size, self.size])
            drawn = self._draw(rng)
            zoom = float(np.exp(rng.uniform(np.log(0.55), np.log(1.6))))
            people += _paste(canvas, tile, *drawn, zoom, rng)
        boxes = np.zeros((MOST_BOXES, 4), np.float32)
        kinds = np.zeros(MOST_BOXES, np.int64)
        for slot, (box, ignore) in enumerate(people[:MOST_BOXES]):
            boxes[slot], kinds[slot] = box, 2 if ignore else 1
        return {"picture": _shade(canvas, rng), "boxes": boxes, "kinds": kinds}

    def _draw(self, rng: Rng) -> tuple[NDArray[np.uint8], Sequence[Person]]:
        group = self.groups[int(rng.choice(len(self.groups), p=self.shares))]
        scene = group[int(rng.integers(len(group)))]
        image = scene.image()
        if self.background and rng.random() < self.background:
            empty = _without_people(image, scene.people, rng)
            if empty is not None:
                return empty, ()
        return image, scene.people


def _without_people(image: NDArray[np.uint8], people: Sequence[Person], rng: Rng) -> NDArray[np.uint8] | None:
    """A part of the picture that touches nobody's box and no ignored region; None where none is found."""
    size = np.array(image.shape[1::-1])
    for share in rng.uniform(0.25, 0.6, BACKGROUND_TRIES):
        side = size * share
        low = rng.uniform(0, 1, 2) * (size - side)
        if side.min() >= BACKGROUND_LEAST_PX and not any(
            ((person.box[:2] < low + side) & (person.box[2:] > low)).all() for person in people
        ):
            (x1, y1), (x2, y2) = low.astype(int), (low + side).astype(int)
            return image[y1:y2, x1:x2]
    return None


def _paste(
    canvas: NDArray[np.uint8],
    tile: NDArray[np.int_],
    image: NDArray[np.uint8],
    people: Sequence[Person],
    zoom: float,
    rng: Rng,
) -> list[tuple[NDArray[np.float32], bool]]:
    """Draw a picture into a tile (xyxy) of the canvas at `zoom` times the scale that fits; returns its boxes there."""
    height, width = image.shape[:2]
    room = tile[2:] - tile[:2]
    scale = zoom * min(room[0] / width, room[1] / height)
    slack = room - scale * np.array([width, height])
    shift = tile[:2] + rng.uniform(np.minimum(slack, 0), np.maximum(slack, 0))
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    if rng.random() < 0.5:
        matrix[0] = [-scale, 0, shift[0] + scale * width]
    if rng.random() < TURNED:
        matrix = _turn(matrix, (tile[:2] + tile[2:]) / 2, float(rng.uniform(-TURN_DEG, TURN_DEG)))
    local = matrix.copy()
    local[:, 2] -= tile[:2]
    local[:, 2] += local[:, :2] @ [0.5, 0.5] - 0.5
    canvas[tile[1] : tile[3], tile[0] : tile[2]] = cv2.warpAffine(
        image, local, (int(room[0]), int(room[1])), flags=cv2.INTER_LINEAR, borderValue=(GREY, GREY, GREY)
    )
    found = []
    for person in people:
        middle, half = (person.box[:2] + person.box[2:]) / 2, (person.box[2:] - person.box[:2]) / 2
        middle, half = matrix[:, :2] @ middle + matrix[:, 2], np.hypot(*(matrix[:, :2] * half).T)
        box = np.concatenate([middle - half, middle + half])
        seen = np.concatenate([np.maximum(box[:2], tile[:2]), np.minimum(box[2:], tile[2:])])
        if (seen[2:] <= seen[:2]).any():
            continue
        share = float((seen[2:] - seen[:2]).prod() / (box[2:] - box[:2]).prod())
        small = float((seen[2:] - seen[:2]).max()) < 14
        found.append((seen.astype(np.float32), person.ignore or share < 0.35 or small))
    return found


def _turn(matrix: NDArray[np.float64], about: NDArray[np.float64], angle_deg: float) -> NDArray[np.float64]:
    """`matrix`, then a turn about a point. Boxes turn as the ellipses in them: people have no corners."""
    angle = np.deg2rad(angle_deg)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shift = turn @ (matrix[:, 2] - about) + about
    return np.concatenate([turn @ matrix[:, :2], shift[:, None]], axis=1)


def _shade(picture: NDArray[np.uint8], rng: Rng) -> NDArray[np.uint8]:
    gain = rng.uniform(0.6, 1.4) * rng.uniform(0.9, 1.1, 3)
    tables = np.clip(np.arange(256)[:, None] * gain + rng.uniform(-25, 25), 0, 255).astype(np.uint8)
    picture = np.asarray(cv2.LUT(picture, tables[None]), np.uint8)
    if rng.random() < 0.15:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.5, 2.0))), np.uint8)
    if rng.random() < 0.1:
        picture = np.repeat(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)[..., None], 3, axis=2)
    return picture


def assign(boxes: Tensor, kinds: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Which box each cell answers for (FCOS's centre sampling with ranges of size).

    Args:
        boxes: (B, M, 4) xyxy input pixels.
        kinds: (B, M) 1 person, 2 ignore, 0 nothing.
        size: of the square input.

    Returns:
        owner (B, N) index of the person's box or -1, and ignored (B, N) bool: cells that say nothing.
    """
    centres: list[Tensor] = []
    strides: list[Tensor] = []
    lows: list[Tensor] = []
    highs: list[Tensor] = []
    for stride, (low, high) in zip(STRIDES, LEVEL_RANGES_PX, strict=True):
        points = cell_centres(size // stride, size // stride, stride, boxes)
        centres.append(points)
        for values, value in ((strides, float(stride)), (lows, low), (highs, high)):
            values.append(torch.full((len(points),), value, device=boxes.device))
    points, step = torch.cat(centres), torch.cat(strides)
    low_px, high_px = torch.cat(lows), torch.cat(highs)
    inside = (points[None, :, None] > boxes[:, None, :, :2]).all(-1) & (
        points[None, :, None] < boxes[:, None, :, 2:]
    ).all(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    side = area.sqrt()[:, None]
    fits = (side >= low_px[None, :, None]) & (side < high_px[None, :, None])
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    near = ((points[None, :, None] - middle[:, None]).abs() < CENTRE_RADIUS * step[None, :, None, None]).all(-1)
    candidate = inside & fits & near & (kinds == 1)[:, None]
    cost = torch.where(candidate, area[:, None].expand_as(candidate), torch.inf)
    least, owner = cost.min(dim=2)
    owner = torch.where(least.isfinite(), owner, -1)
    ignored = (inside & (kinds == 2)[:, None]).any(2) & (owner < 0)
    return owner, ignored


def giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (arXiv 1902.09630) of (N, 4) xyxy boxes, pair by pair."""
    inter = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inter
    iou = inter / union.clamp(min=1e-6)
    return iou, iou - (hull - union) / hull.clamp(min=1e-6)


class PersonTask:
    """The detector: quality focal loss on scores (arXiv 2006.04388), GIoU on boxes."""

    loss_weights: Mapping[str, float] = {"score": 1.0, "box": 2.0}

    def __init__(self, model: PersonNetwork, pictures: Mosaics, val: Sequence[Scene], trunk_lr: float) -> None:
        self.model = model
        self.auxiliary = nn.Module()
        self.network = {DETECTOR: "person", "input_size": [pictures.size, pictures.size]}
        self.dataset = pictures
        self.epoch_samples = None
        self.val = val
        self.trunk_lr = trunk_lr

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        trunk = {id(p) for p in self.model.trunk.parameters()}
        rest = [p for p in self.model.parameters() if id(p) not in trunk]
        learnt = [p for p in self.model.trunk.parameters() if p.requires_grad]
        return [{"params": rest, "lr": lr}, {"params": learnt, "lr": lr * self.trunk_lr}]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        found = self.model(normalise(batch["picture"]).contiguous(memory_format=torch.channels_last))
        owner, ignored = assign(batch["boxes"], batch["kinds"], batch["picture"].shape[1])
        rows, cells = torch.nonzero(owner >= 0, as_tuple=True)
        wanted = batch["boxes"][rows, owner[rows, cells]]
        iou, general = giou(found.boxes[rows, cells], wanted)
        quality = torch.zeros_like(found.logits)
        quality[rows, cells] = iou.detach().clamp(min=0.05)
        p = found.logits.sigmoid()
        focal = functional.binary_cross_entropy_with_logits(found.logits, quality, reduction="none")
        focal = focal * (p.detach() - quality).abs() ** 2 * ~ignored
        count = max(1, len(rows))
        weight = quality[rows, cells]
        return {
            "score": focal.sum() / count,
            "box": ((1 - general) * weight).sum() / weight.sum().clamp(min=1),
        }

    def weight(self, batch: Batch) -> Tensor:
        """How many cells answer for a person. The score's term is a mean over them, the box's nearly so."""
        owner, _ = assign(batch["boxes"], batch["kinds"], batch["picture"].shape[1])
        return (owner >= 0).sum().clamp(min=1)

    def sheet(self, model: nn.Module) -> NDArray[np.uint8] | None:
        """Validation pictures with the boxes that are found in them, letterboxed to the input's size."""
        assert isinstance(model, PersonNetwork)
        tiles = []
        for scene in self.val[:: max(1, len(self.val) // SHEET_PICTURES)][:SHEET_PICTURES]:
            tile, ratio = letterbox(scene.image(), (self.dataset.size, self.dataset.size))
            for box, score in zip(*detect(model, scene.image(), self.dataset.size), strict=True):
                if score >= SHEET_SCORE:
                    x1, y1, x2, y2 = (int(side * ratio) for side in box)
                    cv2.rectangle(tile, (x1, y1), (x2, y2), (60, 200, 255), 2)
            tiles.append(tile)
        if len(tiles) < SHEET_PICTURES:
            return None
        rows = [np.concatenate(tiles[start : start + 4], axis=1) for start in range(0, SHEET_PICTURES, 4)]
        return np.concatenate(rows)

    def validate(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, PersonNetwork)
        score = score_scenes(model, self.val, self.dataset.size, min_height_px=80)
        return {"ap50": score.ap50, "recall": score.recall, "precision": score.precision, "threshold": score.threshold}


def scenes_of(stills: Sequence[Still]) -> list[Scene]:
    """The pictures as scenes."""
    return [Scene(still.jpeg, still.people, still.set_name) for still in stills]


def scenes_of_clips(clips: Sequence[Clip], every: int) -> list[Scene]:
    """Every `every`-th frame of the clips as scenes."""
    return [
        Scene(clip.jpegs[index], clip.people[index], f"clip:{clip.name}")
        for clip in clips
        for index in range(0, len(clip.people), every)
    ]


def person_task(stage: PersonStage, data: Path, before: Path | None) -> PersonTask:
    """The detector's task on the pack at `data`, from the checkpoint of the stage before, the stage's `weights`, or
    ImageNet weights.

    Raises:
        ModelError: the checkpoint is missing, damaged or not a detector's.
        UsageError: `data` has no validation pictures, nothing of a set that has a share, or not the pack's layout.
    """
    bundle = before is None and is_bundle(stage.weights)
    if bundle:
        model = detector_of_bundle(stage.weights)
    elif before is not None or stage.weights:
        model = load_detector(before or Path(stage.weights))
    else:
        model = PersonNetwork()
        model.trunk.load_imagenet()
    model.trunk.freeze(stage.frozen_stages)
    groups = []
    for name, share in stage.shares.items():
        if not share:
            continue
        if name == "clips":
            scenes = scenes_of_clips(read_clips(data, "train"), stage.clip_every)
        else:
            check_set(name, data)
            scenes = scenes_of(read_stills(data, "train", [name]))
        check_filled(name, scenes, data)
        groups.append((scenes, share))
    pictures = Mosaics(groups, stage.size, stage.mosaic, stage.loop.seed, stage.background)
    if bundle:
        frames = [normalise(torch.from_numpy(pictures[index]["picture"][None])) for index in range(SETTLING_SAMPLES)]
        settle(model, lambda: [model(frame) for frame in frames])
    val = validation_scenes(data)[::3]
    if not val:
        raise UsageError(f"{data} has no validation pictures: sets of over 60 pictures, or one of the validation clips")
    return PersonTask(model, pictures, val, stage.trunk_lr)


def validation_scenes(data: Path) -> list[Scene]:
    """The validation split: all its pictures, and every tenth frame of its clips."""
    pictures = scenes_of(read_stills(data, "val"))
    if still_sets(data) != STILL_SETS and not any((data / "clips").glob("*.mp4")):
        return pictures  # a pack of one's own may have pictures alone
    return pictures + scenes_of_clips(read_clips(data, "val"), 10)
