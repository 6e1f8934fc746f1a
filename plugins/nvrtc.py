"""CUDA sources compiled by NVRTC; no GPU, driver or CUDA toolkit is needed for it.

NVRTC and its Python bindings come with the `cuda` extra. PTX runs on the architecture it names and every later one, if
the driver knows its ISA version; machine code (`cubin`) on that architecture alone, with any driver of the same major
version. `constraints.txt` holds NVRTC at 13.0: its PTX is what every CUDA 13 driver takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streampose.errors import MissingExtraError, StreamposeError, UsageError

LEAST = 75  # sm_75 is the first whose tensor cores multiply m16n8 tiles


@dataclass(frozen=True, slots=True)
class Code:
    """What NVRTC made of a source.

    Attributes:
        code: PTX as text, or machine code, as bytes.
        arch: what it was compiled for, as in "sm_90".
        isa: PTX ISA version, as in "9.0"; empty for machine code.
        nvrtc: version of the compiler, as in "13.0".
    """

    code: bytes
    arch: str
    isa: str
    nvrtc: str


def compile_source(
    source: str, name: str, arch: str, headers: Mapping[str, str] | None = None, machine_code: bool = False
) -> Code:
    """Compile a CUDA source.

    Args:
        source: C++17 for CUDA.
        name: what errors call it.
        arch: as in "sm_90".
        headers: that it includes, by name.
        machine_code: rather than PTX.

    Raises:
        MissingExtraError: NVRTC is not installed.
        UsageError: `arch` is no architecture that we or NVRTC know.
        StreamposeError: NVRTC refuses the source.
    """
    nvrtc = _nvrtc()
    number = _number(arch)
    target = f"--gpu-architecture={'sm' if machine_code else 'compute'}_{number}"
    names, texts = [n.encode() for n in headers or {}], [text.encode() for text in (headers or {}).values()]
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), f"{name}.cu".encode(), len(names), texts, names))
    try:
        options = [target.encode(), b"--std=c++17", b"--extra-device-vectorization"]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
            known = ", ".join(f"sm_{known}" for known in _checked(nvrtc.nvrtcGetSupportedArchs()) if known >= LEAST)
            if "gpu-architecture" in log:
                raise UsageError(f"NVRTC does not compile for {arch}; it knows {known}")
            first = next((line for line in log.splitlines() if "error" in line), log.strip())
            raise StreamposeError(f"NVRTC refuses {name} for {arch}: {first}")
        sizes = (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN) if machine_code else (
            nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX,
        )  # fmt: skip
        text = _text(*sizes, program)
        code = text if machine_code else text.rstrip(b"\0")
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    _, major, minor = nvrtc.nvrtcVersion()
    return Code(code, f"sm_{number}", "" if machine_code else _isa(code), f"{major}.{minor}")


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc
    except ModuleNotFoundError as error:
        raise MissingExtraError("cuda-bindings", "cuda") from error
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as error:  # the bindings are there, the library is not
        raise MissingExtraError("nvidia-cuda-nvrtc", "cuda") from error
    return nvrtc


def _number(arch: str) -> int:
    found = re.fullmatch(r"sm_(\d{2,3})", arch)
    if found is None or int(found[1]) < LEAST:
        raise UsageError(f'an architecture is "sm_{LEAST}" or later, not {arch!r}')
    return int(found[1])


def _checked(answer: tuple[Any, ...]) -> Any:
    status, *rest = answer
    if int(status):
        raise StreamposeError(f"NVRTC: {status!r}")
    return rest[-1] if rest else None


def _text(size_of: Any, read: Any, program: Any) -> bytes:
    text: bytes = b" " * _checked(size_of(program))
    _checked(read(program, text))  # fills it in place
    return text


def _isa(ptx: bytes) -> str:
    found = re.search(rb"^\.version\s+(\S+)", ptx, re.MULTILINE)
    assert found, "PTX without a version"
    return found[1].decode()
