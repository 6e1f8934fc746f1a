"""Our deformable convolution against ONNX Runtime's DeformConv and against numeric gradients."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch", reason="needs the [train] extra")
pytest.importorskip("onnxscript", reason="needs the [train] extra")

from onnx import TensorProto, helper
from torch import Tensor

from streampose.engines.export import export_onnx
from streampose.plugins.deform_conv import deform_conv2d

KERNEL, STRIDE, PADDING, DILATION = (3, 2), (2, 1), (1, 2), (1, 2)
GRID = list(itertools.product((1, 5, 33), ((1, 1), (2, 1), (1, 3), (2, 4)), (True, False), (True, False)))


def tensors(
    batch: int,
    groups: int,
    offset_groups: int,
    dtype: torch.dtype = torch.float32,
    spread: float = 4.0,
    size: tuple[int, int] = (9, 7),
    channels: int = 12,
) -> dict[str, Tensor]:
    """Inputs whose offsets often leave the map; map and offsets are not contiguous."""
    generator = torch.Generator().manual_seed(batch * 100 + groups * 10 + offset_groups)
    outputs, (height, width) = 8, size
    out_h = (height + 2 * PADDING[0] - DILATION[0] * (KERNEL[0] - 1) - 1) // STRIDE[0] + 1
    out_w = (width + 2 * PADDING[1] - DILATION[1] * (KERNEL[1] - 1) - 1) // STRIDE[1] + 1
    taps = offset_groups * KERNEL[0] * KERNEL[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return {
        "x": normal(batch, height, width, channels).permute(0, 3, 1, 2),
        "offset": spread * normal(batch, out_h, out_w, 2 * taps).permute(0, 3, 1, 2),
        "mask": normal(batch, taps, out_h, out_w),
        "weight": normal(outputs, channels // groups, *KERNEL),
        "bias": normal(outputs),
    }


def onnx_runtime(given: dict[str, Tensor], groups: int, offset_groups: int) -> np.ndarray:
    names = {"x": "X", "weight": "W", "offset": "offset", "bias": "B", "mask": "mask"}
    inputs = [names[name] if name in given else "" for name in ("x", "weight", "offset", "bias", "mask")]
    node = helper.make_node(
        "DeformConv",
        inputs,
        ["Y"],
        kernel_shape=KERNEL,
        strides=STRIDE,
        pads=[*PADDING, *PADDING],
        dilations=DILATION,
        group=groups,
        offset_group=offset_groups,
    )
    declared = [
        helper.make_tensor_value_info(names[name], TensorProto.FLOAT, list(value.shape))
        for name, value in given.items()
    ]
    graph = helper.make_graph(
        [node], "one", declared, [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None] * 4)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {names[n]: v.contiguous().numpy() for n, v in given.items()})[0]
    return result


@pytest.mark.parametrize(("batch", "groups", "with_mask", "with_bias"), GRID)
def test_it_computes_what_onnx_runtime_does(
    batch: int, groups: tuple[int, int], with_mask: bool, with_bias: bool
) -> None:
    given = tensors(batch, *groups)
    given = {n: v for n, v in given.items() if (n != "mask" or with_mask) and (n != "bias" or with_bias)}
    found = deform_conv2d(
        given["x"], given["offset"], given.get("mask"), given["weight"], given.get("bias"),
        STRIDE, PADDING, DILATION, *groups,
    )  # fmt: skip
    wanted = onnx_runtime(given, *groups)
    assert found.shape == wanted.shape
    assert np.abs(found.numpy() - wanted).max() < 1e-4 * wanted.std()


@pytest.mark.parametrize("groups", [(1, 1), (2, 3)])
def test_gradients_agree_with_numeric_ones(groups: tuple[int, int]) -> None:
    given = tensors(2, *groups, dtype=torch.float64, spread=1.3, size=(5, 4), channels=6)
    leaves = [given[name].detach().requires_grad_() for name in ("x", "offset", "mask", "weight", "bias")]
    assert torch.autograd.gradcheck(
        lambda *t: deform_conv2d(*t, STRIDE, PADDING, DILATION, *groups), leaves, eps=1e-6, atol=1e-5
    )


def test_without_offsets_it_is_a_convolution() -> None:
    given = tensors(3, 2, 1)
    found = deform_conv2d(
        given["x"], torch.zeros_like(given["offset"]), None, given["weight"], given["bias"],
        STRIDE, PADDING, DILATION, groups=2,
    )  # fmt: skip
    wanted = torch.nn.functional.conv2d(given["x"], given["weight"], given["bias"], STRIDE, PADDING, DILATION, 2)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_an_empty_batch_gives_an_empty_batch() -> None:
    given = {name: value[:0] if name in ("x", "offset", "mask") else value for name, value in tensors(2, 1, 1).items()}
    found = deform_conv2d(
        given["x"], given["offset"], given["mask"], given["weight"], given["bias"], STRIDE, PADDING, DILATION
    )
    assert found.shape == (0, 8, 5, 9)


@pytest.mark.parametrize(
    ("name", "axis", "message"),
    [
        ("offset", 1, "offset is"),
        ("offset", 0, "offset is"),
        ("mask", 1, "mask is"),
        ("mask", 0, "mask is"),
        ("weight", 1, "channels"),
        ("bias", 0, "bias is"),
    ],
)
def test_shapes_that_do_not_fit_are_named(name: str, axis: int, message: str) -> None:
    given = tensors(2, 1, 1)
    given[name] = given[name].narrow(axis, 0, 1)
    with pytest.raises(ValueError, match=message):
        deform_conv2d(
            given["x"], given["offset"], given["mask"], given["weight"], given["bias"], STRIDE, PADDING, DILATION
        )


class Convolution(torch.nn.Module):
    """One deformable convolution whose every number differs from the network's."""

    def __init__(self, given: dict[str, Tensor], groups: tuple[int, int], with_bias: bool) -> None:
        super().__init__()
        self.groups = groups
        self.weight = torch.nn.Parameter(given["weight"])
        self.bias = torch.nn.Parameter(given["bias"]) if with_bias else None

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        return deform_conv2d(x, offset, mask, self.weight, self.bias, STRIDE, PADDING, DILATION, *self.groups)


@pytest.mark.parametrize("whole", [True, False])
@torch.inference_mode()
def test_it_exports_with_whatever_numbers(whole: bool, tmp_path: Path) -> None:
    groups = (2, 3)
    names = ("x", "offset", "mask")[: 3 if whole else 2]
    given, other = tensors(2, *groups), tensors(5, *groups)
    module = Convolution(given, groups, with_bias=whole)
    path = tmp_path / "one.onnx"
    export_onnx(module, {name: given[name].contiguous() for name in names}, ["y"], path, {})
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(["y"], {name: other[name].contiguous().numpy() for name in names})[0]
    wanted = module(*(other[name] for name in names)).numpy()
    assert np.abs(found - wanted).max() < 1e-4 * wanted.std()


NUMBERS = [2, 1], [1, 2], [1, 2], 2, 3
NAMES = ("x", "offset", "mask", "weight", "bias")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("whole", [True, False])
def test_the_operator_is_well_formed(whole: bool, dtype: torch.dtype) -> None:
    given = tensors(2, 2, 3)
    arguments = [given[name].to(dtype) if name != "offset" else given[name] for name in NAMES]
    arguments = [tensor.requires_grad_() for tensor in arguments]
    if not whole:
        arguments[2] = arguments[4] = None  # type: ignore[assignment]
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.streampose.deform_conv2d.default, (*arguments, *NUMBERS), test_utils=checks)


@pytest.mark.parametrize("wanted", [NAMES, ("x",), ("offset", "bias"), ("mask", "weight")])
def test_the_operators_gradients_are_the_references(wanted: tuple[str, ...]) -> None:
    given = tensors(2, 2, 3)
    leaves = {name: given[name].detach().requires_grad_(name in wanted) for name in NAMES}
    outward = torch.randn(2, 8, 5, 9, generator=torch.Generator().manual_seed(0))
    asked = [leaves[name] for name in wanted]
    found = torch.autograd.grad(torch.ops.streampose.deform_conv2d(*leaves.values(), *NUMBERS), asked, outward)
    expected = torch.autograd.grad(deform_conv2d(*leaves.values(), *NUMBERS), asked, outward)
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(found, expected, strict=True))


def test_the_operators_gradients_do_without_mask_and_bias() -> None:
    given = tensors(2, 2, 3)
    x = given["x"].detach().requires_grad_()
    y = torch.ops.streampose.deform_conv2d(x, given["offset"], None, given["weight"], None, *NUMBERS)
    (found,) = torch.autograd.grad(y.sum(), x)
    (wanted,) = torch.autograd.grad(deform_conv2d(x, given["offset"], None, given["weight"], None, *NUMBERS).sum(), x)
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_positions_keep_their_precision_in_half_storage(dtype: torch.dtype) -> None:
    """A ramp over 512 cells, looked up a hundredth of a cell off: half would round that to a quarter of a cell."""
    width = 512
    x = torch.linspace(0, 1, width).expand(1, 1, 1, width).to(dtype)
    offset = torch.zeros(1, 2, 1, width)
    offset[:, 1] = 0.01
    weight = torch.full((1, 1, 1, 1), 512.0, dtype=dtype)
    found = deform_conv2d(x, offset, None, weight)
    wanted = torch.nn.functional.conv2d(x.double() * 0.99, weight.double())
    wanted[..., :-1] += 5.12 * x[..., 1:].double()
    assert found.dtype == dtype
    assert ((found.double() - wanted).abs() <= torch.finfo(dtype).eps * wanted.abs()).all()
