"""The results of tests/gpu/run.sh as tables for docs/gpu.md.

usage: table.py FOLDER      ends with 1 where something is wrong, else with 3 where something did not run
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PARTS = ("have", "kernel", "sanitizer", "network", "engines")


def read(folder: Path) -> dict[str, Any]:
    """What each part printed; nothing of a part that printed no JSON."""
    found = {}
    for part in PARTS:
        try:
            found[part] = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found[part] = {}
    return found


def lines_of_kernel(kernel: dict[str, Any]) -> list[str]:
    worst = {
        storage: max((one["error"] for one in kernel["correctness"] if one["storage"] == storage), default=0.0)
        for storage in ("fp32", "fp16")
    }
    verdict = "correct" if kernel["correct"] else "**wrong**"
    text = f"Kernel against float64, {len(kernel['correctness'])} problems: {verdict}; largest error as a share of the "
    lines = [f"{text}result's standard deviation {worst['fp32']:.1e} (fp32), {worst['fp16']:.1e} (fp16).", ""]
    if "timings" not in kernel:
        return [*lines, "Kernel timings: **not run**.", ""]
    lines += [
        f"Copy bandwidth {kernel['copy_bytes_per_s'] / 1e12:.2f} TB/s. Aims: {kernel['aims']['of_floor']:.0%} of the "
        f"floor, {kernel['aims']['times_torchvision']:.0f} times torchvision.", "",
        "| convolution | people | storage | order | us | of the memory floor | times torchvision |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in kernel["timings"]:
        theirs = f"{one['times_torchvision']:.1f}" if "times_torchvision" in one else ""
        order = "NHWC" if one["channels_last"] else "NCHW"
        lines.append(
            f"| {one['case']} | {one['people']} | {one['storage']} | {order} | {1e3 * one['ms']:.1f} "
            f"| {one['of_floor']:.0%} | {theirs} |"
        )
    return [*lines, ""]


def lines_of_network(network: dict[str, Any]) -> list[str]:
    lines = ["| torch network, our operator | largest difference, share of deviation |", "|---|---|"]
    lines += [f"| {name} | {value:.1e} |" for name, value in network.get("differences", {}).items()]
    times = network.get("times", {})
    if times:
        lines += ["", "| torch, float16 | people | encode ms a person | fuse ms a person | people-frames/s |"]
        lines += ["|---|---|---|---|---|"]
    for name, by_batch in times.items():
        lines += [
            f"| {name} | {people} | {ms['encode']:.3f} | {ms['fuse']:.3f} | {ms['people-frames/s']:.0f} |"
            for people, ms in by_batch.items()
        ]
    return [*lines, ""]


def lines_of_engines(engines: dict[str, Any]) -> list[str]:
    aim = engines["aim_ms_a_person"]
    lines = [f"Aim: W48 in fp16 takes {aim} ms a person at 16 people on an H100.", ""]
    lines += ["| engine | 99 of 100 joints, px | people | ms a round | ms a person | people-frames/s | two under way |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, found in engines["engines"].items():
        away = found.get("parity", {}).get("keypoints_p99_px")
        for one in found.get("times", []):
            if "ms" not in one:
                continue
            two = f"{one['overlapped_people_frames_s']:.0f}" if "overlapped_people_frames_s" in one else ""
            shown = "" if away is None else f"{away:.2g}"
            lines.append(
                f"| {name} | {shown} | {one['people']} | {one['ms']:.2f} | {one['ms_a_person']:.3f} "
                f"| {one['people_frames_s']:.0f} | {two} |"
            )
    return [*lines, ""]


def lacking(found: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What is wrong, and what did not run."""
    wrong, absent = [], []
    for part in PARTS:
        if not found[part]:
            wrong.append(f"{part}: it printed no results")
    kernel, network = found["kernel"], found["network"]
    if kernel and not kernel["correct"]:
        wrong.append("kernel: it does not compute what float64 does")
    if kernel and "timings" not in kernel:
        absent.append("kernel: timings")
    if kernel and "timings" in kernel and not any("times_torchvision" in one for one in kernel["timings"]):
        absent.append("kernel: torchvision's operator, which is not installed")
    for tool, state in found["sanitizer"].get("tools", {}).items():
        (absent if state.startswith("not run") else wrong if state != "clean" else []).append(f"{tool}: {state}")
    if network and not network["agree"]:
        wrong.append("network: its forms disagree")
    absent += [f"network: {reason}" for reason in network.get("not_run", [])]
    if found["engines"] and not found["engines"]["finished"]:
        wrong.append("engines: it did not come to its end")
    for name, one in found["engines"].get("engines", {}).items():
        if "failed" in one:
            wrong.append(f"{name}: {one['failed']}")
        if "not_run" in one:
            absent.append(f"{name}: {one['not_run']}")
        absent += [f"{name}, {t['people']} people: {t['not_run']}" for t in one.get("times", []) if "not_run" in t]
    return wrong, absent


def main() -> int:
    found = read(Path(sys.argv[1]))
    have = found["have"]
    lines = []
    if have:
        versions = ", ".join(f"{name} {version}" for name, version in have["versions"].items())
        lines = [f"Device: {have['device']}; {have['cpu_cores']} CPU cores; Python {have['python']}; {versions}.", ""]
    lines += lines_of_kernel(found["kernel"]) if found["kernel"] else []
    lines += lines_of_network(found["network"]) if found["network"] else []
    lines += lines_of_engines(found["engines"]) if found["engines"] else []
    states = found["sanitizer"].get("tools", {})
    lines += (
        ["compute-sanitizer: " + ", ".join(f"{tool} {state}" for tool, state in states.items()), ""] if states else []
    )
    wrong, absent = lacking(found)
    for title, entries in (("Wrong", wrong), ("Not run", absent)):
        lines += [f"**{title}:**", "", *(f"- {entry}" for entry in entries), ""] if entries else []
    print("\n".join(lines))
    return 1 if wrong else 3 if absent else 0


if __name__ == "__main__":
    sys.exit(main())
