"""Networks out of bundles for ONNX Runtime, to train on: what ships is a starting point for data of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from streampose.engines.manifest import GRAPHS, Manifest, bundled_names, graph_files, locate_bundle, read_manifest
from streampose.errors import ModelError
from streampose.model import FamiPose, fami_pose
from streampose.model.fuser import Fuser
from streampose.model.network import IMAGENET_STD
from streampose.model.person import PersonNetwork

UNSHIPPED = ("head", "coarse_heads.0", "coarse_heads.1")
"""Heads of the encoder that only training has."""
STEM = "trunk.stem.0.weight"


def is_bundle(weights: str) -> bool:
    """Whether a stage's `weights` name a bundled model or a bundle's folder instead of a file."""
    return weights in bundled_names() or bool(weights and Path(weights).is_dir())


def pose_of_bundle(name: str) -> FamiPose:
    """A bundle's pose network in torch, in evaluation mode. BatchNorm, which is part of the convolutions there, is left
    with nothing but their bias: see `settle`. The encoder's own head begins as the fuser's, its coarse heads at random.

    Raises:
        ModelError: there is no such bundle, or not a lite pose network in float32 for ONNX Runtime.
    """
    folder, manifest = _open(name, "pose")
    encoder, fuser = (_tensors(folder / file) for file in graph_files("pose", "onnxruntime"))
    network = fami_pose("lite", manifest.offsets, skeleton=manifest.skeleton).eval()
    assert isinstance(network.fuser, Fuser)
    try:
        encoder[f"encoder.{STEM}"] = _take_rgb(encoder[f"encoder.{STEM}"])
        _put(network.encoder, encoder, "encoder.", UNSHIPPED)
        _put(network.fuser, fuser, "network.fuser.")
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"{folder} holds another network than lite; only lite can be trained on") from error
    network.encoder.head.load_state_dict(network.fuser.head.state_dict())
    return network


def detector_of_bundle(name: str) -> PersonNetwork:
    """As `pose_of_bundle`, of a person detector."""
    folder, manifest = _open(name, "person-detector")
    tensors = _tensors(folder / GRAPHS["person-detector"][0])
    network = PersonNetwork(manifest.input_size).eval()
    try:
        tensors[f"network.{STEM}"] = _take_rgb(tensors[f"network.{STEM}"])
        _put(network, tensors, "network.")
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"{folder} holds another detector than person; only person can be trained on") from error
    return network


@torch.no_grad()
def settle(network: nn.Module, run: Callable[[], object]) -> None:
    """Give each BatchNorm the statistics of what reaches it while `run` runs the network, which is in evaluation mode
    for it; what it computes there stays the same, and training mode then computes nearly the same."""
    sums: dict[nn.BatchNorm2d, tuple[Tensor, Tensor, int]] = {}
    hooks = []
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):

            def look(_module: nn.Module, inputs: tuple[Tensor], norm: nn.BatchNorm2d = norm) -> None:
                values = inputs[0].double()
                total, squares, count = sums.get(norm, (torch.zeros(1), torch.zeros(1), 0))
                total, squares = total + values.sum((0, 2, 3)), squares + values.square().sum((0, 2, 3))
                sums[norm] = total, squares, count + values.numel() // values.shape[1]

            hooks.append(norm.register_forward_pre_hook(look))
    training = network.training
    try:
        network.eval()
        run()
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    for norm, (total, squares, count) in sums.items():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, scale = total / count, norm.weight / (norm.running_var + norm.eps).sqrt()
        bias = norm.bias - scale * norm.running_mean
        variance = (squares / count - mean.square()).clamp(min=1e-6)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_(scale * (norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(bias + scale * norm.running_mean)


def _open(name: str, kind: str) -> tuple[Path, Manifest]:
    folder = locate_bundle(name)
    manifest = read_manifest(folder)
    if (manifest.kind, manifest.target, manifest.precision) != (kind, "onnxruntime", "fp32"):
        raise ModelError(
            f"{folder} is a {manifest.kind} for {manifest.target} in {manifest.precision}; training begins with a "
            f"{kind} for onnxruntime in fp32"
        )
    return folder, manifest


def _tensors(file: Path) -> dict[str, Tensor]:
    return {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in onnx.load(file).graph.initializer}


def _take_rgb(weight: Tensor) -> Tensor:
    """The way back from `streampose.model.network.take_bgr`."""
    return (weight * torch.tensor(IMAGENET_STD).flip(0).view(1, 3, 1, 1) * 255).flip(1)


@torch.no_grad()
def _put(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, left_out: tuple[str, ...] = ()) -> None:
    """Copy a graph's tensors into a module; those of a BatchNorm may be folded into the convolution before it.

    Raises:
        KeyError: the graph lacks a tensor. RuntimeError: it has one of another shape.
    """
    for name, part in module.named_modules():
        bias = tensors.get(f"{prefix}{name.removesuffix('.1')}.0.weight_bias")
        if isinstance(part, nn.BatchNorm2d) and bias is not None:
            part.reset_parameters()
            assert part.running_var is not None
            part.running_var.fill_(1 - part.eps)
            part.bias.copy_(bias)
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, target in own.items():
        layer, _, _ = name.rpartition(".")
        before = f"{layer.rpartition('.')[0]}.0".lstrip(".")
        if layer in left_out or name.endswith("num_batches_tracked"):
            continue
        if layer.endswith(".1") and f"{prefix}{before}.weight_bias" in tensors:
            continue
        target.copy_(tensors[prefix + name])
