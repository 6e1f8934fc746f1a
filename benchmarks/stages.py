"""What each stage costs for 1, 3 and 8 people, beside the teachers, in one run and in turns.

    python benchmarks/stages.py [--teachers ../shared/data/teachers] [--rounds 40] [--threads 2]

Prints medians in ms, people-frames a second (detector on every third frame), and ratios, as a table and as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata, resources
from pathlib import Path

import cv2
import numpy as np
from extras import needs
from rich.console import Console
from rich.table import Table

from streampose.engines import Crops, load_engine
from streampose.geometry import between_crops, crop_affine, place_in_crop
from streampose.people import PersonDetector

with needs("train"):
    from streampose.train.teachers import Thunder, YoloxNano

PEOPLE = (1, 3, 8)
DETECT_EVERY = 3
WARM_UP = 3
BOXES = np.array([[264, 54, 480, 524], [36, 208, 226, 748], [492, 108, 540, 360]], np.float32)
"""The three people of the clip's first frame."""


def measure(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median ms of each job, all jobs in turn in every round."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + WARM_UP):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if turn >= WARM_UP:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    capture = cv2.VideoCapture(str(resources.files("streampose") / "demo" / "demo.mp4"))
    frame = np.asarray(capture.read()[1], np.uint8)
    capture.release()
    engine, detector = load_engine("lite", options.threads), PersonDetector("person", options.threads)
    size, supports = engine.manifest.input_size, len(engine.manifest.offsets)
    jobs: dict[str, Callable[[], object]] = {"detect": lambda: detector.detect(frame)}
    for people in PEOPLE:
        boxes = BOXES[np.arange(people) % len(BOXES)]
        affines = np.stack([crop_affine(box, size) for box in boxes])
        crops = [Crops(frame, affines)]
        windows = [[feature] * (1 + supports) for feature in engine.encode(crops)]
        places = np.stack([place_in_crop(box, affine) for box, affine in zip(boxes, affines, strict=True)])[:, None]
        transforms = between_crops(places, np.repeat(places, 1 + supports, axis=1))
        jobs[f"encode {people}"] = lambda c=crops: engine.encode(c)
        jobs[f"fuse {people}"] = lambda w=windows, t=transforms: engine.fuse(w, t)
    if options.teachers:
        thunder, yolox = Thunder(options.teachers, options.threads), YoloxNano(options.teachers, options.threads)
        jobs["thunder"] = lambda: thunder.keypoints(frame, BOXES[0])
        jobs["yolox_nano"] = lambda: yolox.detect(frame)
    ms = measure(jobs, options.rounds)
    figures: dict[str, float] = {}
    for people in PEOPLE:
        whole = ms["detect"] / DETECT_EVERY + sum(ms[f"{stage} {people}"] for stage in ("encode", "fuse"))
        figures[f"people-frames/s, {people} people"] = 1e3 * people / whole
        if options.teachers:
            figures[f"(encode + fuse) / {people} thunder runs"] = (
                (ms[f"encode {people}"] + ms[f"fuse {people}"]) / people / ms["thunder"]
            )
    if options.teachers:
        figures["detect / yolox_nano"] = ms["detect"] / ms["yolox_nano"]
    table = Table("", "median", title=f"{options.threads} threads, {options.rounds} rounds in turns")
    for name, value in ms.items():
        table.add_row(name, f"{value:.2f} ms")
    for name, value in figures.items():
        table.add_row(name, f"{value:.2f}")
    Console(stderr=True).print(table)
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "onnxruntime": metadata.version("onnxruntime")}
    Console().print_json(json.dumps({"machine": machine, "ms": ms, "figures": figures}))


if __name__ == "__main__":
    main()
