"""`cameras add|remove|list`: change a run while it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace

from streampose.cli.program import JsonFlag, app, write
from streampose.cli.sources import Hwaccel, Transport

cameras = typer.Typer(help="Add, remove and list the cameras of a run while it goes on.", no_args_is_help=True)
app.add_typer(cameras, name="cameras")

Control = Annotated[
    Path | None, typer.Option(metavar="SOCKET", help="The run's control socket, if not at its usual place.")
]


@cameras.command()
def add(
    uri: Annotated[
        str | None, typer.Argument(help="rtsp://..., webcam:0, file.mp4, ...; ${NAME} is taken from here.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="In topics and results; by default from the URI.")] = None,
    fps: Annotated[float | None, typer.Option(metavar="N", help="Estimate so many frames a second at most.")] = None,
    detect_every: Annotated[
        int | None, typer.Option(metavar="N", help="The detector looks at one frame in so many.")
    ] = None,
    lookahead: Annotated[
        int | None, typer.Option(metavar="N", help="Later frames to wait for, if the model looks ahead.")
    ] = None,
    transport: Transport = "tcp",
    hwaccel: Hwaccel = None,
    file: Annotated[
        Path | None, typer.Option("--cameras", metavar="FILE", help="Add the cameras of a TOML file.")
    ] = None,
    control: Control = None,
) -> None:
    """Add a camera to the run, or those of a file; each as its own, so that those before one that fails stay."""
    from streampose.control import Request, ask, default_path
    from streampose.errors import UsageError
    from streampose.sources import make_camera, read_cameras
    from streampose.sources.address import for_another_process

    asked = list(read_cameras(file)) if file is not None else []
    if uri is not None:
        asked.append(
            make_camera(
                uri=uri, name=name, fps=fps, detect_every=detect_every, lookahead=lookahead,
                transport=transport, hwaccel=hwaccel,
            )
        )  # fmt: skip
    if not asked:
        raise UsageError("no camera to add; give a URI, or --cameras FILE")
    for camera in asked:
        request = Request(do="add", camera=replace(camera, uri=for_another_process(camera.uri)))
        answer = ask(control or default_path(), request)
        write(f"added {answer.name}\n".encode())


@cameras.command()
def remove(
    name: Annotated[str, typer.Argument(help="As `cameras list` shows it.")],
    control: Control = None,
) -> None:
    """Remove a camera from the run."""
    from streampose.control import Request, ask, default_path

    ask(control or default_path(), Request(do="remove", name=name))
    write(f"removed {name}\n".encode())


@cameras.command("list")
def list_(control: Control = None, json: JsonFlag = False) -> None:
    """List the cameras of the run and what they do."""
    from streampose.console import camera_line, to_json
    from streampose.control import Request, ask, default_path

    answer = ask(control or default_path(), Request(do="list"))
    width = max((len(camera.name) for camera in answer.cameras), default=0)
    for camera in answer.cameras:
        write(to_json(camera) if json else camera_line(camera, width).encode())
