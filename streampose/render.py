"""Frames with their poses, written to an H.264 file."""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from streampose.draw import draw_poses
from streampose.errors import OutputError
from streampose.types import Frame, PoseFrame

_TICKS_HZ = 90_000
_RATE_WINDOW = 30


class OverlayWriter:
    """Writes an mp4 of frames with their poses.

    A context manager. The file is fragmented, so that it plays up to the last second even when the process is killed.
    """

    def __init__(self, path: str | Path, fps: float, size: tuple[int, int]) -> None:
        """Create the file; an existing one is replaced.

        Args:
            path: of the mp4.
            fps: nominal frames per second; each frame is shown at its own `pts_s`.
            size: (height, width) of the picture; frames of another size are fitted into it.

        Raises:
            OutputError: it cannot be created.
        """
        self.path = Path(path)
        self.frames = 0
        self._size = size
        self._step = max(1, round(_TICKS_HZ / fps))
        self._ticks = -self._step
        self._shift = 0
        self._times_ns: deque[int] = deque(maxlen=_RATE_WINDOW)
        self._closed = False
        if not self.path.parent.is_dir():
            raise OutputError(f"{self.path}: there is no folder {self.path.parent}")
        try:
            self._sink = _Sink(self.path)
        except OSError as error:
            raise self._failed(error) from error
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "1000000"}
        self._container = av.open(self._sink, "w", format="mp4", options=options)
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        self._stream.height, self._stream.width = (length + length % 2 for length in size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = self._stream.codec_context.time_base = Fraction(1, _TICKS_HZ)
        self._stream.options = {"crf": "20", "preset": "veryfast", "bf": "0", "g": str(max(1, round(2 * fps)))}

    def write(self, frame: Frame, poses: PoseFrame) -> None:
        """Draw and append one frame.

        Raises:
            OutputError: it cannot be written, for instance because the disk is full.
        """
        drawn = _fitted(draw_poses(frame.image, poses, self._rate(poses.published_ns)), self._size)
        picture = av.VideoFrame.from_ndarray(drawn, format="bgr24")
        picture.pts, picture.time_base = self._tick(frame.pts_s), Fraction(1, _TICKS_HZ)
        self._container.mux(self._stream.encode(picture))
        self.frames += 1
        self._check()

    def close(self) -> None:
        """Finish the file.

        Raises:
            OutputError: what was left cannot be written.
        """
        if self._closed:
            return
        self._closed = True
        if self.frames:
            self._container.mux(self._stream.encode(None))
        self._container.close()
        self._sink.close()
        self._check()

    def __enter__(self) -> OverlayWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OutputError:
            if error is None:
                raise

    def _check(self) -> None:
        if self._sink.error is not None:
            raise self._failed(self._sink.error) from self._sink.error

    def _tick(self, pts_s: float) -> int:
        """The frame's time in the file; where a source's time jumps back (a new connection) it goes on from there."""
        ticks = round(pts_s * _TICKS_HZ) + self._shift
        if ticks <= self._ticks:
            self._shift += self._ticks + self._step - ticks
            ticks = self._ticks + self._step
        self._ticks = ticks
        return ticks

    def _rate(self, published_ns: int) -> float | None:
        """Results a second over the last frames."""
        self._times_ns.append(published_ns)
        spent_ns = self._times_ns[-1] - self._times_ns[0]
        return (len(self._times_ns) - 1) * 1e9 / spent_ns if spent_ns > 0 else None

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(f"{self.path}: cannot be written ({error.strerror or error})")


class _Sink:
    """The file as FFmpeg sees it: it remembers errors instead of raising them, since FFmpeg may crash after one."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write all of it, or remember why not."""
        left = memoryview(data)
        while left and self.error is None:
            try:
                left = left[self._file.write(left) :]
            except OSError as error:
                self.error = error
        return len(data)

    def close(self) -> None:
        """Close the file, or remember why not."""
        try:
            self._file.close()
        except OSError as error:
            self.error = self.error or error


def _fitted(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture scaled into (height, width), centred on black, with even sides for the codec."""
    if image.shape[:2] != size:
        ratio = min(size[0] / image.shape[0], size[1] / image.shape[1])
        inner = (max(1, round(image.shape[1] * ratio)), max(1, round(image.shape[0] * ratio)))
        scaled = cv2.resize(image, inner, interpolation=cv2.INTER_AREA)
        board = np.zeros((*size, 3), np.uint8)
        top, left = (size[0] - inner[1]) // 2, (size[1] - inner[0]) // 2
        board[top : top + inner[1], left : left + inner[0]] = scaled
        image = board
    if size[0] % 2 or size[1] % 2:
        padded = cv2.copyMakeBorder(image, 0, size[0] % 2, 0, size[1] % 2, cv2.BORDER_REPLICATE)
        image = np.asarray(padded, np.uint8)
    return image
