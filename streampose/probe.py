"""A look at one source: what it sends, how evenly and how late."""

from __future__ import annotations

import time

import msgspec
import numpy as np

from streampose.errors import SourceError
from streampose.ring import Drop
from streampose.sources import Camera
from streampose.sources.opening import connect
from streampose.sources.reader import Reader


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What a source sends.

    Attributes:
        name: of the source, without credentials.
        width, height: pixels of the first picture.
        codec: FFmpeg's name of it, or "" where there is none.
        fps: pictures a second; nominal of a file, of a camera counted.
        first_picture_s: from asking until the first picture was here.
        jitter_ms: standard deviation of the time between pictures; None of what is no camera.
        latency_ms: median from capture to arrival; None where the camera's clock is not known.
        decode_ms: median time to decode a picture and turn it to BGR.
        clock: what capture times rest on, "rtcp" or "arrival".
        pictures, damaged: how many came, and how many of them were damaged.
    """

    name: str
    width: int
    height: int
    codec: str
    fps: float
    first_picture_s: float
    jitter_ms: float | None
    latency_ms: float | None
    decode_ms: float
    clock: str
    pictures: int
    damaged: int


def probe(camera: Camera, seconds: float = 5.0) -> Probe:
    """Read a source for some seconds.

    Raises:
        UsageError: its URI is none.
        SourceError: it cannot be opened, or sends no picture.
    """
    began_s = time.monotonic()
    reader = connect(camera)
    try:
        return _measure(reader, began_s, seconds)
    finally:
        reader.close()


def _measure(reader: Reader, began_s: float, seconds: float) -> Probe:
    arrived_s: list[float] = []  # numbers alone: pictures would fill the memory
    ages_ms: list[float] = []
    decode_s: list[float] = []
    first_s = 0.0
    height = width = damaged = 0
    try:
        for picture in reader.pictures():
            if picture.drop in (None, Drop.STALE):
                started = time.perf_counter()
                image = picture.load()
                decode_s.append(picture.decode_s + time.perf_counter() - started)
                if not arrived_s:
                    first_s, (height, width) = time.monotonic() - began_s, image.shape[:2]
                arrived_s.append(picture.arrived_ns / 1e9)
                if picture.captured_ns is not None:
                    ages_ms.append((picture.arrived_ns - picture.captured_ns) / 1e6)
            damaged += picture.drop is Drop.DAMAGED
            if time.monotonic() - began_s - first_s > seconds:
                break
    except SourceError:
        if not arrived_s:
            raise
    if not arrived_s:
        raise SourceError(f"{reader.name}: no picture that can be decoded")
    steps_s = np.diff(arrived_s)
    steady = reader.live and len(steps_s) > 1
    return Probe(
        name=reader.name,
        width=width,
        height=height,
        codec=str(getattr(reader, "codec", "")),
        fps=round(float(1 / steps_s.mean()) if steady and steps_s.mean() > 0 else reader.fps, 2),
        first_picture_s=round(first_s, 3),
        jitter_ms=round(float(steps_s.std() * 1e3), 2) if steady else None,
        latency_ms=round(float(np.median(ages_ms)), 1) if ages_ms else None,
        decode_ms=round(float(np.median(decode_s) * 1e3), 2),
        clock="rtcp" if ages_ms else "arrival",
        pictures=len(arrived_s),
        damaged=damaged,
    )
