"""A source: one thread that drains a reader into a ring."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from enum import StrEnum
from types import TracebackType

from streampose.errors import SourceError
from streampose.metrics import Metrics
from streampose.ring import FrameRing
from streampose.sources.reader import DecodeFailedError, DisconnectedError, Picture, Reader
from streampose.types import Frame

CAPACITY = 4
STALLED_S = 2.0
_JOIN_S = 5.0

log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """How a source ended; OPEN while it has not."""

    OPEN = "open"
    ENDED = "ended"
    DISCONNECTED = "disconnected"
    DECODE_FAILED = "decode-failed"
    STOPPED = "stopped"


class Status(StrEnum):
    """What a source is doing, as subscribers are told."""

    WAITING = "waiting"
    ONLINE = "online"
    STALLED = "stalled"
    OFFLINE = "offline"
    ENDED = "ended"


class Source:
    """Frames of one stream. Entering starts the reading thread, leaving stops it and closes the stream.

    Live: frames are released when they happen (a file's at their presentation times), the oldest is dropped when
    inference is late. Not live: every frame comes once and in order, and the reader waits while the ring is full.

    A picture of another size than the one before starts a new epoch, as a new connection does. `index` counts on.
    """

    def __init__(self, reader: Reader, source_id: str, live: bool, capacity: int = CAPACITY) -> None:
        self.id = source_id
        self.name = reader.name
        self.fps = reader.fps
        self.live = live
        self.ring = FrameRing(capacity)
        self.metrics = Metrics()
        self.outcome = Outcome.OPEN
        self.error: SourceError | None = None
        self._reader = reader
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._last_ns = 0

    @property
    def status(self) -> Status:
        """What the source is doing now; a live one without a frame for two seconds is stalled."""
        if self.outcome is not Outcome.OPEN:
            return Status.OFFLINE if self.error is not None else Status.ENDED
        if not self._last_ns:
            return Status.WAITING
        late = self.live and time.monotonic_ns() - self._last_ns > STALLED_S * 1e9
        return Status.STALLED if late else Status.ONLINE

    @property
    def finished(self) -> bool:
        """No frame is left and none will come."""
        return self.ring.closed and not len(self.ring)

    def read(self, timeout_s: float = 0.0) -> Frame | None:
        """The next frame, or of a live source the latest; None where there is none within `timeout_s`."""
        return self.ring.get(timeout_s, latest=self.live)

    def __iter__(self) -> Iterator[Frame]:
        """Frames until the end.

        Raises:
            SourceError: after the last frame, where the source ended in error.
        """
        while not self.finished:
            frame = self.read(timeout_s=1.0)
            if frame is not None:
                yield frame
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Ask the reader to end; frames in the ring can still be taken."""
        self._stop.set()
        self.ring.close()

    def __enter__(self) -> Source:
        self._thread = threading.Thread(target=self._run, name=f"source-{self.id}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
            if self._thread.is_alive():
                log.warning("%s: the reader did not stop within %g s", self.id, _JOIN_S)

    def close(self) -> None:
        """Close the stream of a source that was never entered."""
        if self._thread is None:
            self._reader.close()

    def _run(self) -> None:
        outcome = Outcome.STOPPED
        try:
            outcome = Outcome.ENDED if self._drain() else Outcome.STOPPED
        except DisconnectedError as error:
            outcome, self.error = Outcome.DISCONNECTED, error
        except DecodeFailedError as error:
            outcome, self.error = Outcome.DECODE_FAILED, error
        except Exception as error:
            outcome, self.error = Outcome.DECODE_FAILED, SourceError(f"{self.name}: failed with {type(error).__name__}")
            self.error.__cause__ = error
        finally:
            self._reader.close()
            self.outcome = outcome
            log.info("%s: %s", self.id, outcome if self.error is None else self.error)
            self.ring.close()

    def _drain(self) -> bool:
        """Read to the end: True where the end was reached, False where the source was stopped."""
        start_ns = time.monotonic_ns()
        shape: tuple[int, ...] | None = None
        epoch = connection = 0
        for index, picture in enumerate(self._reader.pictures()):
            if self._stop.is_set():
                return False
            self.metrics.observe("decode", picture.decode_s)
            captured_ns = picture.captured_ns
            if self.live and not self._reader.live:
                if self._wait_until(start_ns, picture):
                    return False
                captured_ns = time.monotonic_ns()
            if picture.connection != connection:
                epoch, connection = epoch + 1, picture.connection
            elif shape is not None and picture.image.shape != shape:
                epoch += 1
                log.info("%s: the picture size changed from %s to %s", self.id, shape[:2], picture.image.shape[:2])
            shape = picture.image.shape
            self._last_ns = captured_ns
            if not self.ring.put(
                Frame(picture.image, self.id, index, picture.pts_s, captured_ns, epoch), wait=not self.live
            ):
                return False
        return True

    def _wait_until(self, start_ns: int, picture: Picture) -> bool:
        """Hold a file's picture until its time; True where the source was stopped meanwhile."""
        left_s = picture.pts_s - (time.monotonic_ns() - start_ns) / 1e9
        return left_s > 0 and self._stop.wait(left_s)
