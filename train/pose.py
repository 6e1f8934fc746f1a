"""Training the lite pose network: first the encoder with its single-frame head, then, on frozen features, the fuser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from streampose.errors import UsageError
from streampose.model.lite import LiteEncoder, LiteFuser
from streampose.model.mobile import folded
from streampose.model.network import FamiPose, decode, normalise
from streampose.train.loop import Batch
from streampose.train.pack import Still, read_clips, read_stills
from streampose.train.recipe import EncoderStage, FuserStage
from streampose.train.windows import Subject, Windows, WindowSettings, clip_subjects, make_window, still_subjects

COARSE_WEIGHT = 0.3


def heatmap_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of each joint's map, as a distribution over its cells, with the target's.

    Args:
        logits: (B, J, h, w).
        targets: (B, J, h, w), each map sums to 1 (or is all zeros, with weight 0).
        weights: (B, J) 0..1.

    Returns:
        The weighted mean, a scalar; 0 where all weights are.
    """
    log_p = functional.log_softmax(logits.flatten(2), dim=2)
    per_joint = -(targets.flatten(2) * log_p).sum(dim=2)
    return (per_joint * weights).sum() / weights.sum().clamp(min=1e-6)


class EncoderTask:
    """The encoder and its heads on single frames."""

    loss_weights: Mapping[str, float] = {"heatmap": 1.0, "coarse32": COARSE_WEIGHT, "coarse16": COARSE_WEIGHT}

    def __init__(self, model: LiteEncoder, windows: Windows, val: Sequence[Subject], trunk_lr: float) -> None:
        self.model = model
        self.dataset = windows
        self.val = val
        self.trunk_lr = trunk_lr

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        trunk = {id(p) for p in self.model.trunk.parameters()}
        rest = [p for p in self.model.parameters() if id(p) not in trunk]
        learnt = [p for p in self.model.trunk.parameters() if p.requires_grad]
        return [{"params": rest, "lr": lr}, {"params": learnt, "lr": lr * self.trunk_lr}]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        top, middle, _, features = self.model.pyramid(normalise(batch["crops"][:, 0]))
        targets, weights = batch["targets"], batch["weights"]
        terms = {"heatmap": heatmap_cross_entropy(self.model.head(features), targets, weights)}
        for name, head, level in zip(("coarse32", "coarse16"), self.model.coarse_heads, (top, middle), strict=True):
            pooled = functional.adaptive_avg_pool2d(targets, (level.shape[2], level.shape[3]))
            pooled = pooled / pooled.sum(dim=(2, 3), keepdim=True).clamp(min=1e-9)
            terms[name] = heatmap_cross_entropy(head(level), pooled, weights)
        return terms

    def validate(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, LiteEncoder)
        network = FamiPose(model, LiteFuser(), ())
        return {"pck01": window_pck(network, self.val, self.dataset.settings.size, 0).single}


class FuserTask:
    """The fuser on the features of a frozen encoder."""

    loss_weights: Mapping[str, float] = {"heatmap": 1.0}

    def __init__(self, model: FamiPose, windows: Windows, val: Sequence[Subject]) -> None:
        self.model = model
        self.dataset = windows
        self.val = val
        model.freeze_encoder()
        self.encoder = folded(model.encoder).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        return [{"params": list(self.model.fuser.parameters()), "lr": lr}]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        features = encode_windows(self.encoder, batch["crops"])
        heatmaps = self.model.fuse(features, batch["transforms"])
        return {"heatmap": heatmap_cross_entropy(heatmaps, batch["targets"], batch["weights"])}

    def validate(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, FamiPose)
        figures: dict[str, float] = {}
        for name, share in (("clean", 0.0), ("corrupt", 1.0)):
            result = window_pck(model, self.val, self.dataset.settings.size, share)
            figures |= {f"pck01_{name}_single": result.single, f"pck01_{name}_five": result.fused}
        return figures


@torch.no_grad()
def encode_windows(encoder: nn.Module, crops: Tensor) -> Tensor:
    """(B, T, H, W, 3) uint8 BGR -> features (B, T, C, h, w), without gradients."""
    frames = normalise(crops.flatten(0, 1)).contiguous(memory_format=torch.channels_last)
    features: Tensor = encoder(frames).contiguous()
    return features.view(crops.shape[0], crops.shape[1], *features.shape[1:])


class WindowPck(NamedTuple):
    """PCK@0.1 (0..1) of the single-frame head and of the fused windows (nan without supporting frames)."""

    single: float
    fused: float


@torch.inference_mode()
def window_pck(
    model: FamiPose, subjects: Sequence[Subject], size: tuple[int, int], corrupt_key: float, share: float = 0.1
) -> WindowPck:
    """How many human-labelled joints are found, at the labelled boxes.

    Args:
        subjects: people whose joints a human labelled.
        size: (height, width) of the crops.
        corrupt_key: share of the windows whose key frame is blurred, darkened or covered; the others are clean.
        share: a joint is found within this share of the longer side of the person's box.
    """
    settings = WindowSettings.for_evaluation(size, model.offsets, corrupt_key)
    encoder = folded(model.encoder).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    right, total = np.zeros(2), 0
    for start in range(0, len(subjects), 16):
        part = list(enumerate(subjects[start : start + 16], start))
        samples = [make_window(subject, settings, np.random.default_rng((7, index))) for index, subject in part]
        features = encode_windows(encoder, torch.from_numpy(np.stack([sample["crops"] for sample in samples])))
        found = [decode(model.single(features[:, 0])).numpy()]
        if model.offsets:
            transforms = torch.from_numpy(np.stack([sample["transforms"] for sample in samples]))
            found.append(decode(model.fuse(features, transforms)).numpy())
        human = np.stack([sample["human"] for sample in samples])
        points = np.stack([sample["points"] for sample in samples])
        reach = share * np.array([sample["side"] for sample in samples])
        for mode, keypoints in enumerate(found):
            near = np.linalg.norm(keypoints[..., :2] - points, axis=2) <= reach[:, None]
            right[mode] += (near & human).sum()
        total += int(human.sum())
    shares = right / max(total, 1)
    return WindowPck(float(shares[0]), float(shares[1]) if model.offsets else float("nan"))


def human_subjects(stills: Sequence[Still]) -> list[Subject]:
    """The people whose joints a human labelled."""
    return [s for s in still_subjects(stills) if s.person.human.any()]


def training_groups(
    data: Path, shares: Mapping[str, float], offsets: Sequence[int], clip_every: int
) -> list[tuple[list[Subject], float]]:
    """The training split's subjects by set, each with its share of the samples; `clips` is the set of all clips."""
    groups = []
    for name, share in shares.items():
        if name == "clips":
            subjects = clip_subjects(read_clips(data, "train"), offsets, clip_every)
        else:
            subjects = still_subjects(read_stills(data, "train", [name]))
        groups.append((subjects, share))
    return groups


def encoder_task(stage: EncoderStage, data: Path, before: Path | None) -> EncoderTask:
    """The encoder's task on the pack at `data`, from the checkpoint of the stage before or from ImageNet weights."""
    model = LiteEncoder()
    if before is None:
        model.trunk.load_imagenet()
    else:
        model.load_state_dict(_ema(before))
    model.trunk.freeze(stage.frozen_stages)
    groups = training_groups(data, stage.shares, (), stage.clip_every)
    windows = Windows(groups, WindowSettings(size=stage.size), stage.loop.seed)
    return EncoderTask(model, windows, _val(data), stage.trunk_lr)


def fuser_task(stage: FuserStage, data: Path, before: Path | None) -> FuserTask:
    """The fuser's task on the pack at `data`; `before` is the checkpoint of an encoder stage or of a fuser stage."""
    if before is None:
        raise UsageError(f"the stage {stage.name} needs an encoder stage before it")
    model = FamiPose(LiteEncoder(), LiteFuser(), stage.offsets)
    weights = _ema(before)
    if any(name.startswith("fuser.") for name in weights):
        model.load_state_dict(weights)
    else:
        model.encoder.load_state_dict(weights)
        model.fuser.head.load_state_dict(model.encoder.head.state_dict())
    groups = training_groups(data, stage.shares, stage.offsets, stage.clip_every)
    settings = WindowSettings(size=stage.size, offsets=stage.offsets, corrupt_key=stage.corrupt_key)
    return FuserTask(model, Windows(groups, settings, stage.loop.seed), _val(data))


def _val(data: Path) -> list[Subject]:
    subjects = human_subjects(read_stills(data, "val", ["lspet"]))
    if not subjects:
        raise UsageError(f"{data} has no human-labelled validation people: lspet needs over 60 pictures")
    return subjects


def _ema(checkpoint: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(checkpoint, map_location="cpu", weights_only=True)["ema"]
    return state
