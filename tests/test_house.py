"""The house itself: which way imports point, what starts without torch, and what a wheel holds."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import resources
from pathlib import Path

import av
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "streampose": ROOT / "streampose",
    "streampose.engines": ROOT / "engines",
    "streampose.plugins": ROOT / "plugins",
    "streampose.train": ROOT / "train",
}
FOUNDATION = {f"streampose.{name}" for name in ("types", "errors", "skeleton", "geometry", "heatmaps")}
ENGINES = {"streampose.engines"} | {
    f"streampose.engines.{name}"
    for name in (
        "crops",
        "cuda",
        "manifest",
        "onnxruntime",
        "onnxruntime_cuda",
        "parity",
        "staging",
        "store",
        "tensorrt",
    )
}
ALLOWED = {  # an area -> the areas it may import, at the top of a module or inside a function
    "foundation": {"foundation"},
    "plugins": {"foundation", "plugins"},
    "model": {"foundation", "plugins", "model"},
    "engines": {"foundation", "engines"},
    "runtime": {"foundation", "engines", "runtime"},
    "builders": {"foundation", "plugins", "model", "engines", "runtime", "builders"},
    "train": {"foundation", "plugins", "model", "engines", "runtime", "builders", "train"},
    "cli": {"foundation", "plugins", "model", "engines", "runtime", "builders", "train", "cli"},
}
WITHOUT_TORCH = {"foundation", "engines", "runtime", "cli"}


def modules() -> dict[str, Path]:
    """Every module of ours by its import name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def area(module: str) -> str:
    """Where in the house a module is."""
    if module in FOUNDATION:
        return "foundation"
    if module in ENGINES:
        return "engines"
    room = module.split(".")[1] if "." in module else ""
    return {"model": "model", "plugins": "plugins", "train": "train", "cli": "cli", "__main__": "cli"}.get(
        room, "builders" if room == "engines" else "runtime"
    )


def imports(path: Path, known: set[str]) -> set[str]:
    """The modules that a file names in its import statements, wherever they stand."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import; write it in full"
            assert node.module
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names.update((inner & known) or {node.module})
    return names


def test_imports_point_one_way() -> None:
    ours = modules()
    assert {area(name) for name in ours} == set(ALLOWED)
    wrong = []
    for name, path in ours.items():
        for target in imports(path, set(ours)):
            package = target.partition(".")[0]
            if package == "streampose" and area(target) not in ALLOWED[area(name)]:
                wrong.append(f"{name} ({area(name)}) imports {target} ({area(target)})")
            if package == "torch" and area(name) in WITHOUT_TORCH:
                wrong.append(f"{name} ({area(name)}) imports torch")
    assert not wrong


def test_what_runs_starts_without_torch() -> None:
    names = [name for name in modules() if area(name) in WITHOUT_TORCH and name != "streampose.__main__"]
    assert {"streampose.cli", "streampose.pipeline", "streampose.engines.onnxruntime"} <= set(names)
    script = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_help_names_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streampose", "--help"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {"run", "listen", "train"} <= set(done.stdout.split())


def test_demo_clip_is_there_and_plays() -> None:
    with (
        resources.as_file(resources.files("streampose") / "demo" / "demo.mp4") as path,
        av.open(str(path)) as container,
    ):
        frames = [(frame.width, frame.height, frame.time) for frame in container.decode(video=0)]
    assert [size[:2] for size in frames] == [(576, 768)] * 100
    assert [size[2] for size in frames] == pytest.approx([index / 60 for index in range(100)], abs=1e-3)


def test_constraints_pin_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        asked += extra
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for requirement in map(Requirement, asked):
        assert pins[requirement.name] in requirement.specifier, f"{requirement} against {pins[requirement.name]}"


@pytest.mark.slow
def test_wheel_from_sdist_holds_all_and_leaks_nothing(tmp_path: Path) -> None:
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    tree = tmp_path / "tree"
    for folder in ("streampose", "engines", "plugins", "train"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tree)
    sdist = _build("build_sdist", tree, tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "sdist", filter="data")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    with zipfile.ZipFile(_build("build_wheel", unpacked, tmp_path)) as archive:
        names = set(archive.namelist())
    assert {name.partition("/")[0] for name in names} == {"streampose", "streampose-0.1.0.dist-info"}
    wanted = {
        "/".join([*package.split("."), *path.relative_to(tree / folder.name).parts])
        for package, folder in FOLDERS.items()
        for path in (tree / folder.name).rglob("*")
        if path.is_file()
    }
    assert wanted <= names, f"not in the wheel: {sorted(wanted - names)}"
    weights = {f"streampose/weights/{name}/manifest.json" for name in ("lite", "person")}
    assert weights | {"streampose/demo/demo.mp4", "streampose/py.typed"} <= names
    assert {f"streampose-0.1.0.dist-info/licenses/{name}" for name in ("LICENSE", "NOTICE")} <= names


def _build(step: str, tree: Path, out: Path) -> Path:
    """Run one step of the build backend, offline; return what it built."""
    script = f"import sys, setuptools.build_meta as backend\nprint(backend.{step}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(out)], cwd=tree, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    """ONNX Runtime keeps what it reports in the home directory: nothing appears there."""
    program = "import numpy, streampose.people as p; p.PersonDetector().detect(numpy.zeros((64, 64, 3), numpy.uint8))"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=tmp_path)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(("chosen", "seen"), [(None, "1"), ("0", "0"), ("1", "1")])
def test_reports_are_the_users_choice(chosen: str | None, seen: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    if chosen is not None:
        environment["ORT_DISABLE_TELEMETRY"] = chosen
    program = "import os, streampose; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", program], check=True, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == seen
