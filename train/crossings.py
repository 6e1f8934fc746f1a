"""People who pass in front of one another, with boxes that are known: real walkers of a clip, each cut out against the
clip's own empty background, put together on paths that cross."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from streampose.boxes import shifted, visible_share
from streampose.errors import UsageError
from streampose.train.pack import Clip, Person, read_clip

CLIP = "opencv_vtest_first400"
"""A resting camera over people who walk, ten frames a second."""
KINDS = ("crossing", "overtaking", "turning back", "behind a wall")
FPS = 25.0
"""As the reader of picture folders takes them."""
SIZE = (480, 640)
HEIGHT_PX = 150.0
LONGEST_S = 4.0
SWAY_PX, PAN_PX_S = 40.0, 25.0
LEAST_VISIBLE = 0.3
"""People of whom less is to be seen count neither as found nor as missed."""
_LEAST_SPEED = 0.3
_LEAST_FRAMES = 25
_WALL = 0.5
"""Width of the wall, in heights of a person."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Walk:
    """One walker whom nobody touches, on consecutive frames.

    Attributes:
        boxes: (F, 4) xyxy in the clip's pixels; keypoints: (F, 17, 3).
        cutouts: of each frame BGRA uint8 of the box, grown to whole pixels; empty where pictures were not asked for.
        fps: of the clip.
    """

    boxes: Floats
    keypoints: Floats
    cutouts: tuple[NDArray[np.uint8], ...]
    fps: float

    @property
    def seconds(self) -> float:
        return (len(self.boxes) - 1) / self.fps


@dataclass(frozen=True, slots=True)
class Actor:
    """A walk on a scene's canvas, frame by frame.

    Attributes:
        boxes: (T, 4) xyxy canvas pixels; keypoints: (T, 17, 3).
        frames: (T,) of the walk; mirrored: whether left and right of its cutouts are exchanged.
    """

    walk: Walk
    boxes: Floats
    keypoints: Floats
    frames: NDArray[np.intp]
    mirrored: bool


@dataclass(frozen=True, slots=True)
class Crossing:
    """A sequence of `FPS` frames a second.

    Attributes:
        actors: from the back to the front.
        wall: (4,) a box that hides whoever is behind it, or None.
        background: (H, W, 3) uint8, what is behind the canvas: more than it on all sides where the camera moves.
        camera: (T, 2) whole pixels by which the camera has moved, right and down; None where it rests. Actors and wall
            are where they are seen by one that rests.
    """

    name: str
    actors: tuple[Actor, ...]
    wall: Floats | None
    background: NDArray[np.uint8]
    camera: NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return len(self.actors[0].boxes)

    def visible(self, index: int) -> Floats:
        """(A,) how much of each actor's box nothing in front of it covers, 0..1."""
        boxes = [actor.boxes[index] for actor in self.actors]
        return np.array([_free(box, [*boxes[place + 1 :], *self._walls()]) for place, box in enumerate(boxes)])

    def people(self, index: int) -> tuple[Person, ...]:
        """The labels of a frame; who is hidden is to be ignored."""
        people = []
        for number, (actor, visible) in enumerate(zip(self.actors, self.visible(index), strict=True)):
            keypoints = actor.keypoints[index].copy()
            keypoints[:, :2] -= self._moved(index)
            box = self._seen(actor.boxes[index], index)
            ignore = bool(visible < LEAST_VISIBLE) or visible_share(box, SIZE) < LEAST_VISIBLE
            people.append(Person(box, keypoints, np.zeros(17, np.bool_), False, ignore, number))
        return tuple(people)

    def image(self, index: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 BGR."""
        left, top = (np.array(self.background.shape[1::-1]) - SIZE[::-1]) // 2 + self._moved(index)
        background = self.background[top : top + SIZE[0], left : left + SIZE[1]]
        canvas = background.astype(np.float32)
        for actor in self.actors:
            cutout = actor.walk.cutouts[actor.frames[index]]
            _paste(canvas, cutout[:, ::-1] if actor.mirrored else cutout, self._seen(actor.boxes[index], index))
        for wall in self._walls():
            x1, _, x2, _ = np.maximum(self._seen(wall, index), 0).astype(int)
            canvas[:, x1:x2] = background[:, x1 : x1 + 1]
        return canvas.astype(np.uint8)

    def _moved(self, index: int) -> NDArray[np.intp]:
        return np.zeros(2, np.intp) if self.camera is None else self.camera[index]

    def _seen(self, box: Floats, index: int) -> Floats:
        """Where a box is in the picture of a frame."""
        return shifted(box, -self._moved(index).astype(np.float32))

    def _walls(self) -> list[Floats]:
        return [] if self.wall is None else [self.wall]


def read_crossings(data: Path, pairs: int, seed: int = 0) -> list[Crossing]:
    """Sequences of each of `KINDS`, of as many pairs of walkers.

    Args:
        data: a folder in the pack's layout.

    Raises:
        UsageError: the pack has no such clip.
    """
    clip = read_clip(data, CLIP)
    background = np.median(np.stack([clip.image(i) for i in range(0, len(clip.jpegs), 8)]), axis=0).astype(np.uint8)
    walks = find_walks(clip, background)
    if len(walks) < 2:
        raise UsageError(f"{data}: too few people of {CLIP} walk alone")
    canvas = cv2.resize(background, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    rng = np.random.default_rng(seed)
    return [
        compose(f"{kind} {number}", kind, [walks[i] for i in rng.permutation(len(walks))[:2]], canvas, rng)
        for kind in KINDS
        for number in range(pairs)
    ]


def shaken(crossing: Crossing, seed: int = 0) -> Crossing:
    """The same as a camera shows it that somebody holds while turning: it sways by some `SWAY_PX` around a slow pan."""
    rng = np.random.default_rng([seed, *crossing.name.encode()])
    times = np.arange(len(crossing)) / FPS
    ways = []
    for _ in range(2):
        sway = (
            rng.uniform(0.3, 1, 2)
            * SWAY_PX
            * np.sin(2 * np.pi * rng.uniform((0.4, 1.2), (0.8, 2.0)) * times[:, None] + rng.uniform(0, 2 * np.pi, 2))
        )
        ways.append(sway.sum(axis=1) * 0.5 + rng.uniform(-PAN_PX_S, PAN_PX_S) * (times - times.mean()))
    return replace(crossing, camera=np.rint(np.stack(ways, axis=1)).astype(np.intp))


def find_walks(clip: Clip, background: NDArray[np.uint8] | None) -> list[Walk]:
    """The people of a clip who walk for a while with nobody near; with cutouts where there is a background."""
    runs: list[list[tuple[int, Person]]] = []
    last: dict[int, list[tuple[int, Person]]] = {}
    size = clip.image(0).shape[:2]
    for frame, people in enumerate(clip.people):
        for person in people:
            if person.ignore or person.track_id < 0 or _crowded(person, people) or _cut_off(person, size):
                continue
            run = last.get(person.track_id)
            if run is None or run[-1][0] != frame - 1:
                run = last[person.track_id] = []
                runs.append(run)
            run.append((frame, person))
    walks = []
    for run in runs:
        boxes = np.stack([person.box for _, person in run])
        way = float(np.linalg.norm((boxes[-1, :2] + boxes[-1, 2:] - boxes[0, :2] - boxes[0, 2:]) / 2))
        height = float((boxes[:, 3] - boxes[:, 1]).mean())
        if len(run) < _LEAST_FRAMES or way / height / len(run) * clip.fps < _LEAST_SPEED:
            continue
        cutouts = [_cut(clip.image(frame), background, p.box) for frame, p in run] if background is not None else []
        keypoints = _filled(np.stack([person.keypoints for _, person in run]), boxes)
        walks.append(Walk(boxes, keypoints, tuple(cutouts), clip.fps))
    return walks


def _filled(keypoints: Floats, boxes: Floats) -> Floats:
    """(F, 17, 3) with joints that are not labelled where the frames around have them in the box, else in its middle;
    their weight stays 0."""
    low, size = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    inside = (keypoints[..., :2] - low) / size
    frames = np.arange(len(boxes))
    for joint in range(keypoints.shape[1]):
        there = keypoints[:, joint, 2] > 0
        for axis in (0, 1):
            known = inside[there, joint, axis]
            inside[:, joint, axis] = np.interp(frames, frames[there], known) if there.any() else 0.5
    return np.concatenate([inside * size + low, keypoints[..., 2:]], axis=2).astype(np.float32)


def _crowded(person: Person, people: Sequence[Person]) -> bool:
    """Whether somebody, or a region to ignore, is nearer than a twentieth of the person's height."""
    margin = 0.05 * (person.box[3] - person.box[1])
    low, high = person.box[:2] - margin, person.box[2:] + margin
    return any((p.box[:2] < high).all() and (p.box[2:] > low).all() for p in people if p is not person)


def _cut_off(person: Person, size: tuple[int, ...]) -> bool:
    """Whether the edge of a picture of (height, width) is within two pixels."""
    return bool((person.box[:2] < 2).any() or (person.box[2:] > np.array([size[1], size[0]]) - 2).any())


def _cut(image: NDArray[np.uint8], background: NDArray[np.uint8], box: Floats) -> NDArray[np.uint8]:
    """BGRA of a box: opaque where the picture differs from the empty background."""
    height, width = image.shape[:2]
    x1, y1 = np.maximum(np.floor(box[:2]).astype(int), 0)
    x2, y2 = np.minimum(np.ceil(box[2:]).astype(int), (width, height))
    part, empty = image[y1:y2, x1:x2], background[y1:y2, x1:x2]
    mask = (cv2.absdiff(part, empty).max(axis=2) > 24).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    alpha = cv2.GaussianBlur(mask * 255, (3, 3), 0)
    return np.dstack([part, alpha])


def compose(
    name: str, kind: str, walks: Sequence[Walk], canvas: NDArray[np.uint8], rng: np.random.Generator
) -> Crossing:
    """A sequence of one of `KINDS`, of two walks, the second of which is in front."""
    seconds = min(LONGEST_S, *(walk.seconds for walk in walks))
    times = np.arange(int(seconds * FPS)) / FPS
    middle = len(times) // 2
    meeting = np.array([SIZE[1] / 2 + rng.uniform(-30, 30), SIZE[0] / 2 + rng.uniform(-20, 20)])
    actors = []
    for place, walk in enumerate(walks):
        rightward = walk.boxes[-1, 0] > walk.boxes[0, 0]
        wanted = place == 0 or kind in ("overtaking", "behind a wall")
        at = np.where(times > times[middle], times[-1] - times, times) if kind == "turning back" else times
        if kind == "overtaking" and place == 0:
            at = at / 2
        actors.append(_act(walk, at, bool(rightward != wanted), np.add(meeting, [0, 6 * place]), middle))
    if kind != "behind a wall":
        return Crossing(name, tuple(actors), None, canvas)
    half = HEIGHT_PX * _WALL / 2
    wall = np.array([meeting[0] - half, 0, meeting[0] + half, SIZE[0]], np.float32)
    return Crossing(name, (actors[0],), wall, canvas)


def _act(walk: Walk, times: NDArray[np.float64], mirrored: bool, meeting: NDArray[np.float64], middle: int) -> Actor:
    """A walk at some of its times, `HEIGHT_PX` tall on the average, with its centre at `meeting` at index `middle`."""
    place = np.clip(times * walk.fps, 0, len(walk.boxes) - 1)
    boxes = np.stack([np.interp(place, np.arange(len(walk.boxes)), side) for side in walk.boxes.T], axis=1)
    frames = np.rint(place).astype(np.intp)
    # joints go along with the box: those of the nearest frame, moved by what lies between
    keypoints = walk.keypoints[frames].astype(np.float64)
    keypoints[..., :2] += ((boxes - walk.boxes[frames]).reshape(-1, 2, 2).mean(axis=1))[:, None]
    scale = HEIGHT_PX / float((walk.boxes[:, 3] - walk.boxes[:, 1]).mean())
    if mirrored:
        boxes[:, [0, 2]] = -boxes[:, [2, 0]]
        keypoints[..., 0] *= -1
    shift = meeting - scale * (boxes[middle, :2] + boxes[middle, 2:]) / 2
    keypoints[..., :2] = scale * keypoints[..., :2] + shift
    boxes = scale * boxes + np.tile(shift, 2)
    return Actor(walk, boxes.astype(np.float32), keypoints.astype(np.float32), frames, mirrored)


def _free(box: Floats, fronts: Sequence[Floats]) -> float:
    """The share of a box that no other covers, on a grid of 24 x 24 points."""
    x, y = (np.linspace(box[a] + 0.5, box[a + 2] - 0.5, 24) for a in (0, 1))
    covered = np.zeros((24, 24), np.bool_)
    for front in fronts:
        covered |= ((y >= front[1]) & (y <= front[3]))[:, None] & ((x >= front[0]) & (x <= front[2]))
    return float(1 - covered.mean())


def _paste(canvas: Floats, cutout: NDArray[np.uint8], box: Floats) -> None:
    """Blend a BGRA picture into a canvas, at a box to parts of a pixel."""
    height, width = cutout.shape[:2]
    x1, y1 = np.maximum(np.floor(box[:2]).astype(int) - 1, 0)
    x2, y2 = np.minimum(np.ceil(box[2:]).astype(int) + 1, (canvas.shape[1], canvas.shape[0]))
    if x2 <= x1 or y2 <= y1:
        return
    scale = (box[2:] - box[:2]) / [width, height]
    left, top = box[:2] - [x1, y1] + scale / 2 - 0.5
    affine = np.array([[scale[0], 0, left], [0, scale[1], top]])
    warped = cv2.warpAffine(cutout, affine, (int(x2 - x1), int(y2 - y1)), flags=cv2.INTER_LINEAR)
    alpha = warped[..., 3:].astype(np.float32) / 255
    part = canvas[y1:y2, x1:x2]
    part *= 1 - alpha
    part += alpha * warped[..., :3]
