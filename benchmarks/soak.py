"""Does memory stay flat? `python benchmarks/soak.py --minutes 30`

The whole run (model, detector, publisher with a subscriber, figures) at full speed over people who come and go: the
bundled clip forwards, nobody for a while, the clip mirrored, a smaller picture (a new epoch) and so on for ever. Prints
the resident memory once a minute, and how much it grew. Since it goes up and down with the people in view, the most of
two whole rounds of all this is compared: of the last one, and of the first one after a minute (of a short run: after a
fifth of it, and not before everything was seen once).
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from streampose.engines.store import choose_engine
from streampose.people import PersonDetector
from streampose.pipeline import Pipeline
from streampose.publish import Publisher
from streampose.sources import Picture, Source, open_source
from streampose.subscribe import Subscriber

FPS = 30.0
NOBODY_FRAMES = 45
LONG_S = 300.0


class Crowd:
    """People who come and go, for so many seconds; of a short run in less time, and for three rounds at least."""

    name, live, fps = "crowd", False, FPS

    def __init__(self, seconds: float) -> None:
        with open_source("demo") as demo:
            clip = [cv2.resize(frame.image, (384, 512)) for frame in demo][:: 2 if seconds >= LONG_S else 8]
        nobody = [np.full_like(clip[0], 90)] * NOBODY_FRAMES
        mirrored = [np.ascontiguousarray(image[:, ::-1]) for image in clip]
        small = [cv2.resize(image, (192, 256)) for image in clip]
        self._images = [*clip, *nobody, *mirrored, *nobody, *small]
        self.cycle = len(self._images)
        self._end_s = time.monotonic() + seconds

    def pictures(self) -> Iterator[Picture]:
        """See `Reader.pictures`."""
        count = 0
        while time.monotonic() < self._end_s or count < 3 * self.cycle:
            image = np.asarray(self._images[count % len(self._images)], np.uint8)
            yield Picture(image.copy, count / FPS, time.monotonic_ns(), 0.0)
            count += 1

    def close(self) -> None:
        """Nothing is open."""


def resident_mb() -> float:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmRSS in /proc/self/status")


def listen(stream: Subscriber, done: threading.Event) -> None:
    """Receive and forget until it is over."""
    while not done.is_set():
        stream.receive(0.05)


def soak(seconds: float, model: str = "lite", detector: str = "person") -> dict[str, float]:
    """Run for so long; frames, poses, and the most resident memory of an early round and of the last one, MB."""
    warm_s = min(60.0, seconds / 5)
    crowd = Crowd(seconds)
    source = Source("crowd", "crowd", reader=crowd, live=False)
    engine = choose_engine(model)
    pipeline = Pipeline([source], engine, PersonDetector(detector))
    began = next_s = time.monotonic()
    resident: list[float] = []
    first = 0
    done = threading.Event()
    with Publisher("tcp://127.0.0.1:*", model=model) as publisher, Subscriber(publisher.endpoint) as stream:
        listener = threading.Thread(target=listen, args=(stream, done))
        listener.start()
        try:
            for frame in pipeline:
                publisher.publish(frame)
                resident.append(resident_mb())
                now_s = time.monotonic() - began
                if not first and now_s > warm_s and len(resident) > crowd.cycle:
                    first = len(resident)
                if time.monotonic() >= next_s:
                    next_s += 60
                    print(f"{now_s / 60:5.1f} min  {resident[-1]:7.1f} MB  {frame.frame_index} frames", flush=True)
        finally:
            done.set()
            listener.join()
    summary = pipeline.summary()
    early_mb, late_mb = max(resident[first : first + crowd.cycle]), max(resident[-crowd.cycle :])
    return {
        "seconds": round(summary.seconds, 1),
        "frames": summary.frames,
        "poses": summary.poses,
        "early_mb": round(early_mb, 1),
        "late_mb": round(late_mb, 1),
        "most_mb": round(max(resident[first:]), 1),
        "grown_mb": round(late_mb - early_mb, 1),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    print(json.dumps(soak(parser.parse_args().minutes * 60)))


if __name__ == "__main__":
    main()
