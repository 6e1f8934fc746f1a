"""Smoothing on request: a One-Euro filter per joint, and short gaps of a track bridged. Poses are raw without it.

Casiez, Roussel and Vogel, "1 Euro Filter" (CHI 2012): a low-pass filter whose cutoff rises with the speed, so that what
stands still does not tremble and what moves fast does not lag. Speeds are measured in sizes of the person a second, so
that the settings do not depend on the picture's resolution or on how far away somebody is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streampose.errors import UsageError
from streampose.messages import COORDINATE_LIMIT, PEOPLE_LIMIT, SOURCES_LIMIT
from streampose.types import Pose, PoseFrame

_COAST_S = 0.1
"""How fast a bridged joint comes to rest."""
BRIDGE_FRAMES = 300
"""Frames after which a bridge ends, however little time they say has gone by."""

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Smoothing:
    """How to smooth.

    Attributes:
        min_cutoff_hz: cutoff of a joint at rest; less is calmer and later.
        beta_hz: how much the cutoff rises with each size of the person a second; more follows fast moves better.
        speed_cutoff_hz: cutoff of the speed itself.
        fill_s: longest gap, of a person or of a joint, that is bridged; 0 bridges none. A person's also ends after
            `BRIDGE_FRAMES` frames, and a frame is filled up to `PEOPLE_LIMIT` people.
        min_score: a joint below this was not seen.

    Raises:
        UsageError: a number is out of range.
    """

    min_cutoff_hz: float = 1.5
    beta_hz: float = 6.0
    speed_cutoff_hz: float = 2.0
    fill_s: float = 0.0
    min_score: float = 0.2

    def __post_init__(self) -> None:
        if not (0 < self.min_cutoff_hz < math.inf and 0 < self.speed_cutoff_hz < math.inf):
            raise UsageError("a cutoff of smoothing must be above 0 Hz")
        if not (0 <= self.beta_hz < math.inf and 0 <= self.min_score <= 1):
            raise UsageError("beta of smoothing is 0 or more, its least score 0 to 1")
        if not 0 <= self.fill_s <= 1:
            raise UsageError(f"gaps of 0 to 1 s can be bridged, not of {self.fill_s:g} s")


class Smoother:
    """Smooths the frames of any number of sources, each in its own order. For one thread."""

    def __init__(self, settings: Smoothing) -> None:
        self._settings = settings
        self._scenes: dict[str, _Scene] = {}

    def keep(self, sources: AbstractSet[str]) -> None:
        """Forget all sources but these."""
        for source in self._scenes.keys() - sources:
            del self._scenes[source]

    def smooth(self, frame: PoseFrame) -> PoseFrame:
        """The frame with smoothed people, and with those bridged (`filled`) who are missing from it for a moment."""
        scene = self._scenes.get(frame.source)
        if scene is None or scene.epoch != frame.epoch or frame.pts_s <= scene.pts_s:
            if scene is None and len(self._scenes) >= SOURCES_LIMIT:
                del self._scenes[next(iter(self._scenes))]
            scene = self._scenes[frame.source] = _Scene(frame.epoch)
        scene.pts_s = frame.pts_s
        with np.errstate(over="ignore", invalid="ignore"):  # a stranger's clock may leap to the end of the numbers
            return dataclasses.replace(frame, smoothed=True, people=scene.advance(frame, self._settings))


@dataclass(slots=True)
class _Scene:
    """The tracks of one source and epoch: those of the last frame, and as many bridged ones as a frame may have."""

    epoch: int
    pts_s: float = -math.inf
    tracks: dict[int, _Track] = field(default_factory=dict)

    def advance(self, frame: PoseFrame, settings: Smoothing) -> tuple[Pose, ...]:
        people = []
        for pose in frame.people:
            track = self.tracks.get(pose.track_id)
            if track is None or len(track.value) != len(pose.keypoints) + 2:
                track = self.tracks[pose.track_id] = _Track(len(pose.keypoints))
            people.append(track.update(frame.pts_s, pose, settings))
        here = {pose.track_id for pose in frame.people}
        gone = [item for item in self.tracks.items() if item[0] not in here]
        for track_id, track in sorted(gone, key=lambda item: item[1].bridges):  # who was seen last comes first
            over = frame.pts_s - track.seen_s > settings.fill_s or track.bridges >= BRIDGE_FRAMES
            if over or len(people) >= PEOPLE_LIMIT:
                del self.tracks[track_id]
            else:
                people.append(track.bridge(frame.pts_s, settings))
        return tuple(people)


class _Track:
    """One person: J joints and the two corners of the box, each with its own past."""

    def __init__(self, joints: int) -> None:
        self.value: Points = np.full((joints + 2, 2), np.nan)
        self.seen_s = -math.inf
        self.bridges = 0  # frames bridged since it was seen
        self._raw = self.value.copy()
        self._velocity: Points = np.zeros((joints + 2, 2))
        self._scores: Points = np.zeros(joints + 2)
        self._times_s: Points = np.full(joints + 2, -math.inf)
        self._pose: Pose | None = None

    def update(self, pts_s: float, pose: Pose, settings: Smoothing) -> Pose:
        """The pose, smoothed."""
        raw = np.concatenate([pose.keypoints[:, :2], pose.box.reshape(2, 2)]).astype(np.float64)
        scores = np.concatenate([pose.keypoints[:, 2], [1.0, 1.0]])
        seen = np.asarray(scores >= settings.min_score)
        gone_s = pts_s - self._times_s
        known = gone_s <= max(settings.fill_s, 1.0)
        bridged = np.asarray(~seen & (gone_s <= settings.fill_s))
        shown = np.where(bridged[:, None], self._ahead(gone_s), raw)
        shown_scores = np.where(bridged, self._faded(gone_s, settings), scores)
        size_px = max(1.0, float(max(pose.box[2:] - pose.box[:2])))
        follow = seen & known
        shown[follow] = self._filter(raw, gone_s, size_px, settings)[follow]
        fresh = seen & ~known
        self._velocity[fresh] = 0
        self.value[seen], self._raw[seen] = shown[seen], raw[seen]
        self._scores[seen], self._times_s[seen] = scores[seen], pts_s
        self.seen_s, self.bridges, self._pose = pts_s, 0, pose
        return self._made(pose, shown, shown_scores, pose.score, filled=False)

    def bridge(self, pts_s: float, settings: Smoothing) -> Pose:
        """The pose as it probably is, where it was not estimated."""
        assert self._pose is not None
        self.bridges += 1
        gone_s = pts_s - self._times_s
        left = 1 - (pts_s - self.seen_s) / (settings.fill_s or 1.0)
        known = np.asarray(np.isfinite(self.value).all(axis=1))
        shown = np.where(known[:, None], self._ahead(np.where(known, gone_s, 0)), 0)
        scores = np.where(known & (gone_s <= settings.fill_s), self._faded(gone_s, settings), 0)
        return self._made(self._pose, shown, scores, self._pose.score * max(0.0, left), filled=True)

    def _filter(self, raw: Points, gone_s: Points, size_px: float, settings: Smoothing) -> Points:
        """Equations 1 to 4 of the paper, for all points at once; its speed is the length of the velocity."""
        step_s = np.maximum(gone_s, 1e-4)[:, None]
        velocity = (raw - self._raw) / step_s
        share = _share(step_s, settings.speed_cutoff_hz)
        known = np.isfinite(self.value).all(axis=1)
        self._velocity[known] += (share * (velocity - self._velocity))[known]
        speed = np.linalg.norm(self._velocity, axis=1, keepdims=True) / size_px
        share = _share(step_s, settings.min_cutoff_hz + settings.beta_hz * speed)
        return np.asarray(self.value + share * (raw - self.value))

    def _ahead(self, gone_s: Points) -> Points:
        """Where the points have got to: on with their velocity, which fades."""
        return self.value + self._velocity * (_COAST_S * -np.expm1(-gone_s / _COAST_S))[:, None]

    def _faded(self, gone_s: Points, settings: Smoothing) -> Points:
        """The scores they had, falling to 0 at the end of the longest gap."""
        return np.asarray(self._scores * np.clip(1 - gone_s / (settings.fill_s or 1.0), 0, 1))

    @staticmethod
    def _made(pose: Pose, shown: Points, scores: Points, score: float, *, filled: bool) -> Pose:
        shown = np.clip(shown, -COORDINATE_LIMIT, COORDINATE_LIMIT)  # a bridge may lead out of what can be sent
        keypoints = np.column_stack([shown, scores])[:-2].astype(np.float32)
        box = shown[-2:].reshape(4).astype(np.float32)
        return Pose(track_id=pose.track_id, box=box, score=float(score), keypoints=keypoints, filled=filled)


def _share(step_s: Points, cutoff_hz: Points | float) -> Points:
    """How much of a new value a low-pass filter takes (equation 3)."""
    return np.asarray(1 / (1 + 1 / (2 * math.pi * cutoff_hz * step_s)))
