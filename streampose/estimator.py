"""From boxes to keypoints: crop, encode once a person and frame, fuse with the frames before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streampose.engines import Engine
from streampose.errors import ModelError
from streampose.feature_ring import FeatureRing
from streampose.follower import Track
from streampose.geometry import between_crops, crop_affine, cut, invert, transform
from streampose.metrics import Metrics
from streampose.types import Frame

LONGEST_GAP_S = 0.5
"""A track that was not estimated for longer starts its window anew: what was before no longer supports it."""


@dataclass(slots=True)
class _Window:
    ring: FeatureRing
    pts_s: float


class Estimator:
    """Keypoints of tracked people, batched over people and over sources.

    The engine's offsets count estimated frames of a track: where frames were dropped (a live source, inference late),
    "-1" is the last frame that was estimated, whatever its index.
    """

    def __init__(self, engine: Engine, metrics: Metrics | None = None) -> None:
        """Raises ModelError where the engine needs frames from the future."""
        if any(offset >= 0 for offset in engine.manifest.offsets):
            raise ModelError(
                f"{engine.manifest.name}: offsets {tuple(engine.manifest.offsets)} need frames after the key frame; "
                "streaming runs engines whose offsets are all negative"
            )
        self._engine = engine
        self._metrics = metrics or Metrics()
        self._windows: dict[tuple[str, int, int], _Window] = {}

    def estimate(self, batch: Sequence[tuple[Frame, Sequence[Track]]]) -> list[list[NDArray[np.float32]]]:
        """The keypoints of everyone in some frames, each of another source.

        Args:
            batch: frames with the tracks to estimate in them.

        Returns:
            For each frame, for each of its tracks: (J, 3) float32, x and y in frame pixels, score 0..1.
        """
        people = [(frame, track) for frame, tracks in batch for track in tracks]
        if not people:
            return [[] for _ in batch]
        size = self._engine.manifest.input_size
        with self._metrics.time("crop"):
            affines = np.stack([crop_affine(track.crop_box, size) for _, track in people])
            crops = np.stack(
                [cut(frame.image, affine, size) for (frame, _), affine in zip(people, affines, strict=True)]
            )
        with self._metrics.time("encode"):
            features = self._engine.encode(crops)
        with self._metrics.time("fuse"):
            windows = [
                self._extend(frame, track, feature, affine)
                for (frame, track), feature, affine in zip(people, features, affines, strict=True)
            ]
            stacked = np.stack([crops for _, crops in windows])
            keypoints = self._engine.fuse(
                np.stack([features for features, _ in windows]), between_crops(stacked[:, :1], stacked)
            )
        found = iter([_to_frame(points, affine) for points, affine in zip(keypoints, affines, strict=True)])
        return [[next(found) for _ in tracks] for _, tracks in batch]

    def keep(self, source_id: str, keys: Iterable[int]) -> None:
        """Forget the windows of all tracks of a source but these."""
        kept = set(keys)
        for window in [w for w in self._windows if w[0] == source_id and w[2] not in kept]:
            del self._windows[window]

    def _extend(
        self, frame: Frame, track: Track, features: NDArray[np.float32], affine: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Push the newest crop of a track and give its window: features (T, C, h, w), affines (T, 2, 3)."""
        name = (frame.source_id, frame.epoch, track.key)
        window = self._windows.get(name)
        if window is None:
            window = self._windows[name] = _Window(FeatureRing(self._engine.manifest.offsets), frame.pts_s)
        if not 0 <= frame.pts_s - window.pts_s <= LONGEST_GAP_S:
            window.ring.clear()
        window.pts_s = frame.pts_s
        window.ring.push(features, affine, frame.index)
        stacked, affines, _ = window.ring.window()
        return stacked, affines


def _to_frame(keypoints: NDArray[np.float32], affine: NDArray[np.float32]) -> NDArray[np.float32]:
    """(J, 3) keypoints from crop to frame pixels."""
    points = keypoints.astype(np.float32, copy=True)
    points[:, :2] = transform(keypoints[:, :2], invert(affine))
    return points
