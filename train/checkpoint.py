"""Training's checkpoints: everything that a run needs to go on as if it had never stopped, written all or nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streampose.errors import ModelError, OutputError

NAME = "checkpoint.pt"


@dataclass(slots=True)
class TrainingState:
    """What changes while training.

    Attributes:
        model: the network.
        auxiliary: modules that only training needs.
        ema: the averaged network, which is validated and shipped.
        network: what `ema` is, for `streampose.model.load`.
        step: steps done; with the seed it is also the sampler's position.
    """

    model: nn.Module
    auxiliary: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    network: dict[str, Any]
    step: int = 0


def rng_state() -> dict[str, torch.Tensor]:
    """This process's generators. Samples have their own, from the seed and their number."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def save(path: Path, state: TrainingState, generators: list[dict[str, torch.Tensor]]) -> None:
    """Write a checkpoint, atomically; the one there stays whole until the new one is on the disk.

    Args:
        generators: `rng_state` of every process, by rank.

    Raises:
        OutputError: it cannot be written, for instance because the disk is full.
    """
    content = {
        "network": state.network,
        "model": state.model.state_dict(),
        "auxiliary": state.auxiliary.state_dict(),
        "ema": state.ema.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "step": state.step,
        "rng": generators,
    }
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        partial.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the disk is full or went away"
        raise OutputError(f"cannot write {path}: {reason}; the previous checkpoint is untouched") from error


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's content.

    Raises:
        ModelError: it cannot be read or is damaged.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        try:
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ModelError(f"{path} is damaged; remove it to begin this stage anew") from error
    return content


def restore(path: Path, state: TrainingState, rank: int) -> None:
    """Go back to where a checkpoint was written.

    Raises:
        ModelError: it is damaged, or of another network.
    """
    content = read(path)
    found, wanted = content.get("network", {}), state.network
    if found != wanted:
        differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        parts = ", ".join(f"{key} {found.get(key)!r} (here {wanted.get(key)!r})" for key in differing)
        raise ModelError(f"{path} is of another network: {parts}; choose another --out or its own recipe")
    try:
        state.model.load_state_dict(content["model"])
        state.auxiliary.load_state_dict(content["auxiliary"])
        state.ema.load_state_dict(content["ema"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.scaler.load_state_dict(content["scaler"])
        generators = content["rng"]
        state.step = int(content["step"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"{path} is of another network; choose another --out or its own recipe") from error
    mine = generators[min(rank, len(generators) - 1)]
    torch.set_rng_state(mine["cpu"])
    if "cuda" in mine and torch.cuda.is_available():
        torch.cuda.set_rng_state(mine["cuda"])
