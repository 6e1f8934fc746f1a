"""tests/gpu/run.sh where there is no GPU: it says so, and its tables leave nothing out in silence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).with_name("gpu")


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(command), env={**os.environ, "PYTHON": sys.executable, **environment}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def test_without_a_gpu_it_stops_and_says_what_is_missing(tmp_path: Path) -> None:
    done = run("bash", str(FOLDER / "run.sh"), str(tmp_path), PATH="/usr/bin:/bin")
    if "a GPU" not in done.stderr:
        pytest.skip("this machine has a GPU")
    assert done.returncode == 1
    assert "have.py: this cannot go on without" in done.stderr
    assert "a GPU that nvidia-smi finds" in done.stderr
    assert json.loads((tmp_path / "have.json").read_text())["device"] == "none"


@pytest.mark.parametrize("arguments", [["--fast"], ["one", "two"]])
def test_its_options_are_checked(arguments: list[str]) -> None:
    done = run("bash", str(FOLDER / "run.sh"), *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("run.sh: ")
    assert done.stderr.count("\n") == 1


def results() -> dict[str, Any]:
    """As of a machine where all ran."""
    one = {"case": "w48", "people": 1, "maps": 4, "storage": "fp16", "channels_last": False, "ms": 0.0123}
    ran = {"people": 16, "ms": 6.4, "ms_a_person": 0.4, "people_frames_s": 2500.0, "overlapped_people_frames_s": 3100.0}
    return {
        "have": {"device": "NVIDIA X", "cpu_cores": 16, "python": "3.12", "versions": {"torch": "2.13.0"}},
        "kernel": {
            "correct": True, "correctness": [{"storage": "fp16", "error": 2e-3}, {"storage": "fp32", "error": 2e-5}],
            "copy_bytes_per_s": 3e12, "aims": {"of_floor": 0.6, "times_torchvision": 3.0},
            "timings": [{**one, "floor_ms": 0.008, "of_floor": 0.65, "torchvision_ms": 0.05, "times_torchvision": 4.1}],
        },
        "sanitizer": {"tools": {"memcheck": "clean"}},
        "network": {
            "agree": True, "not_run": [], "differences": {"W48 float16, against torchvision": 1e-3},
            "times": {"W48": {"16": {"encode": 0.3, "fuse": 0.05, "people-frames/s": 2857.0}}},
        },
        "engines": {
            "finished": True, "aim_ms_a_person": 0.5,
            "engines": {"w48, tensorrt fp16": {"parity": {"keypoints_p99_px": 0.31}, "times": [ran]}},
        },
    }  # fmt: skip


def table(folder: Path, found: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    for part, content in found.items():
        (folder / f"{part}.json").write_text(json.dumps(content) if content else "", encoding="utf-8")
    return run(sys.executable, str(FOLDER / "table.py"), str(folder))


def test_a_whole_run_is_a_table(tmp_path: Path) -> None:
    done = table(tmp_path, results())
    assert (done.returncode, done.stderr) == (0, "")
    assert "| w48 | 1 | fp16 | NCHW | 12.3 | 65% | 4.1 |" in done.stdout
    assert "| w48, tensorrt fp16 | 0.31 | 16 | 6.40 | 0.400 | 2500 | 3100 |" in done.stdout
    assert "| W48 | 16 | 0.300 | 0.050 | 2857 |" in done.stdout
    assert "Not run" not in done.stdout
    assert "Wrong" not in done.stdout


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("kernel", "correct", False, "kernel: it does not compute what float64 does"),
        ("network", "agree", False, "network: its forms disagree"),
        ("sanitizer", "tools", {"racecheck": "ended with 99: 3 hazards"}, "racecheck: ended with 99: 3 hazards"),
        (
            "engines",
            "engines",
            {"lite, tensorrt fp16": {"failed": "ModelError: no"}},
            "lite, tensorrt fp16: ModelError",
        ),
        ("engines", "finished", False, "engines: it did not come to its end"),
        ("kernel", None, None, "kernel: it printed no results"),
    ],
)
def test_what_is_wrong_fails(part: str, key: str | None, value: Any, said: str, tmp_path: Path) -> None:
    found = results()
    if key is None:
        found[part] = None
    else:
        found[part][key] = value
    done = table(tmp_path, found)
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stdout.partition("**Wrong:**")[2]


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("sanitizer", "tools", {"memcheck": "not run: compute-sanitizer is not installed"}, "memcheck: not run"),
        ("engines", "engines", {"w48, tensorrt fp16": {"not_run": "tensorrt not installed"}}, "tensorrt not installed"),
        ("network", "not_run", ["torchvision's operator, which is not installed"], "network: torchvision's operator"),
    ],
)
def test_what_did_not_run_is_listed(part: str, key: str, value: Any, said: str, tmp_path: Path) -> None:
    found = results()
    found[part][key] = value
    done = table(tmp_path, found)
    assert done.returncode == 3, done.stdout + done.stderr
    assert said in done.stdout.partition("**Not run:**")[2]
