"""The kernel, run on the CPU under sanitizers, against the reference in float64; and its PTX."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import astuple, replace

import host_kernel
import numpy as np
import pytest
from host_kernel import HostKernels, host_kernels
from numpy.typing import NDArray

from streampose.errors import StreamposeError, UsageError
from streampose.plugins.deform_conv.geometry import THREADS, Geometry, grid, pack_weight, packed_size, packing, plan

torch = pytest.importorskip("torch", reason="needs the [train] extra")

from streampose.plugins.deform_conv import launch
from streampose.plugins.deform_conv.reference import deform_conv2d_reference

W48 = Geometry(48, 48, 3, 3, padding_h=1, padding_w=1, offset_groups=12)
LITE = Geometry(32, 32, 3, 3, padding_h=1, padding_w=1, offset_groups=4)
RELEASED = replace(W48, padding_h=3, padding_w=3, dilation_h=3, dilation_w=3)
ODD = Geometry(12, 8, 3, 2, 2, 1, 1, 2, 1, 2)  # k 3x2, stride 2x1, padding 1x2, dilation 1x2
SHAPES = [
    W48,
    LITE,
    RELEASED,
    ODD,
    replace(ODD, groups=2, offset_groups=3),
    replace(ODD, groups=4, offset_groups=6, has_mask=False),  # groups whose borders do not coincide
    replace(ODD, offset_groups=12, has_bias=False),
    replace(ODD, channels=80, out_channels=136, groups=2, offset_groups=1, stride_h=1),  # two tiles of outputs a group
    replace(ODD, channels=7, out_channels=5, kernel_h=1, kernel_w=4, has_mask=False, has_bias=False),
]
SIZE = (13, 9)
ALL = [
    replace(shape, storage=storage, channels_last=last)
    for shape in SHAPES
    for storage in ("fp32", "fp16")
    for last in (False, True)
]
SIZED = [replace(geometry, height=SIZE[0], width=SIZE[1]) for geometry in [*ALL[:4], *ALL[6::3]]]
THIN = [  # maps of one row, of one column and of one cell
    replace(ODD, kernel_h=1, height=height, width=width, storage=storage, channels_last=height > 1)
    for height, width in ((1, 5), (4, 1), (1, 1))
    for storage in ("fp32", "fp16")
]
Given = dict[str, NDArray[np.float32]]
needs_compiler = pytest.mark.skipif(host_kernel.missing() is not None, reason=str(host_kernel.missing()))


@pytest.fixture(scope="module")
def kernels() -> Iterator[HostKernels]:
    unsized = [replace(geometry, height=0, width=0) for geometry in THIN]
    with host_kernels(*ALL, *SIZED, *THIN, *unsized) as compiled:
        yield compiled


def inputs(geometry: Geometry, batch: int, size: tuple[int, int] = SIZE, spread: float = 4.0) -> Given:
    """Numbers that half precision holds exactly, and offsets that often leave the map."""
    g, (out_h, out_w) = geometry, geometry.output_size(*size)
    rng = np.random.default_rng(batch * 1000 + g.channels)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float16).astype(np.float32)

    return {
        "x": normal(batch, g.channels, *size),
        "offset": (spread * rng.standard_normal((batch, 2 * g.offset_groups * g.taps, out_h, out_w))).astype("f4"),
        "mask": normal(batch, g.offset_groups * g.taps, out_h, out_w),
        "weight": normal(g.out_channels, g.channels // g.groups, g.kernel_h, g.kernel_w),
        "bias": normal(g.out_channels),
    }


def reference(geometry: Geometry, given: Given) -> NDArray[np.float64]:
    g = geometry
    x, offset, mask, weight, bias = (torch.from_numpy(given[name]).double() for name in given)
    found: NDArray[np.float64] = deform_conv2d_reference(
        x, offset, mask if g.has_mask else None, weight, bias if g.has_bias else None, (g.stride_h, g.stride_w),
        (g.padding_h, g.padding_w), (g.dilation_h, g.dilation_w), g.groups, g.offset_groups,
    ).numpy()  # fmt: skip
    return found


def tolerance(geometry: Geometry, wanted: NDArray[np.float64]) -> float:
    """float: positions near row 90 are rounded to 8e-6 of a cell. half: each sample and the result, to 5e-4 of it."""
    return float(wanted.std()) * (6e-5 if geometry.storage == "fp32" else 6e-3)


@needs_compiler
@pytest.mark.parametrize("geometry", [*ALL, *SIZED], ids=lambda g: g.entry)
@pytest.mark.parametrize("batch", [1, 5])
def test_the_kernel_computes_what_the_reference_does(kernels: HostKernels, geometry: Geometry, batch: int) -> None:
    given = inputs(geometry, batch)
    wanted = reference(geometry, given)
    found = kernels.run(geometry, given)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < tolerance(geometry, wanted)


@needs_compiler
@pytest.mark.parametrize("batch", [0, 33])
@pytest.mark.parametrize("geometry", [g for g in ALL if g.groups == 2 and g.channels == 12], ids=lambda g: g.entry)
def test_all_of_a_batch_is_one_launch(kernels: HostKernels, geometry: Geometry, batch: int) -> None:
    given = inputs(geometry, batch)
    found = kernels.run(geometry, given)
    wanted = reference(geometry, given)
    assert found.shape == wanted.shape
    assert not batch or np.abs(found - wanted).max() < tolerance(geometry, wanted)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("geometry", [g for g in ALL if g.channels == 48 and g.dilation_h == 1], ids=lambda g: g.entry)
def test_the_networks_own_map(kernels: HostKernels, geometry: Geometry) -> None:
    given = inputs(geometry, 1, (96, 72), spread=1.0)
    wanted = reference(geometry, given)
    assert np.abs(kernels.run(geometry, given) - wanted).max() < tolerance(geometry, wanted)


@needs_compiler
@pytest.mark.parametrize("geometry", THIN, ids=lambda g: g.entry)
@pytest.mark.parametrize("known", [True, False])
def test_a_map_may_be_one_cell_thin(kernels: HostKernels, geometry: Geometry, known: bool) -> None:
    given = inputs(geometry, 3, (geometry.height, geometry.width), spread=1.0)
    compiled = geometry if known else replace(ODD, kernel_h=1, storage=geometry.storage, height=0, width=0)
    compiled = replace(compiled, channels_last=geometry.channels_last)
    wanted = reference(geometry, given)
    assert np.abs(kernels.run(compiled, given) - wanted).max() < tolerance(geometry, wanted)


@needs_compiler
@pytest.mark.parametrize("storage", ["fp32", "fp16"])
def test_positions_that_are_no_numbers_or_far_away_sample_zero(kernels: HostKernels, storage: str) -> None:
    geometry = replace(ODD, offset_groups=12, has_bias=False, storage=storage)
    given = inputs(geometry, 1)
    far = np.resize(np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 1e9, -1e9], "f4"), given["offset"].shape)
    assert not kernels.run(geometry, {**given, "offset": far}).any()


@needs_compiler
@pytest.mark.parametrize("storage", ["fp32", "fp16"])
def test_positions_on_the_border_share_with_zero(kernels: HostKernels, storage: str) -> None:
    """A map of ones, looked up from a cell outside to a cell outside, in eighths."""
    geometry = Geometry(7, 5, 1, 4, 2, 1, 1, 2, 1, 2, has_mask=False, has_bias=False, storage=storage)  # type: ignore[arg-type]
    given = inputs(geometry, 1, (4, 6))
    out_h, out_w = geometry.output_size(4, 6)
    rows = np.arange(out_h) * 2 - 1
    columns = np.arange(out_w) - 2
    at = np.linspace(-1, 6, 57)[: out_h * out_w].reshape(out_h, out_w).astype("f4")
    offset = np.zeros_like(given["offset"])
    for tap in range(4):
        offset[0, 2 * tap] = -rows[:, None]  # row 0
        offset[0, 2 * tap + 1] = at - columns[None] - 2 * tap
    ones, weight = np.ones_like(given["x"]), np.zeros_like(given["weight"])
    weight[3, 2, 0, 1] = 1
    found = kernels.run(geometry, {**given, "x": ones, "weight": weight, "offset": offset})
    assert np.array_equal(found[0, 3], np.clip(np.minimum(at + 1, 6 - at), 0, 1))
    assert not found[0, [0, 1, 2, 4]].any()


@needs_compiler
def test_python_plans_as_the_kernel_does(kernels: HostKernels) -> None:
    plans = kernels.plans()
    assert {geometry.entry for geometry in [*ALL, *SIZED, *THIN]} <= set(plans)
    for geometry in [*ALL, *SIZED, *THIN]:
        assert plans[geometry.entry] == astuple(plan(geometry))


@needs_compiler
@pytest.mark.parametrize(
    ("geometry", "synchronisations"),
    [
        (replace(W48, storage="fp32"), 9),  # one a chunk
        (W48, 9),  # and two in the end: of them, the first is needed where rows and outputs differ
        (replace(ODD, groups=2, offset_groups=3, storage="fp32"), 1),
        (replace(ODD, groups=2, offset_groups=3), 3),
    ],
    ids=lambda value: getattr(value, "entry", None),
)
def test_a_missing_synchronisation_is_noticed(kernels: HostKernels, geometry: Geometry, synchronisations: int) -> None:
    given = inputs(geometry, 1)
    for skipped in range(synchronisations):
        with pytest.raises(RuntimeError, match="race on byte"):
            kernels.run(geometry, given, SKIP_SYNC=str(skipped))
    kernels.run(geometry, given, SKIP_SYNC="100")


@needs_compiler
def test_reading_past_a_buffer_is_noticed(kernels: HostKernels) -> None:
    geometry = replace(LITE, storage="fp32")
    given = inputs(geometry, 1)
    with pytest.raises(RuntimeError, match="heap-buffer-overflow"):
        kernels.run(geometry, {**given, "mask": given["mask"][:, :-1]})


@needs_compiler
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_launch_from_torch_has_the_kernels_arguments(
    kernels: HostKernels, dtype: torch.dtype, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the driver's call: strided tensors of mixed types to the arguments, and the result's order."""
    geometry = replace(W48, storage=launch.STORAGES[dtype])
    given = inputs(geometry, 3)
    x, offset, mask, weight, bias = (torch.from_numpy(given[name]) for name in given)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last) if last else x.to(dtype)
    offset = offset.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    prepared = launch.prepare(x, offset, mask, weight, bias, geometry)
    arguments = [one.numpy() if isinstance(one, torch.Tensor) else one for one in prepared.arguments[:-1]]
    if last:
        arguments[0] = arguments[0].transpose(0, 2, 3, 1)  # as it lies in memory
    shape = prepared.y.permute(0, 2, 3, 1).shape if last else prepared.y.shape
    found = kernels.launch(
        prepared.geometry.entry, prepared.blocks, (THREADS, 1, 1), arguments, (tuple(shape), prepared.y.numpy().dtype)
    )
    found = found.transpose(0, 3, 1, 2) if last else found
    wanted = reference(geometry, given)
    assert prepared.y.shape == wanted.shape
    assert prepared.y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert np.abs(found - wanted).max() < tolerance(geometry, wanted)
    monkeypatch.setattr(launch, "LARGEST", 100)
    with pytest.raises(ValueError, match="too large for the kernel"):
        launch.prepare(x, offset, mask, weight, bias, geometry)


@pytest.mark.parametrize("geometry", ALL[:: len(ALL) // 9], ids=lambda g: g.entry)
def test_packing_holds_every_weight_once(geometry: Geometry) -> None:
    weight = np.arange(1, 1 + geometry.out_channels * geometry.channels // geometry.groups * geometry.taps)
    places = packing(geometry)
    assert places.shape == (packed_size(geometry),)
    used = np.sort(places[places < weight.size])
    assert np.array_equal(used, np.arange(weight.size))
    assert (places[places >= weight.size] == weight.size).all()


def test_weights_of_another_shape_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected \(48, 48, 3, 3\)"):
        pack_weight(np.zeros((48, 4, 3, 3), np.float32), W48)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"groups": 5}, "do not divide"),
        ({"offset_groups": 7}, "do not divide"),
        ({"out_channels": 9, "groups": 2}, "do not divide"),
        ({"stride_w": 0}, "stride_w is 0"),
        ({"padding_h": -1}, "padding_h is -1"),
        ({"storage": "bf16"}, "fp32 or fp16"),
    ],
)
def test_numbers_that_do_not_fit_are_named(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(W48, **wrong)  # type: ignore[arg-type]


def test_an_empty_batch_has_an_empty_grid() -> None:
    assert grid(W48, 0, 96, 72) == (0, 1, 1)
    assert grid(W48, 33, 96, 72) == (33 * 108, 1, 1)


@pytest.fixture
def ptx() -> object:
    pytest.importorskip("cuda.bindings", reason="needs the [cuda] extra")
    from streampose.plugins.deform_conv import ptx

    return ptx


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_89", "sm_90"])
@pytest.mark.parametrize("geometry", [g for g in ALL if g.channels in (48, 32, 7)], ids=lambda g: g.entry)
def test_it_compiles_to_ptx(ptx, geometry: Geometry, arch: str) -> None:  # type: ignore[no-untyped-def]
    kernel = ptx.compile_ptx(geometry, arch)
    text = kernel.code.decode()
    assert re.findall(r"\.visible \.entry (\w+)\(", text) == [geometry.entry] == [kernel.entry]
    assert re.search(rf"^\.target {arch}$", text, re.MULTILINE)
    assert f".version {kernel.isa}\n" in text
    assert tuple(map(int, kernel.isa.split("."))) >= (8, 0)
    parameters = re.findall(r"\.param \.(u64|u32)", text.partition(")")[0])
    assert parameters == ["u64"] * 5 + ["u32"] * 4 + ["u64"]
    assert ".local" not in text  # everything that a thread keeps is in registers
    assert re.search(rf"\.shared \.align 16 \.b8 \S+\[{plan(geometry).shared_bytes}\]", text)
    tile = "m16n8k8" if arch == "sm_75" else "m16n8k16"
    products = re.findall(r"mma\.sync\.aligned\.(\w+)\.row\.col\.f32\.f16\.f16\.f32", text)
    assert set(products) == ({tile} if geometry.storage == "fp16" else set())
    if geometry.channels_last and geometry.channels % 4 == 0:
        assert re.search(r"ld\.global\.nc\.(v4|v2\.[ubf]64|v2\.b32)", text), "channels are not loaded together"


def test_it_compiles_to_machine_code(ptx) -> None:  # type: ignore[no-untyped-def]
    kernel = ptx.compile_cubin(W48, "sm_90")
    assert kernel.code.startswith(b"\x7fELF")
    assert kernel.isa == ""


@pytest.mark.parametrize("arch", ["sm_70", "90", "gfx90a", "sm_9x"])
def test_an_architecture_that_is_none_is_named(ptx, arch: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match="sm_75"):
        ptx.compile_ptx(W48, arch)


def test_an_architecture_that_nvrtc_does_not_know_is_named(ptx) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=r"does not compile for sm_999; it knows sm_75.*sm_90"):
        ptx.compile_ptx(W48, "sm_999")


def test_a_source_that_does_not_compile_is_one_line(ptx, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(ptx, "header", lambda: "#error broken on purpose")
    with pytest.raises(StreamposeError, match="broken on purpose") as raised:
        ptx.compile_ptx(replace(W48, kernel_w=7), "sm_90")
    assert "\n" not in str(raised.value)
