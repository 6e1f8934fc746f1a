"""What smoothing does to a recorded run: how much less joints tremble, and how far they are moved.

    streampose run --source demo --no-publish --save people.jsonl
    python benchmarks/smoothing.py people.jsonl

Trembling is the length of a joint's second difference from frame to frame, as a share of the person's size; joints
with a score above 0.5 count.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streampose.recording import Entry, read_recording
from streampose.smoothing import Smoother, Smoothing
from streampose.types import Pose, PoseFrame

SURE = 0.5


def size_px(pose: Pose) -> float:
    """The longer side of a person's box."""
    return float(max(pose.box[2:] - pose.box[:2]))


def trembling(frames: Sequence[PoseFrame]) -> NDArray[np.float64]:
    """Of every joint of every person who is in three frames after another."""
    people = [{pose.track_id: pose for pose in frame.people} for frame in frames]
    found: list[float] = []
    for before, now, after in zip(people, people[1:], people[2:], strict=False):
        for track_id in before.keys() & now.keys() & after.keys():
            three = np.stack([who[track_id].keypoints for who in (before, now, after)])
            sure = three[:, :, 2].min(axis=0) > SURE
            bend = np.linalg.norm(three[0, :, :2] - 2 * three[1, :, :2] + three[2, :, :2], axis=1)
            found += (bend[sure] / size_px(now[track_id])).tolist()
    return np.array(found)


def shifts(raw: Sequence[PoseFrame], smooth: Sequence[PoseFrame]) -> NDArray[np.float64]:
    """How far each joint was moved, as a share of the person's size."""
    found: list[float] = []
    for one, other in zip(raw, smooth, strict=True):
        for before, after in zip(one.people, other.people, strict=False):
            sure = before.keypoints[:, 2] > SURE
            moved = np.linalg.norm(before.keypoints[sure, :2] - after.keypoints[sure, :2], axis=1)
            found += (moved / size_px(before)).tolist()
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--min-cutoff", type=float, default=Smoothing().min_cutoff_hz)
    parser.add_argument("--beta", type=float, default=Smoothing().beta_hz)
    options = parser.parse_args()
    raw = [item.frame for item in read_recording(options.recording) if isinstance(item, Entry)]
    smoother = Smoother(Smoothing(min_cutoff_hz=options.min_cutoff, beta_hz=options.beta))
    smooth = [smoother.smooth(frame) for frame in raw]
    for name, values in (("raw", trembling(raw)), ("smoothed", trembling(smooth)), ("moved by", shifts(raw, smooth))):
        median, high = np.percentile(values, [50, 95])
        print(f"{name:<9} median {100 * median:.2f} %, p95 {100 * high:.2f} % of the person's size")


if __name__ == "__main__":
    main()
