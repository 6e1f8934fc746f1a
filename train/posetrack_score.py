"""PoseTrack's figures: per-joint AP, precision and recall of poses, and CLEAR-MOT of each joint's tracks.

The rules are those of the benchmark's own evaluator, poseval (Andriluka et al., "PoseTrack: A Benchmark for Human Pose
Estimation and Tracking", CVPR 2018, section 4), also where nobody would guess them:

- Only frames with labelled people count, whatever `is_labeled` says; the two files' frames belong together by place.
- Joints strictly inside an ignore region of the labels leave labels and predictions, and with its last joint a person.
- A joint is found within 0.5 of the head's size, 0.6 of the diagonal of the labelled head box.
- A predicted pose belongs to the labelled one of which it finds the largest share, a labelled one keeps the best of
  those; of equals the first. All joints of a pose without an owner are wrong.
- A joint without a score gets -9999. Equal scores are ranked as numpy's own sort leaves them, last first.
- MOT matches joint by joint, apart from the poses' owners, leaves out the last frame of each sequence, and counts one
  miss and one false positive a joint in frames where nobody is left on one of the sides.
- MOTP divides by the matches, but sums what `ClearMot.distance` does.

Without track ids there is no MOT, and its figures are nan.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streampose.errors import UsageError
from streampose.train.mot import ClearMot
from streampose.train.posetrack_labels import NUMBERED, PLACES, PosetrackFrame, PosetrackPerson, PosetrackSequence

log = logging.getLogger(__name__)

REACH = 0.5
HEAD_SHARE = 0.6
NO_SCORE = -9999.0
EVALUATED = tuple("neck" if name == "head_bottom" else name for name in NUMBERED)
"""The names that the evaluator gives the 15 joints."""

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PosetrackFigures:
    """All in percent; nan where a figure is not defined.

    Attributes:
        ap, precision, recall: (15,) float64, in the order of `EVALUATED`; precision and recall with all predictions.
        mota, motp, mot_precision, mot_recall: (16,) float64, the mean last.
    """

    ap: Array
    precision: Array
    recall: Array
    mota: Array
    motp: Array
    mot_precision: Array
    mot_recall: Array

    @property
    def ap_total(self) -> float:
        """The mean AP of the joints that have one."""
        return _mean(self.ap)

    def as_json(self) -> dict[str, Any]:
        """The form in which the figures are printed and compared; nan becomes None."""
        return {
            "ap": dict(zip(EVALUATED, _listed(self.ap), strict=True)),
            "ap_total": _listed(np.array([self.ap_total]))[0],
            "precision": dict(zip(EVALUATED, _listed(self.precision), strict=True)),
            "recall": dict(zip(EVALUATED, _listed(self.recall), strict=True)),
            "mota": {
                "mota": _listed(self.mota),
                "motp": _listed(self.motp),
                "pre": _listed(self.mot_precision),
                "rec": _listed(self.mot_recall),
            },
        }


@dataclass(frozen=True, slots=True)
class _People:
    """The people of one side of a frame that count: P of them, J = 15 joints."""

    points: Array  # (P, J, 2)
    known: Flags  # (P, J)
    scores: Array  # (P, J)
    heads: Array  # (P,) size, nan without a box
    tracks: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class _Compared:
    """A frame after the comparison of its two sides: G labelled and P predicted people."""

    truth: _People
    found: _People
    distances: Array  # (P, G, J) in head sizes, inf where one of the two lacks the joint
    right: Flags  # (P, J) the predicted joint is right


def require_heads(truth: Sequence[PosetrackSequence]) -> None:
    """Raise UsageError where a labelled person has no head box: sizes are measured by it."""
    for sequence in truth:
        for frame in sequence.frames:
            if frame.people and np.isnan(_people(frame, frame).heads).any():
                raise UsageError(f"{sequence.path}: a person of {frame.file_name} has no head box")


def score_posetrack(truth: Sequence[PosetrackSequence], found: Sequence[PosetrackSequence]) -> PosetrackFigures:
    """Figures of predictions.

    Args:
        truth: the labelled sequences.
        found: of each of them, in the same order, the predictions.

    Raises:
        UsageError: the frames of two files do not belong together, or a labelled person has no head box.
    """
    sequences = [list(_compared(*pair)) for pair in zip(truth, found, strict=True)]
    frames = [frame for sequence in sequences for frame in sequence]
    poses = [_precision(frames, joint) for joint in range(len(EVALUATED))]
    if any(None in (*frame.truth.tracks, *frame.found.tracks) for frame in frames):
        log.warning("some people have no track_id: no MOT figures")
        tracks = [(np.nan, np.nan, np.nan, np.nan)] * len(EVALUATED)
    else:
        tracks = [_tracking(sequences, joint) for joint in range(len(EVALUATED))]
    ap, precision, recall = np.array(poses).T
    return PosetrackFigures(ap, precision, recall, *(np.append(row, _mean(row)) for row in np.array(tracks).T))


def inside(points: Array, polygon: Array) -> Flags:
    """Which of (N, 2) points lie in a polygon (K, 2), by the even-odd rule; on its border is not inside: (N,)."""
    x, y = points[:, :1], points[:, 1:]
    (ax, ay), (bx, by) = polygon.T, np.roll(polygon, -1, axis=0).T
    side = (bx - ax) * (y - ay) - (by - ay) * (x - ax)
    near_x = (np.minimum(ax, bx) <= x) & (x <= np.maximum(ax, bx))
    near_y = (np.minimum(ay, by) <= y) & (y <= np.maximum(ay, by))
    border = ((side == 0) & near_x & near_y).any(axis=1)
    crossed = ((ay > y) != (by > y)) & ((side > 0) == (by > ay))
    return np.asarray((crossed.sum(axis=1) % 2 == 1) & ~border)


def _compared(truth: PosetrackSequence, found: PosetrackSequence) -> Iterator[_Compared]:
    """The frames of a sequence that have labels."""
    if len(truth.frames) != len(found.frames):
        raise UsageError(f"{found.path} has {len(found.frames)} frames, {truth.path} {len(truth.frames)}")
    names = [[frame.file_name.rpartition("/")[2] for frame in sequence.frames] for sequence in (truth, found)]
    if names[0] != names[1] and sorted(names[0]) == sorted(names[1]):
        raise UsageError(f"{found.path} has its frames in another order than {truth.path}; sort its images alike")
    if any(_repeats(frame) for frame in found.frames):
        log.warning("%s has frames with a track_id twice; PoseTrack's server refuses such files", found.path)
    for known, guessed in zip(truth.frames, found.frames, strict=True):
        if known.people:
            sides = _people(known, known), _people(guessed, known)
            if len(sides[1].known) and np.isnan(sides[0].heads).any():
                raise UsageError(f"{truth.path}: a person of {known.file_name} has no head box")
            yield _compare(*sides)


def _repeats(frame: PosetrackFrame) -> bool:
    ids = [person.track_id for person in frame.people if person.track_id is not None]
    return len(set(ids)) < len(ids)


def _people(frame: PosetrackFrame, truth: PosetrackFrame) -> _People:
    """The people of a frame, without what lies in the ignore regions of `truth`."""
    kept: list[tuple[PosetrackPerson, Flags]] = []
    for person in frame.people:
        known = person.known[list(PLACES)]
        points = person.keypoints[list(PLACES), :2]
        for region in truth.ignore_regions:
            if len(region) > 2:
                known = known & ~inside(points, region)
        if person.posed and (known.any() or not truth.ignore_regions):
            kept.append((person, known))
    scores = np.array([person.scores[list(PLACES)] for person, _ in kept]).reshape(-1, len(PLACES))
    return _People(
        np.array([person.keypoints[list(PLACES), :2] for person, _ in kept]).reshape(-1, len(PLACES), 2),
        np.array([known for _, known in kept], np.bool_).reshape(-1, len(PLACES)),
        np.where(np.isnan(scores), NO_SCORE, scores),
        np.array([_head_size(person.head_box) for person, _ in kept]),
        tuple(person.track_id for person, _ in kept),
    )


def _head_size(box: Array | None) -> float:
    return float(HEAD_SHARE * np.linalg.norm(box[2:] - box[:2])) if box is not None else np.nan


def _compare(truth: _People, found: _People) -> _Compared:
    apart = np.linalg.norm(found.points[:, None] - truth.points[None], axis=3)
    with np.errstate(divide="ignore", invalid="ignore"):  # a head of no size is never reached
        distances = apart / truth.heads[None, :, None]
    distances[~(found.known[:, None] & truth.known[None])] = np.inf
    right = np.zeros_like(found.known)
    if len(truth.known) and len(found.known):
        near = distances <= REACH
        share = near.sum(axis=2) / np.maximum(truth.known.sum(axis=1), 1)  # (P, G)
        share[np.arange(share.shape[1]) != share.argmax(axis=1)[:, None]] = 0
        for owner, pose in enumerate(share.argmax(axis=0)):
            if share[pose, owner] > 0:
                right[pose] = near[pose, owner]
    return _Compared(truth, found, distances, right)


def _precision(frames: Sequence[_Compared], joint: int) -> tuple[float, float, float]:
    """AP, precision and recall of a joint in percent: 0 without predictions, nan where labels are wanted and lack."""
    scores = np.concatenate([np.zeros(0), *(f.found.scores[f.found.known[:, joint], joint] for f in frames)])
    right = np.concatenate([np.zeros(0), *(f.right[f.found.known[:, joint], joint] for f in frames)])
    total = sum(int(frame.truth.known[:, joint].sum()) for frame in frames)
    if not len(scores):
        return 0.0, 0.0, 0.0
    hits = np.cumsum(right[np.argsort(scores)[::-1]])
    precision = hits / np.arange(1, len(hits) + 1)
    if not total:
        return np.nan, 100 * float(precision[-1]), np.nan
    recall = hits / total
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    ap = float(np.sum(np.diff(recall, prepend=0) * envelope))
    return 100 * ap, 100 * float(precision[-1]), 100 * float(recall[-1])


def _tracking(sequences: Sequence[Sequence[_Compared]], joint: int) -> tuple[float, float, float, float]:
    """MOTA, MOTP, precision and recall of a joint in percent."""
    counts = [_follow(sequence[:-1], joint) for sequence in sequences]
    matches = sum(count.matches for count in counts)
    wrong = sum(count.false_positives for count in counts)
    misses = sum(count.misses for count in counts)
    switches = sum(count.switches for count in counts)
    distance = sum(count.distance for count in counts)
    objects = matches + misses
    return (
        100 * (1 - (misses + switches + wrong) / objects) if objects else np.nan,
        100 * (1 - distance / matches) if matches else 0.0,
        100 * matches / (matches + wrong) if matches + wrong else np.nan,
        100 * matches / objects if objects else np.nan,
    )


def _follow(frames: Sequence[_Compared], joint: int) -> ClearMot:
    mot = ClearMot()
    for frame in frames:
        if not (len(frame.truth.known) and len(frame.found.known)):
            mot.update([0], [0], np.full((1, 1), np.nan))
            continue
        rows = np.flatnonzero(frame.truth.known[:, joint]).tolist()
        columns = np.flatnonzero(frame.found.known[:, joint]).tolist()
        distances = frame.distances[:, :, joint][np.ix_(columns, rows)].T
        mot.update(
            [_track(frame.truth, row) for row in rows],
            [_track(frame.found, column) for column in columns],
            np.where(distances <= REACH, distances, np.nan),
        )
    return mot


def _track(people: _People, index: int) -> int:
    track = people.tracks[index]
    assert track is not None
    return track


def _mean(values: Array) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else np.nan


def _listed(values: Array) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
