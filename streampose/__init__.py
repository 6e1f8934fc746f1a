"""Live video pose: a stream of keypoints for everyone in view.

    import streampose

    for frame in streampose.run("demo"):                             # in this process
        for person in frame.people:
            print(person.track_id, person.keypoints)                 # (17, 3): x, y in frame pixels, score

    with streampose.Subscriber("tcp://127.0.0.1:5555") as stream:    # from a running `streampose run`
        for frame in stream:
            ...

Names load when they are first used, so that `import streampose` is quick.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from streampose.errors import (
    EncryptionError,
    KeyRefusedError,
    MissingExtraError,
    ModelError,
    NoPublisherError,
    OutputError,
    SchemaError,
    SourceError,
    StreamError,
    StreamposeError,
    UsageError,
)

if TYPE_CHECKING:
    from streampose.assembly import run
    from streampose.smoothing import Smoothing
    from streampose.sources import Camera
    from streampose.subscribe import Subscriber
    from streampose.subscribe_async import AsyncSubscriber
    from streampose.types import Frame, Pose, PoseFrame

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # or ONNX Runtime, once imported, reports what it does to its maker

__version__ = "0.1.0"

__all__ = [
    "AsyncSubscriber",
    "Camera",
    "EncryptionError",
    "Frame",
    "KeyRefusedError",
    "MissingExtraError",
    "ModelError",
    "NoPublisherError",
    "OutputError",
    "Pose",
    "PoseFrame",
    "SchemaError",
    "Smoothing",
    "SourceError",
    "StreamError",
    "StreamposeError",
    "Subscriber",
    "UsageError",
    "__version__",
    "run",
]

_HOMES = {
    "AsyncSubscriber": "streampose.subscribe_async",
    "Camera": "streampose.sources",
    "Frame": "streampose.types",
    "Pose": "streampose.types",
    "PoseFrame": "streampose.types",
    "Smoothing": "streampose.smoothing",
    "Subscriber": "streampose.subscribe",
    "run": "streampose.assembly",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'streampose' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
