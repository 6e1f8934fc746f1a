"""Ids through crossings and short occlusions: the tracker alone, on known boxes seen badly, and the whole pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import streampose
from streampose.geometry import box_iou
from streampose.people import suppress
from streampose.tracker import Tracker
from streampose.train.crossings import FPS, KINDS, SIZE, Crossing, read_crossings, shaken
from streampose.train.pack import Person
from streampose.train.progress import tracked
from streampose.train.track_eval import accumulate, summarise_tracks
from streampose.types import Pose, PoseFrame

PAIRS_ALONE, PAIRS_WHOLE = 30, 4
BOX_NOISE = 0.03
"""Standard deviation of each side of a detection, in heights."""
POSE_NOISE = 0.02
LEAST_SCORE = 0.42
MISSED = 0.05
"""How often a person in plain view is not detected."""
HIDDEN_JOINT = 0.35
"""What is left of the score of a joint that somebody else covers."""
Floats = NDArray[np.float32]


def evaluate_crossings(
    data: Path,
    model: str = "lite",
    detector: str = "person",
    detect_every: int = 3,
    pairs: tuple[int, int] = (PAIRS_ALONE, PAIRS_WHOLE),
) -> dict[str, Any]:
    """IDF1, MOTA and identity switches on sequences in which real walkers pass one another (see `train.crossings`).

    Args:
        pairs: how many sequences of each kind the tracker alone follows, and how many the whole pipeline.

    Returns:
        "alone": the tracker given known boxes with noise, missed while somebody is hidden, and poses that go to who is
        in front; "moving_camera": the same before a camera that sways; "pipeline": detector, pose network and tracker
        on the pictures. Each as `summarise_tracks`, with the figures of each kind of sequence in "kinds".

    Raises:
        UsageError: the pack has no such clip. ModelError: see `streampose.run`.
    """
    alone = read_crossings(data, pairs[0])
    figures: dict[str, Any] = {"detect_every": detect_every}
    for name, title, crossings in (
        ("alone", "the tracker alone", alone),
        ("moving_camera", "before a moving camera", [shaken(crossing) for crossing in alone]),
    ):
        scores = [_alone(crossing, detect_every) for crossing in tracked(crossings, title)]
        figures[name] = _summarise(crossings, scores)
    whole = read_crossings(data, pairs[1]) if pairs[1] else []
    if whole:
        scores = [_whole(crossing, model, detector, detect_every) for crossing in tracked(whole, "the pipeline")]
        figures["pipeline"] = _summarise(whole, scores)
    return figures


def _summarise(crossings: Sequence[Crossing], scores: Sequence[Any]) -> dict[str, Any]:
    names = [crossing.name for crossing in crossings]
    kinds = {}
    for kind in KINDS:
        chosen = [place for place, name in enumerate(names) if name.startswith(kind)]
        kinds[kind] = summarise_tracks([names[i] for i in chosen], [scores[i] for i in chosen])["all"]
    return {"sequences": len(names), "all": summarise_tracks(names, scores)["all"], "kinds": kinds}


def _whole(crossing: Crossing, model: str, detector: str, detect_every: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        for index in range(len(crossing)):
            cv2.imwrite(f"{folder}/{index:04d}.png", crossing.image(index), [cv2.IMWRITE_PNG_COMPRESSION, 1])
        frames = streampose.run(folder, model=model, detector=detector, detect_every=detect_every)
        return accumulate([crossing.people(index) for index in range(len(crossing))], frames)


def _alone(crossing: Crossing, detect_every: int) -> Any:
    people = [crossing.people(index) for index in range(len(crossing))]
    return accumulate(people, follow(crossing, Tracker(), detect_every))


def follow(crossing: Crossing, tracker: Tracker, detect_every: int, seed: int = 0) -> Iterator[PoseFrame]:
    """What a tracker makes of a sequence whose detections and poses are made from the labels."""
    rng = np.random.default_rng(seed)
    since = detect_every
    for index in range(len(crossing)):
        people, visible, pts_s = crossing.people(index), crossing.visible(index), index / FPS
        since += 1
        detections = None
        if since >= detect_every or tracker.undecided:
            detections, since = detect(people, visible, rng), 0
        tracks = tracker.advance(pts_s, SIZE, detections, crossing.image(index))
        poses = [estimate(track.crop_box, people, visible, rng) for track in tracks]
        yield _frame(crossing.name, index, tracker.settle(pts_s, tracks, poses))


def detect(people: Sequence[Person], visible: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Boxes (N, 4) and scores (N,) as a detector finds them: with noise, weak or missed where somebody is hidden."""
    expected = 0.25 + 0.6 * visible + rng.normal(0, 0.05, len(people))
    boxes = np.stack([p.box + rng.normal(0, BOX_NOISE * (p.box[3] - p.box[1]), 4) for p in people]).astype(np.float32)
    seen = (expected >= LEAST_SCORE) & (rng.random(len(people)) >= MISSED)
    boxes, scores = boxes[seen], np.clip(expected[seen], 0, 1).astype(np.float32)
    kept = suppress(boxes, scores)
    return boxes[kept], scores[kept]


def estimate(crop_box: Floats, people: Sequence[Person], visible: Floats, rng: np.random.Generator) -> Floats:
    """Keypoints (17, 3) as a pose network answers on a crop: of who fills it best, the more of them is to be seen."""
    overlap = box_iou(crop_box[None], np.stack([p.box for p in people]))[0] * (0.2 + 0.8 * visible)
    place = int(np.argmax(overlap))
    points = people[place].keypoints.copy()
    height = people[place].box[3] - people[place].box[1]
    points[:, :2] += rng.normal(0, POSE_NOISE * height, (17, 2))
    sure = HIDDEN_JOINT + (1 - HIDDEN_JOINT) * visible[place] if overlap[place] > 0.1 else 0.1
    points[:, 2] = np.clip(np.where(points[:, 2] > 0, 0.8, 0.3) * sure + rng.normal(0, 0.05, 17), 0, 1)
    return points


def _frame(name: str, index: int, poses: tuple[Pose, ...]) -> PoseFrame:
    height, width = SIZE
    return PoseFrame(
        source=name, epoch=0, frame_index=index, pts_s=index / FPS, captured_ns=0, published_ns=0,
        width=width, height=height, skeleton="coco17", dropped=0, people=poses,
    )  # fmt: skip
