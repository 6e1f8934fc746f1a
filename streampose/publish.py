"""The publisher: poses out over ZeroMQ, without ever making inference wait."""

from __future__ import annotations

import math
import re
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from types import TracebackType

import zmq

from streampose.errors import OutputError, UsageError
from streampose.redact import redact
from streampose.skeleton import SKELETONS
from streampose.types import PoseFrame
from streampose.wire import (
    SCHEMA,
    Clock,
    Heartbeat,
    Hello,
    Parts,
    State,
    Status,
    encode_heartbeat,
    encode_hello,
    encode_pose,
    encode_status,
)

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555"
QUEUE_LIMIT = 1000
"""Messages that wait in this process, and per subscriber in its socket, before any are dropped."""

_LOOPBACK = re.compile(r"tcp://(127(?:\.\d{1,3}){3}|localhost|\[::1\]):(\d{1,5}|\*)")


def check_loopback(endpoint: str) -> str:
    """The endpoint as it can be bound.

    Raises:
        UsageError: it is not `tcp://HOST:PORT` with a loopback host (127.x.x.x, localhost, [::1]); PORT may be `*`.
    """
    match = _LOOPBACK.fullmatch(endpoint)
    if match is None or (match[2] != "*" and not 0 < int(match[2]) < 65536):
        raise UsageError(
            f"cannot publish at {redact(endpoint)}: this version publishes on this machine only, as tcp://127.0.0.1:PORT"
        )
    host = "127.0.0.1" if match[1] == "localhost" else match[1]
    return f"tcp://{host}:{match[2]}"


class Publisher:
    """Publishes poses, and what is needed to read them: hello, status and heartbeat (docs/protocol.md).

    One thread owns the socket. `publish` only queues, from any thread; where the queue is full, the oldest message is
    dropped and counted, and subscribers see the gap in `seq`. A subscriber that does not keep up loses messages alone.

    Args:
        endpoint: `tcp://127.0.0.1:PORT`; with `*` for PORT any free one, see `endpoint`.
        model: name of the model, for hello.
        offsets: supporting frames of the model, relative to the key frame.
        heartbeat_s: seconds between heartbeats.

    Attributes:
        endpoint: where it listens.
        run_id: names this run in every message.

    Raises:
        UsageError: the endpoint is not a loopback address.
        OutputError: the endpoint is in use, or cannot be bound for another reason.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        model: str,
        offsets: Sequence[int] = (),
        heartbeat_s: float = 1.0,
    ) -> None:
        address = check_loopback(endpoint)
        self.run_id = uuid.uuid4().hex
        self._model = model
        self._offsets = tuple(offsets)
        self._heartbeat_s = heartbeat_s
        self._lock = threading.Lock()
        self._queue: deque[Parts] = deque()
        self._dropped = 0
        self._seq: dict[str, int] = {}
        self._hellos: dict[str, Hello] = {}
        self._states: dict[str, Status] = {}
        self._closing = False
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        try:
            self._bind(address)
        except OutputError:
            self._socket.close(0)
            self._context.term()
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._thread = threading.Thread(target=self._serve, name="publish", daemon=True)
        self._thread.start()

    def _bind(self, address: str) -> None:
        self._socket.setsockopt(zmq.SNDHWM, QUEUE_LIMIT)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._socket.setsockopt(zmq.IPV6, int("[" in address))
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                raise OutputError(
                    f"{address} is in use; publish elsewhere with --publish tcp://127.0.0.1:PORT, or --no-publish"
                ) from None
            raise OutputError(f"cannot publish at {address}: {error.strerror}") from None

    @property
    def dropped(self) -> int:
        """Messages that left the full queue unsent, so far."""
        return self._dropped

    def publish(self, frame: PoseFrame, clock: Clock = "arrival") -> None:
        """Queue one frame; returns at once. The first frame of a source, or a change of its size, sends hello first."""
        with self._lock:
            known = self._hellos.get(frame.source)
            if known is None or (known.width, known.height, known.skeleton) != (
                frame.width,
                frame.height,
                frame.skeleton,
            ):
                hello = self._describe(frame)
                self._hellos[frame.source] = hello
                self._put(encode_hello(hello))
            seq = self._seq.get(frame.source, 0)
            self._seq[frame.source] = seq + 1
            self._put(encode_pose(frame, run_id=self.run_id, seq=seq, offsets=self._offsets, clock=clock))
        self._wake()

    def set_state(self, source: str, state: State) -> None:
        """Tell subscribers, present and future ones, how the source is; the same state again sends nothing."""
        with self._lock:
            status = Status(schema=SCHEMA, run_id=self.run_id, source=source, state=state)
            if self._states.get(source) == status:
                return
            self._states[source] = status
            self._put(encode_status(status))
        self._wake()

    def close(self, linger_s: float = 1.0) -> None:
        """Send what is queued, waiting at most `linger_s` for slow subscribers, and free the endpoint."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._wake()
        self._thread.join()
        self._socket.close(int(linger_s * 1000))
        self._context.term()
        self._wake_in.close()
        self._wake_out.close()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _describe(self, frame: PoseFrame) -> Hello:
        skeleton = SKELETONS[frame.skeleton]
        return Hello(
            schema=SCHEMA,
            run_id=self.run_id,
            source=frame.source,
            skeleton=skeleton.name,
            joints=skeleton.joints,
            edges=skeleton.edges,
            width=frame.width,
            height=frame.height,
            model=self._model,
            offsets=self._offsets,
        )

    def _put(self, parts: Parts) -> None:
        if len(self._queue) >= QUEUE_LIMIT:
            self._queue.popleft()
            self._dropped += 1
        self._queue.append(parts)

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"\0")
        except (BlockingIOError, OSError):
            return  # full: the thread is awake already; closed: there is no thread

    def _serve(self) -> None:
        """The thread: everything that touches the socket between bind and close."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_out, zmq.POLLIN)
        beat_at = time.monotonic()
        while True:
            wait_s = max(0.0, beat_at - time.monotonic())
            ready = dict(poller.poll(math.ceil(wait_s * 1000)))
            if self._wake_out.fileno() in ready:
                self._wake_out.recv(4096)
            if self._socket in ready:
                self._greet()
            if time.monotonic() >= beat_at:
                self._beat()
                beat_at = time.monotonic() + self._heartbeat_s
            closing = self._closing
            self._flush()
            if closing:
                return

    def _flush(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    return
                parts = self._queue.popleft()
            self._socket.send_multipart(parts)

    def _beat(self) -> None:
        beat = Heartbeat(schema=SCHEMA, run_id=self.run_id, sent_ns=time.monotonic_ns())
        self._socket.send_multipart(encode_heartbeat(beat))

    def _greet(self) -> None:
        """Answer new subscriptions with what was said before: hello, status, a heartbeat."""
        while True:
            try:
                request = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if request[:1] != b"\x01":
                continue
            with self._lock:
                said = [encode_hello(hello) for hello in self._hellos.values()]
                said += [encode_status(status) for status in self._states.values()]
            for parts in said:
                if parts[0].startswith(request[1:]):
                    self._socket.send_multipart(parts)
            if b"heartbeat".startswith(request[1:]):
                self._beat()
