"""Local cameras, through OpenCV."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from urllib.parse import parse_qsl

import cv2
import numpy as np
from numpy.typing import NDArray

from streampose.errors import SourceError, UsageError
from streampose.ring import Drop
from streampose.sources.pace import Pace
from streampose.sources.reader import DisconnectedError, Picture

NOMINAL_FPS = 30.0
FAILURES = 5
"""So many pictures in a row that cannot be read are a camera that is gone; single ones are damaged."""
_OLDEST_S = 10.0
_OTHER_RATE = 0.05
_USE = "webcam:0, or as webcam:0?size=1280x720&fps=30&fourcc=MJPG"

log = logging.getLogger(__name__)

Open = Callable[[int | str], cv2.VideoCapture]


@dataclass(frozen=True, slots=True)
class WebcamOptions:
    """What `webcam:...` names.

    Attributes:
        device: 0, 1, ..., or a path as /dev/video2.
        size: (height, width) asked for, or None for the camera's own choice.
        fps: frames a second asked for, or None.
        fourcc: pixel format asked for, as "MJPG", or None.
    """

    device: int | str
    size: tuple[int, int] | None = None
    fps: float | None = None
    fourcc: str | None = None

    @property
    def source_id(self) -> str:
        """A name for the source: webcam0, or the last part of the device's path."""
        return f"webcam{self.device}" if isinstance(self.device, int) else self.device.rsplit("/", 1)[-1]


def parse_webcam(uri: str) -> WebcamOptions:
    """Read `webcam:DEVICE?size=WxH&fps=N&fourcc=ABCD`.

    Raises:
        UsageError: it is not that.
    """
    where, _, query = uri.removeprefix("webcam:").partition("?")
    if not (re.fullmatch(r"[0-9]{1,4}", where) or where.startswith("/dev/")):
        raise UsageError(f"a webcam is named by its number or device, {_USE}; not {uri!r}")
    asked = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := asked.keys() - {"size", "fps", "fourcc"}:
        raise UsageError(f"{uri}: {', '.join(sorted(unknown))} is no option of a webcam; {_USE}")
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", asked.get("size", "1x1"))
    fps = re.fullmatch(r"\d{1,3}(\.\d+)?", asked.get("fps", "1"))
    fourcc = re.fullmatch(r"[A-Za-z0-9 ]{4}", asked.get("fourcc", "MJPG"))
    if not size or not fps or not fourcc or not float(fps[0]):
        raise UsageError(f"{uri}: size is as 1280x720, fps a number, fourcc four letters; {_USE}")
    return WebcamOptions(
        device=int(where) if where.isdecimal() else where,
        size=(int(size[2]), int(size[1])) if "size" in asked else None,
        fps=float(fps[0]) if "fps" in asked else None,
        fourcc=fourcc[0] if "fourcc" in asked else None,
    )


class WebcamReader:
    """The pictures of an opened capture as they come."""

    live = True

    def __init__(self, name: str, capture: cv2.VideoCapture) -> None:
        """Raises SourceError where the capture is not open or gives no first picture."""
        self.name = name
        self._capture = capture
        if not capture.isOpened():
            raise SourceError(f"{name}: no such camera, or another program is using it")
        if not capture.grab():
            capture.release()
            raise SourceError(f"{name}: the camera opens but gives no picture")
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        self.fps = rate if 1 <= rate <= 1000 else NOMINAL_FPS
        self._pace = Pace()

    @property
    def stall_s(self) -> float:
        """How long without a picture is a stall of this camera, seconds."""
        return self._pace.stall_s

    def pictures(self) -> Iterator[Picture]:
        """See `Reader.pictures`. A camera has no end: when it gives no more, it is disconnected."""
        failures = 0
        while failures < FAILURES:
            began_ns = time.monotonic_ns()
            arrived = self._capture.grab()
            arrived_ns = time.monotonic_ns()
            good, image = self._capture.retrieve() if arrived else (False, None)
            failures = 0 if good else failures + 1
            if not arrived and arrived_ns - began_ns > self.stall_s * 1e9:
                break
            pts_s = self._time_s(arrived_ns)
            decode_s = (time.monotonic_ns() - arrived_ns) / 1e9
            if good:
                fresh = self._pace.judge(pts_s, arrived_ns / 1e9)
                pixels = np.asarray(image, np.uint8)
                drop = None if fresh else Drop.STALE
                yield Picture(partial(_given, pixels), pts_s, arrived_ns, decode_s, None, self._pace.section, drop)
        raise DisconnectedError(f"{self.name}: the camera stopped giving pictures; was it unplugged?")

    def close(self) -> None:
        """Release the camera."""
        self._capture.release()

    def _time_s(self, arrived_ns: int) -> float:
        """When the picture was taken, monotonic seconds: V4L2 says so; elsewhere when it arrived."""
        stamp_s, arrived_s = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1e3, arrived_ns / 1e9
        return stamp_s if 0 <= arrived_s - stamp_s < _OLDEST_S else arrived_s


class Webcam:
    """How to open one local camera, again and again, so that it may be unplugged."""

    def __init__(self, options: WebcamOptions, open_capture: Open | None = None) -> None:
        self.name = f"webcam:{options.device}"
        self._options = options
        self._open = open_capture or _open

    def connect(self) -> WebcamReader:
        """Open the camera, now.

        Raises:
            SourceError: it is not there, gives no picture, or cannot do what was asked.
        """
        opencv = cv2.utils.logging
        level = opencv.setLogLevel(opencv.LOG_LEVEL_SILENT)  # its own lines about a camera would stand beside ours
        try:
            capture = self._open(self._options.device)
        finally:
            opencv.setLogLevel(level)
        self._set(capture)
        return WebcamReader(self.name, capture)

    def _set(self, capture: cv2.VideoCapture) -> None:
        """Ask for the format. Raises SourceError where the camera chose another size; another rate or format, which
        change no result, are named in the log."""
        options = self._options
        if options.fourcc is not None:
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*options.fourcc))
        if options.fps is not None:
            capture.set(cv2.CAP_PROP_FPS, options.fps)
        if not capture.isOpened():
            return
        self._set_size(capture)
        code, rate = int(capture.get(cv2.CAP_PROP_FOURCC)), float(capture.get(cv2.CAP_PROP_FPS))
        chosen = code.to_bytes(4, "little").decode("latin-1") if 0 < code < 1 << 32 else None  # not all drivers tell
        if options.fourcc is not None and chosen not in (None, options.fourcc):
            log.warning("%s: asked for %s, the camera chose %s", self.name, options.fourcc, chosen)
        if options.fps is not None and rate > 0 and abs(rate - options.fps) > _OTHER_RATE * options.fps:
            log.warning("%s: asked for %g frames a second, the camera chose %g", self.name, options.fps, rate)

    def _set_size(self, capture: cv2.VideoCapture) -> None:
        if self._options.size is None:
            return
        height, width = self._options.size
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
        got = (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
        if got != (width, height):
            capture.release()
            raise SourceError(f"{self.name}: cannot give {width}x{height}; the camera chose {got[0]}x{got[1]}")


def _open(device: int | str) -> cv2.VideoCapture:
    """On Linux by V4L2 alone: given a path, OpenCV would have FFmpeg read the device as a file first."""
    return cv2.VideoCapture(device, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)


def _given(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels
