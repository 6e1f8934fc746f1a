"""What both subscribers share: messages wait, are read, checked and accounted for."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from streampose.errors import NoPublisherError, SchemaError, StreamError, UsageError
from streampose.inlet import Inlet
from streampose.keys import SubscriberKey, read_key
from streampose.ledger import Ledger
from streampose.messages import SOURCES_LIMIT, Hello, PoseMessage, State, Status
from streampose.rejects import Rejects
from streampose.smoothing import Smoother, Smoothing
from streampose.types import PoseFrame
from streampose.wire import MessageError, OtherSchemaError, decode

Mode = Literal["latest", "lossless"]

QUEUE_LIMIT = 10_000
"""Messages that wait to be read in lossless mode. The socket is then left to fill up, and the publisher to drop."""
BYTES_LIMIT = 64 << 20
"""The same in bytes, in both modes."""
CONNECT_S = 0.9

_TOPICS_LIMIT = 3 * SOURCES_LIMIT


class Reception:
    """The state of a subscription. `Subscriber` and `AsyncSubscriber` say what the arguments and attributes mean."""

    def __init__(
        self,
        endpoint: str,
        mode: Mode,
        source: str | None,
        key: str | Path | SubscriberKey | None,
        connect_s: float | None,
        silent_s: float | None,
        smooth: Smoothing | None,
        wake: Callable[[], None],
    ) -> None:
        if mode not in ("latest", "lossless"):
            raise UsageError(f"mode is latest or lossless, not {mode!r}")
        self.endpoint = endpoint
        self.hellos: dict[str, Hello] = {}
        self.states: dict[str, State] = {}
        self.heard_s = 0.0
        self._latest = mode == "latest"
        self._source = source
        self._silent_s = silent_s
        self._smoother = None if smooth is None else Smoother(smooth)
        self._ledger = Ledger()
        self._rejects = Rejects(endpoint)
        self._wake_up = wake
        self._room = threading.Condition()
        self._queue: deque[list[bytes]] = deque()
        self._bytes = 0
        self._newest: dict[bytes, list[bytes]] = {}
        self._schema: SchemaError | None = None
        self._connection = 0
        self._since_s = 0.0  # the first connection
        self._understood = 0  # the last connection on which anything could be read
        self._closing = False
        suffix = "" if source is None else source
        self._inlet = Inlet(
            endpoint,
            key=read_key(Path(key)) if isinstance(key, str | Path) else key,
            topics=[*(f"{kind}.{suffix}".encode() for kind in ("hello", "status", "pose")), b"heartbeat"],
            put=self._put,
            tell=self._changed,
            connect_s=connect_s,
        )

    @property
    def connected(self) -> bool:
        """There is a connection to the publisher now."""
        return self._inlet.connected

    @property
    def reconnections(self) -> int:
        """How often the connection came back."""
        return max(0, self._inlet.connections - 1)

    @property
    def missed(self) -> dict[str, int]:
        """Messages of each source, so far, that were published after its first one came, and not handed out."""
        return dict(self._ledger.missed)

    @property
    def malformed(self) -> int:
        """Messages that could not be read, and were left out, so far."""
        return self._rejects.count

    @property
    def closed(self) -> bool:
        """No frame comes any more."""
        return self._closing

    def _take(self) -> PoseFrame | None:
        """The next frame that waits, or None.

        Raises:
            StreamError: none waits, and none will come as things are.
        """
        while True:
            with self._room:
                parts = self._pop()
            if parts is None:
                self._complain()
                return None
            frame = self._read(parts)
            if frame is not None:
                return frame

    def _pop(self) -> list[bytes] | None:
        if self._queue:
            parts = self._queue.popleft()
            self._bytes -= sum(map(len, parts))
            self._room.notify()
            return parts
        if self._newest:
            parts = self._newest.pop(next(iter(self._newest)))
            self._bytes -= sum(map(len, parts))
            return parts
        return None

    def _complain(self) -> None:
        """Raise what keeps frames from coming."""
        if self._closing:
            return
        failure: StreamError | None = self._inlet.failure or self._schema
        if failure is not None:
            raise failure
        patience_s = self._patience_s()
        if patience_s is not None and patience_s <= 0:
            raise NoPublisherError(f"{self.endpoint} has been silent for {self._silent_s:g} s")

    def _patience_s(self) -> float | None:
        """How long to wait before it is time to complain of silence; None: for ever."""
        since_s = self.heard_s or self._since_s
        if self._silent_s is None or not since_s:
            return None
        return max(0.0, since_s + self._silent_s - time.monotonic())

    def _read(self, parts: list[bytes]) -> PoseFrame | None:
        """Note what the message says; return its frame if it is one to hand out."""
        try:
            message = decode(parts)
        except MessageError as error:
            self._refuse(error)
            return None
        self._understand()
        if isinstance(message, PoseMessage):
            if self._source not in (None, message.header.source):
                return None
            missed = self._ledger.enter(message.header)
            if missed is None:
                return None
            frame = dataclasses.replace(message.frame, missed=missed)
            return frame if self._smoother is None else self._smoother.smooth(frame)
        if isinstance(message, Hello) and self._has_room(message.source, self.hellos):
            self.hellos[message.source] = message
        elif isinstance(message, Status) and self._has_room(message.source, self.states):
            self.states[message.source] = message.state
        return None

    def _has_room(self, source: str, known: dict[str, Hello] | dict[str, State]) -> bool:
        if self._source not in (None, source):
            return False
        return source in known or len(known) < SOURCES_LIMIT

    def _understand(self) -> None:
        """Something of this connection could be read, so that what cannot is damage, and no other schema."""
        self._schema, self._understood = None, self._connection

    def _refuse(self, error: MessageError) -> None:
        self._rejects.add(error)
        if isinstance(error, OtherSchemaError) and self._understood != self._connection:
            self._schema = SchemaError(f"{self.endpoint} speaks {error}")

    def _changed(self, inlet: Inlet) -> None:
        """The connection is another one, or lost, or refused; called by the inlet's thread."""
        self._connection = inlet.connections
        if inlet.connected and not self._since_s:
            self._since_s = time.monotonic()
        self._wake_up()

    def _put(self, parts: list[bytes]) -> None:
        """Keep a message for the reader; called by the inlet's thread."""
        self.heard_s = time.monotonic()
        if parts[0] == b"heartbeat":
            self._check_heartbeat(parts)
            return
        with self._room:
            if self._latest:
                self._keep_newest(parts)
            else:
                self._room.wait_for(lambda: self._closing or self._has_space())
                self._queue.append(parts)
                self._bytes += sum(map(len, parts))
        self._wake_up()

    def _keep_newest(self, parts: list[bytes]) -> None:
        """Put a message in the place of the one before it; leave it out where there are too many topics or bytes."""
        more = sum(map(len, parts)) - sum(map(len, self._newest.get(parts[0], ())))
        known = parts[0] in self._newest or len(self._newest) < _TOPICS_LIMIT
        if known and self._bytes + more <= BYTES_LIMIT:
            self._newest[parts[0]] = parts
            self._bytes += more

    def _has_space(self) -> bool:
        return len(self._queue) < QUEUE_LIMIT and self._bytes < BYTES_LIMIT

    def _check_heartbeat(self, parts: list[bytes]) -> None:
        """A heartbeat of another schema, where nothing of ours was read, ends the hope for poses."""
        try:
            decode(parts)
        except MessageError as error:
            self._refuse(error)
            self._wake_up()
        else:
            self._understand()

    def _end(self) -> None:
        """Disconnect; the inlet's thread has ended then."""
        with self._room:
            self._closing = True
            self._room.notify_all()
        self._wake_up()
        self._inlet.close()
