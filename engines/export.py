"""From torch to ONNX: one file a graph, dynamic batch, deformable convolution as the standard DeformConv."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streampose.engines.manifest import graph_files
from streampose.errors import MissingExtraError
from streampose.model import FamiPose
from streampose.model.network import CropEncoder, KeypointFuser

try:
    import onnx
    from onnxscript import opset22
except ImportError as error:
    raise MissingExtraError("onnxscript", "train") from error

OPSET = 22


def deform_conv_node(
    x: Any,
    offset: Any,
    mask: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_groups: int,
) -> Any:
    """`streampose::deform_conv2d` as ONNX's DeformConv (opset 19 and later)."""
    return opset22.DeformConv(
        x,
        weight,
        offset,
        bias,
        mask,
        kernel_shape=list(weight.shape[2:]),
        strides=list(stride),
        pads=[padding[0], padding[1], padding[0], padding[1]],
        dilations=list(dilation),
        group=groups,
        offset_group=offset_groups,
    )


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How the exporter writes our operators."""
    return {torch.ops.streampose.deform_conv2d.default: deform_conv_node}


def export_onnx(
    module: nn.Module,
    inputs: dict[str, Tensor],
    outputs: Sequence[str],
    path: Path,
    metadata: dict[str, str],
    extra: dict[Callable[..., Any], Callable[..., Any]] | None = None,
) -> None:
    """Write one graph as one file; the first axis of every input may be of any size from 1 on.

    Args:
        module: in evaluation mode.
        inputs: example tensors by name, with a batch of two or more.
        outputs: names of the outputs.
        path: of the file.
        metadata: `metadata_props` of the file.
        extra: how further operators are written, see `translations`.
    """
    batch = {0: torch.export.Dim("batch", min=1)}
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple(batch for _ in inputs),
            custom_translation_table={**translations(), **(extra or {})},
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def export_network(network: FamiPose, folder: Path, input_size: tuple[int, int]) -> None:
    """Write a pose network as the two graphs of a bundle, see `streampose.engines.manifest.graph_files`.

    Args:
        network: with supporting frames, in evaluation mode.
        folder: gets the files.
        input_size: (height, width) of the crops.
    """
    frames = 1 + len(network.offsets)
    encoder, fuser = (folder / name for name in graph_files("pose", "onnxruntime"))
    two = torch.zeros(2, *input_size, 3, dtype=torch.uint8)
    export_onnx(CropEncoder(network), {"crops": two}, ["features"], encoder, {"streampose.kind": "encoder"})
    shape = (2, frames, network.encoder.channels, input_size[0] // 4, input_size[1] // 4)
    window = {"features": torch.zeros(shape), "transforms": torch.eye(2, 3).repeat(2, frames, 2, 1, 1)}
    export_onnx(KeypointFuser(network), window, ["keypoints", "heatmaps"], fuser, {"streampose.kind": "fuser"})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks about operators of packages that are not ours."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
