"""Keypoints to maps and back."""

from __future__ import annotations

import numpy as np
import pytest

from streampose.heatmaps import encode

torch = pytest.importorskip("torch", reason="needs the [train] extra")


def test_a_map_is_a_distribution_around_its_joint() -> None:
    maps = encode(np.array([[10.5, 20.5], [3.0, 40.25]], np.float32), (64, 48))
    assert maps.shape == (2, 64, 48)
    assert maps.sum(axis=(1, 2)) == pytest.approx([1, 1], abs=1e-5)
    assert np.unravel_index(maps[0].argmax(), (64, 48)) == (20, 10)


def test_a_joint_far_outside_has_no_map() -> None:
    maps = encode(np.array([[-7.0, 5.0], [5.0, 71.0], [47.0, 63.0]], np.float32), (64, 48))
    assert maps.sum(axis=(1, 2)) == pytest.approx([0, 0, 1], abs=1e-5)


def test_decode_undoes_encode_within_a_fifth_of_a_cell() -> None:
    from streampose.model import decode

    points = np.random.default_rng(3).uniform([6, 6], [42, 58], (40, 2)).astype(np.float32)
    logits = torch.from_numpy(np.log(encode(points, (64, 48)) + 1e-12))[None]
    found = decode(logits)[0].numpy()
    assert np.abs(found[:, :2] - 4 * points).max() < 0.2 * 4
    assert (found[:, 2] > 0.95).all()


def test_an_even_map_has_a_low_score() -> None:
    from streampose.model import decode

    assert decode(torch.zeros(1, 1, 64, 48))[0, 0, 2] < 0.05
