"""The receiving end of a stream: one XSUB socket in one thread, which says why nothing comes where nothing comes."""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType

import zmq
from zmq.utils.monitor import recv_monitor_message

from streampose.endpoint import Endpoint, to_connect_to
from streampose.errors import EncryptionError, KeyRefusedError, NoPublisherError, StreamError, UsageError
from streampose.greeting import read_mechanism
from streampose.keys import SubscriberKey
from streampose.messages import PART_LIMIT

log = logging.getLogger(__name__)

QUEUE_LIMIT = 10_000
"""Messages that wait in the socket before the publisher, in its turn, has to wait and then to drop."""

SILENT_S = 3.0
"""A publisher that was silent for so long is gone: it sends a heartbeat every second."""

_RECONNECT_MS = 100
_CONNECT_MS = 2000
_PING_MS = 1000
_PONG_MS = 3000
_TRY_AGAIN_S = 1.0
_PROBE_S = 0.3
_TICK_MS = 100
_BATCH = 500
_DOUBTS = 5
"""Handshakes that may break off, once there was a connection, before the publisher's key is taken to be another one:
they also do while a publisher begins anew."""
_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)  # fmt: skip


class Inlet:
    """Receives messages and hands each to `put`, from a thread of its own; connects and reconnects by itself.

    A connection that is refused for good (keys, encryption) is tried again every second all the same, since allow lists
    and publishers change; `failure` says what is wrong meanwhile.

    Args:
        endpoint: `tcp://HOST:PORT` of the publisher, which need not be there yet.
        key: for a publisher that wants one.
        topics: beginnings of the topics to receive.
        put: gets the parts of each message, unchecked; while it blocks, nothing is received. It may be called before
            the constructor has returned.
        tell: gets this inlet whenever `connected` or `failure` changes; as early as `put`.
        connect_s: after so many seconds without a first connection, or without any message on it where heartbeats are
            asked for, `failure` becomes a NoPublisherError; None: never.

    Attributes:
        endpoint: as given.
        connected: there is a connection now, and messages may come.
        connections: how many there were so far; all but the first are reconnections.
        failure: why there is none, or none with a publisher, once that is known.

    Raises:
        UsageError: the endpoint is none.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        key: SubscriberKey | None,
        topics: Iterable[bytes],
        put: Callable[[list[bytes]], None],
        tell: Callable[[Inlet], None] | None = None,
        connect_s: float | None = None,
    ) -> None:
        self._where = to_connect_to(endpoint)
        self.endpoint = endpoint
        self.connected = False
        self.connections = 0
        self.failure: StreamError | None = None
        self._key = key
        self._put = put
        self._on_change = tell
        self._connect_s = connect_s
        self._until_s = None if connect_s is None else time.monotonic() + connect_s
        self._answer_until_s: float | None = None  # a publisher answers a new subscription with a heartbeat
        self._heard = False
        self._lock = threading.Lock()
        self._asked = {bytes(topic) for topic in topics}
        self._requests: deque[bytes] = deque(b"\x01" + topic for topic in sorted(self._asked))
        self._refusals = 0
        self._again_at: float | None = None
        self._closing = False
        self._faulty = False
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XSUB)
        self._monitor = self._open()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._thread = threading.Thread(target=self._drain, name="subscribe", daemon=True)
        self._thread.start()

    def _open(self) -> zmq.Socket[bytes]:
        opened = self._socket
        opened.setsockopt(zmq.LINGER, 0)
        opened.setsockopt(zmq.RCVHWM, QUEUE_LIMIT)
        opened.setsockopt(zmq.MAXMSGSIZE, PART_LIMIT)
        opened.setsockopt(zmq.IPV6, int(self._where.is_ipv6))
        opened.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        opened.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_MS)
        opened.setsockopt(zmq.HEARTBEAT_IVL, _PING_MS)
        opened.setsockopt(zmq.HEARTBEAT_TIMEOUT, _PONG_MS)
        if self._key is not None:
            opened.setsockopt(zmq.CURVE_SERVERKEY, self._key.publisher.encode())
            opened.setsockopt(zmq.CURVE_PUBLICKEY, self._key.pair.public.encode())
            opened.setsockopt(zmq.CURVE_SECRETKEY, self._key.pair.secret.encode())
        monitor = opened.get_monitor_socket()
        try:
            opened.connect(str(self._where))
        except zmq.ZMQError as error:
            self._context.destroy(0)
            raise UsageError(f"cannot connect to {self.endpoint}: {error.strerror}") from None
        return monitor

    def ask(self, topics: Iterable[bytes]) -> None:
        """Receive exactly these beginnings of topics from now on; from any thread."""
        wanted = set(topics)
        with self._lock:
            self._requests.extend(b"\x01" + topic for topic in sorted(wanted - self._asked))
            self._requests.extend(b"\x00" + topic for topic in sorted(self._asked - wanted))
            self._asked = wanted
        self._wake()

    def close(self) -> None:
        """Disconnect and end the thread; `put` must return for that."""
        if self._closing:
            return
        self._closing = True
        self._wake()
        self._thread.join()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._context.term()
        self._wake_in.close()
        self._wake_out.close()

    def __enter__(self) -> Inlet:
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

    def _drain(self) -> None:
        """The thread: everything that touches the sockets between connect and close."""
        poller = zmq.Poller()
        for each in (self._socket, self._monitor, self._wake_out):
            poller.register(each, zmq.POLLIN)
        while not self._closing:
            ready = dict(poller.poll(self._patience_ms()))
            if self._wake_out.fileno() in ready:
                self._wake_out.recv(4096)
            while self._requests:
                self._socket.send(self._requests.popleft())
            self._follow_all()
            if self._socket in ready:
                self._receive()
            self._look_at_the_clock()

    def _patience_ms(self) -> int | None:
        """How long to wait for something to happen."""
        if self.connected:
            return None if self._answer_until_s is None else _TICK_MS
        if self._until_s is None or self.failure is not None:
            return _TICK_MS
        return max(0, min(_TICK_MS, math.ceil(1e3 * (self._until_s - _PROBE_S - time.monotonic()))))

    def _receive(self) -> None:
        """Hand over what is there, but look up now and then."""
        for _ in range(_BATCH):
            if self._closing:
                return
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if not self._heard:
                self._greet()
            try:
                self._put(parts)
            except Exception:  # a fault of ours: one message is lost by it, but not all that follow
                if not self._faulty:
                    log.exception("a message from %s could not be taken; more are left out in silence", self.endpoint)
                self._faulty = True

    def _greet(self) -> None:
        """The first message of all is here: this is a publisher."""
        self._heard, self._answer_until_s = True, None
        if self.failure is not None:
            self.failure = None
            self._tell()

    def _follow_all(self) -> None:
        while self._monitor.poll(0):
            self._follow(recv_monitor_message(self._monitor)["event"])

    def _follow(self, kind: int) -> None:
        """Keep up with what happens to the connection."""
        if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.connected, self.failure = True, None
            self.connections += 1
            self._until_s, self._again_at, self._refusals = None, None, 0
            if self._connect_s is not None and not self._heard and b"heartbeat" in self._asked:
                self._answer_until_s = time.monotonic() + self._connect_s
            self._tell()
        elif kind == zmq.EVENT_DISCONNECTED and self.connected:
            self.connected, self._answer_until_s = False, None
            self._tell()
        elif kind & _FAILED:
            self._refusals += 1
            known = isinstance(self.failure, KeyRefusedError | EncryptionError)
            failure = None if known else self._why_refused(kind)
            if failure is not None:
                self._fail(failure)
            if kind != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and self._again_at is None:
                self._again_at = time.monotonic() + _TRY_AGAIN_S  # after these ZeroMQ gives up

    def _why_refused(self, kind: int) -> StreamError | None:
        """What a failed handshake means; None where that cannot be told yet."""
        if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            name = self._key.name if self._key is not None else "none"
            return KeyRefusedError(f"{self.endpoint} does not let the key {name!r} in; ask who runs it to allow it")
        if self._key is None:
            if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL or read_mechanism(self._where, _PROBE_S) == "CURVE":
                return EncryptionError(f"{self.endpoint} lets in only those with a key; name your key file with --key")
            return None
        mechanism = read_mechanism(self._where, _PROBE_S)
        if mechanism == "NULL":
            return EncryptionError(
                f"{self.endpoint} offers no encryption, but there is a key for it ({self._key.name!r}); "
                "it is another publisher, or runs without --keys"
            )
        if mechanism == "CURVE" and self._refusals > (_DOUBTS if self.connections else 1):
            return KeyRefusedError(
                f"{self.endpoint} is not the publisher that the key {self._key.name!r} is for, or has got new keys"
            )
        return None

    def _look_at_the_clock(self) -> None:
        now_s = time.monotonic()
        if self._again_at is not None and now_s >= self._again_at:
            self._again_at = None
            self._socket.disconnect(str(self._where))
            self._socket.connect(str(self._where))
        if self._until_s is not None and now_s >= self._until_s - _PROBE_S and self.failure is None:
            why = explain(self._where)
            self._follow_all()
            if not self.connected and self.failure is None:
                self._fail(NoPublisherError(f"nobody publishes at {self.endpoint}: {why}"))
            self._until_s = None
        if self._answer_until_s is not None and now_s >= self._answer_until_s and not self._socket.poll(0):
            self._answer_until_s = None
            what = "something that is no streampose publisher answers there"
            self._fail(NoPublisherError(f"nobody publishes at {self.endpoint}: {what}"))

    def _tell(self) -> None:
        if self._on_change is not None:
            self._on_change(self)

    def _fail(self, failure: StreamError) -> None:
        if str(failure) != str(self.failure):
            self.failure = failure
            self._tell()


def explain(where: Endpoint) -> str:
    """Why there is no connection to an endpoint; takes a third of a second at most, and the resolver's time."""
    try:
        mechanism = read_mechanism(where, _PROBE_S, strict=True)
    except TimeoutError:
        return "it does not answer"
    except socket.gaierror:
        return "there is no such host"
    except OSError as error:
        return (error.strerror or type(error).__name__).lower()
    return "something else answers there" if mechanism is None else "it answers too slowly, or is no publisher"
