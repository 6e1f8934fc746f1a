"""Figures of tracking on made-up clips whose right answers are known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [train] extra")
pytest.importorskip("motmetrics", reason="needs the [train] extra")

import motmetrics

from streampose.train.pack import Person
from streampose.train.track_eval import accumulate, summarise_tracks
from streampose.types import Pose, PoseFrame

TALL, SHORT = 100.0, 40.0


def box(x: float, height: float = TALL) -> np.ndarray:
    return np.array([x, 10, x + 40, 10 + height], np.float32)


def labelled(x: float, track: int, height: float = TALL, ignore: bool = False) -> Person:
    return Person(box(x, height), np.zeros((17, 3), np.float32), np.zeros(17, np.bool_), False, ignore, track)


def frame(index: int, people: list[tuple[int, np.ndarray]]) -> PoseFrame:
    poses = [Pose(track, b, 0.9, np.zeros((17, 3), np.float32)) for track, b in people]
    return PoseFrame(
        source="clip", epoch=0, frame_index=index, pts_s=index / 30, captured_ns=0, published_ns=0,
        width=640, height=480, skeleton="coco17", dropped=0, people=tuple(poses),
    )  # fmt: skip


def figures(labels: list[list[Person]], frames: list[PoseFrame]) -> dict[str, float]:
    table = motmetrics.metrics.create().compute(
        accumulate(labels, frames), metrics=["idf1", "mota", "num_switches"], name="clip"
    )
    return {str(key): float(value) for key, value in table.iloc[0].items()}


def test_the_same_people_under_other_ids_are_right() -> None:
    labels = [[labelled(10 + i, 1), labelled(200 - i, 2)] for i in range(10)]
    frames = [frame(i, [(7, box(200 - i)), (9, box(12 + i))]) for i in range(10)]
    assert figures(labels, frames) == {"idf1": 1, "mota": 1, "num_switches": 0}


def test_ids_that_change_places_cost_and_are_counted() -> None:
    labels = [[labelled(10, 1), labelled(200, 2)] for _ in range(10)]
    frames = [frame(i, [(1 if i < 5 else 2, box(10)), (2 if i < 5 else 1, box(200))]) for i in range(10)]
    found = figures(labels, frames)
    assert found["num_switches"] == 2
    assert found["idf1"] == pytest.approx(0.5)
    assert found["mota"] == pytest.approx(1 - 2 / 20)


def test_ignored_regions_and_short_people_count_neither_way() -> None:
    labels = [[labelled(10, 1), labelled(200, -1, ignore=True), labelled(300, 3, SHORT)] for _ in range(6)]
    frames = [frame(i, [(1, box(10)), (2, box(205)), (3, box(300, SHORT)), (4, box(400, SHORT))]) for i in range(6)]
    assert figures(labels, frames) == {"idf1": 1, "mota": 1, "num_switches": 0}


def test_somebody_who_is_not_there_costs() -> None:
    labels = [[labelled(10, 1)] for _ in range(6)]
    frames = [frame(i, [(1, box(10)), (2, box(400))]) for i in range(6)]
    assert figures(labels, frames)["mota"] == pytest.approx(0)


def test_intervals_are_over_clips() -> None:
    """Two clips: one right, one in which nobody is found. Drawn anew, a pair of clips is both, or one of them twice."""
    labels = [[labelled(10, 1)] for _ in range(6)]
    right = accumulate(labels, [frame(i, [(1, box(10))]) for i in range(6)])
    empty = accumulate(labels, [frame(i, []) for i in range(6)])
    found = summarise_tracks(["right", "empty"], [right, empty])
    assert (found["all"]["mota"], found["all"]["mota_95"]) == (0.5, (0, 1))
    assert found["all"]["idf1"] == pytest.approx(2 / 3)
    assert found["all"]["idf1_95"] == (0, 1)
    assert [found["clips"][name]["mota"] for name in ("right", "empty")] == [1, 0]
    alike = summarise_tracks(["a", "b"], [right, right])
    assert alike["all"]["idf1_95"] == (1, 1)
