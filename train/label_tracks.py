"""People of a clip's labels over time: tracks found where there are none, joints smoothed along them."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from streampose.skeleton import COCO17
from streampose.train.pose_tracks import GreedyTracker
from streampose.train.temporal import smooth_track
from streampose.train.trust import Annotation

LEAST_FRAMES = 5
"""People seen in fewer frames are regions that say nothing."""


def track_people(labels: dict[str, Any], counts: Counter[str]) -> None:
    """Give the people of a clip's frames `track_id`s; those of short tracks become ignored regions."""
    tracker = GreedyTracker(COCO17)
    tracks: dict[int, list[Annotation]] = defaultdict(list)
    for people in _frames(labels):
        keypoints = np.stack([_keypoints(p) for p in people]) if people else np.zeros((0, 17, 3), np.float32)
        keypoints[..., 2] = np.where(keypoints[..., 2] > 0, keypoints[..., 2], -1)
        boxes = np.array([_xyxy(p) for p in people], np.float32).reshape(-1, 4)
        for person, track in zip(people, tracker.update(keypoints, boxes), strict=True):
            person["track_id"] = track
            tracks[track].append(person)
    for people in tracks.values():
        if len(people) < LEAST_FRAMES:
            counts["people: short track"] += len(people)
            for person in people:
                person.update(iscrowd=1, track_id=-1, ignore_reason="short track")


def smooth_clip(labels: dict[str, Any], counts: Counter[str]) -> None:
    """Smooth the joints of each track, run by run of consecutive frames; outliers lose their label."""
    tracks: dict[int, list[tuple[int, Annotation]]] = defaultdict(list)
    for frame, people in enumerate(_frames(labels)):
        for person in people:
            if person.get("track_id", -1) >= 0 and not person.get("suspect"):
                tracks[person["track_id"]].append((frame, person))
    for members in tracks.values():
        run: list[Annotation] = []
        last = -2
        for frame, person in members:
            if frame != last + 1:
                _smooth_run(run, counts)
                run = []
            run.append(person)
            last = frame
        _smooth_run(run, counts)


def _smooth_run(run: list[Annotation], counts: Counter[str]) -> None:
    if not run:
        return
    sides = np.array([max(person["bbox"][2:]) for person in run], np.float32)
    smooth, outliers = smooth_track(np.stack([_keypoints(person) for person in run]), sides)
    counts["joints of clips: outliers in time"] += int(outliers.sum())
    for person, keypoints in zip(run, smooth, strict=True):
        seen = keypoints[:, 2] > 0
        labelled = np.column_stack([np.where(seen[:, None], keypoints[:, :2], 0), np.where(seen, 2, 0)])
        person["keypoints"] = [round(float(value), 2) for value in labelled.ravel()]
        person["kpt_score"] = [round(float(value), 3) for value in keypoints[:, 2]]
        person["num_keypoints"] = int(seen.sum())


def _frames(labels: dict[str, Any]) -> list[list[Annotation]]:
    """The people of each frame that are no ignored regions."""
    by_frame: dict[int, list[Annotation]] = defaultdict(list)
    for annotation in labels["annotations"]:
        if not annotation.get("iscrowd"):
            by_frame[annotation["image_id"]].append(annotation)
    return [by_frame[image["id"]] for image in labels["images"]]


def _keypoints(person: Annotation) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(17, 3) x, y, weight."""
    keypoints = np.asarray(person["keypoints"], np.float32).reshape(17, 3)
    keypoints[:, 2] = np.where(keypoints[:, 2] > 0, np.asarray(person["kpt_score"], np.float32), 0)
    return keypoints


def _xyxy(person: Annotation) -> list[float]:
    x, y, width, height = person["bbox"]
    return [x, y, x + width, y + height]
