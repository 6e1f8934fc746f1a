"""Figures on the pack's validation splits, beside the teachers', with intervals: what `docs/models.md` cites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streampose.engines import Engine, load_engine, whole_pictures
from streampose.engines.manifest import CHECKPOINTS
from streampose.errors import UsageError
from streampose.model import load
from streampose.people import PersonDetector
from streampose.train.bootstrap import gain_interval, share_interval
from streampose.train.person import validation_scenes
from streampose.train.person_figures import Found, detector_figures, differences, human_labelled
from streampose.train.person_score import Boxes, Scene
from streampose.train.pose import counted_joints, validation_people, window_hits
from streampose.train.progress import tracked
from streampose.train.teachers import LOWEST_SCORE, Thunder, YoloxNano
from streampose.train.windows import Subject, WindowSettings, make_window

CROP_SIZE = (256, 192)
Detect = Callable[[NDArray[np.uint8]], tuple[Boxes, Boxes]]
Hits = NDArray[np.int_]


def evaluate_pack(data: Path, model: str | None, detector: str = "person", every: int = 1) -> dict[str, Any]:
    """Figures of the pose network and the detector on the validation splits of the pack at `data`.

    Args:
        model: a checkpoint (single frame and five frames) or a bundle (five frames); None leaves pose out.
        detector: see `PersonDetector`; "none" leaves it out.
        every: look at every n-th person and picture.

    Returns:
        PCK@0.1 of the longer box side at given boxes, on the people of `validation_people` (of the bundled models'
        pack: human-labelled LSPet joints), and recall, precision and AP at
        IoU 0.5, all 0..1; the teachers' beside them where `data/teachers` is there, and ours less theirs. Beside each
        figure stands its 95 % interval, "..._95": people, or pictures, drawn anew. The supporting frames of a still
        are the picture moved a little; "corrupt" means that the key frame alone is blurred, darkened or covered.
    """
    if not data.is_dir():
        raise UsageError(f"{data}: no such folder of data")
    figures: dict[str, Any] = {}
    teachers = data / "teachers"
    if model is not None:
        subjects = validation_people(data)[::every]
        if not subjects:
            raise UsageError(
                f"{data} has no people in validation pictures to measure on; sets of over 60 pictures have"
            )
        figures["pose"] = pose_figures(model, subjects, Thunder(teachers) if teachers.is_dir() else None)
    if detector != "none":
        scenes = validation_scenes(data)[::every]
        if not scenes:
            raise UsageError(f"{data} has no validation pictures to measure on; sets of over 60 pictures have")
        ours = PersonDetector(detector)
        found = find(lambda image: ours.detect(image, LOWEST_SCORE), scenes)
        if not teachers.is_dir():
            figures["person"], _ = detector_figures(found, scenes, ours.threshold)
        else:
            yolox = YoloxNano(teachers)
            theirs = find(yolox.detect, scenes)
            figures |= person_figures(found, theirs, scenes, (ours.threshold, yolox.threshold))
    return figures


def find(detect: Detect, scenes: Sequence[Scene]) -> Found:
    """A detector's answers on scenes."""
    return [detect(scene.image()) for scene in tracked(scenes, "pictures")]


def person_figures(
    ours: Found, theirs: Found, scenes: Sequence[Scene], thresholds: tuple[float, float]
) -> dict[str, Any]:
    """Figures of our detector and of YOLOX-nano on the same scenes, at the thresholds of both."""
    our_figures, our_draws = detector_figures(ours, scenes, thresholds[0])
    their_figures, their_draws = detector_figures(theirs, scenes, thresholds[1])
    return {
        "person": our_figures,
        "yolox_nano": their_figures,
        "person_less_yolox_nano": differences(our_figures, their_figures, our_draws, their_draws),
        "human_labelled": human_labelled(ours, theirs, scenes, thresholds),
        "human_labelled_by_joints": human_labelled(ours, theirs, scenes, thresholds, by_joints=True),
    }


def pose_figures(model: str, subjects: Sequence[Subject], teacher: Thunder | None) -> dict[str, Any]:
    """PCK@0.1 of a bundle or a checkpoint, and of the teacher on the clean pictures; see `evaluate_pack`."""
    hits: dict[str, Hits] = {}
    joints = np.array([int(counted_joints(s.person.human, s.person.keypoints[:, 2]).sum()) for s in subjects], np.int_)
    network = load(Path(model)) if model.endswith(CHECKPOINTS) else None
    engine = load_engine(model) if network is None else None
    for name, share in (("clean", 0.0), ("corrupt", 1.0)):
        if network is not None:
            rows = window_hits(network, subjects, CROP_SIZE, share)
            hits |= {f"single_{name}": rows[:, 1]} | ({f"five_{name}": rows[:, 2]} if network.offsets else {})
        elif engine is not None:
            hits[f"five_{name}"] = engine_hits(engine, subjects, share)
    pairs = [("five_clean", "single_clean"), ("five_corrupt", "single_corrupt")]
    if teacher is not None:
        hits["thunder_clean"] = thunder_hits(teacher, subjects)
        pairs.append(("five_clean", "thunder_clean"))
    figures: dict[str, Any] = {"people": len(subjects), "joints": int(joints.sum())}
    for name, found in hits.items():
        figures |= {name: float(found.sum() / max(joints.sum(), 1)), f"{name}_95": share_interval(found, joints)}
    for better, worse in pairs:
        if better in hits and worse in hits:
            name = f"{better}_less_{worse}"
            figures[name] = figures[better] - figures[worse]
            figures[f"{name}_95"] = gain_interval(hits[better], hits[worse], joints)
    return figures


def engine_hits(engine: Engine, subjects: Sequence[Subject], corrupt_key: float, share: float = 0.1) -> Hits:
    """As `train.pose.window_hits`, with the compiled network, on the very same windows: (N,) found from five frames."""
    settings = WindowSettings.for_evaluation(engine.manifest.input_size, engine.manifest.offsets, corrupt_key)
    hits = np.zeros(len(subjects), np.int_)
    for index, subject in enumerate(tracked(subjects, "people")):
        window = make_window(subject, settings, np.random.default_rng((7, index)))
        features = engine.encode(whole_pictures(window["crops"]))
        points = engine.fuse([features], window["transforms"][None])[0]
        near = np.linalg.norm(points[:, :2] - window["points"], axis=1) <= share * window["side"]
        hits[index] = (near & counted_joints(window["human"], window["weights"])).sum()
    return hits


def engine_pck(engine: Engine, subjects: Sequence[Subject], corrupt_key: float) -> float:
    """The share, 0..1, of the joints that count which a compiled network finds; see `engine_hits`."""
    joints = sum(int(counted_joints(s.person.human, s.person.keypoints[:, 2]).sum()) for s in subjects)
    return float(engine_hits(engine, subjects, corrupt_key).sum() / max(joints, 1))


def thunder_hits(teacher: Thunder, subjects: Sequence[Subject], share: float = 0.1) -> Hits:
    """(N,) what the teacher finds of the same people at the same boxes."""
    hits = np.zeros(len(subjects), np.int_)
    for index, subject in enumerate(tracked(subjects, "people")):
        person = subject.person
        points = teacher.keypoints(subject.source.image(subject.index), person.box)
        side = float((person.box[2:] - person.box[:2]).max())
        near = np.linalg.norm(points[:, :2] - person.keypoints[:, :2], axis=1) <= share * side
        hits[index] = (near & counted_joints(person.human, person.keypoints[:, 2])).sum()
    return hits
