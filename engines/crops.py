"""What an engine is given: pictures, and where the crops in them are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streampose.geometry import cut

_WHOLE = np.array([[1, 0, 0], [0, 1, 0]], np.float32)


@dataclass(frozen=True, slots=True)
class Crops:
    """Crops of one picture, not cut yet: an engine cuts them where it runs, and takes the picture there once.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        affines: (P, 2, 3) float32, picture pixels to crop pixels; see `streampose.geometry.crop_affine`.
    """

    image: NDArray[np.uint8]
    affines: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Raises ValueError where an array has another shape or type."""
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            raise ValueError(f"a picture is uint8 (H, W, 3), not {self.image.dtype} {self.image.shape}")
        if self.affines.ndim != 3 or self.affines.shape[1:] != (2, 3):
            raise ValueError(f"affines are (P, 2, 3), not {self.affines.shape}")


def cut_all(crops: Sequence[Crops], size: tuple[int, int]) -> NDArray[np.uint8]:
    """All crops of all pictures in their order: (P, height, width, 3) uint8 BGR."""
    cuts = [cut(part.image, affine, size) for part in crops for affine in part.affines]
    return np.stack(cuts) if cuts else np.zeros((0, *size, 3), np.uint8)


def whole_pictures(pictures: NDArray[np.uint8]) -> list[Crops]:
    """Crops that are cut already, (P, height, width, 3) uint8 BGR, as an engine takes them."""
    return [Crops(picture, _WHOLE[None]) for picture in pictures]
