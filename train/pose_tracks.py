"""Track ids for poses of a sequence: greedy, by how alike poses and boxes of neighbouring frames are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streampose.geometry import box_iou
from streampose.skeleton import Skeleton
from streampose.train.pose_nms import pose_similarity

LEAST_ALIKE = 0.3
MEMORY = 3

Array = NDArray[np.float32]


@dataclass(slots=True)
class _Track:
    id: int
    keypoints: Array
    box: Array
    missed: int = 0


class GreedyTracker:
    """Gives the poses of a sequence's frames ids, frame by frame, from 0 on.

    A pose and a track are as alike as the larger of their OKS (at the mean area of the two boxes) and the
    IoU of their boxes. The most alike pair is joined first, and so on down to 0.3; a pose that is left starts a track.
    A track that finds nobody is remembered, where it was, for 3 frames.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton
        self._tracks: list[_Track] = []
        self._next = 0

    def update(self, keypoints: Array, boxes: Array) -> list[int]:
        """The ids of a frame's poses.

        Args:
            keypoints: (N, J, 3) in frame pixels, joints with a negative score do not count; boxes: (N, 4) xyxy.
        """
        ids = [-1] * len(keypoints)
        for track in self._tracks:
            track.missed += 1
        for track, index in self._pairs(keypoints, boxes):
            ids[index] = track.id
            track.keypoints, track.box, track.missed = keypoints[index], boxes[index], 0
        for index, known in enumerate(ids):
            if known < 0:
                ids[index], self._next = self._next, self._next + 1
                self._tracks.append(_Track(ids[index], keypoints[index], boxes[index]))
        self._tracks = [track for track in self._tracks if track.missed <= MEMORY]
        return ids

    def _pairs(self, keypoints: Array, boxes: Array) -> list[tuple[_Track, int]]:
        if not self._tracks or not len(keypoints):
            return []
        alike = box_iou(np.stack([track.box for track in self._tracks]), boxes)
        for row, track in enumerate(self._tracks):
            for column, (pose, box) in enumerate(zip(keypoints, boxes, strict=True)):
                same = pose_similarity(track.keypoints, pose, (_area(track.box), _area(box)), self._skeleton)
                alike[row, column] = max(alike[row, column], same)
        pairs = []
        while alike.size and alike.max() >= LEAST_ALIKE:
            row, column = divmod(int(alike.argmax()), alike.shape[1])
            pairs.append((self._tracks[row], column))
            alike[row, :] = alike[:, column] = -1
        return pairs


def _area(box: Array) -> float:
    return float((box[2:] - box[:2]).prod())
