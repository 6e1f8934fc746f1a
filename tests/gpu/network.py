"""The network in torch on a GPU: with our kernel against the GridSample form, and people-frames a second.

usage: network.py [--dry-run]      prints one JSON; ends with 1 where the two forms disagree

--dry-run needs no GPU: the lite network in float32 on the CPU, nothing timed. tests/gpu/run.sh sets up the imports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any
from unittest import mock

import torch

from streampose.model import FamiPose, align, fami_pose
from streampose.plugins.deform_conv.reference import deform_conv2d_reference

BATCHES = (1, 2, 4, 8, 16, 32, 64)
ROUNDS, WARM_UP = 20, 5
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2}
"""Largest difference of heatmaps as a share of their standard deviation."""


def random_network(backbone: str) -> FamiPose:
    """With weights that use every part: random offsets, masks and corrections, which start at zero otherwise."""
    torch.manual_seed(0)
    network = fami_pose(backbone)
    assert network.fuser is not None
    with torch.no_grad():
        for parameter in network.fuser.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02)
    return network.eval()


@torch.inference_mode()
def difference(network: FamiPose, device: torch.device, dtype: torch.dtype, people: int = 2) -> float:
    """Of heatmaps by our operator and by the GridSample form, as a share of their standard deviation."""
    features, transforms = window(network, device, dtype, people)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        ours = network.fuse(features, transforms).float()
        with mock.patch.object(align, "deform_conv2d", deform_conv2d_reference):
            reference = network.fuse(features, transforms).float()
    return float((ours - reference).abs().max() / reference.std())


def window(
    network: FamiPose, device: torch.device, dtype: torch.dtype, people: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features of windows whose crops moved."""
    generator = torch.Generator().manual_seed(1)
    frames, (height, width) = 1 + len(network.offsets), network.input_size
    shape = (people, frames, network.encoder.channels, height // 4, width // 4)
    features = torch.randn(shape, generator=generator).to(device, dtype)
    transforms = torch.eye(2, 3).repeat(people, frames, 1, 1)
    transforms[:, 1:, :, 2] += 5 * torch.randn(people, frames - 1, 2, generator=generator)
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true")
    dry = parser.parse_args().dry_run
    device = torch.device("cpu" if dry else "cuda")
    report: dict[str, Any] = {"torch": torch.__version__, "device": "cpu"}
    if not dry:
        report["device"] = torch.cuda.get_device_name()
    agree = True
    for backbone in ("lite",) if dry else ("lite", "hrnet-w48"):
        network = random_network(backbone).to(device)
        for dtype in (torch.float32,) if dry else (torch.float32, torch.float16):
            found = difference(network, device, dtype)
            report[f"{backbone} {str(dtype).removeprefix('torch.')} difference"] = found
            agree = agree and found <= TOLERANCE[dtype]
        if not dry:
            network = network.to(memory_format=torch.channels_last)
            for people in BATCHES:
                ms = milliseconds(network, people)
                ms["people-frames/s"] = 1e3 / sum(ms.values())
                report[f"{backbone} float16, {people} people"] = ms
    print(json.dumps(report, indent=1))
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
