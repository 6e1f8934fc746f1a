"""From boxes to keypoints: crop, encode once a person and frame, fuse with the frames before."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streampose.engines import Crops, Engine, Feature, Overlapping
from streampose.errors import ModelError
from streampose.feature_ring import FeatureRing
from streampose.follower import Track
from streampose.geometry import between_crops, crop_affine, invert, place_in_crop, transform
from streampose.metrics import Metrics
from streampose.skeleton import SKELETONS
from streampose.types import Frame

LONGEST_GAP_S = 0.5
"""A track that was not estimated for longer starts its window anew: what was before no longer supports it."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The keypoints of everyone in a frame.

    Attributes:
        frame: the key frame.
        tracks: who was estimated.
        keypoints: of each track (J, 3) float32, x and y in frame pixels, score 0..1.
    """

    frame: Frame
    tracks: tuple[Track, ...]
    keypoints: tuple[NDArray[np.float32], ...]


@dataclass(slots=True)
class _Window:
    ring: FeatureRing
    pts_s: float


class Estimator:
    """Keypoints of tracked people, batched over people and over sources.

    The engine's offsets count estimated frames of a track: where frames were dropped (a live source, inference late),
    "-1" is the last frame that was estimated, whatever its index. Offsets after the key frame delay the estimates by
    as many frames.

    Attributes:
        delay: frames after the key frame that the engine looks at.
        overlaps: whether the engine computes what was begun while its caller goes on.
    """

    def __init__(self, engine: Engine, metrics: Metrics | None = None) -> None:
        """Raises ModelError where the engine's joints are unknown."""
        if engine.manifest.skeleton not in SKELETONS:
            raise ModelError(
                f"{engine.manifest.name}: unknown skeleton {engine.manifest.skeleton!r}; known: {', '.join(SKELETONS)}"
            )
        self._engine = engine
        self._joints = len(SKELETONS[engine.manifest.skeleton].joints)
        self._offsets = tuple(engine.manifest.offsets)
        self._metrics = metrics or Metrics()
        self._windows: dict[tuple[str, int, int], _Window] = {}
        self._waiting: dict[str, deque[tuple[Frame, tuple[Track, ...]]]] = {}
        self._lookaheads: dict[str, int] = {}
        self.delay = max(0, *self._offsets, 0)
        self.overlaps = isinstance(engine, Overlapping)

    def look_ahead(self, source_id: str, frames: int) -> None:
        """Let a source's frames wait for so many later ones only; the newest there is stands in for those after it.

        Raises:
            ModelError: the engine does not look so far ahead.
        """
        if not 0 <= frames <= self.delay:
            raise ModelError(
                f"{source_id}: lookahead {frames}, but {self._engine.manifest.name} looks {self.delay} frames ahead"
            )
        self._lookaheads[source_id] = frames

    def estimate(self, batch: Sequence[tuple[Frame, Sequence[Track]]]) -> list[Estimate]:
        """Encode everyone in some frames and estimate the frames whose supporting frames are there now.

        Args:
            batch: frames, each of another source, with the tracks to estimate in them.

        Returns:
            Estimates, of each source in the order of its frames: of the same frames where no offset is positive, else
            of earlier ones.

        Raises:
            ModelError: the engine failed.
        """
        return self.begin(batch)()

    def begin(self, batch: Sequence[tuple[Frame, Sequence[Track]]]) -> Callable[[], list[Estimate]]:
        """As `estimate`, without waiting where the engine overlaps: what is returned waits, and gives the estimates.

        Frames of a source are begun when the estimates of those before are there, since its tracks depend on them.
        """
        done = [estimate for frame, _ in batch if self._interrupted(frame) for estimate in self.flush(frame.source_id)]
        self._encode(batch)
        due = []
        for frame, tracks in batch:
            waiting = self._waiting.setdefault(frame.source_id, deque())
            waiting.append((frame, tuple(tracks)))
            if len(waiting) > self._lookaheads.get(frame.source_id, self.delay):
                due.append(waiting.popleft())
        fused = self._begin_fuse(due)
        return lambda: done + fused()

    def flush(self, source_id: str) -> list[Estimate]:
        """Estimate the frames of a source that wait for others, without waiting any longer."""
        return self._begin_fuse(self._waiting.pop(source_id, deque()))()

    def waits_since_ns(self, source_id: str) -> int | None:
        """Monotonic capture time of the newest frame of a source that waits for others; None where none does."""
        waiting = self._waiting.get(source_id)
        return waiting[-1][0].captured_ns if waiting else None

    def keep(self, source_id: str, keys: Iterable[int]) -> None:
        """Forget the windows of all tracks of a source but these and those that wait."""
        kept = {*keys, *(track.key for _, tracks in self._waiting.get(source_id, ()) for track in tracks)}
        for window in [w for w in self._windows if w[0] == source_id and w[2] not in kept]:
            del self._windows[window]

    def forget(self, source_id: str) -> None:
        """Forget a source."""
        self._waiting.pop(source_id, None)
        self._lookaheads.pop(source_id, None)
        self.keep(source_id, ())

    def _interrupted(self, frame: Frame) -> bool:
        """Whether frames of this source wait that this frame cannot support."""
        waiting = self._waiting.get(frame.source_id)
        if not waiting:
            return False
        last = waiting[-1][0]
        return last.epoch != frame.epoch or not 0 <= frame.pts_s - last.pts_s <= LONGEST_GAP_S

    def _encode(self, batch: Sequence[tuple[Frame, Sequence[Track]]]) -> None:
        """Push the features of everyone's crop into their windows."""
        size = self._engine.manifest.input_size
        people = [(frame, track) for frame, tracks in batch for track in tracks]
        if not people:
            return
        affines = [crop_affine(track.crop_box, size) for _, track in people]
        rest = iter(affines)
        crops = [Crops(frame.image, np.stack([next(rest) for _ in tracks])) for frame, tracks in batch if tracks]
        self._metrics.batch(len(people))
        with self._metrics.time("encode"):
            features = self._engine.encode(crops)
        for (frame, track), feature, affine in zip(people, features, affines, strict=True):
            name = (frame.source_id, frame.epoch, track.key)
            window = self._windows.setdefault(name, _Window(FeatureRing(self._offsets), frame.pts_s))
            if not 0 <= frame.pts_s - window.pts_s <= LONGEST_GAP_S:
                window.ring.clear()
            window.pts_s = frame.pts_s
            window.ring.push(feature, place_in_crop(track.box, affine), frame.index)

    def _begin_fuse(self, due: Iterable[tuple[Frame, tuple[Track, ...]]]) -> Callable[[], list[Estimate]]:
        """The keypoints of everyone in frames whose crops are encoded, in one call of the engine."""
        due = list(due)
        people = [(frame, track) for frame, tracks in due for track in tracks]
        if not people:
            return lambda: [Estimate(frame, tracks, ()) for frame, tracks in due]
        began_s = time.perf_counter()
        rings = [self._windows[frame.source_id, frame.epoch, track.key].ring for frame, track in people]
        windows = [ring.window(frame.index) for ring, (frame, _) in zip(rings, people, strict=True)]
        places = np.stack([places for _, places, _ in windows])
        ask = self._ask([features for features, _, _ in windows], between_crops(places[:, :1], places))
        crops = [crop_affine(track.crop_box, self._engine.manifest.input_size) for _, track in people]

        def finish() -> list[Estimate]:
            keypoints = ask()
            self._metrics.observe("fuse", time.perf_counter() - began_s)
            self._check(keypoints, len(people))
            found: Iterator[NDArray[np.float32]] = iter(
                [_to_frame(points, crop) for points, crop in zip(keypoints, crops, strict=True)]
            )
            return [Estimate(frame, tracks, tuple(next(found) for _ in tracks)) for frame, tracks in due]

        return finish

    def _ask(
        self, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]
    ) -> Callable[[], NDArray[np.float32]]:
        """What gives the keypoints of windows; an engine that does not overlap computes them when it is called."""
        if isinstance(self._engine, Overlapping):
            return self._engine.begin_fuse(windows, transforms)
        return lambda: self._engine.fuse(windows, transforms)

    def _check(self, keypoints: NDArray[np.float32], people: int) -> None:
        """Raise ModelError where the engine answered something else than finite (P, J, 3)."""
        expected = (people, self._joints, 3)
        if keypoints.shape != expected:
            raise ModelError(f"{self._engine.manifest.name}: keypoints are {keypoints.shape} instead of {expected}")
        if not np.isfinite(keypoints).all():
            raise ModelError(
                f"{self._engine.manifest.name}: the engine gave keypoints that are not numbers; "
                "verify it with: streampose models verify"
            )


def _to_frame(keypoints: NDArray[np.float32], affine: NDArray[np.float32]) -> NDArray[np.float32]:
    """(J, 3) keypoints from crop to frame pixels."""
    points = keypoints.astype(np.float32, copy=True)
    points[:, :2] = transform(keypoints[:, :2], invert(affine))
    return points
