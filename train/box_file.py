"""Files of detected boxes in COCO's result format, for the frames of sequences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from streampose.errors import UsageError

Array = NDArray[np.float32]


class _Entry(msgspec.Struct):
    bbox: tuple[float, float, float, float]
    score: float
    category_id: int = 1
    image_id: int | str | None = None
    image_name: str | None = None


class BoxFile:
    """Boxes of people by picture: by `image_name`, where the entries have it, else by `image_id`.

    The labels' `file_name` is the name. PoseTrack's labels of 2017 have no ids: a file for them needs names.
    """

    def __init__(self, path: Path) -> None:
        """Read a file.

        Raises:
            UsageError: it cannot be read, is in another format, or holds boxes without an area.
        """
        if not path.is_file():
            raise UsageError(f"--boxes is gt, detector or a file in COCO's result format; there is no file {path}")
        try:
            entries = msgspec.json.decode(path.read_bytes(), type=list[_Entry])
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not a file of boxes in COCO's result format: {error}") from error
        self.path = path
        self._found: dict[int | str, list[_Entry]] = defaultdict(list)
        for index, entry in enumerate(entries):
            key = entry.image_name if entry.image_name is not None else entry.image_id
            if key is None:
                raise UsageError(f"{path}: entry {index} has neither image_id nor image_name")
            if min(entry.bbox[2:]) <= 0:
                raise UsageError(f"{path}: entry {index}: bbox is x, y, width, height with an area, not {entry.bbox}")
            if entry.category_id == 1:
                self._found[key].append(entry)

    def boxes(self, image_id: int | None, image_name: str) -> tuple[Array, Array]:
        """Boxes (N, 4) xyxy and scores (N,) of a picture."""
        entries = self._entries(image_id, image_name)
        boxes = np.array([entry.bbox for entry in entries], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes, np.array([entry.score for entry in entries], np.float32)

    def check(self, pictures: Sequence[tuple[int | None, str]]) -> None:
        """Raises UsageError where none of the pictures (image_id, image_name) has a box."""
        if not any(self._entries(*picture) for picture in pictures):
            raise UsageError(f"{self.path} has no boxes for these pictures: no image_id or image_name of theirs")

    def _entries(self, image_id: int | None, image_name: str) -> list[_Entry]:
        named = self._found.get(image_name, [])
        return named or ([] if image_id is None else self._found.get(image_id, []))
