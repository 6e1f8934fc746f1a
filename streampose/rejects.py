"""Messages that a receiver left out because they could not be read: counted, and the first one told of."""

from __future__ import annotations

import logging

from streampose.wire import MessageError

log = logging.getLogger(__name__)


class Rejects:
    """The rejects of one publisher. For one thread; any may read the count.

    Args:
        endpoint: of the publisher.

    Attributes:
        count: messages left out so far.
    """

    def __init__(self, endpoint: str) -> None:
        self.count = 0
        self._endpoint = endpoint

    def add(self, error: MessageError) -> None:
        """Count a message, for what was wrong with it."""
        self.count += 1
        if self.count == 1:
            log.warning("left out a message from %s: %s; more are only counted", self._endpoint, error)
