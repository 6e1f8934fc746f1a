"""The networks in torch on a GPU, the released one too: our kernel against the GridSample form and torchvision's
operator, and people-frames a second.

usage: network.py [--dry-run]      prints one JSON; ends with 1 where the forms disagree

--dry-run needs no GPU: float32 on the CPU, nothing timed. tests/gpu/run.sh sets up the imports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any
from unittest import mock

import torch

from streampose.model import FamiPose, align, fami_pose, released
from streampose.plugins.deform_conv.reference import deform_conv2d_reference

BATCHES = (1, 2, 4, 8, 16, 32, 64)
ROUNDS, WARM_UP = 20, 5
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2}
"""Largest difference of heatmaps as a share of their standard deviation."""


def random_network(backbone: str, variant: str = "paper") -> FamiPose:
    """With weights that use every part: random offsets, masks and corrections, which start at zero otherwise."""
    torch.manual_seed(0)
    network = fami_pose(backbone, variant=variant)
    assert network.fuser is not None
    with torch.no_grad():
        for parameter in network.fuser.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02)
    return network.eval()


def by_torchvision(
    x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *_: Any,
    **options: Any,
) -> torch.Tensor:  # fmt: skip
    """The operator that the released code calls, with our arguments."""
    from torchvision.ops import deform_conv2d

    steps = {name: options[name] for name in ("stride", "padding", "dilation") if name in options}
    return deform_conv2d(x, offset.to(x.dtype), weight.to(x.dtype), bias.to(x.dtype), mask=mask.to(x.dtype), **steps)


@torch.inference_mode()
def difference(
    network: FamiPose, device: torch.device, dtype: torch.dtype, form: Callable[..., torch.Tensor], people: int = 2
) -> float:
    """Of heatmaps by our operator and by another form of it, as a share of their standard deviation."""
    features, transforms = window(network, device, dtype, people)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        ours = network.fuse(features, transforms).float()
        with mock.patch.object(align, "deform_conv2d", form), mock.patch.object(released, "deform_conv2d", form):
            other = network.fuse(features, transforms).float()
    return float((ours - other).abs().max() / other.std())


def window(
    network: FamiPose, device: torch.device, dtype: torch.dtype, people: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features of windows whose crops moved."""
    generator = torch.Generator().manual_seed(1)
    frames, (height, width) = 1 + len(network.offsets), network.input_size
    shape = (people, frames, network.encoder.channels, height // 4, width // 4)
    features = torch.randn(shape, generator=generator).to(device, dtype)
    transforms = torch.eye(2, 3).repeat(people, frames, 2, 1, 1)
    transforms[:, 1:, ..., 2] += 5 * torch.randn(people, frames - 1, 2, 2, generator=generator)
    return features, transforms.to(device)


@torch.inference_mode()
def milliseconds(network: FamiPose, people: int) -> dict[str, float]:
    """Median time a person of encoding one crop and fusing a window, in float16, on the GPU."""
    device = torch.device("cuda")
    frames = torch.randn(people, 3, *network.input_size, device=device).contiguous(memory_format=torch.channels_last)
    features, transforms = window(network, device, torch.float16, people)
    jobs = {"encode": lambda: network.encode(frames), "fuse": lambda: network.fuse(features, transforms)}
    times: dict[str, list[float]] = {name: [] for name in jobs}
    with torch.autocast("cuda", torch.float16):
        for turn in range(ROUNDS + WARM_UP):
            for name, job in jobs.items():
                began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                began.record()
                job()
                ended.record()
                torch.cuda.synchronize()
                if turn >= WARM_UP:
                    times[name].append(began.elapsed_time(ended) / people)
    return {name: statistics.median(values) for name, values in times.items()}


NETWORKS = {"lite": ("lite", "paper"), "W48": ("hrnet-w48", "paper"), "released": ("hrnet-w48", "released")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true")
    dry = parser.parse_args().dry_run
    if not dry and not torch.cuda.is_available():
        print("network.py: torch sees no GPU here; --dry-run needs none", file=sys.stderr)
        return 1
    device = torch.device("cpu" if dry else "cuda")
    report: dict[str, Any] = {"torch": torch.__version__, "differences": {}, "times": {}, "not_run": []}
    report["device"] = "cpu" if dry else torch.cuda.get_device_name()
    forms: dict[str, Callable[..., torch.Tensor]] = {"GridSample": deform_conv2d_reference}
    if find_spec("torchvision") is None:
        report["not_run"].append("torchvision's operator, which is not installed")
    else:
        forms["torchvision"] = by_torchvision
    if dry:
        report["not_run"].append("times, in a dry run")
    agree = True
    for name, (backbone, variant) in NETWORKS.items():
        network = random_network(backbone, variant).to(device)
        for dtype in (torch.float32,) if dry else (torch.float32, torch.float16):
            for form, function in forms.items():
                found = difference(network, device, dtype, function, 1 if dry else 2)
                report["differences"][f"{name} {str(dtype).removeprefix('torch.')}, against {form}"] = found
                agree = agree and found <= TOLERANCE[dtype]
        if dry:
            continue
        network = network.to(memory_format=torch.channels_last)
        report["times"][name] = {}
        for people in BATCHES:
            ms = milliseconds(network, people)
            report["times"][name][people] = ms | {"people-frames/s": 1e3 / sum(ms.values())}
    report["agree"] = agree
    print(json.dumps(report, indent=1))
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
