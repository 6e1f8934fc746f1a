"""What heatmaps are trained on, and the losses. Each is a weighted mean over joints, so that parts of a batch add up.

A batch's loss is the mean of its parts' losses, each weighted by `weights.sum()`: that is how the training loop joins
micro-batches and processes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from streampose.heatmaps import SIGMA


def gaussian_maps(points: Tensor, size: tuple[int, int], cell_px: float, sigma: float = SIGMA) -> Tensor:
    """Gaussians of height 1 around points.

    Args:
        points: (B, J, 2) x, y in crop pixels (continuous: a cell's centre is at .5).
        size: (height, width) of the maps in cells.
        cell_px: crop pixels a cell.
        sigma: spread in cells.

    Returns:
        (B, J, height, width) float32; all zeros where the point is more than 3 sigma outside the map.
    """
    height, width = size
    at = points.float() / cell_px
    x = torch.arange(width, device=points.device) + 0.5 - at[..., 0:1]
    y = torch.arange(height, device=points.device) + 0.5 - at[..., 1:2]
    x, y = torch.exp(-(x**2) / (2 * sigma**2)), torch.exp(-(y**2) / (2 * sigma**2))
    reach = torch.tensor([width, height], device=points.device) + 3 * sigma
    near = ((at > -3 * sigma) & (at < reach)).all(dim=2)
    return y[..., :, None] * x[..., None, :] * near[..., None, None]


def distributions(maps: Tensor) -> Tensor:
    """Maps (B, J, h, w) >= 0 scaled so that each sums to 1; all-zero maps stay."""
    return maps / maps.sum(dim=(2, 3), keepdim=True).clamp(min=1e-9)


def blend(labels: Tensor, teacher: Tensor, share: float) -> Tensor:
    """Distillation: the labels' distributions, with `share` (0..1) of the teacher's in them where it has one.

    Args:
        labels, teacher: (B, J, h, w), each map sums to 1 or is all zeros.

    Returns:
        (B, J, h, w); a joint without a label stays all zeros.
    """
    there = (teacher.amax(dim=(2, 3), keepdim=True) > 0) & (labels.amax(dim=(2, 3), keepdim=True) > 0)
    return torch.where(there, labels.lerp(distributions(teacher), share), labels)


def heatmap_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of each joint's map, as a distribution over its cells, with the target's, in nats.

    Args:
        logits: (B, J, h, w).
        targets: (B, J, h, w), each map sums to 1 (or is all zeros, and then counts nothing).
        weights: (B, J) 0..1.

    Returns:
        The weighted mean over joints, a scalar; 0 where all weights are.
    """
    log_p = functional.log_softmax(logits.float().flatten(2), dim=2)
    per_joint = -(targets.flatten(2) * log_p).sum(dim=2)
    return (per_joint * weights).sum() / weights.sum().clamp(min=1e-6)


def heatmap_mse(maps: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Half the squared error of regressed maps (B, J, h, w) from Gaussians of height 1, as HRNet is trained.

    Returns:
        The mean over cells and the weighted mean over joints (weights (B, J)), a scalar; 0 where all weights are.
    """
    per_joint = 0.5 * (maps.float() - targets).square().mean(dim=(2, 3))
    return (per_joint * weights).sum() / weights.sum().clamp(min=1e-6)
