"""One browser: what it is sent, and how often. It gets the newest of everything, never a queue."""

from __future__ import annotations

import itertools
import struct
import time
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from streampose.types import PoseFrame
from streampose.view.hub import Camera, Hub

TICK_S = 1 / 25
PICTURES_HZ = 60.0
"""Pictures a second that one browser gets, of all cameras together."""

_numbers = itertools.count(1)


class Request(msgspec.Struct):
    """What a browser asks: pictures of these cameras, and no others, from now on."""

    look: Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=1000)]


@dataclass(slots=True)
class _Sent:
    version: int = -1
    hello_version: int = -1
    picture_version: int = 0
    picture_s: float = 0.0


@dataclass(slots=True)
class Session:
    """What one browser has seen of a hub, and what is new to it."""

    hub: Hub
    number: int = field(default_factory=lambda: next(_numbers))
    looks: frozenset[str] = frozenset()
    _sent: dict[str, _Sent] = field(default_factory=dict)
    _link: dict[str, Any] = field(default_factory=dict)

    def request(self, text: str) -> None:
        """Take what the browser asks for.

        Raises:
            msgspec.MsgspecError: it is not a request.
        """
        self.looks = frozenset(msgspec.json.decode(text, type=Request).look)
        self.hub.look(self.number, self.looks)

    def end(self) -> None:
        """The browser is gone."""
        self.hub.look(self.number, ())

    def news(self) -> bytes | None:
        """What changed since the last call, as JSON; None where nothing did."""
        link = {"live": self.hub.is_live, "problem": self.hub.problem, "endpoint": self.hub.endpoint}
        cameras = []
        with self.hub.lock:
            self.hub.settle()
            for camera in self.hub.cameras.values():
                sent = self._sent.setdefault(camera.source, _Sent())
                if sent.version == camera.version:
                    continue
                sent.version = camera.version
                cameras.append(_fields(camera, with_hello=sent.hello_version != camera.hello_version))
                sent.hello_version = camera.hello_version
        if not cameras and link == self._link:
            return None
        self._link = link
        return msgspec.json.encode({"link": link, "cameras": cameras})

    def pictures(self) -> list[bytes]:
        """Pictures that are new and due: uint32 length of a JSON header, the header, a JPEG."""
        now_s = time.monotonic()
        pause_s = len(self.looks) / PICTURES_HZ
        with self.hub.lock:
            due = []
            for source in self.looks:
                camera = self.hub.cameras.get(source)
                sent = self._sent.setdefault(source, _Sent()) if camera is not None else None
                if camera is None or sent is None or camera.picture is None:
                    continue
                if camera.picture_version == sent.picture_version or now_s - sent.picture_s < pause_s:
                    continue
                sent.picture_version, sent.picture_s = camera.picture_version, now_s
                due.append(camera.picture)
        packed = []
        for picture in due:
            header = msgspec.json.encode({"source": picture.header.source, "frame_index": picture.header.frame_index})
            packed.append(struct.pack("<I", len(header)) + header + picture.jpeg)
        return packed


def _fields(camera: Camera, *, with_hello: bool) -> dict[str, Any]:
    """A camera for the browser."""
    fields: dict[str, Any] = {
        "source": camera.source,
        "state": camera.state,
        "changed_s": camera.changed_s,
        "fps": round(camera.fps, 1),
        "missed": camera.missed,
    }
    if with_hello and camera.hello is not None:
        hello = camera.hello
        fields["hello"] = {
            "model": hello.model, "skeleton": hello.skeleton, "joints": hello.joints, "edges": hello.edges,
            "width": hello.width, "height": hello.height,
        }  # fmt: skip
    if camera.frame is not None:
        fields["frame"] = _frame_fields(camera.frame)
    return fields


def _frame_fields(frame: PoseFrame) -> dict[str, Any]:
    return {
        "index": frame.frame_index,
        "epoch": frame.epoch,
        "width": frame.width,
        "height": frame.height,
        "dropped": frame.dropped,
        "clock": frame.clock,
        "latency_ms": round((frame.published_ns - frame.captured_ns) / 1e6, 1),
        "people": [
            {
                "id": pose.track_id,
                "score": round(float(pose.score), 2),
                "filled": pose.filled,
                "box": np.round(pose.box.astype(float), 1).tolist(),
                "joints": np.round(pose.keypoints.astype(float), 2).tolist(),
            }
            for pose in frame.people
        ],
    }
