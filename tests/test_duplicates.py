"""Near-duplicates: what validation shows is left out of training, by hash, among pictures and clips and across both."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="needs the [train] extra")

from rich.progress import Progress
from typer.testing import CliRunner

from streampose.cli.commands import app
from streampose.errors import UsageError
from streampose.train.duplicates import Duplicates, Original, find_duplicates
from streampose.train.label import label
from streampose.train.label_input import ClipInput, StillSet, read_pack_sets
from streampose.train.loop import LoopSettings
from streampose.train.pack import STILL_SETS, Split, read_clips, read_stills
from streampose.train.person import Mosaics, person_task
from streampose.train.recipe import PersonStage

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_pack = pytest.mark.skipif(not (DATA / "teachers").is_dir(), reason="the data pack is not beside the checkout")
Image = NDArray[np.uint8]
FRAMES = 12


def place(seed: int) -> Image:
    """A picture (240, 320, 3) like no other's."""
    coarse = np.random.default_rng(seed).integers(40, 216, (12, 16, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_CUBIC), np.uint8)


def with_person(background: Image, x: int, height: int = 120) -> Image:
    """Somebody, bright and dark in stripes, stands there."""
    picture = background.copy()
    for row in range(0, height, 20):
        shade = (250, 250, 250) if row % 40 else (5, 5, 5)
        cv2.rectangle(picture, (x, 100 + row), (x + 50, 119 + row), shade, -1)
    return picture


def take(seed: int, start: int, step: int = 2) -> list[Image]:
    """Frames of a fixed camera at a place; somebody walks through."""
    return [with_person(place(seed), start + step * index) for index in range(FRAMES)]


def clip(folder: Path, name: str, split: Split, frames: list[Image], quality: int = 95) -> ClipInput:
    path = folder / f"{name}.avi"
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (width, height))
    for frame in frames:
        writer.write(np.asarray(cv2.imdecode(encoded(frame, quality), cv2.IMREAD_COLOR), np.uint8))
    writer.release()
    return ClipInput(path, {}, split)


def encoded(picture: Image, quality: int = 95) -> NDArray[np.uint8]:
    return np.asarray(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], np.uint8)


def stills(pictures: dict[str, Image], validation: str = "") -> StillSet:
    files = {name: encoded(picture).tobytes() for name, picture in pictures.items()}
    splits: dict[str, Split] = {name: "val" if name == validation else "train" for name in files}
    return StillSet("street", {"images": [{"file_name": name} for name in files], "annotations": []}, files, splits)


def find(sets: list[StillSet], clips: list[ClipInput]) -> Duplicates:
    return find_duplicates(sets, clips, Progress(disable=True))


def test_a_training_clip_that_shows_what_a_validation_clip_shows_is_left_out(tmp_path: Path) -> None:
    clips = [
        clip(tmp_path, "later", "train", take(1, 60)),
        clip(tmp_path, "elsewhere", "train", take(2, 60)),
        clip(tmp_path, "validation", "val", take(1, 70)),
    ]
    assert find([], clips).clips == {"later": Original("a validation clip", "validation")}


def test_a_short_validation_clip_is_found_in_a_long_training_clip(tmp_path: Path) -> None:
    long = [picture for seed in range(11, 17) for picture in take(seed, 60)]
    clips = [clip(tmp_path, "long", "train", long), clip(tmp_path, "short", "val", take(16, 60))]
    assert find([], clips).clips == {"long": Original("a validation clip", "short")}


def test_of_two_training_clips_a_copy_is_left_out_and_another_take_of_the_camera_stays(tmp_path: Path) -> None:
    small = [cv2.resize(frame, (160, 120), interpolation=cv2.INTER_AREA) for frame in take(1, 60)]
    clips = [
        clip(tmp_path, "first", "train", take(1, 60)),
        clip(tmp_path, "copy", "train", [np.asarray(frame, np.uint8) for frame in small], quality=35),
        clip(tmp_path, "other take", "train", take(1, 200)),
    ]
    assert find([], clips).clips == {"copy": Original("another training clip", "first")}


def test_pictures_are_compared_with_the_frames_of_clips(tmp_path: Path) -> None:
    seen, trained, alone, other = take(1, 60)[4], take(2, 60)[7], place(3), place(4)
    clips = [clip(tmp_path, "seen", "val", take(1, 60)), clip(tmp_path, "trained", "train", take(2, 60))]
    found = find([stills({"a": seen, "b": trained, "c": alone, "d": other})], clips)
    assert found.pictures == {
        ("street", "a"): Original("a validation clip", "seen"),
        ("street", "b"): Original("a training clip", "trained"),
    }
    assert not found.clips


def test_a_training_clip_that_shows_a_validation_picture_is_left_out(tmp_path: Path) -> None:
    clips = [clip(tmp_path, "walk", "train", take(1, 60)), clip(tmp_path, "elsewhere", "train", take(2, 60))]
    found = find([stills({"a": take(1, 60)[6], "b": place(3)}, validation="a")], clips)
    assert found.clips == {"walk": Original("a validation picture", "a")}
    assert not found.pictures


def test_of_two_alike_pictures_the_training_one_goes_whichever_comes_first() -> None:
    noisy = np.clip(place(1) + np.random.default_rng(0).normal(0, 3, (240, 320, 3)), 0, 255).astype(np.uint8)
    pictures = {"a": place(1), "b": place(2), "c": noisy, "d": cv2.resize(place(2), (160, 120))}
    assert find([stills(pictures, validation="c")], []).pictures == {
        ("street", "a"): Original("a validation picture", "c"),
        ("street", "d"): Original("another training picture", "b"),
    }


@needs_pack
def test_the_training_copies_of_lspet_validation_pictures_are_found() -> None:
    pairs = {"lspet/im06949.jpg": "lspet/im02268.jpg", "lspet/im01663.jpg": "lspet/im03562.jpg"}
    (lspet,) = (s for s in read_pack_sets(DATA) if s.name == "lspet")
    names = [*pairs, *pairs.values(), "lspet/im00001.jpg"]
    names = [name for name in names if name in lspet.files]
    assert {lspet.splits[name] for name in pairs} == {"train"}
    assert {lspet.splits[name] for name in pairs.values()} == {"val"}
    some = StillSet("lspet", {"images": [{"file_name": name} for name in names]}, lspet.files, lspet.splits)
    found = find([some], [])
    assert found.pictures == {("lspet", own): Original("a validation picture", val) for own, val in pairs.items()}


@needs_pack
def test_a_sign_that_the_same_person_makes_at_the_same_place_is_left_out_and_others_stay() -> None:
    names = {"asl_milk": "val", "asl_bird": "train", "asl_please": "train", "asl_again": "train", "asl_eat": "train"}
    clips = [ClipInput(DATA / "clips" / f"{name}.mp4", {}, split) for name, split in names.items()]
    assert find([], clips).clips == {
        name: Original("a validation clip", "asl_milk") for name in ("asl_bird", "asl_please")
    }


# The command


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Path]:
    """pack(clips={name: frames}, pictures={name: picture}) -> a pack without people, so that teachers are not asked."""

    def make(clips: dict[str, list[Image]], pictures: dict[str, Image]) -> Path:
        root = tmp_path / "pack"
        (root / "stills").mkdir(parents=True)
        (root / "clips" / "annotations").mkdir(parents=True)
        images = []
        with tarfile.open(root / "stills" / "street_00.tar", "w") as tar:
            for number, (name, picture) in enumerate(pictures.items()):
                jpeg = encoded(picture).tobytes()
                member = tarfile.TarInfo(name)
                member.size = len(jpeg)
                tar.addfile(member, BytesIO(jpeg))
                images.append({"id": number, "tar": 0, "file_name": name, "width": 320, "height": 240})
        (root / "stills" / "street.json").write_text(json.dumps({"images": images, "annotations": []}))
        for name, frames in clips.items():
            clip(root / "clips", name, "train", frames).path.rename(root / "clips" / f"{name}.mp4")
            labels = {"info": {"fps": "25"}, "images": [{"id": i} for i in range(len(frames))], "annotations": []}
            (root / "clips" / "annotations" / f"{name}.json").write_text(json.dumps(labels))
        return root

    return make


@needs_pack
def test_label_leaves_near_duplicates_out_counts_them_and_names_them(pack: Callable[..., Path], tmp_path: Path) -> None:
    pictures = {"a": place(5), "b": place(6), "c": take(1, 60)[3]}
    data = pack({"asl_milk": take(1, 60), "same": take(1, 66), "other": take(2, 60)}, pictures)
    out = tmp_path / "labelled"
    arguments = ["label", "--teachers", str(DATA / "teachers"), "--data", str(data), "--json", "--out"]
    run = CliRunner().invoke(app, [*arguments, str(out)])
    assert run.exit_code == 0, run.output
    report = json.loads(run.stdout)
    assert report["clips"] == {"clips: kept": 2, "clips: near-duplicate of a validation clip": 1}
    assert report["street"] == {"pictures: kept": 2, "pictures: near-duplicate of a validation clip": 1}
    assert json.loads((out / "report.json").read_text()) == report
    assert json.loads((out / "duplicates.json").read_text()) == {
        "c": "a validation clip, asl_milk",
        "same": "a validation clip, asl_milk",
    }
    assert [c.name for c in read_clips(out, "train")] == ["other"]
    assert [c.name for c in read_clips(out, "val")] == ["asl_milk"]
    assert [still.file_name for still in read_stills(out, "train", ["street"])] == ["a", "b"]
    kept = CliRunner().invoke(app, [*arguments, str(tmp_path / "all"), "--keep-duplicates"])
    assert kept.exit_code == 0, kept.output
    assert json.loads(kept.stdout)["clips"] == {"clips: kept": 3}
    assert [c.name for c in read_clips(tmp_path / "all", "train")] == ["other", "same"]


def person(number: int, image: int, box: tuple[int, int, int, int], **fields: object) -> dict[str, object]:
    return {"id": number, "image_id": image, "category_id": 1, "bbox": list(box), "source": "teacher"} | fields


@needs_pack
def test_the_detector_trains_on_what_label_decided(pack: Callable[..., Path], tmp_path: Path) -> None:
    """Left-out pictures and clips are not there, ignored regions are ignored, people of a doubtful pose are people."""
    pictures = {"a": place(5), "b": take(1, 60)[3]} | {f"n{i:02d}": place(30 + i) for i in range(60)}  # n58, n59: val
    data = pack({"asl_milk": take(1, 60), "same": take(1, 66), "other": take(2, 60)}, pictures)
    labels = json.loads((data / "stills" / "street.json").read_text())
    labels["annotations"] = [
        person(1, 0, (20, 20, 60, 200)),  # of a picture of nobody: the teacher doubts the pose
        person(2, 0, (200, 20, 80, 200), iscrowd=1, ignore_reason="small"),
        person(3, 1, (60, 100, 50, 120)),
    ]
    (data / "stills" / "street.json").write_text(json.dumps(labels))
    out = tmp_path / "labelled"
    report = label(out, DATA / "teachers", data)
    assert report["street"]["people: few joints"] == 1
    assert report["street"]["regions: small"] == 1
    (still, *_) = read_stills(out, "train", ["street"])
    assert [p.suspect for p in still.people] == [True, False]
    for name in STILL_SETS:  # validation looks at all sets of the pack
        (out / "stills" / f"{name}.json").write_text(json.dumps({"images": [], "annotations": []}))
    small = LoopSettings(steps=1, batch_size=1, lr=1e-3)
    stage = PersonStage("person", 64, {"street": 1.0, "clips": 1.0}, small, clip_every=1, mosaic=0.0)
    with pytest.raises(UsageError, match=r"nothing of davis_neg to train on.*shares\.davis_neg=0"):
        person_task(msgspec.structs.replace(stage, shares={"davis_neg": 1.0, "clips": 1.0}), out, None)
    street, clips = person_task(stage, out, None).dataset.groups
    assert {scene.group for scene in clips} == {"clip:other"}
    assert len(clips) == FRAMES
    assert len(street) == report["street"]["pictures: kept"] - 2
    (doubted,) = (scene for scene in street if scene.people)
    sample = Mosaics([([doubted], 1.0)], 96, 0.0, seed=3)[0]
    assert sorted(sample["kinds"][sample["kinds"] > 0]) == [1, 2]


@needs_pack
def test_a_run_that_was_cut_off_goes_on_with_the_same_clips(pack: Callable[..., Path], tmp_path: Path) -> None:
    data = pack({"asl_milk": take(1, 60), "same": take(1, 66), "other": take(2, 60)}, {"a": place(5)})
    out = tmp_path / "labelled"
    report = label(out, DATA / "teachers", data)
    done = out / "clips" / "annotations" / "other.json"
    written = done.stat().st_mtime_ns
    (out / "report.json").unlink()
    (out / "clips" / "same.mp4").write_bytes((data / "clips" / "same.mp4").read_bytes())
    (out / "clips" / "annotations" / "asl_milk.json").unlink()
    assert label(out, DATA / "teachers", data) == report
    assert done.stat().st_mtime_ns == written
    assert not (out / "clips" / "same.mp4").exists()


@needs_pack
def test_where_nothing_is_left_to_train_on_it_says_so(pack: Callable[..., Path], tmp_path: Path) -> None:
    data = pack({"asl_milk": take(1, 60), "same": take(1, 66)}, {"a": take(1, 60)[3]})
    with pytest.raises(UsageError, match="--keep-duplicates"):
        label(tmp_path / "labelled", DATA / "teachers", data)
    report = label(tmp_path / "labelled", DATA / "teachers", data, keep_duplicates=True)
    assert report["clips"]["clips: kept"] == 2


@needs_pack
def test_two_clips_of_one_name_are_refused(pack: Callable[..., Path], tmp_path: Path) -> None:
    data = pack({"walk": take(1, 60)}, {"a": place(5)})
    own = tmp_path / "own"
    own.mkdir()
    clip(own, "walk", "train", take(2, 60))
    with pytest.raises(UsageError, match="two clips are called walk"):
        label(tmp_path / "labelled", DATA / "teachers", data, clips=[own])
    with pytest.raises(UsageError, match="nowhere: no such folder of clips"):
        label(tmp_path / "labelled", DATA / "teachers", data, clips=[tmp_path / "nowhere"])
