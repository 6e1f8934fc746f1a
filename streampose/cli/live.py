"""`run` and `bench`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from streampose.cli.program import app, stop_on_signals, to_line, write
from streampose.cli.sources import Hwaccel, Transport, default_control, to_cameras
from streampose.cli.stream import FillFlag, InsecureFlag, KeysOption, SmoothFlag, smoothing_of
from streampose.endpoint import DEFAULT_ENDPOINT

log = logging.getLogger(__name__)


@app.command()
def run(
    context: typer.Context,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URI", help="rtsp://..., webcam:0, file.mp4, frames/, lavfi:... or demo. Repeat it for several."
        ),
    ] = None,
    cameras: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also the cameras of a TOML file (docs/deploy.md).")
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME|BUNDLE", help="Name of a bundled model, or the folder of an engine bundle.")
    ] = "lite",
    backend: Annotated[
        str,
        typer.Option(
            metavar="auto|onnxruntime|onnxruntime-cuda|tensorrt|tensorrt-rtx|torch-tensorrt",
            help="What runs the model; auto: the fastest built here.",
        ),
    ] = "auto",
    detector: Annotated[
        str, typer.Option(metavar="NAME|ONNX|none", help="Name, an ONNX file, or none: one person who fills the frame.")
    ] = "person",
    detect_every: Annotated[
        int, typer.Option(metavar="N", min=1, help="The detector looks at one frame in so many.")
    ] = 3,
    publish: Annotated[
        str, typer.Option(metavar="ENDPOINT", help="Where subscribers connect; by default on this machine only.")
    ] = DEFAULT_ENDPOINT,
    keys: KeysOption = None,
    insecure: InsecureFlag = False,
    smooth: SmoothFlag = False,
    fill_gaps: FillFlag = 0.0,
    no_publish: Annotated[bool, typer.Option("--no-publish", help="Publish nothing.")] = False,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write people.jsonl; a file there is replaced.")
    ] = None,
    render: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a video with the poses drawn in; of several sources FILE-SOURCE.mp4."),
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Stop each source after so many results.")
    ] = None,
    pace: Annotated[
        str,
        typer.Option(
            metavar="auto|live|fast",
            help="live: latest frames first; fast: every frame; auto: a file fast, a camera live.",
        ),
    ] = "auto",
    transport: Transport = "tcp",
    hwaccel: Hwaccel = None,
    keep_trying: Annotated[
        bool, typer.Option("--keep-trying", help="Go on even where no camera at all can be connected to at first.")
    ] = False,
    batch_wait_ms: Annotated[
        float, typer.Option(metavar="MS", min=0, max=1000, help="How long a frame waits for other cameras' frames.")
    ] = 5.0,
    control: Annotated[
        Path | None,
        typer.Option(
            metavar="SOCKET", help="Where `streampose cameras` reaches this run; by default if it has cameras."
        ),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(metavar="N", min=0, max=65535, help="Serve /metrics, /health and /live there.")
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(metavar="HOST", help="Where they are served; this machine alone by default.")
    ] = "127.0.0.1",
    log_json: Annotated[bool, typer.Option("--log-json", help="Log lines of JSON, the summary too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a line of people.jsonl for each frame.")] = False,
) -> None:
    """Estimate the pose of everyone in view, and publish it.

    Cameras that go away are connected to again, for ever. Only where no source at all can be opened at first, the
    command ends with exit code 3, unless --keep-trying.

    With --json, stdout has one line a frame and source, as people.jsonl has, and nothing else.
    Ctrl-C stops the sources, finishes the frames that wait, and prints a summary.
    """
    with stop_on_signals() as stop, _errors_logged(log_json):
        from streampose.console import Screen, set_up_logging
        from streampose.runner import RunOptions, run_pipeline

        console = set_up_logging(context.obj, log_json)
        asked = to_cameras(source or [], cameras, transport, hwaccel)
        options = RunOptions(
            sources=asked,
            model=model,
            backend=backend,
            detector=detector,
            detect_every=detect_every,
            pace=pace,
            max_frames=max_frames,
            publish=None if no_publish else publish,
            save=save,
            render=render,
            control=control or default_control(asked),
            control_must=control is not None,
            metrics_port=metrics_port,
            metrics_host=metrics_host,
            keep_trying=keep_trying,
            batch_wait_s=batch_wait_ms / 1e3,
            keys=keys,
            insecure=insecure,
            smooth=smoothing_of(smooth, fill_gaps),
        )
        live = not log_json and not (json and sys.stdout.isatty())
        with Screen(console, live=live, as_json=log_json) as screen:
            run_pipeline(options, screen, stop, write if json else None)


@contextmanager
def _errors_logged(as_json: bool) -> Iterator[None]:
    """With `as_json`, an error that ends the program is a line of the log, too, and nothing else."""
    try:
        yield
    except Exception as error:
        if not as_json or isinstance(error, typer.Exit):
            raise
        line, code = to_line(error)
        log.error("%s", " ".join(line.split()), exc_info=error)
        raise typer.Exit(code) from None


@app.command()
def bench(
    context: typer.Context,
    source: Annotated[list[str] | None, typer.Option(metavar="URI", help="As for run; by default demo.")] = None,
    model: Annotated[str, typer.Option(metavar="NAME|BUNDLE", help="As for run.")] = "lite",
    detector: Annotated[str, typer.Option(metavar="NAME|ONNX|none", help="As for run.")] = "person",
    detect_every: Annotated[int, typer.Option(metavar="N", min=1, help="As for run.")] = 3,
    max_frames: Annotated[int, typer.Option(metavar="N", min=1, help="Results of each source.")] = 300,
    transport: Transport = "tcp",
    hwaccel: Hwaccel = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Run without outputs, as fast as it goes, and show where the time went."""
    with stop_on_signals() as stop:
        from streampose.console import Screen, set_up_logging, summary_fields, to_json
        from streampose.runner import RunOptions, run_pipeline

        options = RunOptions(
            sources=to_cameras(source or ["demo"], None, transport, hwaccel),
            model=model,
            detector=detector,
            detect_every=detect_every,
            max_frames=max_frames,
        )
        with Screen(set_up_logging(context.obj)) as screen:
            run_pipeline(options, screen, stop)
        if json and screen.summary is not None:
            write(to_json(summary_fields(screen.summary)))
