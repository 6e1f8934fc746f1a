"""The data pack: COCO-17 stills in plain tars, clips with PoseTrack18-style labels, and how both are split."""

from __future__ import annotations

import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from streampose.errors import UsageError

Split = Literal["train", "val"]
STILL_SETS = ("lspet", "ccp", "lschen_ped", "human_seg290", "davis_neg")
VAL_CLIPS = frozenset(
    {
        "asl_walk", "asl_milk", "davis_kite-surf", "davis_soapbox", "mmhuman3d_multi_person", "pushfit_correct10",
        "pushfit_correct42", "pushfit_wrong1", "sam2_bedroom",
    }
)  # fmt: skip
BLOCK = 20
LAYOUT = "stills/<set>.json with stills/<set>_NN.tar, clips/<clip>.mp4 with clips/annotations/<clip>.json"


@dataclass(frozen=True, slots=True)
class Person:
    """One labelled person of a picture or of a clip's frame.

    Attributes:
        box: (4,) float32 x1, y1, x2, y2 pixels.
        keypoints: (17, 3) float32 x, y pixels and weight 0..1: how far the label can be trusted, 0 where there is none.
        human: (17,) bool, joints that a human labelled.
        suspect: the automatic keypoints are doubtful; the box is fine.
        ignore: a region that says nothing about people (crowd, too small).
        track_id: -1 in stills and where untracked.
        maps: the teacher's maps (17, 64, 64) uint8 of the square crop around the box x1.25, compressed (see
            `train.label_store.pack_maps`); empty where there are none.
    """

    box: NDArray[np.float32]
    keypoints: NDArray[np.float32]
    human: NDArray[np.bool_]
    suspect: bool
    ignore: bool
    track_id: int
    maps: bytes = b""


@dataclass(frozen=True, slots=True)
class Still:
    """One picture: its set, name, encoded JPEG bytes and people."""

    set_name: str
    file_name: str
    jpeg: bytes
    people: tuple[Person, ...]

    moving = False

    def image(self, _index: int = 0) -> NDArray[np.uint8]:
        """The decoded picture, (H, W, 3) uint8 BGR."""
        return np.asarray(cv2.imdecode(np.frombuffer(self.jpeg, np.uint8), cv2.IMREAD_COLOR), np.uint8)


@dataclass(frozen=True, slots=True)
class Clip:
    """One video's frames, as JPEG, and the people of each."""

    name: str
    fps: float
    jpegs: tuple[bytes, ...]
    people: tuple[tuple[Person, ...], ...]

    moving = True

    def image(self, index: int) -> NDArray[np.uint8]:
        """Frame `index`, (H, W, 3) uint8 BGR."""
        return np.asarray(cv2.imdecode(np.frombuffer(self.jpegs[index], np.uint8), cv2.IMREAD_COLOR), np.uint8)


FOR_VALIDATION = "that takes a set of over 60 pictures, or ten clips"


def split_names(names: Sequence[str]) -> dict[str, Split]:
    """Which split each picture of one set is in: sorted by name, every tenth block of 20 neighbours is validation."""
    return {name: "val" if index // BLOCK % 10 == 3 else "train" for index, name in enumerate(sorted(names))}


def clip_split(name: str) -> Split:
    """Validation for the clips of `VAL_CLIPS`, training for all others."""
    return "val" if name in VAL_CLIPS else "train"


def still_sets(root: Path) -> tuple[str, ...]:
    """The names of a pack's sets of pictures: `STILL_SETS`, or, where none of these is there, its own."""
    there = sorted(path.stem for path in (root / "stills").glob("*.json"))
    return STILL_SETS if set(there) & set(STILL_SETS) else tuple(there)


def read_stills(root: Path, split: Split, sets: Sequence[str] | None = None) -> list[Still]:
    """The pictures of one split, in the order of `sets` (by default `still_sets`), tars and names.

    Raises:
        UsageError: the folder does not have the pack's layout.
    """
    stills = []
    for set_name in still_sets(root) if sets is None else sets:
        path = root / "stills" / f"{set_name}.json"
        labels = _read_json(path)
        people: dict[int, list[Person]] = defaultdict(list)
        maps = _read_maps(path)
        for annotation in labels["annotations"]:
            people[annotation["image_id"]].append(_person(annotation, maps))
        chosen = split_names([image["file_name"] for image in labels["images"]])
        chosen |= {image["file_name"]: image["split"] for image in labels["images"] if "split" in image}
        images = [image for image in labels["images"] if chosen[image["file_name"]] == split]
        images.sort(key=lambda image: (image["tar"], image["file_name"]))
        for number, group in groupby(images, key=lambda image: int(image["tar"])):
            with _open_tar(path.with_name(f"{set_name}_{number:02d}.tar")) as tar:
                for image in group:
                    stills.append(Still(set_name, image["file_name"], _member(tar, image), tuple(people[image["id"]])))
    return stills


def read_clips(root: Path, split: Split) -> list[Clip]:
    """The clips of one split, by name; frames are kept as JPEG (quality 92) to fit into memory.

    Raises:
        UsageError: the folder does not have the pack's layout.
    """
    paths = sorted((root / "clips").glob("*.mp4"))
    if not paths:
        raise UsageError(f"no clips in {root / 'clips'}; expected {LAYOUT}")
    clips = []
    for path in paths:
        labels_path = path.parent / "annotations" / f"{path.stem}.json"
        labels = _read_json(labels_path)
        if labels.get("split", clip_split(path.stem)) == split:
            clips.append(_read_clip(path, labels, _read_maps(labels_path)))
    return clips


def read_clip(root: Path, name: str) -> Clip:
    """One clip, of either split.

    Raises:
        UsageError: there is none of that name.
    """
    path = root / "clips" / f"{name}.mp4"
    if not path.is_file():
        raise UsageError(f"{path} is missing; expected {LAYOUT}")
    labels_path = path.parent / "annotations" / f"{name}.json"
    return _read_clip(path, _read_json(labels_path), _read_maps(labels_path))


def check_set(name: str, data: Path) -> None:
    """Raises UsageError where the pack at `data` has no set of pictures of that name."""
    there = sorted(path.stem for path in (data / "stills").glob("*.json"))
    if name not in there:
        raise UsageError(
            f"{data} has no stills/{name}.json, to which the recipe gives a share; its sets are: "
            f"{', '.join(there) or 'none'}; name them: --set '*.shares={{NAME=1}}'"
        )


def check_filled(name: str, samples: Sequence[object], data: Path) -> None:
    """Raises UsageError where the pack at `data` has nothing to train on of a set, or of "clips"."""
    if not samples:
        raise UsageError(f"{data} has nothing of {name} to train on; go without it: --set '*.shares.{name}=0'")


def _read_clip(path: Path, labels: Any, maps: bytes) -> Clip:
    people: dict[int, list[Person]] = defaultdict(list)
    for annotation in labels["annotations"]:
        people[annotation["image_id"]].append(_person(annotation, maps))
    capture = cv2.VideoCapture(str(path))
    jpegs = []
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        jpegs.append(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
    capture.release()
    ids = [image["id"] for image in labels["images"]]
    return Clip(
        path.stem,
        float(Fraction(str(labels["info"]["fps"]))),
        tuple(jpegs),
        tuple(tuple(people[i]) for i in ids[: len(jpegs)]),
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"{path} is missing; expected {LAYOUT}") from error
    except ValueError as error:
        raise UsageError(f"{path} is no JSON: {error}") from error


def _open_tar(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path)
    except FileNotFoundError as error:
        raise UsageError(f"{path} is missing; expected {LAYOUT}") from error
    except tarfile.TarError as error:
        raise UsageError(f"{path} is no tar: {error}") from error


def _member(tar: tarfile.TarFile, image: dict[str, Any]) -> bytes:
    try:
        file = tar.extractfile(image["file_name"])
    except KeyError:
        file = None
    if file is None:
        raise UsageError(f"{os.fsdecode(tar.name or '')} does not hold {image['file_name']}, which its labels name")
    return file.read()


def _read_maps(labels: Path) -> bytes:
    """The teachers' maps beside some labels, end to end; none where there is no such file."""
    path = labels.with_suffix(".maps")
    return path.read_bytes() if path.exists() else b""


def _person(annotation: dict[str, Any], maps: bytes) -> Person:
    x, y, width, height = annotation["bbox"]
    ignore = bool(annotation.get("iscrowd"))
    first, size = annotation.get("maps", (0, 0))
    keypoints = np.zeros((17, 3), np.float32)
    human = np.zeros(17, np.bool_)
    if annotation.get("keypoints") and not ignore:
        keypoints[:] = np.asarray(annotation["keypoints"], np.float32).reshape(17, 3)
        scores = np.asarray(annotation.get("kpt_score", keypoints[:, 2] > 0), np.float32)
        human = (keypoints[:, 2] > 0) & (scores == 1) & (annotation.get("source") == "human+teacher")
        if "human" in annotation:
            human = np.asarray(annotation["human"], np.bool_)
        keypoints[:, 2] = np.where(keypoints[:, 2] > 0, np.clip(scores, 0, 1), 0)
    return Person(
        np.array([x, y, x + width, y + height], np.float32),
        keypoints,
        human,
        bool(annotation.get("suspect")) or bool(annotation.get("lr_swap_suspect")),
        ignore,
        int(annotation.get("track_id", -1)),
        maps[first : first + size],
    )
