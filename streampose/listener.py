"""`streampose listen`: a subscriber that says what is going on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from streampose.endpoint import to_connect_to
from streampose.errors import UsageError
from streampose.inlet import SILENT_S, explain
from streampose.keys import read_key
from streampose.reception import Mode
from streampose.roster import Search
from streampose.smoothing import Smoothing
from streampose.subscribe import Subscriber
from streampose.types import PoseFrame

log = logging.getLogger(__name__)

_WAITING_S = 1.0
_LOOK_S = 0.1


def listen_to(
    endpoint: str,
    mode: str,
    source: str | None,
    count: int | None,
    stop: threading.Event,
    *,
    key: Path | None = None,
    smooth: Smoothing | None = None,
) -> Iterator[PoseFrame]:
    """Frames until `count` came or `stop` is set; logs waiting, which sources there are where the one asked for is not,
    hellos, states, and at the end what was missed.

    Args:
        endpoint, mode, source, key, smooth: see `Subscriber`. It waits for a publisher for ever.

    Raises:
        UsageError: the endpoint, the mode or the key is not one.
        StreamError: the publisher does not let us in, or speaks another schema.
    """
    if mode not in ("latest", "lossless"):
        raise UsageError(f"mode is latest or lossless, not {mode!r}")
    frames = missed = 0
    checked: Mode = "latest" if mode == "latest" else "lossless"
    credentials = None if key is None else read_key(key)
    with Subscriber(endpoint, checked, source, key=credentials, connect_s=None, smooth=smooth) as stream:
        watch, search = _Watch(stream), Search(endpoint, source, credentials, stop)
        while not stop.is_set() and frames != count:
            frame = stream.receive(_LOOK_S)
            watch.look()
            found = frame is not None or bool(stream.hellos or stream.states)
            search.look(connected=stream.connected and stream.heard_s > 0, found=found)
            if frame is not None:
                frames, missed = frames + 1, missed + frame.missed
                yield frame
        malformed = f", {stream.malformed} malformed" if stream.malformed else ""
    log.info("%d frames, %d missed%s", frames, missed, malformed)


class _Watch:
    """Logs what changes about a stream, each change once."""

    def __init__(self, stream: Subscriber) -> None:
        self._stream = stream
        self._began_s = time.monotonic()
        self._waiting = False
        self._hellos: dict[str, str] = {}
        self._states: dict[str, str] = {}

    def look(self) -> None:
        """Log what is new since the last look."""
        heard_s = self._stream.heard_s
        silent_s = time.monotonic() - (heard_s or self._began_s)
        waiting = silent_s > (SILENT_S if heard_s else _WAITING_S)
        if waiting and not self._waiting:
            log.info("waiting for a publisher at %s%s", self._stream.endpoint, self._why_nothing_comes())
        self._waiting = waiting
        for source, hello in self._stream.hellos.items():
            text = f"{hello.width}x{hello.height}, {hello.skeleton}, model {hello.model}"
            if self._hellos.get(source) != text:
                self._hellos[source] = text
                log.info("%s: %s", source, text)
        for source, state in self._stream.states.items():
            if self._states.get(source) != state:
                self._states[source] = state
                log.info("%s: %s", source, state)

    def _why_nothing_comes(self) -> str:
        if not self._stream.connected:
            return f": {explain(to_connect_to(self._stream.endpoint))}"
        return "" if self._stream.heard_s else ": something that is no streampose publisher answers there"
