"""Who is connected to a stream, and what each has asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice

from streampose.messages import SOURCES_LIMIT
from streampose.peer import Peer

TOPICS_LIMIT = 4 * SOURCES_LIMIT
"""Topics that one connection may subscribe to."""
_AGAIN_S = 1.0
_SWEEP_S = 5.0


class Connection:
    """One subscriber's connection.

    Attributes:
        key: the public key that it came with, in Z85; "" without encryption.
        topics: what it is subscribed to.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.topics: set[bytes] = set()
        self._answered: set[bytes] = set()
        self._since_s = 0.0

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

    @property
    def asks_too_much(self) -> bool:
        """Whether it is over `TOPICS_LIMIT`, at once or within a second."""
        return max(len(self.topics), len(self._answered)) > TOPICS_LIMIT


class Audience:
    """The connections that have subscribed to anything. All of it belongs to one thread."""

    def __init__(self) -> None:
        self._connections: dict[Peer, Connection] = {}
        self._swept_s = time.monotonic()

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[tuple[Peer, Connection]]:
        return iter(list(self._connections.items()))

    def of(self, peer: Peer, key: str) -> Connection:
        """The connection of a peer, which may be a new one."""
        return self._connections.setdefault(peer, Connection(key))

    def let_go(self, peer: Peer) -> None:
        """Forget a connection."""
        self._connections.pop(peer, None)

    def sweep(self, at_once: bool = False) -> None:
        """Forget the connections that have gone without a word; now and then, or at once."""
        if at_once or time.monotonic() - self._swept_s >= _SWEEP_S:
            self._connections = {peer: known for peer, known in self if peer.is_connected}
            self._swept_s = time.monotonic()

    def looks(self) -> frozenset[bytes]:
        """Beginnings of `picture.` topics that somebody has subscribed to by name."""
        every = (topic for known in self._connections.values() for topic in known.topics)
        return frozenset(islice((topic for topic in every if topic.startswith(b"picture.")), SOURCES_LIMIT))
