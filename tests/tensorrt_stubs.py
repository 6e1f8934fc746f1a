"""TensorRT's own bindings and plugin registry on a machine without a GPU or the vendor's libraries.

The wheels `tensorrt_cu13_bindings` and `tensorrt_lean_cu13_libs` lack six functions of libraries that only the vendor's
index has; tensorrt_stubs.cpp stands in for them. The builder stays out of reach, so what it would hand to a plugin is
made here: dimension expressions (C++ objects, which the bindings call), launch parameters and extra arguments.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("tensorrt_stubs.cpp")
LIBRARIES = {
    "NVINFER": "libnvinfer.so.11",
    "NVONNXPARSER": "libnvonnxparser.so.11",
    "NVINFER_PLUGIN": "libnvinfer_plugin.so.11",
}


def missing() -> str | None:
    """Why this cannot be done here."""
    if not shutil.which("g++"):
        return "g++ is not installed"
    for package in ("tensorrt_bindings", "tensorrt_lean_libs"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed (the [dev] extra brings it)"
    return None


def build(folder: Path) -> dict[str, str]:
    """Compile the stubs into a folder; return the environment of a Python in which `import tensorrt` works."""
    spec = importlib.util.find_spec("tensorrt_lean_libs")
    assert spec
    assert spec.submodule_search_locations
    (lean,) = Path(next(iter(spec.submodule_search_locations))).glob("libnvinfer_lean.so.11*")
    shutil.copy(lean, folder / "libnvinfer_lean.so.11")
    for name, library in LIBRARIES.items():
        command = ["g++", "-std=c++17", "-shared", "-fPIC", f"-D{name}", str(SOURCE), "-o", str(folder / library)]
        command += [f"-Wl,-soname,{library}", "-Wl,--no-as-needed,-rpath,$ORIGIN"]
        command += [f"-L{folder}", "-l:libnvinfer_lean.so.11"] if name == "NVINFER" else []
        subprocess.run(command, check=True, timeout=300)
    package = folder / "tensorrt"
    (package / "plugin").mkdir(parents=True)
    version = "from tensorrt_bindings import __version__\n"
    (package / "__init__.py").write_text(f"from tensorrt_bindings import *\n{version}", encoding="utf-8")
    (package / "plugin" / "__init__.py").write_text("from tensorrt_bindings.plugin import *\n", encoding="utf-8")
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}


class Pointer:
    """A C++ object under way into TensorRT's bindings."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    def _pybind11_conduit_v1_(self, _abi: bytes, _type: Any, _kind: bytes) -> Any:
        """pybind11's way to hand a C++ object from one module to another."""
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.restype, capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return capsule(self.pointer, None, None)


class Expressions:
    """What a builder is to a plugin: it makes expressions of constants, of the batch and of each other."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(LIBRARIES["NVINFER"])
        for name in ("batch_expression", "constant_expression", "operation_expression"):
            getattr(self.library, name).restype = ctypes.c_void_p
        self.library.constant_expression.argtypes = (ctypes.c_int64,)
        self.library.operation_expression.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self.library.set_batch.argtypes = (ctypes.c_int64,)
        self.made: dict[int, tuple[Any, int]] = {}  # by identity: the bindings' object, its C++ address

    def batch(self) -> Any:
        return self._made(self.library.batch_expression())

    def set_batch(self, batch: int) -> None:
        """What the batch is from now on, as at a launch."""
        self.library.set_batch(batch)

    def constant(self, value: int) -> Any:
        return self._made(self.library.constant_expression(value))

    def operation(self, kind: Any, left: Any, right: Any) -> Any:
        pointers = (self.made[id(one)][1] for one in (left, right))
        return self._made(self.library.operation_expression(int(kind), *pointers))

    def _made(self, pointer: int) -> Any:
        import tensorrt

        passage = tensorrt.DimsExprs(1)
        passage[0] = Pointer(pointer)
        expression = passage[0]
        self.made[id(expression)] = expression, pointer
        return expression


class Extras:
    """Where a plugin leaves its extra arguments."""

    def __init__(self) -> None:
        self.nbSymExprs = 0
        self.values: dict[int, Any] = {}

    def __setitem__(self, index: int, value: Any) -> None:
        self.values[index] = value

    def numbers(self) -> list[int]:
        """The arguments, in order, for the batch that is set."""
        assert sorted(self.values) == list(range(self.nbSymExprs))
        return [self.values[index].number() for index in range(self.nbSymExprs)]


def readable_expressions() -> None:
    """Let launch parameters and extra arguments, which the bindings only write, be read: for the batch that is set."""
    from tensorrt_bindings.plugin import _tensor

    class Readable(_tensor.SymExprImpl):  # type: ignore[misc]
        def __init__(self, symbol: Any) -> None:
            super().__init__(symbol)
            self.symbol = symbol

        def number(self) -> int:
            return int(self.symbol._expr.get_constant_value())

    _tensor.SymExprImpl = Readable
