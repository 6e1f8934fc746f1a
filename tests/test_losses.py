"""Heatmap losses and the mutual-information terms, against numbers worked out by hand or by numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [train] extra")

from streampose.heatmaps import encode
from streampose.model import decode
from streampose.train.losses import distributions, gaussian_maps, heatmap_cross_entropy, heatmap_mse
from streampose.train.mutual_information import (
    SupportDecoder,
    information_gain,
    released_terms,
    support_loss,
)


def points(*at: tuple[float, float]) -> torch.Tensor:
    return torch.tensor([at])


def test_targets_are_those_that_numpy_makes() -> None:
    at = np.array([[10.0, 37.0], [90.6, 3.3], [500, 20], [-9, 20]], np.float32)
    found = distributions(gaussian_maps(torch.from_numpy(at)[None], (16, 24), 4.0))[0].numpy()
    assert found == pytest.approx(encode(at / 4, (16, 24)), abs=1e-6)
    assert found.sum(axis=(1, 2)) == pytest.approx([1, 1, 0, 1])


def test_the_cross_entropy_of_a_map_with_itself_is_its_entropy() -> None:
    maps = distributions(gaussian_maps(points((20, 30), (40, 12)), (16, 24), 4.0))
    entropy = -(maps * maps.clamp(min=1e-30).log()).sum(dim=(2, 3))
    weights = torch.tensor([[1.0, 0.25]])
    found = heatmap_cross_entropy(maps.clamp(min=1e-30).log() + 3, maps, weights)
    assert float(found) == pytest.approx(float((entropy[0] * weights[0]).sum() / 1.25), rel=1e-4)
    assert float(heatmap_cross_entropy(maps, maps, torch.zeros(1, 2))) == 0


def test_the_squared_error_is_a_weighted_mean() -> None:
    maps, targets = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    maps[0, 0, 1, 2], maps[0, 1] = 2.0, 3.0
    assert float(heatmap_mse(maps, targets, torch.tensor([[1.0, 0.0]]))) == pytest.approx(0.5 * 4 / 16)
    assert float(heatmap_mse(maps, targets, torch.tensor([[3.0, 1.0]]))) == pytest.approx((3 * 0.125 + 4.5) / 4)


@pytest.mark.parametrize("kind", ["distribution", "gaussian"])
def test_what_is_encoded_is_decoded_without_bias(kind: str) -> None:
    rng = np.random.default_rng(2)
    at = rng.uniform([16, 16], [176, 240], (1, 400, 2)).astype(np.float32)
    maps = gaussian_maps(torch.from_numpy(at), (64, 48), 4.0)
    heatmaps = (distributions(maps) + 1e-12).log() if kind == "distribution" else maps
    found = decode(heatmaps, kind)[0].numpy()
    error = found[:, :2] - at[0]
    assert np.abs(error).max() < (0.8 if kind == "distribution" else 0.02)  # the mean is of cells within 3 of the peak
    assert np.abs(error.mean(axis=0)).max() < 0.05
    assert found[:, 2].min() > 0.85


def test_maps_of_public_networks_are_decoded_by_their_own_convention() -> None:
    """deep-high-resolution-net: a Gaussian of sigma 2 about the cell that is nearest to a quarter of the joint's
    place, whole numbers being pixel centres."""
    rng = np.random.default_rng(0)
    joints = rng.uniform([20, 20], [170, 230], (17, 2))  # pixel centres at whole numbers
    centres = (joints / 4 + 0.5).astype(int)
    y, x = np.mgrid[:64, :48]
    maps = np.exp(-((x - centres[:, :1, None]) ** 2 + (y - centres[:, 1:, None]) ** 2) / 8).astype(np.float32)
    found = decode(torch.from_numpy(maps)[None], "gaussian-index")[0, :, :2].numpy()
    error = found - (joints + 0.5)  # ours: continuous, a pixel's centre at .5
    assert np.abs(error).max() <= 2.01
    assert np.abs(error.mean(axis=0)).max() < 0.7


def test_a_flat_or_cut_off_gaussian_is_decoded_to_a_cell() -> None:
    maps = torch.zeros(1, 2, 8, 8)
    maps[0, 0, 0, 7] = 0.4
    found = decode(maps, "gaussian")[0]
    assert found[0].tolist() == pytest.approx([30.0, 2.0, 0.4])
    assert torch.isfinite(found).all()
    assert found[1, 2] == 0


def test_the_gain_is_in_nats() -> None:
    """The fused maps are sure of 1 of 4 cells, the single ones of nothing: log 4 nats more."""
    targets = torch.zeros(1, 1, 2, 2)
    targets[0, 0, 1, 0] = 1
    fused = torch.where(targets > 0, 50.0, 0.0)
    gain = information_gain(torch.zeros(1, 1, 2, 2), fused, targets, torch.ones(1, 1))
    assert float(gain) == pytest.approx(math.log(4), abs=1e-5)
    assert not gain.requires_grad


def test_every_aligned_map_is_asked_by_itself() -> None:
    torch.manual_seed(0)
    decoder = SupportDecoder(3, 2)
    aligned = torch.randn(2, 3, 3, 6, 4, requires_grad=True)
    targets = distributions(gaussian_maps(torch.tensor([[[10.0, 20], [5, 5]], [[14.0, 8], [20, 40]]]), (12, 8), 4.0))
    weights = torch.tensor([[1.0, 0.0], [0.5, 1.0]])
    whole = support_loss(decoder, aligned, targets, weights)
    alone = [support_loss(decoder, aligned[:, i : i + 1], targets, weights) for i in range(3)]
    assert float(whole.detach()) == pytest.approx(sum(float(loss.detach()) for loss in alone) / 3, rel=1e-5)
    whole.backward()
    assert aligned.grad is not None
    assert (aligned.grad.abs().sum(dim=(2, 3, 4)) > 0).all()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_the_information_of_an_aligned_map_is_bounded_by_the_loss() -> None:
    """Y is one of 16 places, Z a map that shows it, or noise: H(Y) - loss is at most I(Y; Z)."""
    torch.manual_seed(0)

    def trained_loss(shown: float) -> float:
        decoder = SupportDecoder(1, 1)
        optimizer = torch.optim.Adam(decoder.parameters(), lr=0.05)
        loss = torch.zeros(())
        for _ in range(120):
            cell = torch.randint(16, (64,))
            targets = torch.nn.functional.one_hot(cell, 16).float().view(64, 1, 4, 4)
            aligned = (shown * 4 * targets + 0.1 * torch.randn_like(targets))[:, None]
            optimizer.zero_grad()
            loss = support_loss(decoder, aligned, targets, torch.ones(64, 1))
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    entropy = math.log(16)
    assert 0.9 * entropy < entropy - trained_loss(1.0) <= entropy
    assert entropy - trained_loss(0.0) < 0.05


def test_the_released_terms_are_what_the_released_code_computes() -> None:
    """Worked out with numpy for one map, and the faults are there: gradients reach the final maps and fused features
    alone, terms 2 and 6 are one call, and descending lowers the final map's peak."""
    torch.manual_seed(1)
    maps = [torch.rand(1, 1, 4, 4) for _ in range(3)]
    final = torch.rand(1, 1, 4, 4).requires_grad_()
    key, support = torch.rand(1, 2, 4, 4, requires_grad=True), torch.rand(1, 2, 4, 4, requires_grad=True)
    fused = torch.rand(1, 2, 4, 4, requires_grad=True)
    terms = released_terms(*maps, final, key, support, fused)

    def softmax(x: torch.Tensor) -> np.ndarray:
        e = np.exp(x.detach().numpy().reshape(-1).astype(np.float64) / 0.05)
        return e / e.sum()

    q, p = softmax(final), softmax(maps[1])
    assert float(terms["released_3_final_support"]) == pytest.approx(0.5 * (q * (np.log(q) - p)).sum(), rel=1e-4)
    assert float(terms["released_2_fused_key"]) == pytest.approx(-0.1 * float(terms["released_6_fused_key"]), rel=1e-5)
    torch.stack(list(terms.values())).sum().backward()
    assert key.grad is None
    assert support.grad is None
    assert fused.grad is not None
    assert final.grad is not None
    lowered = final.detach() - 1e-3 * final.grad
    assert softmax(lowered).max() < q.max()
