"""Learning not to flicker: windows of three frames in a row, and what the path of their joints is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FRAMES = 3
"""A path's bend is seen over three frames."""
BEND = (1.0, -2.0, 1.0)
CALM = 2.0
"""A joint that moves this far in two steps, in percent of the box, counts half: flicker is seen on what rests."""
KNEE = 0.5
"""Bends below this, in percent of the box, count nearly in full, larger ones less and less: small ones are flicker."""


class View(NamedTuple):
    """One of the frames in a row, as key frame.

    Attributes:
        features: (B, T, C, h, w), key frame first.
        transforms: (B, T, 2, 2, 3) from its crop's to each frame's crop pixels, see `FamiPose.fuse`.
        points: (B, J, 2) labels in its crop's pixels; weights: (B, J).
        back: (B, 2, 3) from its crop's pixels to those of the newest frame's crop, to the same place of the person.
    """

    features: Tensor
    transforms: Tensor
    points: Tensor
    weights: Tensor
    back: Tensor


def longer_offsets(offsets: Sequence[int]) -> tuple[int, ...]:
    """The supporting frames of a window and of the two windows before it, oldest first; `offsets` are past ones."""
    return tuple(range(min(offsets) - FRAMES + 1, 0))


def views(batch: Mapping[str, Tensor], features: Tensor, offsets: Sequence[int]) -> Iterator[View]:
    """The newest frame of longer windows and the two before it, newest first, each with its own supporting frames.

    Args:
        batch: of `train.windows.Windows` with the offsets `longer_offsets(offsets)` and `all_frames`.
        features: (B, T', C, h, w) of its crops.
    """
    longer = (0, *longer_offsets(offsets))
    for age in range(FRAMES):
        slots = [longer.index(offset - age) for offset in (0, *offsets)]
        key = slots[0]
        back = _invert(batch["transforms"][:, key])
        transforms = _compose(batch["transforms"][:, slots], back.unsqueeze(1))
        labels = batch["frame_points"][:, key], batch["frame_weights"][:, key]
        yield View(features[:, slots], transforms, *labels, back[:, 0])


def tremble_loss(points: Sequence[Tensor], seen: Sequence[View], side: Tensor) -> Tensor:
    """How far the bend of each joint's path is from that of its labels: what is seen as flicker.

    Args:
        points: of each view (B, J, 2), found in its crop's pixels.
        side: (B,) longer side of the person's box, in pixels of the newest frame's crop.

    Returns:
        The weighted mean of log(1 + bend / 0.5), bend being |p[0] - 2 p[1] + p[2] - the labels'| in percent of `side`,
        each less the farther the joint's label moves from the first view to the last; a scalar.
    """
    off = torch.zeros_like(points[0])
    first, last = (_apply(view.back, view.points) for view in (seen[-1], seen[0]))
    travelled = 100 * (last - first).norm(dim=2) / side[:, None]
    for share, found, view in zip(BEND, points, seen, strict=True):
        off = off + share * (_apply(view.back, found) - _apply(view.back, view.points))
    length = 100 * off.square().sum(dim=2).add(1e-6).sqrt() / side[:, None]
    known = torch.stack([view.weights for view in seen]).amin(dim=0)
    calm = known / (1 + (travelled / CALM).square())
    loss: Tensor = ((length / KNEE).log1p() * calm).sum() / known.sum().clamp(min=1e-6)
    return loss


def _apply(affine: Tensor, points: Tensor) -> Tensor:
    """Points (B, J, 2) through affines (B, 2, 3)."""
    return points @ affine[:, :, :2].transpose(1, 2) + affine[:, None, :, 2]


def _invert(affine: Tensor) -> Tensor:
    """The inverse of affines (..., 2, 3)."""
    linear = torch.linalg.inv(affine[..., :2])
    return torch.cat([linear, -linear @ affine[..., 2:]], dim=-1)


def _compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The affines that apply `inner`, then `outer`; (..., 2, 3)."""
    linear = outer[..., :2] @ inner[..., :2]
    return torch.cat([linear, outer[..., :2] @ inner[..., 2:] + outer[..., 2:]], dim=-1)
