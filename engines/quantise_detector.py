"""The person detector in int8, for ONNX Runtime on a CPU: quantised after training, calibrated on the bundled clip.

What stays float32: the first convolutions; what all strides share, the tower and the convolutions that give scores and
sides; and all that comes after those. Boxes are sums of positions and sides: eight bits for them would be steps of two
pixels. The trunk and the pyramid, nearly all of the time, are in int8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from streampose.engines.bundle import new_bundle, versions_of
from streampose.engines.manifest import GRAPHS, Manifest, sha256, write_manifest
from streampose.engines.onnxruntime import open_session
from streampose.engines.parity import demo_frames
from streampose.engines.quantise import CALIBRATION_FRAMES, first_convolutions, quantise_file
from streampose.errors import ModelError
from streampose.people import letterbox

GATE_FRAMES = range(0, 48, 6)
"""Of the bundled clip; calibration takes later ones."""
GATE_SCORE = 0.3
LIMITS = {"scores_p99": 0.05, "boxes_p99_share": 0.1}
"""Of cells with such a score in float32: the difference in score, and of a box's sides as a share of the root of its
area, that 99 of 100 cells keep."""
(_FILE,) = GRAPHS["person-detector"]
Picture = NDArray[np.uint8]


def quantise_detector(source: Path, manifest: Manifest, out: Path) -> Manifest:
    """Write a detector's bundle in int8, made from the one in float32 at `source`.

    Raises:
        ModelError: it does not find what the original finds, or that is nobody; nothing is written then.
        UsageError, OutputError: see `new_bundle`.
    """
    with new_bundle(out) as folder:
        quantise(source / _FILE, folder / _FILE, calibration_pictures(manifest.input_size))
        parity = compare_detectors(source / _FILE, folder / _FILE, manifest.input_size)
        for figure, limit in LIMITS.items():
            if not parity[figure] <= limit:
                raise ModelError(
                    f"{manifest.name} in int8 does not find what it finds in float32: {figure} is "
                    f"{parity[figure]:.3g}, at most {limit:g} is allowed; go on with float32"
                )
        quantised = msgspec.structs.replace(
            manifest,
            precision="int8",
            files={_FILE: sha256(folder / _FILE)},
            versions=manifest.versions | versions_of(("onnx", "onnxruntime")),
            parity=parity,
            compiled_from=manifest.files,
        )
        write_manifest(folder, quantised)
    return quantised


def quantise(source: Path, out: Path, pictures: Sequence[Picture]) -> None:
    """Write a detector's graph in int8, calibrated on letterboxed pictures (H, W, 3) uint8 BGR."""
    shared = shared_convolutions(source)
    quantise_file(
        source, out, "frames", pictures,
        lambda prepared: [*first_convolutions(prepared), *shared, *nodes_after(prepared, shared)],
    )  # fmt: skip


def shared_convolutions(file: Path) -> list[str]:
    """Names of the convolutions whose weights others have, too: those that look at all strides alike."""
    nodes = [node for node in onnx.load(file).graph.node if node.op_type == "Conv"]
    uses = Counter(node.input[1] for node in nodes)
    return [node.name for node in nodes if uses[node.input[1]] > 1]


def nodes_after(file: Path, names: Sequence[str]) -> list[str]:
    """Names of the nodes whose results depend on those of the named ones."""
    made: set[str] = set()
    after = []
    for node in onnx.load(file).graph.node:  # in an order in which what is needed comes first
        if node.name in names or made.intersection(node.input):
            made.update(node.output)
            after.append(node.name)
    return [name for name in after if name not in names]


def calibration_pictures(size: tuple[int, int]) -> list[Picture]:
    """Frames of the bundled clip, letterboxed. (Training pictures beside them change nothing: see docs/engines.md.)"""
    frames = demo_frames(1 + CALIBRATION_FRAMES[-1])
    return [letterbox(frames[index], size)[0] for index in CALIBRATION_FRAMES]


def compare_detectors(reference: Path, file: Path, size: tuple[int, int]) -> dict[str, float]:
    """How far a detector's cells are from another's on frames of the bundled clip; see `LIMITS`.

    Raises:
        ModelError: the first one finds nobody there.
    """
    frames = demo_frames(1 + GATE_FRAMES[-1])
    boards = [letterbox(frames[index], size)[0][None] for index in GATE_FRAMES]
    answers = []
    for path in (reference, file):
        session = open_session(path, 2)
        found = [session.run(["boxes", "scores"], {"frames": board}) for board in boards]
        answers.append((np.concatenate([b[0] for b, _ in found]), np.concatenate([s[0] for _, s in found])))
    (boxes, scores), (other_boxes, other_scores) = answers
    sure = scores >= GATE_SCORE
    if not sure.any():
        raise ModelError(
            f"the detector in float32 finds nobody in the bundled clip with a score of {GATE_SCORE:g} or more, so that "
            "int8 cannot be compared with it; train it further, or go on with float32"
        )
    side = np.sqrt((boxes[sure, 2:] - boxes[sure, :2]).prod(axis=1))
    apart = np.abs(boxes[sure] - other_boxes[sure]).max(axis=1) / side
    return {
        "scores_p99": float(np.quantile(np.abs(scores - other_scores)[sure | (other_scores >= GATE_SCORE)], 0.99)),
        "boxes_p99_share": float(np.quantile(apart, 0.99)),
    }
