"""Where frames come from: `open_source("rtsp://..." | "webcam:0" | "file.mp4" | "frames/" | "lavfi:..." | "demo")`."""

from streampose.sources.camera import Camera, make_camera, read_cameras
from streampose.sources.opening import PACES, open_source, open_sources, unique_name
from streampose.sources.reader import DecodeFailedError, DisconnectedError, Picture, Reader
from streampose.sources.source import Outcome, Source, Status

__all__ = [
    "PACES",
    "Camera",
    "DecodeFailedError",
    "DisconnectedError",
    "Outcome",
    "Picture",
    "Reader",
    "Source",
    "Status",
    "make_camera",
    "open_source",
    "open_sources",
    "read_cameras",
    "unique_name",
]
