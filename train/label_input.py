"""What the data engine starts from: a pack with labels, or plain folders of pictures and of clips."""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from streampose.errors import UsageError
from streampose.skeleton import COCO17
from streampose.sources.images import SUFFIXES
from streampose.train.pack import LAYOUT, Split, clip_split, split_names

log = logging.getLogger(__name__)

CLIPS = {".mp4", ".mov", ".mkv", ".avi", ".webm"}
Image = NDArray[np.uint8]


@dataclass(slots=True)
class StillSet:
    """Pictures and their labels in the pack's form; `labelled` is False where annotations are still to be made.

    Attributes:
        files: encoded pictures by their names, in the order of `labels["images"]`.
        splits: of each picture.
        broken: how many more files there were, which cannot be decoded.
    """

    name: str
    labels: dict[str, Any]
    files: dict[str, bytes]
    splits: dict[str, Split]
    labelled: bool = True
    broken: int = 0


@dataclass(slots=True)
class ClipInput:
    """A clip's file and its labels in the pack's form; `labelled` as in `StillSet`."""

    path: Path
    labels: dict[str, Any]
    split: Split
    labelled: bool = True

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def fps(self) -> float:
        capture = cv2.VideoCapture(str(self.path))
        fps = float(capture.get(cv2.CAP_PROP_FPS)) or 25.0
        capture.release()
        return fps

    def frames(self) -> Iterator[Image]:
        """All frames, (H, W, 3) uint8 BGR, in order.

        Raises:
            UsageError: the file cannot be decoded.
        """
        capture = cv2.VideoCapture(str(self.path))
        count = 0
        try:
            while True:
                ok, frame = capture.read()
                if not ok:
                    break
                count += 1
                yield np.asarray(frame, np.uint8)
        finally:
            capture.release()
        if not count:
            raise UsageError(f"{self.path} holds no frame that can be decoded")


def read_pack_sets(root: Path) -> Iterator[StillSet]:
    """The still sets of a pack, with their labels.

    Raises:
        UsageError: not the pack's layout.
    """
    paths = sorted((root / "stills").glob("*.json"))
    if not paths:
        raise UsageError(f"{root} is no pack; expected {LAYOUT}")
    for path in paths:
        labels = _json(path)
        files: dict[str, bytes] = {}
        for number in sorted({int(image["tar"]) for image in labels["images"]}):
            tar_path = path.with_name(f"{path.stem}_{number:02d}.tar")
            try:
                with tarfile.open(tar_path) as tar:
                    for member in tar:
                        content = tar.extractfile(member)
                        if content is not None:
                            files[member.name] = content.read()
            except (OSError, tarfile.TarError) as error:
                raise UsageError(f"{tar_path} cannot be read: {error}") from error
        missing = [image["file_name"] for image in labels["images"] if image["file_name"] not in files]
        if missing:
            raise UsageError(f"{path} names {missing[0]}, which its tars do not hold")
        yield StillSet(path.stem, labels, files, split_names([image["file_name"] for image in labels["images"]]))


def read_pictures(folder: Path) -> StillSet:
    """A folder of pictures without labels, as a set of that name; subfolders are looked into.

    Pictures that cannot be decoded are named in the log, counted, and left out.

    Raises:
        UsageError: it is no folder, or holds no pictures.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of pictures")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UsageError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    images, files, broken = [], {}, 0
    for number, path in enumerate(paths, 1):
        name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
        if picture is None:
            log.warning("%s is left out: it is not a picture that can be decoded", path)
            broken += 1
            continue
        files[name] = content
        images.append({"id": number, "file_name": name, "width": picture.shape[1], "height": picture.shape[0]})
    if not images:
        raise UsageError(f"{folder} holds no picture that can be decoded")
    person = {"id": 1, "name": "person", "supercategory": "person", "keypoints": list(COCO17.joints)}
    person["skeleton"] = [[first + 1, second + 1] for first, second in COCO17.edges]
    labels = {"images": images, "annotations": [], "categories": [person]}
    return StillSet(folder.name, labels, files, split_names(list(files)), labelled=False, broken=broken)


def read_pack_clips(root: Path) -> list[ClipInput]:
    """The clips of a pack, with their labels, by name."""
    return [
        ClipInput(path, _json(path.parent / "annotations" / f"{path.stem}.json"), clip_split(path.stem))
        for path in sorted((root / "clips").glob("*.mp4"))
    ]


def find_clips(folder: Path, val_every: int = 10) -> tuple[list[ClipInput], int]:
    """A folder of clips without labels, by name; every tenth is for validation.

    Returns:
        The clips, and how many files more cannot be decoded, which are named in the log and left out.

    Raises:
        UsageError: it is no folder, or holds none.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of clips")
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in CLIPS)
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror}") from error
    if not paths:
        raise UsageError(f"{folder} holds no clips ({', '.join(sorted(CLIPS))})")
    whole = [path for path in paths if _decodes(path)]
    for path in sorted(set(paths) - set(whole)):
        log.warning("%s is left out: it holds no frame that can be decoded", path)
    if not whole:
        raise UsageError(f"{folder} holds no clip that can be decoded")
    broken, paths = len(paths) - len(whole), whole
    splits: Sequence[Split] = ["val" if place % val_every == val_every - 1 else "train" for place in range(len(paths))]
    return [ClipInput(path, {}, split, labelled=False) for path, split in zip(paths, splits, strict=True)], broken


def _decodes(path: Path) -> bool:
    capture = cv2.VideoCapture(str(path))
    there, _ = capture.read()
    capture.release()
    return bool(there)


def decode_picture(data: bytes) -> Image:
    """An encoded picture, (H, W, 3) uint8 BGR."""
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), np.uint8)


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is no JSON: {error}") from error
    return content
