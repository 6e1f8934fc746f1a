"""The person detector in int8 beside the float32 one: time, recall and precision.

    python benchmarks/int8_person.py --data ../shared/data [--fp32 person] [--int8 BUNDLE] [--rounds 60] [--threads 2]

Without `--int8` it quantises the float32 bundle as `build-engine --precision int8` does, but whatever the gate says.
Judged on the pack's validation split, at the threshold of the float32 one, with 95 % intervals of the differences over
pictures drawn anew, the same for both. Both are timed in turns in one run; prints JSON. The clock `wall` is what a user
waits; `cpu`, the time that all threads compute, says more on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from extras import needs

from streampose.engines.manifest import GRAPHS, locate_bundle, read_manifest
from streampose.engines.parity import demo_frames
from streampose.people import PersonDetector

with needs("train"):
    from streampose.engines.quantise_detector import calibration_pictures, compare_detectors, quantise
    from streampose.train.pack_eval import find
    from streampose.train.person import validation_scenes
    from streampose.train.person_figures import detector_figures, differences

LOWEST_SCORE = 0.05
WARM_UP = 5
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def time_detectors(detectors: dict[str, PersonDetector], rounds: int) -> dict[str, dict[str, float]]:
    """Median ms of a picture of the bundled clip, with letterbox and suppression, by clock and detector, in turns."""
    picture = demo_frames(1)[0]
    times: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in detectors} for clock in CLOCKS}
    for turn in range(rounds + WARM_UP):
        for name, detector in detectors.items():
            began = {clock: read() for clock, read in CLOCKS.items()}
            detector.detect(picture)
            for clock, read in CLOCKS.items() if turn >= WARM_UP else ():
                times[clock][name].append(1e3 * (read() - began[clock]))
    return {
        clock: {name: statistics.median(values) for name, values in found.items()} for clock, found in times.items()
    }


def compare_figures(data: Path, detectors: dict[str, PersonDetector]) -> dict[str, object]:
    """Of both, and int8 less float32, by height over all sets."""
    scenes = validation_scenes(data)
    threshold = detectors["fp32"].threshold
    figures, draws = {}, {}
    for name, detector in detectors.items():
        found = find(lambda image, detector=detector: detector.detect(image, LOWEST_SCORE), scenes)
        figures[name], draws[name] = detector_figures(found, scenes, threshold)
    less = differences(figures["int8"], figures["fp32"], draws["int8"], draws["fp32"])
    heights = [key for key in less if key.startswith("from_")]
    empty = "nothing_found_without_people"
    return {
        "threshold": threshold,
        **{name: {h: found[h]["all"] for h in heights} | {empty: found[empty]} for name, found in figures.items()},
        "int8 less fp32": {h: less[h]["all"] for h in heights},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fp32", default="person")
    parser.add_argument("--int8", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    (graph,) = GRAPHS["person-detector"]
    folder = locate_bundle(options.fp32)
    size = read_manifest(folder).input_size
    with tempfile.TemporaryDirectory() as between:
        file = locate_bundle(options.int8) / graph if options.int8 else Path(between) / graph
        if not options.int8:
            quantise(folder / graph, file, calibration_pictures(size))
        detectors = {
            "fp32": PersonDetector(options.fp32, options.threads),
            "int8": PersonDetector(file, options.threads),
        }
        ms = time_detectors(detectors, options.rounds)
        report = {
            "ms": ms,
            "times as fast": {clock: found["fp32"] / found["int8"] for clock, found in ms.items()},
            "bytes": {"fp32": (folder / graph).stat().st_size, "int8": file.stat().st_size},
            "gate": compare_detectors(folder / graph, file, size),
            **compare_figures(options.data, detectors),
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
