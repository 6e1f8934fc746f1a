"""Compiling for TensorRT (with our plugin) and TensorRT for RTX (which takes none: GridSample instead).

The graphs are rewritten to the precision they run in, and networks are strongly typed: TensorRT chooses kernels, and no
precisions. What was measured of kernels is kept in a timing cache beside the store.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.progress import Progress

from streampose.engines import cuda
from streampose.engines.bundle import versions_of
from streampose.engines.compile import Job, Made
from streampose.engines.graphs import to_float_input, to_grid_sample, to_half
from streampose.engines.manifest import graph_files
from streampose.engines.store import store
from streampose.engines.tensorrt import KERNELS, import_tensorrt, make_logger
from streampose.errors import ModelError
from streampose.plugins.crops import compile_kernels
from streampose.plugins.deform_conv.node import to_plugin

log = logging.getLogger(__name__)


def compile_graphs(job: Job) -> Made:
    """Build the engines of a job's target for the GPU of this machine; see `streampose.engines.compile`.

    Raises:
        MissingExtraError: packages are missing.
        ModelError: there is no GPU, or TensorRT refuses a graph.
    """
    trt = import_tensorrt(job.target)
    architecture = cuda.architecture()
    prepared = prepare(job.source, job.target, job.precision)
    if job.target == "tensorrt":
        from streampose.plugins.deform_conv.tensorrt_plugin import register

        register(architecture)
    cache = store() / f"{architecture}.timing" if job.target == "tensorrt" else None  # the one for RTX keeps none
    for name, model in zip(graph_files("pose", job.target), prepared, strict=True):
        (job.out / name).write_bytes(build_plan(trt, model, job.max_batch, name, cache))
    (job.out / KERNELS).write_bytes(compile_kernels(architecture))
    return Made({trt.__name__: trt.__version__} | versions_of(("cuda-bindings", "nvidia-cuda-nvrtc")), architecture)


def prepare(source: Path, target: str, precision: str) -> list[onnx.ModelProto]:
    """The encoder and the fuser of a bundle as a target takes them.

    Args:
        source: bundle for onnxruntime in fp32.
        target: "tensorrt" or "tensorrt-rtx".
        precision: "fp32" or "fp16".
    """
    encoder, fuser = (onnx.load(source / name) for name in graph_files("pose", "onnxruntime"))
    encoder = to_float_input(encoder)
    if target == "tensorrt-rtx":
        fuser = to_grid_sample(fuser)
    if precision == "fp16":
        encoder, fuser = to_half(encoder), to_half(fuser)
    if target == "tensorrt":
        fuser = to_plugin(fuser, "fp16" if precision == "fp16" else "fp32")
    return [encoder, fuser]


def build_plan(trt: Any, model: onnx.ModelProto, max_batch: int, name: str, cache: Path | None = None) -> bytes:
    """A graph compiled for batches of 1 to `max_batch`.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        model: the graph; the first axis of its inputs is the batch.
        name: shown with the progress.
        cache: file of the timing cache, read and written; None for none.

    Raises:
        ModelError: TensorRT refuses the graph; with the first reason it gives.
    """
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    flags = trt.NetworkDefinitionCreationFlag
    wanted = [flags.STRONGLY_TYPED, *(getattr(flags, n) for n in ("PREFER_AOT_PYTHON_PLUGINS",) if hasattr(flags, n))]
    network = builder.create_network(sum(1 << int(flag) for flag in wanted))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        first = parser.get_error(0) if parser.num_errors else None
        reason = f"{first.node_name()}: {first.desc().splitlines()[0]}" if first else "no reason given"
        raise ModelError(f"{trt.__name__} {trt.__version__} does not take {name}: {reason}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (1, *rest), (min(4, max_batch), *rest), (max_batch, *rest))
    config.add_optimization_profile(profile)
    with _timing_cache(config, cache), _progress(trt, config, name):
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ModelError(f"{trt.__name__} {trt.__version__} cannot build {name}; streampose --debug shows what it says")
    return bytes(plan)


@contextlib.contextmanager
def _timing_cache(config: Any, file: Path | None) -> Iterator[None]:
    if file is None:
        yield
        return
    before = file.read_bytes() if file.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(before), ignore_mismatch=True)
    yield
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(config.get_timing_cache().serialize()))
    except OSError as error:
        log.warning("timings are not kept: %s: %s", file, error.strerror)


@contextlib.contextmanager
def _progress(trt: Any, config: Any, name: str) -> Iterator[None]:
    """Bars of the builder's phases on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with Progress(console=console, transient=True) as bars:

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self._tasks: dict[str, Any] = {}

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
                self._tasks[phase_name] = bars.add_task(f"{name}: {phase_name}", total=num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                bars.update(self._tasks[phase_name], completed=step)
                return True

            def phase_finish(self, phase_name: str) -> None:
                bars.remove_task(self._tasks.pop(phase_name))

        config.progress_monitor = Monitor()
        yield
