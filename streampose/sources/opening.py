"""From a URI to a source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import resources
from pathlib import Path

from streampose.errors import SourceError, UsageError
from streampose.redact import redact
from streampose.sources.address import camera_id, with_credentials, with_environment
from streampose.sources.camera import Camera
from streampose.sources.file import FileReader
from streampose.sources.images import SUFFIXES, ImagesReader
from streampose.sources.lavfi import LavfiReader
from streampose.sources.reader import Reader
from streampose.sources.rtsp import RtspCamera
from streampose.sources.source import Source
from streampose.sources.video import check_hwaccel, reason
from streampose.sources.webcam import Webcam, parse_webcam

PACES = ("auto", "live", "fast")
_KINDS = "webcam:0, rtsp://..., a video file, a folder of pictures, lavfi:... or demo"
_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")


def open_source(source: str | Camera, pace: str = "auto", source_id: str | None = None) -> Source:
    """Open one source; nothing is read from it before it is entered.

    Args:
        source: "webcam:N", "rtsp://...", "demo", a video file, a picture or a folder of pictures, "lavfi:GRAPH"; or a
            `Camera` with one of them as its uri.
        pace: "fast": every frame once and in order, as fast as inference takes them; "live": frames in real time, the
            oldest dropped when inference is late; "auto": fast for files, live for cameras and lavfi.
        source_id: the name in topics and results; by default the camera's, else "demo", the file's stem, the folder's
            name, "webcamN", "lavfi" or the camera's address.

    Raises:
        UsageError: the URI or the pace is not one of these, or a camera shall be read at pace "fast".
        SourceError: a file is not there or holds no picture. A camera is first connected to when entered.
    """
    if pace not in PACES:
        raise UsageError(f"pace is one of {', '.join(PACES)}, not {pace!r}")
    camera = source if isinstance(source, Camera) else Camera(uri=source)
    check_hwaccel(camera.hwaccel)
    uri = with_environment(camera.uri)
    name = source_id or camera.name
    if found := _find_camera(uri, camera):
        device, default_id = found
        if pace == "fast":
            raise UsageError(f"{device.name}: a camera cannot be read at pace fast; use live or auto")
        return Source(name or default_id, device.name, connect=device.connect, live=True, camera=camera)
    reader, default_id = _open_reader(uri, camera.hwaccel)
    live = pace == "live" or (pace == "auto" and isinstance(reader, LavfiReader))
    return Source(name or default_id, reader.name, reader=reader, live=live, camera=camera)


def open_sources(sources: Sequence[str | Camera], pace: str = "auto") -> tuple[Source, ...]:
    """Open several sources, all or none; those of the same name as another get -2, -3, ... after it. Raises as
    `open_source`."""
    if not sources:
        raise UsageError("no source given; try: --source demo")
    names: set[str] = set()
    with ExitStack() as opening:
        opened: list[Source] = []
        for asked in sources:
            source = open_source(asked, pace)
            opening.callback(source.close)
            source.id = unique_name(source.id, names)
            names.add(source.id)
            opened.append(source)
        opening.pop_all()
    return tuple(opened)


def connect(camera: Camera) -> Reader:
    """Open what a camera's URI names itself, now, without a thread. Raises as `open_source`, and SourceError where a
    camera cannot be connected to."""
    check_hwaccel(camera.hwaccel)
    uri = with_environment(camera.uri)
    found = _find_camera(uri, camera)
    return found[0].connect() if found else _open_reader(uri, camera.hwaccel)[0]


def _find_camera(uri: str, camera: Camera) -> tuple[RtspCamera | Webcam, str] | None:
    """Whoever can connect to the camera that a URI names, and the source's name; None where it names another thing."""
    scheme = _SCHEME.match(uri)
    if scheme and scheme[1].lower() in ("rtsp", "rtsps"):
        return RtspCamera(with_credentials(uri), camera.transport, camera.hwaccel), camera_id(uri)
    if uri.startswith("webcam:"):
        _refuse_hwaccel(camera.hwaccel, uri)
        options = parse_webcam(uri)
        return Webcam(options), options.source_id
    return None


def _open_reader(uri: str, hwaccel: str | None) -> tuple[Reader, str]:
    """The reader of whatever is not a camera, and the source's name."""
    if not uri.strip():
        raise UsageError(f"an empty source; give {_KINDS}")
    if scheme := _SCHEME.match(uri):
        raise UsageError(f"{scheme[1]}:// is no source ({redact(uri)}); give {_KINDS}")
    if uri.startswith("lavfi:"):
        _refuse_hwaccel(hwaccel, uri)
        return LavfiReader(uri.removeprefix("lavfi:")), "lavfi"
    if uri == "demo":
        return _open_demo(hwaccel), "demo"
    try:
        return _open_path(Path(uri).expanduser(), hwaccel)
    except (OSError, RuntimeError) as error:  # not permitted, too long, a home of nobody
        raise SourceError(f"{uri}: cannot be read ({reason(error)})") from None


def _open_path(path: Path, hwaccel: str | None) -> tuple[Reader, str]:
    pictures = path.is_dir()
    if not pictures and not path.is_file() and path.exists():  # reading from a pipe or a device may block for ever
        raise SourceError(f"{path}: neither a file nor a folder")
    if pictures or (path.suffix.lower() in SUFFIXES and path.exists()):
        _refuse_hwaccel(hwaccel, str(path))
        return ImagesReader(path), path.resolve().name if pictures else path.stem
    return FileReader(path, hwaccel), path.stem


def _refuse_hwaccel(hwaccel: str | None, uri: str) -> None:
    if hwaccel is not None:
        raise UsageError(f"{uri}: hwaccel {hwaccel} is for RTSP cameras and video files")


def _open_demo(hwaccel: str | None) -> FileReader:
    path = Path(str(resources.files("streampose") / "demo" / "demo.mp4"))
    if not path.is_file():
        raise SourceError(f"the demo clip is not installed ({path}); reinstall streampose")
    return FileReader(path, hwaccel)


def unique_name(name: str, taken: set[str]) -> str:
    """The name, with -2, -3, ... after it where it is taken."""
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    return unique
