"""What is served over HTTP: figures for Prometheus, health for whoever looks after the run."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streampose.errors import OutputError
from streampose.monitor import Monitor, judge
from streampose.pipeline import Pipeline
from streampose.settings import Settings
from streampose.sources import Camera, open_sources
from streampose.ticker import STUCK_S

WAIT_S = 60
pytestmark = pytest.mark.usefixtures("patient_cameras")


@pytest.fixture
def pipeline(endless, engine, detector) -> Iterator[Pipeline]:
    """A pipeline that took twenty frames of a camera and goes on."""
    sources = open_sources([Camera(uri=endless(25), name='"door"', fps=10.0)], "live")
    made = Pipeline(sources, engine, detector, Settings(detect_every=5))
    ready = threading.Event()

    def iterate() -> None:
        for count, _ in enumerate(made.results()):
            if count == 4:
                ready.set()

    thread = threading.Thread(target=iterate)
    thread.start()
    assert ready.wait(WAIT_S)
    yield made
    made.stop()
    thread.join(WAIT_S)


@pytest.fixture
def get(pipeline: Pipeline):
    with Monitor(pipeline, 0) as monitor:

        def ask(path: str) -> tuple[int, bytes]:
            connection = HTTPConnection("127.0.0.1", monitor.port, timeout=WAIT_S)
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

        yield ask


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_figures_are_what_prometheus_reads(get) -> None:
    status, text = get("/metrics")
    assert status == 200
    found = samples(text)
    door = ("source", '"door"')
    frames = found["streampose_frames_total", frozenset({door})]
    assert frames >= 5
    assert found["streampose_dropped_total", frozenset({door, ("reason", "fps")})] >= 5
    assert found["streampose_source_state", frozenset({door, ("state", "online")})] == 1
    assert found["streampose_source_state", frozenset({door, ("state", "offline")})] == 0
    assert 0 <= found["streampose_last_frame_age_seconds", frozenset({door})] < WAIT_S
    assert found["streampose_reconnects_total", frozenset({door})] == 0
    assert found["streampose_people", frozenset({door})] == 1
    assert found["streampose_poses_total", frozenset()] >= 5
    assert found["streampose_batch_people_count", frozenset()] >= 5
    for stage in ("decode", "queue"):
        assert found["streampose_stage_seconds_count", frozenset({door, ("stage", stage)})] >= 5
    for stage in ("detect", "encode", "fuse"):
        assert found["streampose_stage_seconds_sum", frozenset({("source", ""), ("stage", stage)})] > 0
    buckets = [
        found["streampose_latency_seconds_bucket", frozenset({door, ("le", le)})] for le in ("0.001", "5", "+Inf")
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == found["streampose_latency_seconds_count", frozenset({door})]


def test_the_dashboard_asks_for_figures_that_there_are(get) -> None:
    dashboard = (Path(__file__).parents[1] / "docs" / "grafana.json").read_text(encoding="utf-8")
    asked = set(re.findall(r"streampose_[a-z_]+", dashboard))
    there = {name for name, _ in samples(get("/metrics")[1])}
    assert len(asked) > 8
    assert asked <= there


def test_health_is_ok_while_a_camera_is_online(get) -> None:
    status, body = get("/health")
    health = json.loads(body)
    assert (status, health["status"]) == (200, "ok")
    assert health["sources"][0]["name"] == '"door"'
    assert get("/live")[0] == 200
    assert get("/nothing")[0] == 404


def test_health_tells_a_stuck_run(pipeline: Pipeline, engine) -> None:
    encode, hold, held = engine.encode, threading.Event(), threading.Event()

    def hang(crops):
        held.set()
        hold.wait(WAIT_S)
        return encode(crops)

    engine.encode = hang
    assert held.wait(WAIT_S)
    pipeline.turned_s = time.monotonic() - STUCK_S - 1
    assert judge(pipeline).status == "stuck"
    hold.set()


def test_health_tells_how_many_are_online(engine, detector) -> None:
    sources = open_sources(["rtsp://127.0.0.1:1/x"])
    assert judge(Pipeline(sources, engine, detector)).status == "offline"
    assert judge(Pipeline((), engine, detector)).status == "ok"


def test_head_is_answered_without_a_body(pipeline: Pipeline) -> None:
    with Monitor(pipeline, 0) as monitor:
        connection = HTTPConnection("127.0.0.1", monitor.port, timeout=WAIT_S)
        connection.request("HEAD", "/health")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"")


def test_who_does_not_wait_for_the_answer_leaves_no_trace(pipeline: Pipeline, capfd) -> None:
    with Monitor(pipeline, 0) as monitor:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", monitor.port)) as client:
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection = HTTPConnection("127.0.0.1", monitor.port, timeout=WAIT_S)
        connection.request("GET", "/live")
        assert connection.getresponse().status == 200
    assert capfd.readouterr() == ("", "")


def test_it_listens_at_ipv6_too(pipeline: Pipeline) -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").read_text():
        pytest.skip("this machine has no IPv6")
    with Monitor(pipeline, 0, "::1") as monitor:
        connection = HTTPConnection("::1", monitor.port, timeout=WAIT_S)
        connection.request("GET", "/live")
        assert connection.getresponse().status == 200


def test_a_port_in_use_is_an_output_error(pipeline: Pipeline) -> None:
    with Monitor(pipeline, 0) as first, pytest.raises(OutputError, match="--metrics-port"):
        Monitor(pipeline, first.port)
