"""A bounded ring of frames between one reading thread and the one thread that estimates.

The slots are allocated once and hold references: a frame's pixels belong to the frame and are never written again, so
that whoever took a frame may keep it as long as it likes.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from enum import StrEnum

from streampose.types import Frame


class Drop(StrEnum):
    """Why a frame of a source was never estimated."""

    OVERWRITTEN = "overwritten"
    """The ring was full and the frame was its oldest."""
    SUPERSEDED = "superseded"
    """A newer frame was there when the estimator asked for the latest."""
    EPOCH = "epoch"
    """The source started a new epoch while the frame waited."""
    STALE = "stale"
    """It waited on the way: the first after a connect or a stall, or one of a burst that came late."""
    BEHIND = "behind"
    """Decoding could not keep up with the camera: skipped to the next key frame, undecoded."""
    DAMAGED = "damaged"
    """It could not be decoded, or only in part."""
    FPS = "fps"
    """Above the frames a second that were asked for."""
    STOPPED = "stopped"
    """It was read, and its source was done or stopped before its turn."""


class FrameRing:
    """At most `capacity` frames of one source, oldest out first.

    A live reader overwrites (`wait=False`): it never waits for inference, and the oldest frame is dropped and counted.
    A lossless reader blocks (`wait=True`) until there is room. Both ends may be closed by anybody.
    """

    def __init__(self, capacity: int) -> None:
        """Raises ValueError where `capacity` is below 1."""
        if capacity < 1:
            raise ValueError(f"a ring holds at least one frame, not {capacity}")
        self._slots: list[Frame | None] = [None] * capacity
        self._first = 0
        self._count = 0
        self._epoch = 0
        self._closed = False
        self._drops: Counter[Drop] = Counter()
        self._changed = threading.Condition()
        self._listener: threading.Event | None = None

    @property
    def capacity(self) -> int:
        """The number of slots."""
        return len(self._slots)

    @property
    def drops(self) -> dict[str, int]:
        """Frames dropped so far, by reason (a `Drop` as text)."""
        with self._changed:
            return {str(reason): n for reason, n in self._drops.items()}

    @property
    def dropped(self) -> int:
        """Frames dropped so far, whatever the reason."""
        with self._changed:
            return self._drops.total()

    @property
    def closed(self) -> bool:
        """No frame comes any more; those inside can still be taken."""
        return self._closed

    def __len__(self) -> int:
        return self._count

    def listen(self, event: threading.Event) -> None:
        """Set `event` whenever a frame arrives or the ring closes; several rings may share one event."""
        self._listener = event

    def count(self, reason: Drop) -> None:
        """Count a frame that was dropped before it could be put."""
        with self._changed:
            self._drops[reason] += 1

    def clear(self, reason: Drop) -> None:
        """Drop the frames inside."""
        with self._changed:
            self._discard(self._count, reason)
            self._tell()

    def put(self, frame: Frame, wait: bool = False) -> bool:
        """Append a frame.

        Args:
            frame: the next frame; a higher epoch than the last one's empties a live ring first (a lossless one keeps
                what it has, since nothing may be lost).
            wait: block while the ring is full instead of dropping its oldest frame.

        Returns:
            False where the ring is closed, and the frame was not taken.
        """
        with self._changed:
            if frame.epoch != self._epoch:
                self._epoch = frame.epoch
                if not wait:
                    self._discard(self._count, Drop.EPOCH)
            while wait and self._count == self.capacity and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            if self._count == self.capacity:
                self._discard(1, Drop.OVERWRITTEN)
            self._slots[(self._first + self._count) % self.capacity] = frame
            self._count += 1
            self._tell()
            return True

    def get(self, timeout_s: float = 0.0, latest: bool = False) -> Frame | None:
        """Take a frame.

        Args:
            timeout_s: how long to wait for one; 0 does not wait.
            latest: take the newest and drop what is older, instead of taking the oldest.

        Returns:
            None where there is none in time, or none will come.
        """
        with self._changed:
            deadline = time.monotonic() + timeout_s
            while not self._count and not self._closed:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
            if not self._count:
                return None
            if latest:
                self._discard(self._count - 1, Drop.SUPERSEDED)
            frame = self._pop()
            self._tell()
            return frame

    def close(self) -> None:
        """Take no more frames; wakes everybody who waits."""
        with self._changed:
            self._closed = True
            self._tell()

    def _tell(self) -> None:
        self._changed.notify_all()
        if self._listener is not None:
            self._listener.set()

    def _pop(self) -> Frame | None:
        frame = self._slots[self._first]
        self._slots[self._first] = None
        self._first = (self._first + 1) % self.capacity
        self._count -= 1
        return frame

    def _discard(self, count: int, reason: Drop) -> None:
        for _ in range(count):
            self._pop()
            self._drops[reason] += 1
