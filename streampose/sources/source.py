"""A source: one thread that drains a reader into a ring, and for a camera connects again for ever."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from types import TracebackType

from streampose.errors import SourceError
from streampose.metrics import Metrics
from streampose.ring import Drop, FrameRing
from streampose.sources.backoff import Backoff
from streampose.sources.camera import Camera
from streampose.sources.pace import STALLED_S
from streampose.sources.reader import DecodeFailedError, DisconnectedError, Picture, Reader
from streampose.types import Frame

CAPACITY = 4
STEADY_S = 5.0
"""A connection that held so long went well: after it, waiting begins at its shortest again."""
RESTART_S = 1.0
"""A camera whose presentation times leap back by so much counts anew."""
JOIN_S = 1.0
"""How long a reader that blocks may take to end before its thread is left behind."""

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

    A camera (`connect` given) is connected to again for ever, whatever happens to it. Each new connection, each stall
    and each picture of another size than the one before starts a new epoch; `index` and `pts_s` go on.

    Attributes:
        id: its name in topics and results.
        name: what messages call it, without credentials.
        camera: what was asked for.
        fps: nominal frames a second; of a camera 0 until it has been connected to.
        outcome, error: how it ended; of a camera `error` is why it is not connected now.
        crash: what ended the reading thread that should not have: an error of ours.
        reconnects: connections after the first.
        epoch: of the last frame.
    """

    def __init__(
        self,
        source_id: str,
        name: str,
        *,
        reader: Reader | None = None,
        connect: Callable[[], Reader] | None = None,
        live: bool,
        camera: Camera | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        """Nothing is read before the source is entered.

        Args:
            source_id, name: see the attributes.
            reader: an opened stream that ends at its end; this or `connect`.
            connect: opens a camera, or raises SourceError.
            live: whether frames are dropped when inference is late.
            camera: what was asked for; frames above its fps are dropped.
            capacity: of the ring.
        """
        self.id = source_id
        self.name = name
        self.camera = camera
        self.fps = reader.fps if reader is not None else 0.0
        self.live = live
        self.ring = FrameRing(capacity)
        self.metrics = Metrics()
        self.outcome = Outcome.OPEN
        self.error: SourceError | None = None
        self.crash: Exception | None = None
        self.reconnects = 0
        self.epoch = 0
        self._reader = reader
        self._connect = connect
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._online = False
        self._index = 0
        self._shape: tuple[int, ...] | None = None
        self._pts_s = float("-inf")
        self._first_ns = 0
        self._last_ns = 0

    @property
    def status(self) -> Status:
        """What the source is doing now; stalled is a live one without a frame for a second, or four intervals."""
        if self.outcome is not Outcome.OPEN:
            return Status.ENDED if self.failed is None else Status.OFFLINE
        if not self._online:
            return Status.WAITING if self.error is None and not self._first_ns else Status.OFFLINE
        return Status.STALLED if self.live and self.age_s > self._stall_s else Status.ONLINE

    @property
    def age_s(self) -> float:
        """How long ago the last frame came, seconds; infinite before the first."""
        return (time.monotonic_ns() - self._last_ns) / 1e9 if self._last_ns else float("inf")

    @property
    def refused(self) -> bool:
        """Whether the first attempt to connect failed, and none has gone well since."""
        return self.error is not None and not self._first_ns

    @property
    def failed(self) -> SourceError | None:
        """The error in which a stream ended. A camera never ends in one."""
        return self.error if self._connect is None else None

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
            SourceError: after the last frame, where the source ended in error; of a camera where it could not be
                connected to in the first place.
        """
        while not self.finished:
            frame = self.read(timeout_s=0.1)
            if frame is not None:
                yield frame
            elif self.refused:
                break
        if self.crash is not None:
            raise self.crash
        if self.refused and self.error is not None:
            raise self.error
        if self.failed is not None:
            raise self.failed

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
        self.join(JOIN_S)

    def join(self, timeout_s: float) -> None:
        """Wait for the reading thread to end; a reader that blocks in a driver is left behind."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                log.warning("%s: the reader hangs and is left behind", self.id)

    def close(self) -> None:
        """Close the stream of a source that was never entered."""
        if self._thread is None and self._reader is not None:
            self._reader.close()

    @property
    def _stall_s(self) -> float:
        return float(getattr(self._reader, "stall_s", STALLED_S))

    def _run(self) -> None:
        try:
            outcome = self._keep_connected() if self._connect is not None else self._read_once()
        except Exception as error:
            log.debug("%s: the reading thread crashed", self.id, exc_info=True)
            self.crash, outcome = error, Outcome.DECODE_FAILED
        self.outcome = outcome
        log.info("%s: %s", self.id, outcome if self.failed is None else self.failed, extra={"source": self.id})
        self.ring.close()

    def _read_once(self) -> Outcome:
        """Read a stream that has an end."""
        assert self._reader is not None
        try:
            return Outcome.ENDED if self._drain(self._reader) else Outcome.STOPPED
        except DisconnectedError as error:
            self.error = error
            return Outcome.DISCONNECTED
        except DecodeFailedError as error:
            self.error = error
            return Outcome.DECODE_FAILED
        finally:
            self._reader.close()

    def _keep_connected(self) -> Outcome:
        """Read a camera, connecting again whenever it is gone, until the source is stopped."""
        assert self._connect is not None
        backoff = Backoff()
        while not self._stop.is_set():
            try:
                self._reader = self._connect()
                connected_s = time.monotonic()
                try:
                    self._shape = None
                    self._drain(self._reader)
                finally:
                    if self._online and time.monotonic() - connected_s > STEADY_S:
                        backoff.reset()
                    self._online = False
                    self._reader.close()
            except SourceError as error:
                if self._stop.is_set():
                    break
                self._tell(error)
            self._stop.wait(backoff.next_s())
        return Outcome.STOPPED

    def _tell(self, error: SourceError) -> None:
        """Log why the camera is gone, once a reason; keep the reason, without the pictures that its traceback holds."""
        known = self.error is not None and str(self.error) == str(error)
        self.error = type(error)(str(error))
        level = logging.DEBUG if known else logging.WARNING
        log.log(level, "%s: offline; trying again (%s)", self.id, str(error), extra={"source": self.id})
        log.debug("%s: where it failed", self.id, exc_info=error)

    def _drain(self, reader: Reader) -> bool:
        """Read to the end: True where the end was reached, False where the source was stopped."""
        start_ns = time.monotonic_ns()
        due = _Due(self.camera.fps if self.camera is not None else None)
        section: int | None = None
        shift_s = 0.0
        for picture in reader.pictures():
            if self._stop.is_set():
                return False
            index, self._index = self._index, self._index + 1
            drop = picture.drop or self._out_of_order(reader, picture.pts_s + shift_s, section is None)
            if drop is None and not due(picture.pts_s):
                drop, self._last_ns = Drop.FPS, time.monotonic_ns()
            if drop is not None:
                self.ring.count(drop)
                continue
            captured_ns = picture.captured_ns or picture.arrived_ns
            if self.live and not reader.live:
                if self._wait_until(start_ns, picture):
                    self.ring.count(Drop.STOPPED)
                    return False
                captured_ns = time.monotonic_ns()
            began = time.perf_counter()
            try:
                image = picture.load()
            except DecodeFailedError:
                if self._connect is None:
                    raise
                self.ring.count(Drop.DAMAGED)
                continue
            self.metrics.observe("decode", picture.decode_s + time.perf_counter() - began, self.id)
            if section is None:
                shift_s = self._come_online(reader, picture, image.shape)
            self._follow(image.shape, picture.section != section and section is not None)
            section = picture.section
            self._last_ns = time.monotonic_ns()
            if reader.live and picture.pts_s + shift_s <= self._pts_s:  # the camera's clock began anew
                self.epoch += 1
                shift_s = self._pts_s + 1 / max(1.0, self.fps) - picture.pts_s
            self._pts_s = picture.pts_s + shift_s
            frame = Frame(image, self.id, index, self._pts_s, captured_ns, self.epoch, picture.clock)
            if not self.ring.put(frame, wait=not self.live):
                self.ring.count(Drop.STOPPED)
                return False
        return True

    def _come_online(self, reader: Reader, picture: Picture, shape: tuple[int, ...]) -> float:
        """Note the first good picture of a connection; returns what its presentation times are to be shifted by."""
        self.fps = reader.fps
        first = not self._first_ns
        if first:
            self._first_ns = picture.arrived_ns
        else:
            self.reconnects += 1
            self.epoch += 1
        if self._connect is not None:
            text = f"{shape[1]}x{shape[0]}, {reader.fps:.4g} fps"
            log.info("%s: online (%s)", self.id, text, extra={"source": self.id})
        self.error = None
        self._online = True
        if not reader.live:
            return 0.0
        return (picture.arrived_ns - self._first_ns) / 1e9 - picture.pts_s

    def _out_of_order(self, reader: Reader, pts_s: float, first: bool) -> Drop | None:
        """Whether a camera's picture is a part of the last one, or of before it; far before, its clock began anew."""
        back_s = self._pts_s - pts_s
        return Drop.DAMAGED if reader.live and not first and 0 <= back_s < RESTART_S else None

    def _follow(self, shape: tuple[int, ...], interrupted: bool) -> None:
        """Begin a new epoch where this picture does not continue the one before."""
        changed = self._shape is not None and shape != self._shape
        if changed and self._shape is not None:
            log.info("%s: the picture size changed from %s to %s", self.id, self._shape[:2], shape[:2])
        self.epoch += changed or interrupted
        self._shape = shape

    def _wait_until(self, start_ns: int, picture: Picture) -> bool:
        """Hold a file's picture until its time; True where the source was stopped meanwhile."""
        left_s = picture.pts_s - (time.monotonic_ns() - start_ns) / 1e9
        return left_s > 0 and self._stop.wait(left_s)


class _Due:
    """Lets through so many frames a second, evenly, by their presentation times."""

    def __init__(self, fps: float | None) -> None:
        self._fps = fps
        self._next_s = float("-inf")

    def __call__(self, pts_s: float) -> bool:
        if self._fps is None:
            return True
        interval_s = 1 / self._fps
        if abs(pts_s - self._next_s) > 2 * interval_s:  # the first one, or a leap of the stream's clock
            self._next_s = pts_s
        if pts_s < self._next_s - 1e-6:
            return False
        self._next_s += interval_s
        return True
