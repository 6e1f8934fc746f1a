"""What a receiver has got of each source, and what it has not: gaps and repetitions by `seq`."""

from __future__ import annotations

from streampose.messages import SOURCES_LIMIT, Hello, PoseHeader, Status


class Ledger:
    """Counts per source.

    Attributes:
        received: poses of each source that were new.
        missed: poses of each source that were published between those received, and did not arrive.
    """

    def __init__(self) -> None:
        self.received: dict[str, int] = {}
        self.missed: dict[str, int] = {}
        self._last: dict[str, tuple[str, int]] = {}
        self._said: dict[tuple[type, str], Hello | Status] = {}

    def enter(self, header: PoseHeader) -> int | None:
        """Enter one pose.

        Returns:
            How many of this source were missed just before it: 0 for its first one, and for the first of another run.
            None where it is a repetition, or of one source too many, and does not count.
        """
        source = header.source
        if source not in self._last and len(self._last) >= SOURCES_LIMIT:
            return None
        run_id, seq = self._last.get(source, (header.run_id, header.seq - 1))
        if run_id == header.run_id and header.seq <= seq:
            return None
        missed = header.seq - seq - 1 if run_id == header.run_id else 0
        self._last[source] = header.run_id, header.seq
        self.received[source] = self.received.get(source, 0) + 1
        self.missed[source] = self.missed.get(source, 0) + missed
        return missed

    def is_news(self, message: Hello | Status) -> bool:
        """Whether a source says something else now than in its hello or status before, and is not one too many."""
        key = type(message), message.source
        if self._said.get(key) == message or (key not in self._said and len(self._said) >= 2 * SOURCES_LIMIT):
            return False
        self._said[key] = message
        return True
