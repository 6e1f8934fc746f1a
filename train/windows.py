"""Training windows: a key frame and its supporting frames, cut by crops whose transforms are known, and its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from streampose.geometry import BOX_MARGIN, between_crops, compose, crop_affine, cut, invert, transform
from streampose.heatmaps import encode
from streampose.skeleton import COCO17
from streampose.train.pack import Clip, Person, Still

STRIDE = 4
Image = NDArray[np.uint8]
Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """What a window looks like and how it is varied.

    Attributes:
        size: (height, width) of a crop in pixels.
        offsets: supporting frames, relative to the key frame; empty for single frames.
        rotation_deg, scale, shift: largest turn, relative change of size and of place (in box sides) of the crop.
        occlude: chance that a patch covers part of the person (all frames).
        crop_drift: largest change of the crop between frames of a window, in box sides.
        motion: largest made-up movement between neighbouring frames of a still, in box sides.
        corrupt_key: chance that only the key frame is blurred, darkened or covered.
        born: chance that the track is so young that its oldest supporting frames, or all, are the oldest one there is.
        flip: chance of the mirror picture, with left and right joints exchanged.
        shade: chance of a change of light and tint, the same on all frames.
    """

    size: tuple[int, int] = (256, 192)
    offsets: tuple[int, ...] = ()
    rotation_deg: float = 40.0
    scale: float = 0.3
    shift: float = 0.06
    occlude: float = 0.2
    crop_drift: float = 0.05
    motion: float = 0.03
    corrupt_key: float = 0.5
    born: float = 0.15
    flip: float = 0.5
    shade: float = 1.0

    @staticmethod
    def for_evaluation(size: tuple[int, int], offsets: tuple[int, ...], corrupt_key: float) -> WindowSettings:
        """The labelled box's own crop, unvaried; supporting frames of stills are the picture slightly moved."""
        return WindowSettings(
            size, offsets, rotation_deg=0, scale=0, shift=0, occlude=0, crop_drift=0.02, motion=0.015,
            corrupt_key=corrupt_key, born=0, flip=0, shade=0,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Subject:
    """A person to make windows of: in a still, or in frame `index` of a clip with its supporting frames."""

    source: Still | Clip
    person: Person
    index: int = 0
    support_indices: tuple[int, ...] = ()


def still_subjects(stills: Sequence[Still], min_joints: int = 4) -> list[Subject]:
    """All usable people of some pictures."""
    return [Subject(still, person) for still in stills for person in still.people if _usable(person, min_joints)]


def clip_subjects(clips: Sequence[Clip], offsets: Sequence[int], every: int = 1, min_joints: int = 6) -> list[Subject]:
    """Tracked people of some clips, on every `every`-th frame that has all its supporting frames."""
    subjects = []
    for clip in clips:
        for index in range(0, len(clip.people), every):
            supports = tuple(index + offset for offset in offsets)
            if any(not 0 <= support < len(clip.people) for support in supports):
                continue
            for person in clip.people[index]:
                if _usable(person, min_joints):
                    subjects.append(Subject(clip, person, index, supports))
    return subjects


def _usable(person: Person, min_joints: int) -> bool:
    width, height = person.box[2:] - person.box[:2]
    enough = int((person.keypoints[:, 2] > 0).sum()) >= min_joints
    return not person.ignore and not person.suspect and enough and min(width, height) > 8


class Windows(Dataset[dict[str, Any]]):
    """Endless varied windows; sample `i` depends on the seed and `i` alone.

    A sample holds `crops` (T, H, W, 3) uint8 BGR with the key frame first, `transforms` (T, 2, 3) float32 from key-crop
    to that frame's crop pixels, `targets` (J, H/4, W/4) float32 (see `heatmaps.encode`), `weights` (J,) float32 0..1,
    `points` (J, 2) float32 in key-crop pixels, `human` (J,) bool and `side`, the longer side of the person's box in
    key-crop pixels.
    """

    def __init__(
        self, groups: Sequence[tuple[Sequence[Subject], float]], settings: WindowSettings, seed: int = 0
    ) -> None:
        self.groups = [list(subjects) for subjects, _ in groups]
        shares = np.array([share for _, share in groups], np.float64)
        self.shares = shares / shares.sum()
        self.settings = settings
        self.seed = seed

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        group = self.groups[int(rng.choice(len(self.groups), p=self.shares))]
        return make_window(group[int(rng.integers(len(group)))], self.settings, rng)


def make_window(subject: Subject, settings: WindowSettings, rng: Rng) -> dict[str, Any]:
    """One varied window of a subject; see `Windows`."""
    box, flip = subject.person.box, bool(rng.random() < settings.flip)
    side = float(max(box[2:] - box[:2]))
    rotation = float(rng.uniform(-1, 1) * settings.rotation_deg) if rng.random() < 0.7 else 0.0
    margin = BOX_MARGIN * float(np.exp(rng.uniform(-1, 1) * np.log1p(settings.scale)))
    moved = box + np.tile(rng.uniform(-settings.shift, settings.shift, 2) * side, 2).astype(np.float32)
    key = crop_affine(moved, settings.size, margin, rotation)
    affines = [key] + [_drift(key, side, settings, rng) for _ in settings.offsets]
    motions = _motions(subject, side, settings, rng)
    pictures = _pictures(subject, len(settings.offsets))
    crops = [
        cut(picture, compose(affine, motion), settings.size)
        for picture, affine, motion in zip(pictures, affines, motions, strict=True)
    ]
    points = transform(subject.person.keypoints[:, :2], key)
    weights, human = subject.person.keypoints[:, 2].copy(), subject.person.human
    if rng.random() < settings.shade:
        _shade(crops, rng)
    if rng.random() < settings.occlude:
        _cover(crops, points, rng)
    if settings.offsets and rng.random() < settings.corrupt_key:
        crops[0] = corrupt(crops[0], points, rng)
    if settings.offsets and rng.random() < settings.born:
        _repeat_oldest(crops, affines, settings.offsets, int(rng.integers(len(crops))))
    transforms = between_crops(np.stack([key] * len(affines)), np.stack(affines))
    if flip:
        crops, points, transforms = _flip(crops, points, transforms)
        weights, human = weights[list(COCO17.mirror)], human[list(COCO17.mirror)]
    height, width = settings.size
    targets = encode((points / STRIDE).astype(np.float32), (height // STRIDE, width // STRIDE))
    weights = np.where(targets.sum(axis=(1, 2)) > 0, weights, 0)
    return {
        "crops": np.stack(crops),
        "transforms": transforms.astype(np.float32),
        "targets": targets,
        "weights": weights.astype(np.float32),
        "points": points.astype(np.float32),
        "human": human,
        "side": np.float32(side * np.hypot(*key[0, :2])),
    }


def picture(subject: Subject) -> Image:
    """The subject's own (key) picture, (H, W, 3) uint8 BGR."""
    return subject.source.image() if isinstance(subject.source, Still) else subject.source.image(subject.index)


def _pictures(subject: Subject, supports: int) -> list[Image]:
    if isinstance(subject.source, Still):
        return [subject.source.image()] * (1 + supports)
    indices = (subject.index, *subject.support_indices[:supports])
    return [subject.source.image(index) for index in indices]


def _motions(subject: Subject, side: float, settings: WindowSettings, rng: Rng) -> list[NDArray[np.float32]]:
    """Made-up movement of the picture in each frame: none where the frames are real."""
    identity = np.eye(2, 3, dtype=np.float32)
    if isinstance(subject.source, Clip) or not settings.motion:
        return [identity] * (1 + len(settings.offsets))
    speed = rng.uniform(-1, 1, 2) * settings.motion * side
    turn, growth = float(rng.uniform(-2, 2)), float(rng.uniform(-0.01, 0.01))
    centre = (subject.person.box[:2] + subject.person.box[2:]) / 2
    motions = [identity]
    for offset in settings.offsets:
        angle, scale = np.deg2rad(turn * offset), 1 + growth * offset
        linear = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        shift = centre - linear @ centre + speed * offset + rng.uniform(-0.005, 0.005, 2) * side
        motions.append(np.concatenate([linear, shift[:, None]], axis=1).astype(np.float32))
    return motions


def _drift(key: NDArray[np.float32], side: float, settings: WindowSettings, rng: Rng) -> NDArray[np.float32]:
    """The crop of a supporting frame: often the key frame's, otherwise a little off."""
    if rng.random() < 0.5:
        return key
    scale = 1 + rng.uniform(-1, 1) * settings.crop_drift
    centre = np.array([settings.size[1] / 2, settings.size[0] / 2])
    shift = centre * (1 - scale) + rng.uniform(-1, 1, 2) * settings.crop_drift * side * np.abs(key[0, 0])
    change = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], np.float32)
    return compose(change, key)


def _repeat_oldest(crops: list[Image], affines: list[NDArray[np.float32]], offsets: Sequence[int], age: int) -> None:
    """Put the oldest of the `age` newest frames before the key, or the key itself, where older ones are missing."""
    by_age = sorted(range(len(crops)), key=lambda slot: -(0, *offsets)[slot])
    oldest = by_age[age]
    for slot in by_age[age + 1 :]:
        crops[slot], affines[slot] = crops[oldest], affines[oldest]


def _shade(crops: list[Image], rng: Rng) -> None:
    """The same change of light, contrast and tint on all frames of the window."""
    gain = rng.uniform(0.65, 1.4) * rng.uniform(0.92, 1.08, 3)
    bias = rng.uniform(-25, 25)
    tables = np.clip(np.arange(256)[:, None] * gain + bias, 0, 255).astype(np.uint8)
    for index, crop in enumerate(crops):
        crops[index] = np.asarray(cv2.LUT(crop, tables[None]), np.uint8)


def _cover(crops: list[Image], points: NDArray[np.float32], rng: Rng) -> None:
    """A flat patch over part of the person, in all frames."""
    height, width = crops[0].shape[:2]
    x, y = points[int(rng.integers(len(points)))]
    half = rng.uniform(0.05, 0.16, 2) * height
    low = np.clip([x - half[0], y - half[1]], 0, [width, height]).astype(int)
    high = np.clip([x + half[0], y + half[1]], 0, [width, height]).astype(int)
    colour = rng.integers(0, 256, 3)
    for crop in crops:
        crop[low[1] : high[1], low[0] : high[0]] = colour


def corrupt(crop: Image, points: NDArray[np.float32], rng: Rng) -> Image:
    """Motion blur, low light or a patch, on one frame.

    Args:
        crop: (H, W, 3) uint8.
        points: (J, 2) joints in crop pixels; the patch lies over one of them.
    """
    kind = rng.integers(3)
    if kind == 0:
        return blur(crop, float(rng.uniform(0.04, 0.14)), float(rng.uniform(0, 180)))
    if kind == 1:
        return darken(crop, float(rng.uniform(0.05, 0.25)), rng)
    covered = crop.copy()
    for _ in range(int(rng.integers(1, 3))):
        _cover([covered], points, rng)
    return covered


def blur(crop: Image, strength: float, angle_deg: float) -> Image:
    """Linear motion blur over `strength` of the crop's height (0..1) along `angle_deg`."""
    length = max(3, int(strength * crop.shape[0]) | 1)
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1
    turn = cv2.getRotationMatrix2D((length // 2, length // 2), angle_deg, 1)
    turned = cv2.warpAffine(kernel, turn, (length, length))
    return np.asarray(cv2.filter2D(crop, -1, turned / turned.sum()), np.uint8)


def darken(crop: Image, gain: float, rng: Rng) -> Image:
    """Low light: `gain` (0..1) of the light is left, with the noise of a sensor that amplifies it."""
    noise = rng.normal(0, 6, crop.shape)
    return np.asarray(np.clip(crop * gain + noise, 0, 255), np.uint8)


def _flip(
    crops: list[Image], points: NDArray[np.float32], transforms: NDArray[np.float32]
) -> tuple[list[Image], NDArray[np.float32], NDArray[np.float32]]:
    """Mirror crops, points (joints exchanged) and transforms."""
    mirror = np.array([[-1, 0, crops[0].shape[1]], [0, 1, 0]], np.float32)
    flipped = [np.ascontiguousarray(crop[:, ::-1]) for crop in crops]
    same = np.repeat(mirror[None], len(transforms), axis=0)
    mirrored = transform(points, mirror)[list(COCO17.mirror)]
    return flipped, mirrored, compose(same, compose(transforms, invert(same)))
