"""Small pictures of what the cameras see, made only while somebody looks, and never by the thread that estimates."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from streampose.errors import StreamposeError
from streampose.publish import Publisher
from streampose.types import Frame

RATE_HZ = 12.0
"""At most so many pictures a second and source."""
WIDTH_PX = 480
"""Wider pictures are made smaller."""
QUALITY = 72


class Pictures:
    """Sends pictures of the frames that `offer` gets, through a thread of its own. A context manager.

    Args:
        publisher: who sends them.
        on_crash: is told, by that thread, when it ends in an error.
    """

    def __init__(self, publisher: Publisher, on_crash: Callable[[StreamposeError], None]) -> None:
        self._publisher = publisher
        self._on_crash = on_crash
        self._news = threading.Condition()
        self._waiting: dict[str, Frame] = {}
        self._due_s: dict[str, float] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="pictures", daemon=True)

    def offer(self, frame: Frame) -> None:
        """Take a frame if it is time for a picture of its source, and somebody looks; returns at once."""
        now_s = time.monotonic()
        if now_s < self._due_s.get(frame.source_id, 0.0) or not self._publisher.is_looked_at(frame.source_id):
            return
        self._due_s[frame.source_id] = now_s + 1 / RATE_HZ
        with self._news:
            self._waiting[frame.source_id] = frame
            self._news.notify()

    def __enter__(self) -> Pictures:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._send()
        except Exception as error:
            failure = StreamposeError(f"the stage of pictures crashed with {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._on_crash(failure)

    def _send(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                frame = self._waiting.pop(next(iter(self._waiting)))
            self._publisher.show(
                frame.source_id,
                to_jpeg(frame.image),
                epoch=frame.epoch,
                frame_index=frame.index,
                captured_ns=frame.captured_ns,
                size=(frame.height, frame.width),
            )


def to_jpeg(image: NDArray[np.uint8], width_px: int = WIDTH_PX) -> bytes:
    """A JPEG of (H, W, 3) uint8 BGR, at most `width_px` wide."""
    height, width = image.shape[:2]
    if width > width_px:
        size = (width_px, max(1, round(height * width_px / width)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return data.tobytes()
