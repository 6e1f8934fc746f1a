"""Webcams: options, unplugging and plugging in again, on captures that do what a driver does."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from streampose.errors import SourceError, UsageError
from streampose.ring import Drop
from streampose.sources import Source, Status
from streampose.sources.webcam import Webcam, WebcamOptions, parse_webcam

sys.path.insert(0, str(Path(__file__).parent))
from camera_kit import WAIT_S, wait_for

pytestmark = pytest.mark.usefixtures("patient_cameras")


class Driver:
    """A camera on a bus: plugged in or not, at 50 pictures a second."""

    def __init__(self) -> None:
        self.plugged = threading.Event()
        self.plugged.set()
        self.opened = 0
        self.bad: Iterator[bool] = iter(())

    def open(self, device: int | str) -> Capture:  # noqa: ARG002
        self.opened += 1
        return Capture(self)


class Capture:
    """What cv2.VideoCapture is to its user."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._open = driver.plugged.is_set()
        self._values = {cv2.CAP_PROP_FPS: 50.0, cv2.CAP_PROP_FRAME_WIDTH: 64.0, cv2.CAP_PROP_FRAME_HEIGHT: 48.0}

    def isOpened(self) -> bool:  # noqa: N802
        return self._open

    def grab(self) -> bool:
        threading.Event().wait(0.02)
        self._open = self._open and self._driver.plugged.is_set()
        return self._open

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        return (False, None) if next(self._driver.bad, False) else (True, np.zeros((48, 64, 3), np.uint8))

    def set(self, key: int, value: float) -> bool:
        known = key == cv2.CAP_PROP_FOURCC or value < 4000
        if known:
            self._values[key] = value
        return known

    def get(self, key: int) -> float:
        return time.monotonic() * 1e3 if key == cv2.CAP_PROP_POS_MSEC else self._values.get(key, 0.0)

    def release(self) -> None:
        self._open = False


def make_source(driver: Driver, options: WebcamOptions | None = None) -> Source:
    camera = Webcam(options or WebcamOptions(0), driver.open)
    return Source("webcam0", camera.name, connect=camera.connect, live=True)


def test_unplugged_is_offline_and_plugged_in_again_is_a_new_epoch() -> None:
    driver = Driver()
    with make_source(driver) as source:
        first = source.read(WAIT_S)
        assert first is not None
        assert (first.epoch, source.status) == (0, Status.ONLINE)
        driver.plugged.clear()
        wait_for(lambda: source.status is Status.OFFLINE)
        assert "unplugged" in str(source.error)
        source.ring.clear(Drop.STOPPED)
        wait_for(lambda: driver.opened >= 3)
        driver.plugged.set()
        wait_for(lambda: source.status is Status.ONLINE)
        again = source.read(WAIT_S)
    assert again is not None
    assert again.epoch == 1
    assert again.index > first.index
    assert again.pts_s > first.pts_s


def test_single_bad_pictures_are_no_unplugging() -> None:
    driver = Driver()
    driver.bad = iter([False, True, True, False] * 10)
    with make_source(driver) as source:
        for _ in range(15):
            assert source.read(WAIT_S) is not None
    assert (driver.opened, source.reconnects) == (1, 0)


def test_size_and_rate_are_asked_for() -> None:
    capture = None

    class Noted(Driver):
        def open(self, device):
            nonlocal capture
            assert device == 3
            capture = super().open(device)
            return capture

    reader = Webcam(WebcamOptions(3, (720, 1280), 25.0, "MJPG"), Noted().open).connect()
    assert capture._values[cv2.CAP_PROP_FRAME_WIDTH] == 1280
    assert capture._values[cv2.CAP_PROP_FRAME_HEIGHT] == 720
    assert capture._values[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"MJPG")
    assert reader.fps == 25
    with pytest.raises(SourceError, match="webcam:3: cannot give 9000x720; the camera chose 64x720"):
        Webcam(WebcamOptions(3, (720, 9000)), Noted().open).connect()


def test_another_rate_or_format_than_was_asked_for_is_named(caplog) -> None:
    class Stubborn(Capture):
        def set(self, key: int, value: float) -> bool:
            return key not in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FOURCC) and super().set(key, value)

    capture = Stubborn(Driver())
    capture._values[cv2.CAP_PROP_FOURCC] = cv2.VideoWriter.fourcc(*"YUYV")
    assert Webcam(WebcamOptions(3, fps=25.0, fourcc="MJPG"), lambda _: capture).connect().fps == 50
    assert caplog.messages == [
        "webcam:3: asked for MJPG, the camera chose YUYV",
        "webcam:3: asked for 25 frames a second, the camera chose 50",
    ]
    caplog.clear()
    Webcam(WebcamOptions(3, fps=25.0, fourcc="MJPG"), Driver().open).connect()
    assert not caplog.messages


@pytest.mark.parametrize(
    ("uri", "options"),
    [
        ("webcam:0", WebcamOptions(0)),
        ("webcam:/dev/video2", WebcamOptions("/dev/video2")),
        ("webcam:1?size=1280x720&fps=30&fourcc=MJPG", WebcamOptions(1, (720, 1280), 30.0, "MJPG")),
    ],
)
def test_uris(uri: str, options: WebcamOptions) -> None:
    assert parse_webcam(uri) == options


@pytest.mark.parametrize(
    "uri",
    [
        "webcam:",
        "webcam:front",
        "webcam:0?size=big",
        "webcam:0?fps=0",
        "webcam:0?fourcc=MJ",
        "webcam:0?zoom=2",
        "webcam:99999999999",
    ],
)
def test_other_uris_are_usage_errors(uri: str) -> None:
    with pytest.raises(UsageError, match="webcam:0, or as"):
        parse_webcam(uri)
