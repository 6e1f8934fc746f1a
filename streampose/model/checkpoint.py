"""Networks in files: our checkpoints and safetensors, and public weights brought under our names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from streampose.errors import ModelError, OutputError, UsageError
from streampose.model.hrnet import detect_width, own_name
from streampose.model.int8 import PRECISION, to_int8
from streampose.model.network import FamiPose, fami_pose
from streampose.model.person import PERSON_SIZE, PersonNetwork
from streampose.model.released import BACKBONE, from_released
from streampose.skeleton import SKELETONS

SUFFIX = ".safetensors"
METADATA = "network"
DETECTOR = "detector"
"""What a checkpoint of the person detector calls its network."""
_CODE_SIGNS = ("Unsupported global", "Unsupported class", "Trying to instantiate", "Trying to call", "is blocked")
"""What torch says where a file holds more than tensors and plain values."""
_NUMPY = import_module("numpy._core.multiarray")  # where pickles of its numbers point to
_HARMLESS = [
    np.dtype, np.ndarray, _NUMPY.scalar, _NUMPY._reconstruct,
    (_NUMPY.scalar, "numpy.core.multiarray.scalar"), (_NUMPY._reconstruct, "numpy.core.multiarray._reconstruct"),
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
]  # fmt: skip
"""Numbers of numpy, which public checkpoints have beside their tensors."""
WRAPPERS = ("state_dict", "model_state_dict", "best_state_dict", "ema_state_dict", "params", "model", "checkpoint")
"""Keys under which public checkpoints keep their tensors."""
PREFIXES = (
    "module.", "backbone.", "keypoint_head.", "head.", "rough_pose_estimation_net.", "preact.", "hrnet.", "model.",
)  # fmt: skip
"""What public checkpoints put before HRNet's names: DataParallel, mmpose (backbone and head), DCPose, its followers,
FAMI-Pose. PoseWarper puts nothing before them."""
HRNET_PARTS = (
    "conv1.", "bn1.", "conv2.", "bn2.", "layer1.", "transition", "stage2.", "stage3.", "stage4.", "final_layer.",
)  # fmt: skip
VIDEO_PARTS = ("rough_pose_estimation_net.", "preact.", BACKBONE, "offset_feats", "offsets", "deform_conv")
"""What only networks that are trained on PoseTrack have."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of a public checkpoint's tensors, by its own names.

    Attributes:
        kind: "HRNet" or "released FAMI-Pose".
        network: what was written, as `FamiPose.description`.
        used: tensors that were taken.
        missing: tensors that the network has and the file lacks, by our names; they keep random values.
        reshaped: tensors of the file that the network has in another shape, such as a head for other joints.
        left_over: tensors of the file that the network has no place for.
    """

    kind: str
    network: dict[str, Any]
    used: tuple[str, ...]
    missing: tuple[str, ...]
    reshaped: tuple[str, ...]
    left_over: tuple[str, ...]


def load(path: Path) -> FamiPose:
    """A network from a checkpoint of `streampose train` (its averaged weights) or a file of `import-weights`.

    Returns:
        The network that the file describes, in evaluation mode, on the CPU.

    Raises:
        ModelError: the file is missing, damaged, no checkpoint of a pose network, or its tensors are not those of the
            network that it names.
    """
    description, state = read_checkpoint(Path(path))
    if DETECTOR in description:
        raise ModelError(f"{path} is a checkpoint of a person detector, not of a pose network")
    try:
        network = fami_pose(
            description["backbone"], description["offsets"], variant=description["variant"],
            skeleton=description["skeleton"], alignment=description["alignment"], heatmap=description["heatmap"],
        )  # fmt: skip
        if description.get("precision") == PRECISION:
            network = to_int8(network)
        network.load_state_dict(state)
    except (KeyError, UsageError) as error:
        raise ModelError(f"{path} describes a network that this version does not know: {error}") from error
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: its tensors are not those of {describe(description)}") from error
    return network.eval()


def load_detector(path: Path) -> PersonNetwork:
    """A person detector from a checkpoint of `streampose train`, in evaluation mode, on the CPU.

    Raises:
        ModelError: the file is missing, damaged, or no checkpoint of a person detector.
    """
    description, state = read_checkpoint(path)
    if DETECTOR not in description:
        raise ModelError(f"{path} is a checkpoint of {describe(description)}, not of a person detector")
    try:
        height, width = description.get("input_size", PERSON_SIZE)
        network = PersonNetwork((int(height), int(width)))
        network.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: its tensors are not those of the person detector") from error
    return network.eval()


def describe(description: Mapping[str, Any]) -> str:
    """A network in a few words, for errors."""
    offsets = description.get("offsets") or "single frames"
    return f"{description.get('backbone')} ({description.get('variant')}, {description.get('skeleton')}, {offsets})"


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What network a file of ours is of, and its tensors.

    Raises:
        ModelError: it is missing, cannot be read, or is none of ours.
    """
    if path.suffix == SUFFIX:
        tensors, metadata = _read_safetensors(path)
        if METADATA not in metadata:
            raise ModelError(f"{path} does not say what network it is; bring it in with: streampose import-weights")
        return json.loads(metadata[METADATA]), tensors
    content = _read_torch(path)
    description, state = content.get("network"), content.get("ema")
    if not isinstance(state, dict) or not isinstance(description, dict):
        raise ModelError(
            f"{path} is no checkpoint of streampose; public weights come in with: streampose import-weights"
        )
    return description, state


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing") from error
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is not a safetensors file that can be read") from error


def _read_torch(path: Path) -> dict[str, Any]:
    """A torch file's dictionary; nothing in it is ever run."""
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; train one with: streampose train lite") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        try:
            with torch.serialization.safe_globals(_HARMLESS):
                content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            if any(sign in str(error) for sign in _CODE_SIGNS):
                raise ModelError(
                    f"{path} holds pickled code or objects, which is refused; give a file of tensors"
                ) from error
            raise ModelError(f"{path} is no checkpoint that torch can read") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is no checkpoint: it holds a {type(content).__name__}")
    return content


def import_weights(file: Path, out: Path, skeleton: str | None = None) -> ImportReport:
    """Bring public weights under our names, as a safetensors file that `load`, `train` and `eval` take.

    Reads HRNet-W32 and -W48 as deep-high-resolution-net and mmpose name them, the HRNet inside DCPose and PoseWarper
    checkpoints, and the released FAMI-Pose. ImageNet's HRNet lacks the pose head, which then keeps random values.

    Args:
        file: a torch or safetensors file.
        out: the `.safetensors` file to write; it must not exist.
        skeleton: joints of the head; by default "posetrack" for DCPose, PoseWarper and FAMI-Pose, "coco17" for HRNet.

    Raises:
        ModelError: the file holds code, no tensors, or tensors of another network.
        UsageError: `out` exists or has another suffix, or an unknown skeleton.
        OutputError: `out` cannot be written.
    """
    if out.suffix != SUFFIX:
        raise UsageError(f"--out {out}: its name ends with {SUFFIX}")
    if out.exists():
        raise UsageError(f"{out} exists already; choose another --out or remove it")
    if skeleton is not None and skeleton not in SKELETONS:
        raise UsageError(f"unknown skeleton {skeleton!r}; there are: {', '.join(SKELETONS)}")
    public = _public_tensors(file)
    if any(name.startswith("feat_global_offset_layers.") for name in public):
        network, report = _import_released(public, skeleton)
    else:
        network, report = _import_hrnet(file, public, skeleton)
    _write(network, out)
    return report


def _public_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a public checkpoint, out of whatever wraps them, without DataParallel's prefix."""
    content: Mapping[str, Any] = _read_safetensors(file)[0] if file.suffix == SUFFIX else _read_torch(file)
    while wrapped := next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), None):
        content = wrapped
    tensors = {str(name).removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(str(key) for key in list(content)[:8]) or "nothing"
        raise ModelError(f"{file} holds no tensors where they are looked for; at its top are: {keys}")
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ModelError(f"{file}: {broken[0]} holds values that are not finite")
    return tensors


def _import_released(public: dict[str, Tensor], skeleton: str | None) -> tuple[FamiPose, ImportReport]:
    network = fami_pose("hrnet-w48", variant="released", skeleton=skeleton)
    network.load_state_dict(from_released(public, network.state_dict()))
    return network, ImportReport("released FAMI-Pose", network.description, tuple(public), (), (), ())


def _import_hrnet(file: Path, public: dict[str, Tensor], skeleton: str | None) -> tuple[FamiPose, ImportReport]:
    names = {name: _hrnet_name(name) for name in public}
    found = {own: public[name] for name, own in names.items() if own is not None}
    width = detect_width(found)
    if width not in (32, 48):
        seen = "no HRNet" if width is None else f"an HRNet of width {width}; known are 32 and 48"
        raise ModelError(f"{file} holds {seen}; its tensors begin with {', '.join(list(public)[:3])}")
    video = any(name.startswith(VIDEO_PARTS) for name in public)
    skeleton = skeleton or ("posetrack" if video else "coco17")
    network = fami_pose(f"hrnet-w{width}", (), skeleton=skeleton, heatmap="gaussian-index")
    wanted = network.encoder.state_dict()
    fitting = {n: t for n, t in found.items() if n in wanted and t.shape == wanted[n].shape}
    missing = tuple(n for n in wanted if n not in fitting and not n.endswith("num_batches_tracked"))
    if any(not n.startswith("head.") for n in missing):
        lacking = [n for n in missing if not n.startswith("head.")]
        raise ModelError(f"{file} lacks {len(lacking)} tensors of HRNet-W{width}: {', '.join(lacking[:3])}")
    network.encoder.load_state_dict(fitting, strict=False)
    used = tuple(name for name, own in names.items() if own in fitting)
    reshaped = tuple(name for name, own in names.items() if own in wanted and own not in fitting)
    left_over = tuple(name for name in public if name not in {*used, *reshaped})
    return network, ImportReport("HRNet", network.description, used, missing, reshaped, left_over)


def _hrnet_name(public: str) -> str | None:
    """Our encoder's name of a public HRNet tensor, behind whatever prefixes; None for what is none."""
    name = public
    while (prefix := next((p for p in PREFIXES if name.startswith(p)), None)) is not None:
        name = name.removeprefix(prefix)
    return own_name(name) if name.startswith(HRNET_PARTS) else None


def _write(network: FamiPose, out: Path) -> None:
    """Write a network as safetensors with its description, all or nothing."""
    partial = out.with_name(f".{out.name}.partial")
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}") from error
    try:
        save_file(state, partial, {METADATA: json.dumps(network.description)})
        os.replace(partial, out)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {out}: {reason}") from error
