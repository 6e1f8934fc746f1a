"""Compiled models and how they are loaded. Importing this imports no torch; `export` and `build` do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from streampose.engines.crops import Crops, whole_pictures
from streampose.engines.manifest import Manifest, locate_bundle, read_manifest
from streampose.errors import ModelError

Feature = object
"""One crop's features, where the engine keeps them (host or device). Who wants them freed lets go of them."""


class Engine(Protocol):
    """A compiled pose network."""

    manifest: Manifest

    def encode(self, crops: Sequence[Crops]) -> list[Feature]:
        """Features of crops, once a person and frame. They stay on the engine's device.

        Args:
            crops: of pictures, of the size that the manifest names once they are cut.

        Returns:
            One a crop, in the order of the pictures and of the crops in each.

        Raises:
            ModelError: the engine failed.
        """

    def fuse(self, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Keypoints of the key frames of windows.

        Args:
            windows: P windows of T features each, key frame first, then the supports in the order of the manifest's
                offsets.
            transforms: (P, T, 2, 2, 3) from key-crop pixels to that frame's crop pixels: to the same place of the
                person, and of the picture; see `streampose.geometry.place_in_crop`.

        Returns:
            (P, J, 3) float32: x, y in key-crop pixels, score 0..1.

        Raises:
            ModelError: the engine failed.
            ValueError: windows and transforms that do not fit each other.
        """

    def heatmaps(self, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]) -> NDArray[np.float32]:
        """The maps that `fuse` decodes, (P, J, h, w) float32; arguments and errors as there."""

    def read(self, feature: Feature) -> NDArray[np.float32]:
        """A copy of a feature on the host: (C, H/4, W/4) float32."""


@runtime_checkable
class Overlapping(Protocol):
    """What an engine can besides that computes beside its caller: take the next batch while it computes this one."""

    def begin_fuse(
        self, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]
    ) -> Callable[[], NDArray[np.float32]]:
        """As `Engine.fuse`, but without waiting.

        Returns:
            What waits for the keypoints and gives them, whenever and as often as it is called.
        """


def load_engine(name: str | Path, threads: int = 2) -> Engine:
    """The engine of a bundled model or of a bundle's folder.

    Args:
        name: "lite", or a folder with a manifest.
        threads: how many threads one run uses (on a CPU).

    Raises:
        ModelError: there is no such bundle, it is damaged, or nothing here can run it.
        MissingExtraError: packages are missing that its target needs.
    """
    folder = locate_bundle(name)
    return open_engine(folder, read_manifest(folder), threads)


def open_engine(folder: Path, manifest: Manifest, threads: int = 2, on_cuda: bool = False) -> Engine:
    """As `load_engine`, of a bundle whose manifest is known.

    Args:
        on_cuda: run a bundle for ONNX Runtime by its CUDA provider, or raise.
    """
    if manifest.kind != "pose":
        raise ModelError(f"{folder} is a {manifest.kind}, not a pose model; give it as --detector")
    if manifest.target == "onnxruntime" and on_cuda:
        from streampose.engines.onnxruntime_cuda import open_onnxruntime_cuda

        return open_onnxruntime_cuda(folder, manifest, threads)
    if manifest.target == "onnxruntime":
        from streampose.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(folder, manifest, threads)
    if manifest.target in ("tensorrt", "tensorrt-rtx", "torch-tensorrt"):
        from streampose.engines.tensorrt import open_tensorrt

        return open_tensorrt(folder, manifest)
    raise ModelError(f"{folder} is built for {manifest.target}, which this version cannot run")


__all__ = [
    "Crops", "Engine", "Feature", "Manifest", "Overlapping", "load_engine", "locate_bundle", "open_engine",
    "read_manifest", "whole_pictures",
]  # fmt: skip
