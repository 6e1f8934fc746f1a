"""The network as it streams: crops to features once a person and frame, then features of a window to keypoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from streampose.errors import UsageError
from streampose.model.fuser import STRIDE, Fused, Fuser
from streampose.model.hrnet import HRNet
from streampose.model.lite import LiteEncoder
from streampose.model.mobile import EfficientNetLite0
from streampose.model.released import SUPPORTS, ReleasedFuser, from_released
from streampose.skeleton import COCO17, POSETRACK, SKELETONS

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MODE_RADIUS = 3
MEAN_RADIUS = 4
MEAN_SHIFTS = 3
SCORE_RADIUS = 5
HEATMAPS = ("distribution", "gaussian", "gaussian-index")
INDEX_SHIFT = STRIDE * 0.5 - 0.5
BACKBONES = ("lite", "hrnet-w32", "hrnet-w48")
LITE_OFFSETS = (-4, -3, -2, -1)
PAPER_OFFSETS = (-2, -1, 1, 2)


def normalise(crops: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 BGR -> (B, 3, H, W) float32 RGB, zero mean and unit deviation over ImageNet."""
    rgb = crops.flip(-1).permute(0, 3, 1, 2).float()
    mean = torch.tensor(IMAGENET_MEAN, device=crops.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(IMAGENET_STD, device=crops.device).view(1, 3, 1, 1) * 255
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


def decode(heatmaps: Tensor, kind: str = "distribution") -> Tensor:
    """The keypoint of each map.

    Args:
        heatmaps: (B, J, h, w).
        kind: "distribution": a map's softmax is the distribution of its joint; the keypoint is its mode, found by mean
            shifts (Comaniciu and Meer 2002) over 4 cells to each side from the cell whose surroundings hold most, and
            the score the share within 5 cells, which is how likely the network thinks the joint is that near. A peak's
            own cell decides nothing: where a map is flat, it jumps with the last digit of the arithmetic.
            "gaussian": a map is a Gaussian of height 1; the keypoint is the vertex of the parabola through the peak's
            and its neighbours' logarithms (exact for a Gaussian; at most one cell away), the score the peak.
            "gaussian-index": as public networks are trained (deep-high-resolution-net, mmpose, DCPose, FAMI-Pose): the
            peak of cell i means 4 i in coordinates whose whole numbers are pixel centres, 1.5 crop pixels less.

    Returns:
        (B, J, 3) float32: x, y in crop pixels (4 a cell; continuous, a cell's centre is at .5), and a score 0..1.
    """
    if kind == "distribution":
        return _decode_distribution(heatmaps.float())
    keypoints = _decode_gaussian(heatmaps.float())
    if kind == "gaussian-index":
        keypoints = keypoints - torch.tensor([INDEX_SHIFT, INDEX_SHIFT, 0.0], device=keypoints.device)
    return keypoints


def _decode_distribution(logits: Tensor) -> Tensor:
    height, width = logits.shape[2:]
    p = functional.softmax(logits.flatten(2), dim=2).view(logits.shape)
    columns, rows = (torch.arange(n, dtype=p.dtype, device=p.device) + 0.5 for n in (width, height))
    peak = (_band(rows) @ p @ _band(columns)).flatten(2).argmax(dim=2)  # a box sum: pooling is ten times slower on CPUs
    x, y = (peak % width).to(p.dtype) + 0.5, (peak // width).to(p.dtype) + 0.5
    for _ in range(MEAN_SHIFTS):
        near_x, near_y = _near(columns, x, MEAN_RADIUS), _near(rows, y, MEAN_RADIUS)
        of_rows = p @ torch.stack([near_x, near_x * columns], dim=-1)  # (B, J, h, 2)
        of_map = torch.stack([near_y, near_y * rows], dim=2) @ of_rows  # (B, J, 2, 2)
        x, y = of_map[:, :, 0, 1] / of_map[:, :, 0, 0], of_map[:, :, 1, 0] / of_map[:, :, 0, 0]
    near_x, near_y = _near(columns, x, SCORE_RADIUS), _near(rows, y, SCORE_RADIUS)
    score = (near_y.unsqueeze(2) @ p @ near_x.unsqueeze(3)).flatten(1).clamp(max=1.0)
    return torch.stack([x * STRIDE, y * STRIDE, score], dim=2)


def _band(cells: Tensor) -> Tensor:
    """(n, n) ones where two cells are at most `MODE_RADIUS` apart."""
    return ((cells.unsqueeze(1) - cells).abs() <= MODE_RADIUS).to(cells.dtype)


def _near(cells: Tensor, at: Tensor, radius: int) -> Tensor:
    """(B, J, n) weights of cells (n,) by their distance from `at` (B, J): 1 up to `radius`, 0 from one more on."""
    return (radius + 1 - (cells - at.unsqueeze(2)).abs()).clamp(0, 1)


def _decode_gaussian(maps: Tensor) -> Tensor:
    height, width = maps.shape[2:]
    flat = maps.flatten(2)
    score, peak = flat.amax(dim=2), flat.argmax(dim=2)  # two reductions, since torch-tensorrt has no max with indices
    x, y = peak % width, peak // width
    log = flat.clamp(min=1e-6).log()
    shifts = []
    for place, step, last in ((x, 1, width - 1), (y, width, height - 1)):
        cells = [(peak + k * step).clamp(0, height * width - 1) for k in (0, -1, 1)]
        middle, before, after = (log.gather(2, cell[..., None])[..., 0] for cell in cells)
        curve = before + after - 2 * middle
        vertex = 0.5 * (before - after) / curve.clamp(max=-1e-6)
        inside = (curve < -1e-6) & (place > 0) & (place < last)
        shifts.append(torch.where(inside, vertex.clamp(-1, 1), torch.zeros_like(vertex)))
    points = [(x + 0.5 + shifts[0]) * STRIDE, (y + 0.5 + shifts[1]) * STRIDE]
    return torch.stack([*points, score.clamp(0, 1)], dim=2)


class FamiPose(nn.Module):
    """FAMI-Pose (CVPR 2022, arXiv 2203.15227) split where it streams: `encode` once a frame, `fuse` once a window.

    Attributes:
        encoder: frames (B, 3, H, W) to features (B, C, H/4, W/4); has a single-frame `head`.
        fuser: features of a window and transforms to heatmaps; None in a single-frame network (no offsets).
        backbone, variant, alignment, heatmap: see `fami_pose`.
        skeleton: name of the joints, see `streampose.skeleton`.
        offsets: the supporting frames, relative to the key frame, in the order of the windows.
    """

    def __init__(
        self, encoder: LiteEncoder | HRNet, fuser: Fuser | ReleasedFuser | None, description: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.fuser = fuser
        self.description = dict(description)
        self.encoder_frozen = False

    @property
    def backbone(self) -> str:
        return str(self.description["backbone"])

    @property
    def variant(self) -> str:
        return str(self.description["variant"])

    @property
    def heatmap(self) -> str:
        return str(self.description["heatmap"])

    @property
    def skeleton(self) -> str:
        return str(self.description["skeleton"])

    @property
    def offsets(self) -> tuple[int, ...]:
        return tuple(self.description["offsets"])

    @property
    def joints(self) -> int:
        return len(SKELETONS[self.skeleton].joints)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the crops that this backbone is usually given; others work as well."""
        return (256, 192) if self.backbone == "lite" else (384, 288)

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
            (B, J, H/4, W/4), of the kind that `heatmap` names; see `decode`.

        Raises:
            ValueError: see `encode` and `fuse_parts`.
        """
        batch, count = frames.shape[:2]
        features = self.encode(frames.flatten(0, 1))
        features = features.view(batch, count, *features.shape[1:])
        same = torch.eye(2, 3, dtype=features.dtype, device=frames.device).expand(batch, count, 2, 2, 3)
        return self.fuse(features, same)

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) float32 normalised -> features (B, C, H/4, W/4).

        Raises:
            ValueError: H or W is not divisible by 32.
        """
        if frames.shape[-2] % 32 or frames.shape[-1] % 32:
            raise ValueError(f"crops have sides divisible by 32, got {tuple(frames.shape[-2:])}")
        features: Tensor = self.encoder(frames)
        return features

    def fuse(self, features: Tensor, transforms: Tensor) -> Tensor:
        """Heatmaps of the key frame.

        Args:
            features: (B, T, C, h, w), key frame first.
            transforms: (B, T, 2, 2, 3) float32 from key-crop pixels to that frame's crop pixels: to the same place of
                the person, and of the picture; [:, 0] is the identity.

        Returns:
            (B, J, h, w).

        Raises:
            ValueError: see `fuse_parts`.
        """
        if self.fuser is None:
            return self.single(features[:, 0])
        return self.fuse_parts(features, transforms).heatmaps

    def fuse_parts(self, features: Tensor, transforms: Tensor) -> Fused:
        """As `fuse`, with what lies between; see `Fused`.

        Raises:
            ValueError: a window without supporting frames, transforms of another shape, or not the frames that a joint
                alignment or the released network was made for.
        """
        if self.fuser is None or features.shape[1] < 2:
            raise ValueError(f"nothing to fuse: {features.shape[1]} frames, network for offsets {list(self.offsets)}")
        expected = (*features.shape[:2], 2, 2, 3)
        if transforms.shape != expected:
            raise ValueError(f"transforms of these windows are {tuple(expected)}, not {tuple(transforms.shape)}")
        parts: Fused = self.fuser(features, transforms)
        return parts

    def single(self, features: Tensor) -> Tensor:
        """Heatmaps (B, J, h, w) of single frames' features (B, C, h, w), by the encoder's own head."""
        heatmaps: Tensor = self.encoder.head(features)
        return heatmaps

    def decode(self, heatmaps: Tensor) -> Tensor:
        """Keypoints of this network's heatmaps, see `decode`."""
        return decode(heatmaps, self.heatmap)

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Take the tensors of the network that the authors released, by their names.

        Raises:
            UsageError: this is not `variant="released"`.
            ModelError: tensors are missing, left over or of another shape.
        """
        if self.variant != "released":
            raise UsageError('load_released is for fami_pose("hrnet-w48", variant="released")')
        self.load_state_dict(from_released(state, self.state_dict()))


class CropEncoder(nn.Module):
    """What is exported as encoder: (P, H, W, 3) uint8 BGR crops -> (P, C, H/4, W/4) features."""

    def __init__(self, network: FamiPose) -> None:
        super().__init__()
        self.encoder = deepcopy(network.encoder)
        self.centred = isinstance(self.encoder, LiteEncoder)
        if isinstance(self.encoder, LiteEncoder):
            take_bgr(self.encoder.trunk)

    def forward(self, crops: Tensor) -> Tensor:
        features: Tensor = self.encoder(centre(crops) if self.centred else normalise(crops))
        return features


class KeypointFuser(nn.Module):
    """What is exported as fuser: features (P, T, C, h, w) and transforms (P, T, 2, 2, 3) -> keypoints (P, J, 3) and
    the heatmaps (P, J, h, w) that they were decoded from."""

    def __init__(self, network: FamiPose) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, transforms: Tensor) -> tuple[Tensor, Tensor]:
        heatmaps = self.network.fuse(features, transforms)
        return self.network.decode(heatmaps), heatmaps


def fami_pose(
    backbone: str = "lite",
    offsets: Sequence[int] | None = None,
    *,
    variant: str = "paper",
    skeleton: str | None = None,
    alignment: str = "per-frame",
    heatmap: str | None = None,
) -> FamiPose:
    """A network with random weights.

    Args:
        backbone: "lite", "hrnet-w32" or "hrnet-w48".
        offsets: supporting frames relative to the key frame; by default (-4, -3, -2, -1) for lite and the paper's
            (-2, -1, 1, 2) for HRNet. Empty for a single-frame network.
        variant: "paper", or "released": the network that the authors released (hrnet-w48 only).
        skeleton: name of the joints; by default "coco17", or "posetrack" for the released network.
        alignment: of "paper": "per-frame" or "joint", see `Fuser`.
        heatmap: what the maps are, see `decode`: "distribution" (lite's default), "gaussian" (HRNet's) or
            "gaussian-index" (the released network's, and what public weights are trained for).

    Raises:
        UsageError: an unknown name, or what does not go together.
    """
    if backbone not in BACKBONES:
        raise UsageError(f"unknown backbone {backbone!r}; there are: {', '.join(BACKBONES)}")
    if variant not in ("paper", "released"):
        raise UsageError(f"unknown variant {variant!r}; there are: paper, released")
    lite = backbone == "lite"
    offsets = tuple(offsets if offsets is not None else LITE_OFFSETS if lite else PAPER_OFFSETS)
    skeleton = skeleton or (POSETRACK.name if variant == "released" else COCO17.name)
    heatmap = heatmap or ("distribution" if lite else "gaussian-index" if variant == "released" else "gaussian")
    if skeleton not in SKELETONS:
        raise UsageError(f"unknown skeleton {skeleton!r}; there are: {', '.join(SKELETONS)}")
    if heatmap not in HEATMAPS:
        raise UsageError(f"unknown heatmap {heatmap!r}; there are: {', '.join(HEATMAPS)}")
    if 0 in offsets or len(set(offsets)) < len(offsets):
        raise UsageError(
            f"offsets are the supporting frames' distances from the key frame, each once, got {list(offsets)}"
        )
    description = {
        "backbone": backbone, "variant": variant, "skeleton": skeleton, "offsets": list(offsets),
        "alignment": alignment, "heatmap": heatmap,
    }  # fmt: skip
    joints = len(SKELETONS[skeleton].joints)
    if variant == "released":
        if (backbone, len(offsets), joints) != ("hrnet-w48", SUPPORTS, 17) or alignment != "per-frame":
            raise UsageError("the released network is hrnet-w48 with four supporting frames and 17 joints")
        return FamiPose(HRNet(48, joints), ReleasedFuser(), description)
    encoder = LiteEncoder(joints) if lite else HRNet(int(backbone.removeprefix("hrnet-w")), joints)
    return FamiPose(encoder, _fuser(encoder, joints, len(offsets), alignment, heatmap == "distribution"), description)


def _fuser(encoder: LiteEncoder | HRNet, joints: int, supports: int, alignment: str, calm: bool) -> Fuser | None:
    if not supports:
        return None
    if isinstance(encoder, LiteEncoder):
        return Fuser(encoder.channels, joints, supports, 32, narrow=2, alignment=alignment, calm=calm)
    channels = encoder.channels
    return Fuser(channels, joints, supports, channels, 1, channels // 4, 2 * channels, alignment, calm)
