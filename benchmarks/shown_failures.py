"""What the bundled models get most wrong on the bundled clip, as two small pictures for the cards.

    python benchmarks/shown_failures.py --teachers ../shared/data/teachers [--out docs/images]

The validation pictures are not ours to show (see `worst_cases.py`); the clip's licence allows it (NOTICE). It has no
labels: wrong is what differs most from the teacher, who may be wrong as well. Writes failures-lite.jpg (limbs: lite
from five frames; rings: MoveNet Thunder at the same box) and failures-person.jpg (green: found as YOLOX-nano does; red:
found by ours alone; blue: by YOLOX-nano alone), each of 120 kB at most.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
from extras import needs
from numpy.typing import NDArray

import streampose
from streampose.errors import OutputError
from streampose.geometry import box_iou, crop_affine, cut, transform
from streampose.people import PersonDetector
from streampose.skeleton import COCO17

with needs("train"):
    from streampose.train.sheet import draw_sheet
    from streampose.train.teachers import Thunder, YoloxNano

CROPS, PICTURES = 12, 6
APART = 6
"""Frames between two pictures of the same person, so that they are not all of one moment."""
MOST_BYTES = 120_000
CROP_SIZE = (256, 192)
PICTURE_HEIGHT_PX = 240
SURE = 0.3
BOTH, OURS, THEIRS = (80, 220, 80), (60, 60, 255), (255, 120, 40)
Image = NDArray[np.uint8]


def read_clip() -> list[Image]:
    capture, frames = cv2.VideoCapture(str(files("streampose") / "demo" / "demo.mp4")), []
    while True:
        there, frame = capture.read()
        if not there:
            return frames
        frames.append(np.asarray(frame, np.uint8))


def spread(rated: list[tuple[float, int, int]], count: int) -> list[tuple[int, int]]:
    """The worst (frame, person), worst first, no two of one person within a few frames."""
    chosen: list[tuple[int, int]] = []
    for _, frame, person in sorted(rated, key=lambda case: -case[0]):
        if len(chosen) < count and all(p != person or abs(f - frame) >= APART for f, p in chosen):
            chosen.append((frame, person))
    return chosen


def pose_failures(frames: list[Image], thunder: Thunder, model: str, detector: str) -> Image:
    found = {}
    rated = []
    for index, result in enumerate(streampose.run("demo", model=model, detector=detector)):
        for person in result.people:
            theirs = thunder.keypoints(frames[index], person.box)
            sure = theirs[:, 2] > SURE
            if sure.any():
                side = float((person.box[2:] - person.box[:2]).max())
                off = np.linalg.norm(person.keypoints[sure, :2] - theirs[sure, :2], axis=1) / side
                rated.append((float(np.clip(off, 0, 0.5).mean()), index, person.track_id))
                found[index, person.track_id] = person, theirs
    crops, ours, rings = [], [], []
    for place in spread(rated, CROPS):
        person, theirs = found[place]
        affine = crop_affine(person.box, CROP_SIZE)
        crops.append(cut(frames[place[0]], affine, CROP_SIZE))
        for points, kept in ((person.keypoints, ours), (theirs, rings)):
            kept.append(np.column_stack([transform(points[:, :2], affine), points[:, 2]]).astype(np.float32))
        rings[-1][:, 2] = rings[-1][:, 2] > SURE
    return draw_sheet(crops, np.stack(ours), np.stack(rings), COCO17)


def person_failures(frames: list[Image], yolox: YoloxNano, ours: PersonDetector) -> Image:
    answers, rated = [], []
    for index, frame in enumerate(frames):
        mine, theirs = ours.detect(frame)[0], yolox.detect(frame, yolox.threshold)[0]
        overlap = box_iou(mine, theirs) >= 0.5
        seen, known = overlap.any(axis=1), overlap.any(axis=0)
        answers.append((mine, seen, theirs, known))
        rated.append((float((~seen).sum() + (~known).sum()), index, 0))
    tiles = []
    for index, _ in spread(rated, PICTURES):
        mine, seen, theirs, known = answers[index]
        tile = frames[index].copy()
        for box, right in zip(mine, seen, strict=True):
            _draw(tile, box, BOTH if right else OURS)
        for box in theirs[~known]:
            _draw(tile, box, THEIRS)
        scale = PICTURE_HEIGHT_PX / tile.shape[0]
        tiles.append(cv2.resize(tile, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    return np.asarray(np.concatenate(tiles, axis=1), np.uint8)


def _draw(tile: Image, box: NDArray[np.float32], colour: tuple[int, int, int]) -> None:
    x1, y1, x2, y2 = (int(side) for side in box)
    cv2.rectangle(tile, (x1, y1), (x2, y2), colour, 3)


def write(path: Path, picture: Image) -> None:
    for quality in range(90, 20, -10):
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(data) <= MOST_BYTES:
            path.write_bytes(data)
            print(f"{path}: {len(data)} bytes")
            return
    raise OutputError(f"{path} would have more than {MOST_BYTES} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=Path, required=True)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--detector", default="person")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    frames = read_clip()
    poses = pose_failures(frames, Thunder(options.teachers), options.model, options.detector)
    write(options.out / "failures-lite.jpg", poses)
    boxes = person_failures(frames, YoloxNano(options.teachers), PersonDetector(options.detector))
    write(options.out / "failures-person.jpg", boxes)


if __name__ == "__main__":
    main()
