"""What a source reads from: the one protocol that files, folders and cameras implement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streampose.errors import SourceError


class DisconnectedError(SourceError):
    """The camera went away: frames may come again, but these have ended."""


class DecodeFailedError(SourceError):
    """The stream is there and cannot be decoded any further: damaged or cut short."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded picture, before it becomes a `Frame` of a source.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        pts_s: presentation time, seconds from the start of the stream.
        captured_ns: monotonic time at which the picture was here, nanoseconds.
        decode_s: seconds spent on decoding it and turning it to BGR.
        connection: 0, 1, ...: which connection to the camera it came over.
    """

    image: NDArray[np.uint8]
    pts_s: float
    captured_ns: int
    decode_s: float
    connection: int = 0


class Reader(Protocol):
    """An opened stream of pictures. Its constructor raises SourceError where the stream gives no first picture.

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
