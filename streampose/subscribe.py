"""The subscriber: poses in from ZeroMQ, the newest ones or all of them, with what was missed counted."""

from __future__ import annotations

import dataclasses
import logging
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Literal

import zmq

from streampose.errors import UsageError
from streampose.redact import redact
from streampose.types import PoseFrame
from streampose.wire import HEADER_LIMIT, Hello, MessageError, PoseMessage, State, Status, decode

log = logging.getLogger(__name__)

Mode = Literal["latest", "lossless"]

QUEUE_LIMIT = 10_000
"""Messages (in latest mode: topics) that wait to be read. In lossless mode the socket is then left to fill up, and the
publisher to drop."""

_ENDPOINT = re.compile(r"tcp://[^@/\s]+:\d{1,5}")


class Subscriber:
    """Iterates over the poses of a publisher, for ever; connects and reconnects by itself.

    A thread drains the socket. In "latest" mode a slow reader gets the newest frame of each source, and the frames in
    between are counted in `missed`; in "lossless" mode it gets every message that the publisher could deliver.
    `missed` of a frame counts the messages of its source since the frame before that were not handed out, by `seq`;
    it starts again at 0 with a new run of the publisher. A message that cannot be read is skipped, counted and logged.

    Args:
        endpoint: `tcp://HOST:PORT` of the publisher, which need not be there yet.
        mode: "latest" or "lossless".
        source: hand out the frames of this source only.

    Attributes:
        hellos: what each source has said of itself (skeleton, frame size, model), by source.
        states: the last state of each source.
        malformed: messages skipped because they could not be read.
        heard_s: `time.monotonic()` of the last message of any kind; 0 before the first.

    Raises:
        UsageError: the endpoint or the mode is not one.
    """

    def __init__(self, endpoint: str, mode: Mode = "latest", source: str | None = None) -> None:
        if _ENDPOINT.fullmatch(endpoint) is None:
            raise UsageError(f"cannot connect to {redact(endpoint)}: an endpoint is tcp://HOST:PORT")
        if mode not in ("latest", "lossless"):
            raise UsageError(f"mode is latest or lossless, not {mode!r}")
        self.endpoint = endpoint
        self.hellos: dict[str, Hello] = {}
        self.states: dict[str, State] = {}
        self.malformed = 0
        self.heard_s = 0.0
        self._latest = mode == "latest"
        self._source = source
        self._last: dict[str, tuple[str, int]] = {}
        self._changed = threading.Condition()
        self._queue: deque[list[bytes]] = deque()
        self._newest: dict[bytes, list[bytes]] = {}
        self._closing = False
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._connect()
        self._wake_in, self._wake_out = socket.socketpair()
        self._thread = threading.Thread(target=self._drain, name="subscribe", daemon=True)
        self._thread.start()

    def _connect(self) -> None:
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, QUEUE_LIMIT)
        self._socket.setsockopt(zmq.MAXMSGSIZE, HEADER_LIMIT)
        self._socket.setsockopt(zmq.IPV6, int("[" in self.endpoint))
        suffix = "" if self._source is None else self._source
        for kind in ("hello", "status", "pose"):
            self._socket.setsockopt_string(zmq.SUBSCRIBE, f"{kind}.{suffix}")
        self._socket.setsockopt(zmq.SUBSCRIBE, b"heartbeat")
        try:
            self._socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            self._socket.close(0)
            self._context.term()
            raise UsageError(f"cannot connect to {self.endpoint}: {error.strerror}") from None

    def receive(self, timeout_s: float | None = None) -> PoseFrame | None:
        """The next frame, or None when none came within `timeout_s` seconds (None: wait for ever), or when closed."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self._changed:
                while (parts := self._take()) is None:
                    if self._closing:
                        return None
                    left = None if until is None else until - time.monotonic()
                    if left is not None and left <= 0:
                        return None
                    self._changed.wait(left)
            frame = self._read(parts)
            if frame is not None:
                return frame

    def __iter__(self) -> Iterator[PoseFrame]:
        while (frame := self.receive()) is not None:
            yield frame

    def close(self) -> None:
        """Disconnect; a waiting `receive` returns None."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._wake_in.send(b"\0")
        self._thread.join()
        self._socket.close(0)
        self._context.term()
        self._wake_in.close()
        self._wake_out.close()

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self) -> list[bytes] | None:
        """The next message to read; the lock is held."""
        if self._queue:
            self._changed.notify_all()
            return self._queue.popleft()
        if self._newest:
            topic = next(iter(self._newest))
            return self._newest.pop(topic)
        return None

    def _read(self, parts: list[bytes]) -> PoseFrame | None:
        """Note what the message says; return its frame if it is one to hand out."""
        try:
            message = decode(parts)
        except MessageError as error:
            self.malformed += 1
            if self.malformed == 1:
                log.warning("skipped a message from %s: %s; more are only counted", self.endpoint, error)
            return None
        if isinstance(message, Hello):
            self.hellos[message.source] = message
        elif isinstance(message, Status):
            self.states[message.source] = message.state
        elif isinstance(message, PoseMessage) and self._source in (None, message.header.source):
            return self._count(message)
        return None

    def _count(self, message: PoseMessage) -> PoseFrame:
        """The frame with `missed` filled in."""
        header = message.header
        run_id, seq = self._last.get(header.source, (header.run_id, header.seq - 1))
        self._last[header.source] = header.run_id, header.seq
        missed = header.seq - seq - 1 if run_id == header.run_id else 0
        return dataclasses.replace(message.frame, missed=max(0, missed))

    def _drain(self) -> None:
        """The thread: everything that touches the socket between connect and close."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_out, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._closing:
                return
            if self._socket not in ready:
                continue
            parts = self._socket.recv_multipart()
            with self._changed:
                self.heard_s = time.monotonic()
                if parts[0] == b"heartbeat":
                    continue
                if self._latest:
                    if parts[0] in self._newest or len(self._newest) < QUEUE_LIMIT:
                        self._newest[parts[0]] = parts
                else:
                    self._changed.wait_for(lambda: len(self._queue) < QUEUE_LIMIT or self._closing)
                    self._queue.append(parts)
                self._changed.notify_all()
