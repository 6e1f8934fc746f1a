"""CLEAR-MOT: tracks against labelled tracks, frame by frame.

Bernardin and Stiefelhagen, "Evaluating Multiple Object Tracking Performance: The CLEAR MOT Metrics", 2008, section 2.1,
with the events of the package motmetrics, on which PoseTrack's evaluator stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

Array = NDArray[np.float64]


@dataclass(slots=True)
class ClearMot:
    """Counts over the frames of one sequence.

    Attributes:
        misses: labelled objects without a match.
        false_positives: predictions without one.
        matches: pairs found, of which `switches` went to another track than the object's last.
        distance: sum over all events of motmetrics that have a distance. That is every pair within reach (matched or
            not), every match once more, and a match again for each of: the object switches to a track that was never
            matched before; the track was another object's; and this object was never matched before.
    """

    misses: int = 0
    false_positives: int = 0
    matches: int = 0
    switches: int = 0
    distance: float = 0.0
    _track_of: dict[int, int] = field(default_factory=dict)
    _object_of: dict[int, int] = field(default_factory=dict)
    _matched_objects: set[int] = field(default_factory=set)
    _matched_tracks: set[int] = field(default_factory=set)

    def update(self, objects: Sequence[int], tracks: Sequence[int], distances: Array) -> None:
        """Go on by a frame.

        Args:
            objects: N labelled track ids of this frame; tracks: M predicted ones.
            distances: (N, M), nan where a pair is out of reach.
        """
        self.distance += float(np.nansum(distances))
        open_pairs = distances.copy()
        matched = self._continue(objects, tracks, open_pairs)
        for row, column in _assign(open_pairs):
            self._pair(objects[row], tracks[column], float(distances[row, column]))
            matched += 1
        self.matches += matched
        self.misses += len(objects) - matched
        self.false_positives += len(tracks) - matched

    def _continue(self, objects: Sequence[int], tracks: Sequence[int], open_pairs: Array) -> int:
        """Keep the pairs of before that are still within reach; takes them out of `open_pairs` and counts them."""
        taken: set[int] = set()  # an id may be there twice
        for row, name in enumerate(objects):
            last = self._track_of.get(name)
            column = next((c for c, track in enumerate(tracks) if track == last and c not in taken), None)
            if column is None or np.isnan(open_pairs[row, column]):
                continue
            self.distance += float(open_pairs[row, column])
            self._matched_objects.add(name)
            self._matched_tracks.add(tracks[column])
            open_pairs[row, :] = open_pairs[:, column] = np.nan
            taken.add(column)
        return len(taken)

    def _pair(self, name: int, track: int, distance: float) -> None:
        """A new pair, perhaps a switch."""
        times = 1
        if self._track_of.get(name, track) != track:
            self.switches += 1
            times += track not in self._matched_tracks
        if self._object_of.get(track, name) != name:
            times += 1 + (name not in self._matched_objects)
        self.distance += times * distance
        self._track_of[name], self._object_of[track] = track, name
        self._matched_objects.add(name)
        self._matched_tracks.add(track)


def _assign(distances: Array) -> list[tuple[int, int]]:
    """As many pairs within reach as there can be, and among those the ones whose distances' sum is least."""
    near = ~np.isnan(distances)
    if not near.any():
        return []
    beyond = 2 * min(distances.shape) * (float(distances[near].max()) + 1) + 1
    rows, columns = linear_sum_assignment(np.where(near, distances, beyond))
    return [(row, column) for row, column in zip(rows, columns, strict=True) if near[row, column]]
