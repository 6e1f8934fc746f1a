"""One problem of the kernel: its numbers, how it is cut into blocks, its packed weights and its source.

`kernel.cuh` is compiled for one `Geometry` at a time: everything but batch and map size is a constant there. `Plan`
here follows the same rules as `Plan` there (a test compares them), because the weights are packed, and the grid is
counted, before anything runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Storage = Literal["fp32", "fp16"]
TILE, THREADS, WIDEST = 64, 128, 64
STORAGES: dict[Storage, np.dtype[np.float32 | np.float16]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a kernel is compiled for.

    Attributes:
        channels, out_channels: C and O.
        kernel_h .. dilation_w: of the convolution, (vertical, horizontal).
        groups, offset_groups: of the convolution; both divide C, and `groups` divides O.
        has_mask, has_bias: whether the kernel reads them; a tensor is passed in any case.
        storage: of map, mask, weights and result. Offsets, bias, coordinates and sums are always float32.
        channels_last: whether map and result are (B, H, W, C) rather than (B, C, H, W).
        height, width: of the map; 0 where only a launch tells, which makes a slower kernel.

    Raises:
        ValueError: numbers that do not fit each other.
    """

    channels: int
    out_channels: int
    kernel_h: int
    kernel_w: int
    stride_h: int = 1
    stride_w: int = 1
    padding_h: int = 0
    padding_w: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    groups: int = 1
    offset_groups: int = 1
    has_mask: bool = True
    has_bias: bool = True
    storage: Storage = "fp16"
    channels_last: bool = False
    height: int = 0
    width: int = 0

    def __post_init__(self) -> None:
        if self.storage not in STORAGES:
            raise ValueError(f"storage is fp32 or fp16, not {self.storage!r}")
        for name, number in asdict(self).items():
            least = 0 if name in ("padding_h", "padding_w", "height", "width") else 1
            if isinstance(number, int) and not isinstance(number, bool) and number < least:
                raise ValueError(f"{name} is {number}, expected {least} or more")
        if self.channels % self.groups or self.channels % self.offset_groups or self.out_channels % self.groups:
            raise ValueError(
                f"{self.channels} channels and {self.out_channels} output channels do not divide into "
                f"{self.groups} groups and {self.offset_groups} offset groups"
            )

    @classmethod
    def of(
        cls, weight: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
        groups: int, offset_groups: int, has_mask: bool, has_bias: bool, storage: Storage,
    ) -> Geometry:  # fmt: skip
        """The geometry of a convolution whose weight is of the shape (O, C / groups, kernel_h, kernel_w)."""
        out_channels, per_group, kernel_h, kernel_w = weight
        (stride_h, stride_w), (padding_h, padding_w), (dilation_h, dilation_w) = stride, padding, dilation
        return cls(
            per_group * groups, out_channels, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h,
            dilation_w, groups, offset_groups, has_mask, has_bias, storage,
        )  # fmt: skip

    @property
    def taps(self) -> int:
        """kernel_h * kernel_w."""
        return self.kernel_h * self.kernel_w

    @property
    def entry(self) -> str:
        """The kernel's name, different for every geometry."""
        numbers = [
            f"c{self.channels}o{self.out_channels}", f"k{self.kernel_h}x{self.kernel_w}",
            f"s{self.stride_h}x{self.stride_w}", f"p{self.padding_h}x{self.padding_w}",
            f"d{self.dilation_h}x{self.dilation_w}", f"g{self.groups}", f"og{self.offset_groups}",
            ("m" if self.has_mask else "") + ("b" if self.has_bias else "") or "plain",
            "nhwc" if self.channels_last else "nchw", *([f"{self.height}x{self.width}"] if self.height else []),
        ]  # fmt: skip
        return "_".join(["deform_conv", self.storage, *numbers])

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the result for a map of (height, width)."""
        reach_h, reach_w = self.dilation_h * (self.kernel_h - 1) + 1, self.dilation_w * (self.kernel_w - 1) + 1
        return (
            (height + 2 * self.padding_h - reach_h) // self.stride_h + 1,
            (width + 2 * self.padding_w - reach_w) // self.stride_w + 1,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """How a geometry is cut; `Plan` of kernel.cuh says what the words mean.

    Attributes:
        depth: channels of a unit.
        at_once: units of a chunk.
        chunks: of the inner dimension.
        rows: of a chunk, with those that are zero.
        output_tiles: blocks that share the output channels of one group.
        width: output channels of a block, with those that are not there.
        shared_bytes: of a block.
    """

    depth: int
    at_once: int
    chunks: int
    rows: int
    output_tiles: int
    width: int
    shared_bytes: int


def plan(geometry: Geometry) -> Plan:
    """Cut a geometry into blocks and chunks."""
    g, half = geometry, geometry.storage == "fp16"
    channels, outputs = g.channels // g.groups, g.out_channels // g.groups
    depth = _largest_divisor(math.gcd(channels, g.channels // g.offset_groups), WIDEST)
    blocks = channels // depth
    of_tap = _largest_divisor(blocks, WIDEST // depth)
    at_once = of_tap * (1 if of_tap < blocks else max(1, min(g.taps, 48 // channels)))
    rows = _ceil(at_once * depth, 16) * 16 if half else at_once * depth
    output_tiles = _ceil(outputs, WIDEST)
    width = _ceil(_ceil(outputs, output_tiles), 16) * 16
    columns = TILE * (rows + 8) if half else rows * TILE
    numbers = max(2 * columns, TILE * (width + 8) if half else 0)
    return Plan(
        depth,
        at_once,
        _ceil(g.taps * blocks, at_once),
        rows,
        output_tiles,
        width,
        numbers * STORAGES[g.storage].itemsize,
    )


def grid(geometry: Geometry, batch: int, out_height: int, out_width: int) -> tuple[int, int, int]:
    """Blocks of a launch; each has `THREADS` threads. All of a batch is one launch."""
    return batch * _ceil(out_height * out_width, TILE), geometry.groups * plan(geometry).output_tiles, 1


def pack_weight(weight: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32 | np.float16]:
    """Put weights in the order in which the kernel reads them.

    Args:
        weight: (O, C / groups, kernel_h, kernel_w).

    Returns:
        (packed_size(geometry),) of the geometry's storage. Every block's weights lie together, chunk after chunk: for
        fp32 as (row, output), for fp16 as the lanes of a warp hold the second factor of `mma.m16n8k16`.

    Raises:
        ValueError: a weight of another shape.
    """
    source = packing(geometry)
    expected = (geometry.out_channels, geometry.channels // geometry.groups, geometry.kernel_h, geometry.kernel_w)
    if weight.shape != expected:
        raise ValueError(f"weight is {weight.shape}, expected {expected}")
    flat = np.append(weight.reshape(-1), np.float32(0)).astype(STORAGES[geometry.storage])
    return np.ascontiguousarray(flat[source])


def packed_size(geometry: Geometry) -> int:
    """How many numbers the packed weights are."""
    p = plan(geometry)
    return geometry.groups * p.output_tiles * p.chunks * p.rows * p.width


def packing(geometry: Geometry) -> NDArray[np.int64]:
    """(packed_size,) for each packed number its place in the flat weight, or the weight's size where it is zero."""
    g, p = geometry, plan(geometry)
    channels, outputs = g.channels // g.groups, g.out_channels // g.groups
    zero = g.out_channels * channels * g.taps
    row = np.arange(p.chunks * p.at_once * p.depth)  # tap, channel
    place = np.where(row < g.taps * channels, row % channels * g.taps + row // channels, -1)
    chunks = np.full((p.chunks, p.rows), -1)
    chunks[:, : p.at_once * p.depth] = place.reshape(p.chunks, -1)
    output = np.arange(p.output_tiles * p.width)
    first = np.arange(g.groups)[:, None] * outputs + output
    first = np.where(output < outputs, first, -1).reshape(g.groups * p.output_tiles, p.width)
    known = (chunks[None, :, :, None] >= 0) & (first[:, None, None, :] >= 0)
    index = np.where(known, first[:, None, None, :] * channels * g.taps + chunks[None, :, :, None], zero)
    if g.storage == "fp32":
        return index.reshape(-1)
    # (block, chunk, step of 16 rows, register, lane % 4, element, pair of tiles, tile, lane // 4)
    split = index.reshape(index.shape[0], p.chunks, p.rows // 16, 2, 4, 2, p.width // 16, 2, 8)
    return split.transpose(0, 1, 2, 6, 8, 4, 7, 3, 5).reshape(-1)


def source(*geometries: Geometry) -> str:
    """C++ of one kernel a geometry, to be compiled where `header()` is known as kernel.cuh.

    A kernel's arguments are x, offset, mask, packed weight, bias, then as int32 height, width, out_height, out_width,
    then y.
    """
    return '#include "kernel.cuh"\n' + "".join(_entry(geometry) for geometry in geometries)


def header() -> str:
    """The kernel itself."""
    return (resources.files(__package__) / "kernel.cuh").read_text(encoding="utf-8")


def _entry(geometry: Geometry) -> str:
    numbers = {name: number for name, number in asdict(geometry).items() if name != "storage"}
    constants = "".join(
        f"    static constexpr {'bool' if isinstance(number, bool) else 'int'} {name} = {str(number).lower()};\n"
        for name, number in numbers.items()
    )
    stored = "float" if geometry.storage == "fp32" else "deform_conv::Half"
    return f"""
struct Geometry_{geometry.entry} {{
{constants}}};
extern "C" DEFORM_CONV_KERNEL void {geometry.entry}(
    const {stored}* __restrict__ x, const float* __restrict__ offset, const {stored}* __restrict__ mask,
    const {stored}* __restrict__ weight, const float* __restrict__ bias, int height, int width, int out_height,
    int out_width, {stored}* __restrict__ y) {{
    deform_conv::kernel<{stored}, Geometry_{geometry.entry}>(
        {{x, offset, mask, weight, bias, y}}, {{height, width, out_height, out_width}});
}}
"""


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _largest_divisor(of: int, most: int) -> int:
    return next(number for number in range(min(of, most), 0, -1) if of % number == 0)
