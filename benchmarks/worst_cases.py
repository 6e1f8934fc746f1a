"""The people that a pose network gets most wrong and the pictures that a detector gets most wrong, as contact sheets.

    python benchmarks/worst_cases.py --data ../shared/data [--model lite] [--detector person] [--out out]

Writes worst-pose.png (crops; rings are human labels) and worst-person.png (red: found, nobody there; blue: missed;
green: right). The validation pictures are not ours to pass on: look at the sheets, do not publish them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from extras import needs
from numpy.typing import NDArray

from streampose.engines import load_engine, whole_pictures
from streampose.people import PersonDetector
from streampose.skeleton import COCO17

with needs("train"):
    from streampose.train.pack import read_stills
    from streampose.train.person import validation_scenes
    from streampose.train.person_score import Scene, match
    from streampose.train.pose import human_subjects
    from streampose.train.sheet import draw_sheet
    from streampose.train.windows import WindowSettings, make_window

COUNT = 50
TILE_PX = 256
LEAST_HEIGHT_PX = 60.0
RIGHT, WRONG, MISSED = (80, 220, 80), (60, 60, 255), (255, 120, 40)


def worst_poses(model: str, data: Path, count: int) -> NDArray[np.uint8]:
    """Crops of those whose human-labelled joints are farthest off, worst first; five frames of a still picture."""
    engine = load_engine(model)
    settings = WindowSettings.for_evaluation(engine.manifest.input_size, engine.manifest.offsets, 0.0)
    rated = []
    for index, subject in enumerate(human_subjects(read_stills(data, "val", ["lspet"]))):
        window = make_window(subject, settings, np.random.default_rng((7, index)))
        found = engine.fuse([engine.encode(whole_pictures(window["crops"]))], window["transforms"][None])[0]
        off = np.linalg.norm(found[:, :2] - window["points"], axis=1) / window["side"]
        labels = np.column_stack([window["points"], window["human"]])
        rated.append((float(np.clip(off[window["human"]], 0, 0.5).mean()), window["crops"][0], found, labels))
    rated.sort(key=lambda case: -case[0])
    worst = rated[:count]
    return draw_sheet([w[1] for w in worst], np.stack([w[2] for w in worst]), np.stack([w[3] for w in worst]), COCO17)


def worst_pictures(name: str, data: Path, count: int) -> NDArray[np.uint8]:
    """Pictures with most people missed or found where nobody is, worst first."""
    detector = PersonDetector(name)
    rated = []
    for scene in validation_scenes(data):
        boxes, scores = detector.detect(scene.image())
        verdict, people = match(boxes, scores, scene.people, LEAST_HEIGHT_PX)
        faults = int((verdict == 0).sum()) + people - int((verdict == 1).sum())
        rated.append((faults, scene, boxes, verdict))
    rated.sort(key=lambda case: -case[0])
    tiles = [_tile(scene, boxes, verdict) for _, scene, boxes, verdict in rated[: count - count % 10]]
    return np.concatenate([np.concatenate(tiles[row : row + 10], axis=1) for row in range(0, len(tiles), 10)])


def _tile(scene: Scene, boxes: NDArray[np.float32], verdict: NDArray[np.float32]) -> NDArray[np.uint8]:
    image = scene.image()
    scale = TILE_PX / max(image.shape[:2])
    tile = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    tile[: small.shape[0], : small.shape[1]] = small[:TILE_PX, :TILE_PX]
    for person in scene.people:
        if not person.ignore and person.box[3] - person.box[1] >= LEAST_HEIGHT_PX:
            _draw(tile, person.box * scale, MISSED)
    for box, right in zip(boxes, verdict, strict=True):
        if right >= 0:
            _draw(tile, box * scale, RIGHT if right else WRONG)
    return tile


def _draw(tile: NDArray[np.uint8], box: NDArray[np.float32], colour: tuple[int, int, int]) -> None:
    x1, y1, x2, y2 = (int(side) for side in box)
    cv2.rectangle(tile, (x1, y1), (x2, y2), colour, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--detector", default="person")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--count", type=int, default=COUNT)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(options.out / "worst-pose.png"), worst_poses(options.model, options.data, options.count))
    cv2.imwrite(str(options.out / "worst-person.png"), worst_pictures(options.detector, options.data, options.count))
    print(f"{options.out / 'worst-pose.png'}\n{options.out / 'worst-person.png'}")


if __name__ == "__main__":
    main()
