"""An int8 bundle beside the float32 one: time, what the gate measures, and PCK on held-out people.

    python benchmarks/int8.py [--fp32 lite] [--int8 BUNDLE] [--data ../shared/data [--every 1]] [--rounds 60]
        [--threads 2]

Without `--int8` it quantises the float32 bundle as `build-engine --precision int8` does, but keeps it whatever the gate
says. Both are timed in turns in one run; prints medians, ratios and figures as JSON. `gate` compares with what belongs
to the int8 bundle: torch in int8 where it was trained so, else in float32; `from fp32` compares with float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
from extras import needs

from streampose.engines import Crops, Engine, open_engine
from streampose.engines.compile import Job
from streampose.engines.manifest import locate_bundle, read_manifest
from streampose.engines.parity import compare, demo_frames, read_reference
from streampose.geometry import crop_affine
from streampose.people import PersonDetector

with needs("train"):
    from streampose.engines.quantise import compile_graphs

WARM_UP = 5
STAGES = ("encode", "fuse", "both")


def time_stages(engines: dict[str, Engine], rounds: int) -> dict[str, dict[str, float]]:
    """Median ms of encoding and fusing one person of the bundled clip, by clock, engine and stage, in turns. The clock
    `wall` is what a user waits; `cpu`, the time that all threads compute, says more on a busy machine."""
    frame = demo_frames(1)[0]
    box = PersonDetector().detect(frame)[0][0]
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    times: dict[str, dict[str, list[float]]] = {clock: {} for clock in clocks}
    for turn in range(rounds + WARM_UP):
        for name, engine in engines.items():
            crops = [Crops(frame, crop_affine(box, engine.manifest.input_size)[None])]
            began = {clock: read() for clock, read in clocks.items()}
            features = engine.encode(crops)
            encoded = {clock: read() for clock, read in clocks.items()}
            engine.fuse([features * 5], np.tile(np.eye(2, 3, dtype=np.float32), (1, 5, 2, 1, 1)))
            ended = {clock: read() for clock, read in clocks.items()}
            for clock in clocks if turn >= WARM_UP else ():
                spent = encoded[clock] - began[clock], ended[clock] - encoded[clock], ended[clock] - began[clock]
                for stage, value in zip(STAGES, spent, strict=True):
                    times[clock].setdefault(f"{name} {stage}", []).append(1e3 * value)
    return {
        clock: {name: statistics.median(values) for name, values in found.items()} for clock, found in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fp32", default="lite")
    parser.add_argument("--int8", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--every", type=int, default=1, help="of the held-out people take every n-th")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    source = locate_bundle(options.fp32)
    manifest = read_manifest(source)
    with tempfile.TemporaryDirectory() as between:
        if options.int8:
            folder, quantised = options.int8, read_manifest(options.int8)
        else:
            folder = Path(between)
            compile_graphs(Job(source, folder, manifest, "onnxruntime", "int8", 1))
            quantised = msgspec.structs.replace(manifest, precision="int8")
        engines = {
            "fp32": open_engine(source, manifest, options.threads),
            "int8": open_engine(folder, quantised, options.threads),
        }
        ms = time_stages(engines, options.rounds)
        report: dict[str, object] = {
            "ms": ms,
            "times as fast": {
                clock: {stage: found[f"fp32 {stage}"] / found[f"int8 {stage}"] for stage in STAGES}
                for clock, found in ms.items()
            },
            "gate": compare(engines["int8"], read_reference(options.int8 or source)),
            "from fp32": compare(engines["int8"], read_reference(source)),
            "bytes": {
                name: sum((path / file).stat().st_size for file in ("encoder.onnx", "fuser.onnx"))
                for name, path in (("fp32", source), ("int8", folder))
            },
        }
        if options.data:
            with needs("train"):
                from streampose.train.pack import read_stills
                from streampose.train.pack_eval import engine_pck
                from streampose.train.pose import human_subjects

            subjects = human_subjects(read_stills(options.data, "val", ["lspet"]))[:: options.every]
            report["people"] = len(subjects)
            report["pck01"] = {
                f"{name} {state}": engine_pck(engine, subjects, share)
                for name, engine in engines.items()
                for state, share in (("clean", 0.0), ("corrupt", 1.0))
            }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
