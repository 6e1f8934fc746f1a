"""Figures as tables, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streampose.errors import OutputError
from streampose.train.posetrack_score import EVALUATED

POSETRACK_GROUPS: Mapping[str, tuple[str, ...]] = {
    "head": ("head_top", "neck", "nose"),
    "shoulder": ("right_shoulder", "left_shoulder"),
    "elbow": ("right_elbow", "left_elbow"),
    "wrist": ("right_wrist", "left_wrist"),
    "hip": ("right_hip", "left_hip"),
    "knee": ("right_knee", "left_knee"),
    "ankle": ("right_ankle", "left_ankle"),
}
"""The columns of the benchmark's tables: the mean of these joints each (poseval, `getCum`)."""


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; the first column names the rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def lines(self) -> Iterator[str]:
        """For a terminal: columns side by side, all but the first to the right."""
        cells = [self.columns, *self.rows]
        widths = [max(len(row[place]) for row in cells) for place in range(len(self.columns))]
        yield self.title
        for row in cells:
            first, *rest = row
            numbers = "".join(f"  {cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
            yield f"{first:<{widths[0]}}{numbers}".rstrip()

    def markdown(self) -> Iterator[str]:
        """A pipe table under its title."""
        yield from (f"**{self.title}**", "", _piped(self.columns))
        yield "|---" + "|---:" * (len(self.columns) - 1) + "|"
        yield from (_piped(row) for row in self.rows)


def tables_of(dataset: str, figures: Mapping[str, Any]) -> list[Table]:
    """The tables of what `run_eval` gave for a data set."""
    if dataset == "posetrack":
        return _posetrack(figures)
    if dataset == "jhmdb":
        return _jhmdb(figures)
    joints = figures.get("pck01_by_joint", {})
    rest = {name: value for name, value in figures.items() if name != "pck01_by_joint"}
    tables = [Table(dataset, ("figure", "value"), tuple(_flat(rest)))]
    if joints:
        tables.append(Table("PCK@0.1 by joint", ("joint", "pck01"), tuple((n, f"{v:.4f}") for n, v in joints.items())))
    return tables


def write_markdown(path: Path, tables: Sequence[Table]) -> None:
    """Write tables to a file, which is replaced.

    Raises:
        OutputError: it cannot be written.
    """
    text = "\n\n".join("\n".join(table.markdown()) for table in tables) + "\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _posetrack(figures: Mapping[str, Any]) -> list[Table]:
    where = f", boxes: {figures['boxes']}" if "boxes" in figures else ""
    mot = figures["mota"]
    mota = dict(zip(EVALUATED, mot["mota"], strict=False))
    groups = (("AP", figures["ap"], figures["ap_total"]), ("MOTA", mota, mot["mota"][-1]))
    summary = Table(
        f"PoseTrack, percent{where}",
        ("", *POSETRACK_GROUPS, "mean"),
        tuple(
            (
                name,
                *(_mean([values[joint] for joint in joints]) for joints in POSETRACK_GROUPS.values()),
                _percent(total),
            )
            for name, values, total in groups
        ),
    )
    tracked = (mot["mota"], mot["motp"], mot["pre"], mot["rec"])
    rows = [
        (name, *(_percent(figures[key][name]) for key in ("ap", "precision", "recall")), *map(_percent, row))
        for name, *row in zip(EVALUATED, *(values[:-1] for values in tracked), strict=True)
    ]
    rows.append(
        (
            "mean",
            _percent(figures["ap_total"]),
            *(_mean(list(figures[key].values())) for key in ("precision", "recall")),
            *(_percent(values[-1]) for values in tracked),
        )
    )
    columns = ("joint", "AP", "precision", "recall", "MOTA", "MOTP", "MOT precision", "MOT recall")
    return [summary, Table("by joint", columns, tuple(rows))]


def _jhmdb(figures: Mapping[str, Any]) -> list[Table]:
    kinds = {"pck_person": "person", "pck_torso": "torso"}
    columns = tuple(figures["pck_person"])
    rows = tuple((name, *(_percent(figures[key][column]) for column in columns)) for key, name in kinds.items())
    title = f"Sub-JHMDB, split {figures['split']}, {figures['frames']} frames, PCK@0.2 in percent, boxes: "
    return [Table(title + figures["boxes"], ("normalised by", *columns), rows)]


def _flat(figures: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Names and values; a figure's 95 % interval, "NAME_95", stands behind it."""
    for name, value in figures.items():
        where = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            yield from _flat(value, where)
        elif name.removesuffix("_95") == name or name.removesuffix("_95") not in figures:
            ends = figures.get(f"{name}_95")
            yield where, _number(value) + (f" ({_number(ends[0])} to {_number(ends[1])})" if ends else "")


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _percent(sum(known) / len(known) if known else None)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
