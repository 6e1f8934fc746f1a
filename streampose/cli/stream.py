"""`listen`: what subscribes to the stream, and who may."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streampose.cli.program import app, stop_on_signals, write
from streampose.endpoint import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from streampose.smoothing import Smoothing

KeysOption = Annotated[
    Path | None,
    typer.Option(
        "--keys", metavar="DIR", help="Encrypt, and let in only those on this folder's allow list; see keys new."
    ),
]
InsecureFlag = Annotated[
    bool, typer.Option("--insecure", help="Publish to other machines without keys: whoever reaches it can read it.")
]
SmoothFlag = Annotated[bool, typer.Option("--smooth", help="Filter keypoints over time (One-Euro); raw without it.")]
FillFlag = Annotated[
    float, typer.Option("--fill-gaps", metavar="S", min=0, max=1, help="Bridge gaps of up to S seconds in a track.")
]
ConnectOption = Annotated[str, typer.Option(metavar="ENDPOINT", help="Where it is published.")]
KeyOption = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="Key file, for a publisher that wants one.")
]
SourceOption = Annotated[str | None, typer.Option(metavar="ID", help="Only this source.")]


def smoothing_of(smooth: bool, fill_s: float) -> Smoothing | None:
    """What --smooth and --fill-gaps ask for together.

    Raises:
        UsageError: gaps shall be filled without smoothing.
    """
    if not smooth and not fill_s:
        return None
    from streampose.errors import UsageError
    from streampose.smoothing import Smoothing

    if not smooth:
        raise UsageError("--fill-gaps continues the smoothed motion; give --smooth too")
    return Smoothing(fill_s=fill_s)


@app.command()
def listen(
    context: typer.Context,
    connect: ConnectOption = DEFAULT_ENDPOINT,
    source: SourceOption = None,
    mode: Annotated[
        str, typer.Option(metavar="latest|lossless", help="latest: a slow reader skips to the newest; lossless: all.")
    ] = "latest",
    count: Annotated[int | None, typer.Option(metavar="N", min=1, help="End after so many frames.")] = None,
    key: KeyOption = None,
    smooth: SmoothFlag = False,
    fill_gaps: FillFlag = 0.0,
    json: Annotated[bool, typer.Option("--json", help="Print lines as in people.jsonl, with `missed`.")] = False,
) -> None:
    """Show what a publisher sends. Waits for it for ever, and for it to come back; Ctrl-C ends."""
    with stop_on_signals() as stop:
        from streampose.console import frame_line, set_up_logging
        from streampose.jsonl import to_line
        from streampose.listener import listen_to

        set_up_logging(context.obj)
        settings = smoothing_of(smooth, fill_gaps)
        for frame in listen_to(connect, mode, source, count, stop, key=key, smooth=settings):
            write(to_line(frame, with_missed=True) if json else frame_line(frame).encode())
