"""From a bundle of ONNX graphs to one for a target, through the gate; without torch, whose results the bundle holds."""

from __future__ import annotations

import importlib
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from streampose.engines import cuda, open_engine
from streampose.engines.bundle import new_bundle, versions_of
from streampose.engines.manifest import (
    PRECISIONS,
    TARGETS,
    Manifest,
    graph_files,
    locate_bundle,
    read_manifest,
    sha256,
    write_manifest,
)  # fmt: skip
from streampose.engines.parity import REFERENCE, check, compare, read_reference
from streampose.engines.store import store
from streampose.errors import MissingExtraError, ModelError, UsageError

log = logging.getLogger(__name__)

MAX_BATCH = 16


@dataclass(frozen=True, slots=True)
class Job:
    """What a target's compiler is given.

    Attributes:
        source: bundle of ONNX graphs.
        out: folder that gets the target's graphs, see `graph_files`.
        manifest: of the source.
        target: what is to run it.
        precision: one of the target's.
        max_batch: most people or windows of one run.
        checkpoint: that the source was made from, where it is known.
    """

    source: Path
    out: Path
    manifest: Manifest
    target: str
    precision: str
    max_batch: int
    checkpoint: Path | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """What a target's compiler says of its work.

    Attributes:
        versions: of what compiled.
        architecture: of the GPU that the graphs are for; empty for a CPU.
    """

    versions: dict[str, str]
    architecture: str = ""


@dataclass(frozen=True, slots=True)
class _Compiler:
    """How a target is compiled: a module with `compile_graphs(job) -> Made`, imported when needed."""

    module: str
    precisions: tuple[str, ...]
    extra: str
    packages: tuple[str, ...]

    def load(self) -> Callable[[Job], Made]:
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in self.packages:
                raise
            raise MissingExtraError(package, self.extra) from None
        compile_graphs: Callable[[Job], Made] = module.compile_graphs
        return compile_graphs


_COMPILERS = {
    "onnxruntime": _Compiler("streampose.engines.quantise", ("int8",), "train", ("onnx",)),
    "tensorrt": _Compiler(
        "streampose.engines.tensorrt_build", ("fp16", "fp32"), "tensorrt", ("onnx", "tensorrt", "cuda")
    ),
    "tensorrt-rtx": _Compiler(
        "streampose.engines.tensorrt_build", ("fp16", "fp32"), "tensorrt-rtx", ("onnx", "tensorrt_rtx", "cuda")
    ),
    "torch-tensorrt": _Compiler(
        "streampose.engines.torch_tensorrt", ("fp16", "fp32"), "torch-tensorrt", ("torch", "torch_tensorrt", "cuda")
    ),
}


def check_target(target: str, precision: str | None) -> str:
    """The precision that a target is built in: the given one, or its usual one (fp32 on a CPU, fp16 on a GPU).

    Raises:
        UsageError: there is no such target or precision, or the target does not have it.
    """
    if target not in TARGETS:
        raise UsageError(f"unknown target {target!r}; there are: {', '.join(TARGETS)}")
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}; there are: {', '.join(PRECISIONS)}")
    offered = ("fp32", "int8") if target == "onnxruntime" else ("fp16", "fp32")
    chosen = precision or offered[0]
    if chosen not in offered:
        raise UsageError(f"{target} has no {chosen} here; it has: {', '.join(offered)}")
    return chosen


def compile_bundle(
    model: str | Path, out: Path, target: str, precision: str | None = None, max_batch: int = MAX_BATCH,
    checkpoint: Path | None = None,
) -> Manifest:  # fmt: skip
    """Compile a bundle of ONNX graphs for a target.

    Args:
        model: name of a bundled model, or folder of a bundle, for onnxruntime in fp32.
        out: folder to write; it must not exist.
        target, precision: see `check_target`.
        max_batch: most people or windows of one run on a GPU, 1 or more.
        checkpoint: that the bundle was made from; torch-tensorrt compiles it instead of the graphs.

    Raises:
        UsageError: `out` exists, or options that do not go together.
        ModelError: the source is no such bundle, the target cannot be compiled here, or it fails the gate: nothing is
            written then.
        MissingExtraError: packages are missing.
        OutputError: `out` cannot be written.
    """
    precision = check_target(target, precision)
    if max_batch < 1:
        raise UsageError(f"max-batch is at least 1, not {max_batch}")
    source = locate_bundle(model)
    manifest = read_manifest(source)
    if manifest.kind != "pose" and (target, precision) != ("onnxruntime", "int8"):
        raise ModelError(f"{source} is a {manifest.kind}; detectors run on ONNX Runtime, as they are or in int8")
    if (manifest.target, manifest.precision) != ("onnxruntime", "fp32"):
        raise ModelError(
            f"{source} is built for {manifest.target} in {manifest.precision}; "
            "compile from a bundle for onnxruntime in fp32, or from a checkpoint"
        )
    if manifest.kind != "pose":
        return _quantise_detector(source, manifest, out)
    reference = read_reference(source)
    with new_bundle(out) as folder:
        made = _compile(Job(source, folder, manifest, target, precision, max_batch, checkpoint))
        shutil.copyfile(source / REFERENCE, folder / REFERENCE)
        on_gpu = target != "onnxruntime"
        compiled = msgspec.structs.replace(
            manifest,
            target=target,
            precision=precision,
            files={path.name: sha256(path) for path in sorted(folder.iterdir())},
            versions=manifest.versions | versions_of(("onnx",)) | made.versions,
            gpu_architecture=made.architecture,
            max_batch=max_batch if on_gpu else 0,
            compiled_from={name: manifest.files[name] for name in graph_files("pose", "onnxruntime")},
            parity={},
        )
        parity = compare(open_engine(folder, compiled), reference)
        check(f"{manifest.name} for {target}", precision, parity)
        compiled = msgspec.structs.replace(compiled, parity=parity)
        write_manifest(folder, compiled)
    return compiled


def _quantise_detector(source: Path, manifest: Manifest, out: Path) -> Manifest:
    try:
        from streampose.engines.quantise_detector import quantise_detector
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise MissingExtraError("onnx", "train") from None
    return quantise_detector(source, manifest, out)


def _compile(job: Job) -> Made:
    """Fill the job's folder."""
    if (job.target, job.precision) == ("onnxruntime", "fp32"):
        for name in graph_files("pose", "onnxruntime"):
            shutil.copyfile(job.source / name, job.out / name)
        return Made({})
    return _COMPILERS[job.target].load()(job)


def build_engine(
    model: str | None,
    checkpoint: Path | None,
    target: str,
    precision: str | None,
    max_batch: int,
    out: Path | None,
    score_threshold: float | None = None,
) -> tuple[Manifest, Path]:
    """What `streampose build-engine` does; arguments as there.

    Returns:
        The manifest, and the folder of the bundle.

    Raises:
        StreamposeError: see `compile_bundle` and `build_from_checkpoint`.
    """
    asked, precision = precision, check_target(target, precision)
    if (model is None) == (checkpoint is None):
        raise UsageError("build-engine takes one of --model and --checkpoint")
    if model is not None:
        if score_threshold is not None:
            raise UsageError(f"{model} keeps its own threshold; --score-threshold goes with a detector's --checkpoint")
        if (target, precision) == ("onnxruntime", "fp32"):
            raise UsageError(f"{model} is there for onnxruntime in fp32 already; choose a --target or --precision int8")
        manifest = read_manifest(locate_bundle(model))
        if manifest.kind != "pose" and out is None and precision == "int8":
            raise UsageError(f"{model} needs --out BUNDLE, for `streampose run --detector BUNDLE`")
        folder = out or store() / f"{manifest.name}-{target}-{precision}"
        return compile_bundle(model, folder, target, precision, max_batch), folder
    if out is None:
        raise UsageError("--checkpoint needs --out BUNDLE, whose name becomes the model's")
    assert checkpoint is not None
    from streampose.engines.build import build_from_checkpoint, precision_of

    if precision_of(checkpoint) == "int8":
        if target != "onnxruntime" or asked not in (None, "int8"):
            raise UsageError(
                f"{checkpoint} was trained in int8, which is for --target onnxruntime --precision int8; build others "
                "from the checkpoint in float32 that it was made from"
            )
        return build_from_checkpoint(checkpoint, out, score_threshold), out
    if (target, precision) == ("onnxruntime", "fp32"):
        return build_from_checkpoint(checkpoint, out, score_threshold), out
    if target != "onnxruntime":  # rather than after the export, which takes minutes
        _COMPILERS[target].load()
        cuda.architecture()
    with tempfile.TemporaryDirectory() as between:
        source = Path(between) / out.name
        build_from_checkpoint(checkpoint, source, score_threshold)
        return compile_bundle(source, out, target, precision, max_batch, checkpoint), out
