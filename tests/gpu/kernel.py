"""The deformable convolution on a GPU: correct against float64, timed against the memory and torchvision.

usage: kernel.py [--dry-run] [--small]      prints one JSON; ends with 1 where anything is wrong

--dry-run needs no GPU: the kernel runs on the CPU, compiled by g++, and nothing is timed. --small is for sanitizer.py:
problems that it gets through, and no times. tests/gpu/run.sh sets up the imports.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from host_kernel import HostKernels, host_kernels
from torch import Tensor

from streampose.plugins.deform_conv import deform_conv2d, launch
from streampose.plugins.deform_conv.geometry import Geometry, Storage
from streampose.plugins.deform_conv.reference import deform_conv2d_reference

TYPES: dict[Storage, torch.dtype] = {"fp16": torch.float16, "fp32": torch.float32}
TOLERANCE: dict[Storage, float] = {"fp16": 6e-3, "fp32": 6e-5}
"""Largest error as a share of the result's standard deviation."""
COPY_BYTES = 1 << 30
SUPPORTS = 4
PEOPLE = (1, 4, 16, 64)
AIM_OF_FLOOR, AIM_OF_TORCHVISION = 0.6, 3.0


@dataclass(frozen=True, slots=True)
class Case:
    """A deformable convolution of one of the networks, or one that no network has.

    Attributes:
        maps: of one person's window; what is timed.
    """

    name: str
    geometry: Geometry
    size: tuple[int, int]
    maps: int = SUPPORTS


W48 = Geometry(48, 48, 3, 3, padding_h=1, padding_w=1, offset_groups=12)
CASES = (
    Case("w48", W48, (96, 72)),
    Case("lite", Geometry(32, 32, 3, 3, padding_h=1, padding_w=1, offset_groups=4), (32, 24)),
    Case("released", replace(W48, padding_h=3, padding_w=3, dilation_h=3, dilation_w=3), (96, 72), 1),
)
ASYMMETRIC = Case("asymmetric", Geometry(12, 8, 3, 2, 2, 1, 1, 2, 1, 2, 2, 3), (13, 9))
GROUPS = Case("groups", Geometry(80, 136, 3, 2, 1, 1, 1, 2, 1, 2, 2, has_bias=False), (13, 9))
BARE = Case("bare", Geometry(7, 5, 1, 4, has_mask=False, has_bias=False), (13, 9))


def tensors(case: Case, batch: int, storage: Storage, last: bool, device: str) -> dict[str, Tensor | None]:
    """Inputs of a case; offsets leave the map here and there."""
    g, (out_h, out_w) = case.geometry, case.geometry.output_size(*case.size)
    generator = torch.Generator().manual_seed(batch)

    def normal(*shape: int, dtype: torch.dtype = TYPES[storage]) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    x = normal(batch, g.channels, *case.size)
    return {
        "x": x.contiguous(memory_format=torch.channels_last) if last else x,
        "offset": 2 * normal(batch, 2 * g.offset_groups * g.taps, out_h, out_w, dtype=torch.float32),
        "mask": normal(batch, g.offset_groups * g.taps, out_h, out_w).sigmoid() if g.has_mask else None,
        "weight": normal(g.out_channels, g.channels // g.groups, g.kernel_h, g.kernel_w),
        "bias": normal(g.out_channels) if g.has_bias else None,
    }


def steps(g: Geometry) -> tuple[Any, ...]:
    """Stride, padding, dilation, groups and offset groups as `deform_conv2d` takes them."""
    pairs = (g.stride_h, g.stride_w), (g.padding_h, g.padding_w), (g.dilation_h, g.dilation_w)
    return (*pairs, g.groups, g.offset_groups)


def exact(case: Case, given: dict[str, Tensor | None]) -> Tensor:
    """The reference in float64."""
    whole = {name: None if tensor is None else tensor.double() for name, tensor in given.items()}
    return deform_conv2d_reference(**whole, **_named(case.geometry))  # type: ignore[arg-type]


def correctness(
    compute: Callable[[Case, Storage, bool, dict[str, Tensor | None]], Tensor], device: str, small: bool = False
) -> list[dict[str, Any]]:
    """Every case in every form against float64."""
    found = []
    of_networks = [(replace(case, size=(11, 10)) if small else case, 2) for case in CASES]
    for case, batch in [*of_networks, (ASYMMETRIC, 3 if small else 33), (ASYMMETRIC, 0), (GROUPS, 3), (BARE, 3)]:
        for storage in TYPES:
            for last in (False, True):
                given = tensors(case, batch, storage, last, device)
                wanted, made = exact(case, given), compute(case, storage, last, given)
                error = float((made.double() - wanted).abs().max() / wanted.std()) if batch else 0.0
                found.append({
                    "case": case.name, "batch": batch, "storage": storage, "channels_last": last, "error": error,
                    "correct": made.shape == wanted.shape and error < TOLERANCE[storage],
                })  # fmt: skip
    return found


def gradients(device: str) -> dict[str, float]:
    """Largest difference of the operator's gradients to those of float64, as a share of their standard deviation."""
    given = tensors(ASYMMETRIC, 3, "fp32", False, device)
    found = {}
    for name, tensor in given.items():
        if tensor is None:
            continue
        one = tensor.clone().requires_grad_()
        (got,) = torch.autograd.grad(deform_conv2d(**{**given, name: one}, **_named(ASYMMETRIC.geometry)).sum(), one)  # type: ignore[arg-type]
        two = tensor.double().requires_grad_()
        whole = {key: None if value is None else value.double() for key, value in given.items()}
        (wanted,) = torch.autograd.grad(
            deform_conv2d_reference(**{**whole, name: two}, **_named(ASYMMETRIC.geometry)).sum(),
            two,  # type: ignore[arg-type]
        )
        found[name] = float((got - wanted).abs().max() / wanted.std().clamp_min(1e-12))
    return found


def floor_bytes(case: Case, given: dict[str, Tensor | None]) -> int:
    """What must be read and written at least: every tensor once."""
    g, x, offset = case.geometry, given["x"], given["offset"]
    assert x is not None
    assert offset is not None
    read = sum(tensor.numel() * tensor.element_size() for tensor in given.values() if tensor is not None)
    return read + len(x) * g.out_channels * offset.shape[2] * offset.shape[3] * x.element_size()


def time_ms(work: Callable[[], object], launches: int = 20, rounds: int = 7) -> float:
    """Median milliseconds of one call, from CUDA graphs of many: the host's time is not in it."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            work()
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / launches)
    return sorted(times)[rounds // 2]


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a large copy on the device."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / (time_ms(lambda: target.copy_(source), 5) / 1e3)


def timings(bandwidth: float) -> list[dict[str, Any]]:
    """The networks' convolutions for windows of 1 to 64 people."""
    try:
        from torchvision.ops import deform_conv2d as torchvision
    except ImportError:
        torchvision = None
    found = []
    for case in CASES:
        for people in PEOPLE:
            for storage in TYPES:
                for last in (False, True):
                    given = tensors(case, people * case.maps, storage, last, "cuda")
                    geometry = replace(case.geometry, storage=storage)
                    prepared = launch.prepare(*given.values(), geometry)  # type: ignore[arg-type]
                    ours = time_ms(lambda prepared=prepared: launch.launch(prepared))
                    least = floor_bytes(case, given) / bandwidth * 1e3
                    entry = {
                        "case": case.name, "people": people, "maps": people * case.maps, "storage": storage,
                        "channels_last": last, "ms": ours, "floor_ms": least, "of_floor": least / ours,
                    }  # fmt: skip
                    if torchvision is not None and not last:
                        theirs = time_ms(lambda given=given, case=case: _torchvision(torchvision, case, given), 5)
                        entry |= {"torchvision_ms": theirs, "times_torchvision": theirs / ours}
                    found.append(entry)
    return found


def on_the_gpu(case: Case, _storage: Storage, _last: bool, given: dict[str, Tensor | None]) -> Tensor:
    return deform_conv2d(**given, **_named(case.geometry))  # type: ignore[arg-type]


def on_the_cpu(
    kernels: HostKernels, case: Case, storage: Storage, last: bool, given: dict[str, Tensor | None]
) -> Tensor:
    geometry = _compiled(case, storage, last)
    arrays = {name: tensor.float().numpy() for name, tensor in given.items() if tensor is not None}
    return torch.from_numpy(kernels.run(geometry, arrays))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    report: dict[str, Any] = {"torch": torch.__version__}
    if options.dry_run:
        networks = [replace(case, size=(11, 10)) for case in CASES] if options.small else list(CASES)
        cases = [*networks, ASYMMETRIC, GROUPS, BARE]
        forms = [_compiled(case, storage, last) for case in cases for storage in TYPES for last in (False, True)]
        with host_kernels(*forms, flags=["-O2"]) as kernels:
            report["correctness"] = correctness(lambda *one: on_the_cpu(kernels, *one), "cpu", options.small)
        report["device"], report["gradients"] = "none: the kernel ran on the CPU", gradients("cpu")
    elif not torch.cuda.is_available():
        print("kernel.py: torch sees no GPU here; --dry-run needs none", file=sys.stderr)
        return 1
    else:
        if not launch.available():
            print("kernel.py: cuda-bindings is not installed; pip install 'streampose[cuda]'", file=sys.stderr)
            return 1
        report["device"] = torch.cuda.get_device_name()
        report["capability"] = "sm_{}{}".format(*torch.cuda.get_device_capability())
        report["correctness"] = correctness(on_the_gpu, "cuda", options.small)
        report["gradients"] = gradients("cuda")
        if not options.small:
            bandwidth = copy_bandwidth()
            report["copy_bytes_per_s"] = bandwidth
            report["timings"] = timings(bandwidth)
            report["aims"] = {"of_floor": AIM_OF_FLOOR, "times_torchvision": AIM_OF_TORCHVISION}
    report["correct"] = all(one["correct"] for one in report["correctness"]) and all(
        error < 1e-3 for error in report["gradients"].values()
    )
    print(json.dumps(report, indent=1))
    return 0 if report["correct"] else 1


def _compiled(case: Case, storage: Storage, last: bool) -> Geometry:
    """What the operator compiles for such a case."""
    height, width = case.size
    return replace(case.geometry, storage=storage, channels_last=last, height=height, width=width)


def _named(g: Geometry) -> dict[str, Any]:
    return dict(zip(("stride", "padding", "dilation", "groups", "offset_groups"), steps(g), strict=True))


def _torchvision(function: Callable[..., Tensor], case: Case, given: dict[str, Tensor | None]) -> Tensor:
    """torchvision wants offsets of the map's type."""
    x, offset = given["x"], given["offset"]
    assert x is not None
    assert offset is not None
    stride, padding, dilation, *_ = steps(case.geometry)
    return function(x, offset.to(x.dtype), given["weight"], given["bias"], stride, padding, dilation, given["mask"])


if __name__ == "__main__":
    sys.exit(main())
