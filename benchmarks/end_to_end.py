"""Frames a second of the whole pipeline on a clip, beside MediaPipe Pose, in turns.

    python benchmarks/end_to_end.py --source CLIP [--mediapipe PYTHON] [--rounds 3]

PYTHON is an interpreter that has mediapipe (0.10.21; it wants another numpy than we do). MediaPipe follows one person,
so a clip with one person makes a fair comparison. Both decode the clip themselves; nothing is published or drawn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time

from streampose.assembly import open_pipeline

WORKER = """
import sys, time, cv2, mediapipe
clip = cv2.VideoCapture(sys.argv[1])
with mediapipe.solutions.pose.Pose(model_complexity=1) as pose:
    frames = found = 0
    while True:
        ok, frame = clip.read()
        if not ok:
            break
        if frames == 1:
            start = time.perf_counter()
        found += pose.process(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).pose_landmarks is not None
        frames += 1
print((frames - 1) / (time.perf_counter() - start), found, frames)
"""


def ours(source: str) -> tuple[float, float]:
    """Frames a second after the first frame, and people a frame."""
    frames = people = 0
    start = 0.0
    for result in open_pipeline([source], pace="fast"):
        if frames == 1:
            start = time.perf_counter()
        frames += 1
        people += len(result.people)
    return (frames - 1) / (time.perf_counter() - start), people / frames


def theirs(source: str, python: str) -> float:
    """MediaPipe's frames a second after its first frame."""
    done = subprocess.run([python, "-c", WORKER, source], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--mediapipe", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    mine, others, people = [], [], 0.0
    for _ in range(options.rounds):
        speed, people = ours(options.source)
        mine.append(speed)
        if options.mediapipe:
            others.append(theirs(options.source, options.mediapipe))
    report = {"streampose_fps": statistics.median(mine), "people_a_frame": people}
    if others:
        report |= {"mediapipe_fps": statistics.median(others)}
        report |= {"ratio": statistics.median(a / b for a, b in zip(mine, others, strict=True))}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
