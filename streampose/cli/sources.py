"""The options that say which cameras and files to read, and how; shared by `run`, `bench` and `cameras add`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from streampose.sources import Camera

Transport = Annotated[str, typer.Option(metavar="tcp|udp", help="How RTSP cameras send.")]
Hwaccel = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Decode in hardware: cuda, vaapi, ...; see streampose doctor."),
]


def to_cameras(
    sources: list[str], cameras: Path | None, transport: str = "tcp", hwaccel: str | None = None
) -> tuple[Camera, ...]:
    """The cameras of a command line: those of `--source`, then those of the file.

    Raises:
        UsageError: there is none, or one cannot be.
    """
    from streampose.errors import UsageError
    from streampose.sources import make_camera, read_cameras

    asked = tuple(make_camera(uri=uri, transport=transport, hwaccel=hwaccel) for uri in sources)
    if cameras is not None:
        asked += read_cameras(cameras)
    if not asked:
        raise UsageError("no source given; try: --source demo, or --cameras cameras.toml")
    return asked


def default_control(cameras: tuple[Camera, ...]) -> Path | None:
    """Where the control socket is unless another place is named: nowhere for a run of files, which ends by itself."""
    from streampose.control import default_path

    lasting = any(camera.uri.startswith(("rtsp://", "rtsps://", "webcam:", "lavfi:")) for camera in cameras)
    return default_path() if lasting else None
