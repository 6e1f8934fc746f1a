"""The journal of a recording: messages as they came, each whole in the file before the next one is taken.

After the line `streampose journal 1`, each record is a little-endian uint32 length, a uint32 CRC-32, and that many
bytes of msgpack: [received_ns, topic, header, blob], `received_ns` in nanoseconds since 1970. What ends inside a record
was written when the recorder died; all before it is whole.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from streampose.errors import OutputError, UsageError

log = logging.getLogger(__name__)

_HEAD = b"streampose journal 1\n"
_FRAME = struct.Struct("<II")
_RECORD_LIMIT = 4 << 20

Record = tuple[int, bytes, bytes, bytes]
_decoder = msgspec.msgpack.Decoder(Record)


class JournalWriter:
    """Appends records to a new file; each reaches it before `write` returns.

    Raises:
        OutputError: the file exists, or cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from None
        self._append(_HEAD)

    def write(self, received_ns: int, parts: Sequence[bytes]) -> None:
        """Append a message.

        Raises:
            OutputError: the disk is full, or the file is gone.
        """
        record = msgspec.msgpack.encode((received_ns, *parts))
        self._append(_FRAME.pack(len(record), zlib.crc32(record)) + record)

    def _append(self, data: bytes) -> None:
        try:
            done = 0
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}; what it holds can be replayed") from None

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: Path) -> Iterator[Record]:
    """The whole records of a journal; logs where it ends inside of one.

    Raises:
        UsageError: it is not a journal.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(len(_HEAD))
            if begin != _HEAD and not (len(begin) < len(_HEAD) and _HEAD.startswith(begin)):
                raise UsageError(f"{path} is not a journal of streampose record")
            while head := file.read(_FRAME.size):
                length, checksum = _FRAME.unpack(head) if len(head) == _FRAME.size else (_RECORD_LIMIT + 1, 0)
                record = file.read(length) if length <= _RECORD_LIMIT else b""
                if len(record) < length or zlib.crc32(record) != checksum:
                    log.warning("%s ends inside of a record, which is left out", path)
                    return
                yield _decoder.decode(record)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except msgspec.MsgspecError:
        raise UsageError(f"{path} is damaged") from None
