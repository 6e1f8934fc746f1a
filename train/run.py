"""`streampose train`: a recipe's stages one after the other, each in its own folder with checkpoint and log."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from streampose.errors import OutputError, UsageError
from streampose.train.checkpoint import NAME, read
from streampose.train.distributed import Group, open_group
from streampose.train.loop import InterruptedTrainingError, Task, fit
from streampose.train.person import person_task
from streampose.train.pose_stages import encoder_task, fuser_task, int8_task
from streampose.train.recipe import EncoderStage, FuserStage, Int8Stage, PersonStage, Recipe, read_recipe

log = logging.getLogger(__name__)

SAVED = "recipe.json"
AnyStage = EncoderStage | FuserStage | Int8Stage | PersonStage
CHANGEABLE = {
    "steps", "epochs", "milestones", "workers", "threads", "device", "log_every", "checkpoint_every", "validate_every",
}  # fmt: skip
"""What of a stage's loop may differ where a run goes on: how long, how fast and how often, not what is learnt."""


def run_recipe(
    recipe: str | Path,
    data: Path | None,
    out: Path | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
) -> Path:
    """Train what a recipe describes.

    Args:
        recipe: name of a bundled recipe, or a TOML file.
        data: folder of the data set that the recipe names, see `train.datasets` and `train.pack`.
        out: where checkpoints and logs go; by default `runs/<name>`. The effective recipe is saved there.
        resume: go on from the checkpoints in `out`.
        overrides: see `read_recipe`.

    Returns:
        The checkpoint of the last stage.

    Raises:
        UsageError: the recipe or the data is not what it must be, or `out` holds a run and `resume` is not asked for.
        OutputError: `out` cannot be written. InterruptedTrainingError: Ctrl-C, also while data are read.
    """
    chosen = read_recipe(recipe, overrides)
    if data is None:
        raise UsageError("training needs --data DIR, the folder of the recipe's data set (docs/training.md)")
    if not data.is_dir():
        raise UsageError(f"{data}: no such folder of data")
    out = out or Path("runs") / chosen.name
    _check_writable(out)
    with open_group(chosen.stage[0].loop.device) as group:
        if (out / SAVED).exists():
            if not resume:
                raise UsageError(f"{out} holds a run already; go on with --resume or choose another --out")
            _check_same(out, chosen)
        elif resume and group.leads:
            log.warning("there is nothing to resume in %s; this run begins anew", out)
        group.wait()
        return _train_stages(chosen, data, out, resume, group)


def _train_stages(recipe: Recipe, data: Path, out: Path, resume: bool, group: Group) -> Path:
    before: Path | None = None
    for place, stage in enumerate(recipe.stage):
        folder = out / stage.name
        checkpoint = folder / NAME
        if resume and stage.loop.steps and _steps_done(checkpoint) >= stage.loop.steps:
            log.info("%s is done already", stage.name)
        else:
            torch.manual_seed(stage.loop.seed)  # the weights that a network begins with
            log.info("%s: reading %s", stage.name, data)
            try:
                task = _task(stage, data, before)
            except KeyboardInterrupt:
                hint = "go on with --resume" if (out / SAVED).exists() else "nothing was trained yet"
                raise InterruptedTrainingError(f"stopped before {stage.name} began; {hint}") from None
            steps = stage.loop.plan(task.epoch_samples).steps
            _check_later(out, recipe, place, _steps_done(checkpoint), steps)
            log.info("%s: %d steps", stage.name, steps)
            if group.leads:
                _save(out, recipe)
            fit(task, stage.loop, folder, resume, group, final=stage is recipe.stage[-1])
        group.wait()
        before = checkpoint
    assert before is not None
    return before


def _check_writable(out: Path) -> None:
    """Raise OutputError, before data are read for minutes, where a run cannot be written."""
    nearest = next((folder for folder in (out, *out.parents) if folder.exists()), out)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise OutputError(f"cannot write {out}: {nearest} is no folder that can be written to")


def _check_same(out: Path, recipe: Recipe) -> None:
    """Raise UsageError where the run in `out` learns something else than `recipe` says."""
    try:
        saved = msgspec.json.decode((out / SAVED).read_bytes(), type=Recipe)
    except (OSError, msgspec.DecodeError, UsageError) as error:
        raise UsageError(f"{out / SAVED} cannot be read ({error}); choose another --out") from error
    if [stage.name for stage in saved.stage] != [stage.name for stage in recipe.stage]:
        raise UsageError(f"{out} holds a run with other stages; choose another --out")
    for old, new in zip(saved.stage, recipe.stage, strict=True):
        before, now = _flat(old), _flat(new)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) == now.get(key):
                continue
            if key.removeprefix("loop.") in CHANGEABLE:
                log.warning("%s.%s is %s from now on, it was %s", old.name, key, now.get(key), before.get(key))
            else:
                raise UsageError(
                    f"{out} holds a run with {old.name}.{key} = {before.get(key)!r}, not {now.get(key)!r}; "
                    "go on with the same recipe, or choose another --out"
                )


def _flat(stage: AnyStage) -> dict[str, Any]:
    """A stage's settings by their keys, those of its loop as "loop.KEY"."""
    values: dict[str, Any] = msgspec.to_builtins(stage)
    loop = values.pop("loop")
    return values | {f"loop.{key}": value for key, value in loop.items()}


def _check_later(out: Path, recipe: Recipe, place: int, done: int, steps: int) -> None:
    """Raise UsageError where a stage is to be trained further on which a later one was built."""
    later = [stage.name for stage in recipe.stage[place + 1 :] if (out / stage.name / NAME).exists()]
    if later and done < steps:
        name = recipe.stage[place].name
        raise UsageError(
            f"{out / later[0]} was trained on {name} after {done} steps, which is to have {steps} now; remove it and "
            "resume, or choose another --out"
        )


def _task(stage: AnyStage, data: Path, before: Path | None) -> Task:
    match stage:
        case EncoderStage():
            return encoder_task(stage, data, before)
        case FuserStage():
            return fuser_task(stage, data, before)
        case Int8Stage():
            return int8_task(stage, data, before)
        case PersonStage():
            return person_task(stage, data, before)


def _save(out: Path, recipe: Recipe) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / SAVED).write_bytes(msgspec.json.format(msgspec.json.encode(recipe), indent=1))
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}") from error


def _steps_done(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    return int(read(checkpoint)["step"])
