"""The sending end of a stream: one XPUB socket in one thread, which greets, beats and never makes anybody wait."""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import zmq

from streampose.endpoint import Endpoint, to_publish_at
from streampose.errors import OutputError, StreamposeError
from streampose.gate import Gate
from streampose.messages import SCHEMA, SOURCES_LIMIT, Heartbeat, Parts
from streampose.peer import Peer, peer_of
from streampose.wire import encode_heartbeat

log = logging.getLogger(__name__)

QUEUE_LIMIT = 1000
"""Messages that wait in this process, and per subscriber in its socket, before any are dropped."""
HEARTBEAT_S = 1.0
ADVICE = "publish elsewhere with --publish tcp://127.0.0.1:PORT"

_REQUEST_LIMIT = 1024
_REQUESTS = 1000
_HANDSHAKE_MS = 5000
_LOOK_S = 0.5
_REBIND_S = 5.0
_KEPT = (b"hello", b"status", b"pose")
"""Kinds of messages of which a new subscriber gets the last one of each source, in this order."""


class Outlet:
    """Sends messages, and to each new subscriber the last hello, status and pose of the sources it asked for.

    One thread owns the socket. `send` only queues, from any thread; where the queue is full, the oldest pose or picture
    is dropped and counted. Of hello and status the newest of each source always goes out. A subscriber that does not
    keep up loses messages alone: at most `QUEUE_LIMIT` wait for it.

    Args:
        endpoint: `tcp://HOST:PORT`; with `*` for PORT any free one, see `endpoint`.
        keys: folder of keys: only those on its allow list may subscribe, and all is encrypted.
        insecure: allow an endpoint that other machines reach without keys.
        heartbeat_s: seconds between heartbeats.
        on_crash: is told, by the sending thread, when that ends in an error.
        advice: what to do where the endpoint is in use.

    Attributes:
        endpoint: where it listens.
        run_id: another one each time.
        subscribed: set once somebody has subscribed to something.

    Raises:
        UsageError: the endpoint is none, or needs keys; there are no keys in the folder.
        OutputError: the endpoint is in use, or cannot be bound for another reason.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        keys: Path | None = None,
        insecure: bool = False,
        heartbeat_s: float = HEARTBEAT_S,
        on_crash: Callable[[StreamposeError], None] | None = None,
        advice: str = ADVICE,
    ) -> None:
        where = to_publish_at(endpoint, keys is not None, insecure)
        self.run_id = uuid.uuid4().hex
        self.subscribed = threading.Event()
        self._heartbeat_s = heartbeat_s
        self._on_crash = on_crash
        self._advice = advice
        self._lock = threading.Lock()
        self._queue: deque[Parts] = deque()
        self._urgent: dict[bytes, Parts] = {}
        self._last: dict[bytes, Parts] = {}
        self._dropped = 0
        self._looks: frozenset[bytes] = frozenset()
        self._lookers: dict[bytes, set[Peer]] = {}
        self._on_looks: Callable[[frozenset[bytes]], None] | None = None
        self._closing = False
        self._stray = False
        self._unbound = False
        self._context = zmq.Context()
        self._gate: Gate | None = None
        try:
            self._gate = None if keys is None else Gate(keys, self._context)
            self._socket = self._bind(where)
        except BaseException:
            self._context.destroy(0)
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._port = int(self.endpoint.rpartition(":")[2])
        if keys is None and not where.is_loopback:
            log.warning("%s is open: whoever reaches it can read the stream, unencrypted", self.endpoint)
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)
        self._thread.start()

    def _bind(self, where: Endpoint | str) -> zmq.Socket[bytes]:
        bound = self._context.socket(zmq.XPUB)
        bound.setsockopt(zmq.SNDHWM, QUEUE_LIMIT)
        bound.setsockopt(zmq.XPUB_MANUAL, 1)  # nobody gets anything before `_greet` has seen the subscription
        bound.setsockopt(zmq.MAXMSGSIZE, _REQUEST_LIMIT)
        bound.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        bound.setsockopt(zmq.IPV6, int("[" in str(where)))
        if self._gate is not None:
            self._gate.guard(bound)
        try:
            bound.bind(str(where))
        except zmq.ZMQError as error:
            bound.close(0)
            if error.errno == zmq.EADDRINUSE:
                raise OutputError(f"{where} is in use; {self._advice}") from None
            raise OutputError(f"cannot publish at {where}: {error.strerror}") from None
        return bound

    @property
    def dropped(self) -> int:
        """Messages that left the full queue unsent, so far."""
        return self._dropped

    @property
    def looks(self) -> frozenset[bytes]:
        """Beginnings of `picture.` topics that somebody has subscribed to by name."""
        return self._looks

    def watch_looks(self, tell: Callable[[frozenset[bytes]], None]) -> None:
        """Have `tell` called, by the sending thread, with `looks` whenever they change."""
        self._on_looks = tell

    def looks_at(self, source: str) -> bool:
        """Whether somebody has subscribed to the pictures of a source."""
        topic = f"picture.{source}".encode()
        return any(topic.startswith(look) for look in self._looks)

    def send(self, parts: Parts) -> None:
        """Queue one message; returns at once."""
        with self._lock:
            if len(self._queue) >= QUEUE_LIMIT:
                oldest = self._queue.popleft()
                if oldest[0].startswith((b"hello.", b"status.")):
                    self._urgent[oldest[0]] = oldest
                else:
                    self._dropped += 1
            self._queue.append(parts)
        self._wake()

    def forget(self, source: str) -> None:
        """Greet nobody with a source any more, once what is queued of it so far has been sent; returns at once."""
        self.send((b"", source.encode(), b""))

    def close(self, linger_s: float = 1.0) -> None:
        """Send what is queued, waiting at most `linger_s` for slow subscribers, and free the endpoint."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._wake()
        self._thread.join()
        self._socket.close(int(linger_s * 1000))
        if self._gate is not None:
            self._gate.close()
        self._context.term()
        self._wake_in.close()
        self._wake_out.close()

    def __enter__(self) -> Outlet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"\0")
        except (BlockingIOError, OSError):
            return  # full: the thread is awake already; closed: there is no thread

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            if self._on_crash is None:
                raise
            failure = OutputError(f"publishing at {self.endpoint} crashed with {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._on_crash(failure)

    def _serve(self) -> None:
        """The thread: everything that touches the sockets between bind and close."""
        poller = self._poller()
        beat_at = look_at = time.monotonic()
        while True:
            wait_s = max(0.0, min(beat_at, look_at) - time.monotonic())
            ready = dict(poller.poll(math.ceil(wait_s * 1000)))
            if self._wake_out.fileno() in ready:
                self._wake_out.recv(4096)
            if self._gate is not None and self._gate.socket in ready:
                self._gate.answer()
            if self._socket in ready:
                self._greet()
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + _LOOK_S
                if why := self._why_anew():
                    self._begin_anew(why)
                    poller = self._poller()
            if time.monotonic() >= beat_at:
                self._beat()
                beat_at = time.monotonic() + self._heartbeat_s
            closing = self._closing
            self._flush()
            if closing:
                return

    def _poller(self) -> zmq.Poller:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_out, zmq.POLLIN)
        if self._gate is not None:
            poller.register(self._gate.socket, zmq.POLLIN)
        return poller

    def _why_anew(self) -> str:
        """Why all connections have to end, "" where they need not."""
        if self._gate is not None and self._gate.has_revoked():
            return "a key was revoked"
        if self._stray:
            return "somebody sent what is no subscription, after which ZeroMQ cannot tell whose the next ones are"
        return "the endpoint is free again" if self._unbound else ""

    def _begin_anew(self, why: str) -> None:
        """End all connections, since ZeroMQ can end no single one; those still allowed come back by themselves."""
        self._socket.close(0)
        self._stray = False
        self._lookers.clear()
        self._set_looks(frozenset())
        until = time.monotonic() + (0 if self._unbound else _REBIND_S)  # the old socket goes in its own time
        while True:
            try:
                self._socket = self._bind(self.endpoint)
            except OutputError as error:
                if time.monotonic() < until:
                    threading.Event().wait(0.005)
                    continue
                if not self._unbound:
                    log.error("%s: %s; nothing is published until that is possible again", why, error)
                self._socket = self._context.socket(zmq.XPUB)
                self._unbound = True
            else:
                log.info("%s: all subscribers have to connect again", why)
                self._unbound = False
            return

    def _flush(self) -> None:
        while True:
            with self._lock:
                if self._urgent:
                    parts = self._urgent.pop(next(iter(self._urgent)))
                elif self._queue:
                    parts = self._queue.popleft()
                else:
                    return
            if not parts[0]:  # see `forget`
                self._last = {topic: last for topic, last in self._last.items() if topic.partition(b".")[2] != parts[1]}
                continue
            known = parts[0] in self._last or len(self._last) < len(_KEPT) * SOURCES_LIMIT
            if known and not parts[0].startswith(b"picture."):
                self._last[parts[0]] = parts
            self._socket.send_multipart(parts)

    def _beat(self) -> None:
        beat = Heartbeat(schema=SCHEMA, run_id=self.run_id, sent_ns=time.monotonic_ns())
        self._socket.send_multipart(encode_heartbeat(beat))

    def _greet(self) -> None:
        """Answer all new subscriptions at once with the last hellos, states and poses, and a heartbeat."""
        asked = set()
        for _ in range(_REQUESTS):
            try:
                message = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            request, peer = message.bytes, peer_of(message, self._port)
            topic, wanted = request[1:], request[:1] == b"\x01"
            if request[:1] not in (b"\x00", b"\x01"):
                self._stray = True
                continue
            self._socket.setsockopt(zmq.SUBSCRIBE if wanted else zmq.UNSUBSCRIBE, topic)
            if topic.startswith(b"picture."):
                self._note_look(topic, peer, wanted)
            if wanted:
                asked.add(topic)
        self._set_looks(frozenset(self._lookers))
        if not asked:
            return
        self.subscribed.set()
        beginnings = tuple(asked)
        for kind in _KEPT:
            for topic, parts in self._last.items():
                if topic.startswith(kind) and topic.startswith(beginnings):
                    self._socket.send_multipart(parts)
        if b"heartbeat".startswith(beginnings):
            self._beat()

    def _note_look(self, topic: bytes, peer: Peer | None, wanted: bool) -> None:
        """Keep whom pictures are for. A connection may ask twice and cancel once, or go without a word of its own."""
        known = self._lookers.get(topic, set())
        if wanted and peer is not None and (known or len(self._lookers) < SOURCES_LIMIT):
            known.add(peer)
        elif not wanted and peer is not None:
            known.discard(peer)
        else:
            known = {looker for looker in known if looker.is_connected}
        if known:
            self._lookers[topic] = known
        else:
            self._lookers.pop(topic, None)

    def _set_looks(self, looks: frozenset[bytes]) -> None:
        if looks != self._looks:
            self._looks = looks
            if self._on_looks is not None:
                self._on_looks(looks)
