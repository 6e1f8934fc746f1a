"""Readers of public data sets, on small samples made up in exactly their layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.io import savemat  # type: ignore[import-untyped]

pytest.importorskip("torch", reason="needs the [train] extra")

from streampose.errors import UsageError
from streampose.skeleton import COCO17, JHMDB, POSETRACK
from streampose.train.datasets import SKELETON_OF, read_subjects
from streampose.train.posetrack_labels import NUMBERED
from streampose.train.windows import WindowSettings, make_window

SIZE = (90, 120)


def write_frame(path: Path, brightness: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*SIZE, 3), brightness, np.uint8))


def brightness(picture: np.ndarray) -> int:
    return round(float(picture.mean()))


def keypoints(joints: int, first: tuple[float, float, float] = (10, 20, 2)) -> list[float]:
    """The first joint as given, the next five in a row, the others without a label."""
    row = [list(first)] + [[30 + 5 * k, 40 + 3 * k, 1] for k in range(5)] + [[0, 0, 0]] * (joints - 6)
    return [value for joint in row for value in joint]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two training pictures, one of validation: a person, a crowd, a person without joints."""
    for split, names in (("train", ["000000000009.jpg", "000000000025.jpg"]), ("val", ["000000000139.jpg"])):
        images = [{"id": index + 5, "file_name": name} for index, name in enumerate(names)]
        for index, name in enumerate(names):
            write_frame(tmp_path / f"{split}2017" / name, 100 + 20 * index)
        person = {"id": 1, "image_id": 5, "category_id": 1, "bbox": [5, 10, 40, 60], "iscrowd": 0, "area": 1500.0}
        annotations = [
            person | {"keypoints": keypoints(17), "num_keypoints": 6},
            person | {"id": 2, "iscrowd": 1, "keypoints": keypoints(17)},
            person | {"id": 3, "keypoints": [0] * 51, "num_keypoints": 0},
        ]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
        labels = tmp_path / "annotations" / f"person_keypoints_{split}2017.json"
        labels.parent.mkdir(exist_ok=True)
        labels.write_text(json.dumps(content))
    return tmp_path


def test_coco(coco: Path) -> None:
    (subject,) = read_subjects("coco", coco, "train", (-2, -1))
    assert subject.skeleton is COCO17
    assert subject.person.box.tolist() == [5, 10, 45, 70]
    assert subject.person.keypoints[0].tolist() == [10, 20, 1]
    assert subject.person.human.sum() == 6
    assert (subject.support_indices, subject.source.moving) == ((0, 0), False)
    assert brightness(subject.source.image(0)) == 100
    window = make_window(subject, WindowSettings(size=(64, 64), offsets=(-2, -1)), np.random.default_rng(0))
    assert window["crops"].shape == (3, 64, 64, 3)


POSETRACK18_NAMES = ["nose", "head_bottom", "head_top", "left_ear", "right_ear", *POSETRACK.joints[5:]]


def annotation18(image_id: int, points: list[float] | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "image_id": image_id, "id": image_id * 100, "track_id": 4, "category_id": 1, "bbox": [20, 30, 40, 50],
        "bbox_head": [25, 30, 10, 10], "keypoints": points or keypoints(17), "scores": [],
    } | changes  # fmt: skip


def sequence18(folder: Path, annotations: list[dict[str, Any]], frames: int = 6, listed: str = "") -> dict[str, Any]:
    """A sequence of PoseTrack18 in which frames 2 and 3 are labelled; its pictures tell their number."""
    name = listed or "images/train/000001_bonn_train"
    for index in range(frames):
        write_frame(folder / f"{index:06d}.jpg", 20 + 30 * index)
    images = [
        {"id": 10000010000 + i, "file_name": f"{name}/{i:06d}.jpg", "is_labeled": i in (2, 3), "vid_id": "000001",
         "frame_id": 10000010000 + i, "nframes": frames, "has_no_densepose": True}
        for i in range(frames)
    ]  # fmt: skip
    categories = [{"id": 1, "name": "person", "supercategory": "person", "keypoints": POSETRACK18_NAMES}]
    return {"images": images, "annotations": annotations, "categories": categories}


FIRST = 10000010000


@pytest.fixture
def posetrack18(tmp_path: Path) -> Path:
    content = sequence18(
        tmp_path / "images/train/000001_bonn_train",
        [
            annotation18(FIRST + 2),
            annotation18(FIRST + 3, track_id=5, bbox=[]),
            annotation18(FIRST + 3, points=[0] * 51),
            annotation18(FIRST + 3, points=[90, 80, 1] * 6 + [0, 0, 0] * 11),
        ],
    )
    content["images"][3] |= {"ignore_regions_x": [[80, 119, 119, 80]], "ignore_regions_y": [[70, 70, 89, 89]]}
    labels = tmp_path / "annotations/train/000001_bonn_train.json"
    labels.parent.mkdir(parents=True)
    labels.write_text(json.dumps(content))
    return tmp_path


def test_posetrack18(posetrack18: Path) -> None:
    """Supports need no labels; a person without joints and one in an ignored region are left out; a missing box is made
    of the joints."""
    first, second = read_subjects("posetrack18", posetrack18, "train", (-2, -1, 1, 2))
    assert first.skeleton is POSETRACK
    assert (first.index, first.support_indices) == (2, (0, 1, 3, 4))
    assert (second.index, second.support_indices) == (3, (1, 2, 4, 5))
    assert [brightness(first.source.image(i)) for i in (first.index, *first.support_indices)] == [80, 20, 50, 110, 140]
    assert (first.person.track_id, second.person.track_id) == (4, 5)
    assert first.person.box.tolist() == [20, 30, 60, 80]
    assert first.person.keypoints[:6, 2].tolist() == [1] * 6
    assert not first.person.keypoints[6:].any()
    low, high = second.person.box[:2], second.person.box[2:]
    points = second.person.keypoints[:6, :2]
    assert (low < points.min(axis=0)).all()
    assert (high > points.max(axis=0)).all()


def test_windows_at_the_ends_take_the_nearest_frame_there_is(posetrack18: Path) -> None:
    first, second = read_subjects("posetrack18", posetrack18, "train", (-4, -3, 3, 4))
    assert first.support_indices == (0, 0, 5, 5)
    assert second.support_indices == (0, 0, 5, 5)
    window = make_window(first, WindowSettings.for_evaluation((64, 64), (-4, -3, 3, 4), 0), np.random.default_rng(0))
    assert (window["crops"][1] == window["crops"][2]).all()
    assert (window["crops"][1] != window["crops"][3]).any()


def test_posetrack21_has_its_own_folder(posetrack18: Path) -> None:
    labels = posetrack18 / "annotations/train/000001_bonn_train.json"
    content = json.loads(labels.read_text())
    for entry in content["annotations"]:
        entry |= {"person_id": 8}
    folder = posetrack18 / "posetrack_data/train"
    folder.mkdir(parents=True)
    labels.rename(folder / labels.name).write_text(json.dumps(content))
    assert [s.index for s in read_subjects("posetrack21", posetrack18, "train", ())] == [2, 3]


def test_posetrack17_as_published(tmp_path: Path) -> None:
    """Numbered joints in lists of frames, pictures counted from 00000001.jpg, head boxes only."""
    for number in range(1, 5):
        write_frame(tmp_path / f"images/bonn_5sec/000342_mpii/{number:08d}.jpg", 40 * number)
    wrist, nose = NUMBERED.index("left_wrist"), NUMBERED.index("nose")
    points = [{"id": [wrist], "x": [50.0], "y": [60.0], "is_visible": [1]}, {"id": [nose], "x": [40.0], "y": [30.0]}]
    rect = {"x1": [30], "y1": [10], "x2": [50], "y2": [35], "track_id": [2], "annopoints": [{"point": points}]}
    frames = [
        {"image": [{"name": f"images/bonn_5sec/000342_mpii/{number:08d}.jpg"}], "imgnum": [number],
         "annorect": [rect] if number == 3 else [], "is_labeled": [int(number == 3)]}
        for number in range(1, 5)
    ]  # fmt: skip
    labels = tmp_path / "annotations/val/000342_mpii.json"
    labels.parent.mkdir(parents=True)
    labels.write_text(json.dumps({"annolist": frames}))
    (subject,) = read_subjects("posetrack17", tmp_path, "val", (-2, -1, 1, 2))
    assert (subject.index, subject.support_indices) == (2, (0, 1, 3, 3))
    assert brightness(subject.source.image(2)) == 120
    joints = {POSETRACK.joints[j]: subject.person.keypoints[j].tolist() for j in np.flatnonzero(subject.person.human)}
    assert joints == {"left_wrist": [50, 60, 1], "nose": [40, 30, 1]}
    assert subject.person.box == pytest.approx([35.5, 25.5, 54.5, 64.5])


def test_posetrack17_converted_with_renamed_pictures(tmp_path: Path) -> None:
    content = sequence18(
        tmp_path / "images_renamed/bonn_5sec/000342_mpii", [annotation18(FIRST + 2)], listed="bonn_5sec/000342_mpii"
    )
    labels = tmp_path / "jsons/train/000342_mpii.json"
    labels.parent.mkdir(parents=True)
    labels.write_text(json.dumps(content))
    (subject,) = read_subjects("posetrack17", tmp_path, "train", ())
    assert brightness(subject.source.image(subject.index)) == 80


@pytest.fixture
def jhmdb(tmp_path: Path) -> Path:
    """Two clips of one action; the second has no puppet mask, and a joint that leaves the picture."""
    for clip, frames in (("April_wave", 3), ("Bob_wave", 2)):
        for number in range(1, frames + 1):
            write_frame(tmp_path / f"Rename_Images/wave/{clip}/{number:05d}.png", 60 * number)
        x, y = np.linspace(21, 61, 15), np.linspace(11, 81, 15)
        positions = np.repeat(np.stack([x, y])[..., None], frames, axis=2)
        positions[0, 14, 1] = 1000 if clip == "Bob_wave" else 61
        folder = tmp_path / f"joint_positions/wave/{clip}"
        folder.mkdir(parents=True)
        savemat(folder / "joint_positions.mat", {"pos_img": positions, "scale": np.ones((1, frames)), "viewpoint": "E"})
    mask = np.zeros((*SIZE, 3), np.uint8)
    mask[10:70, 30:50] = 1
    folder = tmp_path / "puppet_mask/wave/April_wave"
    folder.mkdir(parents=True)
    savemat(folder / "puppet_mask.mat", {"part_mask": mask})
    splits = tmp_path / "sub_splits"
    splits.mkdir()
    for number, (april, bob) in enumerate([(1, 2), (2, 1), (1, 1)], 1):
        (splits / f"wave_test_split_{number}.txt").write_text(f"April_wave.avi {april}\nBob_wave.avi {bob} \n\n")
    return tmp_path


def test_jhmdb(jhmdb: Path) -> None:
    april = read_subjects("jhmdb", jhmdb, "train1", (-1, 1))
    assert [(s.index, s.support_indices) for s in april] == [(0, (0, 1)), (1, (0, 2)), (2, (1, 2))]
    assert april[0].skeleton is JHMDB
    assert april[0].person.box.tolist() == [30, 10, 50, 70]
    assert april[0].person.keypoints[0] == pytest.approx([20.5, 10.5, 1])  # the file counts from 1, to pixel centres
    bob = read_subjects("jhmdb", jhmdb, "test1", (-1, 1))
    assert len(bob) == 2
    assert bob[0].person.human.all()
    assert bob[1].person.human.sum() == 14
    assert bob[0].person.box == pytest.approx([13.5, 3.5, 67.5, 87.5])
    assert [len(read_subjects("jhmdb", jhmdb, split, ())) for split in ("train2", "test2", "train3")] == [2, 3, 5]
    with pytest.raises(UsageError, match="nobody"):
        read_subjects("jhmdb", jhmdb, "test3", ())


@pytest.mark.parametrize(
    ("name", "split", "expected", "origin"),
    [
        ("coco", "train", "annotations/person_keypoints_train2017.json", "cocodataset.org"),
        ("posetrack17", "val", "annotations/val/", "posetrack.net"),
        ("posetrack18", "train", "annotations/train/", "posetrack.net"),
        ("posetrack21", "train", "posetrack_data/train/", "github.com/anDoer/PoseTrack21"),
        ("jhmdb", "train1", "sub_splits/<action>_test_split", "jhmdb.is.tue.mpg.de"),
    ],
)
def test_a_wrong_folder_is_told_the_layout_and_the_origin(
    name: str, split: str, expected: str, origin: str, tmp_path: Path
) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="is not") as caught:
            read_subjects(name, folder, split, ())
        assert expected in str(caught.value)
        assert origin in str(caught.value)
        assert "\n" not in str(caught.value)


def test_unknown_names_are_refused(coco: Path, jhmdb: Path) -> None:
    with pytest.raises(UsageError, match="no data set 'mpii'; there are: pack, coco"):
        read_subjects("mpii", coco, "train", ())
    for name, root in (("coco", coco), ("posetrack18", coco), ("jhmdb", jhmdb)):
        with pytest.raises(UsageError, match="splits"):
            read_subjects(name, root, "holdout", ())
    assert set(SKELETON_OF) == {"coco", "posetrack17", "posetrack18", "posetrack21", "jhmdb"}


Spoil = Callable[[Path], object]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "images/train/000001_bonn_train/000003.jpg").unlink(), "has no 000003.jpg"),
        (lambda root: (root / "images").rename(root / "pictures"), "no folder with the pictures of"),
        (lambda root: (root / "annotations/train/000001_bonn_train.json").write_text("{"), "is not JSON"),
    ],
)
def test_what_is_missing_from_posetrack_is_named(spoil: Spoil, message: str, posetrack18: Path) -> None:
    spoil(posetrack18)
    with pytest.raises(UsageError, match=message):
        read_subjects("posetrack18", posetrack18, "train", (-1, 1))


def test_a_damaged_picture_is_named_when_it_is_needed(posetrack18: Path) -> None:
    (posetrack18 / "images/train/000001_bonn_train/000001.jpg").write_bytes(b"\xff\xd8 broken")
    first, _ = read_subjects("posetrack18", posetrack18, "train", (-1,))
    first.source.image(first.index)
    with pytest.raises(UsageError, match=r"000001.jpg is not a picture that can be decoded"):
        make_window(first, WindowSettings(size=(64, 64), offsets=(-1,)), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "joint_positions/wave/Bob_wave/joint_positions.mat").unlink(), "is missing; expected"),
        (lambda root: (root / "joint_positions/wave/Bob_wave/joint_positions.mat").write_bytes(b"no"), "not a MATLAB"),
        (lambda root: savemat(root / "joint_positions/wave/Bob_wave/joint_positions.mat", {"x": 1}), "has no pos_img"),
        (
            lambda root: savemat(
                root / "joint_positions/wave/Bob_wave/joint_positions.mat", {"pos_img": np.zeros((2, 14, 2))}
            ),
            r"are \(2, 15, frames\)",
        ),
        (
            lambda root: (root / "sub_splits/wave_test_split_1.txt").write_text("Bob_wave.avi 3"),
            r"split_1.txt:1: expected",
        ),
        (lambda root: (root / "sub_splits/wave_test_split_1.txt").write_text("Eve_wave.avi 2"), "has no pictures"),
    ],
)
def test_what_is_wrong_in_jhmdb_is_named(spoil: Spoil, message: str, jhmdb: Path) -> None:
    spoil(jhmdb)
    with pytest.raises(UsageError, match=message):
        read_subjects("jhmdb", jhmdb, "test1", ())
