"""The subscriber: poses in from ZeroMQ, the newest ones or all of them, with what was missed counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from streampose.keys import SubscriberKey
from streampose.reception import CONNECT_S, Mode, Reception
from streampose.smoothing import Smoothing
from streampose.types import PoseFrame


class Subscriber(Reception):
    """Iterates over the poses of a publisher, for ever; connects and reconnects by itself.

    A thread drains the socket. In "latest" mode a slow reader gets the newest frame of each source, and the frames in
    between are counted as missed; in "lossless" mode it gets every message that the publisher could deliver. `missed`
    of a frame counts the messages of its source since the frame before that were not handed out, by `seq`; it starts
    again at 0 with a new run of the publisher. A message that cannot be read is skipped, counted and logged.

    Args:
        endpoint: `tcp://HOST:PORT` of the publisher.
        mode: "latest" or "lossless".
        source: hand out the frames of this source only.
        key: key file, or its content, for a publisher that wants one (see `keys`).
        connect_s: how long the first connection may take, and then the first message on it, which is a heartbeat where
            there is nothing else; None: for ever, the publisher need not be there yet.
        silent_s: how long a publisher may be silent from the first connection on, its heartbeats too, before that is
            an error; None: for ever. It sends a heartbeat every second.
        smooth: filter the keypoints over time; None hands them out raw.

    Attributes:
        hellos: what each source has said of itself (skeleton, frame size, model), by source.
        states: the last state of each source.
        missed: the sum of the frames' `missed` so far, by source.
        malformed: messages that could not be read, and were left out, so far.
        connected: there is a connection to the publisher now.
        reconnections: how often the connection came back.
        heard_s: `time.monotonic()` of the last message of any kind; 0 before the first.

    Raises:
        UsageError: the endpoint, the mode or the key is not one.
    """

    def __init__(
        self,
        endpoint: str,
        mode: Mode = "latest",
        source: str | None = None,
        *,
        key: str | Path | SubscriberKey | None = None,
        connect_s: float | None = CONNECT_S,
        silent_s: float | None = None,
        smooth: Smoothing | None = None,
    ) -> None:
        self._news = threading.Event()
        super().__init__(endpoint, mode, source, key, connect_s, silent_s, smooth, self._news.set)

    def receive(self, timeout_s: float | None = None) -> PoseFrame | None:
        """The next frame, or None when none came within `timeout_s` seconds (None: wait for ever), or when closed.

        Raises:
            NoPublisherError: nobody answers at the endpoint, or the publisher fell silent.
            KeyRefusedError: the publisher does not take our key, or is not the one that the key is for.
            EncryptionError: the publisher wants a key and there is none, or offers no encryption for the one there is.
            SchemaError: the publisher's messages are of another schema.
        """
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._news.clear()
            frame = self._take()
            if frame is not None or self.closed:
                return frame
            left_s = None if until_s is None else until_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return None
            waits = [wait_s for wait_s in (left_s, self._patience_s()) if wait_s is not None]
            self._news.wait(min(waits, default=None))

    def __iter__(self) -> Iterator[PoseFrame]:
        """Frames until closed. Raises as `receive`."""
        while (frame := self.receive()) is not None:
            yield frame

    def close(self) -> None:
        """Disconnect; a waiting `receive` returns None."""
        if not self.closed:
            self._end()

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
