"""Where frames come from: `open_source("webcam:0" | "file.mp4" | "frames/" | "demo")`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import resources
from pathlib import Path

from streampose.errors import SourceError, UsageError
from streampose.sources.file import FileReader
from streampose.sources.images import SUFFIXES, ImagesReader
from streampose.sources.reader import DecodeFailedError, DisconnectedError, Picture, Reader
from streampose.sources.source import Outcome, Source, Status
from streampose.sources.webcam import open_webcam

__all__ = [
    "PACES",
    "DecodeFailedError",
    "DisconnectedError",
    "Outcome",
    "Picture",
    "Reader",
    "Source",
    "Status",
    "open_source",
    "open_sources",
]

PACES = ("auto", "live", "fast")
_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")


def open_source(uri: str, pace: str = "auto", source_id: str | None = None) -> Source:
    """Open one source; nothing is read from it before it is entered.

    Args:
        uri: "webcam:N", "demo", a video file, a picture or a folder of pictures.
        pace: "fast": every frame once and in order, as fast as inference takes them; "live": frames in real time, the
            oldest dropped when inference is late; "auto": fast for files, live for cameras.
        source_id: the name in topics and results; by default "demo", the file's stem, the folder's name or "webcamN".

    Raises:
        UsageError: the URI or the pace is not one of these, or a camera shall be read at pace "fast".
        SourceError: it is not there or holds no picture.
    """
    if pace not in PACES:
        raise UsageError(f"pace is one of {', '.join(PACES)}, not {pace!r}")
    reader, default_id = _open_reader(uri)
    if reader.live and pace == "fast":
        reader.close()
        raise UsageError(f"{reader.name}: a camera cannot be read at pace fast; use live or auto")
    return Source(reader, source_id or default_id, live=reader.live or pace == "live")


def open_sources(uris: Sequence[str], pace: str = "auto") -> tuple[Source, ...]:
    """Open several sources, all or none; those of the same name get -2, -3, ... after it. Raises as `open_source`."""
    if not uris:
        raise UsageError("no source given; try: --source demo")
    with ExitStack() as opened:
        sources: list[Source] = []
        for uri in uris:
            source = open_source(uri, pace)
            opened.callback(source.close)
            source.id = _unique(source.id, {other.id for other in sources})
            sources.append(source)
        opened.pop_all()
    return tuple(sources)


def _open_reader(uri: str) -> tuple[Reader, str]:
    """The reader of a URI and the source's name."""
    if not uri.strip():
        raise UsageError("an empty source; give webcam:0, a file, a folder of pictures or demo")
    scheme = _SCHEME.match(uri)
    if scheme and scheme[1].lower() in ("rtsp", "rtsps"):
        raise UsageError("rtsp:// sources are not supported yet; give webcam:0, a file, a folder of pictures or demo")
    if scheme:
        raise UsageError(f"{scheme[1]}:// is no source; give webcam:0, a file, a folder of pictures or demo")
    if uri.startswith("webcam:"):
        number = uri.removeprefix("webcam:")
        if not number.isdecimal():
            raise UsageError(f"a webcam is named by its number, as in webcam:0, not {uri!r}")
        return open_webcam(int(number)), f"webcam{int(number)}"
    if uri == "demo":
        return _open_demo(), "demo"
    path = Path(uri).expanduser()
    if path.is_dir():
        return ImagesReader(path), path.resolve().name
    if path.suffix.lower() in SUFFIXES and path.exists():
        return ImagesReader(path), path.stem
    return FileReader(path), path.stem


def _open_demo() -> FileReader:
    path = Path(str(resources.files("streampose") / "demo" / "demo.mp4"))
    if not path.is_file():
        raise SourceError(f"the demo clip is not installed ({path}); reinstall streampose")
    return FileReader(path)


def _unique(name: str, taken: set[str]) -> str:
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    return unique
