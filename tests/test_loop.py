"""The training loop: it learns, it resumes to the same weights, it stops on nonsense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the [train] extra")

from torch import Tensor, nn
from torch.utils.data import Dataset

from streampose.errors import ModelError, UsageError
from streampose.train.loop import Batch, LoopSettings, TrainingError, fit
from streampose.train.recipe import read_recipe


class Lines(Dataset[dict[str, Any]]):
    """Points of the plane y = 2 a - b + 1."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        x = torch.randn(2, generator=torch.Generator().manual_seed(index))
        return {"x": x, "y": 2 * x[0] - x[1] + 1}


class LineTask:
    loss_weights = {"square": 1.0}  # noqa: RUF012

    def __init__(self, poison_at: int | None = None) -> None:
        torch.manual_seed(4)
        self.model = nn.Linear(2, 1)
        self.dataset = Lines()
        self.poison_at = poison_at
        self.steps = 0

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters()), "lr": lr}]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        self.steps += 1
        loss = (self.model(batch["x"])[:, 0] - batch["y"]).square().mean()
        return {"square": loss * float("nan") if self.steps == self.poison_at else loss}

    def validate(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, nn.Linear)
        return {"bias": float(model.bias.detach()[0])}


SETTINGS = LoopSettings(
    steps=60, batch_size=8, lr=0.2, warmup_steps=5, weight_decay=0, ema_decay=0.5, workers=0, checkpoint_every=10,
    validate_every=20, log_every=10,
)  # fmt: skip


def test_it_learns_and_logs(tmp_path: Path) -> None:
    model = fit(LineTask(), SETTINGS, tmp_path)
    assert isinstance(model, nn.Linear)
    assert model.weight.detach()[0].tolist() == pytest.approx([2, -1], abs=0.1)
    rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()]
    assert rows[0] == ["step", "name", "value"]
    assert [row[0] for row in rows if row[1] == "bias"] == ["20", "40", "60"]


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = fit(LineTask(), SETTINGS, tmp_path / "whole").state_dict()
    with pytest.raises(TrainingError):
        fit(LineTask(poison_at=37), SETTINGS, tmp_path / "broken")
    resumed = fit(LineTask(), SETTINGS, tmp_path / "broken", resume=True).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [line.split(",")[0] for line in (tmp_path / "broken" / "log.csv").read_text().splitlines()[1:]]
    assert steps == sorted(steps, key=int)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="step 14"):
        fit(LineTask(poison_at=15), SETTINGS, tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 10


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    fit(LineTask(), SETTINGS, tmp_path)
    task = LineTask()
    task.model = nn.Linear(3, 1)
    with pytest.raises(ModelError, match="another network"):
        fit(task, SETTINGS, tmp_path, resume=True)


@pytest.mark.parametrize(("name", "last"), [("lite", "fuser"), ("person", "person-more")])
def test_bundled_recipes_are_valid(name: str, last: str) -> None:
    recipe = read_recipe(name, [f"{last}.loop.steps=7"])
    assert recipe.stage[-1].name == last
    assert recipe.stage[-1].loop.steps == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["fuser.loop.stepz=7"], "stepz"),
        (["nobody.loop.steps=7"], "stages are"),
        (["fuser.loop.steps=many"], "no TOML"),
        (["fuser.loop.steps=0"], "at least 1"),
    ],
)
def test_a_wrong_override_is_named(change: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_recipe("lite", change)


def test_an_unknown_recipe_names_the_bundled_ones() -> None:
    with pytest.raises(UsageError, match="lite, person"):
        read_recipe("nothing")
