"""Which score threshold to ship a detector with: recall, precision and false alarms at each, and what the rule chooses.

    python benchmarks/threshold.py --data ../shared/data [--detector person]

The rule: the lowest threshold with a precision of 0.85 at least (people from 60 px), no more false alarms a picture of
LSPet than YOLOX-nano has at its own threshold, and nothing found on 98 % of the pictures without people. Exit code 1
where none keeps it. The threshold goes into `streampose build-engine --score-threshold`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from extras import needs

from streampose.people import PersonDetector

with needs("train"):
    from streampose.train.operating_point import OperatingPoint, choose, operating_points
    from streampose.train.pack_eval import find
    from streampose.train.person import validation_scenes
    from streampose.train.teachers import LOWEST_SCORE, YoloxNano

SHOWN_STEP = 5


def _row(name: str, point: OperatingPoint, faults: str) -> str:
    figures = (point.recall, point.precision, point.human_recall, point.false_alarms, point.silent)
    return f"| {name} {point.threshold:.2f} | " + " | ".join(f"{value:.3f}" for value in figures) + f" | {faults} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the pack; its validation pictures are looked at")
    parser.add_argument("--detector", default="person", help="as `streampose run --detector` takes it")
    options = parser.parse_args()
    scenes = validation_scenes(options.data)
    yolox, ours = YoloxNano(options.data / "teachers"), PersonDetector(options.detector)
    (teacher,) = operating_points(find(yolox.detect, scenes), scenes, [yolox.threshold])
    found = find(lambda image: ours.detect(image, LOWEST_SCORE), scenes)
    points = operating_points(found, scenes)
    (shipped,) = operating_points(found, scenes, [ours.threshold])
    chosen = choose(points, teacher.false_alarms)
    print("| threshold | recall | precision | human-labelled: recall | false alarms a picture | silent | what fails |")
    print("|---|---|---|---|---|---|---|")
    print(_row("YOLOX-nano", teacher, ""))
    print(_row("as shipped:", shipped, ", ".join(shipped.faults(teacher.false_alarms))))
    for place, point in enumerate(points):
        if place % SHOWN_STEP == 0 or point is chosen:
            print(_row("chosen:" if point is chosen else "", point, ", ".join(point.faults(teacher.false_alarms))))
    if chosen is None:
        sys.exit("no threshold keeps the rule")


if __name__ == "__main__":
    main()
