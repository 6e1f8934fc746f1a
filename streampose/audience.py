"""Who is connected to a stream, and what each has asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice

from streampose.messages import SOURCES_LIMIT
from streampose.peer import Peer, peer_at

TOPICS_LIMIT = 4 * SOURCES_LIMIT
"""Topics that one connection may subscribe to."""
_REQUESTS_A_SECOND = 500
"""That one connection may make in the long run, after `TOPICS_LIMIT` at once."""
_AGAIN_S = 1.0
_SWEEP_S = 5.0


class Connection:
    """One subscriber's connection.

    Attributes:
        keys: public keys that it came with, in Z85; none without encryption. More than one where a connection that
            ended in between had the same descriptor: which is which cannot be told any more.
        topics: what it is subscribed to.
    """

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.topics: set[bytes] = set()
        self._allowance = float(TOPICS_LIMIT)
        self._asked_s = self._since_s = time.monotonic()
        self._answered: set[bytes] = set()

    def count(self) -> bool:
        """Count one request; False where it makes too many, or has too many topics."""
        now_s = time.monotonic()
        earned = (now_s - self._asked_s) * _REQUESTS_A_SECOND
        self._asked_s = now_s
        self._allowance = min(float(TOPICS_LIMIT), self._allowance + earned) - 1
        return self._allowance >= 0 and len(self.topics) <= TOPICS_LIMIT

    def is_new(self, topic: bytes) -> bool:
        """Whether it has not asked for this within the last second; notes that it does now."""
        now_s = time.monotonic()
        if now_s - self._since_s >= _AGAIN_S:
            self._answered.clear()
            self._since_s = now_s
        if topic in self._answered:
            return False
        self._answered.add(topic)
        return True


class Audience:
    """The connections that have subscribed to anything. All of it belongs to one thread."""

    def __init__(self) -> None:
        self._connections: dict[Peer, Connection] = {}
        self._ended: dict[int, Peer] = {}
        self._swept_s = time.monotonic()

    def __iter__(self) -> Iterator[tuple[Peer, Connection]]:
        return iter(list(self._connections.items()))

    def of(self, peer: Peer) -> Connection:
        """The connection of a peer, which may be a new one."""
        return self._connections.setdefault(peer, Connection())

    def has_ended(self, fd: int | None) -> bool:
        """Whether requests by this descriptor say nothing, for the connection that had it was ended from here.

        A newcomer may have the descriptor by now, and its requests cannot be told from what is left of the ended one's.
        """
        return fd in self._ended

    def end(self, peer: Peer, *, in_mid_request: bool) -> None:
        """End a connection; `in_mid_request`: more of its requests may wait, which say nothing any more."""
        peer.disconnect()
        self._connections.pop(peer, None)
        if in_mid_request:
            self._ended[peer.fd] = peer

    def settle(self, port: int) -> None:
        """Nothing of those who were ended is left to be heard: newcomers that were not heard either begin again."""
        for fd, peer in self._ended.items():
            newcomer = peer_at(fd, port)
            if newcomer not in (None, peer):
                newcomer.disconnect()
        self._ended.clear()

    def sweep(self, at_once: bool = False) -> None:
        """Forget the connections that have gone without a word; now and then, or at once."""
        if at_once or time.monotonic() - self._swept_s >= _SWEEP_S:
            self._connections = {peer: known for peer, known in self if peer.is_connected}
            self._swept_s = time.monotonic()

    def looks(self) -> frozenset[bytes]:
        """Beginnings of `picture.` topics that somebody has subscribed to by name."""
        every = (topic for known in self._connections.values() for topic in known.topics)
        return frozenset(islice((topic for topic in every if topic.startswith(b"picture.")), SOURCES_LIMIT))
