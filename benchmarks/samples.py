"""How many training windows a second the readers make: a PoseTrack-like set is written, then read as training does.

    python benchmarks/samples.py [--workers 0 1 2] [--windows 200]

Windows of five frames, 384x288, out of 1280x720 JPEG files, fully augmented, shuffled over all sequences, so that
hardly any frame is in a cache. Prints windows a second for each number of worker processes, what each step takes, and
how many cores would keep an H100 busy, as JSON. The files lie in the operating system's cache, as after an epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from extras import needs

from streampose.geometry import crop_affine, cut
from streampose.skeleton import POSETRACK

with needs("train"):
    from torch.utils.data import DataLoader

    from streampose.train.datasets import read_subjects
    from streampose.train.windows import ShuffledWindows, Subject, WindowSettings

SIZE, OFFSETS, PICTURE = (384, 288), (-2, -1, 1, 2), (720, 1280)
SEQUENCES, FRAMES, PEOPLE = 12, 20, 3
A100_FRAMES_PER_S = 309.0
"""HRNet-W48 at 384x288 on an A100, as published (ViTPose, arXiv 2204.12484, table 2)."""
H100_TO_A100 = 3.2
"""Dense bf16 on the data sheets, 990 to 312 TFLOPS: more than a network gains."""


def write_dataset(root: Path, rng: np.random.Generator) -> None:
    """PoseTrack18's layout, with pictures as detailed as photographs (about 200 kB each)."""
    names = list(POSETRACK.joints)
    for number in range(SEQUENCES):
        name = f"{number:06d}_bench_train"
        folder = root / "images/train" / name
        folder.mkdir(parents=True)
        coarse = rng.integers(0, 255, (PICTURE[0] // 8, PICTURE[1] // 8, 3)).astype(np.uint8)
        picture = cv2.resize(coarse, PICTURE[::-1], interpolation=cv2.INTER_CUBIC)
        images, people = [], []
        for index in range(FRAMES):
            noisy = np.clip(np.roll(picture, 3 * index, 1) + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / f"{index:06d}.jpg"), noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])
            image = number * 1000 + index
            images.append({"id": image, "file_name": f"images/train/{name}/{index:06d}.jpg", "is_labeled": True})
            for track in range(PEOPLE):
                box = [80 + 380 * track, 120, 180, 420]
                points = np.column_stack([rng.uniform(box[:2], np.add(box[:2], box[2:]), (17, 2)), np.ones(17)])
                entry = {"image_id": image, "id": 10 * image + track, "track_id": track, "category_id": 1, "bbox": box}
                people.append(entry | {"keypoints": points.ravel().tolist()})
        labels = root / "annotations/train" / f"{name}.json"
        labels.parent.mkdir(parents=True, exist_ok=True)
        categories = [{"id": 1, "name": "person", "keypoints": names}]
        labels.write_text(json.dumps({"images": images, "annotations": people, "categories": categories}))


def windows_a_second(subjects: Sequence[Subject], settings: WindowSettings, workers: int, count: int) -> float:
    """As the training loop reads: batches of 8, the first ones not timed."""
    warm, batch = 4, 8
    loader: DataLoader[dict[str, Any]] = DataLoader(
        ShuffledWindows(subjects, settings, workers), batch, sampler=range((count // batch + warm) * batch),
        num_workers=workers, prefetch_factor=2 if workers else None,
    )  # fmt: skip
    batches = iter(loader)
    for _ in range(warm):
        next(batches)
    start = time.perf_counter()
    seen = sum(len(batch["points"]) for batch in batches)
    return seen / (time.perf_counter() - start)


def step_ms(subjects: Sequence[Subject], settings: WindowSettings, root: Path) -> dict[str, float]:
    """Medians, in ms a window: decoding five frames, cutting five crops, all else."""
    encoded = next((root / "images").rglob("*.jpg")).read_bytes()
    picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    affine = crop_affine(subjects[0].person.box, SIZE, rotation_deg=20)
    windows = ShuffledWindows(subjects, settings, 7)
    times: dict[str, list[float]] = {"decode": [], "cut": [], "window": []}
    for index in range(30):
        for name, job in (
            ("decode", lambda: [cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) for _ in range(5)]),
            ("cut", lambda: [cut(np.asarray(picture, np.uint8), affine, SIZE) for _ in range(5)]),
            ("window", lambda index=index: windows[index]),
        ):
            start = time.perf_counter()
            job()
            times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return medians | {"augment_and_rest": medians["window"] - medians["decode"] - medians["cut"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--windows", type=int, default=200)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_dataset(root, np.random.default_rng(0))
        subjects = read_subjects("posetrack18", root, "train", OFFSETS)
        settings = WindowSettings(SIZE, OFFSETS, rotation_deg=45, scale=0.35, half_body=0.3, corrupt_key=0.5)
        kilobytes = statistics.mean(p.stat().st_size for p in (root / "images").rglob("*.jpg")) / 1000
        speeds = {str(n): windows_a_second(subjects, settings, n, options.windows) for n in options.workers}
        steps = step_ms(subjects, settings, root)
    wanted = A100_FRAMES_PER_S * H100_TO_A100 / (1 + len(OFFSETS))
    figures = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "jpeg_kB": round(kilobytes),
        "windows_per_s_by_workers": {number: round(speed, 1) for number, speed in speeds.items()},
        "ms_a_window": {name: round(value, 1) for name, value in steps.items()},
        "estimated_most_windows_per_s_of_an_h100": round(wanted),
        "cores_that_keep_it_busy": round(wanted * steps["window"] / 1000, 1),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
