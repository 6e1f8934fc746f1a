"""What a tracker knows of one person."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from streampose.boxes import centre, shifted
from streampose.geometry import transform


class Life(Enum):
    TENTATIVE = "seen once, not sure"
    ACTIVE = "followed"
    LOST = "remembered"


@dataclass(slots=True)
class Tracked:
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
        """Move what is known of places along with the background, by (2, 3) from pixels of the frame before."""
        for name in ("box", "ghost"):
            box = getattr(self, name)
            middle = centre(box)[None]
            setattr(self, name, shifted(box, (transform(middle, affine) - middle)[0]))
        if self.keypoints is not None:
            self.keypoints = np.column_stack([transform(self.keypoints[:, :2], affine), self.keypoints[:, 2]])
