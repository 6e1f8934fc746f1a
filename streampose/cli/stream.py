"""`listen`, `relay`, `record`, `replay`, `export`, `view`: what is done with the stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from streampose.cli.program import app, stop_on_signals, write
from streampose.endpoint import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from streampose.outlet import Outlet
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


@contextmanager
def publishing(endpoint: str, stop: Event, keys: Path | None, insecure: bool) -> Iterator[Outlet]:
    """An outlet to publish at; where it crashes, `stop` is set, and its error is raised at the end.

    Raises:
        UsageError, OutputError: see `Outlet`.
        OutputError: it crashed.
    """
    from streampose.errors import StreamposeError
    from streampose.outlet import Outlet

    crashes: list[StreamposeError] = []

    def end(error: StreamposeError) -> None:
        crashes.append(error)
        stop.set()

    with Outlet(endpoint, keys=keys, insecure=insecure, on_crash=end) as outlet:
        yield outlet
    if crashes:
        raise crashes[0]


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


@app.command()
def relay(
    context: typer.Context,
    connect: Annotated[
        list[str],
        typer.Option(metavar="[NAME=]ENDPOINT", help="A publisher. Repeat it; NAME. goes before its sources' names."),
    ],
    publish: Annotated[str, typer.Option(metavar="ENDPOINT", help="Where subscribers connect.")] = DEFAULT_ENDPOINT,
    key: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Key file: one for all publishers, or one for each.")
    ] = None,
    keys: KeysOption = None,
    insecure: InsecureFlag = False,
) -> None:
    """Collect the streams of many publishers, and publish them at one endpoint. Ctrl-C ends."""
    with stop_on_signals() as stop:
        import logging

        from streampose.console import set_up_logging
        from streampose.relay import Relay, parse_upstreams

        set_up_logging(context.obj)
        upstreams = parse_upstreams(connect, key or [])
        with publishing(publish, stop, keys, insecure) as outlet, Relay(upstreams, outlet) as relay:
            logging.getLogger("streampose.cli").info("relaying at %s", outlet.endpoint)
            relay.serve(stop)


@app.command()
def record(
    context: typer.Context,
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new .parquet (extra [record]) or .jsonl file.")],
    connect: ConnectOption = DEFAULT_ENDPOINT,
    source: SourceOption = None,
    key: KeyOption = None,
    count: Annotated[int | None, typer.Option(metavar="N", min=1, help="End after so many frames.")] = None,
    seconds: Annotated[float | None, typer.Option(metavar="S", min=0, help="End after so many seconds.")] = None,
) -> None:
    """Record what a publisher sends; waits for it for ever. What was received is readable even after kill -9.

    Ends on Ctrl-C, and says what was recorded and missed of each source. Without a single frame no file is left, and
    after --seconds that is an error.
    """
    with stop_on_signals() as stop:
        from streampose.console import set_up_logging
        from streampose.keys import read_key
        from streampose.record import Recorder, open_sink

        set_up_logging(context.obj)
        credentials = None if key is None else read_key(key)
        with Recorder(connect, open_sink(out), source=source, key=credentials, count=count) as recorder:
            recorder.record(stop, seconds=seconds)
        ledger = recorder.ledger
        for name, frames in sorted(ledger.received.items()):
            typer.echo(f"{name}: {frames} frames, {ledger.missed[name]} missed", err=True)
        made = f"{recorder.frames} frames" if recorder.frames else "not written, since no frame came"
        typer.echo(f"{out}: {made}, {recorder.malformed} messages malformed", err=True)


@app.command()
def replay(
    context: typer.Context,
    recording: Annotated[Path, typer.Argument(metavar="FILE", help="Of record, or people.jsonl of run --save.")],
    publish: Annotated[str, typer.Option(metavar="ENDPOINT", help="Where subscribers connect.")] = DEFAULT_ENDPOINT,
    source: SourceOption = None,
    speed: Annotated[float, typer.Option(metavar="X", help="2 is twice as fast.")] = 1.0,
    loop: Annotated[bool, typer.Option("--loop", help="Begin again at the end, until Ctrl-C.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Begin when the first subscriber is there.")] = False,
    keys: KeysOption = None,
    insecure: InsecureFlag = False,
) -> None:
    """Publish a recording again, with its original timing."""
    with stop_on_signals() as stop:
        import logging

        from streampose.console import set_up_logging
        from streampose.recording import find_recording
        from streampose.replay import replay as play

        set_up_logging(context.obj)
        find_recording(recording)
        log = logging.getLogger("streampose.cli")
        with publishing(publish, stop, keys, insecure) as outlet:
            log.info("replaying at %s", outlet.endpoint)
            while wait and not stop.is_set() and not outlet.subscribed.wait(0.1):
                pass
            frames = play(recording, outlet, stop, speed=speed, source=source, loop=loop)
        log.info("%d frames", frames)


@app.command()
def export(
    context: typer.Context,
    recording: Annotated[Path, typer.Argument(metavar="FILE", help="Of record, or people.jsonl of run --save.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new file.")],
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="csv|coco|posetrack|jsonl|parquet", help="By default the ending of --out."),
    ] = None,
    source: SourceOption = None,
) -> None:
    """Write a recording in another form, also one that was never finished."""
    from streampose.console import set_up_logging
    from streampose.export import export as write_out
    from streampose.export import form_of

    set_up_logging(context.obj)
    for path in write_out(recording, out, form or form_of(out), source):
        typer.echo(str(path))


@app.command()
def view(
    context: typer.Context,
    connect: ConnectOption = DEFAULT_ENDPOINT,
    key: KeyOption = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where browsers connect; other machines need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 takes any free one.")] = 8787,
    token: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What browsers must know; made where it is needed and not given.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="PEM", help="Serve by TLS, with this certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="PEM", help="And this key.")] = None,
) -> None:
    """Serve a web page with every camera's picture and skeletons. Needs the extra [web]. Ctrl-C ends."""
    with stop_on_signals() as stop:
        from streampose.console import set_up_logging
        from streampose.view.server import serve

        set_up_logging(context.obj)
        serve(
            connect,
            stop,
            lambda address: typer.echo(f"open {address}", err=True),
            host=host,
            port=port,
            token=token,
            key=key,
            certificate=tls_cert,
            certificate_key=tls_key,
        )


@app.command()
def schema() -> None:
    """Print the protocol of the stream for machines, as JSON."""
    from streampose.schema import schema_text

    write(schema_text().encode())
