"""Reads the stream of streampose, with asyncio, and prints who raises a hand.

python subscriber.py [tcp://127.0.0.1:5555] [--key tablet.key]
"""

import argparse
import asyncio
from pathlib import Path

import streampose


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoint", nargs="?", default="tcp://127.0.0.1:5555")
    parser.add_argument("--key", type=Path)
    options = parser.parse_args()
    async with streampose.AsyncSubscriber(options.endpoint, key=options.key) as stream:
        async for frame in stream:
            joints = stream.hellos[frame.source].joints
            nose, left, right = (joints.index(name) for name in ("nose", "left_wrist", "right_wrist"))
            for person in frame.people:
                _, y, score = person.keypoints.T
                raised = [side for side in (left, right) if y[side] < y[nose] and min(score[side], score[nose]) > 0.5]
                if raised:
                    names = " and ".join(joints[side] for side in raised)
                    print(f"{frame.source} frame {frame.frame_index}: {person.track_id} raises {names}", flush=True)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except streampose.StreamError as error:
        raise SystemExit(f"error: {error}") from None
