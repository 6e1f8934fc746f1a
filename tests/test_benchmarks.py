"""Benchmarks where extras are missing: one line that names the extra, and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
WITHOUT = """
import contextlib, io, json, runpy, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

packages, files = json.loads(sys.argv[1])
sys.meta_path.insert(0, Missing())
outcomes = {}
for file in files:
    sys.argv, said = [file, "--help"], io.StringIO()
    sys.path.insert(0, file.rpartition("/")[0])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            runpy.run_path(file, run_name="__main__")
        except SystemExit as end:
            outcomes[file] = [end.code, said.getvalue()]
print(json.dumps(outcomes))
"""
EXTRAS = {
    "train": ["torch", "onnx", "onnxscript", "safetensors", "matplotlib", "motmetrics", "pycocotools", "tensorboard"],
    "record": ["pyarrow"],
}


def outcomes(packages: list[str], files: list[str]) -> dict[str, tuple[int, str]]:
    """What each benchmark's `--help` ends with, and says on stderr, where packages cannot be imported."""
    command = [sys.executable, "-c", WITHOUT, json.dumps([packages, files])]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    return {file: (code, said) for file, (code, said) in json.loads(run.stdout).items()}


def needing(name: str) -> set[str]:
    found = {str(path) for path in BENCHMARKS.glob("*.py") if f'with needs("{name}")' in path.read_text()}
    assert found
    return found


@pytest.mark.parametrize("name", EXTRAS)
def test_a_benchmark_that_lacks_its_extra_says_which(name: str) -> None:
    for file, (code, said) in outcomes(EXTRAS[name], sorted(needing(name))).items():
        assert code == 2, file
        assert said.startswith("error: "), file
        assert said.endswith(f"is not installed; install it with: pip install 'streampose[{name}]'\n"), file
        assert said.count("\n") == 1, file


def test_all_other_benchmarks_start_without_extras() -> None:
    others = {str(path) for path in BENCHMARKS.glob("*.py") if path.stem != "extras"}
    others -= needing("train") | needing("record")
    assert outcomes([*EXTRAS["train"], *EXTRAS["record"]], sorted(others)) == dict.fromkeys(others, (0, ""))
