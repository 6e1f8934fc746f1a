"""Figures for what supporting frames are worth, with engines whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [train] extra")

from streampose.engines import Crops, load_engine
from streampose.engines.manifest import Manifest
from streampose.geometry import crop_affine, transform
from streampose.train.augment import spoil
from streampose.train.bootstrap import wilson
from streampose.train.pack import Clip, Person
from streampose.train.video_eval import STRENGTHS, _trembling, corrupted_pck, jitter, speed_pck
from streampose.train.windows import Subject, clip_subjects

BOX = np.array([20, 20, 60, 120], np.float32)
POINTS = np.column_stack([np.linspace(25, 55, 17), np.linspace(25, 115, 17), np.ones(17)]).astype(np.float32)


class Garden:
    moving = False

    def image(self, _index: int = 0) -> np.ndarray:
        return np.random.default_rng(1).integers(90, 160, (140, 80, 3), np.uint8)


@dataclass
class Seer:
    """Knows where the joints are from any crop that is not spoilt; a spoilt key frame alone has it answer nothing."""

    manifest: Manifest
    points: np.ndarray
    clean: float = 20.0
    seen: list[float] = field(default_factory=list)

    def encode(self, crops: Sequence[Crops]) -> list[bool]:
        whole = [float(c.image.astype(float).std()) > self.clean for c in crops]
        self.seen += whole
        return whole

    def fuse(self, windows: Sequence[Sequence[bool]], transforms: np.ndarray) -> np.ndarray:  # noqa: ARG002
        hidden = np.full_like(self.points, 1e4)
        return np.stack([self.points if any(window) else hidden for window in windows])


def test_gain_is_what_five_frames_find_and_the_key_frame_alone_does_not() -> None:
    manifest = load_engine("lite").manifest
    person = Person(BOX, POINTS, np.ones(17, np.bool_), False, False, -1)
    affine = crop_affine(BOX, manifest.input_size)
    in_crop = np.column_stack([transform(POINTS[:, :2], affine), np.ones(17)]).astype(np.float32)
    engine = Seer(manifest, in_crop)
    figures = corrupted_pck(engine, [Subject(Garden(), person)] * 3, None)  # type: ignore[arg-type]
    assert set(figures) == {"clean"} | {f"{kind} {s:g}" for kind, all_s in STRENGTHS.items() for s in all_s}
    clean = figures["clean"]
    assert {name: clean[name] for name in ("five", "single", "gain")} == {"five": 1, "single": 1, "gain": 0}
    assert clean["gain_95"] == (0, 0)
    assert clean["five_95"] == pytest.approx(wilson(3, 3)), "three people do not prove that all are found"
    darkest = figures["dark 0.95"]
    assert (darkest["five"], darkest["single"], darkest["gain"]) == (1, 0, 1)
    assert not set(darkest) & {"teacher", "over_teacher"}


def test_clips_count_trusted_labels_and_draw_tracks_anew() -> None:
    """Of 17 joints of two people on many frames, the label of one is doubtful; two tracks prove little."""
    manifest = load_engine("lite").manifest
    points = POINTS.copy()
    points[3, 2] = 0.2
    people = tuple(Person(BOX, points, np.zeros(17, np.bool_), False, False, track) for track in (1, 2))
    jpeg = cv2.imencode(".jpg", Garden().image())[1].tobytes()
    clip = Clip("garden", 25.0, (jpeg,) * 30, (people,) * 30)
    in_crop = np.column_stack([transform(POINTS[:, :2], crop_affine(BOX, manifest.input_size)), np.ones(17)])
    in_crop[3] = 1e4
    subjects = clip_subjects([clip], manifest.offsets, 10)
    assert len(subjects) == 4
    figures = corrupted_pck(Seer(manifest, in_crop.astype(np.float32)), subjects, None)  # type: ignore[arg-type]
    assert figures["clean"]["five"] == 1, "the doubtful joint does not count"
    assert figures["clean"]["five_95"] == pytest.approx(wilson(2, 2))
    assert figures["dark 0.95"]["gain"] == 1


def test_spoiling_gets_worse_with_its_strength() -> None:
    crop = np.random.default_rng(2).integers(0, 256, (128, 96, 3), np.uint8)
    points = np.full((17, 2), 48, np.float32)
    for kind, strengths in STRENGTHS.items():
        changed = [
            np.abs(spoil(crop, points, kind, strength, np.random.default_rng(3)).astype(float) - crop).mean()
            for strength in strengths
        ]
        assert changed == sorted(changed)
        assert changed[0] > 0.5


class Walk:
    """Ten frames of a person who stands still."""

    people = tuple((Person(BOX, POINTS, np.zeros(17, np.bool_), False, False, 1),) for _ in range(10))

    def image(self, _index: int) -> np.ndarray:
        return np.zeros((140, 80, 3), np.uint8)


def test_jitter_is_the_median_bend_in_box_heights() -> None:
    manifest = load_engine("lite").manifest
    shift = crop_affine(BOX, manifest.input_size)[0, 0]

    class Trembler(Seer):
        def fuse(self, windows: Sequence[Sequence[bool]], transforms: np.ndarray) -> np.ndarray:  # noqa: ARG002
            self.seen.append(0)
            back_and_forth = 0.5 * shift * (-1) ** len(self.seen)
            return np.stack([self.points + np.float32([back_and_forth, 0, 0]), self.points])

        def encode(self, crops: Sequence[Crops]) -> list[bool]:
            return [True] * len(crops)

    figures = jitter(Trembler(manifest, POINTS.copy()), [Walk()], None)  # type: ignore[arg-type, list-item]
    assert figures["five"] == pytest.approx(2.0 / 100, rel=1e-3)
    assert figures["single"] == pytest.approx(0, abs=1e-6)
    assert (figures["joints"], figures["tracks"]) == (8 * 17, 1)
    assert figures["five_95"] == pytest.approx((0.02, 0.02), rel=1e-3)


def test_jitters_interval_is_over_tracks_and_its_ratio_over_the_same_ones() -> None:
    """Twelve people of whom each trembles at a level of its own, always half of the teacher's: the ratio is certain."""
    rng = np.random.default_rng(4)
    five = [(rng.uniform(1, 3) * rng.uniform(0.9, 1.1, 40)).astype(np.float32) for _ in range(12)]
    figures = _trembling({"five": five, "single": [3 * part for part in five], "teacher": [2 * part for part in five]})
    low, high = figures["five_95"]
    assert low < figures["five"] < high
    assert high - low > 0.2 * figures["five"], "twelve people, not 480 independent lengths"
    assert figures["five_per_teacher"] == pytest.approx(0.5)
    assert figures["five_per_teacher_95"] == pytest.approx((0.5, 0.5))
    assert figures["five_per_single_95"] == pytest.approx((1 / 3, 1 / 3))
    assert (figures["joints"], figures["tracks"], figures["calmer_than_teacher"]) == (480, 12, 12)
    restless = [3 * part for part in five[:5]] + five[5:]
    assert _trembling({"five": restless, "teacher": [2 * part for part in five]})["calmer_than_teacher"] == 7


def test_an_answer_that_lags_is_seen_on_the_joints_that_move() -> None:
    """One arm goes to the right by 7 % of the box a frame; five frames answer where it was a frame before."""
    manifest = load_engine("lite").manifest
    jpeg = cv2.imencode(".jpg", Garden().image())[1].tobytes()

    def points(frame: int, lag: float = 0) -> np.ndarray:
        moved = POINTS.copy()
        moved[9, 0] += 7 * (frame - 5 - lag)
        return moved

    people = tuple((Person(BOX, points(f), np.zeros(17, np.bool_), False, False, 1),) for f in range(7))
    affine = crop_affine(BOX, manifest.input_size)

    class Lagging(Seer):
        def fuse(self, windows: Sequence[Sequence[bool]], transforms: np.ndarray) -> np.ndarray:  # noqa: ARG002
            alone = len({id(feature) for feature in windows[0]}) == 1
            answer = points(6, lag=0 if alone else 1)
            return np.column_stack([transform(answer[:, :2], affine), np.ones(17)])[None].astype(np.float32)

        def encode(self, crops: Sequence[Crops]) -> list[object]:  # type: ignore[override]
            return [object() for _ in crops]

    subjects = clip_subjects([Clip("garden", 25.0, (jpeg,) * 7, people)], manifest.offsets, 6)
    assert [subject.index for subject in subjects] == [6]
    figures = speed_pck(Lagging(manifest, POINTS.copy()), subjects)  # type: ignore[arg-type]
    assert set(figures) == {"from 0", "from 0.2"}
    assert (figures["from 0"]["joints"], figures["from 0.2"]["joints"]) == (16, 1)
    assert figures["from 0"]["within 0.05"]["gain"] == 0
    assert figures["from 0.2"]["within 0.1"]["gain"] == 0
    assert figures["from 0.2"]["within 0.05"]["five"] == 0
    assert figures["from 0.2"]["within 0.05"]["gain"] == -1
