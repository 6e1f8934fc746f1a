"""What is asked of one source: its address and how it is to be read; and the file that lists several."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from streampose.errors import UsageError
from streampose.redact import redact

TRANSPORTS = ("tcp", "udp")
Point = tuple[float, float]
_NAME = re.compile(r"[^\s/\x00-\x1f\x7f]{1,100}")


class Camera(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One source as asked for, on the command line, in a file or over the control socket.

    Attributes:
        uri: see `open_source`; `${NAME}` stands for an environment variable.
        name: in topics and results; by default from the URI.
        fps: frames a second that are estimated at most; the others are dropped and counted.
        detect_every: the detector looks at one frame in so many; by default as for the run.
        lookahead: later frames to wait for, at most what the model looks ahead (its default): 0 answers at once.
        regions: polygons, corners (x, y) in shares 0..1 of the picture's width and height; only people whose box has
            its centre in one of them are estimated. None: everybody.
        transport: of RTSP, "tcp" or "udp".
        hwaccel: a hardware decoder: "cuda", "vaapi", ...
    """

    uri: str
    name: str | None = None
    fps: float | None = None
    detect_every: int | None = None
    lookahead: int | None = None
    regions: tuple[tuple[Point, ...], ...] = ()
    transport: str = "tcp"
    hwaccel: str | None = None

    def __post_init__(self) -> None:
        """Raises UsageError where a value cannot be."""
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise UsageError(f"a camera's name has 1 to 100 characters, no blanks and no slashes, not {self.name!r}")
        where = f"camera {self.name}" if self.name else "a camera"
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise UsageError(f"{where}: fps is above 0 and at most 1000, not {self.fps}")
        if self.detect_every is not None and self.detect_every < 1:
            raise UsageError(f"{where}: detect_every is at least 1, not {self.detect_every}")
        if self.lookahead is not None and self.lookahead < 0:
            raise UsageError(f"{where}: lookahead is 0 or more, not {self.lookahead}")
        if self.transport not in TRANSPORTS:
            raise UsageError(f"{where}: transport is {' or '.join(TRANSPORTS)}, not {self.transport!r}")
        for region in self.regions:
            if len(region) < 3 or not all(0 <= value <= 1 for point in region for value in point):
                raise UsageError(f"{where}: a region has three corners or more, each x and y in 0..1, not {region}")

    def __repr__(self) -> str:
        return f"Camera({redact(self.uri)!r}, name={self.name!r})"


class _File(msgspec.Struct, forbid_unknown_fields=True):
    camera: tuple[Camera, ...]


def read_cameras(path: Path) -> tuple[Camera, ...]:
    """The cameras of a TOML file of `[[camera]]` tables with the fields of `Camera`.

    Raises:
        UsageError: there is no such file, it is no TOML, or a field is unknown or not what it must be.
    """
    try:
        with path.open("rb") as file:
            fields = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML ({error})") from None
    cameras = to_cameras(fields, str(path))
    if not cameras:
        raise UsageError(f"{path}: names no camera; each is a table [[camera]] with a uri")
    names = [camera.name for camera in cameras if camera.name]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"{path}: two cameras are called {sorted(twice)[0]}")
    return cameras


def to_cameras(fields: dict[str, Any], where: str) -> tuple[Camera, ...]:
    """Check the tables of a cameras file; raises UsageError with `where` and the place in it."""
    try:
        return msgspec.convert(fields, _File).camera
    except (msgspec.ValidationError, UsageError) as error:
        raise UsageError(f"{where}: {_which(fields)}{error}") from None


def _which(fields: dict[str, Any]) -> str:
    """Of several cameras the name, or the number, of the first that is wrong."""
    tables = fields.get("camera")
    for number, table in enumerate(tables if isinstance(tables, list) and len(tables) > 1 else (), 1):
        try:
            msgspec.convert(table, Camera)
        except (msgspec.ValidationError, UsageError):
            name = table.get("name") if isinstance(table, dict) else None
            return f"camera {name}: " if isinstance(name, str) else f"camera number {number}: "
    return ""


def make_camera(**fields: Any) -> Camera:
    """A camera of values that still have to be checked; raises UsageError where one is not what it must be."""
    (camera,) = to_cameras({"camera": [{name: value for name, value in fields.items() if value is not None}]}, "camera")
    return camera
