"""Heatmaps averaged over the frames that agree: what rests does not flicker."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from streampose.model.align import full_precision, scaled, warp

TOLERANCE = 0.02
"""A supporting map whose Bhattacharyya coefficient with the key frame's is this far from 1 weighs 1/e of it: for joints
that are spread by two cells, one that is 0.8 cells, or 1.6 % of the box, away."""
COARSER = 2
"""Maps are compared, and what changes is computed, at a half of their resolution: it is smooth, and costs a quarter."""


def average(key: Tensor, supports: Tensor, transforms: Tensor, cell_px: float) -> Tensor:
    """The key frame's maps averaged, joint by joint, with those supporting maps that say the same of the same place of
    the picture.

    What is wrong by chance in one frame is not in the next, so that of five frames that agree a fifth is left. Where a
    joint moves, or the camera does, its supporting maps disagree and weigh nothing: nothing lags. (Bhattacharyya 1943.)

    Args:
        key: (B, J, h, w) logits of the key frame: a map's softmax is the distribution of its joint.
        supports: (B, S, J, h/2, w/2) logits of the supporting frames, each in its own crop.
        transforms: (B, S, 2, 3) from key-crop pixels to the same place of the picture in the supporting crop's.
        cell_px: crop pixels a cell of `key`.

    Returns:
        (B, J, h, w) float32 logits.
    """
    with full_precision(key):
        key, alone = key.float(), supports.flatten(0, 1).float()
        now, alone = _from_least(functional.avg_pool2d(key, COARSER)), _from_least(alone)
        near = warp(alone, scaled(transforms.flatten(0, 1), COARSER * cell_px)).view_as(supports)
        coefficients = (_roots(near) * _roots(now).unsqueeze(1)).sum(dim=-1)
        weights = ((coefficients - 1) / TOLERANCE).exp()[..., None, None]
        mean = (now + (weights * near).sum(dim=1)) / (1 + weights.sum(dim=1))
        change = functional.interpolate(mean - now, scale_factor=float(COARSER), mode="bilinear", align_corners=False)
        return key + change


def _from_least(logits: Tensor) -> Tensor:
    """The same distributions, with logits from zero on: zero is what lies around a warped map."""
    return logits - logits.amin(dim=(2, 3), keepdim=True)


def _roots(logits: Tensor) -> Tensor:
    """Square roots of the maps' distributions, (..., h*w): a Bhattacharyya coefficient is the product of two."""
    return logits.flatten(-2).softmax(dim=-1).sqrt()
