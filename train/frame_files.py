"""The pictures of a sequence, as files."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from streampose.errors import UsageError

Image = NDArray[np.uint8]
_KEPT = 16


class FrameFiles:
    """The frames of a sequence by their place; the last few stay decoded, for windows overlap."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._decoded: OrderedDict[int, Image] = OrderedDict()

    def image(self, index: int) -> Image:
        """Frame `index`, (H, W, 3) uint8 BGR.

        Raises:
            UsageError: its file is missing or damaged.
        """
        if index not in self._decoded:
            path = self._paths[index]
            try:
                encoded = np.frombuffer(path.read_bytes(), np.uint8)
            except OSError as error:
                raise UsageError(f"{path} cannot be read: {error.strerror}") from error
            pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if len(encoded) else None
            if pixels is None:
                raise UsageError(f"{path} is not a picture that can be decoded")
            self._decoded[index] = np.asarray(pixels, np.uint8)
        self._decoded.move_to_end(index)
        while len(self._decoded) > _KEPT:
            self._decoded.popitem(last=False)
        return self._decoded[index]


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
