"""Compiled models and how they are loaded. Importing this imports no torch; `export` and `build` do."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streampose.engines.manifest import Manifest, locate_bundle, read_manifest
from streampose.errors import ModelError


class Engine(Protocol):
    """A compiled pose network."""

    manifest: Manifest

    def encode(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of crops, once a person and frame.

        Args:
            crops: (P, H, W, 3) uint8 BGR, H and W the manifest's `input_size`; P may be 0.

        Returns:
            (P, C, H/4, W/4) float32.
        """

    def fuse(self, features: NDArray[np.float32], transforms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Keypoints of the key frames of windows.

        Args:
            features: (P, T, C, h, w), key frame first, then the supports in the order of the manifest's offsets.
            transforms: (P, T, 2, 3) from key-crop pixels to that frame's crop pixels.

        Returns:
            (P, J, 3) float32: x, y in key-crop pixels, score 0..1.
        """


def load_engine(name: str | Path, threads: int = 2) -> Engine:
    """The engine of a bundled model or of a bundle's folder.

    Args:
        name: "lite", or a folder with a manifest.
        threads: how many threads one run uses.

    Raises:
        ModelError: there is no such bundle, it is damaged, or nothing here can run it.
    """
    from streampose.engines.onnxruntime import OnnxRuntimeEngine

    folder = locate_bundle(name)
    manifest = read_manifest(folder)
    if manifest.kind != "pose":
        raise ModelError(f"{folder} is a {manifest.kind}, not a pose model; give it as --detector")
    if manifest.target != "onnxruntime":
        raise ModelError(f"{folder} is built for {manifest.target}, which cannot run here; rebuild it for onnxruntime")
    return OnnxRuntimeEngine(folder, manifest, threads)


__all__ = ["Engine", "Manifest", "load_engine", "locate_bundle", "read_manifest"]
