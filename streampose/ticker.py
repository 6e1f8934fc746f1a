"""A thread that looks at the sources, since a source that stalls gives no result to notice it by."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Protocol

from streampose.notify import notify
from streampose.sources import Status

if TYPE_CHECKING:
    from streampose.messages import State
    from streampose.metrics import RunSummary
    from streampose.pipeline import Pipeline
    from streampose.publish import Publisher

LOOK_S = 0.1
"""How often the sources are looked at."""
STUCK_S = 10.0
"""A run that has not looked for frames for so long is stuck."""
_TICK_S = 0.5
_STATES: dict[Status, State] = {
    Status.ONLINE: "online",
    Status.STALLED: "stalled",
    Status.OFFLINE: "offline",
    Status.ENDED: "ended",
}

log = logging.getLogger(__name__)


class Listener(Protocol):
    """Who is told how the sources are."""

    def set_state(self, source: str, state: str) -> None:
        """What a source is doing."""

    def forget(self, source: str) -> None:
        """A source was removed, and its last state told."""

    def tick(self, summary: RunSummary) -> None:
        """Half a second went by; this is what was measured so far."""


class Ticker:
    """Tells a listener and the subscribers what each source does: ten times a second, and once more at the end."""

    def __init__(self, pipeline: Pipeline, listener: Listener, publisher: Publisher | None = None) -> None:
        self._pipeline = pipeline
        self._listener = listener
        self._publisher = publisher
        self._known: dict[str, Status] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)

    def __enter__(self) -> Ticker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        next_s = time.monotonic() + _TICK_S
        try:
            while not self._stop.wait(LOOK_S):
                self._look()
                if time.monotonic() >= next_s:
                    next_s += _TICK_S
                    self._listener.tick(self._pipeline.summary())
                    if time.monotonic() - self._pipeline.turned_s < STUCK_S:
                        notify("WATCHDOG=1")
        except Exception as error:
            self._pipeline.fail(error)

    def _look(self) -> None:
        now = {source.id: source.status for source in self._pipeline.sources}
        removed = self._known.keys() - now.keys()
        now |= dict.fromkeys(removed, Status.ENDED)
        for source, status in now.items():
            before = self._known.get(source)
            if status is before:
                continue
            self._listener.set_state(source, str(status))
            if self._publisher is not None and status in _STATES:
                self._publisher.set_state(source, _STATES[status])
            if Status.STALLED in (status, before):
                log.info("%s: %s", source, status, extra={"source": source})
        for source in removed:
            self._listener.forget(source)
            if self._publisher is not None:
                self._publisher.forget(source)
        self._known = {source: status for source, status in now.items() if source not in removed}
