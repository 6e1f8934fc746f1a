"""The doctor: what it finds here, and what it says of what is broken."""

from __future__ import annotations

import socket
import sys
import time
import weakref
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from streampose import doctor
from streampose.doctor import examine, look_at_engines, look_at_packages, look_at_ports, look_at_source
from streampose.engines import onnxruntime_cuda, store
from streampose.errors import ModelError, SourceError
from streampose.probe import probe
from streampose.sources import Camera, Picture

sys.path.insert(0, str(Path(__file__).parent))
from camera_kit import file_server, make_clip
from ports import free_port

pytestmark = pytest.mark.usefixtures("patient_cameras")


def test_this_machine_is_looked_at_all_over() -> None:
    findings = list(examine())
    assert {finding.area for finding in findings} == {
        "python", "packages", "codecs", "gpu", "engines", "zeromq", "ports", "control",
    }  # fmt: skip
    problems = [finding for finding in findings if finding.verdict == "problem"]
    assert not problems
    assert all(finding.mend for finding in findings if finding.verdict == "note" and finding.area != "gpu")


def test_an_old_or_missing_package_comes_with_its_command(monkeypatch) -> None:
    known = {"numpy": "1.26.4"}

    def version(name: str) -> str:
        if name == "av":
            raise metadata.PackageNotFoundError(name)
        return known.get(name) or str(real(name))

    real = metadata.version
    monkeypatch.setattr(doctor.metadata, "version", version)
    broken = {finding.text: finding.mend for finding in look_at_packages() if finding.verdict == "problem"}
    assert broken == {
        "av is missing, >=17 is needed": "pip install 'av>=17'",
        "numpy 1.26.4, >=2 is needed": "pip install 'numpy>=2'",
    }


def test_each_missing_extra_comes_with_its_command(monkeypatch) -> None:
    real = doctor.find_spec
    absent = {"torch", "pyarrow", "uvicorn"}
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name in absent else real(name))
    notes = {finding.mend: finding.text for finding in look_at_packages() if finding.verdict == "note"}
    assert notes == {
        "pip install 'streampose[train]'": "training and building engines: torch missing",
        "pip install 'streampose[record]'": "recordings in Parquet: pyarrow missing",
        "pip install 'streampose[web]'": "streampose view: uvicorn missing",
    }


@pytest.mark.parametrize(("offered", "verdict"), [(True, "ok"), (False, "note")])
def test_onnx_runtime_on_cuda_is_looked_at_where_there_is_a_gpu(monkeypatch, offered: bool, verdict: str) -> None:
    monkeypatch.setattr(store, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(store, "choose_engine", refuse)
    monkeypatch.setattr(onnxruntime_cuda, "is_offered", lambda: offered)
    (finding,) = [finding for finding in look_at_engines() if finding.text.startswith("onnxruntime-cuda")]
    assert finding.verdict == verdict
    assert ("onnxruntime-gpu" in finding.mend) is not offered


def refuse(_: str) -> None:
    raise ModelError("no engine is opened here")


def test_a_port_in_use_is_named(monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(doctor, "DEFAULT_PORT", taken.getsockname()[1])
        (finding,) = look_at_ports()
    assert "is not free" in finding.text
    assert "--publish tcp://127.0.0.1:" in finding.mend


def test_a_look_that_fails_is_a_finding(monkeypatch) -> None:
    def look_at_zeromq():
        raise RuntimeError("no libzmq")
        yield

    monkeypatch.setattr(doctor, "look_at_zeromq", look_at_zeromq)
    (finding,) = [finding for finding in examine() if finding.area == "zeromq"]
    assert (finding.verdict, "RuntimeError: no libzmq" in finding.text) == ("problem", True)


def test_a_camera_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("aio_rtsp_toolkit", reason="needs the [dev] extra")
    make_clip(tmp_path / "clip.mp4")
    with file_server(tmp_path, "clip.mp4?play_count=0") as server:
        seen = probe(Camera(uri=server.url), seconds=1.5)
        for _ in range(20):  # a report that comes late is not heard of
            if seen.clock == "rtcp" and seen.pictures > 3:
                break
            seen = probe(Camera(uri=server.url), seconds=1.5)
    assert (seen.width, seen.height, seen.codec, seen.clock) == (160, 120, "h264", "rtcp")
    assert seen.jitter_ms is not None
    assert seen.latency_ms is not None
    assert seen.latency_ms >= 0
    assert seen.pictures > 1


def test_the_figures_of_a_camera_are_of_its_pictures(monkeypatch) -> None:
    """A camera of 25 pictures a second on a clock of its own, each 80 ms old, every other one 10 ms late."""
    clock_s = [100.0]
    monkeypatch.setattr("streampose.probe.time", SimpleNamespace(monotonic=lambda: clock_s[0], perf_counter=time.time))

    class Punctual:
        name, live, fps, codec = "camera", True, 30.0, "h264"

        def pictures(self):
            clock_s[0] += 0.5
            for number in range(1000):
                clock_s[0] = 100.5 + 0.04 * number + 0.01 * (number % 2)
                arrived_ns = round(clock_s[0] * 1e9)
                pixels = partial(np.zeros, (120, 160, 3), np.uint8)
                yield Picture(pixels, 0.04 * number, arrived_ns, 0.0, arrived_ns - 80_000_000)

        def close(self):
            pass

    monkeypatch.setattr("streampose.probe.connect", lambda _: Punctual())
    seen = probe(Camera(uri="rtsp://h/x"), seconds=2.0)
    assert (seen.first_picture_s, seen.latency_ms, seen.jitter_ms) == (0.5, 80.0, 10.0)
    assert seen.fps == pytest.approx(25, rel=0.01)
    assert 50 <= seen.pictures <= 53


def test_a_file_is_looked_at_too(make_video) -> None:
    seen = probe(Camera(uri=str(make_video(frames=20))))
    assert (seen.width, seen.height, seen.fps, seen.jitter_ms, seen.pictures) == (160, 120, 25, None, 20)


def test_pictures_are_looked_at_and_let_go(monkeypatch) -> None:
    alive: weakref.WeakSet[Picture] = weakref.WeakSet()
    most = 0

    class Camera4K:
        name, live, fps = "camera", True, 30.0

        def pictures(self):
            nonlocal most
            for number in range(50):
                picture = Noted(partial(np.zeros, (4, 4, 3), np.uint8), number / 30, time.monotonic_ns(), 0.0)
                alive.add(picture)
                most = max(most, len(alive))
                yield picture

        def close(self):
            pass

    class Noted(Picture):
        pass

    monkeypatch.setattr("streampose.probe.connect", lambda _: Camera4K())
    assert probe(Camera(uri="rtsp://h/x")).pictures == 50
    assert most <= 3


def test_a_look_at_a_source_never_raises(monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug at rtsp://me:secret@h/x")

    monkeypatch.setattr(doctor, "probe", fail)
    finding = look_at_source(Camera(uri="rtsp://me:secret@h/x"), 1)
    assert (finding.verdict, "RuntimeError: a bug" in finding.text, "secret" in finding.text) == (
        "problem",
        True,
        False,
    )


def test_a_camera_that_cannot_be_reached_comes_with_advice_and_without_its_password(tmp_path: Path) -> None:
    camera = Camera(uri=f"rtsp://me:secret@127.0.0.1:{free_port()}/x")
    with pytest.raises(SourceError):
        probe(camera)
    finding = look_at_source(camera, 1)
    assert finding.verdict == "problem"
    assert "nothing listens" in finding.text
    assert "switch RTSP on" in finding.mend
    assert "secret" not in finding.text + finding.mend
    missing = look_at_source(Camera(uri=str(tmp_path / "no.mp4")), 1)
    assert "no such file" in missing.text
