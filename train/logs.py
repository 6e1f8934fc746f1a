"""What a run leaves to look at: a CSV, TensorBoard's events, a plot of the curves, sheets of predictions."""

from __future__ import annotations

import csv
import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from streampose.errors import OutputError

log = logging.getLogger(__name__)

PANELS = (("losses", ("loss",)), ("validation", ("val",)), ("learning rate", ("lr",)), ("samples/s", ("speed",)))


class RunLog:
    """The logs of a stage in its folder: `log.csv` (step, group, name, value), `tensorboard/`, `curves.png`, `sheets/`.

    Groups are "loss" (each term by its name, and their weighted sum), "val", "lr" and "speed". A resumed run drops the
    rows after its checkpoint, since it makes them again.

    Raises:
        OutputError: a file cannot be written.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder = folder
        self._rows = _rows_until(folder / "log.csv", first_step) if first_step else []
        self._file = (folder / "log.csv").open("w", newline="")
        self._csv = csv.writer(self._file)
        self._csv.writerow(("step", "group", "name", "value"))
        self._csv.writerows(self._rows)
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step or None)

    def write(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """One row a value."""
        try:
            for name, value in values.items():
                row = (str(step), group, name, f"{value:.6g}")
                self._rows.append(row)
                self._csv.writerow(row)
                self._events.add_scalar(f"{group}/{name}", value, step)
            self._file.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self.folder / 'log.csv'}: {error.strerror}") from error
        log.info("step %d  %s  %s", step, group, "  ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def show(self, step: int, sheet: NDArray[np.uint8] | None) -> None:
        """Draw the curves anew, and keep a sheet (H, W, 3) BGR of predictions, if there is one."""
        try:
            draw_curves(self._rows, self.folder / "curves.png")
            if sheet is not None:
                sheets = self.folder / "sheets"
                sheets.mkdir(exist_ok=True)
                (sheets / f"step-{step:07d}.jpg").write_bytes(cv2.imencode(".jpg", sheet)[1].tobytes())
                self._events.add_image("predictions", sheet[..., ::-1].copy(), step, dataformats="HWC")
        except OSError as error:
            raise OutputError(f"cannot write under {self.folder}: {error.strerror}") from error

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._events.close()


def _rows_until(path: Path, step: int) -> list[tuple[str, ...]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [tuple(row) for row in csv.reader(file) if len(row) == 4 and row[0].isdigit() and int(row[0]) <= step]


def draw_curves(rows: list[tuple[str, ...]], path: Path) -> None:
    """A PNG of the logged values against the step, one panel a group."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, tuple[list[int], list[float]]]] = defaultdict(lambda: defaultdict(lambda: ([], [])))
    for step, group, name, value in rows:
        curves[group][name][0].append(int(step))
        curves[group][name][1].append(float(value))
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (title, groups) in enumerate(PANELS):
        axes = figure.add_subplot(2, 2, index + 1)
        for group in groups:
            for name, (steps, values) in curves[group].items():
                axes.plot(steps, values, label=name, marker="o" if len(steps) < 10 else None)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=90)
