"""Training in int8: the network that rounds learns to compute what the network computes in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import default_collate

from streampose.model import FamiPose, normalise
from streampose.model.int8 import calibrate, to_int8
from streampose.train.loop import Batch
from streampose.train.losses import heatmap_cross_entropy, heatmap_mse
from streampose.train.pose import PoseData, PoseTask, both_pcks, encode_windows, frozen_encoder
from streampose.train.recipe import Int8Stage

CALIBRATION_BATCH = 4


class Int8Task(PoseTask):
    """Encoder and fuser in int8, both at once; see `Task`. Labels are for validation alone.

    Args:
        original: the network in float32.
        data: its windows.
    """

    stage: Int8Stage

    def __init__(self, original: FamiPose, data: PoseData, stage: Int8Stage) -> None:
        super().__init__(to_int8(original), data, stage)
        self._original = original.eval().requires_grad_(False)
        self._original_encoder: nn.Module | None = None
        self.loss_weights = {"divergence": 1.0, "features": stage.features}
        calibrate(self.model, self._show)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        encoder = self.model.encoder
        for head in (encoder.head, encoder.coarse_heads):
            head.requires_grad_(False)
        return [{"params": [p for p in self.model.parameters() if p.requires_grad], "lr": lr}]

    def weight(self, batch: Batch) -> Tensor:
        """Windows, all alike."""
        return torch.tensor(float(len(batch["crops"])), device=batch["crops"].device)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        crops, transforms = batch["crops"], batch["transforms"]
        with torch.no_grad():
            if self._original_encoder is None:  # not before: the loop moves the network to its device
                self._original.to(crops.device)
                self._original_encoder = frozen_encoder(self._original)
            wanted = encode_windows(self._original_encoder, crops)
            maps = self._original.fuse(wanted, transforms)
        features = self._encode(crops)
        heatmaps = self.model.fuse(features, transforms)
        weights = heatmaps.new_ones(heatmaps.shape[:2])
        if self.model.heatmap == "gaussian":
            divergence = heatmap_mse(heatmaps, maps, weights)
        else:
            targets = maps.flatten(2).softmax(dim=2).view_as(maps)
            least = heatmap_cross_entropy(maps, targets, weights)
            divergence = heatmap_cross_entropy(heatmaps, targets, weights) - least
        return {"divergence": divergence, "features": functional.mse_loss(features, wanted) / wanted.var()}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """The network's figures, and those of the one in float32 as `fp32_...`."""
        assert isinstance(model, FamiPose)
        found, original = (both_pcks(one, self.data.val, self.stage.size) for one in (model, self._original))
        return found | {f"fp32_{name}": value for name, value in original.items()}

    def _encode(self, crops: Tensor) -> Tensor:
        """As `encode_windows`, with gradients."""
        frames = normalise(crops.flatten(0, 1)).contiguous(memory_format=torch.channels_last)
        features = self.model.encode(frames).contiguous()
        return features.view(crops.shape[0], crops.shape[1], *features.shape[1:])

    def _show(self) -> None:
        """Run the network on the windows that it is calibrated by."""
        for start in range(0, self.stage.calibration, CALIBRATION_BATCH):
            indices = range(start, min(start + CALIBRATION_BATCH, self.stage.calibration))
            batch = default_collate([self.data.windows[index] for index in indices])
            self.model.fuse(self._encode(batch["crops"]), batch["transforms"])
