"""What an engine bundle says of itself, and the check that its files are the ones it was written with."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec

from streampose.errors import ModelError

SCHEMAS = {"pose": 2, "person-detector": 1}
"""Version of the format, by what the bundle is. 2: a fuser takes transforms to the person and to the picture."""
CHECKPOINTS = (".pt", ".pth", ".safetensors")
"""What files of weights for torch are called."""
FILE_NAME = "manifest.json"
GRAPHS = {"pose": ("encoder.onnx", "fuser.onnx"), "person-detector": ("detector.onnx",)}
"""The graphs that each kind of bundle consists of, for ONNX Runtime; other targets have `graph_files`."""
TARGETS = ("onnxruntime", "tensorrt", "tensorrt-rtx", "torch-tensorrt")
PRECISIONS = ("fp32", "fp16", "int8")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`manifest.json` of a bundle.

    Attributes:
        schema: version of this format.
        kind: what the bundle is.
        name: of the model.
        target: what runs it.
        precision: of weights and arithmetic.
        input_size: (height, width) of a crop, or of the detector's letterboxed picture, in pixels.
        input_format: what goes in; normalisation is part of the graph.
        files: sha256 of each file of the bundle.
        versions: of everything that built it.
        parity: figures of the comparison with torch on real pictures.
        skeleton: name of the joint set (pose).
        offsets: supporting frames relative to the key frame (pose).
        score_threshold: lowest score that counts (detector).
        gpu_architecture: "sm_90", say: the only one that the files run on; empty where they run on a CPU.
        max_batch: most people or windows of one run; 0 where there is no such limit.
        compiled_from: sha256 of the ONNX files that the files were compiled from.
    """

    schema: int
    kind: Literal["pose", "person-detector"]
    name: str
    target: str
    precision: str
    input_size: tuple[int, int]
    input_format: str
    files: dict[str, str]
    versions: dict[str, str]
    parity: dict[str, float]
    skeleton: str = "coco17"
    offsets: tuple[int, ...] = ()
    score_threshold: float = 0.0
    gpu_architecture: str = ""
    max_batch: int = 0
    compiled_from: dict[str, str] = {}

    def __post_init__(self) -> None:
        """Raises ValueError where the parts contradict each other."""
        missing = [name for name in graph_files(self.kind, self.target) if name not in self.files]
        if missing:
            raise ValueError(f"a {self.kind} bundle lists {' and '.join(missing)} under files")
        if min(self.input_size) < 32 or any(side % 32 for side in self.input_size):
            raise ValueError(f"input_size is {self.input_size}, its sides are multiples of 32")
        if self.kind == "pose" and (not self.offsets or 0 in self.offsets):
            raise ValueError(f"offsets are {self.offsets}, expected supporting frames other than the key frame")
        if not 0 <= self.score_threshold <= 1:
            raise ValueError(f"score_threshold is {self.score_threshold}, expected 0..1")


def graph_files(kind: str, target: str) -> tuple[str, ...]:
    """Names of the graphs that a bundle of this kind and target consists of."""
    suffix = "onnx" if target == "onnxruntime" else "engine"
    return tuple(str(Path(name).with_suffix(f".{suffix}")) for name in GRAPHS[kind])


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into a folder."""
    (folder / FILE_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")


def rebuilding(manifest: Manifest, folder: Path) -> str:
    """How to build such a bundle again, in words that end with the command."""
    compiled = (manifest.target, manifest.precision) != ("onnxruntime", "fp32") and manifest.target != "torch-tensorrt"
    if compiled and manifest.name in bundled_names():
        rest = f"--model {manifest.name} --target {manifest.target} --precision {manifest.precision}"
        rest += f" --out {shlex.quote(str(folder))}" * (manifest.kind != "pose")
    else:
        rest = f"--checkpoint FILE --target {manifest.target} --precision {manifest.precision}"
        rest += f" --out {shlex.quote(str(folder))}"
    return f"remove {folder} and rebuild it with: streampose build-engine {rest}"


def locate_bundle(name: str | Path) -> Path:
    """The folder of a bundled model's name, or the given folder.

    A bundled name means the bundled model, whatever lies in the working directory; "./lite" is a folder there.

    Raises:
        ModelError: there is no such folder.
    """
    if str(name) in bundled_names():
        return Path(str(resources.files("streampose.weights") / str(name)))
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_file() and path.suffix in CHECKPOINTS:
        raise ModelError(
            f"{path} is a checkpoint, and a bundle is needed: streampose build-engine --checkpoint "
            f"{shlex.quote(str(path))} --out BUNDLE"
        )
    raise ModelError(
        f"no model {str(name)!r}; bundled ones are: {', '.join(bundled_names())}; or give a bundle's folder"
    )


def bundled_names() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(path.parent.name for path in Path(str(resources.files("streampose.weights"))).glob(f"*/{FILE_NAME}"))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle whose files are all there and undamaged.

    Raises:
        ModelError: one line that says what is wrong and how to rebuild.
    """
    path = folder / FILE_NAME
    rebuild = "rebuild it with: streampose build-engine --checkpoint FILE --target TARGET --out BUNDLE"
    try:
        text = path.read_bytes()
        fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        kind, schema = (msgspec.json.decode(fields[name]) if name in fields else None for name in ("kind", "schema"))
        if isinstance(kind, str) and kind in SCHEMAS and schema != SCHEMAS[kind]:
            found = bytes(fields["schema"]).decode() if "schema" in fields else "none"
            with contextlib.suppress(msgspec.DecodeError):
                rebuild = rebuilding(msgspec.json.decode(text, type=Manifest), folder)
            raise ModelError(f"{path} has schema {found}, this streampose reads {SCHEMAS[kind]}; {rebuild}")
        manifest = msgspec.json.decode(text, type=Manifest)
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is no engine bundle: it has no {FILE_NAME}; {rebuild}") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; {rebuild}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {error}; {rebuild}") from error
    rebuild = rebuilding(manifest, folder)
    for name, expected in manifest.files.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise ModelError(f"{file} is missing; {rebuild}")
        if sha256(file) != expected:
            raise ModelError(f"{file} is not the file that the manifest describes (sha256 differs); {rebuild}")
    return manifest


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
