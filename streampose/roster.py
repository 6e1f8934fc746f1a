"""Which sources a publisher has, for whoever waits for one that it may never have."""

from __future__ import annotations

import logging
import threading
import time

from streampose.inlet import Inlet
from streampose.keys import SubscriberKey
from streampose.messages import SOURCES_LIMIT, Heartbeat, Hello, Status
from streampose.wire import MessageError, decode

log = logging.getLogger(__name__)

_PATIENCE_S = 1.0
_ANSWER_S = 5.0
_LOOK_S = 0.02
_SHOWN = 20


def list_sources(endpoint: str, key: SubscriberKey | None, stop: threading.Event) -> list[str] | None:
    """The sources that a publisher tells a new subscriber of; None where it has not done so within some seconds, or
    before `stop` was set."""
    sources: set[str] = set()
    answered = threading.Event()

    def put(parts: list[bytes]) -> None:
        try:
            message = decode(parts)
        except MessageError:
            return  # whoever receives its frames tells of it
        if isinstance(message, Heartbeat):
            answered.set()
        elif isinstance(message, Hello | Status) and len(sources) < SOURCES_LIMIT:
            sources.add(message.source)

    topics = (b"hello.", b"status.")
    until_s = time.monotonic() + _ANSWER_S
    with Inlet(endpoint, key=key, topics=topics, put=put) as inlet:
        while not answered.wait(_LOOK_S) and not stop.is_set() and time.monotonic() < until_s:
            if inlet.connected:
                inlet.ask((*topics, b"heartbeat"))  # asked for last, it is sent last
    return sorted(sources) if answered.is_set() else None


class Search:
    """Says once which sources a publisher has, where the one that is waited for is not among them.

    Args:
        endpoint: of the publisher.
        source: what is waited for; None: whatever comes.
        key: for a publisher that wants one.
        stop: set it to end.
    """

    def __init__(self, endpoint: str, source: str | None, key: SubscriberKey | None, stop: threading.Event) -> None:
        self._endpoint = endpoint
        self._source = source
        self._key = key
        self._stop = stop
        self._since_s: float | None = None
        self._done = source is None

    def look(self, *, connected: bool, found: bool) -> None:
        """Notice how it is now; once in its life it asks the publisher, and waits for its answer.

        Args:
            connected: with a publisher.
            found: something of the source has come.
        """
        self._done = self._done or found
        if self._done or not connected:
            self._since_s = None
            return
        self._since_s = self._since_s or time.monotonic()
        if time.monotonic() - self._since_s > _PATIENCE_S:
            sources = list_sources(self._endpoint, self._key, self._stop)
            if sources is None:
                self._since_s = None
            else:
                self._done = True
                self._tell(sources)

    def _tell(self, sources: list[str]) -> None:
        if self._source in sources:
            return
        more = f" and {len(sources) - _SHOWN} more" if len(sources) > _SHOWN else ""
        others = f", but {', '.join(sources[:_SHOWN])}{more}" if sources else " and no other"
        log.warning("%s has no source %r%s; waiting for it", self._endpoint, self._source, others)
