"""Training windows: a key frame and its supporting frames, cut by crops whose transforms are known, and its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from streampose.geometry import (
    BOX_MARGIN,
    between_crops,
    compose,
    crop_affine,
    cut,
    invert,
    place_in_crop,
    transform,
)
from streampose.skeleton import COCO17, Skeleton
from streampose.train import augment
from streampose.train.maps import MAP_CROP_SIZE, unpack_maps
from streampose.train.pack import Clip, Person, Still

Image = NDArray[np.uint8]
Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """What a window looks like and how it is varied.

    Attributes:
        size: (height, width) of a crop in pixels.
        offsets: supporting frames, relative to the key frame; empty for single frames.
        rotation_deg, scale, shift: largest turn, relative change of size and of place (in box sides) of the crop.
        spin: chance that the crop is turned by any angle, for people upside down.
        occlude: chance that a patch covers part of the person (all frames).
        box_noise: standard deviation, in sides, of where the person's boxes are in supporting frames.
        crop_drift: largest change of the crop between frames of a window, in box sides.
        own_crops: chance that supporting frames of a clip are cut by the person's own boxes in them, as a stream's are.
        motion: largest made-up movement between neighbouring frames of a still, in box sides.
        limb_motion: largest made-up movement of a limb by itself between neighbouring frames of a still, in box sides.
        corrupt_key: chance that only the key frame is blurred, darkened or covered.
        born: chance that the track is so young that its oldest supporting frames, or all, are the oldest one there is.
        flip: chance of the mirror picture, with left and right joints exchanged.
        shade: chance of a change of light and tint, the same on all frames.
        degrade: chance that all frames have few pixels, JPEG's blocks, mild blur or low light.
        paste: chance that another person lies over part of this one, in all frames.
        maps: 1 if samples hold the teacher's maps, too; else 0.
        all_frames: 1 if samples hold the labels of all their frames, too; else 0.
        half_body: chance that the crop shows the upper or the lower half of a person.
        half_body_joints: so many labelled joints a person has of whom half is shown.
    """

    size: tuple[int, int] = (256, 192)
    offsets: tuple[int, ...] = ()
    rotation_deg: float = 40.0
    scale: float = 0.3
    shift: float = 0.06
    spin: float = 0.0
    occlude: float = 0.2
    box_noise: float = 0.01
    crop_drift: float = 0.05
    own_crops: float = 0.0
    motion: float = 0.03
    limb_motion: float = 0.0
    corrupt_key: float = 0.5
    born: float = 0.15
    flip: float = 0.5
    shade: float = 1.0
    degrade: float = 0.0
    paste: float = 0.0
    maps: int = 0
    all_frames: int = 0
    half_body: float = 0.0
    half_body_joints: int = 8

    @staticmethod
    def for_evaluation(size: tuple[int, int], offsets: tuple[int, ...], corrupt_key: float) -> WindowSettings:
        """The labelled box's own crop, unvaried; supporting frames of clips are cut by the boxes in them, and those of
        stills are the picture slightly moved."""
        return WindowSettings(
            size, offsets, rotation_deg=0, scale=0, shift=0, occlude=0, crop_drift=0.02, own_crops=1, motion=0.015,
            corrupt_key=corrupt_key, born=0, flip=0, shade=0,
        )  # fmt: skip


class Pictures(Protocol):
    """Where a subject's frames come from."""

    @property
    def moving(self) -> bool:
        """Whether these are frames of a video; a still's supporting frames are made up."""

    def image(self, index: int) -> Image:
        """Frame `index`, (H, W, 3) uint8 BGR."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A person to make windows of, in frame `index` of `source`, with its supporting frames; `skeleton` names the
    joints. `support_people` is the same person in those frames, None where it is not labelled; or empty."""

    source: Pictures
    person: Person
    index: int = 0
    support_indices: tuple[int, ...] = ()
    skeleton: Skeleton = COCO17
    support_people: tuple[Person | None, ...] = ()


def still_subjects(stills: Sequence[Still], min_joints: int = 4) -> list[Subject]:
    """All usable people of some pictures."""
    return [Subject(still, person) for still in stills for person in still.people if _usable(person, min_joints)]


def clip_subjects(
    clips: Sequence[Clip], offsets: Sequence[int], every: int = 1, min_joints: int = 6, stride: int = 1
) -> list[Subject]:
    """Tracked people of some clips, on every `every`-th frame that has all its supporting frames; with a `stride` of n
    only every n-th frame of the clip is there: all moves n times as fast."""
    subjects = []
    for clip in clips:
        for index in range(0, len(clip.people), every):
            supports = tuple(index + stride * offset for offset in offsets)
            if any(not 0 <= support < len(clip.people) for support in supports):
                continue
            for person in clip.people[index]:
                if _usable(person, min_joints):
                    same = tuple(_same(clip.people[support], person.track_id) for support in supports)
                    subjects.append(Subject(clip, person, index, supports, support_people=same))
    return subjects


def _same(people: Sequence[Person], track_id: int) -> Person | None:
    found = (p for p in people if track_id >= 0 and p.track_id == track_id and not p.ignore and not p.suspect)
    return next(found, None)


def _usable(person: Person, min_joints: int) -> bool:
    width, height = person.box[2:] - person.box[:2]
    enough = int((person.keypoints[:, 2] > 0).sum()) >= min_joints
    return not person.ignore and not person.suspect and enough and min(width, height) > 8


class Windows(Dataset[dict[str, Any]]):
    """Endless varied windows; sample `i` depends on the seed and `i` alone.

    A sample holds `crops` (T, H, W, 3) uint8 BGR with the key frame first, `transforms` (T, 2, 2, 3) float32 from
    key-crop to that frame's crop pixels, to the same place of the person and of the picture, `points` (J, 2) float32 in
    key-crop pixels, `weights` (J,) float32 0..1, `human` (J,) bool and `side`, the longer side of the person's box in
    key-crop pixels. With `WindowSettings.maps` also `maps` (J, H/4, W/4) float32: the teacher's distribution of each
    joint, all zeros where it has none. With `WindowSettings.all_frames` also `frame_points` (T, J, 2), each in that
    frame's crop, and `frame_weights` (T, J).
    """

    def __init__(
        self, groups: Sequence[tuple[Sequence[Subject], float]], settings: WindowSettings, seed: int = 0
    ) -> None:
        self.groups = [list(subjects) for subjects, _ in groups]
        shares = np.array([share for _, share in groups], np.float64)
        self.shares = shares / shares.sum()
        self.settings = settings
        self.seed = seed
        self.hard_share = 0.0
        self.hard: list[NDArray[np.intp]] = []

    def prefer(self, hard: Sequence[NDArray[np.intp]], share: float) -> None:
        """Draw `share` (0..1) of each group's samples from the subjects with these indices alone."""
        self.hard, self.hard_share = list(hard), share

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        paste = self.settings.paste and rng.random() < self.settings.paste
        other = self._draw(rng) if paste else None
        return make_window(self._draw(rng), self.settings, rng, other)

    def _draw(self, rng: Rng) -> Subject:
        number = int(rng.choice(len(self.groups), p=self.shares))
        group = self.groups[number]
        if self.hard_share and rng.random() < self.hard_share:
            return group[int(rng.choice(self.hard[number]))]
        return group[int(rng.integers(len(group)))]


class ShuffledWindows(Dataset[dict[str, Any]]):
    """Varied windows in epochs: each of N subjects once an epoch, in an order that the seed and the epoch give.

    Sample `i`, of epoch `i // N`, depends on the seed and `i` alone; samples are as those of `Windows`.
    """

    def __init__(self, subjects: Sequence[Subject], settings: WindowSettings, seed: int = 0) -> None:
        self.subjects = subjects
        self.settings = settings
        self.seed = seed
        self._order: tuple[int, NDArray[np.intp]] | None = None

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, place = divmod(index, len(self.subjects))
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self.seed, 1, epoch)).permutation(len(self.subjects))
            self._order = (epoch, order)
        rng = np.random.default_rng((self.seed, 0, index))
        return make_window(self.subjects[int(self._order[1][place])], self.settings, rng)


def make_window(subject: Subject, settings: WindowSettings, rng: Rng, other: Subject | None = None) -> dict[str, Any]:
    """One varied window of a subject, over which part of `other` lies if there is one; see `Windows`."""
    box, flip = subject.person.box, bool(rng.random() < settings.flip)
    side = float(max(box[2:] - box[:2]))
    key = _key_affine(subject, side, settings, rng)
    own = subject.source.moving and settings.own_crops > 0 and rng.random() < settings.own_crops
    affines = [key]
    for place in range(len(settings.offsets)):
        followed = _follow(key, subject, place) if own else key
        affines.append(augment.drift(followed, side, settings.size, settings.crop_drift, rng))
    strength = 0.0 if subject.source.moving else settings.motion
    motions = augment.motions(np.float32(0.5) * (box[:2] + box[2:]), side, settings.offsets, strength, rng)
    boxes = _boxes(subject, motions)
    crops = [
        cut(picture, compose(affine, motion), settings.size)
        for picture, affine, motion in zip(_pictures(subject, settings), affines, motions, strict=True)
    ]
    points = transform(subject.person.keypoints[:, :2], key)
    weights, human = subject.person.keypoints[:, 2].copy(), subject.person.human
    labels = _frame_labels(subject, affines, motions)
    if settings.limb_motion and settings.offsets and not subject.source.moving:
        reach = settings.limb_motion * side * float(np.hypot(*key[0, :2]))
        augment.swing(crops, labels, settings.offsets, reach, rng)
    if other is not None:
        affine = crop_affine(other.person.box, settings.size)
        augment.paste(crops, points, cut(other.source.image(other.index), affine, settings.size), rng)
    if rng.random() < settings.shade:
        augment.shade(crops, rng)
    if settings.degrade and rng.random() < settings.degrade:
        augment.degrade(crops, rng)
    if rng.random() < settings.occlude:
        augment.cover(crops, points, rng)
    if settings.offsets and rng.random() < settings.corrupt_key:
        crops[0] = augment.corrupt(crops[0], points, rng)
    if settings.offsets and rng.random() < settings.born:
        augment.repeat_oldest((crops, affines, labels, boxes), settings.offsets, int(rng.integers(len(crops))))
    maps = teacher_maps(subject.person, key, settings.size) if settings.maps else None
    for index in range(1, len(boxes)):
        boxes[index] = boxes[index] + np.tile(rng.normal(0, settings.box_noise, 2) * side, 2).astype(np.float32)
    places = np.stack([place_in_crop(*known) for known in zip(boxes, affines, strict=True)])
    transforms = between_crops(np.repeat(places[:1], len(places), axis=0), places)
    frames = np.stack(labels)
    if flip:
        mirror = list(subject.skeleton.mirror)
        frames = frames[:, mirror]
        frames[..., 0] = settings.size[1] - frames[..., 0]
        crops, points, transforms = augment.flip(crops, points, transforms, subject.skeleton)
        weights, human = weights[mirror], human[mirror]
        maps = maps[mirror, :, ::-1] if maps is not None else None
    return {
        **({"maps": np.ascontiguousarray(maps)} if maps is not None else {}),
        **({"frame_points": frames[..., :2], "frame_weights": frames[..., 2]} if settings.all_frames else {}),
        "crops": np.stack(crops),
        "transforms": transforms.astype(np.float32),
        "weights": weights.astype(np.float32),
        "points": points.astype(np.float32),
        "human": human,
        "side": np.float32(side * np.hypot(*key[0, :2])),
    }


def _follow(key: NDArray[np.float32], subject: Subject, place: int) -> NDArray[np.float32]:
    """The key frame's crop (2, 3), moved and scaled as the person's box is in a supporting frame."""
    same = subject.support_people[place] if place < len(subject.support_people) else None
    if same is None:
        return key
    now, then = subject.person.box, same.box
    scale = float(max(now[2:] - now[:2]) / max(1.0, float(max(then[2:] - then[:2]))))
    shift = 0.5 * ((now[:2] + now[2:]) - scale * (then[:2] + then[2:]))
    return compose(key, np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], np.float32))


def _boxes(subject: Subject, motions: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """The person's box (4,) in each frame, in its picture's pixels; the key frame's where none is known."""
    box = subject.person.box
    if not subject.source.moving:
        middle = ((box[:2] + box[2:]) / 2).astype(np.float32)
        return [box + np.tile(transform(middle[None], motion)[0] - middle, 2) for motion in motions]
    known = (*subject.support_people, *[None] * len(motions))[: len(motions) - 1]
    return [box, *(box if same is None else same.box for same in known)]


def _frame_labels(
    subject: Subject, affines: Sequence[NDArray[np.float32]], motions: Sequence[NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    """(J, 3) of each frame, x and y in its crop's pixels, and weight."""
    people: Sequence[Person | None] = [subject.person] * len(affines)
    if subject.source.moving:
        known = (*subject.support_people, *[None] * len(affines))
        people = [subject.person, *known[: len(affines) - 1]]
    labels = []
    for person, affine, motion in zip(people, affines, motions, strict=True):
        if person is None:
            labels.append(np.zeros_like(subject.person.keypoints))
            continue
        points = transform(person.keypoints[:, :2], compose(affine, motion))
        labels.append(np.column_stack([points, person.keypoints[:, 2]]).astype(np.float32))
    return labels


def teacher_maps(person: Person, affine: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """The teacher's maps of a person in a crop, each a distribution over its cells.

    Args:
        affine: (2, 3) from picture to crop pixels; size: (height, width) of the crop.

    Returns:
        (17, height / 4, width / 4) float32; maps that the teacher does not have, or that lie outside, are all zeros.
    """
    shape = (size[0] // 4, size[1] // 4)
    if not person.maps:
        return np.zeros((len(person.keypoints), *shape), np.float32)
    packed = unpack_maps(person.maps)
    moved = compose(affine, invert(crop_affine(person.box, MAP_CROP_SIZE))).astype(np.float64)
    moved[:, 2] = moved[:, 2] / 4 + moved[:, :2] @ [0.5, 0.5] - 0.5
    maps = np.stack([cv2.warpAffine(one, moved, shape[::-1], flags=cv2.INTER_LINEAR) for one in packed])
    sums = maps.sum(axis=(1, 2), keepdims=True, dtype=np.float32)
    return np.asarray(maps / np.maximum(sums, 1.0), np.float32)


def _key_affine(subject: Subject, side: float, settings: WindowSettings, rng: Rng) -> NDArray[np.float32]:
    """The key frame's crop: around the person, or half of it, turned, scaled and moved."""
    box = subject.person.box
    rotation = float(rng.uniform(-1, 1) * settings.rotation_deg) if rng.random() < 0.7 else 0.0
    if settings.spin and rng.random() < settings.spin:
        rotation = float(rng.uniform(-180, 180))
    margin = BOX_MARGIN * float(np.exp(rng.uniform(-1, 1) * np.log1p(settings.scale)))
    moved = box + np.tile(rng.uniform(-settings.shift, settings.shift, 2) * side, 2).astype(np.float32)
    if settings.half_body and rng.random() < settings.half_body:
        least = settings.half_body_joints
        half = augment.half_body_box(subject.person.keypoints, subject.skeleton, least, rng)
        moved = moved if half is None else half
    return crop_affine(moved, settings.size, margin, rotation)


def _pictures(subject: Subject, settings: WindowSettings) -> list[Image]:
    key = subject.source.image(subject.index)
    if not subject.source.moving:
        return [key] * (1 + len(settings.offsets))
    supports = subject.support_indices[: len(settings.offsets)]
    return [key, *(subject.source.image(index) for index in supports)]
