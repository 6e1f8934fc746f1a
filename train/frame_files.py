"""The pictures of a sequence, as files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from streampose.errors import UsageError

Image = NDArray[np.uint8]
_KEPT = 24
"""Decoded frames that a process keeps, of all sequences together: 65 MB of 1280x720."""


class FrameFiles:
    """The frames of a sequence, or one still, by their place; frames that windows share are decoded once."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)

    @property
    def name(self) -> str:
        """The last two folders that the pictures are in: of Sub-JHMDB, "action/clip"."""
        return "/".join(self._paths[0].parts[-3:-1])

    @property
    def moving(self) -> bool:
        """Whether there is more than one frame."""
        return len(self._paths) > 1

    def image(self, index: int) -> Image:
        """Frame `index`, (H, W, 3) uint8 BGR, read-only.

        Raises:
            UsageError: its file is missing or damaged.
        """
        return _decode(self._paths[index])


@lru_cache(maxsize=_KEPT)
def _decode(path: Path) -> Image:
    try:
        encoded = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if len(encoded) else None
    if pixels is None:
        raise UsageError(f"{path} is not a picture that can be decoded")
    image = np.asarray(pixels, np.uint8)
    image.flags.writeable = False
    return image


def supports(index: int, offsets: Sequence[int], frames: int) -> tuple[int, ...]:
    """The supporting frames of frame `index` of a sequence.

    A frame before the first one is the first one, and one after the last is the last: the nearest there is on that
    side, and at the very end the key frame itself.
    """
    return tuple(min(max(index + offset, 0), frames - 1) for offset in offsets)


def find_root(given: Path | None, labels: Path, file_name: str) -> Path:
    """The folder that the labels' file names start from.

    Args:
        given: what the user named, or None: then it is `labels` or one of the three folders above.

    Raises:
        UsageError: none of them has the file.
    """
    candidates = [given] if given is not None else [labels, *labels.resolve().parents[:3]]
    for root in candidates:
        if (root / file_name).is_file():
            return root
    where = given if given is not None else f"{labels} and the folders above"
    raise UsageError(f"{where} has no {file_name}; give --images the folder that the labels' file names start from")
