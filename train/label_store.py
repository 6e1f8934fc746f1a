"""Teachers' answers on the disk: a run that was interrupted asks for the missing ones only."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np

from streampose.errors import OutputError, UsageError
from streampose.train.ensemble import TeacherPose
from streampose.train.maps import pack_maps, unpack_maps


class Answers:
    """A journal of teacher poses by key, one line each; a half-written last line is asked for again.

    Args:
        path: of the journal, made if it is missing.
        settings: what the answers depend on; a journal made with other ones is refused.

    Raises:
        UsageError: the journal was made with other settings.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self._known: dict[str, str] = {}
        self.asked = 0
        whole = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                key, _, value = line.decode().rstrip("\n").partition("\t")
                self._known[key] = value
                whole += len(line)
            if self._known.setdefault("settings", settings) != settings:
                raise UsageError(f"{path.parent} was made with other settings ({self._known['settings']}); remove it")
            self._file = path.open("ab")
            self._file.truncate(whole)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
        if not whole:
            self._append("settings", settings)

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        self._file.close()

    def get(self, key: str, ask: Callable[[], TeacherPose]) -> TeacherPose:
        """The answer under `key`; asked for where it is not known yet.

        Raises:
            OutputError: it cannot be written down.
        """
        if key not in self._known:
            self._append(key, _packed(ask()))
            self.asked += 1
        return _unpacked(self._known[key])

    def _append(self, key: str, value: str) -> None:
        try:
            self._file.write(f"{key}\t{value}\n".encode())
            self._file.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self._file.name}: {error.strerror}") from error
        self._known[key] = value


def _packed(pose: TeacherPose) -> str:
    numbers = np.column_stack([pose.keypoints, pose.spread]).round(3).tolist()
    return json.dumps([numbers, base64.b64encode(pack_maps(pose.maps)).decode()], separators=(",", ":"))


def _unpacked(text: str) -> TeacherPose:
    numbers, maps = json.loads(text)
    values = np.asarray(numbers, np.float32)
    return TeacherPose(values[:, :3], values[:, 3], unpack_maps(base64.b64decode(maps)))
