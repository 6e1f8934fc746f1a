"""Figures as tables, and `streampose eval` as a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch", reason="needs the [train] extra")

from streampose.cli.commands import app
from streampose.errors import OutputError
from streampose.train import evaluate
from streampose.train.posetrack_score import EVALUATED
from streampose.train.tables import Table, tables_of, write_markdown

AP = {name: float(place) for place, name in enumerate(EVALUATED)}
MOTA = [float(-place) for place in range(15)] + [-7.0]
POSETRACK = {
    "ap": {**AP, "nose": None},
    "ap_total": 6.5,
    "precision": AP,
    "recall": AP,
    "mota": {"mota": MOTA, "motp": MOTA, "pre": MOTA, "rec": [None] * 16},
}
PCK = {"head": 99.0, "shoulder": 98.0, "elbow": 97.0, "mean": 98.04, "mean_15": None}


def test_columns_stand_under_each_other() -> None:
    table = Table("title", ("name", "a"), (("left", "1.5"), ("b", "100.0")))
    assert list(table.lines()) == ["title", "name      a", "left    1.5", "b     100.0"]
    assert list(table.markdown()) == ["**title**", "", "| name | a |", "|---|---:|", "| left | 1.5 |", "| b | 100.0 |"]


def test_posetracks_tables() -> None:
    """The benchmark's groups of joints, those without a figure left out; then joint by joint."""
    summary, joints = tables_of("posetrack", {"boxes": "gt", **POSETRACK})
    assert summary.title == "PoseTrack, percent, boxes: gt"
    assert summary.columns == ("", "head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "mean")
    assert summary.rows[0] == ("AP", "13.0", "8.5", "8.5", "8.5", "2.5", "2.5", "2.5", "6.5")  # head_top 14, neck 12
    assert summary.rows[1] == ("MOTA", "-13.0", "-8.5", "-8.5", "-8.5", "-2.5", "-2.5", "-2.5", "-7.0")
    assert joints.columns[:5] == ("joint", "AP", "precision", "recall", "MOTA")
    assert joints.rows[13] == ("nose", "-", "13.0", "13.0", "-13.0", "-13.0", "-13.0", "-")
    assert joints.rows[15] == ("mean", "6.5", "7.0", "7.0", "-7.0", "-7.0", "-7.0", "-")
    assert tables_of("posetrack", POSETRACK)[0].title == "PoseTrack, percent"


def test_jhmdbs_table() -> None:
    figures = {"split": 2, "frames": 9, "boxes": "gt", "pck_person": PCK, "pck_torso": {**PCK, "head": 90.0}}
    (table,) = tables_of("jhmdb", figures)
    assert table.title == "Sub-JHMDB, split 2, 9 frames, PCK@0.2 in percent, boxes: gt"
    assert table.rows == (
        ("person", "99.0", "98.0", "97.0", "98.0", "-"),
        ("torso", "90.0", "98.0", "97.0", "98.0", "-"),
    )


def test_other_figures() -> None:
    figures = {"people": 3, "ap": 0.25, "interval": {"low": 0.1}, "pck01_by_joint": {"nose": 1.0}}
    scalars, joints = tables_of("coco", figures)
    assert scalars.rows == (("people", "3"), ("ap", "0.2500"), ("interval.low", "0.1000"))
    assert joints.rows == (("nose", "1.0000"),)
    assert len(tables_of("person", {"ap50": 0.5})) == 1


def test_an_interval_stands_behind_its_figure() -> None:
    (table,) = tables_of("pack", {"pose": {"five": 0.7, "five_95": (0.65, 0.75), "people": 3}, "lone_95": 1})
    assert table.rows == (("pose.five", "0.7000 (0.6500 to 0.7500)"), ("pose.people", "3"), ("lone_95", "1"))


def test_markdown_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_markdown(tmp_path / "none" / "t.md", [])


def test_the_command_shows_tables_json_and_markdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def run_eval(*arguments: object, **options: object) -> dict[str, object]:
        calls.append((arguments, options))
        return POSETRACK

    monkeypatch.setattr(evaluate, "run_eval", run_eval)
    command = ["eval", "--dataset", "posetrack", "--gt", "labels", "--model", "a.pt", "--flip-test"]
    command += ["--input-size", "384x288", "--oks-nms", "0.8", "--save-pred", "out"]
    shown = CliRunner().invoke(app, [*command, "--markdown", str(tmp_path / "t.md")], catch_exceptions=False)
    assert shown.exit_code == 0
    assert shown.stdout.startswith("PoseTrack, percent\n")
    assert "\n\nby joint\njoint" in shown.stdout
    assert (tmp_path / "t.md").read_text().count("|---") > 2
    arguments, options = calls[0]
    assert arguments == ("posetrack", Path("labels"), "a.pt", "person", None, None, "gt", 0)
    assert options == {
        "split": None, "flip_test": True, "input_size": (384, 288), "oks_nms": 0.8, "save_pred": Path("out"),
    }  # fmt: skip
    shown = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    assert json.loads(shown.stdout) == POSETRACK
    assert shown.stdout.count("\n") == 1


@pytest.mark.parametrize("text", ["384", "384x", "384x290", "0x32", "axb", "-32x32", "32x32x32"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(evaluate.UsageError, match="--input-size is HEIGHTxWIDTH in multiples of 32"):
        evaluate.read_size(text)
    assert evaluate.read_size(None) is None
