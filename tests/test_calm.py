"""Averaging where frames agree: what rests does not flicker, what moves does not lag."""

from __future__ import annotations

import pytest
import torch

from streampose.model import fami_pose
from streampose.model.calm import average
from streampose.model.network import decode

HEIGHT, WIDTH, CELL_PX = 64, 48, 4.0
SPREAD = 2.0
STILL = torch.eye(2, 3).expand(1, 5, 2, 3)


def logits(x: float, y: float, height: int = HEIGHT, width: int = WIDTH, spread: float = SPREAD) -> torch.Tensor:
    """(h, w) of a joint at x, y in cells of a map of 64 x 48, at whatever resolution."""
    cell = HEIGHT / height
    columns, rows = (cell * (torch.arange(n) + 0.5) for n in (width, height))
    return -((columns[None] - x) ** 2 + (rows[:, None] - y) ** 2) / (2 * spread**2)


def key_map(x: float, y: float, spread: float = SPREAD) -> torch.Tensor:
    return logits(x, y, spread=spread)[None, None]


def window(*places: tuple[float, float], frames: list[int] | None = None, spread: float = SPREAD) -> torch.Tensor:
    """(1, T, 1, h/2, w/2) of each frame by itself, the key frame first. Frames differ, be it by the height of their
    logits alone; those of the same number in `frames` do not."""
    maps = [logits(x, y, HEIGHT // 2, WIDTH // 2, spread) for x, y in places]
    frames = frames or list(range(len(maps)))
    return torch.stack([one + 0.1 * number for one, number in zip(maps, frames, strict=True)])[None, :, None]


def cells(maps: torch.Tensor) -> list[float]:
    return [float(v) / CELL_PX for v in decode(maps)[0, 0, :2]]


def test_frames_that_agree_are_averaged() -> None:
    found = average(key_map(20.5, 30), window((20.5, 30), *[(20, 30)] * 4), STILL, CELL_PX)
    assert cells(found) == pytest.approx([20.15, 30], abs=0.06)


def test_noise_of_five_frames_is_less_than_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    alone, averaged = [], []
    for _ in range(60):
        at = torch.tensor([20.0, 30.0]) + 0.15 * torch.randn(5, 2, generator=generator)
        places = [(float(x), float(y)) for x, y in at]
        alone.append(torch.tensor(places[0]))
        averaged.append(torch.tensor(cells(average(key_map(*places[0]), window(*places), STILL, CELL_PX))))
    ratio = torch.stack(averaged).std(dim=0) / torch.stack(alone).std(dim=0)
    assert float(ratio.max()) < 0.6  # five that weigh the same: 0.45


@pytest.mark.parametrize("spread", [2.0, 4.0])
@pytest.mark.parametrize("pace", [0.15, 0.3, 0.5, 1.0])
def test_what_moves_lags_by_less_than_a_fifth_of_its_spread(pace: float, spread: float) -> None:
    """And what is fast by nothing; paces in spreads a frame."""
    places = [(24 - pace * spread * age, 30.0) for age in (0, 4, 3, 2, 1)]
    key = key_map(24, 30, spread)
    x, y = cells(average(key, window(*places, spread=spread), STILL, CELL_PX))
    assert cells(key)[0] - x < spread * (0.2 if pace < 1 else 0.005)
    assert y == pytest.approx(cells(key)[1], abs=0.05)


def test_one_joint_that_moves_does_not_stop_another_that_rests() -> None:
    key = torch.cat([key_map(20.4, 30), key_map(20, 30)], dim=1)
    past = torch.cat([window((20.4, 30), *[(20, 30)] * 4), window((20, 30), *[(30, 30)] * 4)], dim=2)
    rests, moves = decode(average(key, past, STILL, CELL_PX))[0, :, 0] / CELL_PX
    assert float(rests) == pytest.approx(20.1, abs=0.06)
    assert float(moves) == pytest.approx(20.0, abs=0.02)


def test_frames_count_once_however_often_they_stand_in() -> None:
    """A track that is one frame old has that frame in four slots; one that just began has the key frame in all."""
    places = [(20.5, 30.0), *[(20.0, 30.0)] * 4]
    twice = average(key_map(20.5, 30), window(*places, frames=[0, 1, 1, 1, 1]), STILL, CELL_PX)
    assert cells(twice) == pytest.approx([20.3, 30], abs=0.03)
    new = average(key_map(20.5, 30), window(*[(20.2, 30.0)] * 5, frames=[0] * 5), STILL, CELL_PX)
    torch.testing.assert_close(new, key_map(20.5, 30), atol=1e-4, rtol=0)


def test_maps_meet_at_the_same_place_of_the_picture() -> None:
    """The supporting crop shows all 7 cells further right and is 1.2 times as large."""
    there = torch.tensor([[[1.2, 0, 28], [0, 1.2, 0]]]).expand(1, 5, 2, 3)
    past = window((20.5, 30), *[(1.2 * 20 + 7, 1.2 * 30)] * 4)
    found = average(key_map(20.5, 30), past, there, CELL_PX)
    assert cells(found) == pytest.approx([20.15, 30], abs=0.1)
    unmoved = average(key_map(20.5, 30), past, STILL, CELL_PX)
    assert cells(unmoved) == pytest.approx([20.5, 30], abs=0.02)


def test_what_lies_outside_of_a_supporting_crop_is_unlikely() -> None:
    """A crop that shows less of the left: there, the average is as low as in the key frame."""
    there = torch.eye(2, 3).expand(1, 5, 2, 3).clone()
    there[..., 0, 2] = -56.0
    past = window((24.5, 30), *[(24 - 14, 30)] * 4) + 40.0  # logits of one sign: only their differences mean something
    found = average(key_map(24.5, 30), past, there, CELL_PX)
    assert cells(found) == pytest.approx([24.15, 30], abs=0.06)
    assert float(found.flatten(2).softmax(dim=2).view_as(found)[..., :14].sum()) < 1e-4


@pytest.mark.parametrize("spread", [0.3, 2.0, 20.0])
def test_gradients_are_finite_however_sharp_the_maps(spread: float) -> None:
    """Of maps whose probabilities are zero in float32 nearly everywhere, too; and they reach all frames that agree."""
    key, alone = key_map(20.5, 30, spread), window((20.5, 30), *[(20.5, 30)] * 4, spread=spread)
    for maps in (key, alone):
        maps.requires_grad_()
    decode(average(key, alone, STILL, CELL_PX))[0, 0, 0].backward()
    for maps in (key, alone):
        assert maps.grad is not None
        assert maps.grad.isfinite().all()
    assert alone.grad[0, 1:].abs().amax(dim=(1, 2, 3)).min() > 0


def test_of_distributions_alone() -> None:
    """Gaussian maps, such as the released network's, are left as they are."""
    assert fami_pose("lite").fuser.calm
    assert fami_pose("hrnet-w32", heatmap="distribution").fuser.calm
    assert not fami_pose("hrnet-w32").fuser.calm


def test_the_network_takes_the_picture_for_it_and_the_person_for_alignment() -> None:
    """Of an untrained fuser, whose correction is zero: supporting frames show the joint half a cell further right."""
    network = fami_pose("lite").eval()
    features = torch.zeros(1, 5, 32, HEIGHT, WIDTH)
    features[:, :, 0] = torch.stack([logits(20, 30), *[logits(20.5, 30) + 0.1 * slot for slot in range(1, 5)]])
    moved = torch.eye(2, 3).repeat(1, 5, 2, 1, 1)
    with torch.no_grad():
        network.fuser.head.weight.zero_()
        network.fuser.head.weight[:, 0] = 1
        assert cells(network.fuse(features, moved)) == pytest.approx([20.35, 30], abs=0.06)
        moved[:, 1:, 0, 0, 2] = 0.5 * CELL_PX
        assert cells(network.fuse(features, moved)) == pytest.approx([20.35, 30], abs=0.06)
        moved[:, 1:, 1, 0, 2] = 0.5 * CELL_PX
        assert cells(network.fuse(features, moved)) == pytest.approx([20, 30], abs=0.03)
        alone = features[:, :1].expand(1, 5, -1, -1, -1)
        torch.testing.assert_close(network.fuse(alone, moved), network.fuser.head(alone[:, 0]), atol=1e-4, rtol=0)
