"""The stages of pose networks: what each begins with."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.utils.data import Dataset, default_collate

from streampose.errors import ModelError, UsageError
from streampose.model import FamiPose, fami_pose, load, normalise
from streampose.model.fuser import Fuser
from streampose.model.int8 import is_int8
from streampose.model.lite import LiteEncoder
from streampose.skeleton import Skeleton
from streampose.train.from_bundle import is_bundle, pose_of_bundle, settle
from streampose.train.hard import fastest, hardest
from streampose.train.int8 import Int8Task
from streampose.train.loop import Batch
from streampose.train.pose import EncoderTask, FuserTask, Stage, read_data
from streampose.train.recipe import EncoderStage, FuserStage, Int8Stage
from streampose.train.windows import Windows

log = logging.getLogger(__name__)

SETTLING_SAMPLES, SETTLING_BATCH = 128, 16
"""BatchNorm of a bundle's network gets its statistics from so many samples."""


def encoder_task(stage: EncoderStage, data: Path, before: Path | None) -> EncoderTask:
    """The encoder's task on the folder `data`, from the checkpoint of the stage before, the stage's `weights`, or, for
    lite, ImageNet weights.

    Raises:
        ModelError: weights that are missing, damaged or of another network. UsageError: see `read_data`.
    """
    content = read_data(stage, data)
    model = _network(stage, content.skeleton, ())
    known = _known(stage, before)
    if known is not None:
        _take_encoder(model, known, before or stage.weights)
        if before is None and is_bundle(stage.weights):
            settle(model.encoder, lambda: [model.encode(frames[:, 0]) for frames in _frames(content.windows)])
    elif isinstance(model.encoder, LiteEncoder):
        model.encoder.trunk.load_imagenet()
    else:
        log.warning('%s begins with random weights; give it some with weights = "FILE" (docs/training.md)', stage.name)
    if stage.hard and isinstance(content.windows, Windows):
        content.windows.prefer([hardest(model, group, stage.size) for group in content.windows.groups], stage.hard)
    if isinstance(model.encoder, LiteEncoder):
        model.encoder.trunk.freeze(stage.frozen_stages)
    return EncoderTask(model, content, stage)


def fuser_task(stage: FuserStage, data: Path, before: Path | None) -> FuserTask:
    """The fuser's task on the folder `data`, from the checkpoint of an encoder stage or of a fuser stage, or from the
    stage's `weights`. After an encoder stage, `fuser_weights` say what the fuser begins with.

    Raises:
        UsageError: no stage before it and no `weights`.
        ModelError: weights that are missing, damaged or of another network.
    """
    known = _known(stage, before)
    if known is None:
        raise UsageError(f'the stage {stage.name} needs an encoder stage before it, or weights = "FILE"')
    content = read_data(stage, data)
    model = _network(stage, content.skeleton, stage.offsets)
    _take_encoder(model, known, before or stage.weights)
    if known.offsets:
        _take_fuser(model, known, before or stage.weights, content.windows)
    elif stage.fuser_weights:
        _take_fuser(model, _load(stage.fuser_weights), stage.fuser_weights, content.windows)
        assert isinstance(model.fuser, Fuser)
        model.fuser.start_from(model.encoder.head)
    if stage.fast and isinstance(content.windows, Windows):
        content.windows.prefer([fastest(group) for group in content.windows.groups], stage.fast)
    return FuserTask(model, content, stage)


def int8_task(stage: Int8Stage, data: Path, before: Path | None) -> Int8Task:
    """The task of a stage in int8 on the folder `data`, from the checkpoint of the fuser stage before, or the stage's
    `weights`.

    Raises:
        UsageError: no stage before it and no `weights`.
        ModelError: weights that are missing, damaged or of another network.
    """
    known = _known(stage, before)
    if known is None:
        raise UsageError(f'the stage {stage.name} needs a fuser stage before it, or weights = "FILE"')
    content = read_data(stage, data)
    wanted = {"backbone": "lite", "skeleton": content.skeleton.name, "offsets": list(stage.offsets)}
    found = {key: known.description[key] for key in wanted}
    if found != wanted:
        raise ModelError(f"{before or stage.weights} is {found}, not {wanted}, which this stage trains")
    return Int8Task(known, content, stage)


def _take_fuser(model: FamiPose, known: FamiPose, origin: str | Path, windows: Dataset[Batch]) -> None:
    """Begin with the fuser of a known network.

    Raises:
        ModelError: it is of another kind.
    """
    if known.description != model.description:
        raise ModelError(f"{origin} is {known.description}, not {model.description}, which this stage trains")
    assert model.fuser is not None
    assert known.fuser is not None
    model.fuser.load_state_dict(known.fuser.state_dict())
    if is_bundle(str(origin)):
        _settle_fuser(model, windows)


def _known(stage: Stage, before: Path | None) -> FamiPose | None:
    """The network that a stage begins with, if there is one."""
    if before is not None:
        return _load(str(before))
    return _load(stage.weights) if stage.weights else None


def _load(weights: str) -> FamiPose:
    network = pose_of_bundle(weights) if is_bundle(weights) else load(Path(weights))
    if is_int8(network):
        raise ModelError(f"{weights} is in int8, and a stage begins with float32; give what it was made from")
    return network


def _frames(windows: Dataset[Batch]) -> list[torch.Tensor]:
    """Normalised frames (B, T, 3, H, W) of some windows."""
    batches = []
    for start in range(0, SETTLING_SAMPLES, SETTLING_BATCH):
        crops = default_collate([windows[index]["crops"] for index in range(start, start + SETTLING_BATCH)])
        frames = normalise(torch.as_tensor(crops).flatten(0, 1))
        batches.append(frames.reshape(*crops.shape[:2], *frames.shape[1:]))
    return batches


@torch.no_grad()
def _settle_fuser(model: FamiPose, windows: Dataset[Batch]) -> None:
    assert model.fuser is not None
    count = 1 + len(model.offsets)
    model.eval()
    still = torch.eye(2, 3).expand(SETTLING_BATCH, count, 2, 2, 3)
    features = [model.encode(frames[:, :count].flatten(0, 1)) for frames in _frames(windows)]
    settle(model.fuser, lambda: [model.fuse(f.reshape(-1, count, *f.shape[1:]), still) for f in features])


def _network(stage: Stage, skeleton: Skeleton, offsets: tuple[int, ...]) -> FamiPose:
    alignment = stage.alignment if isinstance(stage, FuserStage) else "per-frame"
    return fami_pose(stage.backbone, offsets, skeleton=skeleton.name, alignment=alignment, heatmap=stage.heatmap)


def _take_encoder(model: FamiPose, known: FamiPose, origin: str | Path) -> None:
    """Begin with the encoder of a known network; its heads too, where they are of the same joints.

    Raises:
        ModelError: it is of another backbone.
    """
    if known.backbone != model.backbone:
        raise ModelError(f"{origin} has the backbone {known.backbone}, this stage trains {model.backbone}")
    same_joints = known.skeleton == model.skeleton
    state = known.encoder.state_dict()
    if not same_joints:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(("head.", "coarse_heads."))}
    model.encoder.load_state_dict(state, strict=same_joints)
    if isinstance(model.fuser, Fuser):
        model.fuser.start_from(model.encoder.head)
