"""The figures that docs/models.md promises, on the validation pictures and clips, with the bundled models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [train] extra")
pytest.importorskip("motmetrics", reason="needs the [train] extra")

from streampose.train.crossing_eval import evaluate_crossings
from streampose.train.pack_eval import evaluate_pack
from streampose.train.track_eval import evaluate_tracks

DATA = Path(__file__).parents[2] / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the training pack is not at {DATA}"),
]


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return evaluate_pack(DATA, "lite", "person")


def test_pose_finds_two_of_three_human_labelled_joints(figures: dict[str, Any]) -> None:
    assert figures["pose"]["people"] > 400
    assert figures["pose"]["five_clean"] >= 0.67


def test_the_teacher_is_as_good_as_the_pack_says(figures: dict[str, Any]) -> None:
    """A wrong evaluation would show here: the pack's makers measured 0.72 to 0.74 on other pictures of the same set."""
    assert 0.68 <= figures["pose"]["thunder_clean"] <= 0.82


def test_the_detector_finds_people_80_px_tall(figures: dict[str, Any]) -> None:
    found = figures["person"]["from_80_px"]["all"]
    assert found["people"] > 800
    assert found["recall"] >= 0.85
    assert found["precision"] >= 0.85
    assert figures["person"]["nothing_found_without_people"] >= 0.95


def test_ids_are_kept_on_the_clips_of_several_people() -> None:
    figures = evaluate_tracks(DATA)
    assert figures["all"]["num_objects"] > 700
    assert figures["all"]["idf1"] >= 0.70
    assert figures["all"]["mota"] >= 0.55
    assert figures["all"]["num_switches"] <= 9


def test_ids_are_kept_where_people_pass_or_turn_back() -> None:
    """The whole pipeline on two sequences of each kind; the tracker alone is held to more in test_crossings."""
    found = evaluate_crossings(DATA, pairs=(1, 2))["pipeline"]
    assert found["sequences"] == 8
    assert found["all"]["idf1"] >= 0.80
    assert found["kinds"]["turning back"]["idf1"] >= 0.75
