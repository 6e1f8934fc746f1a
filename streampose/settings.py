"""How a pipeline runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from streampose.errors import UsageError
from streampose.tracker import TrackerSettings


@dataclass(frozen=True, slots=True)
class Settings:
    """How a pipeline runs.

    Attributes:
        detect_every: the detector looks at one frame in so many, >= 1; at every one while nobody is followed.
        max_frames: results of each source after which it is stopped; None for all.
        tracker: how people are followed.
        batch_wait_s: how long the first camera's frame waits for those of the others, to share engine calls with them.
        batch_frames: frames in a round, at most; with more cameras, they take turns.
        round_s: how long a round should take; where it would take longer, it gets fewer frames (see `RoundSize`).
        keep_trying: go on where no camera could be connected to; otherwise the first error ends the run.
        keep_open: go on where no source is left, since some may be added.
    """

    detect_every: int = 3
    max_frames: int | None = None
    tracker: TrackerSettings = field(default_factory=TrackerSettings)
    batch_wait_s: float = 0.005
    batch_frames: int = 16
    round_s: float = 0.1
    keep_trying: bool = False
    keep_open: bool = False

    def __post_init__(self) -> None:
        if self.detect_every < 1:
            raise UsageError(f"the detector looks at one frame in 1 or more, not in {self.detect_every}")
        if self.max_frames is not None and self.max_frames < 1:
            raise UsageError(f"max-frames must be at least 1, not {self.max_frames}")
        if not 0 <= self.batch_wait_s <= 1:
            raise UsageError(f"a frame waits for others 0 to 1 s, not {self.batch_wait_s}")
        if self.batch_frames < 1:
            raise UsageError(f"a round takes at least one frame, not {self.batch_frames}")
        if self.round_s <= 0:
            raise UsageError(f"a round takes more than 0 s, not {self.round_s}")
