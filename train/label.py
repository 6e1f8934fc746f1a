"""The data engine: pictures and clips, labelled or not, and teachers' answers become training data with trust."""

from __future__ import annotations

import json
import logging
import shutil
import tarfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from streampose.errors import OutputError, UsageError
from streampose.train.duplicates import Duplicates, find_duplicates
from streampose.train.ensemble import BoxEnsemble, PoseEnsemble, TeacherPose
from streampose.train.label_input import (
    ClipInput,
    StillSet,
    decode_picture,
    find_clips,
    read_pack_clips,
    read_pack_sets,
    read_pictures,
)
from streampose.train.label_store import Answers
from streampose.train.label_tracks import smooth_clip, track_people
from streampose.train.maps import pack_maps
from streampose.train.pack import FOR_VALIDATION
from streampose.train.progress import bar_on_stderr
from streampose.train.teachers import Thunder, YoloxNano
from streampose.train.trust import Annotation, trust_human, trust_teacher

log = logging.getLogger(__name__)

REPORT = "report.json"
DUPLICATES = "duplicates.json"
ANSWERS = "answers.tsv"
LEAST_BOX_SCORE, LEAST_HEIGHT_PX = 0.45, 60.0
"""Of pictures without labels: people with less are regions that say nothing."""
Counts = dict[str, Counter[str]]


def label(
    out: Path,
    teachers: Path,
    data: Path | None = None,
    pictures: Sequence[Path] = (),
    clips: Sequence[Path] = (),
    passes: int = 2,
    clip_every: int = 5,
    keep_duplicates: bool = False,
) -> dict[str, dict[str, int]]:
    """Write a pack (see `train.pack`) whose labels say how far they can be trusted, with the teacher's maps.

    A run that was interrupted goes on where it was, with the same arguments. Validation splits keep their labels.

    Args:
        out: folder of the new pack; `report.json` in it counts what was kept, mended and rejected, by reason,
            `duplicates.json` names what was left out as a near-duplicate, and of what.
        teachers: folder with `yolox_nano.onnx` and `movenet_thunder.onnx`.
        data: a pack whose labels are the starting point; human labels are kept.
        pictures, clips: folders without labels.
        passes: looks at each person, 1 to 6; see `train.ensemble.PASSES`.
        clip_every: of labelled clips, every n-th frame is looked at; the others keep their labels, smoothed.
        keep_duplicates: leave nothing out for being a near-duplicate (see `train.duplicates`).

    Returns:
        The report: counts by reason for each set, and for "clips".

    Raises:
        UsageError: nothing to label, nothing left to train on, two clips or sets of one name, `out` holds a finished
            pack or lies in an input, or an input is not what it must be.
        OutputError: `out` cannot be written.
    """
    if data is None and not pictures and not clips:
        raise UsageError("nothing to label: give --data, --pictures or --clips")
    if (out / REPORT).exists():
        raise UsageError(f"{out} is finished; choose another --out")
    for given in (*([data] if data else []), *pictures, *clips):
        if out.resolve().is_relative_to(given.resolve()):
            raise UsageError(f"{out} lies in {given}, which is looked at; choose an --out elsewhere")
    counts: Counts = defaultdict(Counter)
    teacher = Thunder(teachers, threads=1, maps=True)
    poses, boxes = PoseEnsemble(teacher, passes), BoxEnsemble(YoloxNano(teachers, threads=1))
    settings = f"passes={passes} clip_every={clip_every}" + " keep_duplicates" * keep_duplicates
    sets = list(read_pack_sets(data)) if data else []
    sets += [read_pictures(folder) for folder in pictures]
    found = read_pack_clips(data) if data else []
    for path in clips:
        more, broken = find_clips(path)
        found += more
        counts["clips"].update({"clips: cannot be decoded": broken} if broken else {})
    for still_set in sets:
        counts[still_set.name].update({"pictures: cannot be decoded": still_set.broken} if still_set.broken else {})
    _check_names(sets, found)
    try:
        with bar_on_stderr() as bar:
            alike = Duplicates() if keep_duplicates else find_duplicates(sets, found, bar)
            _check_rest(sets, found, alike)
            for folder in ("stills", "clips/annotations"):
                (out / folder).mkdir(parents=True, exist_ok=True)
            with Answers(out / ANSWERS, settings) as answers:
                (out / DUPLICATES).write_text(json.dumps(alike.names(), indent=1))
                for still_set in sets:
                    _label_set(still_set, poses, boxes, answers, counts[still_set.name], alike, bar, out)
                if found:
                    _label_clips(found, poses, boxes, answers, counts["clips"], alike, clip_every, bar, out)
        splits = {clip.split for clip in found}.union(*(still_set.splits.values() for still_set in sets))
        if "val" not in splits:
            log.warning("nobody in %s is for validation, which training needs: %s", out, FOR_VALIDATION)
        report = {name: dict(sorted(counter.items())) for name, counter in counts.items()}
        (out / REPORT).write_text(json.dumps(report, indent=1))
        (out / ANSWERS).unlink()
    except OSError as error:
        raise OutputError(f"cannot write {error.filename or out}: {error.strerror}") from error
    return report


def _check_names(sets: Sequence[StillSet], clips: Sequence[ClipInput]) -> None:
    for what, names in (("sets of pictures", [s.name for s in sets]), ("clips", [clip.name for clip in clips])):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise UsageError(f"two {what} are called {twice[0]}, and one would replace the other; rename one")


def _check_rest(sets: Sequence[StillSet], clips: Sequence[ClipInput], alike: Duplicates) -> None:
    """Raises UsageError where near-duplicates are all that there is to train on."""
    names: list[object] = [(s.name, name) for s in sets for name, split in s.splits.items() if split == "train"]
    names += [clip.name for clip in clips if clip.split == "train"]
    left_out = {*alike.pictures, *alike.clips}
    if names and all(name in left_out for name in names):
        raise UsageError(
            "all there is to train on shows what validation shows, as a fixed camera's pictures do; "
            "add some of other places, or give --keep-duplicates and mind that validation promises too much"
        )


def _label_set(
    still_set: StillSet, poses: PoseEnsemble, boxes: BoxEnsemble, answers: Answers, counts: Counter[str],
    alike: Duplicates, bar: Progress, out: Path,
) -> None:  # fmt: skip
    by_image: dict[int, list[Annotation]] = defaultdict(list)
    for annotation in still_set.labels["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    images, annotations, maps = [], [], bytearray()
    job = bar.add_task(still_set.name, total=len(still_set.labels["images"]))
    for image in still_set.labels["images"]:
        name = image["file_name"]
        bar.advance(job)
        if original := alike.pictures.get((still_set.name, name)):
            counts[f"pictures: near-duplicate of {original.kind}"] += 1
            continue
        images.append({**image, "tar": 0, "split": still_set.splits[name]})
        if still_set.labelled and still_set.splits[name] == "val":
            annotations += by_image[image["id"]]
            continue
        picture = decode_picture(still_set.files[name])
        people = by_image[image["id"]] if still_set.labelled else _found(picture, boxes, image["id"])
        for place, annotation in enumerate(people):
            new, pose = _trusted(annotation, picture, poses, answers, f"{name}#{place}", counts)
            maps += _add_maps(new, pose, len(maps))
            annotations.append({**new, "id": new.get("id", image["id"] * 1000 + place)})
    counts["pictures: kept"] += len(images)
    kept = {image["file_name"]: still_set.files[image["file_name"]] for image in images}
    _write_tar(out / "stills" / f"{still_set.name}_00.tar", kept)
    (out / "stills" / f"{still_set.name}.maps").write_bytes(maps)
    labels = {**still_set.labels, "images": images, "annotations": annotations}
    (out / "stills" / f"{still_set.name}.json").write_text(json.dumps(labels))


def _trusted(
    annotation: Annotation, picture: NDArray[np.uint8], poses: PoseEnsemble, answers: Answers, key: str,
    counts: Counter[str],
) -> tuple[Annotation, TeacherPose | None]:  # fmt: skip
    """A person's annotation with trust, and the teacher's pose; regions that say nothing stay as they are."""
    if annotation.get("iscrowd"):
        counts[f"regions: {annotation.get('ignore_reason', 'say nothing')}"] += 1
        return annotation, None
    x, y, width, height = annotation["bbox"]
    box = np.array([x, y, x + width, y + height], np.float32)
    pose = answers.get(key, lambda: poses.estimate(picture, box, _known(annotation)))
    trust = trust_human if annotation.get("source") == "human+teacher" else trust_teacher
    return trust(annotation, pose, counts), pose


def _known(annotation: Annotation) -> NDArray[np.float32] | None:
    """What a teacher said of this person before: (17, 3) x, y, score."""
    if "teacher_keypoints" in annotation:
        return np.asarray(annotation["teacher_keypoints"], np.float32).reshape(17, 3)
    if not annotation.get("keypoints"):
        return None
    known = np.asarray(annotation["keypoints"], np.float32).reshape(17, 3)
    known[:, 2] = np.where(known[:, 2] > 0, np.asarray(annotation["kpt_score"], np.float32), 0)
    return known


def _found(picture: NDArray[np.uint8], boxes: BoxEnsemble, image_id: int) -> list[Annotation]:
    """The people that the teacher finds, without keypoints yet."""
    people = []
    for (x1, y1, x2, y2), score in zip(*boxes.find(picture), strict=True):
        unsure, small = score < LEAST_BOX_SCORE, y2 - y1 < LEAST_HEIGHT_PX
        person = {
            "image_id": image_id, "category_id": 1, "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "area": float((x2 - x1) * (y2 - y1)), "score": float(score), "source": "teacher",
            "iscrowd": int(unsure or small),
        }  # fmt: skip
        if unsure or small:
            person["ignore_reason"] = "lowscore" if unsure else "small"
        people.append(person)
    return people


def _label_clips(
    clips: Sequence[ClipInput], poses: PoseEnsemble, boxes: BoxEnsemble, answers: Answers, counts: Counter[str],
    alike: Duplicates, every: int, bar: Progress, out: Path,
) -> None:  # fmt: skip
    job = bar.add_task("clips", total=len(clips))
    for clip in clips:
        if original := alike.clips.get(clip.name):
            counts[f"clips: near-duplicate of {original.kind}"] += 1
            (out / "clips" / f"{clip.name}.mp4").unlink(missing_ok=True)  # a run before may have kept it
        else:
            counts["clips: kept"] += 1
            _label_clip(clip, poses, boxes, answers, counts, every, out)
        bar.advance(job)


def _label_clip(
    clip: ClipInput, poses: PoseEnsemble, boxes: BoxEnsemble, answers: Answers, counts: Counter[str], every: int,
    out: Path,
) -> None:  # fmt: skip
    target = out / "clips" / "annotations" / f"{clip.name}.json"
    if target.exists():
        counts.update(json.loads(target.read_text())["counts"])
        return
    own: Counter[str] = Counter()
    maps = bytearray()
    if not clip.labelled:
        every = 1
        clip.labels = _boxes_of(clip, boxes)
    if clip.split == "train" or not clip.labelled:
        maps = _look_at(clip, poses, answers, own, every)
        if not clip.labelled:
            track_people(clip.labels, own)
        smooth_clip(clip.labels, own)
    counts.update(own)
    shutil.copyfile(clip.path, out / "clips" / f"{clip.name}.mp4")
    target.with_suffix(".maps").write_bytes(maps)
    target.write_text(json.dumps({**clip.labels, "split": clip.split, "counts": dict(own)}))


def _boxes_of(clip: ClipInput, boxes: BoxEnsemble) -> dict[str, Any]:
    """The labels of a clip without any: its people's boxes."""
    images, annotations = [], []
    for frame, picture in enumerate(clip.frames()):
        height, width = picture.shape[:2]
        name = f"{clip.name}/{frame:06d}.jpg"
        images.append({"id": frame, "frame_id": frame, "file_name": name, "width": width, "height": height})
        annotations += _found(picture, boxes, frame)
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    info = {"clip": clip.path.name, "fps": str(clip.fps), "n_frames": len(images)}
    return {"info": info, "images": images, "annotations": annotations}


def _look_at(clip: ClipInput, poses: PoseEnsemble, answers: Answers, counts: Counter[str], every: int) -> bytearray:
    """Ask the teacher about the people of every `every`-th frame; returns the packed maps."""
    maps = bytearray()
    by_frame: dict[int, list[Annotation]] = defaultdict(list)
    for annotation in clip.labels["annotations"]:
        by_frame[annotation["image_id"]].append(annotation)
    ids = [image["id"] for image in clip.labels["images"]]
    for (frame, picture), frame_id in zip(enumerate(clip.frames()), ids, strict=False):
        if frame % every:
            continue
        people = by_frame[frame_id]
        for place, annotation in enumerate(people):
            key = f"{clip.name}#{frame}#{place}"
            people[place], pose = _trusted(annotation, picture, poses, answers, key, counts)
            maps += _add_maps(people[place], pose, len(maps))
    clip.labels["annotations"] = [person for frame_id in ids for person in by_frame[frame_id]]
    return maps


def _add_maps(annotation: Annotation, pose: TeacherPose | None, offset: int) -> bytes:
    """Packed maps of a pose, whose place in their file the annotation is told."""
    if pose is None:
        return b""
    packed = pack_maps(pose.maps)
    annotation["maps"] = [offset, len(packed)]
    return packed


def _write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
