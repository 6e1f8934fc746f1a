"""Compiling for TensorRT by torch-tensorrt's dynamo path: out of torch, without ONNX between.

The network is exported by torch.export, and every operator is converted by torch-tensorrt; ours by the converter below,
through the same plugin as in `streampose.engines.tensorrt_build`. What comes out are plain TensorRT engines, which run
as any other, without torch: see `streampose.engines.tensorrt`.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from streampose.engines import cuda
from streampose.engines.bundle import versions_of
from streampose.engines.compile import Job, Made
from streampose.engines.manifest import graph_files
from streampose.engines.store import store
from streampose.engines.tensorrt import KERNELS, import_tensorrt
from streampose.errors import MissingExtraError, ModelError
from streampose.model import FamiPose, load
from streampose.model.network import CropEncoder
from streampose.plugins.crops import compile_kernels
from streampose.plugins.deform_conv.geometry import Geometry, Storage, pack_weight
from streampose.plugins.deform_conv.tensorrt_plugin import NAME, NAMESPACE, attributes_of, register

TARGET = "torch-tensorrt"
PACKAGES = ("torch", "torch-tensorrt", "cuda-bindings", "nvidia-cuda-nvrtc")


def compile_graphs(job: Job) -> Made:
    """Build the engines of a job for the GPU of this machine; see `streampose.engines.compile`.

    Raises:
        MissingExtraError: packages are missing.
        ModelError: there is no checkpoint or no GPU, or torch-tensorrt refuses the network.
    """
    if job.checkpoint is None:
        raise ModelError(f"{TARGET} is compiled from a checkpoint, not from a bundle; give --checkpoint FILE")
    torch_tensorrt = import_torch_tensorrt()
    trt = import_tensorrt(TARGET)
    architecture = cuda.architecture()
    if not torch.cuda.is_available():
        raise ModelError(f"torch {torch.__version__} sees no GPU; install a build of torch for CUDA")
    register(architecture)
    register_converters("fp16" if job.precision == "fp16" else "fp32")
    network = load(job.checkpoint).eval().to("cuda")
    modules = torch_modules(network, job.precision)
    inputs = example_inputs(network, job.manifest.input_size, job.precision, job.max_batch)
    cache = store() / f"{architecture}-{TARGET}-{trt.__version__}.timing"
    for name, module, given in zip(graph_files("pose", TARGET), modules, inputs, strict=True):
        plan = build_plan(torch_tensorrt, module, given, job.max_batch, name, str(cache))
        (job.out / name).write_bytes(plan)
    (job.out / KERNELS).write_bytes(compile_kernels(architecture))
    return Made({trt.__name__: trt.__version__} | versions_of(PACKAGES), architecture)


def import_torch_tensorrt() -> Any:
    """The package, which must be imported before TensorRT itself.

    Raises:
        MissingExtraError: it is not installed.
        ModelError: it is, but does not start here.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it raises
            import torch_tensorrt
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch_tensorrt", TARGET) from None
    except Exception as error:  # it looks for CUDA, libraries and other packages, and raises what each of them raises
        text = f"torch_tensorrt does not start with torch {torch.__version__} here: {_reason(error)}"
        raise ModelError(text) from error
    return torch_tensorrt


class _Encoder(nn.Module):
    """Crops to features. The crops are cast at once: TensorRT does nothing else with uint8."""

    def __init__(self, network: FamiPose, half: bool) -> None:
        super().__init__()
        self.encoder = CropEncoder(network)
        self.half_precision = half

    def forward(self, crops: Tensor) -> Tensor:
        with torch.autocast(crops.device.type, torch.float16, enabled=self.half_precision):
            features: Tensor = self.encoder(crops.float())
        return features.half() if self.half_precision else features


class _Fuser(nn.Module):
    """Windows to keypoints and heatmaps. Sampling positions and decoding are float32 always; see `full_precision`."""

    def __init__(self, network: FamiPose, half: bool) -> None:
        super().__init__()
        self.network = network
        self.half_precision = half

    def forward(self, features: Tensor, transforms: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(features.device.type, torch.float16, enabled=self.half_precision):
            heatmaps = self.network.fuse(features, transforms)
        heatmaps = heatmaps.float()
        return self.network.decode(heatmaps), heatmaps


def torch_modules(network: FamiPose, precision: str) -> tuple[nn.Module, nn.Module]:
    """Encoder and fuser of a network in a precision, "fp32" or "fp16", on the network's device; it is not changed."""
    half = precision == "fp16"
    device = next(network.parameters()).device
    folded = deepcopy(network).eval()
    fold_batch_norm(folded)
    return _Encoder(folded, half).eval().to(device), _Fuser(folded, half).eval().to(device)


def fold_batch_norm(module: nn.Module) -> None:
    """Let every convolution do the work of the BatchNorm that follows it in its module; changes the module in place.

    torch-tensorrt's converter of a BatchNorm keeps it in float32, which a network of half precision does not take.
    """
    for parent in list(module.modules()):
        for (first, conv), (second, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, first, fuse_conv_bn_eval(conv, norm))
                setattr(parent, second, nn.Identity())


def example_inputs(
    network: FamiPose, input_size: tuple[int, int], precision: str, max_batch: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs of the encoder and of the fuser for a small batch, on the network's device."""
    (height, width), device = input_size, next(network.parameters()).device
    batch, frames = min(2, max_batch), 1 + len(network.offsets)
    crops = torch.zeros(batch, height, width, 3, dtype=torch.uint8, device=device)
    kind = torch.float16 if precision == "fp16" else torch.float32
    shape = (batch, frames, network.encoder.channels, height // 4, width // 4)
    features = torch.zeros(shape, dtype=kind, device=device)
    return (crops,), (features, torch.eye(2, 3, device=device).repeat(batch, frames, 2, 1, 1))


def export_program(module: nn.Module, inputs: Sequence[Tensor], max_batch: int) -> torch.export.ExportedProgram:
    """A module as torch.export sees it, for batches of 1 to `max_batch`; casts of autocast are nodes of the graph."""
    batch = {0: torch.export.Dim("batch", min=1, max=max_batch)} if max_batch > 1 else None
    with torch.no_grad():
        program: torch.export.ExportedProgram = torch.export.export(
            module, tuple(inputs), dynamic_shapes=tuple(batch for _ in inputs)
        ).run_decompositions({})
    return program


def build_plan(
    torch_tensorrt: Any, module: nn.Module, inputs: Sequence[Tensor], max_batch: int, name: str, cache: str
) -> bytes:
    """A module compiled for batches of 1 to `max_batch`, all of it: nothing is left to torch.

    Args:
        torch_tensorrt: the package.
        inputs: of the module, for a small batch.
        name: of the file, for errors.
        cache: path of the timing cache, read and written.

    Raises:
        ModelError: torch-tensorrt refuses the module; with its reason.
    """
    program = export_program(module, inputs, max_batch)
    specified = [
        torch_tensorrt.Input(
            min_shape=(1, *given.shape[1:]), opt_shape=(min(4, max_batch), *given.shape[1:]),
            max_shape=(max_batch, *given.shape[1:]), dtype=given.dtype,
        )
        for given in inputs
    ]  # fmt: skip
    with _quiet():
        try:
            plan = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
                program, arg_inputs=specified, require_full_compilation=True, timing_cache_path=cache
            )
        except Exception as error:  # it has a class of its own for every kind of refusal
            text = f"torch_tensorrt {torch_tensorrt.__version__} cannot build {name}: {_reason(error)}"
            raise ModelError(text) from error
    return bytes(plan)


def register_converters(storage: Storage) -> None:
    """Let torch-tensorrt convert what it does not by itself.

    That is `streampose::deform_conv2d`, to the plugin, which `register` must have made known; and gather, which
    decodes Gaussian heatmaps, for batches of any size.

    Args:
        storage: of the plugin's map, mask, weights and result, with casts where the graph has them otherwise.
    """
    from torch_tensorrt.dynamo.conversion import ConverterPriority, dynamo_tensorrt_converter

    def convert(ctx: Any, _target: Any, args: tuple[Any, ...], _kwargs: dict[str, Any], name: str) -> Any:
        return _add_plugin(ctx, args, name, storage)

    for operator, converter in (
        (torch.ops.streampose.deform_conv2d.default, convert), (torch.ops.aten.gather.default, _add_gather),
    ):  # fmt: skip
        dynamo_tensorrt_converter(operator, priority=ConverterPriority.HIGH, supports_dynamic_shapes=True)(converter)


def _add_gather(ctx: Any, _target: Any, args: tuple[Any, ...], _kwargs: dict[str, Any], name: str) -> Any:
    """Put a look-up along one axis into a network."""
    import tensorrt

    data, axis, places = args
    layer = ctx.net.add_gather_v2(data, places, tensorrt.GatherMode.ELEMENT)
    layer.axis, layer.name = axis % len(data.shape), name
    return layer.get_output(0)


def _add_plugin(ctx: Any, args: tuple[Any, ...], name: str, storage: Storage) -> Any:
    """Put the plugin into a network in the place of the operator; weights are packed here: they must be constants."""
    import tensorrt
    from torch_tensorrt.dynamo.conversion.converter_utils import cast_trt_tensor, get_trt_tensor

    x, offset, mask, weight, bias, stride, padding, dilation, groups, offset_groups = args
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        raise ModelError(f"{name}: the plugin wants weights and bias as constants of the graph")
    geometry = Geometry.of(
        weight.shape, stride, padding, dilation, groups, offset_groups, mask is not None, bias is not None, storage
    )
    stored = {"fp16": torch.float16, "fp32": torch.float32}[storage]

    def cast(tensor: Any, to: torch.dtype, role: str) -> Any:
        return cast_trt_tensor(ctx, tensor, to, f"{name}_{role}")

    def constant(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
        return tensor.detach().float().cpu().numpy()

    given = cast(x, stored, "x"), cast(offset, torch.float32, "offset")
    # where there is no mask or bias, a tensor of its type stands in its place, unread
    inputs = [
        *given,
        given[0] if mask is None else cast(mask, stored, "mask"),
        get_trt_tensor(ctx, pack_weight(constant(weight), geometry), f"{name}_packed"),
        given[1] if bias is None else get_trt_tensor(ctx, constant(bias), f"{name}_bias"),
    ]
    plugin = getattr(getattr(tensorrt.plugin.op, NAMESPACE), NAME)
    layer = ctx.net.add_plugin(plugin(*inputs, **attributes_of(geometry)), aot=True)
    layer.name = name
    return cast_trt_tensor(ctx, layer.get_output(0), x.dtype, f"{name}_y")


def _reason(error: BaseException) -> str:
    """One line of what lies at the bottom of an error: what is raised on top of it quotes whole graphs."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch-tensorrt logs tracebacks of what it raises as well."""
    logger = logging.getLogger("torch_tensorrt")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
