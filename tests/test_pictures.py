"""Pictures of a run: small, now and then, and only while somebody looks; and a run that is smoothed on request."""

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from streampose import runner
from streampose.pictures import RATE_HZ, WIDTH_PX, Pictures, to_jpeg
from streampose.publish import Publisher
from streampose.runner import RunOptions, run_pipeline
from streampose.smoothing import Smoothing
from streampose.sources import Camera
from streampose.types import Frame
from streampose.view.hub import Hub

sys.path.insert(0, str(Path(__file__).parent))
from stream_messages import wait_until

pytestmark = pytest.mark.usefixtures("patient_cameras", "patient_stream")


def make_picture(index=0, size=(480, 640), source="cam"):
    return Frame(np.full((*size, 3), (200, 100, 50), np.uint8), source, index, index / 30, time.monotonic_ns())


def test_a_picture_is_small_and_as_it_was():
    for size, expected in [((1080, 1920), (270, 480)), ((100, 200), (100, 200)), ((3000, 500), (2880, 480))]:
        jpeg = to_jpeg(make_picture(size=size).image)
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert image.shape[:2] == expected
        np.testing.assert_allclose(image.mean(axis=(0, 1)), (200, 100, 50), atol=3)
    assert WIDTH_PX == 480


def test_nobody_looks_and_nothing_is_made(monkeypatch):
    made, crashes = [], []
    monkeypatch.setattr("streampose.pictures.to_jpeg", lambda image: made.append(image) or b"\xff\xd8\xff")
    with Publisher("tcp://127.0.0.1:*", model="lite") as publisher, Pictures(publisher, crashes.append) as pictures:
        for index in range(50):
            pictures.offer(make_picture(index))
        assert made == []
        with Hub(publisher.endpoint) as hub:
            publisher.set_state("cam", "online")
            wait_until(lambda: "cam" in hub.cameras)
            hub.look(1, ["cam"])
            wait_until(lambda: publisher.is_looked_at("cam"))
            clock_s = [100.0]
            monkeypatch.setattr("streampose.pictures.time", SimpleNamespace(monotonic=lambda: clock_s[0]))
            for index in range(201):  # a camera of 200 Hz, for a second
                count = len(made)
                pictures.offer(make_picture(index))
                wait_until(lambda: len(made) > count or not pictures._waiting)  # noqa: B023
                clock_s[0] += 0.005
            wait_until(lambda: hub.cameras["cam"].picture is not None)
        wait_until(lambda: len(made) >= RATE_HZ)
    assert len(made) <= RATE_HZ + 1
    assert crashes == []


@pytest.fixture
def watcher():
    class Notes:
        def __init__(self):
            self.frames = []

        def add(self, frame):
            self.frames.append(frame)

        def set_state(self, source, state):
            pass

        def tick(self, summary):
            pass

        def end(self, summary):
            pass

    return Notes()


@pytest.fixture(autouse=True)
def models(monkeypatch, engine, detector):
    monkeypatch.setattr(runner, "choose_engine", lambda *_: engine)
    monkeypatch.setattr(runner, "PersonDetector", lambda _: detector)


WALKER = "if(lt(abs(X-30-2*mod(N,50)),10)*between(Y,30,80),235,16)"
"""A white person, 20 px wide, who walks 2 px a frame, in a filter's words."""


def test_a_run_sends_pictures_to_who_looks(monkeypatch, watcher):
    clip = Camera(uri=f"lavfi:color=black:size=160x120:rate=25,geq=lum='{WALKER}':cb=128:cr=128", name="clip")
    hubs = []

    class Looked(Publisher):
        def __init__(self, _, **kwargs):
            super().__init__("tcp://127.0.0.1:*", **kwargs)
            hubs.append(Hub(self.endpoint))
            self.set_state("clip", "online")
            wait_until(lambda: "clip" in hubs[0].cameras)
            hubs[0].look(1, ["clip"])
            wait_until(lambda: self.is_looked_at("clip"))

    monkeypatch.setattr(runner, "Publisher", Looked)
    stop = threading.Event()
    options = RunOptions((clip,), publish="tcp://127.0.0.1:5555", pace="live")
    thread = threading.Thread(target=run_pipeline, args=(options, watcher, stop))
    thread.start()
    try:
        wait_until(lambda: hubs and (camera := hubs[0].cameras.get("clip")) and camera.picture_version > 2)
        picture = hubs[0].cameras["clip"].picture
    finally:
        stop.set()
        thread.join(60)
        hubs[0].close()
    image = cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert image.shape == (120, 160)
    left = 20 + 2 * (picture.header.frame_index % 50)  # where the walker is in that frame
    assert image[50, left + 2 : left + 18].min() > 200
    assert max(image[50, left - 6], image[50, left + 26]) < 60
    assert (picture.header.width, picture.header.height) == (160, 120)


def test_a_run_is_smoothed_on_request(make_video, watcher):
    clip = make_video(frames=12)
    found = []
    for smooth in (None, Smoothing(min_cutoff_hz=0.5, beta_hz=0)):
        watcher.frames = []
        run_pipeline(RunOptions((str(clip),), smooth=smooth), watcher, threading.Event())
        assert {frame.smoothed for frame in watcher.frames} == {smooth is not None}
        found.append(np.array([frame.people[0].keypoints[0, 0] for frame in watcher.frames if frame.people]))
    raw, smoothed = found
    assert len(raw) == len(smoothed) == 12
    assert raw[0] == smoothed[0]
    assert smoothed[-1] < raw[-1] - 5  # it lags behind, at these settings
