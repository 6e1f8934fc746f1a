"""A network in torch as an engine: what all compiled ones are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streampose.engines import Feature
from streampose.engines.crops import Crops, cut_all
from streampose.engines.manifest import Manifest
from streampose.model import FamiPose
from streampose.model.network import KeypointFuser, normalise

CHUNK = 4
"""Crops or windows a run: a batch of all of them would take gigabytes."""


class TorchEngine:
    """See `streampose.engines.Engine`. On the device where the network's parameters are."""

    def __init__(self, network: FamiPose, manifest: Manifest) -> None:
        self.manifest = manifest
        self._network = network.eval()
        self._fuser = KeypointFuser(network)
        self._device = next(network.parameters()).device

    @torch.inference_mode()
    def encode(self, crops: Sequence[Crops]) -> list[Feature]:
        pixels = torch.from_numpy(cut_all(crops, self.manifest.input_size))
        return [
            feature
            for part in torch.split(pixels, CHUNK)
            for feature in self._network.encode(normalise(part.to(self._device)))
        ]

    def fuse(self, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._fuse(windows, transforms)[0]

    def heatmaps(self, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._fuse(windows, transforms)[1]

    def read(self, feature: Feature) -> NDArray[np.float32]:
        assert isinstance(feature, Tensor)
        return np.asarray(feature.float().cpu().numpy(), np.float32)

    @torch.inference_mode()
    def _fuse(
        self, windows: Sequence[Sequence[Feature]], transforms: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        keypoints, heatmaps = [], []
        for start in range(0, len(windows), CHUNK):
            part = slice(start, start + CHUNK)
            features = torch.stack([torch.stack([_tensor(f) for f in window]) for window in windows[part]])
            points, maps = self._fuser(features, torch.from_numpy(transforms[part]).to(self._device))
            keypoints.append(points.float().cpu().numpy())
            heatmaps.append(maps.float().cpu().numpy())
        return np.concatenate(keypoints), np.concatenate(heatmaps)


def _tensor(feature: Feature) -> Tensor:
    assert isinstance(feature, Tensor)
    return feature
