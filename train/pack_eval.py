"""Figures on the pack's validation splits, beside the teachers': what `docs/models.md` cites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streampose.engines import Engine, load_engine, whole_pictures
from streampose.model import load
from streampose.people import PersonDetector
from streampose.train.pack import read_stills
from streampose.train.person import validation_scenes
from streampose.train.person_score import Boxes, DetectionScore, Scene, match, summarise
from streampose.train.pose import human_subjects, window_pck
from streampose.train.predict import CHECKPOINTS
from streampose.train.teachers import LOWEST_SCORE, Thunder, YoloxNano
from streampose.train.windows import Subject, WindowSettings, make_window

CROP_SIZE = (256, 192)
HEIGHTS_PX = (80, 60)
Detect = Callable[[NDArray[np.uint8]], tuple[Boxes, Boxes]]


def evaluate_pack(data: Path, model: str | None, detector: str = "person") -> dict[str, Any]:
    """Figures of the pose network and the detector on the validation splits of the pack at `data`.

    Args:
        model: a checkpoint (single frame and five frames) or a bundle (five frames); None leaves pose out.
        detector: see `PersonDetector`; "none" leaves it out.

    Returns:
        PCK@0.1 of the longer box side on human-labelled LSPet joints at given boxes, and recall, precision and AP at
        IoU 0.5, all 0..1; the teachers' beside them where `data/teachers` is there. The supporting frames of a still
        are the picture moved a little; "corrupt" means that the key frame alone is blurred, darkened or covered.
    """
    figures: dict[str, Any] = {}
    teachers = data / "teachers"
    if model is not None:
        subjects = human_subjects(read_stills(data, "val", ["lspet"]))
        figures["pose"] = {"people": len(subjects), "joints": sum(int(s.person.human.sum()) for s in subjects)}
        figures["pose"] |= _pose(model, subjects)
        if teachers.is_dir():
            figures["pose"]["thunder_clean"] = thunder_pck(Thunder(teachers), subjects)
    if detector != "none":
        scenes = validation_scenes(data)
        ours = PersonDetector(detector)
        figures["person"] = _detection(lambda image: ours.detect(image, LOWEST_SCORE), ours.threshold, scenes)
        if teachers.is_dir():
            yolox = YoloxNano(teachers)
            figures["yolox_nano"] = _detection(yolox.detect, yolox.threshold, scenes)
    return figures


def _pose(model: str, subjects: Sequence[Subject]) -> dict[str, float]:
    figures: dict[str, float] = {}
    network = load(Path(model)) if model.endswith(CHECKPOINTS) else None
    engine = load_engine(model) if network is None else None
    for name, share in (("clean", 0.0), ("corrupt", 1.0)):
        if network is not None:
            result = window_pck(network, subjects, CROP_SIZE, share)
            figures |= {f"single_{name}": result.single, f"five_{name}": result.fused}
        elif engine is not None:
            figures[f"five_{name}"] = engine_pck(engine, subjects, share)
    return figures


def engine_pck(engine: Engine, subjects: Sequence[Subject], corrupt_key: float, share: float = 0.1) -> float:
    """As `train.pose.window_pck`, with the compiled network, on the very same windows."""
    settings = WindowSettings.for_evaluation(engine.manifest.input_size, engine.manifest.offsets, corrupt_key)
    right = total = 0
    for index, subject in enumerate(subjects):
        window = make_window(subject, settings, np.random.default_rng((7, index)))
        features = engine.encode(whole_pictures(window["crops"]))
        points = engine.fuse([features], window["transforms"][None])[0]
        near = np.linalg.norm(points[:, :2] - window["points"], axis=1) <= share * window["side"]
        right += int((near & window["human"]).sum())
        total += int(window["human"].sum())
    return right / max(total, 1)


def thunder_pck(teacher: Thunder, subjects: Sequence[Subject], share: float = 0.1) -> float:
    """The teacher on the same people at the same boxes, 0..1."""
    right = total = 0
    for subject in subjects:
        person = subject.person
        points = teacher.keypoints(subject.source.image(subject.index), person.box)
        side = float((person.box[2:] - person.box[:2]).max())
        near = np.linalg.norm(points[:, :2] - person.keypoints[:, :2], axis=1) <= share * side
        right += int((near & person.human).sum())
        total += int(person.human.sum())
    return right / max(total, 1)


def _detection(detect: Detect, threshold: float, scenes: Sequence[Scene]) -> dict[str, Any]:
    found = [detect(scene.image()) for scene in scenes]
    figures: dict[str, Any] = {"threshold": threshold}
    groups = sorted({scene.group.partition(":")[0] for scene in scenes})
    for height in HEIGHTS_PX:
        scores = {
            group: asdict(_summary(found, scenes, height, threshold, group))
            for group in groups
            if any(person_counts(scene, height) for scene in scenes if scene.group.startswith(group))
        }
        figures[f"from_{height}_px"] = {"all": asdict(_summary(found, scenes, height, threshold, "")), **scores}
    empty = [index for index, scene in enumerate(scenes) if scene.group == "davis_neg"]
    silent = sum(not (found[index][1] >= threshold).any() for index in empty)
    figures["nothing_found_without_people"] = silent / max(len(empty), 1)
    figures["pictures_without_people"] = len(empty)
    return figures


def person_counts(scene: Scene, height: float) -> bool:
    """Whether a picture has somebody to find."""
    return any(not p.ignore and p.box[3] - p.box[1] >= height for p in scene.people)


def _summary(
    found: Sequence[tuple[Boxes, Boxes]], scenes: Sequence[Scene], height: float, threshold: float, group: str
) -> DetectionScore:
    scores, verdicts, people = [], [], 0
    for (boxes, confidence), scene in zip(found, scenes, strict=True):
        if scene.group.startswith(group):
            verdict, count = match(boxes, confidence, scene.people, height)
            scores.append(confidence)
            verdicts.append(verdict)
            people += count
    return summarise(np.concatenate(scores), np.concatenate(verdicts), people, threshold)
