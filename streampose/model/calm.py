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
SAME = 1e-3
"""Slots of a window whose maps' least logits differ by no more than this show the same frame."""


def average(key: Tensor, alone: Tensor, transforms: Tensor, cell_px: float) -> Tensor:
    """The key frame's maps averaged, joint by joint, with those supporting maps that say the same of the same place of
    the picture.

    What is wrong by chance in one frame is not in the next, so that of five frames that agree a fifth is left. Where a
    joint moves, or the camera does, supporting maps disagree and weigh little: the result lags by less than a fifth of
    the map's own spread. (Bhattacharyya 1943.) Each frame counts once, also where it stands in for missing ones. In
    training, the weights are constants.

    Args:
        key: (B, J, h, w) logits of the key frame: a map's softmax is the distribution of its joint.
        alone: (B, T, J, h/2, w/2) logits of each frame by itself, the key frame first, each in its own crop.
        transforms: (B, T, 2, 3) from key-crop pixels to the same place of the picture in each crop's.
        cell_px: crop pixels a cell of `key`.

    Returns:
        (B, J, h, w) float32 logits.
    """
    with full_precision(key):
        key, alone = key.float(), alone.float()
        least = alone.amin(dim=(3, 4))
        now = functional.avg_pool2d(key, COARSER)
        now = now - now.amin(dim=(2, 3), keepdim=True)
        past = (alone - least[..., None, None])[:, 1:]  # zero, which lies around them, is the least likely
        affines = scaled(transforms[:, 1:].flatten(0, 1), COARSER * cell_px)
        near = warp(past.flatten(0, 1), affines).view_as(past)
        # The gradient of a root is infinite where a probability is 0, so there is none of the weights.
        coefficients = (_roots(near.detach()) * _roots(now.detach()).unsqueeze(1)).sum(dim=-1)
        weights = ((coefficients - 1) / TOLERANCE).exp() * _shares(least.detach())
        weights = weights[..., None, None]
        mean = (now + (weights * near).sum(dim=1)) / (1 + weights.sum(dim=1))
        change = functional.interpolate(mean - now, scale_factor=float(COARSER), mode="bilinear", align_corners=False)
        return key + change


def _roots(logits: Tensor) -> Tensor:
    """Square roots of the maps' distributions, (..., h*w): a Bhattacharyya coefficient is the product of two."""
    return logits.flatten(-2).softmax(dim=-1).sqrt()


def _shares(least: Tensor) -> Tensor:
    """(B, S, 1) for how much supporting slots count, so that those that show the same frame count as one, and those
    that show the key frame not at all; by the least logits (B, T, J) of each slot."""
    same = ((least.unsqueeze(1) - least.unsqueeze(2)).abs().amax(dim=3) <= SAME).to(least.dtype)
    return (1 - same[:, 1:, :1]) / same[:, 1:, 1:].sum(dim=2, keepdim=True)
