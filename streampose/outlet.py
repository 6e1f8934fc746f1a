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

from streampose.audience import TOPICS_LIMIT, Audience
from streampose.endpoint import Endpoint, to_publish_at
from streampose.errors import OutputError, StreamposeError
from streampose.gate import Gate
from streampose.messages import SCHEMA, SOURCES_LIMIT, Heartbeat, Parts
from streampose.peer import Peer, descriptor_of, peer_at
from streampose.wire import encode_heartbeat

log = logging.getLogger(__name__)

QUEUE_LIMIT = 1000
"""Messages that wait in this process, and per subscriber in its socket, before any are dropped."""
HEARTBEAT_S = 1.0
ADVICE = "publish elsewhere with --publish tcp://127.0.0.1:PORT"

_REQUEST_LIMIT = 1024
_REQUESTS, _HEAR_S = 100, 0.02
"""Requests that are carried out, and time spent on them and on what ended connections left, before frames go out."""
_HANDSHAKE_MS = 5000
_LOOK_S = 0.5
_GREET_S, _GREETINGS, _GREETED = 0.02, 10, 400
"""Time between two greetings, which all get who subscribe to the same, on average; how many may follow one another at
once; and how many messages one brings at most: fewer than a subscriber's socket holds."""
_SETTLE_MS = 1
"""How long to wait for the other subscriptions of somebody who has just come, so that all are answered in one."""
_KEPT = (b"hello", b"status", b"pose")
"""Kinds of messages of which a new subscriber gets the last one of each source, in this order."""
_BEAT = b"heartbeat"
_ROUND_BEATS = 10
"""Heartbeats in which each source's last hello and status are sent once more, in turn: nobody notices their loss."""
_COMPLAIN_S = 1.0


class Outlet:
    """Sends messages, and to each new subscriber the last hello, status and pose of the sources it asked for.

    One thread owns the socket. `send` only queues, from any thread; where the queue is full, the oldest pose or picture
    is dropped and counted. Of hello and status the newest of each source always goes out. A subscriber that does not
    keep up loses messages alone: at most `QUEUE_LIMIT` wait for it. Who sends what is no subscription, or too many,
    is cut off, and so is whose key is revoked. Others may be with it only where they join in that very instant.

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
        subscribed: set once somebody has subscribed to poses.

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
        self._audience = Audience()
        self._on_looks: Callable[[frozenset[bytes]], None] | None = None
        self._closing = False
        self._out_of_step = False
        self._greet_s = 0.0
        self._owed: deque[bytes] = deque()
        self._beats = 0
        self._complained_s = -_COMPLAIN_S
        self._unsaid = 0
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
                elif not oldest[0]:  # see `forget`
                    self._urgent[b"forget." + oldest[1]] = oldest
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
        beat_s = look_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            rests = now_s < self._greet_s
            poller.register(self._socket, 0 if rests or self._owed else zmq.POLLIN)
            until_s = min(beat_s, look_s, self._greet_s if rests else math.inf)
            ready = dict(poller.poll(math.ceil(max(0.0, until_s - now_s) * 1000)))
            if self._wake_out.fileno() in ready:
                self._wake_out.recv(4096)
            if self._gate is not None and self._gate.socket in ready:
                self._gate.answer()
            if self._socket in ready or (self._owed and not rests):
                self._greet()
            if time.monotonic() >= look_s:
                look_s = time.monotonic() + _LOOK_S
                self._look()
            if time.monotonic() >= beat_s:
                self._beat()
                self._repeat()
                beat_s = time.monotonic() + self._heartbeat_s
            closing = self._closing
            self._flush()
            if closing:
                return

    def _poller(self) -> zmq.Poller:
        poller = zmq.Poller()
        poller.register(self._wake_out, zmq.POLLIN)
        if self._gate is not None:
            poller.register(self._gate.socket, zmq.POLLIN)
        return poller

    def _look(self) -> None:
        """Cut off those whose keys have been revoked, and forget those who are gone or were ended."""
        if self._gate is not None:
            self._gate.refresh()
            for peer, connection in self._audience:
                if gone := [key for key in connection.keys if not self._gate.allows(key)]:
                    whose = "its key" if len(connection.keys) == 1 else "a key that came by its descriptor,"
                    self._cut_off(peer, f"{whose} {gone[0]} was revoked", revoked=True)
        if not self._owed and not self._socket.poll(0):  # `_take_requests` may have run out of time before that
            self._out_of_step = False
            self._audience.settle(self._port)
        self._audience.sweep()
        self._tell_looks()

    def _cut_off(self, peer: Peer, why: str, *, revoked: bool = False) -> None:
        """End a connection and say why: of a revoked key always, else at most once a second."""
        self._audience.end(peer, in_mid_request=not revoked)
        if not revoked and time.monotonic() - self._complained_s < _COMPLAIN_S:
            self._unsaid += 1
            return
        more = f" (and {self._unsaid} more since the last time this was said)" if self._unsaid else ""
        log.warning("cut off a subscriber, %s: %s%s", peer.host, why, more)
        self._complained_s, self._unsaid = time.monotonic(), 0

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

    def _repeat(self) -> None:
        """Send this heartbeat's share of the last hellos and states once more."""
        said = [parts for topic, parts in self._last.items() if topic.startswith((b"hello.", b"status."))]
        self._beats += 1
        for parts in said[self._beats % _ROUND_BEATS :: _ROUND_BEATS]:
            self._socket.send_multipart(parts)

    def _greet(self) -> None:
        """Answer the new subscriptions together with the last hellos, states and poses, and a heartbeat.

        What one greeting does not hold is owed to the next ones, before any other request is heard.
        """
        if not self._owed:
            asked = tuple(self._take_requests())
            self._tell_looks()
            if not asked:
                return
            if any(topic.startswith(b"pose.") or b"pose.".startswith(topic) for topic in asked):
                self.subscribed.set()
            for kind in _KEPT:
                self._owed += [topic for topic in self._last if topic.startswith(kind) and topic.startswith(asked)]
            if b"heartbeat".startswith(asked):
                self._owed.append(_BEAT)
        for _ in range(min(_GREETED, len(self._owed))):
            topic = self._owed.popleft()
            if topic == _BEAT:
                self._beat()
            elif topic in self._last:
                self._socket.send_multipart(self._last[topic])
        now_s = time.monotonic()
        rested_s = now_s if self._owed else max(self._greet_s, now_s - _GREETINGS * _GREET_S)
        self._greet_s = rested_s + _GREET_S

    def _take_requests(self) -> set[bytes]:
        """Carry out the subscriptions and cancels that wait; returns the topics to be answered.

        ZeroMQ applies each to the connection that it thinks the request came from. What is no request at all brings
        that out of step, until nothing waits any more: whoever sent it is cut off, and so is whose requests follow.
        """
        asked: set[bytes] = set()
        went = settled = False
        heard, until_s = 0, time.monotonic() + _HEAR_S
        while heard < _REQUESTS and time.monotonic() < until_s:
            try:
                message = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                self._out_of_step = False
                if settled or not asked:
                    self._audience.settle(self._port)
                    break
                settled = True
                self._socket.poll(_SETTLE_MS)
                continue
            request, fd = message.bytes, descriptor_of(message)
            junk = request[:1] not in (b"\x00", b"\x01")
            self._out_of_step |= junk
            if self._audience.has_ended(fd):
                continue
            heard += 1
            peer = peer_at(fd, self._port)
            if peer is None:
                went = True
            elif junk:
                self._cut_off(peer, "it sent what is no subscription")
            elif self._out_of_step:
                self._cut_off(peer, "it subscribed just after another one had sent what is no subscription")
            elif self._carry_out(request, peer, message):
                asked.add(request[1:])
        if went:
            self._audience.sweep(at_once=True)
        return asked

    def _carry_out(self, request: bytes, peer: Peer, message: zmq.Frame) -> bool:
        """Carry out one request; returns whether it is to be answered."""
        topic, wanted = request[1:], request[:1] == b"\x01"
        connection = self._audience.of(peer)
        if self._gate is not None:
            connection.keys.add(str(message.get("User-Id")))  # which `_look` compares with the list
        if not connection.count():
            self._cut_off(peer, f"it subscribes without end, or to more than {TOPICS_LIMIT} topics")
            return False
        self._socket.setsockopt(zmq.SUBSCRIBE if wanted else zmq.UNSUBSCRIBE, topic)
        if not wanted:
            connection.topics.discard(topic)
            return False
        connection.topics.add(topic)
        return connection.is_new(topic)

    def _tell_looks(self) -> None:
        looks = self._audience.looks()
        if looks != self._looks:
            self._looks = looks
            if self._on_looks is not None:
                self._on_looks(looks)
