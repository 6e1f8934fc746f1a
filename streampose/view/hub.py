"""What is known of a stream now, for any number of browsers: the newest of everything, and who looks at what."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from types import TracebackType

from streampose.inlet import SILENT_S, Inlet
from streampose.keys import SubscriberKey
from streampose.ledger import Ledger
from streampose.messages import SOURCES_LIMIT, Heartbeat, Hello, PictureMessage, PoseHeader, PoseMessage, Status
from streampose.rejects import Rejects
from streampose.types import PoseFrame
from streampose.wire import MessageError, decode

_WINDOW_NS = 2_000_000_000
_TOPICS = (b"hello.", b"status.", b"pose.", b"heartbeat")


@dataclass(slots=True)
class Camera:
    """One source as it is now; `version` and `picture_version` rise whenever something changes.

    Attributes:
        state: as told; "" before it was.
        changed_s: when that became so, seconds since 1970; 0 where it was so already when the connection was made.
        state_connection: the last connection on which it was told.
        fps: results a second over the last two seconds, of those published, not of those received; 0 when none come.
        missed: messages that did not arrive, so far.
        connection: the last connection on which it was heard of.
        posed_s: `time.monotonic()` of its last pose.
    """

    source: str
    version: int = 0
    picture_version: int = 0
    hello: Hello | None = None
    hello_version: int = 0
    state: str = ""
    changed_s: float = 0.0
    state_connection: int = 0
    frame: PoseFrame | None = None
    fps: float = 0.0
    missed: int = 0
    connection: int = 0
    posed_s: float = 0.0
    picture: PictureMessage | None = None
    beats: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=512))

    def pace(self, header: PoseHeader) -> None:
        """Take a pose into the frames a second."""
        beats = self.beats
        if beats and (header.seq <= beats[-1][1] or header.published_ns <= beats[-1][0]):
            beats.clear()
        beats.append((header.published_ns, header.seq))
        while beats[-1][0] - beats[0][0] > _WINDOW_NS and len(beats) > 2:
            beats.popleft()
        self.posed_s = time.monotonic()
        span_ns = beats[-1][0] - beats[0][0]
        self.fps = (beats[-1][1] - beats[0][1]) * 1e9 / span_ns if span_ns else 0.0

    def age(self, now_s: float) -> None:
        """Show no pace any more where poses have ceased to come."""
        if self.fps and now_s - self.posed_s > max(_WINDOW_NS / 1e9, 3 / self.fps):
            self.fps = 0.0
            self.beats.clear()
            self.version += 1


class Hub:
    """Subscribes to a publisher and keeps its cameras. A context manager; any thread may look.

    Args:
        endpoint: `tcp://HOST:PORT` of the publisher, which need not be there yet.
        key: for a publisher that wants one.

    Attributes:
        cameras: by source; to be read with `lock` held.
    """

    def __init__(self, endpoint: str, key: SubscriberKey | None = None) -> None:
        self.endpoint = endpoint
        self.lock = threading.Lock()
        self.cameras: dict[str, Camera] = {}
        self._ledger = Ledger()
        self._rejects = Rejects(endpoint)
        self._heard_s = 0.0
        self._connection = 0
        self._connected_s = 0.0
        self._looks: dict[int, frozenset[str]] = {}
        self._inlet = Inlet(endpoint, key=key, topics=_TOPICS, put=self._put, tell=self._note, connect_s=1.0)

    @property
    def malformed(self) -> int:
        """Messages that could not be read."""
        return self._rejects.count

    @property
    def is_live(self) -> bool:
        """The publisher is connected and not silent."""
        return self._inlet.connected and time.monotonic() - self._heard_s < SILENT_S

    @property
    def problem(self) -> str:
        """Why there is nothing to see, "" where all is well."""
        if self.is_live:
            return ""
        if self._inlet.failure is not None:
            return str(self._inlet.failure)
        return f"{self.endpoint} has fallen silent" if self._heard_s else f"connecting to {self.endpoint}"

    def settle(self) -> None:
        """Notice what has not come; call it with `lock` held, before the cameras are read.

        A publisher that is connected to again tells of all its cameras at once: those it does not tell of are gone.
        """
        now_s = time.monotonic()
        told = now_s - self._connected_s > SILENT_S
        for camera in self.cameras.values():
            camera.age(now_s)
            if told and camera.connection != self._connection and camera.state not in ("offline", "ended"):
                camera.state, camera.changed_s = "offline", time.time()
                camera.version += 1

    def look(self, browser: int, sources: Collection[str]) -> None:
        """Note which cameras a browser shows; pictures are asked for only of those that any of them does."""
        with self.lock:
            self._looks[browser] = frozenset(sources) & self.cameras.keys()
            if not sources:
                del self._looks[browser]
            looks = frozenset[str]().union(*self._looks.values())
        self._inlet.ask([*_TOPICS, *(f"picture.{source}".encode() for source in sorted(looks))])

    def close(self) -> None:
        """Disconnect."""
        self._inlet.close()

    def __enter__(self) -> Hub:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _note(self, inlet: Inlet) -> None:
        """Note another connection; called by the inlet's thread."""
        if self._connection != inlet.connections:
            self._connection, self._connected_s = inlet.connections, time.monotonic()

    def _put(self, parts: list[bytes]) -> None:
        """Take a message; called by the inlet's thread."""
        self._heard_s = time.monotonic()
        try:
            message = decode(parts)
        except MessageError as error:
            self._rejects.add(error)
            return
        if isinstance(message, Heartbeat):
            return
        header = message if isinstance(message, Hello | Status) else message.header
        with self.lock:
            camera = self.cameras.get(header.source)
            if camera is None:
                if len(self.cameras) >= SOURCES_LIMIT:
                    return
                camera = self.cameras[header.source] = Camera(header.source)
            camera.connection = self._connection
            if isinstance(message, PictureMessage):
                camera.picture = message
                camera.picture_version += 1
                return
            self._update(camera, message)
            camera.version += 1

    def _update(self, camera: Camera, message: PoseMessage | Hello | Status) -> None:
        if isinstance(message, Hello):
            if message != camera.hello:
                camera.hello = message
                camera.hello_version += 1
        elif isinstance(message, Status):
            seen = camera.state_connection == self._connection
            camera.state_connection = self._connection
            if message.state != camera.state:
                camera.state, camera.changed_s = message.state, time.time() if seen else 0.0
        else:
            missed = self._ledger.enter(message.header)
            if missed is None:
                return
            camera.frame = message.frame
            camera.missed += missed
            camera.pace(message.header)
