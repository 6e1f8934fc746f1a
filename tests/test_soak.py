"""Long runs, short here: `STREAMPOSE_SOAK_S=600 python -m pytest tests/test_soak.py` takes the ten minutes each."""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aio_rtsp_toolkit", reason="needs the [dev] extra")

from streampose.pipeline import Pipeline
from streampose.settings import Settings
from streampose.sources import Camera, Status, open_sources
from streampose.types import PoseFrame

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from camera_kit import file_server, make_clip, wait_for
from soak import resident_mb, soak

SOAK_S = float(os.environ.get("STREAMPOSE_SOAK_S", "50"))

FAULTS = 8
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("patient_cameras", "patient_stream")]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_stays_flat_while_people_come_and_go() -> None:
    found = soak(SOAK_S)
    assert found["poses"] > found["frames"] > 50
    assert found["grown_mb"] < 10


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")
def test_cameras_that_fail_again_and_again(tmp_path: Path, engine, detector, monkeypatch) -> None:
    """Three cameras of two servers; one server is killed and frozen in turn, the other must not notice."""
    make_clip(tmp_path / "clip.mp4")
    monkeypatch.setattr("streampose.sources.pace.STALLED_S", 1.0)
    random = np.random.default_rng(11)
    frames: list[PoseFrame] = []
    with file_server(tmp_path, "clip.mp4?play_count=0") as steady, file_server(tmp_path, "clip.mp4") as shaky:
        asked = [Camera(uri=steady.url, name="steady")]
        asked += [Camera(uri=f"{shaky.url}?play_count=0", name=name) for name in ("one", "two")]
        pipeline = Pipeline(open_sources(asked), engine, detector, Settings(detect_every=5))

        def iterate() -> None:
            for frame in pipeline:
                frames.append(replace(frame, people=()))
                engine.fused.clear()

        thread = threading.Thread(target=iterate)
        thread.start()
        faulty = pipeline.sources[1:]
        faults = 0
        try:
            end_s = time.monotonic() + SOAK_S
            while faults < FAULTS or ("STREAMPOSE_SOAK_S" in os.environ and time.monotonic() < end_s):
                wait_for(lambda: all(source.status is Status.ONLINE for source in pipeline.sources))
                if faults == 1:
                    began = resident_mb(), len(os.listdir("/proc/self/fd")), threading.active_count()
                if faults % 2 == 0:
                    shaky.kill()
                    wait_for(lambda: all(source.status is Status.OFFLINE for source in faulty))
                    shaky.start()
                else:
                    shaky.freeze()
                    wait_for(lambda: all(source.status is Status.STALLED for source in faulty))
                    threading.Event().wait(random.uniform(0, 3))
                    shaky.thaw()
                faults += 1
            wait_for(lambda: all(source.status is Status.ONLINE for source in pipeline.sources))
            ended = resident_mb(), len(os.listdir("/proc/self/fd")), threading.active_count()
        finally:
            pipeline.stop()
            thread.join(60)
    assert not thread.is_alive()
    assert ended[0] - began[0] < 10
    assert ended[1] <= began[1] + 2
    assert ended[2] <= began[2] + 2
    summary = pipeline.summary()
    assert summary.sources["steady"].reconnects == 0
    for name in ("one", "two"):
        assert summary.sources[name].reconnects == (faults + 1) // 2, "those of the kills"
    for name in ("steady", "one", "two"):
        own = [frame for frame in frames if frame.source == name]
        assert np.all(np.diff([frame.frame_index for frame in own]) > 0)
        assert np.all(np.diff([frame.pts_s for frame in own]) > 0)
        assert np.all(np.diff([frame.epoch for frame in own]) >= 0)
        assert summary.sources[name].frames == len(own)
