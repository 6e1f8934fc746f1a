"""What a tracker knows of one person."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from streampose.boxes import centre, shifted
from streampose.geometry import transform


class Life(Enum):
    """How a track stands."""

    TENTATIVE = "seen once, not sure"
    ACTIVE = "followed"
    LOST = "remembered"


@dataclass(slots=True)
class Tracked:
    """One person.

    Attributes:
        key: see `Track`; track_id: what is published, once it is.
        box, crop_box, ghost: (4,) xyxy pixels of the last frame: the person, what the crop shows, and where somebody
            would be who has a `rival`, had they gone on as they went.
        velocity, calm, course: (2,) pixels a second over the background: now, averaged, and before a rival was met.
        keypoints, pose_s: (J, 3) the last good ones in pixels of the last frame, and their time.
        rival, met_s, hidden: who hides this person or is hidden by them, since when, and whether this one is hidden.
        look: what the person looks like, see `looks`; None where they were never seen well.
    """

    key: int
    box: NDArray[np.float32]
    crop_box: NDArray[np.float32]
    score: float
    born_s: float
    detected_s: float
    life: Life
    track_id: int | None = None
    velocity: NDArray[np.float32] = field(default_factory=lambda: np.zeros(2, np.float32))
    calm: NDArray[np.float32] = field(default_factory=lambda: np.zeros(2, np.float32))
    keypoints: NDArray[np.float32] | None = None
    pose_s: float = 0.0
    quality: float = 1.0
    posed: bool = False
    missed: int = 0
    lost_s: float = 0.0
    hidden: bool = False
    rival: Tracked | None = None
    met_s: float = 0.0
    ghost: NDArray[np.float32] = field(default_factory=lambda: np.zeros(4, np.float32))
    course: NDArray[np.float32] = field(default_factory=lambda: np.zeros(2, np.float32))
    fresh: bool = True
    look: NDArray[np.float32] | None = None

    def pose_at(self, pts_s: float) -> NDArray[np.float32] | None:
        """The last good keypoints (J, 3), moved on to a time; None where there are none."""
        if self.keypoints is None:
            return None
        moved = self.keypoints.copy()
        moved[:, :2] += self.velocity * np.float32(pts_s - self.pose_s)
        return moved

    def carry(self, affine: NDArray[np.float32]) -> None:
        """Move the places along with the background, by (2, 3) from pixels of the frame before to pixels of this one.
        Velocities are relative to the background."""
        for name in ("box", "ghost"):
            middle = centre(getattr(self, name))[None]
            setattr(self, name, shifted(getattr(self, name), (transform(middle, affine) - middle)[0]))
        if self.keypoints is not None:
            self.keypoints = carried(self.keypoints, affine)


def carried(keypoints: NDArray[np.float32], affine: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keypoints (J, 3) moved by a (2, 3)."""
    return np.column_stack([transform(keypoints[:, :2], affine), keypoints[:, 2]])
