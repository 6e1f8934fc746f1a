"""What the deformable convolution costs on paper: bytes, operations and, from the machine code, instructions.

    python benchmarks/kernel_cost.py [--nvdisasm PROGRAM]

Nothing runs on a GPU. Instructions are counted in machine code for sm_90, disassembled by `nvdisasm` (the CUDA
toolkit's, or PyPI's nvidia-cuda-nvdisasm); without it these columns stay empty.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from extras import needs

with needs("train"):
    from streampose.plugins.deform_conv.geometry import STORAGES, THREADS, Geometry, grid, packed_size, plan
    from streampose.plugins.deform_conv.ptx import compile_cubin

W48 = Geometry(48, 48, 3, 3, padding_h=1, padding_w=1, offset_groups=12, height=96, width=72)
LITE = Geometry(32, 32, 3, 3, padding_h=1, padding_w=1, offset_groups=4, height=32, width=24)
ISSUED_PER_CYCLE = 132 * 4  # warp instructions, by an H100's 132 multiprocessors


def moved_bytes(g: Geometry) -> tuple[int, int]:
    """Read and written for one map: fused, and by sampling to columns that a product then reads."""
    size, cells = STORAGES[g.storage].itemsize, g.height * g.width
    samples = g.offset_groups * g.taps
    fused = cells * (size * (g.channels + g.out_channels + samples) + 4 * 2 * samples) + packed_size(g) * size
    return fused, fused + 2 * cells * g.channels * g.taps * size


def instructions(g: Geometry, nvdisasm: str) -> tuple[int, int]:
    """Machine instructions of the loop over chunks and of all the rest."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compile_cubin(g, "sm_90").code)
        listing = subprocess.run([nvdisasm, "-c", str(path)], capture_output=True, text=True, check=True).stdout
    places: dict[str, int] = {}
    longest, count = 0, 0
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            places[label[1]] = count
        elif re.match(r"\s*/\*[0-9a-f]+\*/", line):
            back = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            if back and back[1] in places:
                longest = max(longest, count + 1 - places[back[1]])
            count += 1
    return longest, count - longest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvdisasm", default=shutil.which("nvdisasm"))
    nvdisasm = parser.parse_args().nvdisasm
    print(
        "| net | storage | order | fused MB | two passes MB "
        "| product MFLOP | loop | rest | kilocycles a map on an H100 |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, one in (("W48", W48), ("lite", LITE)):
        for storage in ("fp16", "fp32"):
            for last in (False, True):
                g = replace(one, storage=storage, channels_last=last)  # type: ignore[arg-type]
                fused, two = moved_bytes(g)
                product = 2 * g.out_channels * g.channels // g.groups * g.taps * g.height * g.width
                loop, rest = instructions(g, nvdisasm) if nvdisasm else (0, 0)
                blocks, tiles, _ = grid(g, 1, *g.output_size(g.height, g.width))
                cycles = blocks * tiles * (THREADS // 32) * (plan(g).chunks * loop + rest) / ISSUED_PER_CYCLE
                counted = f"{loop} | {rest} | {cycles / 1e3:.2f}" if nvdisasm else " | | "
                order = "channels last" if last else "planar"
                figures = f"{fused / 1e6:.2f} | {two / 1e6:.2f} | {product / 1e6:.0f}"
                print(f"| {name} | {storage} | {order} | {figures} | {counted} |")


if __name__ == "__main__":
    with needs("cuda"):
        main()
