"""The network as it streams: crops to features once a person and frame, then features of a window to keypoints."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from streampose.errors import ModelError, UsageError
from streampose.model.lite import LiteEncoder, LiteFuser
from streampose.model.mobile import EfficientNetLite0

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STRIDE = 4
MEAN_RADIUS = 3
SCORE_RADIUS = 5


def normalise(crops: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 BGR -> (B, 3, H, W) float32 RGB, zero mean and unit deviation over ImageNet."""
    rgb = crops.flip(-1).permute(0, 3, 1, 2).float()
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1) * 255
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) * 255
    return (rgb - mean) / std


def take_bgr(trunk: EfficientNetLite0) -> None:
    """Let a trunk take what `centre` gives instead of `normalise`: its first convolution takes over the rest."""
    stem = trunk.stem[0]
    assert isinstance(stem, nn.Conv2d)
    std = torch.tensor(IMAGENET_STD).flip(0).view(1, 3, 1, 1) * 255
    with torch.no_grad():
        stem.weight.copy_(stem.weight.flip(1) / std)


def centre(crops: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 BGR -> (B, 3, H, W) float32 BGR, 0..255 less ImageNet's mean; see `take_bgr`."""
    mean = torch.tensor(IMAGENET_MEAN).flip(0).view(1, 3, 1, 1) * 255
    return crops.permute(0, 3, 1, 2).float() - mean


def decode(logits: Tensor) -> Tensor:
    """The keypoint of each map: the mean of its distribution around the peak, and how sure that is.

    Args:
        logits: (B, J, h, w); a map's softmax is the distribution of its joint.

    Returns:
        (B, J, 3) float32: x, y in crop pixels (4 a cell), the mean within 3 cells of the peak; and as score, 0..1, the
        share of the distribution within 5 cells, which is how likely the network thinks the joint is that near.
    """
    height, width = logits.shape[2:]
    p = functional.softmax(logits.flatten(2), dim=2)
    peak = p.argmax(dim=2, keepdim=True)
    cell = torch.arange(height * width, device=logits.device)
    x, y = cell % width, cell // width
    distance = torch.maximum((x - peak % width).abs(), (y - peak // width).abs())
    local = p * (distance <= MEAN_RADIUS)
    mass = local.sum(dim=2)
    mean_x = (local * (x + 0.5)).sum(dim=2) / mass
    mean_y = (local * (y + 0.5)).sum(dim=2) / mass
    score = (p * (distance <= SCORE_RADIUS)).sum(dim=2).clamp(max=1.0)
    return torch.stack([mean_x * STRIDE, mean_y * STRIDE, score], dim=2)


class FamiPose(nn.Module):
    """FAMI-Pose (CVPR 2022, arXiv 2203.15227) split where it streams: `encode` once a frame, `fuse` once a window.

    Args:
        encoder: frames (B, 3, H, W) to features (B, C, H/4, W/4); has a single-frame `head`.
        fuser: features of a window and transforms to heatmaps.
        offsets: the supporting frames, relative to the key frame, in the order of the windows.
    """

    def __init__(self, encoder: LiteEncoder, fuser: LiteFuser, offsets: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        self.fuser = fuser
        self.offsets = offsets
        self.encoder_frozen = False

    def freeze_encoder(self) -> None:
        """Fix the encoder; its BatchNorm keeps its statistics whatever mode the rest is in."""
        self.encoder_frozen = True
        self.encoder.requires_grad_(False)
        self.encoder.eval()

    def train(self, mode: bool = True) -> FamiPose:
        super().train(mode)
        if self.encoder_frozen:
            self.encoder.eval()
        return self

    def forward(self, frames: Tensor) -> Tensor:
        """Heatmaps of the key frame of a window whose frames share one crop.

        Args:
            frames: (B, T, 3, H, W) float32 normalised, key frame first, then the supports in the order of `offsets`.

        Returns:
            (B, J, H/4, W/4); the softmax of a map is the distribution of its joint.
        """
        batch, count = frames.shape[:2]
        features = self.encode(frames.flatten(0, 1))
        features = features.view(batch, count, *features.shape[1:])
        same = torch.eye(2, 3, dtype=frames.dtype, device=frames.device).expand(batch, count, 2, 3)
        return self.fuse(features, same)

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) float32 normalised -> features (B, C, H/4, W/4). H and W are divisible by 32."""
        features: Tensor = self.encoder(frames)
        return features

    def fuse(self, features: Tensor, transforms: Tensor) -> Tensor:
        """Heatmaps of the key frame.

        Args:
            features: (B, T, C, h, w), key frame first.
            transforms: (B, T, 2, 3) float32 from key-crop pixels to that frame's crop pixels; [:, 0] is the identity.

        Returns:
            (B, J, h, w).
        """
        heatmaps: Tensor = self.fuser(features, transforms)
        return heatmaps

    def single(self, features: Tensor) -> Tensor:
        """Heatmaps (B, J, h, w) of single frames' features (B, C, h, w), by the encoder's own head."""
        heatmaps: Tensor = self.encoder.head(features)
        return heatmaps


class CropEncoder(nn.Module):
    """What is exported as encoder: (P, H, W, 3) uint8 BGR crops -> (P, C, H/4, W/4) features."""

    def __init__(self, network: FamiPose) -> None:
        super().__init__()
        self.encoder = deepcopy(network.encoder)
        take_bgr(self.encoder.trunk)

    def forward(self, crops: Tensor) -> Tensor:
        features: Tensor = self.encoder(centre(crops))
        return features


class KeypointFuser(nn.Module):
    """What is exported as fuser: features (P, T, C, h, w) and transforms (P, T, 2, 3) -> keypoints (P, J, 3)."""

    def __init__(self, network: FamiPose) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, transforms: Tensor) -> Tensor:
        return decode(self.network.fuse(features, transforms))


LITE_OFFSETS = (-4, -3, -2, -1)


def fami_pose(backbone: str = "lite", offsets: tuple[int, ...] = LITE_OFFSETS) -> FamiPose:
    """A network with random weights.

    Args:
        backbone: "lite".
        offsets: supporting frames relative to the key frame.

    Raises:
        UsageError: an unknown backbone.
    """
    if backbone != "lite":
        raise UsageError(f"unknown backbone {backbone!r}; there is: lite")
    return FamiPose(LiteEncoder(), LiteFuser(), offsets)


def load(checkpoint: Path) -> FamiPose:
    """The lite network from a training checkpoint, in evaluation mode, on the CPU.

    Raises:
        ModelError: the file is missing, is no checkpoint, or belongs to another network.
    """
    network = fami_pose("lite")
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        network.load_state_dict(state["ema"])
    except FileNotFoundError as error:
        raise ModelError(f"{checkpoint} is missing; train one with: streampose train lite") from error
    except Exception as error:
        raise ModelError(f"{checkpoint} is not a checkpoint of the lite network") from error
    return network.eval()
