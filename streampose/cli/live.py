"""`run` and `bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from streampose.cli.program import app, stop_on_signals, write
from streampose.cli.stream import FillFlag, InsecureFlag, KeysOption, SmoothFlag, smoothing_of
from streampose.endpoint import DEFAULT_ENDPOINT


@app.command()
def run(
    context: typer.Context,
    source: Annotated[
        list[str], typer.Option(metavar="URI", help="webcam:0, file.mp4, frames/ or demo. Repeat it for several.")
    ],
    model: Annotated[
        str, typer.Option(metavar="NAME|BUNDLE", help="Name of a bundled model, or the folder of an engine bundle.")
    ] = "lite",
    backend: Annotated[str, typer.Option(metavar="NAME", help="auto or onnxruntime.")] = "auto",
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
    render: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a video with the poses drawn in.")] = None,
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
    json: Annotated[bool, typer.Option("--json", help="Print a line of people.jsonl for each frame.")] = False,
) -> None:
    """Estimate the pose of everyone in view, and publish it.

    With --json, stdout has one line a frame and source, as people.jsonl has, and nothing else.
    Ctrl-C stops the sources, finishes the frames that wait, and prints a summary.
    """
    with stop_on_signals() as stop:
        from streampose.console import Screen, set_up_logging
        from streampose.runner import RunOptions, run_pipeline

        options = RunOptions(
            sources=tuple(source),
            model=model,
            backend=backend,
            detector=detector,
            detect_every=detect_every,
            pace=pace,
            max_frames=max_frames,
            publish=None if no_publish else publish,
            save=save,
            render=render,
            keys=keys,
            insecure=insecure,
            smooth=smoothing_of(smooth, fill_gaps),
        )
        console = set_up_logging(context.obj)
        with Screen(console, live=not (json and sys.stdout.isatty())) as screen:
            run_pipeline(options, screen, stop, write if json else None)


@app.command()
def bench(
    context: typer.Context,
    source: Annotated[list[str] | None, typer.Option(metavar="URI", help="As for run; by default demo.")] = None,
    model: Annotated[str, typer.Option(metavar="NAME|BUNDLE", help="As for run.")] = "lite",
    detector: Annotated[str, typer.Option(metavar="NAME|ONNX|none", help="As for run.")] = "person",
    detect_every: Annotated[int, typer.Option(metavar="N", min=1, help="As for run.")] = 3,
    max_frames: Annotated[int, typer.Option(metavar="N", min=1, help="Results of each source.")] = 300,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Run without outputs, as fast as it goes, and show where the time went."""
    with stop_on_signals() as stop:
        from streampose.console import Screen, set_up_logging, summary_fields, to_json
        from streampose.runner import RunOptions, run_pipeline

        options = RunOptions(
            sources=tuple(source or ["demo"]),
            model=model,
            detector=detector,
            detect_every=detect_every,
            max_frames=max_frames,
        )
        with Screen(set_up_logging(context.obj)) as screen:
            run_pipeline(options, screen, stop)
        if json and screen.summary is not None:
            write(to_json(summary_fields(screen.summary)))
