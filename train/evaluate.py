"""`streampose eval`: figures of a model, or of predictions, on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streampose.errors import UsageError
from streampose.train.pose_nms import OKS_NMS

DATASETS = ("posetrack", "jhmdb", "coco", "person", "pack", "video", "tracks", "crossings")
POSED = ("posetrack", "jhmdb", "coco")
"""Those whose poses come from predictions or from a network at boxes."""


def run_eval(
    dataset: str,
    gt: Path,
    model: str | None,
    detector: str = "person",
    images: Path | None = None,
    pred: Path | None = None,
    boxes: str = "gt",
    min_height_px: float = 0.0,
    *,
    split: int | None = None,
    flip_test: bool = False,
    input_size: tuple[int, int] | None = None,
    oks_nms: float = OKS_NMS,
    save_pred: Path | None = None,
) -> dict[str, Any]:
    """Figures of a model, or of predictions, on a data set.

    Args:
        dataset: "posetrack": poses and tracks; "jhmdb": poses of Sub-JHMDB; "coco": poses on COCO keypoint labels;
            "person": boxes on COCO labels; "pack": the validation splits of a folder in the pack's layout;
            "video": on those, corrupted key frames, joints by how fast they move, and jitter; "tracks": the pipeline's
            ids on its clips;
            "crossings": ids of walkers put together so that they pass one another.
        gt: the labels' json; for posetrack the folder of them; for jhmdb and pack the data's folder.
        model: a bundled model's name, a bundle or a checkpoint; person: as `detector`; pack: None leaves pose out.
        detector: "person", a bundle or an ONNX file; pack also takes "none" to leave detection out.
        images: folder with the pictures of posetrack, coco and person; None: posetrack looks above `gt`, the others in
            the tars beside the labels.
        pred: predictions instead of a model: posetrack's folder, jhmdb's file, a COCO result file.
        boxes: where a pose network looks: "gt", "detector" or a file in COCO's result format.
        min_height_px: of person: shorter people count neither as found nor as missed.
        split: of jhmdb, 1 to 3; None: 1.
        flip_test, input_size: see `open_model`.
        oks_nms: of two poses with a larger OKS the lower-scored one goes.
        save_pred: folder to write a network's poses to, in the data set's own form.

    Returns:
        See `train.posetrack_eval`, `train.jhmdb_eval`, `evaluate_coco`, `evaluate_person`, `evaluate_pack`,
        `train.video_eval.evaluate_video`, `train.track_eval.evaluate_tracks` and
        `train.crossing_eval.evaluate_crossings`.

    Raises:
        UsageError: no such data set, options that do not go together, or a file is not what it must be.
        ModelError: a model cannot be loaded.
        OutputError: predictions cannot be written.
    """
    if save_pred is not None and any(save_pred.glob("*.json")):
        raise UsageError(f"--save-pred {save_pred} has json files already, labels perhaps; give a new folder")
    if dataset not in DATASETS:
        raise UsageError(f"no data set {dataset!r}; this version evaluates: {', '.join(DATASETS)}")
    if pred is not None and model is not None:
        raise UsageError("--pred and --model exclude each other: figures are of predictions or of a model")
    network_options = {
        "--boxes": (boxes != "gt", POSED),
        "--flip-test": (flip_test, POSED),
        "--input-size": (input_size is not None, POSED),
        "--oks-nms": (oks_nms != OKS_NMS, ("posetrack", "coco")),
        "--save-pred": (save_pred is not None, POSED),
    }
    for option, (used, where) in network_options.items():
        if used and (dataset not in where or pred is not None):
            raise UsageError(f"{option} goes with --dataset {', '.join(where)} and a --model only")
    if min_height_px and dataset != "person":
        raise UsageError("--min-height goes with --dataset person only")
    if split is not None and dataset != "jhmdb":
        raise UsageError("--split goes with --dataset jhmdb only")
    if not 0 < oks_nms <= 1:
        raise UsageError(f"--oks-nms is above 0 and at most 1, not {oks_nms:g}")
    if dataset == "pack":
        return _pack(gt, model, detector, images, pred)
    if dataset in ("video", "tracks", "crossings"):
        return _of_clips(dataset, gt, model, detector, images, pred)
    if dataset == "person":
        from streampose.train.coco_eval import evaluate_person

        return evaluate_person(gt, images, model or detector, pred, min_height_px)
    if pred is not None:
        return _of_predictions(dataset, gt, pred, split or 1)
    if model is None:
        raise UsageError(f"{dataset} needs a --model or predictions: --pred")

    from streampose.train.predict import open_model

    network = open_model(model, flip_test, input_size)
    if dataset == "posetrack":
        from streampose.train.posetrack_eval import evaluate_model

        return evaluate_model(gt, images, network, boxes, detector, oks_nms, save_pred)
    if dataset == "jhmdb":
        from streampose.train.jhmdb_eval import evaluate_split

        return evaluate_split(gt, split or 1, network, boxes, detector, save_pred)

    from streampose.train.coco_eval import evaluate_coco

    return evaluate_coco(gt, images, network, None, boxes, detector, oks_nms, save_pred)


def read_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of a text such as 384x288; raises UsageError where it is none, or no multiple of 32."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) and int(part) % 32 == 0 for part in parts):
        raise UsageError(f"--input-size is HEIGHTxWIDTH in multiples of 32, such as 384x288, not {text}")
    return int(parts[0]), int(parts[1])


def _of_predictions(dataset: str, gt: Path, pred: Path, split: int) -> dict[str, Any]:
    if dataset == "posetrack":
        from streampose.train.posetrack_eval import evaluate_predictions

        return evaluate_predictions(gt, pred)
    if dataset == "jhmdb":
        from streampose.train.jhmdb_eval import evaluate_split_predictions

        return evaluate_split_predictions(gt, split, pred)

    from streampose.train.coco_eval import evaluate_coco

    return evaluate_coco(gt, None, None, pred)


def _pack(gt: Path, model: str | None, detector: str, images: Path | None, pred: Path | None) -> dict[str, Any]:
    if images is not None or pred is not None:
        raise UsageError("--dataset pack takes its pictures from --gt and has models predict: no --images, no --pred")
    if model is None and detector == "none":
        raise UsageError("nothing to measure: give a --model or a --detector")

    from streampose.train.pack_eval import evaluate_pack

    return evaluate_pack(gt, model, detector)


def _of_clips(
    dataset: str, gt: Path, model: str | None, detector: str, images: Path | None, pred: Path | None
) -> dict[str, Any]:
    if images is not None or pred is not None:
        raise UsageError(
            f"--dataset {dataset} takes its pictures from --gt and has a model predict: no --images, --pred"
        )
    if model is None:
        raise UsageError(f"{dataset} needs a --model: a bundled one or a bundle's folder")
    if dataset == "tracks":
        from streampose.train.track_eval import evaluate_tracks

        return evaluate_tracks(gt, model, detector)
    if dataset == "crossings":
        from streampose.train.crossing_eval import evaluate_crossings

        return evaluate_crossings(gt, model, detector)

    from streampose.train.video_eval import evaluate_video

    return evaluate_video(gt, model)
