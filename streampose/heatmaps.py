"""From keypoints to the maps a network is trained on. The way back is part of the network: `model.network.decode`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIGMA = 2.0
"""Spread of a target in heatmap cells."""


def encode(keypoints: NDArray[np.float32], size: tuple[int, int], sigma: float = SIGMA) -> NDArray[np.float32]:
    """Normalised Gaussian targets.

    Args:
        keypoints: (J, 2) x, y in heatmap pixels (continuous: a cell's centre is at .5).
        size: (height, width) of the maps.
        sigma: spread in heatmap pixels.

    Returns:
        (J, height, width) float32, each map a probability distribution: it sums to 1 where the joint is within 3 sigma
        of the map, and is all zeros otherwise.
    """
    height, width = size
    x = np.exp(-((np.arange(width) + 0.5 - keypoints[:, :1]) ** 2) / (2 * sigma**2))
    y = np.exp(-((np.arange(height) + 0.5 - keypoints[:, 1:2]) ** 2) / (2 * sigma**2))
    low, high = -3 * sigma, np.array([width, height]) + 3 * sigma
    near = np.all((keypoints > low) & (keypoints < high), axis=1)
    maps = y[:, :, None] * x[:, None, :] * near[:, None, None]
    return np.asarray(maps / np.maximum(maps.sum(axis=(1, 2), keepdims=True), 1e-12), np.float32)
