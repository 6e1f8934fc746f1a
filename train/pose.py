"""Training pose networks: first the encoder with its single-frame head, then, on frozen features, the fuser."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from streampose.errors import UsageError
from streampose.model import FamiPose, normalise
from streampose.model.fuser import STRIDE
from streampose.model.lite import LiteEncoder
from streampose.model.mobile import folded
from streampose.skeleton import COCO17, Skeleton
from streampose.train.datasets import SKELETON_OF, read_subjects
from streampose.train.loop import Batch
from streampose.train.losses import blend, distributions, gaussian_maps, heatmap_cross_entropy, heatmap_mse
from streampose.train.mutual_information import SupportDecoder, information_gain, support_loss
from streampose.train.pack import (
    FOR_VALIDATION,
    Clip,
    Still,
    check_filled,
    check_set,
    read_clips,
    read_stills,
    still_sets,
)
from streampose.train.recipe import EncoderStage, FuserStage, Int8Stage, WindowStage
from streampose.train.sheet import draw_sheet
from streampose.train.steadiness import longer_offsets, tremble_loss, views
from streampose.train.windows import (
    ShuffledWindows,
    Subject,
    Windows,
    WindowSettings,
    clip_subjects,
    make_window,
    still_subjects,
)

log = logging.getLogger(__name__)

COARSE_WEIGHT = 0.3
CELL_PX = 4.0
SHEET_CROPS = 24
VAL_CLIP_EVERY = 10
LEAST_WEIGHT = 0.3
"""Where a teacher labelled, joints count from this weight on."""
Stage = EncoderStage | FuserStage | Int8Stage


@dataclass(frozen=True, slots=True)
class PoseData:
    """What a stage is trained and validated on; `epoch_samples` is None where the windows have no end."""

    windows: Dataset[dict[str, Any]]
    epoch_samples: int | None
    val: list[Subject]
    skeleton: Skeleton
    val_clips: list[Subject] = field(default_factory=list)


class PoseTask:
    """What all stages share; see `Task`."""

    def __init__(self, model: FamiPose, data: PoseData, stage: Stage) -> None:
        self.model = model
        self.auxiliary: nn.Module = nn.Module()
        self.data = data
        self.stage = stage
        self.dataset = data.windows
        self.epoch_samples = data.epoch_samples
        self.network = model.description

    def weight(self, batch: Batch) -> Tensor:
        """The labels' weights, which the losses are means over."""
        return self.targets(batch)[1].sum()

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Target maps (B, J, h, w) and the weights (B, J) of the joints that are in them."""
        height, width = self.stage.size
        size = (int(height / CELL_PX), int(width / CELL_PX))
        maps = gaussian_maps(batch["points"], size, CELL_PX, self.stage.sigma)
        weights = batch["weights"] * (maps.amax(dim=(2, 3)) > 0)
        if self.model.heatmap == "gaussian":
            return maps, weights
        hard = distributions(maps)
        return (blend(hard, batch["maps"], self.stage.distil) if "maps" in batch else hard), weights

    def heatmap_loss(self, heatmaps: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The loss that belongs to the network's kind of heatmap."""
        loss = heatmap_mse if self.model.heatmap == "gaussian" else heatmap_cross_entropy
        return loss(heatmaps, targets, weights)

    def sheet(self, model: nn.Module) -> NDArray[np.uint8] | None:
        """What the network sees in people of the validation split, the first of them spread over it."""
        assert isinstance(model, FamiPose)
        chosen = self.data.val[:: max(1, len(self.data.val) // SHEET_CROPS)][:SHEET_CROPS]
        settings = WindowSettings.for_evaluation(self.stage.size, model.offsets, 0.0)
        samples = [make_window(subject, settings, np.random.default_rng((7, i))) for i, subject in enumerate(chosen)]
        keypoints = predict_windows(model, samples)[-1]
        labels = np.stack([np.column_stack([sample["points"], sample["weights"]]) for sample in samples])
        return draw_sheet([sample["crops"][0] for sample in samples], keypoints, labels, self.data.skeleton)


class EncoderTask(PoseTask):
    """The encoder and its heads on single frames."""

    stage: EncoderStage
    loss_weights: Mapping[str, float] = {"heatmap": 1.0, "coarse32": COARSE_WEIGHT, "coarse16": COARSE_WEIGHT}

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        encoder = self.model.encoder
        slow = list(encoder.trunk.parameters()) if isinstance(encoder, LiteEncoder) else []
        known = {id(p) for p in slow}
        rest = [p for p in encoder.parameters() if id(p) not in known]
        groups = [{"params": rest, "lr": lr}]
        if slow:
            groups.append({"params": [p for p in slow if p.requires_grad], "lr": lr * self.stage.trunk_lr})
        return groups

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        frames, encoder = normalise(batch["crops"][:, 0]), self.model.encoder
        frames = frames.contiguous(memory_format=torch.channels_last)
        targets, weights = self.targets(batch)
        if not isinstance(encoder, LiteEncoder):
            return {"heatmap": self.heatmap_loss(self.model.single(encoder(frames)), targets, weights)}
        top, middle, _, features = encoder.pyramid(frames)
        terms = {"heatmap": self.heatmap_loss(self.model.single(features), targets, weights)}
        for name, head, level in zip(("coarse32", "coarse16"), encoder.coarse_heads, (top, middle), strict=True):
            pooled = functional.adaptive_avg_pool2d(targets, (level.shape[2], level.shape[3]))
            terms[name] = heatmap_cross_entropy(head(level), distributions(pooled), weights)
        return terms

    def validate(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, FamiPose)
        return {"pck01": window_pck(model, self.data.val, self.stage.size, 0).single}


class FuserTask(PoseTask):
    """The fuser on the features of a frozen encoder."""

    stage: FuserStage

    def __init__(self, model: FamiPose, data: PoseData, stage: FuserStage) -> None:
        super().__init__(model, data, stage)
        model.freeze_encoder()
        assert model.fuser is not None
        if stage.support_information:
            self.auxiliary = SupportDecoder(model.fuser.aligned_channels, model.joints)
        cells = stage.size[0] * stage.size[1] // STRIDE**2
        share = 1 / cells if model.heatmap == "gaussian" else 1.0  # a squared error is a mean over cells, too
        self.loss_weights = {
            "heatmap": 1.0, "support": share * stage.support_information, "gain_nats": 0.0, "tremble": stage.steadiness,
        }  # fmt: skip
        self._encoder: nn.Module | None = None

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        assert self.model.fuser is not None
        return [{"params": [*self.model.fuser.parameters(), *self.auxiliary.parameters()], "lr": lr}]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        if self._encoder is None:  # not before: the loop moves the network to its device
            self._encoder = frozen_encoder(self.model)
        features = encode_windows(self._encoder, batch["crops"])
        if self.stage.steadiness:
            return self._steady_losses(batch, features)
        parts = self.model.fuse_parts(features, batch["transforms"])
        targets, weights = self.targets(batch)
        terms = {"heatmap": self.heatmap_loss(parts.heatmaps, targets, weights)}
        if isinstance(self.auxiliary, SupportDecoder):
            terms["support"] = support_loss(self.auxiliary, parts.aligned, distributions(targets), weights)
        if self.model.heatmap == "distribution":
            with torch.no_grad():
                alone = self.model.single(features[:, 0])
            terms["gain_nats"] = information_gain(alone, parts.heatmaps, targets, weights)
        return terms

    def _steady_losses(self, batch: Batch, features: Tensor) -> dict[str, Tensor]:
        """The window's last three frames, each as a key frame."""
        seen = list(views(batch, features, self.stage.offsets))
        terms, points = [], []
        for age, view in enumerate(seen):
            heatmaps = self.model.fuse(view.features, view.transforms)
            frame = {"points": view.points, "weights": view.weights}
            if age == 0 and "maps" in batch:
                frame["maps"] = batch["maps"]
            terms.append(self.heatmap_loss(heatmaps, *self.targets(frame)))
            points.append(self.model.decode(heatmaps)[..., :2])
        return {"heatmap": torch.stack(terms).mean(), "tremble": tremble_loss(points, seen, batch["side"])}

    def validate(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, FamiPose)
        figures = both_pcks(model, self.data.val, self.stage.size)
        if self.data.val_clips:
            off, counted = window_distances(model, self.data.val_clips, self.stage.size, 0.0)
            for name, share in (("pck01", 0.1), ("pck005", 0.05)):
                single, five = ((off <= share) & counted[:, None]).sum(axis=(0, 2)) / max(int(counted.sum()), 1)
                figures |= {f"{name}_clips_single": float(single), f"{name}_clips_five": float(five)}
        return figures


def both_pcks(model: FamiPose, people: Sequence[Subject], size: tuple[int, int]) -> dict[str, float]:
    """PCK@0.1 of windows with a clean and with a corrupted key frame, of the single frame and of all frames."""
    figures: dict[str, float] = {}
    for name, share in (("clean", 0.0), ("corrupt", 1.0)):
        result = window_pck(model, people, size, share)
        figures |= {f"pck01_{name}_single": result.single, f"pck01_{name}_five": result.fused}
    return figures


def frozen_encoder(model: FamiPose) -> nn.Module:
    """The encoder for inference: where it can be, with its BatchNorm folded into the convolutions."""
    encoder: nn.Module = model.encoder.eval()
    if isinstance(encoder, LiteEncoder):
        encoder = folded(encoder)
    return encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


@torch.no_grad()
def encode_windows(encoder: nn.Module, crops: Tensor) -> Tensor:
    """(B, T, H, W, 3) uint8 BGR -> features (B, T, C, h, w), without gradients."""
    frames = normalise(crops.flatten(0, 1)).contiguous(memory_format=torch.channels_last)
    features: Tensor = encoder(frames).contiguous()
    return features.view(crops.shape[0], crops.shape[1], *features.shape[1:])


@torch.inference_mode()
def predict_windows(
    model: FamiPose, samples: Sequence[Mapping[str, Any]], encoder: nn.Module | None = None
) -> list[NDArray[np.float32]]:
    """Keypoints (N, J, 3) of windows (see `Windows`), in key-crop pixels: by the encoder's head alone and, where the
    network has supporting frames, fused. `encoder` is `frozen_encoder(model)`, if it was made already."""
    device = next(model.parameters()).device
    crops = torch.from_numpy(np.stack([sample["crops"] for sample in samples])).to(device)
    features = encode_windows(encoder or frozen_encoder(model), crops)
    found = [model.decode(model.single(features[:, 0])).cpu().numpy()]
    if model.offsets:
        transforms = torch.from_numpy(np.stack([sample["transforms"] for sample in samples])).to(device)
        found.append(model.decode(model.fuse(features, transforms)).cpu().numpy())
    return found


class WindowPck(NamedTuple):
    """PCK@0.1 (0..1) of the single-frame head and of the fused windows (nan without supporting frames)."""

    single: float
    fused: float


def window_pck(
    model: FamiPose, subjects: Sequence[Subject], size: tuple[int, int], corrupt_key: float, share: float = 0.1
) -> WindowPck:
    """How many labelled joints are found, at the labelled boxes; see `window_hits`."""
    total, *right = window_hits(model, subjects, size, corrupt_key, share).sum(axis=0)
    shares = [float(hits / max(total, 1)) for hits in right]
    return WindowPck(shares[0], shares[1] if model.offsets else float("nan"))


def window_hits(
    model: FamiPose, subjects: Sequence[Subject], size: tuple[int, int], corrupt_key: float, share: float = 0.1
) -> NDArray[np.int_]:
    """How many labelled joints each person has, and how many of them are found, at the labelled boxes.

    Args:
        subjects: people; joints that a human labelled count, and of who has none all of weight 0.3 or more.
        size: (height, width) of the crops.
        corrupt_key: share of the windows whose key frame is blurred, darkened or covered; the others are clean.
        share: a joint is found within this share of the longer side of the person's box.

    Returns:
        (N, 3): joints, found by the single-frame head, found from fused windows (0 without supporting frames).
    """
    off, counted = window_distances(model, subjects, size, corrupt_key)
    near = ((off <= share) & counted[:, None]).sum(axis=2)
    rows = np.zeros((len(subjects), 3), np.int_)
    rows[:, 0], rows[:, 1 : 1 + near.shape[1]] = counted.sum(axis=1), near
    return rows


def window_distances(
    model: FamiPose, subjects: Sequence[Subject], size: tuple[int, int], corrupt_key: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """How far off each joint is, in longer box sides, and which joints count; arguments as of `window_hits`.

    Returns:
        Distances (N, 1 or 2, J), of the single-frame head and, with supporting frames, of fused windows; and which
        joints are counted (N, J).
    """
    settings = WindowSettings.for_evaluation(size, model.offsets, corrupt_key)
    encoder = frozen_encoder(model)
    off = np.zeros((len(subjects), 1 + bool(model.offsets), model.joints), np.float32)
    counted = np.zeros((len(subjects), model.joints), np.bool_)
    for start in range(0, len(subjects), 16):
        part = list(enumerate(subjects[start : start + 16], start))
        samples = [make_window(subject, settings, np.random.default_rng((7, index))) for index, subject in part]
        counted[start : start + 16] = [counted_joints(sample["human"], sample["weights"]) for sample in samples]
        points = np.stack([sample["points"] for sample in samples])
        sides = np.array([sample["side"] for sample in samples])
        for mode, keypoints in enumerate(predict_windows(model, samples, encoder)):
            off[start : start + 16, mode] = np.linalg.norm(keypoints[..., :2] - points, axis=2) / sides[:, None]
    return off, counted


def counted_joints(human: NDArray[np.bool_], weights: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(J,) which joints of a person a figure counts: those that a human labelled, or, of who has none, those whose
    label weighs enough."""
    return human if human.any() else np.asarray(weights >= LEAST_WEIGHT)


def human_subjects(stills: Sequence[Still]) -> list[Subject]:
    """The people whose joints a human labelled."""
    return [s for s in still_subjects(stills) if s.person.human.any()]


def training_groups(
    data: Path, shares: Mapping[str, float], offsets: Sequence[int], clip_every: int, strides: Sequence[int] = (1,)
) -> list[tuple[list[Subject], float]]:
    """The training split's subjects of the pack, by set, each with its share of the samples; `clips` is the set of all
    clips.

    Raises:
        UsageError: there is nothing of a set that has a share.
    """
    groups = []
    for name, share in shares.items():
        if not share:
            continue
        if name == "clips":
            subjects = _clip_group(read_clips(data, "train"), offsets, clip_every, strides)
        else:
            check_set(name, data)
            subjects = still_subjects(read_stills(data, "train", [name]))
        check_filled(name, subjects, data)
        groups.append((subjects, share))
    return groups


def _clip_group(clips: Sequence[Clip], offsets: Sequence[int], every: int, strides: Sequence[int]) -> list[Subject]:
    group = []
    for stride in strides:
        found = clip_subjects(clips, offsets, every, stride=stride)
        if not found and stride > 1:
            raise UsageError(
                f"no clip is long enough for clip_strides with {stride}: its windows reach over "
                f"{stride * -min(offsets)} frames"
            )
        group += found
    return group


def validation_people(data: Path) -> list[Subject]:
    """Whom a pack's pose networks are validated on: of the validation pictures of LSPet, or where there are none of all
    sets, the people whose joints a human labelled, or where there are none all."""
    there = still_sets(data)
    people = still_subjects(read_stills(data, "val", ["lspet"] if "lspet" in there else there))
    return [subject for subject in people if subject.person.human.any()] or people


def read_data(stage: Stage, data: Path) -> PoseData:
    """The windows and the validation people of a stage, from the folder `data`.

    Raises:
        UsageError: an unknown data set or augmentation, or the folder is not in the data set's layout.
    """
    offsets = model_offsets = stage.offsets if isinstance(stage, WindowStage) else ()
    if isinstance(stage, FuserStage) and stage.steadiness:
        offsets = longer_offsets(offsets)
    settings = _window_settings(stage, offsets)
    if stage.data == "pack":
        strides = stage.clip_strides if isinstance(stage, FuserStage) else (1,)
        groups = training_groups(data, stage.shares, offsets, stage.clip_every, strides)
        clips = read_clips(data, "val") if stage.shares.get("clips") else []
        moving = clip_subjects(clips, model_offsets, VAL_CLIP_EVERY)
        val = validation_people(data) or moving
        if not val:
            raise UsageError(f"{data} has nobody to validate on: {FOR_VALIDATION}")
        endless = Windows(groups, settings, stage.loop.seed)
        return PoseData(endless, None, _spread(val, stage), COCO17, moving if isinstance(stage, FuserStage) else [])
    splits = (f"train{stage.fold}", f"test{stage.fold}") if stage.data == "jhmdb" else ("train", "val")
    subjects, val = (read_subjects(stage.data, data, split, offsets) for split in splits)
    windows = ShuffledWindows(subjects, settings, stage.loop.seed)
    return PoseData(windows, len(subjects), _spread(val, stage), SKELETON_OF[stage.data])


def _window_settings(stage: Stage, offsets: tuple[int, ...]) -> WindowSettings:
    settings = WindowSettings(size=stage.size, offsets=offsets, maps=int(stage.distil > 0))
    if isinstance(stage, WindowStage):
        settings = replace(settings, corrupt_key=stage.corrupt_key)
    if isinstance(stage, FuserStage):
        settings = replace(settings, all_frames=int(stage.steadiness > 0))
    known = {field.name for field in fields(WindowSettings)} - {"size", "offsets", "corrupt_key", "maps", "all_frames"}
    unknown = sorted(set(stage.augment) - known)
    if unknown:
        raise UsageError(
            f"stage {stage.name}: no augmentation {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    return replace(settings, **stage.augment)  # type: ignore[arg-type]  # the keys are those of numbers


def _spread(subjects: list[Subject], stage: Stage) -> list[Subject]:
    """`validate_people` of the subjects, evenly spread."""
    if not stage.validate_people or len(subjects) <= stage.validate_people:
        return subjects
    chosen = np.linspace(0, len(subjects) - 1, stage.validate_people).astype(int)
    return [subjects[index] for index in chosen]
