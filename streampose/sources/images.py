"""A folder of pictures, read as a video in natural order."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from streampose.errors import SourceError
from streampose.sources.reader import DecodeFailedError, Picture

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
NOMINAL_FPS = 25.0


class ImagesReader:
    """The pictures of a folder (or one picture), 25 a second by their presentation time."""

    live = False
    fps = NOMINAL_FPS

    def __init__(self, path: Path) -> None:
        """Raises SourceError where there is no picture or the first is damaged."""
        self.name = str(path)
        self._paths = list_images(path)
        if not self._paths:
            raise SourceError(f"{path}: no pictures in this folder ({', '.join(SUFFIXES)})")
        try:
            self._first: Picture | None = self._load(0)
        except DecodeFailedError as error:
            raise SourceError(str(error)) from error

    def pictures(self) -> Iterator[Picture]:
        """See `Reader.pictures`. A damaged picture raises DecodeFailedError."""
        for number in range(len(self._paths)):
            picture = self._first if number == 0 and self._first is not None else self._load(number)
            self._first = None
            yield picture

    def close(self) -> None:
        """Nothing stays open between pictures."""

    def _load(self, number: int) -> Picture:
        began = time.perf_counter()
        path = self._paths[number]
        try:
            image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        except (OSError, cv2.error) as error:
            raise DecodeFailedError(f"{path}: cannot be read") from error
        if image is None:
            raise DecodeFailedError(f"{path}: not a picture that can be decoded")
        spent = time.perf_counter() - began
        pixels = np.asarray(image, np.uint8)
        return Picture(lambda: pixels, number / self.fps, time.monotonic_ns(), spent)


def list_images(path: Path) -> list[Path]:
    """The pictures of a folder in natural order (frame2 before frame10); a picture's own path gives itself."""
    if path.is_file():
        return [path]
    return sorted((p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()), key=_natural)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part.lower()) for part in parts]
