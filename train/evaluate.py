"""`streampose eval`: figures of a model on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streampose.errors import UsageError

DATASETS = ("posetrack", "coco", "person", "pack")
NOT_YET = ("jhmdb",)


def run_eval(
    dataset: str,
    gt: Path,
    model: str | None,
    detector: str = "person",
    images: Path | None = None,
    pred: Path | None = None,
    boxes: str = "gt",
    min_height_px: float = 0.0,
) -> dict[str, Any]:
    """Figures of a model on a data set.

    Args:
        dataset: "coco": poses on COCO keypoint labels; "person": boxes on COCO labels; "pack": the validation splits of
            a folder in the pack's layout.
        gt: the labels' json; for pack the folder.
        model: coco: a bundled model's name or a bundle; person: as `detector`; pack: a pose checkpoint (`.pt`) or a
            bundle, None leaves pose out.
        detector: "person", a bundle or an ONNX file; pack also takes "none" to leave detection out.
        images: folder with the pictures of coco and person; None: they are in the tars beside the labels.
        pred: predictions in COCO's result format, instead of a model.
        boxes: of coco: "gt", "detector" or a COCO result file.
        min_height_px: of person: shorter people count neither as found nor as missed.

    Returns:
        See `evaluate_coco`, `evaluate_person` and `evaluate_pack`.

    Raises:
        UsageError: no such data set, options that do not go together, or a file is not what it must be.
        ModelError: a model cannot be loaded.
    """
    if dataset in NOT_YET:
        raise UsageError(f"{dataset} cannot be evaluated yet; this version evaluates: {', '.join(DATASETS)}")
    if dataset not in DATASETS:
        raise UsageError(f"no data set {dataset!r}; this version evaluates: {', '.join(DATASETS)}")
    if pred is not None and model is not None:
        raise UsageError("--pred and --model exclude each other: figures are of predictions or of a model")
    if boxes != "gt" and (dataset != "coco" or pred is not None):
        raise UsageError("--boxes goes with --dataset coco and a --model only")
    if min_height_px and dataset != "person":
        raise UsageError("--min-height goes with --dataset person only")
    if dataset == "posetrack":
        return _posetrack(gt, model, images, pred)
    if dataset == "pack":
        return _pack(gt, model, detector, images, pred)

    from streampose.train.coco_eval import evaluate_coco, evaluate_person

    if dataset == "person":
        return evaluate_person(gt, images, model or detector, pred, min_height_px)
    if model is not None and model.endswith(".pt"):
        raise UsageError(f"coco runs bundles; make one: streampose build-engine --checkpoint {model} --out BUNDLE")
    return evaluate_coco(gt, images, model, pred, boxes, detector)


def _posetrack(gt: Path, model: str | None, images: Path | None, pred: Path | None) -> dict[str, Any]:
    if pred is None:
        raise UsageError("posetrack needs predictions: --pred")

    from streampose.train.posetrack_eval import evaluate_predictions

    return evaluate_predictions(gt, pred)


def _pack(gt: Path, model: str | None, detector: str, images: Path | None, pred: Path | None) -> dict[str, Any]:
    if images is not None or pred is not None:
        raise UsageError("--dataset pack takes its pictures from --gt and has models predict: no --images, no --pred")
    if model is None and detector == "none":
        raise UsageError("nothing to measure: give a --model or a --detector")

    from streampose.train.pack_eval import evaluate_pack

    return evaluate_pack(gt, model, detector)
