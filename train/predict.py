"""Pose networks, in torch or compiled, run on people whose boxes are known."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streampose.engines import Engine, load_engine, whole_pictures
from streampose.engines.manifest import CHECKPOINTS
from streampose.errors import ModelError, UsageError
from streampose.geometry import crop_affine, cut, invert, transform
from streampose.model import FamiPose, load, normalise
from streampose.skeleton import SKELETONS, Skeleton

log = logging.getLogger(__name__)

BATCH = 16

Image = NDArray[np.uint8]
Array = NDArray[np.float32]


class Frames(Protocol):
    """The frames of a sequence, or one picture."""

    def image(self, index: int) -> Image:
        """Frame `index`, (H, W, 3) uint8 BGR."""


class Boxed(Protocol):
    """Whatever has a person's box, (4,) x1, y1, x2, y2 in frame pixels."""

    @property
    def box(self) -> Array: ...


class Seen(Protocol):
    """Somebody in a frame, with the frames around it: a `train.windows.Subject`, or less."""

    @property
    def source(self) -> Frames: ...
    @property
    def person(self) -> Boxed: ...
    @property
    def index(self) -> int: ...
    @property
    def support_indices(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where somebody is: a `Boxed`."""

    box: Array


@dataclass(frozen=True, slots=True)
class Window:
    """A `Seen` of boxes that are not labels."""

    source: Frames
    person: Place
    index: int
    support_indices: tuple[int, ...]


class PoseModel(Protocol):
    """A pose network that is ready to run.

    Attributes:
        skeleton: its joints.
        size: (height, width) of its crops in pixels.
        offsets: the supporting frames of its windows.
    """

    skeleton: Skeleton
    size: tuple[int, int]
    offsets: tuple[int, ...]

    def estimate(self, crops: Image) -> Array:
        """The keypoints of the key frames.

        Args:
            crops: (B, T, H, W, 3) uint8 BGR, key frame first; the frames of a window share one crop. T is one more than
                there are offsets, or 1: all frames of the window are the same.

        Returns:
            (B, J, 3) float32: x, y in crop pixels, score.
        """


class TorchModel:
    """A network in torch: a `PoseModel`.

    Args:
        network: moved to `device`, and put in evaluation mode while it runs.
        flip: average the heatmaps with those of the mirrored window, left and right joints exchanged.
    """

    def __init__(
        self, network: FamiPose, skeleton: Skeleton, size: tuple[int, int], device: torch.device, flip: bool = False
    ) -> None:
        self.skeleton, self.size, self.offsets = skeleton, size, network.offsets
        self._network, self._device, self._flip = network.to(device), device, flip

    @torch.no_grad()
    def estimate(self, crops: Image) -> Array:
        training = self._network.training
        self._network.eval()
        heatmaps = self._heatmaps(crops)
        if self._flip:
            mirrored = self._heatmaps(crops[:, :, :, ::-1]).flip(-1)
            heatmaps = (heatmaps + mirrored[:, list(self.skeleton.mirror)]) / 2
        keypoints = self._network.decode(heatmaps.float()).cpu().numpy()
        self._network.train(training)
        return np.asarray(keypoints, np.float32)

    def _heatmaps(self, crops: Image) -> Tensor:
        batch, frames = crops.shape[:2]
        pixels = torch.from_numpy(np.ascontiguousarray(crops)).flatten(0, 1).to(self._device)
        features = self._network.encode(normalise(pixels).contiguous(memory_format=torch.channels_last)).contiguous()
        windows = features.view(batch, frames, *features.shape[1:])  # (B, T or 1, C, h, w)
        if not self.offsets:
            return self._network.single(windows[:, 0])
        windows = windows.expand(-1, 1 + len(self.offsets), -1, -1, -1).contiguous()
        same = torch.eye(2, 3, device=self._device).expand(batch, windows.shape[1], 2, 2, 3)
        return self._network.fuse(windows, same)


class BundleModel:
    """A compiled network: a `PoseModel`."""

    def __init__(self, engine: Engine) -> None:
        self.skeleton = known_skeleton(engine.manifest.skeleton, engine.manifest.name)
        self.size, self.offsets = engine.manifest.input_size, engine.manifest.offsets
        self._engine = engine

    def estimate(self, crops: Image) -> Array:
        batch, frames = crops.shape[:2]
        features = self._engine.encode(whole_pictures(crops.reshape(batch * frames, *crops.shape[2:])))
        windows = [features[start : start + frames] for start in range(0, batch * frames, frames)]
        if frames == 1:
            windows = [window * (1 + len(self.offsets)) for window in windows]
        same = np.tile(np.eye(2, 3, dtype=np.float32), (batch, 1 + len(self.offsets), 2, 1, 1))
        return self._engine.fuse(windows, same)


def open_model(model: str, flip: bool = False, size: tuple[int, int] | None = None) -> PoseModel:
    """A bundled model by name, a bundle by its folder, or a checkpoint by its file.

    A checkpoint runs on the GPU where torch has one.

    Args:
        flip: see `TorchModel`; checkpoints only.
        size: (height, width) of a checkpoint's crops; by default what its backbone is trained on by our recipes.

    Raises:
        UsageError: an option that a bundle does not have.
        ModelError: there is no such model, or it cannot be loaded.
    """
    if not model.endswith(CHECKPOINTS):
        if flip or size is not None:
            option = "--flip-test" if flip else "--input-size"
            raise UsageError(f"{option} goes with a checkpoint ({', '.join(CHECKPOINTS)}); {model} is a bundle")
        return BundleModel(load_engine(model))
    network = load(Path(model))
    skeleton = known_skeleton(network.skeleton, model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    log.info("%s runs on %s", model, device)
    size = size or network.input_size
    return TorchModel(network, skeleton, size, device, flip)


def known_skeleton(name: str, model: str) -> Skeleton:
    """The joints that a model says it has; raises ModelError where there are none of that name."""
    if name not in SKELETONS:
        raise ModelError(f"{model} has the unknown skeleton {name!r}; there are: {', '.join(SKELETONS)}")
    return SKELETONS[name]


def evaluate_windows(
    network: FamiPose,
    subjects: Sequence[Seen],
    size: tuple[int, int],
    batch_size: int = BATCH,
    device: torch.device | str = "cpu",
    flip: bool = False,
) -> Array:
    """Where a network sees people's joints, at their own boxes, unvaried.

    Args:
        network: in any mode, which it keeps.
        subjects: N people; `support_indices` name the frames of the network's offsets.
        size: (height, width) of the crops.
        flip: see `TorchModel`.

    Returns:
        (N, J, 3) float32: x, y in frame pixels, score.
    """
    model = TorchModel(network, SKELETONS[network.skeleton], size, torch.device(device), flip)
    return estimate_subjects(model, subjects, batch_size)


def estimate_subjects(model: PoseModel, subjects: Sequence[Seen], batch_size: int = BATCH) -> Array:
    """Keypoints (N, J, 3) of people in frame pixels, each from the window of frames around it."""
    found = [np.zeros((0, len(model.skeleton.joints), 3), np.float32)]
    for start in range(0, len(subjects), batch_size):
        part = subjects[start : start + batch_size]
        affines = [crop_affine(subject.person.box, model.size) for subject in part]
        crops = [
            [cut(picture, affine, model.size) for picture in _pictures(subject)]
            for subject, affine in zip(part, affines, strict=True)
        ]
        found.append(_in_frames(model.estimate(np.array(crops, np.uint8)), affines))
    return np.concatenate(found)


def estimate_still(model: PoseModel, image: Image, boxes: Array, batch_size: int = BATCH) -> Array:
    """Keypoints (N, J, 3) of the people at boxes (N, 4) of one picture: a window of equal frames."""
    found = [np.zeros((0, len(model.skeleton.joints), 3), np.float32)]
    for start in range(0, len(boxes), batch_size):
        affines = [crop_affine(box, model.size) for box in boxes[start : start + batch_size]]
        crops = np.stack([cut(image, affine, model.size) for affine in affines])
        found.append(_in_frames(model.estimate(crops[:, None]), affines))
    return np.concatenate(found)


def _pictures(subject: Seen) -> list[Image]:
    return [subject.source.image(index) for index in (subject.index, *subject.support_indices)]


def _in_frames(keypoints: Array, affines: Sequence[Array]) -> Array:
    for pose, affine in zip(keypoints, affines, strict=True):
        pose[:, :2] = transform(pose[:, :2], invert(affine))
    return keypoints
