"""Small videos, pictures and stand-ins that several tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from streampose.engines import Crops, Feature
from streampose.engines.crops import cut_all

try:
    import torch
except ImportError:
    pass  # the tests that need it skip themselves
else:
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other


@pytest.fixture(autouse=True)
def _no_engines_of_this_machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that somebody built here before must not be what tests run."""
    monkeypatch.setenv("STREAMPOSE_ENGINES", str(tmp_path_factory.getbasetemp() / "no-engines"))


PATIENCE_S = 120.0
"""Longer than any test waits."""


@pytest.fixture
def patient_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that this machine does for long looks like an outage of a camera.

    The product's own limits are tested with clocks of their own (test_pace.py), and by the tests that set one.
    """
    monkeypatch.setattr("streampose.sources.pace.STALLED_S", PATIENCE_S)
    monkeypatch.setattr("streampose.sources.source.STALLED_S", PATIENCE_S)
    monkeypatch.setattr("streampose.sources.source.JOIN_S", PATIENCE_S)
    for limit in ("OPEN_S", "SILENT_S", "LONGEST_SILENT_S", "UNDECODED_S", "KEYLESS_S", "UNTIMELY_S"):
        monkeypatch.setattr(f"streampose.sources.rtsp.{limit}", PATIENCE_S)
    for limit in ("DRAIN_S", "_LEAVE_S"):
        monkeypatch.setattr(f"streampose.pipeline.{limit}", PATIENCE_S)
    for limit in ("_ANSWER_S", "_REQUEST_S"):
        monkeypatch.setattr(f"streampose.control.{limit}", PATIENCE_S)


@pytest.fixture
def patient_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that this machine does for long looks like a publisher that is gone, or none; see `patient_cameras`."""
    from streampose.subscribe import Subscriber
    from streampose.subscribe_async import AsyncSubscriber

    for reader in (Subscriber, AsyncSubscriber):
        defaults = reader.__init__.__kwdefaults__ | {"connect_s": PATIENCE_S}  # type: ignore[misc]
        monkeypatch.setattr(reader.__init__, "__kwdefaults__", defaults)  # type: ignore[misc]
    for module in ("listener", "relay", "view.hub"):
        monkeypatch.setattr(f"streampose.{module}.SILENT_S", PATIENCE_S)
    monkeypatch.setattr("streampose.relay.UNTOLD_S", PATIENCE_S)
    monkeypatch.setattr("streampose.inlet._PONG_MS", int(1000 * PATIENCE_S))
    monkeypatch.setattr("streampose.outlet._HANDSHAKE_MS", int(1000 * PATIENCE_S))


WALKER = "lavfi:color=black:size=160x120:rate={},drawbox=x=20:y=30:w=20:h=50:color=white:t=fill"
"""Somebody white over a dark ground, for ever, at so many pictures a second."""


@pytest.fixture
def endless() -> Callable[[int], str]:
    """endless(fps) -> the URI of pictures of one person that never end."""
    return WALKER.format


MakeVideo = Callable[..., Path]
MakeImages = Callable[..., Path]


def walker(index: int, size: tuple[int, int] = (120, 160), people: int = 1) -> NDArray[np.uint8]:
    """A dark picture in which white "people", 20 x 50 px, walk right by 2 px a frame."""
    image = np.full((*size, 3), 16, np.uint8)
    for person in range(people):
        left = 10 + 60 * person + 2 * index
        image[30:80, left : left + 20] = 235
    return image


@pytest.fixture
def make_video(tmp_path: Path) -> MakeVideo:
    """make_video(name="clip.mp4", frames=12, fps=25, size=(120, 160), people=1) -> path of an H.264 file."""

    def make(
        name: str = "clip.mp4", frames: int = 12, fps: int = 25, size: tuple[int, int] = (120, 160), people: int = 1
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=fps)
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "10", "g": "4", "bf": "0"}
            for index in range(frames):
                frame = av.VideoFrame.from_ndarray(walker(index, size, people), format="bgr24")
                frame.pts, frame.time_base = index, Fraction(1, fps)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make


@pytest.fixture
def make_images(tmp_path: Path) -> MakeImages:
    """make_images({"frame1.png": (120, 160), ...}, folder="pictures") -> the folder; picture i shows walker(i)."""

    def make(sizes: dict[str, tuple[int, int]], folder: str = "pictures") -> Path:
        path = tmp_path / folder
        path.mkdir()
        for index, (name, size) in enumerate(sizes.items()):
            assert cv2.imwrite(str(path / name), walker(index, size))
        return path

    return make


@dataclass(frozen=True)
class StubManifest:
    """What the run time reads of a manifest."""

    name: str = "stub"
    target: str = "numpy"
    precision: str = "fp32"
    input_size: tuple[int, int] = (256, 192)
    skeleton: str = "coco17"
    offsets: tuple[int, ...] = (-4, -3, -2, -1)


JOINTS = np.random.default_rng(7).uniform(0.05, 0.95, (17, 2))
"""Where the stub sees the joints of a white rectangle, in shares of its width and height."""


@dataclass
class StubEngine:
    """Finds the white rectangle nearest to the crop's centre; features are the crop at a quarter of its size."""

    manifest: StubManifest = field(default_factory=StubManifest)
    score: float = 0.9
    encoded: list[int] = field(default_factory=list)
    fused: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=list)

    def encode(self, crops: Sequence[Crops]) -> list[Feature]:
        pixels = cut_all(crops, self.manifest.input_size)
        self.encoded.append(len(pixels))
        return list(pixels[:, 2::4, 2::4].transpose(0, 3, 1, 2).astype(np.float32))

    def fuse(self, windows: Sequence[Sequence[Any]], transforms: NDArray[np.float32]) -> NDArray[np.float32]:
        self.fused.append((np.array(windows, np.float32), transforms))
        return np.stack([self._pose(window[0][0]) for window in windows])

    def read(self, feature: Feature) -> NDArray[np.float32]:
        return np.asarray(feature, np.float32)

    def _pose(self, grey: NDArray[np.float32]) -> NDArray[np.float32]:
        pose = np.zeros((17, 3), np.float32)
        count, _, stats, centres = cv2.connectedComponentsWithStats((grey > 125).astype(np.uint8))
        if count > 1:
            middle = np.array(grey.shape[::-1]) / 2
            best = 1 + int(np.linalg.norm(centres[1:] - middle, axis=1).argmin())
            left, top, width, height = stats[best, :4]
            pose[:, :2] = (np.array([left, top]) + JOINTS * [width, height]) * 4
            pose[:, 2] = self.score
        return pose


@dataclass
class StubDetector:
    """Finds white rectangles, exactly; or gives the boxes it was told to, frame by frame."""

    script: Sequence[Sequence[tuple[float, float, float, float, float]]] | None = None
    threshold: float = 0.4
    runs: int = 0

    def detect(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self.script is not None:
            found = np.array(self.script[self.runs], np.float32).reshape(-1, 5)
        else:
            count, _, stats, _ = cv2.connectedComponentsWithStats((image[..., 0] > 125).astype(np.uint8))
            found = np.array([(x, y, x + w, y + h, 0.9) for x, y, w, h, _ in stats[1:count]], np.float32).reshape(-1, 5)
        self.runs += 1
        return found[:, :4], found[:, 4]


@pytest.fixture
def engine() -> StubEngine:
    return StubEngine()


@pytest.fixture
def detector() -> StubDetector:
    return StubDetector()


@pytest.fixture
def make_detector() -> type[StubDetector]:
    return StubDetector


@pytest.fixture
def joints() -> NDArray[np.float64]:
    """Where the stub engine sees joints: (17, 2) shares of the rectangle."""
    return JOINTS
