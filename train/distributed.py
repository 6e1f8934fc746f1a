"""Training on several processes and machines: `torchrun` starts them, each takes its part of every batch.

Gradients are summed over the processes by hand, after the backward pass: that is one line to read, any part of a
network may be called, and the sums do not depend on when a hook fires.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from streampose.errors import UsageError

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: the first one validates alone."""


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of a run; this is number `rank` of `size`, on `device`."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes, validates and shows."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over the processes, in each of them."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum every gradient over the processes; one that a process lacks counts as zeros."""
        if self.size == 1:
            return
        learnt = [p for p in parameters if p.requires_grad]
        for p in learnt:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.reshape(-1) for p in learnt if p.grad is not None])
        dist.all_reduce(flat)
        start = 0
        for p in learnt:
            assert p.grad is not None
            p.grad.copy_(flat[start : start + p.numel()].view_as(p))
            start += p.numel()

    def gather(self, value: Any) -> list[Any]:
        """`value` of every process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def open_group(device: str = "auto") -> Iterator[Group]:
    """This process's group, as `torchrun` describes it in the environment; without it, a group of one.

    Args:
        device: "auto", "cpu" or "cuda"; on several GPUs each process takes the one of its local rank.

    Raises:
        UsageError: "cuda", and there is no GPU that torch can use.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError('device = "cuda", but torch finds no GPU; set loop.device="auto" or install torch for CUDA')
    on_gpu = device != "cpu" and torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(chosen)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group(0, 1, chosen)
        return
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield Group(dist.get_rank(), size, chosen)
    finally:
        dist.destroy_process_group()


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose statistics in training are those of the whole batch, over all processes. On any device (torch's
    own SyncBatchNorm needs a GPU)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        count = torch.full((1,), x.numel() / x.shape[1], device=x.device)
        sums = torch.cat([values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3)), count])
        sums = all_reduce(sums)  # type: ignore[no-untyped-call]
        total = sums[-1].detach()
        mean, square = sums[: x.shape[1]] / total, sums[x.shape[1] : -1] / total
        variance = (square - mean.square()).clamp(min=0)
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * total / (total - 1), self.momentum)
                assert self.num_batches_tracked is not None
                self.num_batches_tracked += 1
        shape = (1, -1, 1, 1)
        y = (values - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        normalised: Tensor = y.to(x.dtype)
        return normalised


def share_batch_norm(network: nn.Module) -> None:
    """Let every BatchNorm2d of `network` take its statistics over all processes; tensors and their names stay."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d
