"""What all readers of video share: upright pixels, hardware decoders, and errors without their URL."""

from __future__ import annotations

import logging
import re
from typing import Any

import av
import cv2
import numpy as np
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.error import FFmpegError
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from streampose.errors import SourceError, UsageError
from streampose.sources.reader import DecodeFailedError

_TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}
_KIND = re.compile(r"[a-z0-9]+")

log = logging.getLogger(__name__)


def to_image(frame: VideoFrame) -> NDArray[np.uint8]:
    """The pixels of a decoded frame, (H, W, 3) uint8 BGR, turned as its rotation metadata say.

    Raises:
        DecodeFailedError: its pixels cannot be converted.
    """
    try:
        image = np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)
    except (FFmpegError, ValueError) as error:
        raise DecodeFailedError(f"a picture in {frame.format.name} cannot be turned to BGR ({reason(error)})") from None
    turn = _TURNS.get(int(frame.rotation) % 360)
    return image if turn is None else np.asarray(cv2.rotate(image, turn), np.uint8)


def reason(error: Exception) -> str:
    """What went wrong, in FFmpeg's or the system's words, without the URL that its own message holds."""
    text = getattr(error, "strerror", None) or (type(error).__name__ if isinstance(error, FFmpegError) else str(error))
    return text.splitlines()[0] if text else type(error).__name__


def check_hwaccel(kind: str | None) -> None:
    """Raises UsageError where the installed FFmpeg knows no such hardware decoder ("cuda", "vaapi", ...)."""
    if kind is None:
        return
    known = hwdevices_available()
    if not _KIND.fullmatch(kind) or kind not in known:
        raise UsageError(f"hwaccel is one of {', '.join(known) or 'none here'}, not {kind!r}")


def open_video(where: str, name: str, hwaccel: str | None, **how: Any) -> av.container.InputContainer:
    """`av.open` with a hardware decoder, if one is asked for: decoded is there, or not at all.

    Args:
        where: path or URL.
        name: what messages call it, without credentials.
        hwaccel: a hardware decoder's name, as "cuda", or None.
        how: further arguments of `av.open`.

    Raises:
        SourceError: this machine has no such decoder, or it cannot decode this video.
        FFmpegError, OSError, ValueError: as `av.open`.
    """
    container: av.container.InputContainer
    if hwaccel is None:
        container = av.open(where, **how)
        return container
    check_hwaccel(hwaccel)
    try:
        container = av.open(where, hwaccel=HWAccel(device_type=hwaccel, allow_software_fallback=False), **how)
        return container
    except (RuntimeError, av.error.PermissionError) as error:
        log.debug("%s: FFmpeg says: %s", name, reason(error))
        raise SourceError(f"{name}: {hwaccel} cannot decode this here; leave out hwaccel") from None
