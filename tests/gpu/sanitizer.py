"""What compute-sanitizer says of our kernels, tool by tool.

usage: sanitizer.py [--dry-run] [--seconds N]      prints one JSON; ends with 1 where a tool finds something
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
KERNEL = Path(__file__).with_name("kernel.py")


def state_of(tool: str, program: str, seconds: float) -> str:
    """ "clean", or what was found, or why it was not run."""
    filters = ["--error-exitcode", "99", "--kernel-name", "kernel_substring=deform_conv"]
    command = [program, "--tool", tool, *filters, sys.executable, str(KERNEL), "--small"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"not run to its end: {seconds:.0f} s were not enough"
    if done.returncode == 0 and "ERROR SUMMARY: 0 errors" in done.stdout + done.stderr:
        return "clean"
    if done.returncode == 0 and "RACECHECK SUMMARY: 0 hazards" in done.stdout + done.stderr:
        return "clean"
    last = [
        line.strip("= ") for line in (done.stdout + done.stderr).splitlines() if "SUMMARY" in line or "rror" in line
    ]
    return f"ended with {done.returncode}: {' / '.join(last[-3:]) or 'it said nothing'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--seconds", type=float, default=100)
    options = parser.parse_args()
    program = shutil.which("compute-sanitizer")
    if options.dry_run or program is None:
        reason = "not run: a dry run" if options.dry_run else "not run: compute-sanitizer is not installed"
        tools = dict.fromkeys(TOOLS, reason)
    else:
        tools = {tool: state_of(tool, program, options.seconds / len(TOOLS)) for tool in TOOLS}
    print(json.dumps({"program": program or "", "tools": tools}, indent=1))
    return 1 if any(state != "clean" and not state.startswith("not run") for state in tools.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
