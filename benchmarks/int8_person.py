"""The person detector in int8, by static quantisation, beside the float32 one: time, recall and precision.

    python benchmarks/int8_person.py --data ../shared/data [--out detector_int8.onnx] [--rounds 60] [--threads 2]

Calibrated on the second half of the bundled clip and on training pictures of the pack; the layers that give scores and
sides stay float32. Judged on the pack's validation split, at the threshold of the float32 one. Both are timed in turns;
prints JSON. `--out` keeps the quantised detector, for `streampose run --detector FILE`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from extras import needs
from numpy.typing import NDArray

from streampose.engines.manifest import GRAPHS, locate_bundle
from streampose.engines.parity import demo_frames
from streampose.people import PersonDetector, letterbox

with needs("train"):
    import onnx

    from streampose.engines.quantise import CALIBRATION_FRAMES, quantise_file
    from streampose.train.pack import read_stills
    from streampose.train.person import scenes_of, validation_scenes
    from streampose.train.person_score import Scene, match, summarise

LEAST_HEIGHT_PX = 80
LOWEST_SCORE = 0.05
WARM_UP = 5
CALIBRATION_SETS = ("lspet", "ccp", "lschen_ped")
CALIBRATION_PICTURES = 12
"""Of each set."""


def calibration(data: Path, size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Letterboxed pictures (H, W, 3)."""
    clip = demo_frames(1 + CALIBRATION_FRAMES[-1])
    pictures = [clip[index] for index in CALIBRATION_FRAMES]
    for name in CALIBRATION_SETS:
        scenes = scenes_of(read_stills(data, "train", [name]))
        pictures += [scene.image() for scene in scenes[:: max(1, len(scenes) // CALIBRATION_PICTURES)]]
    return [letterbox(picture, size)[0] for picture in pictures]


def float_layers(file: Path) -> list[str]:
    """Convolutions whose result is a score or a side: those with 1 and with 4 channels."""
    graph = onnx.load(file).graph
    outputs = {tensor.name: tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 4}
    return [node.name for node in graph.node if node.op_type == "Conv" and outputs[node.input[1]] in (1, 4)]


def figures(detector: PersonDetector, scenes: list[Scene], threshold: float) -> dict[str, float]:
    scores, verdicts, people = [], [], 0
    for scene in scenes:
        boxes, confidence = detector.detect(scene.image(), LOWEST_SCORE)
        verdict, count = match(boxes, confidence, scene.people, LEAST_HEIGHT_PX)
        scores.append(confidence)
        verdicts.append(verdict)
        people += count
    return asdict(summarise(np.concatenate(scores), np.concatenate(verdicts), people, threshold))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    source = locate_bundle("person") / GRAPHS["person-detector"][0]
    fp32 = PersonDetector("person", options.threads)
    with tempfile.TemporaryDirectory() as folder:
        file = options.out or Path(folder) / "detector_int8.onnx"
        quantise_file(source, file, "frames", calibration(options.data, fp32.input_size), float_layers)
        detectors = {"fp32": fp32, "int8": PersonDetector(file, options.threads)}
        picture = demo_frames(1)[0]
        times: dict[str, list[float]] = {name: [] for name in detectors}
        for turn in range(options.rounds + WARM_UP):
            for name, detector in detectors.items():
                began = time.perf_counter()
                detector.detect(picture)
                if turn >= WARM_UP:
                    times[name].append(1e3 * (time.perf_counter() - began))
        ms = {name: statistics.median(values) for name, values in times.items()}
        scenes = validation_scenes(options.data)
        report = {
            "ms": ms,
            "times as fast": ms["fp32"] / ms["int8"],
            "bytes": {"fp32": source.stat().st_size, "int8": file.stat().st_size},
            "from_80_px": {name: figures(detector, scenes, fp32.threshold) for name, detector in detectors.items()},
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
