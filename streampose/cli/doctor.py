"""`doctor`: whether this machine and its cameras are fit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streampose.cli.program import JsonFlag, app, write
from streampose.cli.sources import Hwaccel, Transport, to_cameras

_SOURCE_FAILED = 3


@app.command()
def doctor(
    source: Annotated[
        list[str] | None, typer.Option(metavar="URI", help="Also look at this source. Repeat it for several.")
    ] = None,
    cameras: Annotated[Path | None, typer.Option(metavar="FILE", help="Also look at the cameras of a file.")] = None,
    transport: Transport = "tcp",
    hwaccel: Hwaccel = None,
    seconds: Annotated[float, typer.Option(metavar="S", min=0.5, max=600, help="How long at each source.")] = 5.0,
    json: JsonFlag = False,
) -> None:
    """Look whether this machine and its cameras are fit, and say what mends what is not.

    Ends with 0 where there is no problem, 3 where a source has one, else 1. With --json, one object a finding.
    """
    from streampose.console import finding_line, to_json
    from streampose.doctor import examine

    asked = to_cameras(source or [], cameras, transport, hwaccel) if source or cameras else ()
    problems = set()
    for finding in examine(asked, seconds):
        write(to_json(finding) if json else finding_line(finding).encode())
        if finding.verdict == "problem":
            problems.add(finding.area)
    if problems:
        raise typer.Exit(_SOURCE_FAILED if "source" in problems else 1)
