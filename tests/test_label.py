"""The data engine: what several answers agree on, outliers in time, near-duplicates, trust, and the whole command."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [train] extra")

import torch
from typer.testing import CliRunner

from streampose.cli.commands import app
from streampose.errors import UsageError
from streampose.geometry import crop_affine, transform
from streampose.train import augment
from streampose.train.ensemble import TeacherPose, agree, join_boxes
from streampose.train.label import label
from streampose.train.label_input import find_clips, read_pictures
from streampose.train.label_store import Answers
from streampose.train.label_tracks import smooth_clip, track_people
from streampose.train.losses import blend
from streampose.train.maps import MAP_CROP_SIZE, pack_maps
from streampose.train.pack import Person, read_clips, read_stills
from streampose.train.temporal import smooth_track
from streampose.train.trust import trust_human, trust_teacher
from streampose.train.windows import Subject, WindowSettings, make_window

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_pack = pytest.mark.skipif(not (DATA / "teachers").is_dir(), reason="the data pack is not beside the checkout")


def pose(points: np.ndarray, score: float = 0.8, spread: float = 0.01) -> TeacherPose:
    keypoints = np.column_stack([points, np.full(17, score)]).astype(np.float32)
    return TeacherPose(keypoints, np.full(17, spread, np.float32), np.zeros((17, 64, 64), np.uint8))


def upright(width: float = 40, height: float = 100) -> np.ndarray:
    """17 joints, left ones at the right, no two in one place."""
    side = np.array([0, -0.1, 0.1, -0.2, 0.2, -0.4, 0.4, -0.6, 0.6, -0.8, 0.8, -0.35, 0.35, -0.3, 0.3, -0.25, 0.25])
    rows = np.array([5, 3, 3, 5, 5, 20, 20, 35, 35, 50, 50, 55, 55, 75, 75, 95, 95]) * height / 100
    return np.column_stack([width * (0.5 - side), rows]).astype(np.float32)


def test_answers_near_each_other_are_averaged_and_the_odd_one_lowers_the_score() -> None:
    voices = np.zeros((4, 17, 3), np.float32)
    voices[..., :2], voices[..., 2] = upright(), 0.8
    voices[0, 7, :2] += (2, 0)
    voices[1, 7, :2] -= (2, 0)
    voices[2, 7, :2] += (60, 0)
    voices[3, 8, 2] = 0
    keypoints, spread = agree(voices, 100.0)
    np.testing.assert_allclose(keypoints[:, :2], upright(), atol=1e-4)
    assert keypoints[0, 2] == pytest.approx(0.8)
    assert keypoints[7, 2] == pytest.approx(0.8 * 3 / 4)
    assert keypoints[8, 2] == pytest.approx(0.8)
    assert spread[0] == pytest.approx(0, abs=1e-6)
    assert spread[7] == pytest.approx(np.sqrt((0.02**2 * 2 + 0.6**2) / 4), rel=1e-4)


def test_a_box_that_one_look_alone_found_counts_half() -> None:
    a, b = np.array([[0, 0, 10, 20], [50, 0, 60, 20]], np.float32), np.array([[1, 0, 11, 20]], np.float32)
    boxes, scores = join_boxes(a, np.array([0.9, 0.8], np.float32), b, np.array([0.7], np.float32))
    np.testing.assert_allclose(boxes, [[0.5, 0, 10.5, 20], [50, 0, 60, 20]])
    np.testing.assert_allclose(scores, [0.8, 0.4])


def test_a_jump_is_an_outlier_and_jitter_is_smoothed_but_movement_stays() -> None:
    rng = np.random.default_rng(1)
    frames = np.arange(20)
    moving = np.repeat(upright()[None], 20, axis=0) + np.stack([3 * frames, frames], axis=1)[:, None]
    raw = np.concatenate([moving + rng.normal(0, 1, moving.shape), np.ones((20, 17, 1))], axis=2).astype(np.float32)
    raw[9, 5, 0] += 40
    raw[4, 3, 2] = 0
    smooth, outliers = smooth_track(raw, np.full(20, 100, np.float32))
    assert np.argwhere(outliers).tolist() == [[9, 5]]
    assert smooth[9, 5, 2] == 0
    assert smooth[4, 3, 2] == 0
    seen = smooth[..., 2] > 0
    before, after = (np.linalg.norm(k[..., :2] - moving, axis=2)[seen].mean() for k in (raw, smooth))
    assert after < 0.75 * before
    assert np.median(smooth[seen, 2]) > 0.9


def annotation(points: np.ndarray, **fields: object) -> dict[str, object]:
    labelled = np.column_stack([points, np.full(17, 2)]).ravel().tolist()
    return {"bbox": [0, 0, 40, 100], "keypoints": labelled, "kpt_score": [1] * 17, "source": "teacher"} | fields


def test_a_human_who_exchanged_left_and_right_arms_is_mended() -> None:
    exchanged = upright()
    exchanged[5:11] = exchanged[[6, 5, 8, 7, 10, 9]]
    counts: Counter[str] = Counter()
    new = trust_human(annotation(exchanged, source="human+teacher"), pose(upright()), counts)
    np.testing.assert_allclose(np.reshape(new["keypoints"], (17, 3))[:, :2], upright(), atol=0.01)
    assert counts["people: left and right arms exchanged, mended"] == 1
    assert counts["joints: a human's, contradicted, half weight"] == 0


def test_a_human_is_kept_where_a_sure_teacher_contradicts_with_half_the_weight() -> None:
    human = upright()
    human[9] += (50, 0)
    given = annotation(human, source="human+teacher")
    given["kpt_score"] = [0.5 if joint < 5 else 1 for joint in range(17)]
    counts: Counter[str] = Counter()
    new = trust_human(given, pose(upright()), counts)
    assert new["kpt_score"][9] == 0.5
    assert new["kpt_score"][10] == 1
    assert new["keypoints"][27] == pytest.approx(float(human[9, 0]))
    assert new["human"] == [False] * 5 + [True] * 12
    assert counts["joints: a human's, contradicted, half weight"] == 1


def test_a_teacher_that_does_not_agree_with_itself_is_not_learnt_from() -> None:
    counts: Counter[str] = Counter()
    sure = trust_teacher(annotation(upright()), pose(upright()), counts)
    split = trust_teacher(annotation(upright(), lr_swap_suspect=True), pose(upright(), spread=0.2), counts)
    few = trust_teacher(annotation(upright()), pose(upright(), score=0.1), counts)
    assert "suspect" not in sure
    assert min(sure["kpt_score"]) > 0.75
    assert split["suspect_why"] == ["left and right in doubt"]
    assert few["suspect_why"] == ["few joints"]
    assert counts["people: kept"] == 1


def test_tracks_are_found_and_short_ones_are_no_people() -> None:
    people = []
    for frame in range(8):
        people.append(annotation(upright() + np.float32([2 * frame, 0]), image_id=frame))
        people[-1]["bbox"] = [2 * frame, 0, 40, 100]
    passer = annotation(upright() + np.float32([300, 0]), image_id=3)
    passer["bbox"] = [300, 0, 40, 100]
    labels = {"images": [{"id": frame} for frame in range(8)], "annotations": [*people, passer]}
    counts: Counter[str] = Counter()
    track_people(labels, counts)
    smooth_clip(labels, counts)
    assert {person["track_id"] for person in people} == {0}
    assert passer["iscrowd"] == 1
    assert counts["people: short track"] == 1


def test_answers_outlive_a_run_that_is_cut_off(tmp_path: Path) -> None:
    asked = []

    def ask() -> TeacherPose:
        asked.append(1)
        return pose(upright())

    with Answers(tmp_path / "answers.tsv", "passes=2") as answers:
        answers.get("a", ask)
        answers.get("b", ask)
    whole = (tmp_path / "answers.tsv").read_bytes()
    (tmp_path / "answers.tsv").write_bytes(whole[:-30])
    with Answers(tmp_path / "answers.tsv", "passes=2") as answers:
        known = answers.get("a", ask)
        assert len(asked) == 2
        answers.get("b", ask)
        assert len(asked) == 3
    np.testing.assert_allclose(known.keypoints, pose(upright()).keypoints, atol=1e-3)
    assert (tmp_path / "answers.tsv").read_bytes() == whole
    with pytest.raises(UsageError, match="other settings"):
        Answers(tmp_path / "answers.tsv", "passes=4")


class Plain:
    moving = False

    def image(self, _index: int = 0) -> np.ndarray:
        return np.random.default_rng(3).integers(0, 256, (120, 80, 3), np.uint8)


def test_the_teachers_maps_follow_the_crop() -> None:
    """Maps with one cell at each joint come out, in whatever crop, where the joints are."""
    box = np.array([0, 0, 40, 100], np.float32) + 10
    points = upright() + 10
    cells = transform(points, crop_affine(box, MAP_CROP_SIZE)) / 4
    maps = np.zeros((17, 64, 64), np.uint8)
    for joint, (x, y) in enumerate(cells):
        maps[joint, int(y), int(x)] = 255
    keypoints = np.column_stack([points, np.ones(17)]).astype(np.float32)
    person = Person(box, keypoints, np.ones(17, np.bool_), False, False, -1, pack_maps(maps))
    for seed in range(20):
        settings = WindowSettings((128, 96), maps=1, half_body=0)
        sample = make_window(Subject(Plain(), person), settings, np.random.default_rng(seed))
        found = sample["maps"]
        assert found.shape == (17, 32, 24)
        sums = found.sum(axis=(1, 2))
        rows, columns = np.indices(found.shape[1:]) + 0.5
        for joint in np.flatnonzero(sums > 0.9):
            middle = [(found[joint] * axis).sum() / sums[joint] * 4 for axis in (columns, rows)]
            assert np.linalg.norm(middle - sample["points"][joint]) < 6
        assert (sums > 0.9).sum() > 8


def test_distillation_mixes_only_what_both_know() -> None:
    labels, teacher = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    labels[0, :2, 0, 0] = 1
    teacher[0, 0, 1, 1] = 1
    teacher[0, 2, 1, 1] = 1
    mixed = blend(labels, teacher, 0.25)
    assert mixed[0, 0].flatten().tolist() == [0.75, 0, 0, 0.25]
    assert torch.equal(mixed[0, 1:], labels[0, 1:])


def test_degrading_is_the_same_in_all_frames_and_pasting_stays_near_the_person() -> None:
    rng = np.random.default_rng(5)
    picture = cv2.resize(rng.integers(0, 256, (16, 12, 3), np.uint8), (96, 128), interpolation=cv2.INTER_CUBIC)
    for seed in range(12):
        crops = [picture.copy(), picture.copy()]
        augment.degrade(crops, np.random.default_rng(seed))
        assert np.abs(crops[0].astype(int) - picture).mean() > 1
        assert np.abs(crops[0].astype(int) - crops[1]).mean() < 12
    crops = [np.zeros_like(picture)] * 2
    points = np.full((17, 2), 48, np.float32)
    augment.paste(crops, points, np.full_like(picture, 255), rng)
    covered = crops[0][..., 0] > 0
    assert 0.05 < covered.mean() < 0.6
    assert np.array_equal(crops[0], crops[1])


@needs_pack
def test_a_folder_of_pictures_becomes_a_pack_that_training_reads(tmp_path: Path) -> None:
    pictures = tmp_path / "street"
    pictures.mkdir()
    with tarfile.open(DATA / "stills" / "ccp_00.tar") as tar:
        for member in tar.getmembers()[:3]:
            content = tar.extractfile(member)
            assert content is not None
            (pictures / Path(member.name).name).write_bytes(content.read())
    (pictures / "copy.jpg").write_bytes((pictures / "0001.jpg").read_bytes())
    arguments = ["label", "--teachers", str(DATA / "teachers"), "--pictures", str(pictures), "--out"]
    run = CliRunner().invoke(app, [*arguments, str(tmp_path / "pack"), "--json"])
    assert run.exit_code == 0, run.output
    assert "is for validation, which training needs: that takes a set of over 60 pictures, or ten clips" in run.stderr
    report = json.loads(run.stdout)["street"]
    assert report["pictures: kept"] == 3
    assert report["pictures: near-duplicate of another training picture"] == 1
    stills = read_stills(tmp_path / "pack", "train", ["street"])
    people = [person for still in stills for person in still.people if not person.ignore]
    assert len(people) >= 3
    assert all(person.maps and (person.keypoints[:, 2] > 0.3).sum() > 8 for person in people[:1])
    window = make_window(
        Subject(stills[0], people[0]), WindowSettings((128, 96), rotation_deg=0, maps=1), np.random.default_rng(0)
    )
    peaks = window["maps"].reshape(17, -1).argmax(axis=1)
    cells = np.stack([peaks % 24 + 0.5, peaks // 24 + 0.5], axis=1) * 4
    sure = window["weights"] > 0.5
    assert np.median(np.linalg.norm(cells - window["points"], axis=1)[sure]) < 6
    with pytest.raises(UsageError, match="is finished"):
        label(tmp_path / "pack", DATA / "teachers", pictures=[pictures])
    measure = [
        "eval",
        "--dataset",
        "coco",
        "--gt",
        str(tmp_path / "pack" / "stills" / "street.json"),
        "--model",
        "lite",
    ]
    run = CliRunner().invoke(app, [*measure, "--boxes", "gt", "--json"])
    assert run.exit_code == 0, run.output


@needs_pack
@pytest.mark.slow
def test_a_clip_without_labels_gets_tracks(tmp_path: Path) -> None:
    clips = tmp_path / "clips-in"
    clips.mkdir()
    (clips / "walk.mp4").write_bytes((DATA / "clips" / "asl_eat.mp4").read_bytes())
    run = CliRunner().invoke(
        app,
        ["label", "--teachers", str(DATA / "teachers"), "--clips", str(clips), "--out", str(tmp_path / "pack")],
    )
    assert run.exit_code == 0, run.output
    (clip,) = read_clips(tmp_path / "pack", "train")
    tracked = [person for people in clip.people for person in people if person.track_id == 0]
    assert len(tracked) > 0.9 * len(clip.people)
    assert all(person.maps for person in tracked)


def test_nothing_to_label_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give --data, --pictures or --clips"):
        label(tmp_path / "out", tmp_path)


@pytest.mark.parametrize("inside", [".", "new/pack"])
def test_a_pack_is_not_written_into_what_it_is_made_of(tmp_path: Path, inside: str) -> None:
    for name in ("data", "pictures", "clips"):
        folder = tmp_path / name
        folder.mkdir()
        given = {name: folder if name == "data" else [folder]}
        with pytest.raises(UsageError, match="choose an --out elsewhere"):
            label(folder / inside, tmp_path, **given)  # type: ignore[arg-type]
        assert not list(folder.iterdir())


def test_a_missing_folder_of_pictures_is_called_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nope: no such folder"):
        read_pictures(tmp_path / "nope")


def test_files_that_cannot_be_decoded_are_named_counted_and_left_out(
    tmp_path: Path, make_video: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    street, gym = tmp_path / "street", tmp_path / "gym"
    street.mkdir()
    gym.mkdir()
    cv2.imwrite(str(street / "good.png"), np.zeros((40, 30, 3), np.uint8))
    (street / "junk.jpg").write_bytes(b"no picture")
    (street / "empty.jpg").write_bytes(b"")
    make_video("gym/good.mp4", frames=2)
    (gym / "junk.mp4").write_bytes(b"no clip")
    found = read_pictures(street)
    assert (list(found.files), found.broken) == (["street/good.png"], 2)
    clips, broken = find_clips(gym)
    assert ([clip.name for clip in clips], broken) == (["good"], 1)
    for place in (street / "junk.jpg", street / "empty.jpg", gym / "junk.mp4"):
        assert f"{place} is left out" in caplog.text
    (street / "good.png").unlink()
    (gym / "good.mp4").unlink()
    with pytest.raises(UsageError, match="street holds no picture that can be decoded"):
        read_pictures(street)
    with pytest.raises(UsageError, match="gym holds no clip that can be decoded"):
        find_clips(gym)
    with pytest.raises(UsageError, match="no such folder of clips"):
        find_clips(gym / "junk.mp4")
