"""Video files, through PyAV."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from av.error import FFmpegError
from av.video.frame import VideoFrame

from streampose.errors import SourceError
from streampose.redact import redact
from streampose.sources.reader import DecodeFailedError, Picture
from streampose.sources.video import open_video, reason, to_image

NOMINAL_FPS = 25.0


class FileReader:
    """Every picture of a video file, upright (the file's rotation is applied)."""

    live = False

    def __init__(self, path: Path, hwaccel: str | None = None) -> None:
        """Raises SourceError where the file is missing, is no video or holds no picture."""
        self.name = str(path)
        if not path.exists():
            raise SourceError(f"{redact(str(path))}: no such file")  # perhaps a URL with a mistake in its scheme
        try:
            self._container = open_video(str(path), self.name, hwaccel)
        except (FFmpegError, OSError, ValueError) as error:
            raise SourceError(f"{path}: not a video that can be read ({reason(error)})") from error
        if not self._container.streams.video:
            self._container.close()
            raise SourceError(f"{path}: holds no video")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate else NOMINAL_FPS
        self._packets = 0
        self._count = 0
        self._start_s: float | None = None
        self._last_s = 0.0
        self._decoded = self._decode()
        try:
            self._first = next(self._decoded, None)
        except DecodeFailedError as error:
            self._container.close()
            raise SourceError(f"{path}: no picture of it can be decoded; is it damaged?") from error
        if self._first is None:
            self._container.close()
            raise SourceError(f"{path}: a video without a single picture")

    @property
    def codec(self) -> str:
        """FFmpeg's name of the video's codec."""
        return self._stream.codec_context.name

    def pictures(self) -> Iterator[Picture]:
        """See `Reader.pictures`. A file that stops before its declared end raises DecodeFailedError after its last
        picture."""
        if self._first is not None:
            yield self._first
            self._first = None
        yield from self._decoded
        if self._cut_short():
            raise DecodeFailedError(f"{self.name}: cut short after frame {self._count - 1}, {self._last_s:.2f} s")

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _decode(self) -> Iterator[Picture]:
        began = time.perf_counter()
        try:
            for packet in self._container.demux(self._stream):
                self._packets += packet.size > 0
                for frame in packet.decode():
                    yield self._picture(frame, began)
                    began = time.perf_counter()
        except FFmpegError as error:
            raise DecodeFailedError(
                f"{self.name}: cannot be decoded after frame {self._count - 1}, {self._last_s:.2f} s ({reason(error)})"
            ) from error

    def _picture(self, frame: VideoFrame, began: float) -> Picture:
        time_s = float(frame.time) if frame.time is not None else self._count / self.fps
        if self._start_s is None:
            self._start_s = time_s
        self._last_s = time_s - self._start_s
        self._count += 1
        return Picture(partial(to_image, frame), self._last_s, time.monotonic_ns(), time.perf_counter() - began)

    def _cut_short(self) -> bool:
        """Whether the container declared clearly more than it held."""
        declared = self._stream.frames
        if declared:
            return self._packets < declared - max(2, declared // 50)
        if self._stream.duration and self._stream.time_base:
            length_s = float(self._stream.duration * self._stream.time_base)
        elif self._container.duration and not self._container.streams.audio:
            length_s = self._container.duration / 1e6
        else:
            return False
        return self._last_s + 1 / self.fps < length_s - max(0.5, 0.05 * length_s)
