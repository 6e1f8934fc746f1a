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


def test_where_a_map_is_flat_the_last_digit_does_not_move_the_keypoint() -> None:
    """A ridge of equal cells: the highest of them is chance, and what followed it would jump from end to end."""
    from streampose.model import decode

    logits = torch.full((1, 1, 64, 48), -10.0)
    logits[0, 0, 30, 20:27] = 5.0
    generator = torch.Generator().manual_seed(0)
    noisy = logits + 1e-3 * torch.randn((20, 1, 64, 48), generator=generator)
    found = decode(noisy)[:, 0, :2].numpy()
    assert len({int(row.argmax()) for row in noisy.flatten(1)}) > 3
    np.testing.assert_allclose(found, np.tile([23.5 * 4, 30.5 * 4], (20, 1)), atol=0.1)


def test_of_two_modes_the_one_that_holds_more_is_the_keypoint() -> None:
    """A single high cell here, a broad hill there."""
    from streampose.model import decode

    p = torch.full((64, 48), 1e-9)
    p[10, 10] = 0.1
    p[40:43, 30:33] = 0.09
    x, y, score = decode(p.log()[None, None])[0, 0].tolist()
    assert (x, y) == pytest.approx((31.5 * 4, 41.5 * 4), abs=0.05)
    assert score == pytest.approx(0.81 / 0.91, abs=0.01)
