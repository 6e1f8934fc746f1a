"""What this machine has for the other parts: the device, the driver, packages and programs. Prints one JSON.

usage: have.py [--dry-run]      ends with 1 where something is missing that every part needs
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from typing import Any

NEEDED = ("torch", "numpy", "cv2", "msgspec", "cuda.bindings")
WANTED = ("torchvision", "onnx", "onnxscript", "onnxruntime", "safetensors", "rich")
FLAVOURS = {
    "tensorrt": ("tensorrt", "onnx"),
    "tensorrt-rtx": ("tensorrt_rtx", "onnx"),
    "torch-tensorrt": ("torch_tensorrt", "tensorrt"),
}
"""What a target's builder imports, besides what every part needs."""
PACKAGES = (
    "torch", "torchvision", "onnx", "onnxruntime", "onnxruntime-gpu", "cuda-bindings", "nvidia-cuda-nvrtc", "tensorrt",
    "tensorrt-cu13", "tensorrt-rtx-cu13", "torch-tensorrt",
)  # fmt: skip


def missing(names: tuple[str, ...]) -> list[str]:
    """Those that cannot be found; they are not imported."""
    absent = []
    for name in names:
        try:
            found = find_spec(name) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            absent.append(name)
    return absent


def flavours() -> dict[str, str]:
    """By target: empty where it can be tried here, else why not."""
    found = {}
    for target, names in FLAVOURS.items():
        absent = missing(names)
        found[target] = f"{' and '.join(absent)} not installed" if absent else ""
    if missing(("onnxruntime",)):
        found["onnxruntime-cuda"] = "onnxruntime not installed"
    else:
        import onnxruntime

        offered = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        found["onnxruntime-cuda"] = "" if offered else "this onnxruntime has no CUDA provider (onnxruntime-gpu has)"
    return found


def device() -> str:
    """The first GPU and its driver, as nvidia-smi says; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true")
    dry = parser.parse_args().dry_run
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    needed = NEEDED[:-1] if dry else NEEDED
    report: dict[str, Any] = {
        "device": device() or "none", "cpu_cores": os.cpu_count(), "system": platform.platform(),
        "python": platform.python_version(), "versions": versions, "lacking": missing(needed),
        "wanting": missing(WANTED), "targets": flavours(),
        "compute-sanitizer": shutil.which("compute-sanitizer") or "", "dry_run": dry,
    }  # fmt: skip
    if not dry and report["device"] == "none":
        report["lacking"].append("a GPU that nvidia-smi finds")
    print(json.dumps(report, indent=1))
    if report["lacking"]:
        print(f"have.py: this cannot go on without {', '.join(report['lacking'])}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
