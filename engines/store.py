"""Which engine runs a model here: bundles that were built on this machine, and the bundled one.

`build-engine` writes into the store unless it is told otherwise: the folder `$STREAMPOSE_ENGINES`, by default
`~/.local/share/streampose/engines`, with one bundle a model, target and precision.
"""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path

from streampose.engines import Engine, open_engine
from streampose.engines.manifest import FILE_NAME, Manifest, bundled_names, locate_bundle, read_manifest
from streampose.engines.parity import check, compare, read_reference
from streampose.errors import ModelError, StreamposeError, UsageError

log = logging.getLogger(__name__)

BACKENDS = ("auto", "onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx", "torch-tensorrt")
_RANK = ("tensorrt", "torch-tensorrt", "tensorrt-rtx", "onnxruntime")


def store() -> Path:
    """The folder of the engines that were built here; raises UsageError where none is named and the user has no
    home."""
    chosen = os.environ.get("STREAMPOSE_ENGINES")
    try:
        return Path(chosen) if chosen else Path.home() / ".local" / "share" / "streampose" / "engines"
    except RuntimeError:
        raise UsageError("this user has no home folder; name one for engines in STREAMPOSE_ENGINES") from None


def stored_bundles(name: str) -> list[tuple[Path, Manifest]]:
    """Bundles of a model in the store, the fastest kind first; damaged ones are named in a warning and left out. A
    store that this user cannot have or look into holds none."""
    found = []
    for path in _manifests():
        try:
            manifest = read_manifest(path.parent)
        except ModelError as error:
            log.warning("left out: %s", error)
            continue
        if manifest.kind == "pose" and manifest.name == name:
            found.append((path.parent, manifest))
    return sorted(found, key=lambda bundle: (_RANK.index(bundle[1].target), bundle[1].precision != "int8"))


def _manifests() -> list[Path]:
    """The manifests in the store."""
    try:
        return sorted(store().glob(f"*/{FILE_NAME}"))
    except (OSError, UsageError) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        level = logging.WARNING if os.environ.get("STREAMPOSE_ENGINES") else logging.INFO
        log.log(level, "no engine that was built here can be found (%s)", text)
        return []


def choose_engine(model: str, backend: str = "auto", threads: int = 2) -> Engine:
    """The engine for a model.

    Args:
        model: name of a bundled model or of one in the store; or a bundle's folder, which is taken as it is.
        backend: "auto" takes the first that opens of the model's bundles, see `stored_bundles`, then the bundled one.
            Another one takes that target's only. Bundles for onnxruntime run by its CUDA provider where it is there and
            starts, else on the CPU; "onnxruntime-cuda" runs them by that provider or stops.
        threads: see `load_engine`.

    Raises:
        UsageError: no such backend.
        ModelError: there is no such model, none of its bundles is for that backend, or it cannot run here.
        MissingExtraError: packages are missing that the chosen backend needs.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend is one of {', '.join(BACKENDS)}, not {backend!r}")
    bundles = stored_bundles(model)
    if model in bundled_names() or not bundles:
        folder = locate_bundle(model)
        bundles.append((folder, read_manifest(folder)))
    wanted = _ways(bundles, backend)
    if not wanted:
        there = ", ".join(sorted({manifest.target for _, manifest in bundles}))
        source = f"--checkpoint FILE --out {store() / model}" if backend == "torch-tensorrt" else f"--model {model}"
        raise ModelError(
            f"{model} is not built for {backend} on this machine, only for {there}; build it with: "
            f"streampose build-engine {source} --target {backend}"
        )
    for place, (folder, manifest, on_cuda) in enumerate(wanted):
        where = {True: " (CUDA)", False: " (CPU)"}[on_cuda] if manifest.target == "onnxruntime" else ""
        try:
            engine = open_engine(folder, manifest, threads, on_cuda)
        except StreamposeError as error:
            if place + 1 == len(wanted) or not (backend == "auto" or on_cuda):
                raise
            log.warning("%s cannot run here%s: %s", folder, f" on {manifest.target}{where}" if where else "", error)
            continue
        log.info("%s runs on %s%s in %s, from %s", manifest.name, manifest.target, where, manifest.precision, folder)
        if manifest.target == "onnxruntime" and backend == "auto" and has_nvidia_gpu():
            log.warning(
                "this machine has an NVIDIA GPU; a faster engine: "
                "streampose build-engine --model %s --target tensorrt", model,
            )  # fmt: skip
        return engine
    raise AssertionError("the last bundle opens or raises")


def _ways(bundles: list[tuple[Path, Manifest]], backend: str) -> list[tuple[Path, Manifest, bool]]:
    """Bundles in the order in which they are tried, and whether by ONNX Runtime's CUDA provider."""
    from streampose.engines.onnxruntime_cuda import is_offered

    on_cpu = [(*bundle, False) for bundle in bundles if backend in ("auto", bundle[1].target)]
    wanted = backend == "onnxruntime-cuda" or (backend in ("auto", "onnxruntime") and is_offered())
    on_cuda = [
        (*bundle, True) for bundle in bundles if (bundle[1].target, bundle[1].precision) == ("onnxruntime", "fp32")
    ]
    compiled = sum(bundle[1].target != "onnxruntime" for bundle in on_cpu)
    return [*on_cpu[:compiled], *(on_cuda if wanted else []), *on_cpu[compiled:]]


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver finds a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def verify(folder: Path, manifest: Manifest, on_cuda: bool = False) -> str:
    """Repeat the gate that a bundle passed when it was built, on this machine.

    Args:
        on_cuda: see `open_engine`.

    Returns:
        What was found, in words.

    Raises:
        ModelError: its files are damaged, it cannot run here, or it computes something else.
    """
    files = f"{', '.join(manifest.files)} as built"
    if manifest.kind != "pose":
        return files
    parity = compare(open_engine(folder, manifest, on_cuda=on_cuda), read_reference(folder))
    check(manifest.name, manifest.precision, parity)
    return (
        f"{files}; 99 of 100 joints within {parity['keypoints_p99_px']:.2g} px of torch's, "
        f"heatmaps correlate to 1 - {max(parity['heatmaps_uncorrelated'], 0):.1g}"
    )
