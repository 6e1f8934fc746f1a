"""people.jsonl: one line a frame and source, whole lines only, whatever happens to the disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from streampose.errors import OutputError
from streampose.types import PoseFrame

PIXEL_DIGITS = 2
SCORE_DIGITS = 4


def to_line(frame: PoseFrame, *, with_missed: bool = False, extra: Mapping[str, object] | None = None) -> bytes:
    """One frame as a line of people.jsonl, newline included; a subscriber's has `missed` too, and a recording's more.

    Pixels are rounded to 0.01, scores to 0.0001, `pts_s` to the microsecond. `filled` and `smoothed` are there where
    they are true.
    """
    people = [
        {
            "track_id": pose.track_id,
            "box": _rounded(pose.box, PIXEL_DIGITS),
            "score": round(float(pose.score), SCORE_DIGITS),
            "keypoints": [
                [*xy, score]
                for xy, score in zip(
                    _rounded(pose.keypoints[:, :2], PIXEL_DIGITS),
                    _rounded(pose.keypoints[:, 2], SCORE_DIGITS),
                    strict=True,
                )
            ],
            **({"filled": True} if pose.filled else {}),
        }
        for pose in frame.people
    ]
    fields: dict[str, Any] = {
        "source": frame.source,
        "epoch": frame.epoch,
        "frame_index": frame.frame_index,
        "pts_s": round(frame.pts_s, 6),
        "captured_ns": frame.captured_ns,
        "published_ns": frame.published_ns,
        "width": frame.width,
        "height": frame.height,
        "skeleton": frame.skeleton,
        "dropped": frame.dropped,
        "people": people,
    }
    if with_missed:
        fields["missed"] = frame.missed
    if frame.smoothed:
        fields["smoothed"] = True
    fields.update(extra or {})
    return msgspec.json.encode(fields) + b"\n"


def _rounded(values: np.ndarray[Any, Any], digits: int) -> list[Any]:
    return np.round(values.astype(np.float64), digits).tolist()  # type: ignore[no-any-return]


class PeopleWriter:
    """Writes people.jsonl; each line reaches the file whole, before `write` returns.

    Args:
        path: the file; one that exists is written anew.

    Raises:
        OutputError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {_reason(error)}") from None
        self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._end = 0

    def write(self, frame: PoseFrame) -> None:
        """Append the frame's line.

        Raises:
            OutputError: the disk is full or the file is gone; the file then ends with its last whole line.
        """
        self.write_line(to_line(frame))

    def write_line(self, line: bytes) -> None:
        """Append a line, newline included. Raises as `write`."""
        done = 0
        try:
            while done < len(line):
                done += os.write(self._fd, line[done:])
        except BaseException as error:
            if self._regular and done:
                os.ftruncate(self._fd, self._end)
                os.lseek(self._fd, self._end, os.SEEK_SET)
            if not isinstance(error, OSError):
                raise
            kept = f"; {self.lines} whole lines are kept" if self.lines else ""
            raise OutputError(f"cannot write {self.path}: {_reason(error)}{kept}") from None
        self._end += done
        self.lines += 1

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> PeopleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
