"""What one more camera costs: `python benchmarks/cameras.py [--cameras 1 4 16] [--seconds 20] [--engine stub real]`.

Each camera is the bundled clip, small (288x384) and at 10 frames a second, played live from a file of its own decoder.
"stub" takes a fixed 10 ms a call and 1 ms a person (one a camera), so that only our own part is measured; "real" is the
bundled detector and model, with two to three people a camera. Prints a line of JSON for each.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from streampose.engines import Engine
from streampose.engines.store import choose_engine
from streampose.people import PersonDetector
from streampose.pipeline import Pipeline
from streampose.settings import Settings
from streampose.sources import Camera, open_source, open_sources

FPS = 10
SIZE = (384, 288)
CALL_S = 0.010
PERSON_S = 0.001


@dataclass(frozen=True)
class StubManifest:
    """What a pipeline reads of a manifest."""

    name: str = "stub"
    input_size: tuple[int, int] = (256, 192)
    skeleton: str = "coco17"
    offsets: tuple[int, ...] = (-4, -3, -2, -1)


class StubEngine:
    """Takes a fixed time, sees the same pose in everybody."""

    manifest = StubManifest()

    def encode(self, crops: Sequence[Any]) -> NDArray[np.float32]:
        """A feature of one number a person."""
        people = sum(len(part.affines) for part in crops)
        time.sleep(CALL_S + PERSON_S * people)
        return np.zeros((people, 1, 1, 1), np.float32)

    def fuse(self, features: Sequence[Any], transforms: NDArray[np.float32]) -> NDArray[np.float32]:  # noqa: ARG002
        """All joints in the crop's middle."""
        return np.broadcast_to(np.array([96, 128, 0.9], np.float32), (len(transforms), 17, 3)).copy()


def make_clip(path: Path, seconds: float) -> None:
    """The bundled clip, small, slower and again and again."""
    with open_source("demo") as demo:
        images = [cv2.resize(frame.image, SIZE[::-1]) for frame in demo][::6]
    images += images[::-1]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {"g": str(FPS), "bf": "0", "preset": "veryfast"}
        for index in range(round(seconds * FPS)):
            frame = av.VideoFrame.from_ndarray(images[index % len(images)], format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def measure(clip: Path, cameras: int, kind: str, seconds: float) -> dict[str, float | int | str]:
    """Run so many cameras for so long."""
    sources = open_sources([Camera(uri=str(clip), name=f"camera{i}") for i in range(cameras)], "live")
    engine: Engine = StubEngine() if kind == "stub" else choose_engine("lite")  # type: ignore[assignment]
    detector = None if kind == "stub" else PersonDetector()
    stop = threading.Event()
    pipeline = Pipeline(sources, engine, detector, Settings(), stop)
    threading.Timer(seconds, stop.set).start()
    began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    for _ in pipeline:
        pass
    wall_s = time.monotonic() - began
    now = resource.getrusage(resource.RUSAGE_SELF)
    summary = pipeline.summary()
    each = [source.frames for source in summary.sources.values()]
    return {
        "engine": kind,
        "cameras": cameras,
        "results_per_s": round(summary.fps, 1),
        "least_per_camera_per_s": round(min(each) / wall_s, 2),
        "most_per_camera_per_s": round(max(each) / wall_s, 2),
        "latency_p50_ms": round(summary.stages["total"].median_ms, 1),
        "latency_p95_ms": round(summary.stages["total"].p95_ms, 1),
        "decode_p50_ms": round(summary.stages["decode"].median_ms, 2),
        "people_per_call": round(summary.people_per_batch, 2),
        "dropped_share": round(summary.dropped / max(1, summary.dropped + summary.frames), 3),
        "cpu_s_per_s": round((now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime) / wall_s, 3),
        "peak_mb": round(now.ru_maxrss / 1024),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--engine", nargs="+", choices=["stub", "real"], default=["stub", "real"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        make_clip(clip, asked.seconds + 5)
        for kind in asked.engine:
            for cameras in asked.cameras:
                print(json.dumps(measure(clip, cameras, kind, asked.seconds)), flush=True)


if __name__ == "__main__":
    main()
