"""Recipes: one TOML says what is trained, on what and for how long. Unknown keys fail."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from streampose.errors import UsageError
from streampose.train.settings import LoopSettings

RECIPES = Path(__file__).parent / "recipes"


def _check_numbers(name: str, values: Mapping[str, float], highest: float = math.inf) -> None:
    """Raise ValueError where a value is not a number from 0 to `highest`."""
    for key, value in values.items():
        if not (math.isfinite(value) and 0 <= value <= highest):
            limit = "" if highest == math.inf else f" and at most {highest:g}"
            raise ValueError(f"{name}.{key} is a number, not negative{limit}; got {value}")


def _check_shares(shares: Mapping[str, float]) -> None:
    _check_numbers("shares", shares)
    if shares and not sum(shares.values()):
        raise ValueError("shares: one of them is above 0")


class _PoseStage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """What the stages of a pose network have in common.

    Attributes:
        name: of the stage's folder under `--out`.
        size: (height, width) of the crops in pixels, both divisible by 32.
        loop: see `LoopSettings`.
        backbone: see `fami_pose`.
        heatmap: "distribution" is trained by cross-entropy, "gaussian" by squared error; see `fami_pose`.
        sigma: spread of the targets in heatmap cells.
        data: what `--data` holds, see `train.datasets`; "pack" is drawn from endlessly, the others epoch by epoch.
        fold: of "jhmdb": which of its three splits.
        shares: of "pack": share of each set among the samples.
        clip_every: of "pack": take every n-th frame of the clips.
        weights: what the first stage begins with: a checkpoint of `streampose train` or `import-weights`, a bundle's
            folder or a bundled model's name; "" for none.
        distil: of "pack" and distributions: share of the teacher's maps in the targets, where the pack has them (those
            of `streampose label` do).
        augment: fields of `WindowSettings` that differ from its defaults.
        validate_people: how many people of the validation split are looked at while training, evenly spread; 0 is all.
    """

    name: str
    size: tuple[int, int]
    loop: LoopSettings
    backbone: str = "lite"
    heatmap: Literal["distribution", "gaussian"] = "distribution"
    sigma: float = 2.0
    data: str = "pack"
    fold: int = 1
    shares: dict[str, float] = {}
    clip_every: int = 5
    weights: str = ""
    distil: float = 0.0
    augment: dict[str, float] = {}
    validate_people: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.distil <= 1 or (self.distil and (self.data != "pack" or self.heatmap != "distribution")):
            raise ValueError('distil is a share, 0 to 1, and belongs to data = "pack" with heatmap = "distribution"')
        if any(side < 32 or side % 32 for side in self.size):
            raise ValueError(f"size is (height, width), both divisible by 32, got {list(self.size)}")
        if (self.data == "pack") != bool(self.shares):
            raise ValueError('shares of sets belong to data = "pack", and it needs them')
        _check_shares(self.shares)
        for key, value in self.augment.items():
            _check_numbers("augment", {key: value}, {"rotation_deg": 180.0, "half_body_joints": 17.0}.get(key, 1.0))
        if not 0 < self.sigma < math.inf or self.clip_every < 1 or self.validate_people < 0:
            raise ValueError("sigma is above 0, clip_every at least 1, validate_people not negative")


class EncoderStage(_PoseStage, tag_field="kind", tag="encoder", frozen=True):
    """The encoder with its single-frame head, on single frames.

    Attributes:
        frozen_stages: of lite: stages of the trunk, besides the stem, that keep their ImageNet weights.
        trunk_lr: of lite: learning rate of the trunk, relative to the rest.
        hard: of "pack": share of the samples that are drawn from the quarter of each set which the stage's first
            weights get most wrong.
    """

    frozen_stages: int = 2
    trunk_lr: float = 0.5
    hard: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.hard <= 1 or (self.hard and self.data != "pack"):
            raise ValueError('hard is a share, 0 to 1, and belongs to data = "pack"')


class WindowStage(_PoseStage, frozen=True):
    """What the stages on windows have in common.

    Attributes:
        offsets: supporting frames relative to the key frame.
        corrupt_key: share of the windows whose key frame is blurred, darkened or covered.
    """

    offsets: tuple[int, ...] = (-4, -3, -2, -1)
    corrupt_key: float = 0.5


class FuserStage(WindowStage, tag_field="kind", tag="fuser", frozen=True):
    """The fuser on the features of the encoder before it, which is frozen.

    Attributes:
        alignment: see `fami_pose`.
        support_information: weight of the mutual-information term `support` (docs/method.md); 0 leaves it out. With
            Gaussian heatmaps it is divided by their number of cells.
        fuser_weights: after an encoder stage: what alignment and trust begin with, see `weights`; "" for random ones.
        steadiness: weight of the term `tremble` (see `tremble_loss`); above 0 each window is fused for its
            last three frames, and all three are learnt.
        clip_strides: of "pack": each n gives windows of every n-th frame of a clip, in which all moves n times as fast.
        fast: of "pack": share of the samples that are drawn from the quarter of each set in which limbs move most.
    """

    alignment: Literal["per-frame", "joint"] = "per-frame"
    support_information: float = 0.0
    fuser_weights: str = ""
    steadiness: float = 0.0
    clip_strides: tuple[int, ...] = (1,)
    fast: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steadiness and (self.heatmap != "distribution" or self.support_information or max(self.offsets) >= 0):
            raise ValueError('steadiness goes with heatmap = "distribution", past offsets, and no support_information')
        if not self.clip_strides or min(self.clip_strides) < 1:
            raise ValueError(f"clip_strides are whole numbers from 1, got {list(self.clip_strides)}")
        if not 0 <= self.fast <= 1 or (self.data != "pack" and (self.fast or self.clip_strides != (1,))):
            raise ValueError('fast is a share, 0 to 1; fast and clip_strides belong to data = "pack"')


class Int8Stage(WindowStage, tag_field="kind", tag="int8", frozen=True):
    """A lite network after a fuser stage, or `weights`, in int8: it learns to compute what it computes in float32.

    Attributes:
        calibration: windows by which the steps are chosen before training.
        features: weight of the features' squared error, beside the heatmaps' divergence.
    """

    calibration: int = 64
    features: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration < 1 or self.distil:
            raise ValueError("calibration is at least 1, and distil belongs to the other stages")
        _check_numbers("stage", {"features": self.features})


class PersonStage(msgspec.Struct, tag_field="kind", tag="person", forbid_unknown_fields=True, frozen=True):
    """The person detector.

    Attributes:
        name: of the stage's folder under `--out`.
        size: side of the square input in pixels, divisible by 32.
        shares: share of each set of the pack among the samples.
        loop: see `LoopSettings`.
        frozen_stages, trunk_lr: as in `EncoderStage`.
        clip_every: take every n-th frame of the clips.
        mosaic: share of the samples that are put together from four pictures.
        background: share of the pictures of which only a part without people is taken, enlarged.
        weights: as in the other stages; "" for ImageNet weights of the trunk.
    """

    name: str
    size: int
    shares: dict[str, float]
    loop: LoopSettings
    frozen_stages: int = 2
    trunk_lr: float = 0.5
    clip_every: int = 5
    mosaic: float = 0.4
    background: float = 0.0
    weights: str = ""

    def __post_init__(self) -> None:
        _check_shares(self.shares)
        _check_numbers("stage", {"mosaic": self.mosaic, "background": self.background}, 1.0)
        if self.size < 32 or self.size % 32 or self.clip_every < 1:
            raise ValueError(
                f"size is divisible by 32 and clip_every at least 1, got {self.size} and {self.clip_every}"
            )


class Recipe(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A file of `train/recipes`: stages trained one after the other, each from the weights of the one before."""

    name: str
    stage: list[EncoderStage | FuserStage | Int8Stage | PersonStage]

    def __post_init__(self) -> None:
        if not self.stage:
            raise ValueError("a recipe has at least one stage")
        if len({stage.name for stage in self.stage}) < len(self.stage):
            raise ValueError("two stages have the same name")
        for stage in self.stage:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", stage.name):
                raise ValueError(
                    f"a stage's name is letters, digits, - and _, for it names a folder; got {stage.name!r}"
                )


def read_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by the name of a bundled one or by path.

    Args:
        overrides: `STAGE.KEY=VALUE` or `STAGE.loop.KEY=VALUE`, the value as TOML; `*` stands for every stage.

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
        raise UsageError(f"no recipe {str(name)!r}, nor such a file; the bundled ones are: {bundled}") from error
    except OSError as error:
        raise UsageError(f"the recipe {path} cannot be read: {error.strerror}") from error
    except msgspec.ValidationError as error:
        changed = f" with --set {' --set '.join(overrides)}" if overrides else ""
        raise UsageError(f"recipe {name}{changed}: {_placed(str(error), raw)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, UsageError) as error:
        raise UsageError(f"recipe {name}: {error}") from error


def _placed(message: str, raw: Mapping[str, Any]) -> str:
    """An error's message with stages by their names instead of their numbers."""
    names = [str(stage.get("name")) for stage in raw.get("stage", [])]
    return re.sub(
        r"`\$\.stage\[(\d+)\]\.?([^`]*)`", lambda found: f"{names[int(found[1])]} {found[2]}".rstrip(), message
    )


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    stage_name, *keys = key.strip().split(".")
    stages = [stage for stage in raw.get("stage", []) if stage_name in ("*", stage.get("name"))]
    if not (equals and keys and stages):
        names = ", ".join(str(stage.get("name")) for stage in raw.get("stage", []))
        raise UsageError(f"--set {override}: expected STAGE.KEY=VALUE, the stages are: {names}")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--set {override}: the value is no TOML (quote strings): {error}") from error
    for target in stages:
        for part in keys[:-1]:
            target = target.setdefault(part, {})
        target[keys[-1]] = parsed
