"""A small task for tests of the loop, and a program that trains it: `training_task.py OUT [key=value ...]`."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from streampose.train.loop import Batch, fit
from streampose.train.settings import LoopSettings

SETTINGS: dict[str, Any] = {
    "steps": 60, "batch_size": 8, "lr": 0.02, "warmup_steps": 5, "weight_decay": 0.0, "ema_decay": 0.5, "workers": 0,
    "checkpoint_every": 10, "validate_every": 20, "log_every": 10, "threads": 1,
}  # fmt: skip


class Stripes(Dataset[dict[str, Any]]):
    """Noise with a brighter column; where it is, is to be told. Joint weights differ from sample to sample."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((3, index))
        column = int(rng.integers(8))
        picture = rng.normal(0, 0.5, (2, 8, 8)).astype(np.float32)
        picture[:, :, column] += 1
        return {"picture": picture, "column": np.int64(column), "weight": np.float32(rng.uniform(0.1, 2))}


class StripeTask:
    """A convolution with BatchNorm, dropout (which uses torch's generator), a head, and one that only training has."""

    loss_weights = {"column": 1.0, "auxiliary": 0.3, "watched": 0.0}  # noqa: RUF012

    def __init__(self, dropout: float = 0.2, poison_at: int | None = None, hold_at: int | None = None) -> None:
        torch.manual_seed(4)
        self.model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(4, 1, (8, 1))
        )
        self.auxiliary = nn.Conv2d(4, 1, (8, 1))
        self.network = {"backbone": "stripes"}
        self.dataset = Stripes()
        self.epoch_samples = 80
        self.poison_at = poison_at
        self.hold_at = hold_at
        self.steps = 0

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        return [
            {"params": list(self.model.parameters()), "lr": lr},
            {"params": self.auxiliary.parameters(), "lr": lr / 2},
        ]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        self.steps += 1
        if self.steps == self.hold_at:
            threading.Event().wait()  # to be killed, if it was not before
        features = self.model[:4](batch["picture"])
        column, auxiliary = (self._loss(head(features), batch) for head in (self.model[4], self.auxiliary))
        watched = column.detach() * 2
        return {"column": column * float("nan") if self.steps == self.poison_at else column, "auxiliary": auxiliary,
                "watched": watched}  # fmt: skip

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        loss = nn.functional.cross_entropy(logits[:, 0, 0].float(), batch["column"], reduction="none")
        return (loss * batch["weight"]).sum() / batch["weight"].sum()

    def weight(self, batch: Batch) -> Tensor:
        return batch["weight"].sum()

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        assert not model.training
        batch = [self.dataset[index] for index in range(10_000, 10_100)]
        found = model(torch.from_numpy(np.stack([sample["picture"] for sample in batch])))[:, 0, 0].argmax(1)
        return {"right": float((found.numpy() == np.array([sample["column"] for sample in batch])).mean())}

    def sheet(self, model: nn.Module) -> NDArray[np.uint8] | None:
        assert not model.training
        return np.full((32, 48, 3), 128, np.uint8)


def main() -> None:
    out, *changes = sys.argv[1:]
    values = {key: json.loads(value) for key, _, value in (change.partition("=") for change in changes)}
    dropout, resume = float(values.pop("dropout", 0.2)), bool(values.pop("resume", False))
    task = StripeTask(dropout, hold_at=values.pop("hold_at", None))
    model = fit(task, LoopSettings(**(SETTINGS | values)), Path(out), resume)
    if not torch.distributed.is_available() or int(__import__("os").environ.get("RANK", "0")) == 0:
        torch.save(model.state_dict(), Path(out) / "final.pt")


if __name__ == "__main__":
    main()
