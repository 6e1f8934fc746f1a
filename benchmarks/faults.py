"""What faults cost: `python benchmarks/faults.py [--server files|gstreamer] [--repeat 5]`.

A camera of a real RTSP server on this machine (30 fps, a key frame a second), through the bundled model; the server is
killed and started again, frozen, inference and the network made slower than the camera, and the run ended. Prints a
line of JSON a fault, with the worst of all repetitions.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from streampose.engines.store import choose_engine
from streampose.pipeline import Pipeline
from streampose.sources import Camera, Status, open_sources
from streampose.types import PoseFrame

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from camera_kit import Gate, Server, file_server, gst_server, make_clip, wait_for


class View:
    """A pipeline over one camera in a thread, and all its results."""

    def __init__(self, url: str, slow_s: float = 0.0) -> None:
        engine = choose_engine("lite")
        encode = engine.encode

        def slow(crops):  # type: ignore[no-untyped-def]
            time.sleep(slow_s)
            return encode(crops)

        if slow_s:
            engine.encode = slow  # type: ignore[method-assign]
        self.pipeline = Pipeline(open_sources([Camera(uri=url)]), engine, None)
        self.source = self.pipeline.sources[0]
        self.frames: list[PoseFrame] = []
        self._thread = threading.Thread(target=self._iterate)
        self._thread.start()

    def _iterate(self) -> None:
        for frame in self.pipeline:
            self.frames.append(frame)

    def wait_for(self, what: Callable[[], object]) -> float:
        """Seconds until something is so."""
        return wait_for(what, 60, 0.002)

    def more(self, count: int) -> None:
        """Wait for so many further results."""
        goal = len(self.frames) + count
        self.wait_for(lambda: len(self.frames) >= goal)

    def ages_ms(self, since: int = 0) -> np.ndarray:
        """From capture to result, of the results from there on."""
        return np.array([(f.published_ns - f.captured_ns) / 1e6 for f in self.frames[since:]])

    def close(self) -> None:
        """End it."""
        self.pipeline.stop()
        self._thread.join()


@contextmanager
def viewing(url: str, slow_s: float = 0.0) -> Iterator[View]:
    """A view that is closed."""
    view = View(url, slow_s)
    try:
        yield view
    finally:
        view.close()


def connect(server: Server) -> dict[str, float]:
    """From nothing to the first result."""
    with viewing(server.url) as view:
        return {"first_result_s": view.wait_for(lambda: view.frames)}


def kill(server: Server) -> dict[str, float]:
    """SIGKILL, and a second later a new start."""
    with viewing(server.url) as view:
        view.more(45)
        server.kill()
        offline_s = view.wait_for(lambda: view.source.status is Status.OFFLINE)
        threading.Event().wait(1.0)
        server.start()
        back_s = view.wait_for(lambda: view.frames[-1].epoch == 1)
        return {"offline_s": offline_s, "first_result_after_start_s": back_s}


def freeze(server: Server) -> dict[str, float]:
    """SIGSTOP for three seconds."""
    with viewing(server.url) as view:
        view.more(45)
        usual_ms = float(np.median(view.ages_ms(15)))
        server.freeze()
        began = time.monotonic()
        stalled_s = view.wait_for(lambda: view.source.status is Status.STALLED)
        count = len(view.frames)
        threading.Event().wait(3.0 - (time.monotonic() - began))
        shown_while_frozen = len(view.frames) - count
        server.thaw()
        back_s = view.wait_for(lambda: len(view.frames) > count)
        view.more(15)
        return {
            "stalled_s": stalled_s,
            "stale_frames_shown": shown_while_frozen,
            "first_result_after_thaw_s": back_s,
            "latency_before_ms": usual_ms,
            "latency_after_ms": float(view.ages_ms(count).max()),
        }


def overload(server: Server) -> dict[str, float]:
    """Inference at a third of the camera's rate, 200 results long."""
    with viewing(server.url, 0.085) as view:
        view.more(200)
        ages = view.ages_ms(20)
        dropped = view.pipeline.summary().dropped
        return {
            "latency_first_third_ms": float(np.median(ages[:60])),
            "latency_last_third_ms": float(np.median(ages[-60:])),
            "latency_worst_ms": float(ages.max()),
            "dropped_per_result": dropped / len(view.frames),
        }


def narrow(server: Server) -> dict[str, float]:
    """A network that brings six tenths of what the camera sends, for thirty seconds."""
    passed = 0

    def measure(data: bytes) -> bytes:
        nonlocal passed
        passed += len(data)
        return data

    def hold_up(data: bytes) -> bytes:
        time.sleep(len(data) / rate)
        return data

    with Gate(server.port, piece=2048) as gate:
        gate.spoil = measure
        url = server.url.replace(f":{server.port}/", f":{gate.port}/")
        with viewing(url) as view:
            view.more(30)
            began, before = time.monotonic(), passed
            view.more(90)
            rate = 0.6 * (passed - before) / (time.monotonic() - began)
            count = len(view.frames)
            gate.spoil = hold_up
            threading.Event().wait(30)
            return {
                "results": len(view.frames) - count,
                "latency_worst_ms": float(view.ages_ms(count).max()),
                "reconnects": view.source.reconnects,
            }


def drain(server: Server) -> dict[str, float]:
    """The run is ended while inference is at a third of the camera's rate."""
    with viewing(server.url, 0.085) as view:
        view.more(30)
        count = len(view.frames)
        began = time.monotonic()
        view.close()
        return {
            "ended_s": time.monotonic() - began,
            "results_meanwhile": len(view.frames) - count,
            "dropped_unestimated": view.source.ring.drops.get("stopped", 0),
        }


FAULTS = (connect, kill, freeze, overload, narrow, drain)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=["files", "gstreamer"], default="files")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--fault", nargs="+", choices=[fault.__name__ for fault in FAULTS], default=None)
    asked = parser.parse_args()
    faults = [fault for fault in FAULTS if not asked.fault or fault.__name__ in asked.fault]
    with tempfile.TemporaryDirectory() as folder:
        make_clip(Path(folder) / "clip.mp4", seconds=20, size=(240, 320))
        server = gst_server() if asked.server == "gstreamer" else file_server(Path(folder), "clip.mp4?play_count=0")
        with server:
            for fault in faults:
                times = asked.repeat if fault not in (overload, narrow) else 1
                found = [fault(server) for _ in range(times)]
                worst = {key: round(max(one[key] for one in found), 3) for key in found[0]}
                print(
                    json.dumps({"fault": fault.__name__, "server": asked.server, "times": times, **worst}), flush=True
                )


if __name__ == "__main__":
    main()
