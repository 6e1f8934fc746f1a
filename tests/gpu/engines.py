"""Every engine that can be had here, end to end: pictures in, keypoints out, for 1 to 64 people at once.

usage: engines.py FOLDER [--dry-run] [--seconds N]      prints one JSON; ends with 1 where an engine fails

FOLDER gets the bundles. For each target that this machine has the packages of: the bundled network is built, through
the gate; and W48 with random weights is built, compared with torch and timed. What cannot be tried is listed with its
reason. A people-frame is one person in one picture: cut, encoded, fused with four frames before, and back on the host.
--dry-run needs no GPU: ONNX Runtime's and torch's engines on the CPU, and small batches.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from have import flavours
from network import random_network

from streampose.engines import Crops, Engine, Overlapping, open_engine, read_manifest
from streampose.engines.build import build_from_checkpoint
from streampose.engines.compile import Job, compile_bundle
from streampose.engines.manifest import Manifest, locate_bundle, sha256, write_manifest
from streampose.engines.parity import compare, read_reference
from streampose.engines.torch_engine import TorchEngine
from streampose.geometry import between_crops, crop_affine, place_in_crop

BATCHES = (1, 2, 4, 8, 16, 32, 64)
ROUNDS, WARM_UP = 20, 6
PICTURE = (1080, 1920)
AIM_MS = 0.5
"""Encoder and fuser of W48, a person at batch 16, on an H100 in float16."""
log = logging.getLogger("engines.py")


def timed(engine: Engine, batches: Sequence[int], rounds: int, until_s: float) -> list[dict[str, Any]]:
    """Median time of a round by itself, and of one of many where the engine overlaps, batch by batch."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (*PICTURE, 3), dtype=np.uint8)
    frames = 1 + len(engine.manifest.offsets)
    found = []
    for people in batches:
        if time.monotonic() > until_s:
            found.append({"people": people, "not_run": "no time was left"})
            continue
        corners = rng.uniform(0, 600, (people, 2))
        boxes = [np.array([x, y, x + 150, y + 400], np.float32) for x, y in corners]
        affines = np.stack([crop_affine(box, engine.manifest.input_size) for box in boxes])
        places = np.stack([place_in_crop(box, affine) for box, affine in zip(boxes, affines, strict=True)])[:, None]
        transforms = between_crops(places, np.repeat(places, frames, axis=1))
        past: list[list[Any]] = []

        def windows(affines: Any = affines, past: list[list[Any]] = past, frames: int = frames) -> list[list[Any]]:
            past.append(engine.encode([Crops(picture, affines)]))
            del past[:-frames]
            return [
                [past[max(-1 - age, -len(past))][person] for age in range(frames)] for person in range(len(affines))
            ]

        times = []
        for turn in range(WARM_UP + rounds):
            began = time.perf_counter()
            keypoints = engine.fuse(windows(), transforms)
            if turn >= WARM_UP:
                times.append(time.perf_counter() - began)
        assert keypoints.shape[0] == people
        assert np.isfinite(keypoints).all()
        entry = {"people": people, "ms": 1e3 * statistics.median(times)}
        entry["people_frames_s"] = people / (entry["ms"] / 1e3)
        entry["ms_a_person"] = entry["ms"] / people
        if isinstance(engine, Overlapping):
            entry["overlapped_people_frames_s"] = people / overlapped_s(engine, windows, transforms, rounds)
        found.append(entry)
    return found


def overlapped_s(engine: Overlapping, windows: Callable[[], list[list[Any]]], transforms: Any, rounds: int) -> float:
    """Seconds a round where each is begun before the results of the one before are asked for."""
    waiting: list[Callable[[], Any]] = []
    began = 0.0
    for turn in range(WARM_UP + rounds):
        if turn == WARM_UP:
            began = time.perf_counter()
        waiting.append(engine.begin_fuse(windows(), transforms))
        if len(waiting) > 1:
            waiting.pop(0)()
    while waiting:
        waiting.pop(0)()
    return (time.perf_counter() - began) / rounds


def show(report: dict[str, Any]) -> None:
    """Print what there is so far, over what was printed before where that is a file: the end may never come."""
    if sys.stdout.seekable():
        sys.stdout.seek(0)
        sys.stdout.truncate()
    elif not report["finished"]:
        return
    print(json.dumps(report, indent=1), flush=True)


def source_of(backbone: str, folder: Path) -> tuple[Path, Path]:
    """A network with random weights: as a bundle of ONNX graphs, and as the checkpoint that it was made from.

    Its maps are flat, so that where their peaks are is chance, and the gate is not asked.
    """
    file, bundle = folder / f"{backbone}.pt", folder / f"{backbone}-random"
    if not bundle.exists():
        network = random_network(backbone)
        torch.save({"network": network.description, "ema": network.state_dict()}, file)
        with mock.patch("streampose.engines.build.check"):
            build_from_checkpoint(file, bundle)
    return bundle, file


def built(source: Path, checkpoint: Path, out: Path, target: str, precision: str) -> tuple[Engine, dict[str, Any]]:
    """An engine without the gate, which random weights need not pass; and how far it is from torch."""
    from importlib import import_module

    out.mkdir()
    module = {"torch-tensorrt": "torch_tensorrt"}.get(target, "tensorrt_build")
    began = time.perf_counter()
    manifest = read_manifest(source)
    job = Job(source, out, manifest, target, precision, BATCHES[-1], checkpoint)
    made = import_module(f"streampose.engines.{module}").compile_graphs(job)
    seconds = time.perf_counter() - began
    manifest = Manifest(
        **{
            **{name: getattr(manifest, name) for name in manifest.__struct_fields__},
            "target": target, "precision": precision, "versions": made.versions, "max_batch": BATCHES[-1],
            "gpu_architecture": made.architecture, "files": {file.name: sha256(file) for file in out.iterdir()},
        }
    )  # fmt: skip
    write_manifest(out, manifest)
    engine = open_engine(out, manifest)
    return engine, {"build_s": seconds, "parity": compare(engine, read_reference(source))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--seconds", type=float, default=240)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="engines.py: %(message)s")
    until_s, dry, folder = time.monotonic() + options.seconds, options.dry_run, options.folder
    batches, rounds = (BATCHES[:2], 2) if dry else (BATCHES, ROUNDS)
    lite = locate_bundle("lite")
    report: dict[str, Any] = {"aim_ms_a_person": AIM_MS, "finished": False, "engines": {}}
    failed = False
    show(report)

    def attempt(name: str, work: Callable[[], dict[str, Any]]) -> None:
        nonlocal failed
        if time.monotonic() > until_s:
            report["engines"][name] = {"not_run": "no time was left"}
            return
        log.warning("%s", name)
        try:
            report["engines"][name] = work()
        except Exception as error:  # an engine that fails must not keep the others from being tried
            failed = True
            traceback.print_exc()
            report["engines"][name] = {"failed": f"{type(error).__name__}: {error}"}
        show(report)

    def of_checkpoint(backbone: str, target: str) -> dict[str, Any]:
        source, file = source_of(backbone, folder)
        engine, figures = built(source, file, folder / f"{backbone}-random-{target}", target, "fp16")
        return figures | {"gate": "not asked: random weights", "times": timed(engine, batches, rounds, until_s)}

    def of_bundle(target: str) -> dict[str, Any]:
        if target == "torch-tensorrt":  # compiles no bundle
            return of_checkpoint("lite", target)
        began, precision = time.perf_counter(), "fp16"
        manifest = compile_bundle("lite", folder / f"lite-{target}", target, precision, BATCHES[-1])
        seconds = time.perf_counter() - began
        engine = open_engine(folder / f"lite-{target}", manifest)
        figures = {"build_s": seconds, "parity": manifest.parity, "gate": "passed"}
        return figures | {"times": timed(engine, batches, rounds, until_s)}

    def of_onnxruntime(on_cuda: bool) -> dict[str, Any]:
        manifest = read_manifest(lite)
        engine = open_engine(lite, manifest, on_cuda=on_cuda)
        parity = compare(engine, read_reference(lite))
        return {"parity": parity, "times": timed(engine, batches, rounds, until_s)}

    def of_torch() -> dict[str, Any]:
        network = random_network("lite").to("cpu" if dry else "cuda")
        return {"times": timed(TorchEngine(network, read_manifest(lite)), batches, rounds, until_s)}

    attempt("lite, torch fp32", of_torch)
    attempt("lite, onnxruntime fp32 (CPU)", lambda: of_onnxruntime(False))

    def of_random() -> dict[str, Any]:
        source, _ = source_of("lite", folder)
        return {"times": timed(open_engine(source, read_manifest(source)), batches[:1], rounds, until_s)}

    if dry:
        attempt("lite, random weights, onnxruntime fp32 (CPU)", of_random)
    for target, absent in flavours().items():
        names = [f"lite, {target}"] if target == "onnxruntime-cuda" else [f"lite, {target} fp16", f"w48, {target} fp16"]
        if absent or dry:
            report["engines"] |= {name: {"not_run": absent or "a dry run"} for name in names}
            continue
        if target == "onnxruntime-cuda":
            attempt(names[0], lambda: of_onnxruntime(True))
            continue
        attempt(names[0], lambda target=target: of_bundle(target))  # type: ignore[misc]
        attempt(names[1], lambda target=target: of_checkpoint("hrnet-w48", target))  # type: ignore[misc]
    report["finished"] = True
    show(report)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
