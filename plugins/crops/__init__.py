"""Kernels that cut crops out of a frame on the GPU and move features into and out of their slots; see `kernel.cuh`."""

from __future__ import annotations

from importlib import resources

from streampose.plugins.nvrtc import compile_source


def kernel_source() -> str:
    """CUDA C++ of `cut_crops` and `move_blocks`."""
    return (resources.files("streampose.plugins.crops") / "kernel.cuh").read_text(encoding="utf-8")


def compile_kernels(arch: str) -> bytes:
    """PTX of both kernels for an architecture and later ones.

    Raises:
        StreamposeError: see `streampose.plugins.nvrtc.compile_source`.
    """
    return compile_source(kernel_source(), "crops", arch).code
