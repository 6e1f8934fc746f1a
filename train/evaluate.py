"""`streampose eval`: figures of a model on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streampose.errors import UsageError
from streampose.train.pack_eval import evaluate_pack

DATASETS = ("pack",)


def run_eval(dataset: str, gt: Path, model: str | None, detector: str = "person") -> dict[str, Any]:
    """Figures of a model on a data set.

    Args:
        dataset: "pack", the validation splits of a folder in the pack's layout.
        gt: the folder.
        model: a pose checkpoint (`.pt`), a bundled model's name or a bundle; None leaves pose out.
        detector: "person", a bundle, an ONNX file, or "none" to leave detection out.

    Raises:
        UsageError: no such data set, or the folder is not what it must be.
        ModelError: the model cannot be loaded.
    """
    if dataset not in DATASETS:
        raise UsageError(f"no data set {dataset!r}; this version evaluates: {', '.join(DATASETS)}")
    return evaluate_pack(gt, model, detector)
