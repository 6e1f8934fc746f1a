"""Reads the stream of streampose, with asyncio, and prints who raises a hand.

python subscriber.py [tcp://127.0.0.1:5555] [--key tablet.key]
"""

import argparse
import asyncio
import sys
from pathlib import Path

import streampose
from streampose.messages import Hello

JOINTS = ("nose", "left_wrist", "right_wrist")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoint", nargs="?", default="tcp://127.0.0.1:5555")
    parser.add_argument("--key", type=Path)
    options = parser.parse_args()
    told = set()
    async with streampose.AsyncSubscriber(options.endpoint, key=options.key) as stream:
        async for frame in stream:
            try:
                nose, left, right = find_joints(frame, stream.hellos.get(frame.source))
            except ValueError as error:
                if frame.source not in told:
                    print(f"skipped {frame.source} frame {frame.frame_index}: {error}", file=sys.stderr, flush=True)
                told.add(frame.source)
                continue
            for person in frame.people:
                _, y, score = person.keypoints.T
                sides = {"left_wrist": left, "right_wrist": right}.items()
                raised = [name for name, side in sides if y[side] < y[nose] and min(score[side], score[nose]) > 0.5]
                if raised:
                    names = " and ".join(raised)
                    print(f"{frame.source} frame {frame.frame_index}: {person.track_id} raises {names}", flush=True)


def find_joints(frame: streampose.PoseFrame, hello: Hello | None) -> list[int]:
    """Where JOINTS are among the keypoints of a frame, as the hello of its source says.

    Raises:
        ValueError: it does not say so.
    """
    if hello is None:
        raise ValueError("its hello, which names the joints, has not come yet")
    if frame.skeleton != hello.skeleton or any(len(person.keypoints) != len(hello.joints) for person in frame.people):
        raise ValueError("it has other joints than its hello names")
    missing = [name for name in JOINTS if name not in hello.joints]
    if missing:
        raise ValueError(f"skeleton {hello.skeleton} has no {', '.join(missing)}")
    return [hello.joints.index(name) for name in JOINTS]


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except streampose.StreamError as error:
        raise SystemExit(f"error: {error}") from None
