"""Predictions in the form PoseTrack takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streampose.skeleton import POSETRACK
from streampose.train.posetrack_labels import NUMBERED, PosetrackSequence

Array = NDArray[np.float32]
_LABELLED: NDArray[np.bool_] = np.array([name in NUMBERED for name in POSETRACK.joints])


@dataclass(frozen=True, slots=True)
class FramePoses:
    """The people found in a frame.

    Attributes:
        keypoints: (N, J, 3) float32: x, y in frame pixels, score.
        boxes: (N, 4) xyxy of where they were looked for.
        scores: (N,) of the people.
        track_ids: (N,).
    """

    keypoints: Array
    boxes: Array
    scores: Array
    track_ids: tuple[int, ...]


def posetrack_submission(sequence: PosetrackSequence, found: Mapping[int, FramePoses]) -> dict[str, Any]:
    """The content of a prediction file of 2018's form.

    Args:
        sequence: the labels; the file has all its frames.
        found: by place in the sequence, in `POSETRACK`'s joints; the ears stay empty, as PoseTrack leaves them.
    """
    ids = [place if frame.id is None else frame.id for place, frame in enumerate(sequence.frames)]
    annotations: list[dict[str, Any]] = []
    for place, poses in sorted(found.items()):
        people = zip(poses.keypoints, poses.boxes, poses.scores, poses.track_ids, strict=True)
        for keypoints, box, score, track_id in people:
            points = np.where(_LABELLED[:, None], np.column_stack([keypoints[:, :2], np.ones(len(keypoints))]), 0)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": ids[place],
                    "category_id": 1,
                    "track_id": track_id,
                    "keypoints": points.ravel().tolist(),
                    "scores": np.where(_LABELLED, keypoints[:, 2], 0).tolist(),
                    "score": float(score),
                    "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
                }
            )
    images = [
        {"id": number, "frame_id": number, "file_name": frame.file_name, "nframes": len(ids)}
        for number, frame in zip(ids, sequence.frames, strict=True)
    ]
    categories = [{"supercategory": "person", "id": 1, "name": "person", "keypoints": list(POSETRACK.joints)}]
    return {"images": images, "annotations": annotations, "categories": categories}
