"""FAMI-Pose's mutual-information objective as bounds that can be computed; `docs/method.md` derives them.

Y is where a joint is, K the key frame's features, S_i the features of supporting frame i and Z_i the same aligned to
the key frame. What is to be maximised is I(Y; Z | K): what the aligned frames tell of the joint beyond the key frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from streampose.train.losses import distributions, heatmap_cross_entropy

TEMPERATURE = 0.05
ALPHA = 0.5
BETA = 0.1


class SupportDecoder(nn.Module):
    """r(y | z): the joints from one aligned supporting map alone. Needed in training only.

    Forward: (N, C, h, w) -> logits (N, J, h, w).
    """

    def __init__(self, channels: int, joints: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, joints, 1)
        )

    def forward(self, aligned: Tensor) -> Tensor:
        y: Tensor = self.body(aligned)
        return y


def support_loss(decoder: SupportDecoder, aligned: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """E[-log r(y | z_i)], the mean over supporting frames (docs/method.md, equation 5), in nats.

    Args:
        aligned: (B, S, C, h, w) supporting maps aligned to the key frame, at the heatmaps' resolution or less.
        targets: (B, J, H, W) distributions of the key frame's joints.
        weights: (B, J) 0..1.

    Returns:
        A scalar. It bounds the information of each aligned frame from below: H(Y) - loss <= I(Y; Z_i).
    """
    batch, supports = aligned.shape[:2]
    logits = decoder(aligned.flatten(0, 1))
    pooled = distributions(functional.adaptive_avg_pool2d(targets, (logits.shape[2], logits.shape[3])))
    repeated = pooled.repeat_interleave(supports, dim=0)
    assert len(repeated) == batch * supports
    return heatmap_cross_entropy(logits, repeated, weights.repeat_interleave(supports, dim=0))


@torch.no_grad()
def information_gain(single: Tensor, fused: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """How many nats the fused maps tell of the joints beyond the key frame's own maps; a figure, not a loss.

    It is E[log q(y | k, z) - log q(y | k)], the estimate of I(Y; Z | K) that is exact where both decoders are
    (docs/method.md, equation 4). Arguments as in `heatmap_cross_entropy`.
    """
    return heatmap_cross_entropy(single, targets, weights) - heatmap_cross_entropy(fused, targets, weights)


def released_terms(key_maps: Tensor, support_maps: Tensor, fused_maps: Tensor, final: Tensor,
                   key: Tensor, support: Tensor, fused: Tensor) -> dict[str, Tensor]:  # fmt: skip
    """The six terms of the released formula as it computes them, faults included, for comparison only.

    Args:
        key_maps, support_maps, fused_maps: (B, J, h, w) 0..1, the backbone's head on the three features.
        final: (B, J, h, w) 0..1, the network's heatmaps; gradients of terms 1, 3 and 5 flow into these alone.
        key, support, fused: (B, C, h, w) features of the key frame, of the supports before local alignment, and what
            the head reads; gradients of terms 2, 4 and 6 flow into `fused` alone.

    Returns:
        By name, each already with its sign and factor (alpha 0.5, beta 0.1), summed over cells rather than averaged so
        that their size relates to a cross-entropy as it did to a mean squared error.
    """
    label, feature = _released_divergence, _released_divergence
    return {
        "released_1_final_fused": -BETA * ALPHA * label(fused_maps, final),
        "released_2_fused_key": BETA * ALPHA * feature(key, fused),
        "released_3_final_support": ALPHA * label(support_maps, final),
        "released_4_fused_support": -ALPHA * feature(support, fused),
        "released_5_final_key": ALPHA * label(key_maps, final),
        "released_6_fused_key": -ALPHA * feature(key, fused),
    }


def _released_divergence(first: Tensor, second: Tensor) -> Tensor:
    """sum_i q_i (log q_i - p_i) with p of `first`, where a divergence has log p_i; mean over maps."""
    p = functional.softmax(first.detach().flatten(2) / TEMPERATURE, dim=2)
    log_q = functional.log_softmax(second.flatten(2) / TEMPERATURE, dim=2)
    return (log_q.exp() * (log_q - p)).sum(dim=2).mean()
