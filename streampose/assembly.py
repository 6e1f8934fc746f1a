"""A pipeline put together by names, and run in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from streampose.engines.store import choose_engine
from streampose.people import PersonDetector
from streampose.pipeline import Pipeline
from streampose.settings import Settings
from streampose.sources import Camera, open_sources
from streampose.types import PoseFrame


def open_pipeline(
    sources: Sequence[str | Camera],
    *,
    model: str = "lite",
    detector: str = "person",
    pace: str = "auto",
    settings: Settings | None = None,
    stop: threading.Event | None = None,
) -> Pipeline:
    """Open sources and models by name.

    Args:
        sources: URIs or cameras, see `open_source`.
        model: a bundled model's name or an engine bundle's folder.
        detector: "person", an ONNX file, or "none" for one person who fills the frame.
        pace: "auto", "live" or "fast".
        settings, stop: see `Pipeline`.

    Raises:
        UsageError, SourceError, ModelError: before anything runs.
    """
    opened = open_sources(sources, pace)
    try:
        engine = choose_engine(model)
        finder = None if detector == "none" else PersonDetector(detector)
        return Pipeline(opened, engine, finder, settings, stop)
    except BaseException:
        for source in opened:
            source.close()
        raise


def run(
    source: str | Camera | Sequence[str | Camera],
    *,
    model: str = "lite",
    detector: str = "person",
    pace: str = "auto",
    max_frames: int | None = None,
    detect_every: int = 3,
    stop: threading.Event | None = None,
) -> Iterator[PoseFrame]:
    """Estimate poses in this process, without a socket.

    Args:
        source: one URI or several: "rtsp://...", "webcam:0", a video file, a folder of pictures, "demo".
        model: a bundled model's name or an engine bundle's folder.
        detector: "person", an ONNX file, or "none" for one person who fills the frame.
        pace: "fast" gives every frame, "live" the latest ones, "auto" fast for files and live for cameras.
        max_frames: results of each source after which it is stopped.
        detect_every: the detector looks at one frame in so many.
        stop: set it to end the run.

    Returns:
        The results, a `PoseFrame` a frame and source, as they come. Closing the iterator stops the run.

    Raises:
        UsageError, SourceError, ModelError: at once where something cannot be opened; SourceError also after the last
            result where a source ended in error, and where none of the cameras can be connected to.
    """
    settings = Settings(detect_every=detect_every, max_frames=max_frames)
    asked = [source] if isinstance(source, str | Camera) else list(source)
    return iter(open_pipeline(asked, model=model, detector=detector, pace=pace, settings=settings, stop=stop))
