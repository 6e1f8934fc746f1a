"""`streampose train`: a recipe's stages one after the other, each in its own folder with checkpoint and log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from streampose.errors import OutputError, UsageError
from streampose.train.checkpoint import NAME, read
from streampose.train.distributed import Group, open_group
from streampose.train.loop import Task, fit
from streampose.train.person import person_task
from streampose.train.pose import encoder_task, fuser_task
from streampose.train.recipe import EncoderStage, FuserStage, PersonStage, Recipe, read_recipe

log = logging.getLogger(__name__)

SAVED = "recipe.json"


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
    """
    chosen = read_recipe(recipe, overrides)
    if data is None:
        raise UsageError("training needs --data DIR, the folder of the recipe's data set (docs/training.md)")
    out = out or Path("runs") / chosen.name
    with open_group(chosen.stage[0].loop.device) as group:
        if (out / SAVED).exists() and not resume:
            raise UsageError(f"{out} holds a run already; go on with --resume or choose another --out")
        group.wait()
        return _train_stages(chosen, data, out, resume, group)


def _train_stages(recipe: Recipe, data: Path, out: Path, resume: bool, group: Group) -> Path:
    before: Path | None = None
    for stage in recipe.stage:
        folder = out / stage.name
        checkpoint = folder / NAME
        if resume and stage.loop.steps and _steps_done(checkpoint) >= stage.loop.steps:
            log.info("%s is done already", stage.name)
        else:
            torch.manual_seed(stage.loop.seed)  # the weights that a network begins with
            task = _task(stage, data, before)
            log.info("%s: %d steps", stage.name, stage.loop.plan(task.epoch_samples).steps)
            if group.leads:
                _save(out, recipe)
            fit(task, stage.loop, folder, resume, group)
        group.wait()
        before = checkpoint
    assert before is not None
    return before


def _task(stage: EncoderStage | FuserStage | PersonStage, data: Path, before: Path | None) -> Task:
    match stage:
        case EncoderStage():
            return encoder_task(stage, data, before)
        case FuserStage():
            return fuser_task(stage, data, before)
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
