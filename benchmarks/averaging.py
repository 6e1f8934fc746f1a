"""What averaging where frames agree is worth, by how far frames may disagree: flicker of joints that rest, accuracy of
joints by how far they move, and how far these lag.

    python benchmarks/averaging.py --data ../shared/data [--split val] [--model lite]

Exports the bundle's network anew for each tolerance and runs it on ONNX Runtime, at labelled boxes; "off" is without
averaging (`streampose.model.calm`). A lag is the mean distance, along the joint's motion, of what is estimated behind
the label, of joints that are within 0.1; in longer sides of the box, as the rest.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from extras import needs
from numpy.typing import NDArray

from streampose.engines import Engine, read_manifest
from streampose.engines.manifest import locate_bundle

with needs("train"):
    from streampose.engines.export import export_network
    from streampose.engines.onnxruntime import OnnxRuntimeEngine
    from streampose.model import calm
    from streampose.model.fuser import Fuser
    from streampose.train.from_bundle import pose_of_bundle
    from streampose.train.pack import Clip, read_clips
    from streampose.train.video_eval import SPEEDS, followed, jitter, speed_pck, tracks
    from streampose.train.windows import clip_subjects

TOLERANCES = (0.0, 0.005, 0.01, calm.TOLERANCE, 0.05, 0.1)
PACES = (0.0, 0.005, 0.01, 0.02, 0.05)
"""Joints are told apart by how far they move from frame to frame, in longer sides of the box, from each of these."""
NEAR, LEAST_WEIGHT = 0.1, 0.3


def lags(engine: Engine, clips: Sequence[Clip]) -> list[float]:
    """Mean way behind the label of the joints of each of `PACES`."""
    found: list[NDArray[np.float32]] = []
    for clip in clips:
        for people in tracks(clip):
            points = followed(engine, clip, people, None)["five"][1:-1]
            labels = np.stack([person.keypoints for _, person in people])
            side = np.array([max(person.box[2:] - person.box[:2]) for _, person in people])[1:-1, None]
            way = (labels[2:, :, :2] - labels[:-2, :, :2]) / 2
            pace = np.linalg.norm(way, axis=2) / side
            off = points - labels[1:-1, :, :2]
            behind = -(off * way).sum(axis=2) / (np.linalg.norm(way, axis=2) + 1e-6) / side
            known = (labels[..., 2] >= LEAST_WEIGHT).astype(int)
            counted = (known[2:] & known[1:-1] & known[:-2]).astype(bool)
            counted &= np.linalg.norm(off, axis=2) / side <= NEAR
            found.append(np.stack([pace[counted], behind[counted]], axis=1))
    rows = np.concatenate(found)
    group = np.searchsorted(PACES, rows[:, 0], side="right") - 1
    return [float(rows[group == place, 1].mean()) if (group == place).any() else np.nan for place in range(len(PACES))]


def _row(name: str, engine: Engine, clips: Sequence[Clip], every: int) -> str:
    trembling = 100 * jitter(engine, clips, None).get("five", float("nan"))
    speed: dict[str, Any] = speed_pck(engine, clip_subjects(clips, engine.manifest.offsets, every))
    groups = [speed.get(f"from {least:g}") for least in SPEEDS]
    near = [f"{g['within 0.1']['five']:.3f}, {g['within 0.05']['five']:.3f}" if g else "" for g in groups]
    behind = [f"{100 * lag:.2f}" for lag in lags(engine, clips)]
    return f"| {name} | {trembling:.2f} % | " + " | ".join(near) + " | " + ", ".join(behind) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the pack")
    parser.add_argument("--split", default="val", choices=("val", "train"))
    parser.add_argument("--model", default="lite", help="a bundled model or a bundle's folder, for onnxruntime in fp32")
    parser.add_argument("--every", type=int, default=6, help="accuracy is measured on every n-th frame")
    parser.add_argument("--clips", type=int, default=1, help="take every n-th clip")
    options = parser.parse_args()
    network, manifest = pose_of_bundle(options.model), read_manifest(locate_bundle(options.model))
    assert isinstance(network.fuser, Fuser)
    clips = read_clips(options.data, options.split)[:: options.clips]
    moved = " | ".join(f"moved by {least:g}: within 0.1, 0.05" for least in SPEEDS)
    print(f"| tolerance | jitter | {moved} | lag, %, at a pace from {', '.join(f'{100 * p:g}' for p in PACES)} % |")
    print("|---|---|" + "---|" * len(SPEEDS) + "---|")
    for tolerance in TOLERANCES:
        network.fuser.calm = tolerance > 0
        calm.TOLERANCE = tolerance
        with tempfile.TemporaryDirectory() as folder:
            export_network(network, Path(folder), manifest.input_size)
            engine = OnnxRuntimeEngine(Path(folder), manifest)
        name = "off" if not tolerance else f"{tolerance:g}"
        print(_row(name, engine, clips, options.every), flush=True)


if __name__ == "__main__":
    main()
