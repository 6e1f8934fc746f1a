"""Writing engine bundles, and the gate that each passes: it computes what torch computes, on real pictures."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata, resources
from pathlib import Path

import cv2
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from streampose.engines.export import export_onnx
from streampose.engines.manifest import FILE_NAME, GRAPHS, SCHEMA, Manifest, sha256
from streampose.engines.onnxruntime import ENCODER, FUSER, OnnxRuntimeEngine, open_session
from streampose.errors import ModelError, OutputError, UsageError
from streampose.geometry import between_crops, crop_affine, cut
from streampose.model import FamiPose, load
from streampose.model.checkpoint import DETECTOR, read_checkpoint
from streampose.model.network import CropEncoder, KeypointFuser
from streampose.model.person import PersonExport, PersonNetwork
from streampose.people import letterbox

TOLERANCE = 1e-3
"""Largest difference to torch that a bundle may have, as a share of the standard deviation of what is compared."""
PIXEL_TOLERANCE = 0.05
"""Largest difference of a keypoint or box in input pixels."""
(DETECTOR_FILE,) = GRAPHS["person-detector"]
PERSON_SIZE = (384, 384)


def build_from_checkpoint(
    checkpoint: Path, out: Path, target: str = "onnxruntime", score_threshold: float = 0.4
) -> Manifest:
    """Write what a recipe trained, a pose network or a person detector, as a bundle.

    Args:
        checkpoint: `checkpoint.pt` of a recipe's last stage.
        out: folder to write; it must not exist. Its name becomes the model's.
        target: "onnxruntime".
        score_threshold: lowest score that counts, 0..1 (detector).

    Raises:
        ModelError: the checkpoint is missing, of another network, or fails the gate; or the target is not built here.
        UsageError, OutputError: see `build_bundle`.
    """
    if target != "onnxruntime":
        raise ModelError(f"the target {target!r} cannot be built by this version; it builds: onnxruntime")
    if not 0 < score_threshold < 1:
        raise UsageError(f"the score threshold lies between 0 and 1, not at {score_threshold}")
    description, weights = read_checkpoint(checkpoint)
    if description != DETECTOR:
        network = load(checkpoint)
        if not network.offsets:
            raise ModelError(f"{checkpoint} is a single-frame network; give the checkpoint of a fuser stage")
        return build_bundle(network, out, out.name)
    detector = PersonNetwork()
    try:
        detector.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(f"{checkpoint}: its tensors are not those of the person detector") from error
    return build_detector(PersonExport(detector).eval(), out, PERSON_SIZE, score_threshold)


def build_bundle(
    network: FamiPose, out: Path, name: str = "lite", input_size: tuple[int, int] | None = None
) -> Manifest:
    """Write a pose network as a bundle for ONNX Runtime.

    Args:
        network: in evaluation mode.
        out: folder to write; it must not exist.
        name: of the model.
        input_size: (height, width) of the crops; by default the network's usual one.

    Raises:
        ModelError: ONNX Runtime does not compute what torch does; nothing is written.
        UsageError: `out` exists.
        OutputError: `out` cannot be written.
    """
    input_size = input_size or network.input_size
    frames = 1 + len(network.offsets)
    crops, affines = demo_windows(input_size, frames)
    with _bundle(out) as folder, torch.inference_mode():
        two = torch.zeros(2, *input_size, 3, dtype=torch.uint8)
        export_onnx(
            CropEncoder(network), {"crops": two}, ["features"], folder / ENCODER, {"streampose.kind": "encoder"}
        )
        shape = (2, frames, network.encoder.channels, input_size[0] // 4, input_size[1] // 4)
        window = {"features": torch.zeros(shape), "transforms": torch.eye(2, 3).repeat(2, frames, 1, 1)}
        export_onnx(KeypointFuser(network), window, ["keypoints"], folder / FUSER, {"streampose.kind": "fuser"})
        manifest = Manifest(
            schema=SCHEMA,
            kind="pose",
            name=name,
            target="onnxruntime",
            precision="fp32",
            input_size=input_size,
            input_format="uint8 BGR (P, H, W, 3)",
            files={file: sha256(folder / file) for file in (ENCODER, FUSER)},
            versions=_versions(),
            parity={},
            offsets=network.offsets,
            skeleton=network.skeleton,
        )
        parity = _pose_parity(network, OnnxRuntimeEngine(folder, manifest), crops, affines)
        _check(name, parity)
        manifest = msgspec.structs.replace(manifest, parity=parity)
        _write(folder, manifest)
    return manifest


def build_detector(module: nn.Module, out: Path, input_size: tuple[int, int], score_threshold: float) -> Manifest:
    """Write a person detector as a bundle; arguments and errors as in `build_bundle`.

    Args:
        module: frames (1, H, W, 3) uint8 BGR -> boxes (1, N, 4) xyxy input pixels, scores (1, N) 0..1.
        score_threshold: lowest score that counts.
    """
    props = {"streampose.kind": "person-detector", "streampose.score_threshold": f"{score_threshold:.4f}"}
    picture = letterbox(demo_frames(1)[0], input_size)[0][None]
    with _bundle(out) as folder, torch.inference_mode():
        example = torch.zeros(2, *input_size, 3, dtype=torch.uint8)
        export_onnx(module, {"frames": example}, ["boxes", "scores"], folder / DETECTOR_FILE, props)
        boxes, scores = open_session(folder / DETECTOR_FILE, 2).run(["boxes", "scores"], {"frames": picture})
        wanted_boxes, wanted_scores = (tensor.numpy() for tensor in module(torch.from_numpy(picture)))
        parity = {
            "boxes_max_px": float(np.abs(boxes - wanted_boxes).max()),
            "scores_max": float(np.abs(scores - wanted_scores).max()),
        }
        _check(out.name, parity)
        _write(
            folder,
            Manifest(
                schema=SCHEMA,
                kind="person-detector",
                name=out.name,
                target="onnxruntime",
                precision="fp32",
                input_size=input_size,
                input_format="uint8 BGR (B, H, W, 3), letterboxed at the top left, the rest 114",
                files={DETECTOR_FILE: sha256(folder / DETECTOR_FILE)},
                versions=_versions(),
                parity=parity,
                score_threshold=round(score_threshold, 4),
            ),
        )
    return msgspec.json.decode((out / FILE_NAME).read_bytes(), type=Manifest)


def demo_frames(count: int) -> list[NDArray[np.uint8]]:
    """The first frames of the bundled clip, (H, W, 3) uint8 BGR."""
    capture = cv2.VideoCapture(str(resources.files("streampose") / "demo" / "demo.mp4"))
    frames = [np.asarray(capture.read()[1], np.uint8) for _ in range(count)]
    capture.release()
    return frames


def demo_windows(
    input_size: tuple[int, int], frames: int, windows: int = 8
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Windows of the bundled clip, over places where people walk, half of them with crops that move.

    Returns:
        crops (P, T, H, W, 3) uint8 BGR, and their affines (P, T, 2, 3) from frame to crop pixels.
    """
    pictures = demo_frames(frames)
    height, width = pictures[0].shape[:2]
    rng = np.random.default_rng(0)
    crops, affines = [], []
    for index in range(windows):
        middle = np.array([width * (index + 1) / (windows + 1), height * 0.55])
        half = np.array([0.08 * width, 0.3 * height])
        box = np.concatenate([middle - half, middle + half]).astype(np.float32)
        drift = rng.normal(0, 0.01 * height, (frames, 2)) * (index % 2)
        row = [crop_affine(box + np.tile(step, 2).astype(np.float32), input_size) for step in drift]
        affines.append(row)
        crops.append([cut(picture, affine, input_size) for picture, affine in zip(pictures, row, strict=True)])
    return np.asarray(crops, np.uint8), np.asarray(affines, np.float32)


def _pose_parity(
    network: FamiPose, engine: OnnxRuntimeEngine, crops: NDArray[np.uint8], affines: NDArray[np.float32]
) -> dict[str, float]:
    """Differences to torch: features as a share of their spread, keypoints in pixels where torch is sure of them."""
    windows, frames = crops.shape[:2]
    flat = crops.reshape(-1, *crops.shape[2:])
    transforms = between_crops(affines[:, :1], affines)
    wanted_features = CropEncoder(network)(torch.from_numpy(flat)).numpy()
    features = engine.encode(flat)
    shape = (windows, frames, *features.shape[1:])
    wanted = KeypointFuser(network)(
        torch.from_numpy(wanted_features.reshape(shape)), torch.from_numpy(transforms)
    ).numpy()
    found = engine.fuse(features.reshape(shape), transforms)
    sure = wanted[..., 2] >= np.quantile(wanted[..., 2], 0.5)
    distance = np.linalg.norm(found[..., :2] - wanted[..., :2], axis=-1)
    return {
        "features_max_share": float(np.abs(features - wanted_features).max() / wanted_features.std()),
        "keypoints_max_px": float(distance[sure].max()),
        "scores_max": float(np.abs(found[..., 2] - wanted[..., 2])[sure].max()),
    }


def _check(name: str, parity: dict[str, float]) -> None:
    for figure, value in parity.items():
        limit = PIXEL_TOLERANCE if figure.endswith("_px") else TOLERANCE
        if not value <= limit:
            raise ModelError(
                f"{name}: ONNX Runtime differs from torch: {figure} is {value:.3g}, at most {limit} is allowed"
            )


def _versions() -> dict[str, str]:
    packages = ("streampose", "torch", "onnx", "onnxscript", "onnxruntime")
    return {package: metadata.version(package) for package in packages}


def _write(folder: Path, manifest: Manifest) -> None:
    (folder / FILE_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")


@contextmanager
def _bundle(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes `out` if nothing went wrong."""
    if out.exists():
        raise UsageError(f"{out} exists already; choose another --out or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}") from error
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
