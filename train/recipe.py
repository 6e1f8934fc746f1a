"""Recipes: one TOML says what is trained, on what and for how long. Unknown keys fail."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from streampose.errors import UsageError
from streampose.train.loop import LoopSettings

RECIPES = Path(__file__).parent / "recipes"


class EncoderStage(msgspec.Struct, tag_field="kind", tag="encoder", forbid_unknown_fields=True, frozen=True):
    """The encoder on single frames.

    Attributes:
        name: of the stage's folder under `--out`.
        size: (height, width) of the crops in pixels, both divisible by 32.
        shares: share of each set among the samples.
        loop: see `LoopSettings`.
        frozen_stages: of the trunk, besides the stem.
        trunk_lr: learning rate of the trunk, relative to the rest.
        clip_every: take every n-th frame of the clips.
    """

    name: str
    size: tuple[int, int]
    shares: dict[str, float]
    loop: LoopSettings
    frozen_stages: int = 2
    trunk_lr: float = 0.5
    clip_every: int = 5


class FuserStage(msgspec.Struct, tag_field="kind", tag="fuser", forbid_unknown_fields=True, frozen=True):
    """The fuser on the features of the encoder of the stage before; keys as in `EncoderStage`.

    Attributes:
        offsets: supporting frames relative to the key frame.
        corrupt_key: share of the windows whose key frame is blurred, darkened or covered.
    """

    name: str
    size: tuple[int, int]
    shares: dict[str, float]
    loop: LoopSettings
    offsets: tuple[int, ...] = (-4, -3, -2, -1)
    corrupt_key: float = 0.5
    clip_every: int = 3


class PersonStage(msgspec.Struct, tag_field="kind", tag="person", forbid_unknown_fields=True, frozen=True):
    """The person detector; keys as in `EncoderStage`.

    Attributes:
        size: side of the square input in pixels, divisible by 32.
        mosaic: share of the samples that are put together from four pictures.
    """

    name: str
    size: int
    shares: dict[str, float]
    loop: LoopSettings
    frozen_stages: int = 2
    trunk_lr: float = 0.5
    clip_every: int = 5
    mosaic: float = 0.4


class Recipe(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A file of `train/recipes`: stages trained one after the other, each from the weights of the one before."""

    name: str
    stage: list[EncoderStage | FuserStage | PersonStage]


def read_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by the name of a bundled one or by path.

    Args:
        overrides: `STAGE.KEY=VALUE` or `STAGE.loop.KEY=VALUE`, the value as TOML.

    Raises:
        UsageError: no such recipe, no TOML, an unknown or wrong key.
    """
    path = Path(name)
    if not path.suffix:
        path = RECIPES / f"{name}.toml"
    try:
        raw = tomllib.loads(path.read_text())
        for override in overrides:
            _override(raw, override)
        return msgspec.convert(raw, Recipe)
    except FileNotFoundError as error:
        bundled = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise UsageError(f"no recipe {path}; the bundled ones are: {bundled}") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{path}: {error}") from error


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    stage_name, *keys = key.strip().split(".")
    stages = [stage for stage in raw.get("stage", []) if stage.get("name") == stage_name]
    if not (equals and keys and stages):
        names = ", ".join(str(stage.get("name")) for stage in raw.get("stage", []))
        raise UsageError(f"--set {override}: expected STAGE.KEY=VALUE, the stages are: {names}")
    target = stages[0]
    for part in keys[:-1]:
        target = target.setdefault(part, {})
    try:
        target[keys[-1]] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--set {override}: the value is no TOML (quote strings): {error}") from error
