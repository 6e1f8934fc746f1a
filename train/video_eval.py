"""What supporting frames are worth: corrupted key frames by kind and strength, and jitter on people who hardly move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streampose.engines import Crops, Engine, Feature, load_engine, whole_pictures
from streampose.errors import UsageError
from streampose.geometry import between_crops, crop_affine, invert, place_in_crop, transform
from streampose.train.augment import spoil
from streampose.train.bootstrap import draw, ends, gain_interval, medians, share_interval
from streampose.train.hard import in_box
from streampose.train.pack import Clip, Person, read_clips
from streampose.train.pose import LEAST_WEIGHT, counted_joints, validation_people
from streampose.train.progress import tracked
from streampose.train.teachers import Thunder
from streampose.train.temporal import smooth_track
from streampose.train.windows import Subject, WindowSettings, clip_subjects, make_window

Array = NDArray[np.float32]

STRENGTHS = {"blur": (0.04, 0.08, 0.14), "dark": (0.75, 0.88, 0.95), "cover": (0.08, 0.12, 0.16)}
"""Kinds of corruption, see `train.augment.spoil`."""
NEAR, CLOSE = 0.1, 0.05
SLOW = 0.005
"""People move slowly while the median speed of their joints is under this many box heights a frame."""
JITTER_FRAMES = 60
CLIP_EVERY, SPEED_EVERY = 10, 3
"""Of the clips, every n-th frame is a key frame to be corrupted, or one on which fast and slow joints are looked at."""
SPEEDS = (0.0, 0.03, 0.1, 0.2)
"""Joints are told apart by how far they moved inside the box since the oldest supporting frame, from each of these."""


def evaluate_video(data: Path, model: str, every: int = 1) -> dict[str, Any]:
    """What a bundle's supporting frames are worth, on the validation splits of the pack at `data`; the teacher beside
    it, where `data/teachers` is there.

    Args:
        model: a bundled model's name or a bundle's folder.
        every: look at every n-th person.

    Returns:
        "people", "corrupted" (see `corrupted_pck`), "corrupted_clips", the same with real frames beside the key frame
        and the pack's automatic labels, so that it is agreement with what a teacher says of the clean frame,
        "clip_people", how many key frames of people that is, "speed" (see `speed_pck`), on more of them, and "jitter"
        (see `jitter`).

    Raises:
        UsageError: the folder does not have the pack's layout, or no such people. ModelError: no such bundle.
    """
    teachers = data / "teachers"
    teacher = Thunder(teachers) if teachers.is_dir() else None
    engine = load_engine(model)
    subjects = validation_people(data)[::every]
    clips = read_clips(data, "val")
    moving = clip_subjects(clips, engine.manifest.offsets, CLIP_EVERY)[::every]
    if not subjects or not moving:
        raise UsageError(
            f"{data} has no validation people of {'its clips' if subjects else 'its pictures'} to measure on"
        )
    return {
        "people": len(subjects),
        "corrupted": corrupted_pck(engine, subjects, teacher),
        "clip_people": len(moving),
        "corrupted_clips": corrupted_pck(engine, moving, teacher),
        "speed": speed_pck(engine, clip_subjects(clips, engine.manifest.offsets, SPEED_EVERY)[::every]),
        "jitter": jitter(engine, clips, teacher),
    }


def corrupted_pck(engine: Engine, subjects: Sequence[Subject], teacher: Thunder | None) -> dict[str, dict[str, Any]]:
    """PCK@0.1 of the longer box side, 0..1, where the key frame alone is corrupted and its supporting frames are clean.

    Args:
        subjects: people of stills, whose supporting frames are the picture moved a little, or of clips. Joints that a
            human labelled count; of who has none, all of weight 0.3 or more.
        teacher: looks at the corrupted key frame, too: the same crop, widened to a square.

    Returns:
        By "KIND STRENGTH", and "clean": "five" frames, "single" (the key frame stands in for its supporting frames),
        "teacher" if there is one, "gain", five less single, and "over_teacher", five less teacher; each with its
        interval "..._95", people of stills and tracks of clips drawn anew.
    """
    settings = WindowSettings.for_evaluation(engine.manifest.input_size, engine.manifest.offsets, 0.0)
    cases = [("clean", "", 0.0)] + [(f"{kind} {s:g}", kind, s) for kind, all_s in STRENGTHS.items() for s in all_s]
    hits: dict[str, list[tuple[int, ...]]] = {name: [] for name, _, _ in cases}
    for index, subject in enumerate(tracked(subjects, "people")):
        window = make_window(subject, settings, np.random.default_rng((7, index)))
        key, points = window["crops"][0], window["points"]
        supports = engine.encode(whole_pictures(window["crops"][1:]))
        reach, known = NEAR * window["side"], counted_joints(window["human"], window["weights"])
        for number, (name, kind, strength) in enumerate(cases):
            crop = spoil(key, points, kind, strength, np.random.default_rng((8, index, number))) if kind else key
            answers = [_fuse(engine, crop, supports, window["transforms"]), _fuse(engine, crop, None, None)]
            if teacher is not None:
                answers.append(_look(teacher, crop))
            near = [(np.linalg.norm(a[:, :2] - points, axis=1) <= reach) & known for a in answers]
            hits[name].append((int(known.sum()), *(int(n.sum()) for n in near)))
    units = _units(subjects)
    return {name: _figures(_sums(np.array(rows), units)) for name, rows in hits.items()}


def speed_pck(engine: Engine, subjects: Sequence[Subject]) -> dict[str, dict[str, Any]]:
    """Whether supporting frames hold back what moves: PCK of five frames and of the key frame alone, all clean, by how
    far joints moved.

    Args:
        subjects: people of clips; joints of weight 0.3 or more, also in the oldest supporting frame, count.

    Returns:
        By "from SPEED", the least way of the joints of a group inside the person's own box since the oldest supporting
        frame, in longer box sides (each group ends where the next begins), for groups that have any: "joints", of how
        many "tracks" and "clips", and "within 0.1" and "within 0.05" of the longer box side, each with "five", "single"
        and "gain", and their intervals "..._95" over tracks.
    """
    settings = WindowSettings.for_evaluation(engine.manifest.input_size, engine.manifest.offsets, 0.0)
    oldest = int(np.argmin(engine.manifest.offsets))
    rows = np.zeros((len(SPEEDS), len(subjects), 5), np.int_)
    for index, subject in enumerate(tracked(subjects, "people")):
        then, now = subject.support_people[oldest], subject.person
        if then is None:
            continue
        window = make_window(subject, settings, np.random.default_rng((7, index)))
        supports = engine.encode(whole_pictures(window["crops"][1:]))
        known = (now.keypoints[:, 2] >= LEAST_WEIGHT) & (then.keypoints[:, 2] >= LEAST_WEIGHT)
        way = np.linalg.norm(in_box(now) - in_box(then), axis=1)
        group = np.searchsorted(SPEEDS, way, side="right") - 1
        key = window["crops"][0]
        answers = [_fuse(engine, key, supports, window["transforms"]), _fuse(engine, key, None, None)]
        off = np.stack([np.linalg.norm(a[:, :2] - window["points"], axis=1) for a in answers]) / window["side"]
        for place in range(len(SPEEDS)):
            counted = known & (group == place)
            hits = [(off[:, counted] <= reach).sum(axis=1) for reach in (NEAR, CLOSE)]
            rows[place, index] = counted.sum(), *hits[0], *hits[1]
    units, figures = _units(subjects), {}
    for speed, part in zip(SPEEDS, rows, strict=True):
        sums = _sums(part, units)
        if joints := int(sums[:, 0].sum()):
            there = {
                s.source.name for s, row in zip(subjects, part, strict=True) if row[0] and isinstance(s.source, Clip)
            }
            counts = {"joints": joints, "tracks": int((sums[:, 0] > 0).sum()), "clips": len(there)}
            near = {f"within {NEAR:g}": _figures(sums[:, :3]), f"within {CLOSE:g}": _figures(sums[:, [0, 3, 4]])}
            figures[f"from {speed:g}"] = counts | near
    return figures


def _units(subjects: Sequence[Subject]) -> NDArray[np.intp]:
    """(N,) numbers of what is drawn anew: a person of a still, or a clip's track."""
    names = [
        f"{s.source.name} {s.person.track_id}" if isinstance(s.source, Clip) else str(place)
        for place, s in enumerate(subjects)
    ]
    return np.unique(names, return_inverse=True)[1]


def _sums(rows: NDArray[np.int_], units: NDArray[np.intp]) -> NDArray[np.int_]:
    """Rows (N, C) added up by unit."""
    sums = np.zeros((int(units.max(initial=-1)) + 1, *rows.shape[1:]), rows.dtype)
    np.add.at(sums, units, rows)
    return sums


def _fuse(
    engine: Engine, crop: NDArray[np.uint8], supports: Sequence[Feature] | None, transforms: Array | None
) -> Array:
    (key,) = engine.encode(whole_pictures(crop[None]))
    window = [key, *(supports if supports is not None else [key] * len(engine.manifest.offsets))]
    if transforms is None:
        transforms = np.broadcast_to(np.eye(2, 3, dtype=np.float32), (len(window), 2, 2, 3))
    answer: Array = engine.fuse([window], transforms[None])[0]
    return answer


def _look(teacher: Thunder, crop: NDArray[np.uint8]) -> Array:
    """The teacher's keypoints (17, 3) in the pixels of a crop that is higher than wide."""
    height, width = crop.shape[:2]
    square = np.zeros((height, height, 3), np.uint8)
    left = (height - width) // 2
    square[:, left : left + width] = crop
    keypoints, _ = teacher.look(square)
    keypoints[:, 0] -= left
    return keypoints


def _figures(rows: NDArray[np.int_]) -> dict[str, Any]:
    """Of rows (people or tracks; joints, hits of five, single and perhaps teacher)."""
    joints, hits = rows[:, 0], dict(zip(("five", "single", "teacher"), rows[:, 1:].T, strict=False))
    figures: dict[str, Any] = {}
    for name, found in hits.items():
        figures |= {name: float(found.sum() / joints.sum()), f"{name}_95": share_interval(found, joints)}
    for name, other in (("gain", "single"), ("over_teacher", "teacher")):
        if other in hits:
            figures[name] = figures["five"] - figures[other]
            figures[f"{name}_95"] = gain_interval(hits["five"], hits[other], joints)
    return figures


def jitter(engine: Engine, clips: Sequence[Clip], teacher: Thunder | None) -> dict[str, Any]:
    """How much joints tremble: the median length of p[t+1] - 2 p[t] + p[t-1], in box heights, over the joints of people
    who move slowly, on raw output (no smoothing), at the labelled boxes.

    Args:
        clips: with tracks; the first 60 frames of each are looked at. Who moves slowly is told by the smoothed labels.

    Returns:
        "five", "single" (the key frame stands in for its supporting frames) and "teacher" if there is one, and
        "five_per_single" and "five_per_teacher", each with its interval "..._95" over tracks drawn anew, the same for
        all; "joints", how many accelerations that is, "tracks", of how many people's, and "calmer_than_teacher", in how
        many of these the median is less than the teacher's.
    """
    lengths: dict[str, list[Array]] = {"five": [], "single": [], "teacher": []}
    for clip in tracked(clips, "clips"):
        for people in tracks(clip):
            slow = _slow(people)
            if not slow.any():
                continue
            height = np.array([p.box[3] - p.box[1] for _, p in people], np.float32)
            for name, points in followed(engine, clip, people, teacher).items():
                bend = np.linalg.norm(points[2:] - 2 * points[1:-1] + points[:-2], axis=2) / height[1:-1, None]
                lengths[name].append(bend[slow])
    return _trembling({name: parts for name, parts in lengths.items() if parts})


def _trembling(lengths: dict[str, list[Array]]) -> dict[str, Any]:
    """Medians and their ratios, of lengths by who estimated them, a part a track."""
    parts = lengths.get("five", [])
    units = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    drawn = draw(len(parts))
    draws = {name: medians(drawn, np.concatenate(parts), units) for name, parts in lengths.items()}
    figures: dict[str, Any] = {}
    for name, parts in lengths.items():
        figures |= {name: float(np.median(np.concatenate(parts))), f"{name}_95": ends(draws[name])}
    for other in ("single", "teacher"):
        if figures.get(other):
            figures[f"five_per_{other}"] = figures["five"] / figures[other]
            below = np.where(draws[other] > 0, draws[other], np.nan)
            figures[f"five_per_{other}_95"] = ends(draws["five"] / below)
    if "teacher" in lengths:
        pairs = zip(lengths["five"], lengths["teacher"], strict=True)
        figures["calmer_than_teacher"] = sum(bool(np.median(one) < np.median(other)) for one, other in pairs)
    return figures | {"joints": len(units), "tracks": len(parts)}


def tracks(clip: Clip) -> list[list[tuple[int, Person]]]:
    """Runs of consecutive frames of one person each, 5 frames at least."""
    runs: list[list[tuple[int, Person]]] = []
    open_runs: dict[int, list[tuple[int, Person]]] = {}
    for frame, people in enumerate(clip.people[:JITTER_FRAMES]):
        here = {p.track_id: p for p in people if p.track_id >= 0 and not p.ignore}
        for track in set(open_runs) - set(here):
            runs.append(open_runs.pop(track))
        for track, person in here.items():
            open_runs.setdefault(track, []).append((frame, person))
    return [run for run in [*runs, *open_runs.values()] if len(run) >= 5]


def _slow(people: Sequence[tuple[int, Person]]) -> NDArray[np.bool_]:
    """(F - 2, 17): which joints are labelled and of a person who moves slowly, on all frames but first and last."""
    sides = np.array([max(p.box[2:] - p.box[:2]) for _, p in people], np.float32)
    height = np.array([p.box[3] - p.box[1] for _, p in people], np.float32)
    smooth, _ = smooth_track(np.stack([p.keypoints for _, p in people]), sides)
    speed = np.linalg.norm(smooth[2:, :, :2] - smooth[:-2, :, :2], axis=2) / 2 / height[1:-1, None]
    labelled = smooth[..., 2] > 0
    there = labelled[2:] & labelled[1:-1] & labelled[:-2]
    medians = np.array([np.median(s[t]) if t.any() else np.inf for s, t in zip(speed, there, strict=True)])
    return np.asarray(there & (medians < SLOW)[:, None], np.bool_)


def followed(
    engine: Engine, clip: Clip, people: Sequence[tuple[int, Person]], teacher: Thunder | None
) -> dict[str, Array]:
    """Points (F, 17, 2) in frame pixels of one person on consecutive frames."""
    size, offsets = engine.manifest.input_size, engine.manifest.offsets
    features: list[Feature] = []
    affines: list[Array] = []
    found: dict[str, list[Array]] = {"five": [], "single": [], "teacher": []}
    for place, (frame, person) in enumerate(people):
        image = clip.image(frame)
        affines.append(crop_affine(person.box, size))
        features += engine.encode([Crops(image, affines[-1][None])])
        window = [place, *(max(place + offset, 0) for offset in offsets)]
        places = [place_in_crop(people[index][1].box, affines[index]) for index in window]
        steps = between_crops(np.stack([places[0]] * len(window)), np.stack(places))
        still = np.broadcast_to(np.eye(2, 3, dtype=np.float32), steps.shape)
        answers = engine.fuse(
            [[features[index] for index in window], [features[place]] * len(window)], np.stack([steps, still])
        )
        back = invert(affines[place])
        found["five"].append(transform(answers[0, :, :2], back))
        found["single"].append(transform(answers[1, :, :2], back))
        if teacher is not None:
            found["teacher"].append(teacher.keypoints(image, person.box)[:, :2])
    return {name: np.stack(points) for name, points in found.items() if points}
