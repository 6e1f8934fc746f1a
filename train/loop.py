"""One training loop for every network here, on one process or, started by `torchrun`, on several."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from streampose.errors import StreamposeError, UsageError
from streampose.train.checkpoint import NAME, TrainingState, restore, rng_state, save
from streampose.train.distributed import Group, open_group, share_batch_norm
from streampose.train.logs import RunLog
from streampose.train.progress import bar_on_stderr
from streampose.train.settings import LoopSettings, Plan

log = logging.getLogger(__name__)
Batch = dict[str, Tensor]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingError(StreamposeError):
    """Training cannot go on: the loss is not finite."""


class InterruptedTrainingError(StreamposeError):
    """Training was asked to stop; its checkpoint is written and `--resume` goes on from it."""

    exit_code = 0


class Task(Protocol):
    """What is trained."""

    @property
    def model(self) -> nn.Module:
        """The network to train."""

    @property
    def auxiliary(self) -> nn.Module:
        """Modules that only training needs, trained along."""

    @property
    def network(self) -> dict[str, Any]:
        """What `model` is, in a checkpoint."""

    @property
    def dataset(self) -> Dataset[dict[str, Any]]:
        """Sample `i` for every `i` from 0 on; the same `i`, the same sample."""

    @property
    def epoch_samples(self) -> int | None:
        """Samples in an epoch; None if the data set has no end."""

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Factor of each of the terms that `losses` returns; a term with factor 0 is only logged."""

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for the optimiser, each with its `lr`."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar terms of a batch, unweighted, each a mean over what `weight` counts."""

    def weight(self, batch: Batch) -> Tensor:
        """What a batch counts among others, a scalar: its terms are averaged with this weight."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Named figures of `model` (in evaluation mode) on the validation split."""

    def sheet(self, model: nn.Module) -> NDArray[np.uint8] | None:
        """A picture (H, W, 3) BGR of what `model` predicts, if there is something to see."""


def fit(
    task: Task, settings: LoopSettings, out: Path, resume: bool = False, group: Group | None = None, final: bool = True
) -> nn.Module:
    """Train `task` and return the network to use (the EMA, in evaluation mode).

    Writes under `out`: `checkpoint.pt` (atomically; also at the end and on SIGINT/SIGTERM) and the files of `RunLog`.
    Started by `torchrun`, each process takes its part of every batch and the losses are those of one process. Unless
    this is `final`, a signal during the last step or its validation stops what would come next, too.

    Raises:
        TrainingError: a loss is not finite; the last checkpoint stays as it was.
        InterruptedTrainingError: stopped by a signal, after the checkpoint was written.
        ModelError: `resume`, and the checkpoint fits another network.
        OutputError: a checkpoint or log cannot be written; the last checkpoint stays as it was.
    """
    if group is not None:
        return _fit(task, settings, out, resume, group, final)
    with open_group(settings.device) as opened:
        return _fit(task, settings, out, resume, opened, final)


def _fit(task: Task, settings: LoopSettings, out: Path, resume: bool, group: Group, final: bool) -> nn.Module:
    _prepare_torch(settings, group)
    out.mkdir(parents=True, exist_ok=True)
    plan = settings.plan(task.epoch_samples)
    state = _initial_state(task, settings, group)
    peaks = [parameters["lr"] for parameters in state.optimizer.param_groups]
    if resume and (out / NAME).exists():
        restore(out / NAME, state, group.rank)
    loader = _open_loader(task, settings, plan, state.step, group)
    batches, meter = _start(loader), _Meter(task.loss_weights, group, settings)
    state.model.train()
    learnt = [p for parameters in state.optimizer.param_groups for p in parameters["params"]]
    with ExitStack() as stack:
        stop = stack.enter_context(_StopFlag())
        rows = stack.enter_context(RunLog(out, state.step)) if group.leads else None
        bar = stack.enter_context(bar_on_stderr(shown=group.leads, transient=True))
        job = bar.add_task(out.name, total=plan.steps, completed=state.step)
        while state.step < plan.steps:
            for parameters, peak in zip(state.optimizer.param_groups, peaks, strict=True):
                parameters["lr"] = peak * settings.lr_share(state.step, plan)
            parts = [_to(next(batches), group.device) for _ in range(settings.accumulate)]
            stopping = _backward(task, settings, state, parts, meter, group, stop.asked)
            meter.check(state.step, out / NAME)
            if not _step(state, learnt, settings, group):
                meter.stop(state.step, "a gradient", out / NAME)
            state.step += 1
            bar.update(job, completed=state.step)
            last = state.step == plan.steps
            if rows and (state.step % settings.log_every == 0 or last):
                rows.write(state.step, "loss", meter.means())
                rows.write(state.step, "lr", {"lr": state.optimizer.param_groups[0]["lr"]})
                rows.write(state.step, "speed", meter.speed())
            if state.step % plan.validate_every == 0 or last:
                if rows:
                    rows.write(state.step, "val", task.validate(state.ema))
                    rows.show(state.step, task.sheet(state.ema))
                group.wait()
                meter.skip()
            if state.step % settings.checkpoint_every == 0 or last or stopping:
                generators = group.gather(rng_state())
                if group.leads:
                    save(out / NAME, state, generators)
            if last and not final:
                stopping = bool(group.sum(torch.tensor(float(stop.asked), device=group.device)) > 0)
            if stopping and not (last and final):
                raise InterruptedTrainingError(f"stopped at step {state.step} of {plan.steps}; go on with --resume")
    return state.ema


def _prepare_torch(settings: LoopSettings, group: Group) -> None:
    cv2.setNumThreads(1)  # workers are forks, and hang on a pool of threads that only their parent has
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(settings.deterministic, warn_only=group.device.type == "cuda")
    torch.manual_seed(settings.seed)


def _initial_state(task: Task, settings: LoopSettings, group: Group) -> TrainingState:
    model = task.model.to(group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    task.auxiliary.to(group.device)
    ema = deepcopy(model).eval()
    if group.size > 1:
        share_batch_norm(model)
        share_batch_norm(task.auxiliary)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind(task.parameter_groups(settings.lr), lr=settings.lr, weight_decay=settings.weight_decay)
    scaler = torch.amp.GradScaler(group.device.type, enabled=settings.precision == "fp16")
    return TrainingState(model, task.auxiliary, ema, optimizer, scaler, task.network)


def _backward(
    task: Task, settings: LoopSettings, state: TrainingState, parts: Sequence[Batch], meter: _Meter, group: Group,
    stop: bool,
) -> bool:  # fmt: skip
    """Gradients of one step's loss, summed over parts and processes; whether any process was asked to stop."""
    shares = torch.stack([task.weight(part).detach().float() for part in parts])
    shares = shares / group.sum(shares.sum()).clamp(min=1e-12)
    state.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for part, share in zip(parts, shares, strict=True):
        with torch.autocast(group.device.type, DTYPES.get(settings.precision), settings.precision != "fp32"):
            terms = task.losses(part)
        loss = torch.stack([task.loss_weights[name] * value for name, value in terms.items()]).sum()
        state.scaler.scale(share * loss).backward()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + share * value.detach().float()
    return meter.take(sums, stop)


def _step(state: TrainingState, learnt: Sequence[nn.Parameter], settings: LoopSettings, group: Group) -> bool:
    """Follow the gradients. False, and nothing changed, where one is not finite (in fp16 it halves the scale)."""
    group.sum_gradients(learnt)
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.get_total_norm([p.grad for p in learnt if p.grad is not None])
    if not state.scaler.is_enabled() and not torch.isfinite(norm):
        return False
    if settings.grad_clip:
        nn.utils.clip_grads_with_norm_(learnt, settings.grad_clip, norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    _follow(state.ema, state.model, min(settings.ema_decay, (1 + state.step) / (10 + state.step)))
    return True


class _Meter:
    """The terms of the last steps, over all processes, and how fast samples went by."""

    def __init__(self, weights: Mapping[str, float], group: Group, settings: LoopSettings) -> None:
        self._weights, self._group, self._settings = weights, group, settings
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._last: dict[str, float] = {}
        self._since = time.monotonic()

    def take(self, terms: Mapping[str, Tensor], stop: bool) -> bool:
        """Add a step's terms; whether any process has `stop`."""
        flag = torch.tensor(float(stop), device=self._group.device)
        *values, stopping = self._group.sum(torch.stack([*terms.values(), flag])).tolist()
        self._last = dict(zip(terms, values, strict=True))
        self._last["total"] = sum(self._weights[name] * value for name, value in zip(terms, values, strict=True))
        for name, value in self._last.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1
        return bool(stopping > 0)

    def check(self, step: int, checkpoint: Path) -> None:
        """Stop where the last step's loss is not finite."""
        broken = [name for name, value in self._last.items() if not np.isfinite(value)]
        if broken:
            self.stop(step, f"the loss ({', '.join(broken)})", checkpoint)

    def stop(self, step: int, what: str, checkpoint: Path) -> NoReturn:
        """Raise TrainingError: something is not finite."""
        advice = f"lower lr, then --resume from {checkpoint}" if checkpoint.exists() else "lower lr and begin anew"
        raise TrainingError(f"{what} is not finite at step {step}; {advice}")

    def means(self) -> dict[str, float]:
        """Mean of each term, and of their weighted sum, since the last call of `speed`."""
        return {name: value / max(1, self._steps) for name, value in self._sums.items()}

    def speed(self) -> dict[str, float]:
        """Samples a second over all processes since the last call; begins anew."""
        seconds = time.monotonic() - self._since
        samples = self._steps * self._settings.batch_size
        self._sums, self._steps, self._since = {}, 0, time.monotonic()
        return {"samples_per_s": samples / max(seconds, 1e-9)}

    def skip(self) -> None:
        """Leave the time of a validation out of the speed."""
        if self._steps == 0:
            self._since = time.monotonic()


class _Steps:
    """Batch sampler: which samples this process takes, micro-batch after micro-batch, from step `first` on."""

    def __init__(self, first: int, steps: int, settings: LoopSettings, group: Group) -> None:
        parts = group.size * settings.accumulate
        if settings.batch_size % parts:
            raise UsageError(
                f"batch_size = {settings.batch_size} cannot be shared by {group.size} processes with "
                f"accumulate = {settings.accumulate}; take a multiple of {parts}"
            )
        self.first, self.steps, self.batch_size = first, steps, settings.batch_size
        self.part, self.mine = self.batch_size // parts, range(group.rank * settings.accumulate, parts)
        self.count = settings.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.steps):
            for part in self.mine[: self.count]:
                start = step * self.batch_size + part * self.part
                yield list(range(start, start + self.part))

    def __len__(self) -> int:
        return (self.steps - self.first) * self.count


def _open_loader(task: Task, settings: LoopSettings, plan: Plan, first: int, group: Group) -> DataLoader[Any]:
    return DataLoader(
        _Guarded(task.dataset),
        batch_sampler=_Steps(first, plan.steps, settings, group),
        num_workers=settings.workers,
        generator=torch.Generator(),  # or it draws from torch's own, once more for each time a run is resumed
        collate_fn=_collate,
        worker_init_fn=_settle_worker,
        prefetch_factor=4 if settings.workers else None,
        pin_memory=group.device.type == "cuda",
    )


def _start(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the workers, deaf to signals until `_settle_worker` has them leave the parent's process group."""
    deaf = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, deaf)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Guarded(Dataset[Any]):
    """A data set whose errors of ours come as samples: torch would put a worker's traceback into their message."""

    def __init__(self, dataset: Dataset[dict[str, Any]]) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> dict[str, Any] | StreamposeError:
        try:
            return self._dataset[index]
        except StreamposeError as error:
            return error


def _collate(samples: list[dict[str, Any] | StreamposeError]) -> Batch | StreamposeError:
    for sample in samples:
        if isinstance(sample, StreamposeError):
            return sample
    batch: Batch = default_collate(samples)
    return batch


def _to(batch: Batch | StreamposeError, device: torch.device) -> Batch:
    if isinstance(batch, StreamposeError):
        raise batch
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


@torch.no_grad()
def _follow(ema: nn.Module, model: nn.Module, decay: float) -> None:
    for slow, fast in zip(ema.state_dict().values(), model.state_dict().values(), strict=True):
        if slow.dtype.is_floating_point:
            slow.lerp_(fast, 1 - decay)
        else:
            slow.copy_(fast)


def _settle_worker(_worker: int) -> None:
    """Leave the parent's process group: a Ctrl-C or SIGTERM to all of it is for the parent, which ends its workers."""
    os.setpgrp()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)  # forgets one that came meanwhile
        signal.signal(name, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


class _StopFlag:
    """SIGINT and SIGTERM ask for a stop after the current step; a second one ends what hangs, as without us."""

    asked = False

    def __enter__(self) -> _StopFlag:
        self._before = {name: signal.signal(name, self._ask) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        self.__exit__()
