"""The recorder: everything a publisher sends, in a file that is readable whatever happens."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

from streampose.errors import EncryptionError, KeyRefusedError, OutputError, StreamError, UsageError
from streampose.inlet import Inlet
from streampose.journal import JournalWriter
from streampose.jsonl import PeopleWriter
from streampose.keys import SubscriberKey
from streampose.ledger import Ledger
from streampose.recording import FORMATS, Entry, Item, journal_of, to_item, to_recorded_line
from streampose.rejects import Rejects
from streampose.roster import Search
from streampose.wire import MessageError

log = logging.getLogger(__name__)

_LOOK_S = 0.1


class Sink(Protocol):
    """A file that is recorded into."""

    def write(self, received_ns: int, parts: list[bytes], item: Item) -> None:
        """Add a message; it can be read back whatever happens after the call."""

    def close(self) -> None:
        """Finish the file."""

    def discard(self) -> None:
        """Close it, and leave nothing behind."""


class JsonlSink:
    """Lines of people.jsonl, with all that is known of a frame besides; poses only."""

    def __init__(self, path: Path) -> None:
        self._writer = PeopleWriter(path)

    def write(self, received_ns: int, parts: list[bytes], item: Item) -> None:  # noqa: ARG002
        if isinstance(item, Entry):
            self._writer.write_line(to_recorded_line(item))

    def close(self) -> None:
        self._writer.close()

    def discard(self) -> None:
        self._writer.close()
        self._writer.path.unlink(missing_ok=True)


class ParquetSink:
    """A parquet file, which is whole only when it is closed; until then there is a journal beside it.

    Rows are made of items by another thread, since that takes long enough to make the next messages late.
    """

    def __init__(self, path: Path) -> None:
        from streampose.parquet import ROWS, ParquetWriter

        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._journal = JournalWriter(journal_of(path))
        try:
            self._writer = ParquetWriter(self._part)
        except BaseException:
            self._journal.close()
            self._journal.path.unlink()
            raise
        self._rows = ROWS
        self._items: list[Item] = []
        self._worker = ThreadPoolExecutor(1, "parquet")
        self._work: Future[None] | None = None

    def write(self, received_ns: int, parts: list[bytes], item: Item) -> None:
        self._journal.write(received_ns, parts)
        self._items.append(item)
        if len(self._items) >= self._rows:
            self._hand_over()

    def close(self) -> None:
        self._journal.close()
        with self._worker:
            self._hand_over()
            self._finish_work()
        self._writer.close()
        self._part.replace(self._path)
        self._journal.path.unlink()

    def discard(self) -> None:
        self._items.clear()
        self.close()
        self._path.unlink(missing_ok=True)

    def _hand_over(self) -> None:
        self._finish_work()
        items, self._items = self._items, []
        self._work = self._worker.submit(self._make_rows, items)

    def _finish_work(self) -> None:
        if self._work is not None:
            self._work.result()

    def _make_rows(self, items: list[Item]) -> None:
        for item in items:
            self._writer.write(item)


def open_sink(path: Path) -> Sink:
    """A new recording.

    Raises:
        UsageError: the name is none of a recording, or there is one already.
        MissingExtraError: parquet without the extra [record].
        OutputError: it cannot be written.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"--out {path}: a recording ends in .parquet or .jsonl")
    if path.exists():
        raise UsageError(f"--out {path} exists; it is not overwritten")
    if path.suffix == ".parquet" and journal_of(path).exists():
        raise UsageError(
            f"--out {path}: a recording of this name was not finished; save it first: "
            f"streampose export {path} --out NEW.parquet"
        )
    if not path.parent.is_dir():
        raise OutputError(f"--out {path}: there is no folder {path.parent}")
    return JsonlSink(path) if path.suffix == ".jsonl" else ParquetSink(path)


class Recorder:
    """Records until it is left. A context manager; reconnects by itself, for ever. Without a frame no file is left.

    Args:
        endpoint: `tcp://HOST:PORT` of the publisher, which need not be there yet.
        sink: where to; closed when the recorder is left.
        source: record this source only.
        key: for a publisher that wants one.
        count: take nothing any more after so many frames; None: go on.

    Attributes:
        ledger: what came of each source, and what was missed.
        frames: recorded so far.
    """

    def __init__(
        self,
        endpoint: str,
        sink: Sink,
        *,
        source: str | None = None,
        key: SubscriberKey | None = None,
        count: int | None = None,
    ) -> None:
        self.ledger = Ledger()
        self.frames = 0
        self._rejects = Rejects(endpoint)
        self._sink = sink
        self._source = source
        self._key = key
        self._count = count
        self._heard = self._told_heard = False
        self._told: set[str] = set()
        self._found = False
        self._error: OutputError | None = None
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        suffix = "" if source is None else source
        topics = [*(f"{kind}.{suffix}".encode() for kind in ("hello", "status", "pose")), b"heartbeat"]
        try:
            self._inlet = Inlet(endpoint, key=key, topics=topics, put=self._put, connect_s=1.0)
        except BaseException:
            sink.discard()
            raise

    @property
    def malformed(self) -> int:
        """Messages that could not be read, and are not in the recording."""
        return self._rejects.count

    def record(self, stop: threading.Event, *, seconds: float | None = None) -> None:
        """Record until `stop` is set, all `count` frames came, or `seconds` went by; logs which sources it records.

        Raises:
            OutputError: the recording cannot be written on.
            StreamError: the publisher did not let us in from the beginning (later ones are logged), or no frame came in
                all the seconds.
        """
        until_s = None if seconds is None else time.monotonic() + seconds
        told: StreamError | None = None
        search = Search(self._inlet.endpoint, self._source, self._key, stop)
        while not stop.wait(_LOOK_S):
            if self._error is not None:
                raise self._error
            self._tell_sources()
            if self.frames == self._count:
                return
            failure = self._inlet.failure
            if until_s is not None and time.monotonic() >= until_s:
                if not self.frames:
                    raise failure or StreamError(f"no frame came from {self._inlet.endpoint} in {seconds:g} s")
                return
            if isinstance(failure, KeyRefusedError | EncryptionError) and not self.frames:
                raise failure
            if failure is not told and failure is not None:
                log.warning("%s; trying again", failure)
            told = failure
            search.look(connected=self._inlet.connected and failure is None, found=self._found)

    def _tell_sources(self) -> None:
        """Log, each once, that a publisher is there, and the sources of which frames came."""
        if self._heard and not self._told_heard:
            self._told_heard = True
            log.info("connected to %s", self._inlet.endpoint)
        for source in sorted(self.ledger.received.copy().keys() - self._told):
            self._told.add(source)
            log.info("recording %s", source)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inlet.close()
        with suppress(OutputError) if self._error is not None else nullcontext():
            if self.frames or self._error is not None:
                self._sink.close()
            else:
                self._sink.discard()

    def _put(self, parts: list[bytes]) -> None:
        """Record a message; called by the inlet's thread."""
        if self._error is not None or self.frames == self._count:
            return
        received_ns = time.monotonic_ns() + self._offset_ns
        try:
            item = to_item(received_ns, parts, self.ledger, self._source)
        except MessageError as error:
            self._rejects.add(error)
            return
        self._heard = True
        if item is None:
            return
        self._found = True
        try:
            self._sink.write(received_ns, parts, item)
        except OutputError as error:
            self._error = error
            return
        self.frames += isinstance(item, Entry)
