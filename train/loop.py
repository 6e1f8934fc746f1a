"""One training loop for every network here: steps, EMA, schedule, checkpoints that survive a kill, a CSV log."""

from __future__ import annotations

import csv
import logging
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import msgspec
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from streampose.errors import ModelError, OutputError, StreamposeError, UsageError

log = logging.getLogger(__name__)
Batch = dict[str, Tensor]


class TrainingError(StreamposeError):
    """Training cannot go on: the loss is not finite."""


class InterruptedTrainingError(StreamposeError):
    """Training was asked to stop; its checkpoint is written and `--resume` goes on from it."""

    exit_code = 0


class LoopSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long and how fast. A sample depends on the seed and its number alone: a resumed run sees what it would have.

    Attributes:
        steps: optimiser steps in all.
        batch_size: samples a step.
        lr: peak learning rate of AdamW; `Task.parameter_groups` may scale it.
        warmup_steps: linear rise, then a cosine to `final_lr_share` of the peak.
        ema_decay: per step, of the weights that are validated and shipped; 0 keeps none.
        grad_clip: largest norm of the gradient.
        checkpoint_every, validate_every: steps.
        workers: processes that make samples; 0 makes them in this one.
        threads: torch's intra-op threads; 0 leaves torch's own choice.
    """

    steps: int
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 200
    final_lr_share: float = 0.02
    ema_decay: float = 0.998
    grad_clip: float = 5.0
    checkpoint_every: int = 100
    validate_every: int = 300
    log_every: int = 25
    workers: int = 1
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UsageError(f"steps and batch_size are at least 1, got {self.steps} and {self.batch_size}")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"ema_decay is in [0, 1), got {self.ema_decay}")

    def lr_share(self, step: int) -> float:
        """Share of the peak learning rate at `step`, 0..1."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.final_lr_share + (1 - self.final_lr_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Task(Protocol):
    """What is trained."""

    @property
    def model(self) -> nn.Module:
        """The network to train."""

    @property
    def dataset(self) -> Dataset[dict[str, Any]]:
        """Sample `i` for every `i` from 0 on."""

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Factor of each of the terms that `losses` returns."""

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for AdamW, each with its `lr`."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar terms of a batch, unweighted."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Named figures of `model` (in evaluation mode) on the validation split."""


class _Steps:
    """Batch sampler: which samples each step from `first` on is made of."""

    def __init__(self, first: int, steps: int, batch_size: int) -> None:
        self.first, self.steps, self.batch_size = first, steps, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.steps):
            yield list(range(step * self.batch_size, (step + 1) * self.batch_size))

    def __len__(self) -> int:
        return self.steps - self.first


def fit(task: Task, settings: LoopSettings, out: Path, resume: bool = False) -> nn.Module:
    """Train `task` and return the network to use (the EMA, in evaluation mode).

    Writes `out/checkpoint.pt` (atomically, and at the end or on SIGINT/SIGTERM) and `out/log.csv`.

    Raises:
        TrainingError: a loss is not finite; the last checkpoint stays as it was.
        InterruptedTrainingError: stopped by a signal, after the checkpoint was written.
        ModelError: `resume`, and the checkpoint fits another network.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    out.mkdir(parents=True, exist_ok=True)
    model = task.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema: nn.Module = deepcopy(model).eval()
    optimizer = torch.optim.AdamW(
        task.parameter_groups(settings.lr), lr=settings.lr, weight_decay=settings.weight_decay
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    checkpoint = out / "checkpoint.pt"
    first = _restore(checkpoint, model, ema, optimizer) if resume and checkpoint.exists() else 0
    loader: DataLoader[dict[str, Any]] = DataLoader(
        task.dataset,
        batch_sampler=_Steps(first, settings.steps, settings.batch_size),
        num_workers=settings.workers,
        worker_init_fn=_leave_ctrl_c_to_the_parent,
        prefetch_factor=4 if settings.workers else None,
    )
    stop = _StopFlag()
    model.train()
    started, sums, counted = time.monotonic(), dict[str, float](), 0
    with stop, _bar() as bar, CsvLog(out / "log.csv", first) as rows:
        job = bar.add_task(out.name, total=settings.steps, completed=first)
        for step, batch in enumerate(loader, start=first):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * settings.lr_share(step)
            terms = task.losses(batch)
            loss = torch.stack([task.loss_weights[name] * value for name, value in terms.items()]).sum()
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss.item()} at step {step}; lower lr, then --resume from {checkpoint}"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
            optimizer.step()
            _follow(ema, model, min(settings.ema_decay, (1 + step) / (10 + step)))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            counted += 1
            done = step + 1
            bar.update(job, completed=done)
            last = done == settings.steps
            if done % settings.log_every == 0 or last:
                means = {name: value / counted for name, value in sums.items()}
                speed = (done - first) * settings.batch_size / (time.monotonic() - started)
                rows.write(done, {**means, "lr": optimizer.param_groups[0]["lr"], "samples_per_s": speed})
                sums, counted = {}, 0
            if done % settings.validate_every == 0 or last:
                rows.write(done, task.validate(ema))
            if done % settings.checkpoint_every == 0 or last or stop.asked:
                _save(checkpoint, model, ema, optimizer, done)
            if stop.asked and not last:
                raise InterruptedTrainingError(f"stopped at step {done} of {settings.steps}; go on with --resume")
    return ema


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True
    )


@torch.no_grad()
def _follow(ema: nn.Module, model: nn.Module, decay: float) -> None:
    for slow, fast in zip(ema.state_dict().values(), model.state_dict().values(), strict=True):
        if slow.dtype.is_floating_point:
            slow.lerp_(fast, 1 - decay)
        else:
            slow.copy_(fast)


def _save(path: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    state = {
        "model": model.state_dict(),
        "ema": ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "rng": torch.get_rng_state(),
    }
    partial = path.with_suffix(".partial")
    try:
        torch.save(state, partial)
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; the previous checkpoint is untouched") from error


def _restore(path: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"{path} belongs to another network; choose another --out or its own recipe") from error
    torch.set_rng_state(state["rng"])
    return int(state["step"])


def _leave_ctrl_c_to_the_parent(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _StopFlag:
    """SIGINT and SIGTERM ask for a stop after the current step."""

    asked = False

    def __enter__(self) -> _StopFlag:
        self._before = {name: signal.signal(name, self._ask) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


class CsvLog:
    """`log.csv`: step, name, value; a resumed run drops the rows that it repeats."""

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        kept = []
        if first_step and path.exists():
            with path.open(newline="") as file:
                kept = [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) <= first_step]
        self._file = path.open("w", newline="")
        self._csv = csv.writer(self._file)
        self._csv.writerow(("step", "name", "value"))
        self._csv.writerows(kept)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one row a value and tell the log."""
        for name, value in values.items():
            self._csv.writerow((step, name, f"{value:.6g}"))
        self._file.flush()
        log.info("step %d  %s", step, "  ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def __enter__(self) -> CsvLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
