"""PoseTrack figures of prediction files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streampose.errors import UsageError
from streampose.train.posetrack_labels import PosetrackSequence, read_sequence, read_sequences
from streampose.train.posetrack_score import score_posetrack


def evaluate_predictions(gt: Path, pred: Path) -> dict[str, Any]:
    """Figures of a folder of predictions, in percent; None where one is not defined.

    Args:
        gt: folder of labels, one `*.json` a sequence, in the form of 2017, 2018 or 2021.
        pred: folder with a prediction file of the same name for each; others in it are not looked at.

    Returns:
        `ap`, `precision` and `recall` by joint, `ap_total`, and `mota` with four lists (`mota`, `motp`, `pre`, `rec`):
        the joints in the same order, then their mean.

    Raises:
        UsageError: a file is missing or not what it must be.
    """
    truth = read_sequences(gt)
    if not pred.is_dir():
        raise UsageError(f"{pred} is not a folder; PoseTrack's predictions are a folder of *.json, named as the labels")
    return score_posetrack(truth, [_prediction(sequence, pred) for sequence in truth]).as_json()


def _prediction(sequence: PosetrackSequence, folder: Path) -> PosetrackSequence:
    path = folder / sequence.path.name
    if not path.is_file():
        raise UsageError(f"{path} is missing; every sequence of {sequence.path.parent} needs its predictions")
    return read_sequence(path)
