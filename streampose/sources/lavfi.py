"""Test pictures that FFmpeg makes: `lavfi:testsrc2=size=640x480:rate=30`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import av
from av.error import FFmpegError

from streampose.errors import SourceError
from streampose.sources.reader import DecodeFailedError, Picture
from streampose.sources.video import reason, to_image

NOMINAL_FPS = 25.0


class LavfiReader:
    """The pictures of a filter graph, made as fast as they are asked for."""

    live = False

    def __init__(self, graph: str) -> None:
        """Raises SourceError where FFmpeg cannot make pictures of the graph."""
        self.name = f"lavfi:{graph}"
        try:
            self._container = av.open(graph, format="lavfi")
        except (FFmpegError, OSError, ValueError) as error:
            raise SourceError(f"{self.name}: not a filter graph that FFmpeg can run ({reason(error)})") from error
        if not self._container.streams.video:
            self._container.close()
            raise SourceError(f"{self.name}: makes no video")
        self._stream = self._container.streams.video[0]
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate else NOMINAL_FPS

    def pictures(self) -> Iterator[Picture]:
        """See `Reader.pictures`."""
        count, start_s = 0, None
        began = time.perf_counter()
        try:
            for frame in self._container.decode(self._stream):
                time_s = float(frame.time) if frame.time is not None else count / self.fps
                start_s = time_s if start_s is None else start_s
                spent_s = time.perf_counter() - began
                yield Picture(partial(to_image, frame), time_s - start_s, time.monotonic_ns(), spent_s)
                began, count = time.perf_counter(), count + 1
        except FFmpegError as error:
            raise DecodeFailedError(f"{self.name}: failed after frame {count - 1} ({reason(error)})") from error

    def close(self) -> None:
        """End the graph."""
        self._container.close()
