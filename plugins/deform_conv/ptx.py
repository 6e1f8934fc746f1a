"""The kernel compiled for a GPU, see `streampose.plugins.nvrtc`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from streampose.plugins.deform_conv.geometry import Geometry, header, source
from streampose.plugins.nvrtc import compile_source


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled kernel.

    Attributes:
        entry: the kernel's name.
        code: PTX as text, or machine code, as bytes.
        arch: what it was compiled for, as in "sm_90".
        isa: PTX ISA version, as in "9.0"; empty for machine code.
        nvrtc: version of the compiler, as in "13.0".
    """

    entry: str
    code: bytes
    arch: str
    isa: str
    nvrtc: str


@lru_cache(maxsize=64)
def compile_ptx(geometry: Geometry, arch: str) -> Compiled:
    """Compile one geometry to PTX.

    Args:
        arch: as in "sm_90".

    Raises:
        MissingExtraError: NVRTC is not installed.
        UsageError: `arch` is no architecture that the kernel or NVRTC knows.
        StreamposeError: NVRTC refuses the source.
    """
    return _compile(geometry, arch, machine_code=False)


@lru_cache(maxsize=64)
def compile_cubin(geometry: Geometry, arch: str) -> Compiled:
    """Compile one geometry to machine code; as `compile_ptx` otherwise."""
    return _compile(geometry, arch, machine_code=True)


def _compile(geometry: Geometry, arch: str, machine_code: bool) -> Compiled:
    made = compile_source(source(geometry), geometry.entry, arch, {"kernel.cuh": header()}, machine_code)
    return Compiled(geometry.entry, made.code, made.arch, made.isa, made.nvrtc)
