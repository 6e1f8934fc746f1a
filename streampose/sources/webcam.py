"""Local cameras, through OpenCV."""

from __future__ import annotations

import time
from collections.abc import Iterator

import cv2
import numpy as np

from streampose.errors import SourceError
from streampose.sources.reader import DisconnectedError, Picture

NOMINAL_FPS = 30.0


class WebcamReader:
    """The pictures of an opened capture as they come."""

    live = True

    def __init__(self, name: str, capture: cv2.VideoCapture) -> None:
        """Raises SourceError where the capture is not open or gives no first picture."""
        self.name = name
        self._capture = capture
        if not capture.isOpened():
            raise SourceError(f"{name}: no such camera, or another program is using it")
        self._start_ns = time.monotonic_ns()
        self._first = self._grab()
        if self._first is None:
            capture.release()
            raise SourceError(f"{name}: the camera opens but gives no picture")
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        self.fps = rate if 1 <= rate <= 1000 else NOMINAL_FPS

    def pictures(self) -> Iterator[Picture]:
        """See `Reader.pictures`. A camera has no end: when it gives no more, it is disconnected."""
        picture = self._first
        while picture is not None:
            yield picture
            picture = self._grab()
        raise DisconnectedError(f"{self.name}: the camera stopped giving pictures; was it unplugged?")

    def close(self) -> None:
        """Release the camera."""
        self._capture.release()

    def _grab(self) -> Picture | None:
        if not self._capture.grab():
            return None
        captured_ns = time.monotonic_ns()
        good, image = self._capture.retrieve()
        if not good:
            return None
        pts_s = (captured_ns - self._start_ns) / 1e9
        return Picture(np.asarray(image, np.uint8), pts_s, captured_ns, (time.monotonic_ns() - captured_ns) / 1e9)


def open_webcam(number: int) -> WebcamReader:
    """The reader of local camera 0, 1, ...; raises SourceError where it is not there."""
    logging = cv2.utils.logging
    level = logging.setLogLevel(
        logging.LOG_LEVEL_SILENT
    )  # its own lines about a missing camera would stand beside ours
    try:
        capture = cv2.VideoCapture(number)
    finally:
        logging.setLogLevel(level)
    return WebcamReader(f"webcam:{number}", capture)
