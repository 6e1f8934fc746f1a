"""Averaging where frames agree: what rests does not flicker, what moves does not lag."""

from __future__ import annotations

import pytest
import torch

from streampose.model import fami_pose
from streampose.model.calm import average
from streampose.model.network import decode

HEIGHT, WIDTH, CELL_PX = 64, 48, 4.0
SPREAD = 2.0
STILL = torch.eye(2, 3).expand(1, 4, 2, 3)


def logits(x: float, y: float, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """(h, w) of a joint at x, y in cells of a map of 64 x 48, at whatever resolution."""
    cell = HEIGHT / height
    columns, rows = (cell * (torch.arange(n) + 0.5) for n in (width, height))
    return -((columns[None] - x) ** 2 + (rows[:, None] - y) ** 2) / (2 * SPREAD**2)


def key_map(x: float, y: float) -> torch.Tensor:
    return logits(x, y)[None, None]


def supports(*places: tuple[float, float]) -> torch.Tensor:
    return torch.stack([logits(x, y, HEIGHT // 2, WIDTH // 2) for x, y in places])[None, :, None]


def cells(maps: torch.Tensor) -> list[float]:
    return [float(v) / CELL_PX for v in decode(maps)[0, 0, :2]]


def test_frames_that_agree_are_averaged() -> None:
    found = average(key_map(20.5, 30), supports(*[(20, 30)] * 4), STILL, CELL_PX)
    assert cells(found) == pytest.approx([20.15, 30], abs=0.06)


def test_noise_of_five_frames_is_less_than_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    alone, averaged = [], []
    for _ in range(60):
        at = torch.tensor([20.0, 30.0]) + 0.15 * torch.randn(5, 2, generator=generator)
        places = [(float(x), float(y)) for x, y in at]
        alone.append(torch.tensor(places[0]))
        averaged.append(torch.tensor(cells(average(key_map(*places[0]), supports(*places[1:]), STILL, CELL_PX))))
    ratio = torch.stack(averaged).std(dim=0) / torch.stack(alone).std(dim=0)
    assert float(ratio.max()) < 0.6  # five that weigh the same: 0.45


@pytest.mark.parametrize("pace", [0.3, 0.6, 1.0, 2.0])
def test_what_moves_does_not_lag(pace: float) -> None:
    """Never by more than 0.4 cells, 0.8 % of the box, whatever the pace; what is fast, by nothing."""
    past = [(20 - pace * age, 30.0) for age in (4, 3, 2, 1)]
    x, y = cells(average(key_map(20, 30), supports(*past), STILL, CELL_PX))
    assert 20 - x < (0.4 if pace < 2 else 0.01)
    assert y == pytest.approx(30, abs=0.05)


def test_one_joint_that_moves_does_not_stop_another_that_rests() -> None:
    key = torch.cat([key_map(20.4, 30), key_map(20, 30)], dim=1)
    past = torch.cat([supports(*[(20, 30)] * 4), supports(*[(30, 30)] * 4)], dim=2)
    rests, moves = decode(average(key, past, STILL, CELL_PX))[0, :, 0] / CELL_PX
    assert float(rests) == pytest.approx(20.1, abs=0.06)
    assert float(moves) == pytest.approx(20.0, abs=0.02)


def test_maps_meet_at_the_same_place_of_the_picture() -> None:
    """The supporting crop shows all 7 cells further right and is 1.2 times as large."""
    there = torch.tensor([[[1.2, 0, 28], [0, 1.2, 0]]]).expand(1, 4, 2, 3)
    past = supports(*[(1.2 * 20 + 7, 1.2 * 30)] * 4)
    found = average(key_map(20.5, 30), past, there, CELL_PX)
    assert cells(found) == pytest.approx([20.15, 30], abs=0.1)
    unmoved = average(key_map(20.5, 30), past, STILL, CELL_PX)
    assert cells(unmoved) == pytest.approx([20.5, 30], abs=0.02)


def test_what_lies_outside_of_a_supporting_crop_is_unlikely() -> None:
    """A crop that shows less of the left: there, the average is as low as in the key frame."""
    there = torch.eye(2, 3).expand(1, 4, 2, 3).clone()
    there[..., 0, 2] = -56.0
    past = supports(*[(24 - 14, 30)] * 4) + 40.0  # logits of one sign: only their differences mean something
    found = average(key_map(24.5, 30), past, there, CELL_PX)
    assert cells(found) == pytest.approx([24.15, 30], abs=0.06)
    assert float(found.flatten(2).softmax(dim=2).view_as(found)[..., :14].sum()) < 1e-4


def test_of_distributions_alone() -> None:
    """Gaussian maps, such as the released network's, are left as they are."""
    assert fami_pose("lite").fuser.calm
    assert fami_pose("hrnet-w32", heatmap="distribution").fuser.calm
    assert not fami_pose("hrnet-w32").fuser.calm


def test_the_network_takes_the_picture_for_it_and_the_person_for_alignment() -> None:
    """Of an untrained fuser, whose correction is zero: supporting frames show the joint half a cell further right."""
    network = fami_pose("lite").eval()
    features = torch.zeros(1, 5, 32, HEIGHT, WIDTH)
    features[:, :, 0] = torch.stack([logits(20, 30), *[logits(20.5, 30)] * 4])
    moved = torch.eye(2, 3).repeat(1, 5, 2, 1, 1)
    with torch.no_grad():
        network.fuser.head.weight.zero_()
        network.fuser.head.weight[:, 0] = 1
        assert cells(network.fuse(features, moved)) == pytest.approx([20.35, 30], abs=0.06)
        moved[:, 1:, 0, 0, 2] = 0.5 * CELL_PX
        assert cells(network.fuse(features, moved)) == pytest.approx([20.35, 30], abs=0.06)
        moved[:, 1:, 1, 0, 2] = 0.5 * CELL_PX
        assert cells(network.fuse(features, moved)) == pytest.approx([20, 30], abs=0.03)
