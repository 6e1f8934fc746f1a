"""Out of torch: a trained network as a bundle of ONNX graphs, from which everything else is compiled."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from streampose.engines.bundle import new_bundle, versions_of
from streampose.engines.export import export_network, export_onnx
from streampose.engines.export_int8 import export_int8
from streampose.engines.manifest import GRAPHS, SCHEMAS, Manifest, sha256, write_manifest
from streampose.engines.onnxruntime import ENCODER, FUSER, OnnxRuntimeEngine, open_session
from streampose.engines.parity import REFERENCE, check, compare, demo_frames, record
from streampose.engines.torch_engine import TorchEngine
from streampose.errors import ModelError, UsageError
from streampose.geometry import crop_affine
from streampose.model import FamiPose, load
from streampose.model.checkpoint import DETECTOR, load_detector, read_checkpoint
from streampose.model.int8 import exactly, is_int8
from streampose.model.person import PersonExport
from streampose.people import PersonDetector, letterbox

DETECTOR_LIMIT_PX = 0.05
DETECTOR_LIMIT = 1e-3
"""Largest difference of a detector's box, in input pixels, and of its score."""
(DETECTOR_FILE,) = GRAPHS["person-detector"]
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")
SCORE_THRESHOLD = 0.4
KEY_FRAMES = range(4, 48, 6)
"""Where in the bundled clip the windows of the gate are; int8 is calibrated on what comes after them."""
DRIFT = 0.01
"""How far the crops of every second person's window move, as a share of the person's longer side."""


def build_from_checkpoint(checkpoint: Path, out: Path, score_threshold: float | None = None) -> Manifest:
    """Write what a recipe trained, a pose network or a person detector, as a bundle for ONNX Runtime.

    Args:
        checkpoint: `checkpoint.pt` of a recipe's last stage.
        out: folder to write; it must not exist. Its name becomes the model's.
        score_threshold: of a detector: lowest score that counts, 0..1; 0.4 if nothing is said.

    Raises:
        ModelError: the checkpoint is missing, of another network, or fails the gate.
        UsageError, OutputError: see `build_bundle`.
    """
    if score_threshold is not None and not 0 < score_threshold < 1:
        raise UsageError(f"the score threshold lies between 0 and 1, not at {score_threshold}")
    description, _ = read_checkpoint(checkpoint)
    if DETECTOR not in description:
        if score_threshold is not None:
            raise UsageError(f"{checkpoint} is a pose network; a score threshold goes with a detector's checkpoint")
        network = load(checkpoint)
        if not network.offsets:
            raise ModelError(f"{checkpoint} is a single-frame network; give the checkpoint of a fuser stage")
        return build_bundle(network, out, out.name)
    detector = load_detector(checkpoint)
    return build_detector(PersonExport(detector).eval(), out, detector.input_size, score_threshold or SCORE_THRESHOLD)


def precision_of(checkpoint: Path) -> str:
    """In what a checkpoint's network computes, "fp32" or "int8".

    Raises:
        ModelError: the checkpoint is missing or damaged.
    """
    return str(read_checkpoint(checkpoint)[0].get("precision", "fp32"))


def build_bundle(
    network: FamiPose, out: Path, name: str = "lite", input_size: tuple[int, int] | None = None
) -> Manifest:
    """Write a pose network as a bundle for ONNX Runtime, with what torch computes on the bundled clip.

    Args:
        network: in evaluation mode. One in int8 becomes a bundle in int8, and is compared with ONNX Runtime's integers.
        out: folder to write; it must not exist.
        name: of the model.
        input_size: (height, width) of the crops; by default the network's usual one.

    Raises:
        ModelError: ONNX Runtime does not compute what torch does; nothing is written.
        UsageError: `out` exists.
        OutputError: `out` cannot be written.
    """
    input_size = input_size or network.input_size
    precision = "int8" if is_int8(network) else "fp32"
    if is_int8(network):
        network = exactly(network)
    with new_bundle(out) as folder, torch.inference_mode():
        export = export_int8 if is_int8(network) else export_network
        export(network, folder, input_size)
        manifest = Manifest(
            schema=SCHEMAS["pose"],
            kind="pose",
            name=name,
            target="onnxruntime",
            precision=precision,
            input_size=input_size,
            input_format="uint8 BGR (P, H, W, 3)",
            files={file: sha256(folder / file) for file in (ENCODER, FUSER)},
            versions=versions_of(PACKAGES),
            parity={},
            offsets=network.offsets,
            skeleton=network.skeleton,
        )
        reference = record(TorchEngine(network, manifest), *gate_windows(input_size, network.offsets))
        reference.save(folder / REFERENCE)
        parity = compare(OnnxRuntimeEngine(folder, manifest), reference)
        check(name, precision, parity)
        files = manifest.files | {REFERENCE: sha256(folder / REFERENCE)}
        manifest = msgspec.structs.replace(manifest, parity=parity, files=files)
        write_manifest(folder, manifest)
    return manifest


def build_detector(module: nn.Module, out: Path, input_size: tuple[int, int], score_threshold: float) -> Manifest:
    """Write a person detector as a bundle; arguments and errors as in `build_bundle`.

    Args:
        module: frames (1, H, W, 3) uint8 BGR -> boxes (1, N, 4) xyxy input pixels, scores (1, N) 0..1.
        score_threshold: lowest score that counts.
    """
    props = {"streampose.kind": "person-detector", "streampose.score_threshold": f"{score_threshold:.4f}"}
    picture = letterbox(demo_frames(1)[0], input_size)[0][None]
    with new_bundle(out) as folder, torch.inference_mode():
        example = torch.zeros(2, *input_size, 3, dtype=torch.uint8)
        export_onnx(module, {"frames": example}, ["boxes", "scores"], folder / DETECTOR_FILE, props)
        boxes, scores = open_session(folder / DETECTOR_FILE, 2).run(["boxes", "scores"], {"frames": picture})
        wanted_boxes, wanted_scores = (tensor.numpy() for tensor in module(torch.from_numpy(picture)))
        parity = {
            "boxes_max_px": float(np.abs(boxes - wanted_boxes).max()),
            "scores_max": float(np.abs(scores - wanted_scores).max()),
        }
        for figure, limit in (("boxes_max_px", DETECTOR_LIMIT_PX), ("scores_max", DETECTOR_LIMIT)):
            if not parity[figure] <= limit:
                raise ModelError(f"{out.name} does not compute what torch does: {figure} is {parity[figure]:.3g}")
        manifest = Manifest(
            schema=SCHEMAS["person-detector"],
            kind="person-detector",
            name=out.name,
            target="onnxruntime",
            precision="fp32",
            input_size=input_size,
            input_format="uint8 BGR (B, H, W, 3), letterboxed at the top left, the rest 114",
            files={DETECTOR_FILE: sha256(folder / DETECTOR_FILE)},
            versions=versions_of(PACKAGES),
            parity=parity,
            score_threshold=round(score_threshold, 4),
        )
        write_manifest(folder, manifest)
    return manifest


def gate_windows(
    input_size: tuple[int, int], offsets: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Windows of the people that the bundled detector finds in the bundled clip.

    Returns:
        frames (P, T) indices, key frame first, and affines (P, T, 2, 3) from frame to crop pixels; every second
        person's crops move.
    """
    rng = np.random.default_rng(0)
    pictures = demo_frames(1 + KEY_FRAMES[-1])
    detector = PersonDetector()
    frames: list[list[int]] = []
    affines: list[list[NDArray[np.float32]]] = []
    for key in KEY_FRAMES:
        indices = [key, *(max(key + offset, 0) for offset in offsets)]
        for box in detector.detect(pictures[key])[0]:
            drift = rng.normal(0, DRIFT * float((box[2:] - box[:2]).max()), (len(indices), 2)) * (len(frames) % 2)
            steps = np.tile(drift, 2).astype(np.float32)
            affines.append([crop_affine(box + step, input_size) for step in steps])
            frames.append(indices)
    return np.array(frames, np.int64), np.array(affines, np.float32)
