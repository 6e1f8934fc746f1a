"""Teachers' maps: where each joint of a person may be, in the square crop around the box x1.25."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

MAP_CROP_SIZE = (256, 256)
MAP_CELLS = 64
JOINTS = 17


def pack_maps(maps: NDArray[np.uint8]) -> bytes:
    """Maps (17, 64, 64), compressed."""
    return zlib.compress(maps.tobytes(), 1)


def unpack_maps(packed: bytes) -> NDArray[np.uint8]:
    """The way back."""
    return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(JOINTS, MAP_CELLS, MAP_CELLS)
