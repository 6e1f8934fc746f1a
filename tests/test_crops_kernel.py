"""The kernels that cut crops on the device, run on the CPU under sanitizers; and their PTX."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from streampose.geometry import crop_affine, cut, invert
from streampose.plugins.crops import compile_kernels, kernel_source

WARNINGS = ("-Wall", "-Wextra", "-Werror")
SANITIZERS = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    folder = tmp_path_factory.mktemp("crops")
    (folder / "kernel.cuh").write_text(kernel_source(), encoding="utf-8")
    main = Path(__file__).with_name("crops_host.cpp")
    command = ["g++", "-std=c++17", "-O1", *WARNINGS, *SANITIZERS, "-I", str(folder), str(main), "-o", "crops"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "crops"


def cut_on_device(
    program: Path, frame: NDArray[np.uint8], affines: NDArray[np.float32], size: tuple[int, int]
) -> NDArray[np.uint8]:
    folder = program.parent
    frame.tofile(folder / "frame.bin")
    invert(affines).tofile(folder / "inverses.bin")
    words = [*frame.shape[:2], "inverses.bin", len(affines), *size]
    run(program, "frame.bin", *words)
    return np.fromfile(folder / "out.bin", np.uint8).reshape(len(affines), *size, 3)


def run(program: Path, *arguments: object) -> None:
    command = [str(program), "out.bin", *map(str, arguments)]
    done = subprocess.run(command, cwd=program.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_crops_are_as_the_cpu_cuts_them(program: Path) -> None:
    """Turned, over the frame's edges and past them. OpenCV rounds positions to 1/32 pixel; the picture is smooth."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 133, 3), dtype=np.uint8)
    frame = np.asarray(cv2.GaussianBlur(noise, (0, 0), 3), np.uint8)
    boxes = np.array([[30, 20, 70, 80], [-20, 10, 30, 70], [100, 50, 180, 120], [400, 400, 440, 480]], np.float32)
    turns = (0.0, 15.0, -40.0, 0.0)
    size = (96, 64)
    affines = np.stack([crop_affine(box, size, rotation_deg=turn) for box, turn in zip(boxes, turns, strict=True)])
    found = cut_on_device(program, frame, affines, size)
    wanted = np.stack([cut(frame, affine, size) for affine in affines])
    difference = np.abs(found.astype(int) - wanted)
    assert wanted[:3].mean(axis=(1, 2, 3)).min() > 5
    assert difference.max() <= 6
    assert difference.mean() < 0.3
    assert not found[3].any()


def test_a_crop_that_is_the_frame_is_exact(program: Path) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    same = np.array([[[1, 0, 0], [0, 1, 0]], [[1, 0, -7], [0, 1, 5]]], np.float32)
    found = cut_on_device(program, frame, same, (37, 50))
    np.testing.assert_array_equal(found[0], frame)
    np.testing.assert_array_equal(found[1, 5:, :-7], frame[:-5, 7:])
    assert not found[1, :5].any()


def test_positions_that_are_no_numbers_are_outside(program: Path) -> None:
    frame = np.full((20, 20, 3), 255, np.uint8)
    broken = np.array(
        [[[np.nan, 0, 0], [0, 1, 0]], [[1, 0, np.inf], [0, 1, 0]], [[1e-30, 0, 1], [0, 1, 0]]], np.float32
    )
    with np.errstate(all="ignore"):
        found = cut_on_device(program, frame, broken, (16, 8))
    assert set(np.unique(found)) <= {0, 255}


@pytest.mark.parametrize(("words", "count"), [(1, 1), (256, 3), (300, 5)])
def test_blocks_arrive_where_they_should(program: Path, words: int, count: int) -> None:
    blocks = np.random.default_rng(2).integers(0, 2**32, (count, words), dtype=np.uint32)
    blocks.tofile(program.parent / "blocks.bin")
    run(program, "moves", "blocks.bin", words, count)
    found = np.fromfile(program.parent / "out.bin", np.uint32).reshape(count, words)
    np.testing.assert_array_equal(found, blocks[::-1])


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_89", "sm_90"])
def test_nvrtc_compiles_both_kernels(arch: str) -> None:
    pytest.importorskip("cuda.bindings", reason="needs the [cuda] extra")
    ptx = compile_kernels(arch).decode()
    assert f".target {arch}" in ptx
    assert ptx.count(".visible .entry") == 2
    assert ".visible .entry cut_crops(" in ptx
    assert ".visible .entry move_blocks(" in ptx
    assert ".local" not in ptx
