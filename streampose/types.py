"""What crosses module borders: frames and poses. Frozen, slotted, validated once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Clock = Literal["rtcp", "arrival"]
"""Whose clock a capture time rests on: the camera's, by its RTCP reports, or this machine's, at arrival."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of one source.

    Attributes:
        image: (H, W, 3) uint8 BGR. Nobody writes into it.
        source_id: the source's name in topics and files.
        index: 0, 1, ... as decoded from this source; counts on through epochs.
        pts_s: presentation time in seconds from the start of the source.
        captured_ns: monotonic time of capture where `clock` is "rtcp", else of arrival in this process, nanoseconds.
        epoch: +1 at each reconnect, stall and change of size; frames of two epochs never share a window.
        clock: what `captured_ns` rests on.
    """

    image: NDArray[np.uint8]
    source_id: str
    index: int
    pts_s: float
    captured_ns: int
    epoch: int = 0
    clock: Clock = "arrival"

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            raise ValueError(f"a frame is uint8 (H, W, 3), not {self.image.dtype} {self.image.shape}")

    @property
    def height(self) -> int:
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        return int(self.image.shape[1])


@dataclass(frozen=True, slots=True)
class Pose:
    """One person in one frame.

    Attributes:
        track_id: the same number as long as the person is followed.
        box: (4,) float32 x1, y1, x2, y2 in pixels of the frame.
        score: 0..1, confidence of the person.
        keypoints: (J, 3) float32 x, y in pixels of the frame and score 0..1.
        filled: nobody was estimated here: the pose bridges a short gap in its track (see `smoothing`).
    """

    track_id: int
    box: NDArray[np.float32]
    score: float
    keypoints: NDArray[np.float32]
    filled: bool = False

    def __post_init__(self) -> None:
        if self.box.shape != (4,):
            raise ValueError(f"a box is (4,), not {self.box.shape}")
        if self.keypoints.ndim != 2 or self.keypoints.shape[1] != 3:
            raise ValueError(f"keypoints are (J, 3), not {self.keypoints.shape}")


@dataclass(frozen=True, slots=True)
class PoseFrame:
    """The people of one frame of one source; `people` is empty when nobody is in view.

    Attributes:
        source: name of the source.
        epoch, frame_index, pts_s, captured_ns, clock, width, height: of the frame.
        published_ns: monotonic time at which the result left the pipeline, nanoseconds.
        skeleton: name of the joint set.
        dropped: frames of this source left out so far (decoded, never estimated).
        people: the poses, in no particular order.
        missed: set by a subscriber: messages lost before this one.
        clock: of the frame.
        smoothed: keypoints are filtered over time, by the publisher or by `Smoother` here; not raw.
    """

    source: str
    epoch: int
    frame_index: int
    pts_s: float
    captured_ns: int
    published_ns: int
    width: int
    height: int
    skeleton: str
    dropped: int
    people: tuple[Pose, ...]
    missed: int = 0
    clock: Clock = "arrival"
    smoothed: bool = False
