"""The gate that every bundle passes: on crops of the bundled clip it computes what the network computed in torch.

What torch computed travels with the bundle, in `reference.npz`, so that everything that is compiled from it, and
`streampose models verify` years later, is compared with torch where no torch is installed.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from streampose.engines.crops import Crops
from streampose.errors import ModelError
from streampose.geometry import between_crops

if TYPE_CHECKING:
    from streampose.engines import Engine

REFERENCE = "reference.npz"
SCORE = 0.3
"""Joints that score less are not compared (nor drawn): where a map has no peak, its place is chance."""
LIMITS: dict[str, dict[str, float]] = {
    "fp32": {"keypoints_p99_px": 0.05, "heatmaps_max_share": 1e-3},
    "fp16": {"keypoints_p99_px": 0.5, "heatmaps_uncorrelated": 1e-3},
    "int8": {"keypoints_p99_px": 2.0},
}
"""The largest figures that a bundle of a precision may have, see `compare`."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Windows of the bundled clip and what torch makes of them.

    Attributes:
        clip: sha256 of the clip.
        frames: (P, T) indices of its frames, key frame first.
        affines: (P, T, 2, 3) float32, frame to crop pixels.
        keypoints: (P, J, 3) float32 x, y in key-crop pixels, score 0..1.
        heatmaps: (R, J, h, w) float32 of the first R windows.
    """

    clip: str
    frames: NDArray[np.int64]
    affines: NDArray[np.float32]
    keypoints: NDArray[np.float32]
    heatmaps: NDArray[np.float32]

    def save(self, path: Path) -> None:
        np.savez_compressed(
            path, clip=np.array(self.clip), frames=self.frames, affines=self.affines, keypoints=self.keypoints,
            heatmaps=self.heatmaps,
        )  # fmt: skip


def read_reference(folder: Path) -> Reference:
    """The reference of a bundle.

    Raises:
        ModelError: it is missing, damaged, or of another clip than this version has.
    """
    path = folder / REFERENCE
    try:
        with np.load(path, allow_pickle=False) as stored:
            clip = str(stored["clip"])
            arrays = [stored[name] for name in ("frames", "affines", "keypoints", "heatmaps")]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{path} is missing or damaged, so that {folder} cannot be verified; build it again"
        ) from error
    if clip != demo_digest():
        raise ModelError(f"{path} was made with another demo clip than this version has; build the bundle again")
    return Reference(clip, *arrays)


def record(engine: Engine, frames: NDArray[np.int64], affines: NDArray[np.float32], heatmaps: int = 2) -> Reference:
    """What an engine makes of windows of the bundled clip; see `Reference` for the arguments.

    Raises:
        ModelError: the engine failed.
    """
    windows, transforms = _encode(engine, frames, affines)
    return Reference(
        demo_digest(), frames, affines, engine.fuse(windows, transforms),
        engine.heatmaps(windows[:heatmaps], transforms[:heatmaps]),
    )  # fmt: skip


def compare(engine: Engine, reference: Reference) -> dict[str, float]:
    """How far an engine is from torch.

    Returns:
        joints: how many are compared: those that torch gives a score of at least `SCORE`, or the better half.
        keypoints_p99_px: distance in input pixels that 99 of 100 of them keep.
        keypoints_max_px: the largest.
        scores_max: largest difference of their scores.
        heatmaps_max_share: largest difference of heatmap values, as a share of their standard deviation.
        heatmaps_uncorrelated: 1 less the correlation of the heatmaps, of the worst window.

    Raises:
        ModelError: the engine failed.
    """
    found = record(engine, reference.frames, reference.affines, len(reference.heatmaps))
    for name in ("keypoints", "heatmaps"):
        shapes = getattr(found, name).shape, getattr(reference, name).shape
        if shapes[0] != shapes[1] or not np.isfinite(getattr(found, name)).all():
            raise ModelError(f"{engine.manifest.name}: {name} are {shapes[0]} instead of {shapes[1]}, or not finite")
    scores = reference.keypoints[..., 2]
    sure = scores >= min(SCORE, float(np.median(scores)))
    distances = np.linalg.norm(found.keypoints[..., :2] - reference.keypoints[..., :2], axis=-1)[sure]
    pairs = zip(found.heatmaps, reference.heatmaps, strict=True)
    return {
        "joints": float(sure.sum()),
        "keypoints_p99_px": float(np.quantile(distances, 0.99)),
        "keypoints_max_px": float(distances.max()),
        "scores_max": float(np.abs(found.keypoints[..., 2] - scores)[sure].max()),
        "heatmaps_max_share": float(np.abs(found.heatmaps - reference.heatmaps).max() / reference.heatmaps.std()),
        "heatmaps_uncorrelated": max(1 - float(np.corrcoef(one.ravel(), other.ravel())[0, 1]) for one, other in pairs),
    }


def check(name: str, precision: str, parity: dict[str, float]) -> None:
    """Raise ModelError where a figure is above its limit, or not a number."""
    for figure, limit in LIMITS[precision].items():
        if not parity[figure] <= limit:
            raise ModelError(
                f"{name} does not compute what the network computes in torch: {figure} is {parity[figure]:.3g}, "
                f"{precision} may have {limit:g}"
            )


def demo_digest() -> str:
    """sha256 of the bundled clip, hexadecimal."""
    with _clip().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def demo_frames(count: int) -> list[NDArray[np.uint8]]:
    """The first frames of the bundled clip, (H, W, 3) uint8 BGR."""
    capture = cv2.VideoCapture(str(_clip()))
    frames = [np.asarray(capture.read()[1], np.uint8) for _ in range(count)]
    capture.release()
    return frames


def _clip() -> Path:
    return Path(str(resources.files("streampose") / "demo" / "demo.mp4"))


def _encode(
    engine: Engine, frames: NDArray[np.int64], affines: NDArray[np.float32]
) -> tuple[list[list[object]], NDArray[np.float32]]:
    pictures = demo_frames(int(frames.max()) + 1)
    flat = zip(frames.ravel(), affines.reshape(-1, 1, 2, 3), strict=True)
    features = engine.encode([Crops(pictures[index], affine) for index, affine in flat])
    count = frames.shape[1]
    windows = [features[start : start + count] for start in range(0, len(features), count)]
    height, width = engine.manifest.input_size
    middles = affines.copy()
    middles[..., 2] = width / 2, height / 2  # where `place_in_crop` has people who are in the middle of their crops
    places = np.stack([middles, affines], axis=2)
    return windows, between_crops(places[:, :1], places)
