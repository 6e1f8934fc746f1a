"""What the pipeline asks of whoever follows the people of a source, and the simplest one that does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streampose.types import Pose


@dataclass(frozen=True, slots=True)
class Track:
    """A person to estimate in the frame at hand.

    Attributes:
        key: names the track's window; never reused, not shown to anybody.
        box: (4,) float32 xyxy, the person, frame pixels.
        crop_box: (4,) float32 xyxy, what the crop is centred on; the same numbers as in the frame before, as long as
            the person moves little.
        score: 0..1, of the last detections.
    """

    key: int
    box: NDArray[np.float32]
    crop_box: NDArray[np.float32]
    score: float


class Follower(Protocol):
    """What the pipeline needs of whoever follows the people of a source; see `Tracker`."""

    @property
    def undecided(self) -> bool:
        """The next frame should be looked at by the detector."""

    @property
    def keys(self) -> tuple[int, ...]:
        """The keys of all tracks whose windows are still of use."""

    def reset(self) -> None:
        """Forget everybody; ids go on."""

    def advance(
        self,
        pts_s: float,
        size: tuple[int, int],
        detections: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
        image: NDArray[np.uint8] | None = None,
    ) -> tuple[Track, ...]:
        """Go on to a frame: the people to estimate in it."""

    def settle(
        self, pts_s: float, tracks: Sequence[Track], keypoints: Sequence[NDArray[np.float32]]
    ) -> tuple[Pose, ...]:
        """Take the keypoints of tracks that `advance` gave, now or some frames ago: the poses to publish."""


class WholeFrame:
    """Follows nobody: one person, track 1, who fills the frame. For pictures that were cut to a person already."""

    undecided = False
    keys = (1,)

    def reset(self) -> None:
        """Nothing is remembered."""

    def advance(
        self,
        pts_s: float,  # noqa: ARG002
        size: tuple[int, int],
        detections: tuple[NDArray[np.float32], NDArray[np.float32]] | None,  # noqa: ARG002
        image: NDArray[np.uint8] | None = None,  # noqa: ARG002
    ) -> tuple[Track, ...]:
        """The frame as one track; see `Tracker.advance`."""
        box = np.array([0, 0, size[1], size[0]], np.float32)
        return (Track(1, box, box, 1.0),)

    def settle(
        self,
        pts_s: float,  # noqa: ARG002
        tracks: Sequence[Track],
        keypoints: Sequence[NDArray[np.float32]],
    ) -> tuple[Pose, ...]:
        """The one pose; see `Tracker.settle`."""
        return tuple(
            Pose(1, track.box, pose_score(1.0, points), points) for track, points in zip(tracks, keypoints, strict=True)
        )


def pose_quality(keypoints: NDArray[np.float32]) -> float:
    """How sure a (J, 3) pose is of itself, 0..1: the mean score of its better half of joints."""
    scores = np.sort(keypoints[:, 2])[::-1]
    return float(scores[: (len(scores) + 1) // 2].mean())


def pose_score(box_score: float, keypoints: NDArray[np.float32]) -> float:
    """Confidence of a person, 0..1: the box's score times the mean score of its joints above 0.2, as HRNet has it."""
    sure = keypoints[keypoints[:, 2] > 0.2, 2]
    return float(np.clip(box_score * (sure.mean() if len(sure) else 0.0), 0.0, 1.0))
