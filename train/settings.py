"""How long, how fast and with what numbers a network is trained."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from streampose.errors import UsageError


class LoopSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `loop` table of a recipe's stage. A sample depends on the seed and its number alone: a resumed run sees what
    it would have seen.

    Attributes:
        steps: optimiser steps in all; or
        epochs: passes over a data set that has an end. One of the two is 0.
        batch_size: samples a step, over all processes and micro-batches.
        accumulate: micro-batches a step in each process, so that a large batch fits into little memory.
        optimizer: "adamw", or "adam", whose weight decay is an L2 penalty.
        lr: peak learning rate; `Task.parameter_groups` may scale it.
        warmup_steps: linear rise at the start.
        schedule: after the warm-up: "cosine" falls to `final_lr_share` of the peak, "step" multiplies by `lr_factor` at
            each milestone.
        milestones: of "step"; in epochs where `epochs` is set, else in steps.
        ema_decay: per step, of the weights that are validated and shipped; 0 follows the weights themselves.
        grad_clip: largest norm of the gradient; 0 does not clip.
        precision: "fp32", or autocast to "bf16" or "fp16" (with loss scaling); weights are float32 in all of them.
        device: "auto" takes a GPU where there is one, else "cpu" or "cuda".
        deterministic: only kernels that give the same sums every time; where CUDA has none it warns and goes on.
        checkpoint_every, log_every: steps.
        validate_every: steps; 0 is every epoch.
        workers: processes that make samples, for each training process; 0 makes them in it.
        threads: torch's intra-op threads; 0 leaves torch's own choice.
    """

    steps: int = 0
    epochs: int = 0
    batch_size: int = 32
    accumulate: int = 1
    optimizer: Literal["adamw", "adam"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 200
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: tuple[int, ...] = ()
    lr_factor: float = 0.1
    final_lr_share: float = 0.02
    ema_decay: float = 0.998
    grad_clip: float = 5.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    deterministic: bool = False
    checkpoint_every: int = 100
    validate_every: int = 300
    log_every: int = 25
    workers: int = 1
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.epochs > 0) or min(self.steps, self.epochs) < 0:
            raise UsageError(f"one of steps and epochs is above 0, the other is 0; got {self.steps} and {self.epochs}")
        for name in ("batch_size", "accumulate", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is at least 1, got {getattr(self, name)}")
        if min(self.validate_every, self.workers, self.threads, self.warmup_steps) < 0:
            raise UsageError("validate_every, workers, threads and warmup_steps are not negative")
        for name in ("lr", "weight_decay", "lr_factor", "final_lr_share", "grad_clip"):
            if not math.isfinite(getattr(self, name)):
                raise UsageError(f"{name} is a finite number, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"ema_decay is in [0, 1), got {self.ema_decay}")
        if self.lr <= 0 or self.grad_clip < 0 or self.weight_decay < 0:
            raise UsageError("lr is above 0; grad_clip and weight_decay are not negative")
        if (self.schedule == "step") != bool(self.milestones) or list(self.milestones) != sorted(set(self.milestones)):
            raise UsageError(f'milestones rise and belong to schedule = "step", got {list(self.milestones)}')
        if not self.epochs and not self.validate_every:
            raise UsageError("validate_every = 0 means every epoch and needs epochs")

    def plan(self, samples: int | None) -> Plan:
        """The settings in steps, for a data set of `samples` samples an epoch, None if it has no end.

        Raises:
            UsageError: `epochs`, and the data set has no end or not even one batch.
        """
        if not self.epochs:
            return Plan(self.steps, self.validate_every, self.milestones)
        if samples is None:
            raise UsageError("epochs need a data set with an end; with shares of sets, give steps")
        if samples < self.batch_size:
            raise UsageError(f"an epoch has {samples} samples, fewer than batch_size = {self.batch_size}")
        a_epoch = samples // self.batch_size
        milestones = tuple(a_epoch * milestone for milestone in self.milestones)
        return Plan(self.epochs * a_epoch, self.validate_every or a_epoch, milestones)

    def lr_share(self, step: int, plan: Plan) -> float:
        """Share of the peak learning rate at `step`, 0..1."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "step":
            return float(self.lr_factor ** sum(step >= milestone for milestone in plan.milestones))
        done = (step - self.warmup_steps) / max(1, plan.steps - self.warmup_steps)
        return self.final_lr_share + (1 - self.final_lr_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Plan(msgspec.Struct, frozen=True):
    """`LoopSettings` in steps: how many in all, how many between validations, and where the learning rate falls."""

    steps: int
    validate_every: int
    milestones: tuple[int, ...]
