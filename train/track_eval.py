"""How well people are told apart from frame to frame: the whole pipeline's ids on labelled clips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import streampose
from streampose.errors import MissingExtraError, UsageError
from streampose.geometry import box_iou
from streampose.train.bootstrap import draw, ends, ratios
from streampose.train.pack import Clip, Person, Split, read_clips
from streampose.train.person_score import share_inside
from streampose.train.progress import tracked
from streampose.types import PoseFrame

try:
    import motmetrics
except ImportError as error:
    raise MissingExtraError("motmetrics", "train") from error

MATCH_IOU = 0.5
LEAST_HEIGHT_PX = 60.0
"""Shorter people count neither as found nor as missed."""
FIGURES = ("idf1", "mota", "num_switches", "num_fragmentations", "num_objects")
_PARTS = ("idtp", "idfp", "idfn", "num_misses", "num_false_positives", "num_switches", "num_objects")
"""What IDF1 and MOTA are made of."""


def evaluate_tracks(
    data: Path, model: str = "lite", detector: str = "person", detect_every: int = 3, splits: Sequence[Split] = ("val",)
) -> dict[str, Any]:
    """IDF1, MOTA and identity switches (motmetrics; boxes match at IoU 0.5) of the pipeline on the clips of the pack at
    `data` in which several people are seen at once, by clip and over all of them; see `summarise_tracks`.

    Args:
        detect_every: the detector runs on every n-th frame.
        splits: whose clips; labels are a teacher's, so that figures on training clips are no less true.

    Raises:
        UsageError: no such clips. ModelError: see `streampose.run`.
    """
    clips = [clip for split in splits for clip in read_clips(data, split) if _crowded(clip)]
    if not clips:
        raise UsageError(f"{data} has no clips with several people at once in {' and '.join(splits)}")
    scores = []
    for clip in clips:
        source = str(data / "clips" / f"{clip.name}.mp4")
        frames = streampose.run(source, model=model, detector=detector, detect_every=detect_every)
        scores.append(accumulate(clip.people, tracked(frames, clip.name, len(clip.people))))
    return {"detect_every": detect_every} | summarise_tracks([clip.name for clip in clips], scores)


def summarise_tracks(names: Sequence[str], scores: Sequence[Any]) -> dict[str, Any]:
    """Figures of motmetrics' accumulators: "clips", by name, and "all", with intervals "..._95" of IDF1 and MOTA over
    clips drawn anew."""
    host = motmetrics.metrics.create()
    metrics = list(dict.fromkeys(FIGURES + _PARTS))
    table = host.compute_many(scores, names=list(names), metrics=metrics, generate_overall=True)
    rows = {str(name): {key: float(row[key]) for key in FIGURES} for name, row in table.iterrows()}
    whole: dict[str, Any] = rows.pop("OVERALL")
    parts = {key: table[key].to_numpy(np.float64)[:-1] for key in _PARTS}
    drawn = draw(len(scores))
    ids = 2 * parts["idtp"] + parts["idfp"] + parts["idfn"]
    faults = parts["num_misses"] + parts["num_false_positives"] + parts["num_switches"]
    whole["idf1_95"] = ends(ratios(drawn, 2 * parts["idtp"], ids))
    whole["mota_95"] = ends(1 - ratios(drawn, faults, parts["num_objects"]))
    return {"all": whole, "clips": rows}


def accumulate(labels: Sequence[Sequence[Person]], frames: Iterable[PoseFrame]) -> Any:
    """motmetrics' accumulator of one clip's labels and results, frame by frame; people found in ignored regions, or on
    labelled people who are short, are left out."""
    score = motmetrics.MOTAccumulator(auto_id=True)
    for people, frame in zip(labels, frames, strict=False):
        wanted = [p for p in people if _counts(p)]
        void = _boxes(p.box for p in people if not _counts(p))
        boxes = _boxes(person.box for person in frame.people)
        overlap = box_iou(_boxes(p.box for p in wanted), boxes)
        free = ~(share_inside(boxes, void) >= MATCH_IOU).any(axis=1) | (overlap >= MATCH_IOU).any(axis=0)
        tall = boxes[:, 3] - boxes[:, 1] >= LEAST_HEIGHT_PX
        keep = np.flatnonzero(free & (tall | (overlap >= MATCH_IOU).any(axis=0)))
        distances = np.where(overlap[:, keep] >= MATCH_IOU, 1 - overlap[:, keep].astype(np.float64), np.nan)
        ids = [frame.people[int(index)].track_id for index in keep]
        score.update([p.track_id for p in wanted], ids, distances)
    return score


def _counts(person: Person) -> bool:
    return not person.ignore and person.track_id >= 0 and float(person.box[3] - person.box[1]) >= LEAST_HEIGHT_PX


def _crowded(clip: Clip) -> bool:
    return max((sum(_counts(p) for p in people) for people in clip.people), default=0) > 1


def _boxes(boxes: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.array(list(boxes), np.float32).reshape(-1, 4)
