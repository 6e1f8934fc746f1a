"""What a source reads from: the one protocol that files, folders and cameras implement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streampose.errors import SourceError
from streampose.ring import Drop
from streampose.types import Clock


class DisconnectedError(SourceError):
    """The camera went away: frames may come again, but these have ended."""


class DecodeFailedError(SourceError):
    """The stream is there and cannot be decoded any further: damaged or cut short."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded picture, before it becomes a `Frame` of a source.

    Attributes:
        load: makes its pixels, (H, W, 3) uint8 BGR, upright. Called once, or not at all where the picture is dropped;
            raises DecodeFailedError where it cannot.
        pts_s: presentation time, seconds from the start of the stream.
        arrived_ns: monotonic time at which the picture was here, nanoseconds.
        decode_s: seconds spent on decoding it, without `load`.
        captured_ns: monotonic time of its capture; None where nothing better is known than its arrival.
        section: 0, 1, ...: between pictures of two sections of one stream something is missing, as after a stall.
        drop: why the picture must not be used, if so.
    """

    load: Callable[[], NDArray[np.uint8]]
    pts_s: float
    arrived_ns: int
    decode_s: float
    captured_ns: int | None = None
    section: int = 0
    drop: Drop | None = None

    @property
    def clock(self) -> Clock:
        """Whose clock tells the capture time: the camera's, by its RTCP reports, or ours at arrival."""
        return "arrival" if self.captured_ns is None else "rtcp"


class Reader(Protocol):
    """An opened stream of pictures. Whoever opens it raises SourceError where the stream cannot be.

    Attributes:
        name: what messages call it, without credentials.
        live: pictures come at the camera's pace and cannot be held back.
        fps: nominal frames per second.
    """

    name: str
    live: bool
    fps: float

    def pictures(self) -> Iterator[Picture]:
        """The pictures in order; the iterator ends at the end of the stream.

        Raises:
            DisconnectedError: the camera is gone.
            DecodeFailedError: the rest cannot be decoded.
        """

    def close(self) -> None:
        """Release the stream; called by the thread that reads."""
