"""COCO's files: labels of people, the pictures they are of, and predictions in COCO's result format."""

from __future__ import annotations

import logging
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from streampose.errors import UsageError
from streampose.skeleton import COCO17

log = logging.getLogger(__name__)

PERSON = "person"
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class LabelledPerson:
    """A person, or a crowd: a region that says nothing.

    Attributes:
        box: (4,) float32 x1, y1, x2, y2 pixels, with an area.
        keypoints: (17, 3) float32 x, y pixels and COCO's visibility: 0 no label, 1 hidden, 2 seen.
        area: of the person's outline in square pixels, or of the box where the file has none.
        crowd: COCO's `iscrowd`.
    """

    box: NDArray[np.float32]
    keypoints: NDArray[np.float32]
    area: float
    crowd: bool

    @property
    def posed(self) -> bool:
        """Whether there are joints to find."""
        return not self.crowd and bool((self.keypoints[:, 2] > 0).any())


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """A picture and its people; `tar` is the number of the tar that holds it, if it is in one."""

    id: int
    file_name: str
    tar: int | None
    people: tuple[LabelledPerson, ...]


@dataclass(frozen=True, slots=True)
class CocoLabels:
    """A file of labels; `category` is its number for people."""

    path: Path
    category: int
    pictures: tuple[LabelledPicture, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """Somebody that was found: box (4,) xyxy pixels, or keypoints (17, 3), and a score."""

    score: float
    box: NDArray[np.float32] | None
    keypoints: NDArray[np.float32] | None


class _Image(msgspec.Struct):
    id: int
    file_name: str
    tar: int | None = None


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    keypoints: list[float] = []
    iscrowd: bool | int = 0
    area: float | None = None


class _Category(msgspec.Struct):
    id: int
    name: str


class _Labels(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


class _Result(msgspec.Struct):
    image_id: int
    category_id: int
    score: float
    bbox: tuple[float, float, float, float] | None = None
    keypoints: list[float] | None = None


def read_labels(path: Path) -> CocoLabels:
    """The people that a COCO json labels; boxes without an area are left out, with a warning.

    Raises:
        UsageError: it cannot be read, is not COCO json, or has no pictures.
    """
    labels = _decode(path, _Labels, "COCO labels")
    category = next((c.id for c in labels.categories if c.name == PERSON), None)
    if category is None:
        raise UsageError(f"{path} is not a file of people's labels: none of its categories is called {PERSON!r}")
    if not labels.images:
        raise UsageError(f"{path} has no pictures")
    images = {image.id: image for image in labels.images}
    if len(images) < len(labels.images):
        raise UsageError(f"{path}: two of its images have the same id")
    people: dict[int, list[LabelledPerson]] = defaultdict(list)
    flat = 0
    for index, annotation in enumerate(labels.annotations):
        if annotation.category_id != category:
            continue
        if annotation.image_id not in images:
            raise UsageError(f"{path}: annotations[{index}] is of image {annotation.image_id}, which is not in images")
        if min(annotation.bbox[2:]) <= 0:
            flat += 1
            continue
        keypoints = _keypoints(annotation.keypoints or [0.0] * 51, f"{path}: annotations[{index}]")
        area = annotation.area or annotation.bbox[2] * annotation.bbox[3]
        person = LabelledPerson(_box(annotation.bbox), keypoints, area, bool(annotation.iscrowd))
        people[annotation.image_id].append(person)
    if flat:
        log.warning("%s: left out %d annotations whose bbox has no area", path, flat)
    pictures = [LabelledPicture(i.id, i.file_name, i.tar, tuple(people[i.id])) for i in labels.images]
    return CocoLabels(path, category, tuple(pictures))


def read_results(path: Path, labels: CocoLabels) -> dict[int, list[Found]]:
    """The people of a file in COCO's result format, by image id.

    Raises:
        UsageError: it cannot be read, is in another format, or has images that the labels lack.
    """
    known = {picture.id for picture in labels.pictures}
    found: dict[int, list[Found]] = defaultdict(list)
    for index, result in enumerate(_decode(path, list[_Result], "a COCO result file")):
        where = f"{path}: entry {index}"
        if result.image_id not in known:
            raise UsageError(f"{where} is of image {result.image_id}, which {labels.path} does not have")
        if result.category_id != labels.category:
            continue
        if result.bbox is not None and min(result.bbox[2:]) <= 0:
            raise UsageError(f"{where}: bbox is x, y, width, height with an area, not {list(result.bbox)}")
        box = _box(result.bbox) if result.bbox is not None else None
        keypoints = _keypoints(result.keypoints, where) if result.keypoints is not None else None
        found[result.image_id].append(Found(result.score, box, keypoints))
    return found


def read_pictures(labels: CocoLabels, images: Path | None) -> Iterator[tuple[LabelledPicture, NDArray[np.uint8]]]:
    """Each picture with its pixels, (H, W, 3) uint8 BGR, in the file's order.

    Args:
        images: the folder with the files, by `file_name` or its last part; None takes them from the tars beside the
            labels, `<labels>_NN.tar`.

    Raises:
        UsageError: a picture is missing or damaged.
    """
    if images is not None and not images.is_dir():
        raise UsageError(f"{images} is not a folder; give --images the folder with the pictures")
    with ExitStack() as stack:
        tars: dict[int, tarfile.TarFile] = {}
        for picture in labels.pictures:
            if images is not None:
                where, encoded = _from_folder(images, picture.file_name)
            elif picture.tar is None:
                raise UsageError(f"{labels.path} names no tar of its pictures; give their folder: --images")
            else:
                if picture.tar not in tars:
                    tars[picture.tar] = stack.enter_context(_open_tar(labels.path, picture.tar))
                where, encoded = _from_tar(tars[picture.tar], picture.file_name)
            pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) if encoded else None
            if pixels is None:
                raise UsageError(f"{where} is not a picture that can be decoded")
            yield picture, np.asarray(pixels, np.uint8)


def _decode(path: Path, kind: type[_Read], wanted: str) -> _Read:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not {wanted}: {error}") from error


def _box(xywh: tuple[float, float, float, float]) -> NDArray[np.float32]:
    x, y, width, height = xywh
    return np.array([x, y, x + width, y + height], np.float32)


def _keypoints(values: list[float], where: str) -> NDArray[np.float32]:
    count = len(COCO17.joints)
    if len(values) != 3 * count:
        raise UsageError(f"{where}: keypoints are {count} times x, y, v, so {3 * count} numbers, not {len(values)}")
    return np.array(values, np.float32).reshape(count, 3)


def _from_folder(folder: Path, name: str) -> tuple[str, bytes]:
    for file in (folder / name, folder / Path(name).name):
        if file.is_file():
            return str(file), file.read_bytes()
    raise UsageError(f"{folder} has no {name}; give --images the folder with the labels' pictures")


def _open_tar(labels: Path, number: int) -> tarfile.TarFile:
    path = labels.with_name(f"{labels.stem}_{number:02d}.tar")
    try:
        return tarfile.open(path)
    except (OSError, tarfile.TarError) as error:
        raise UsageError(f"{path} is missing or no tar; it holds pictures of {labels}; or give --images") from error


def _from_tar(tar: tarfile.TarFile, name: str) -> tuple[str, bytes]:
    where = f"{name} in {tar.name!s}"
    try:
        member = tar.extractfile(name)
    except KeyError:
        member = None
    if member is None:
        raise UsageError(f"{where} is missing")
    return where, member.read()
