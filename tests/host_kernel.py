"""The kernel on the CPU: compiled by g++ with sanitizers, launched as a driver launches it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from streampose.plugins.deform_conv.geometry import STORAGES, THREADS, Geometry, grid, header, pack_weight, source

PROGRAM = Path(__file__).with_name("kernel_host.cpp")
SANITIZERS = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")
Argument = NDArray[np.float32 | np.float16] | int | None


def missing() -> str | None:
    """Why the kernel cannot be compiled here."""
    return None if shutil.which("g++") else "g++ is not installed"


class HostKernels:
    """Kernels of some geometries as one program.

    Args:
        folder: for the program and the buffers.
        geometries: that it can launch.
        flags: of g++.
    """

    def __init__(self, folder: Path, geometries: Sequence[Geometry], flags: Sequence[str] = SANITIZERS) -> None:
        self.folder = folder
        self.program = folder / "kernels"
        unique = list(dict.fromkeys(geometries))
        (folder / "kernel.cuh").write_text(header(), encoding="utf-8")
        table = "".join(
            f'    {{"{g.entry}", described<{_stored(g)}, Geometry_{g.entry}>({g.entry})}},\n' for g in unique
        )
        (folder / "kernels.inc").write_text(
            f"{source(*unique)}\nstd::map<std::string, Kernel> kernels() {{\n    return {{\n{table}    }};\n}}\n",
            encoding="utf-8",
        )
        command = [
            "g++",
            "-std=c++17",
            "-O0",
            "-g1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-maybe-uninitialized",
            *flags,
            "-I",
            str(folder),
        ]
        self._run([*command, str(PROGRAM), "-o", str(self.program)])

    def plans(self) -> dict[str, tuple[int, ...]]:
        """What kernel.cuh makes of every geometry, by entry."""
        lines = [line.split() for line in self._run([str(self.program)]).splitlines()]
        return {name: tuple(map(int, numbers)) for name, *numbers in lines}

    def launch(
        self,
        entry: str,
        blocks: tuple[int, int, int],
        threads: tuple[int, int, int],
        arguments: Sequence[Argument],
        result: tuple[tuple[int, ...], np.dtype[np.float32 | np.float16]],
        **environment: str,
    ) -> NDArray[np.float32 | np.float16]:
        """Launch one kernel; `arguments` are all but the last, which is the result of the shape and type given."""
        shape, dtype = result
        out = self.folder / "out.bin"
        words = []
        for index, argument in enumerate(arguments):
            if isinstance(argument, int):
                words.append(f"int:{argument}")
            elif argument is None:
                words.append("null:")
            else:
                path = self.folder / f"in{index}.bin"
                np.ascontiguousarray(argument).tofile(path)
                words.append(f"in:{path}")
        words.append(f"out:{out}:{int(np.prod(shape)) * dtype.itemsize}")
        numbers = [str(number) for number in (*blocks, *threads)]
        self._run([str(self.program), entry, *numbers, *words], environment)
        return np.fromfile(out, dtype).reshape(shape)

    def run(self, geometry: Geometry, given: dict[str, NDArray[np.float32]], **environment: str) -> NDArray[np.float32]:
        """Deformable convolution of one geometry.

        Args:
            given: x (B, C, H, W), offset, mask, weight, bias as `deform_conv2d` takes them; mask and bias only where
                the geometry has them.

        Returns:
            (B, O, h, w).
        """
        stored = STORAGES[geometry.storage]
        x, offset = given["x"], given["offset"]
        batch, (height, width), (out_h, out_w) = len(x), x.shape[2:], offset.shape[2:]
        mask = given["mask"].astype(stored) if geometry.has_mask else None
        bias = given["bias"] if geometry.has_bias else None
        x = x.transpose(0, 2, 3, 1) if geometry.channels_last else x
        shape = (batch, geometry.out_channels, out_h, out_w)
        wanted = (batch, out_h, out_w, geometry.out_channels) if geometry.channels_last else shape
        arguments = [x.astype(stored), offset, mask, pack_weight(given["weight"], geometry), bias]
        y = self.launch(
            geometry.entry, grid(geometry, batch, out_h, out_w), (THREADS, 1, 1),
            [*arguments, height, width, out_h, out_w], (wanted, stored), **environment,
        ).astype(np.float32)  # fmt: skip
        return y.transpose(0, 3, 1, 2) if geometry.channels_last else y

    def _run(self, command: list[str], environment: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **(environment or {})}
        )
        if done.returncode:
            raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}: {done.stderr.strip()[:4000]}")
        return done.stdout


@contextmanager
def host_kernels(*geometries: Geometry, flags: Sequence[str] = SANITIZERS) -> Iterator[HostKernels]:
    """Compile some geometries into a folder that lives as long as the context."""
    with TemporaryDirectory() as folder:
        yield HostKernels(Path(folder), geometries, flags)


def _stored(geometry: Geometry) -> str:
    return "float" if geometry.storage == "fp32" else "deform_conv::Half"
