"""What a bundle says of itself is checked before anything is run. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streampose.engines.manifest import GRAPHS, bundled_names, graph_files, locate_bundle, read_manifest, sha256
from streampose.errors import ModelError

MakeBundle = Callable[..., Path]


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """make_bundle(field=value, ...) -> a folder whose graphs are two words; None leaves a field out."""

    def make(**changes: Any) -> Path:
        folder = tmp_path / "bundle"
        folder.mkdir()
        fields: dict[str, Any] = {
            "schema": 2,
            "kind": "pose",
            "name": "mine",
            "target": "onnxruntime",
            "precision": "fp32",
            "input_size": [64, 96],
            "input_format": "uint8 BGR (P, H, W, 3)",
            "files": {},
            "versions": {"torch": "2.9"},
            "parity": {"keypoints_max_px": 0.001},
            "offsets": [-2, -1, 1],
        }
        for name in GRAPHS["pose"]:
            (folder / name).write_bytes(b"a graph")
            fields["files"][name] = sha256(folder / name)
        kept = {key: value for key, value in (fields | changes).items() if value is not None}
        (folder / "manifest.json").write_text(json.dumps(kept))
        return folder

    return make


def test_a_whole_bundle_is_read(make_bundle: MakeBundle) -> None:
    manifest = read_manifest(make_bundle())
    assert (manifest.name, manifest.input_size, manifest.offsets) == ("mine", (64, 96), (-2, -1, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 1}, "has schema 1, this streampose reads 2"),
        ({"schema": None}, "has schema none"),
        ({"schema": "1"}, 'has schema "1"'),
        ({"kind": "cat"}, "cat"),
        ({"name": None}, "`name`"),
        ({"colour": "red"}, "colour"),
        ({"input_size": [64]}, "input_size"),
        ({"input_size": [64, 90]}, "multiples of 32"),
        ({"input_size": [-64, 64]}, "multiples of 32"),
        ({"offsets": []}, "offsets are"),
        ({"offsets": [-1, 0]}, "offsets are"),
        ({"files": {}}, "lists encoder.onnx and fuser.onnx"),
        ({"kind": "person-detector", "schema": 1}, "lists detector.onnx"),
        ({"score_threshold": 1.5}, "expected 0..1"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(make_bundle: MakeBundle, changes: dict[str, Any], message: str) -> None:
    refuse(make_bundle(**changes), message)


def test_a_bundle_of_an_older_version_is_refused_with_the_command_that_builds_it_again(tmp_path: Path) -> None:
    compiled = {"name": "lite", "target": "tensorrt", "precision": "fp16", "gpu_architecture": "sm_90", "max_batch": 8}
    for folder, changes, command in (
        (tmp_path / "a", {}, "build-engine --checkpoint FILE --target onnxruntime --precision fp32 --out"),
        (tmp_path / "b", compiled, "build-engine --model lite --target tensorrt --precision fp16"),
    ):
        folder.mkdir()
        target = str(changes.get("target", "onnxruntime"))
        files = dict.fromkeys(graph_files("pose", target), "0" * 64)
        fields = {
            "schema": 1, "kind": "pose", "name": "mine", "target": target, "precision": "fp32", "input_size": [64, 96],
            "input_format": "", "files": files, "versions": {}, "parity": {}, "offsets": [-2, -1],
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(fields | changes))
        again = f"remove {folder} and rebuild it with: streampose {command}"
        refuse(folder, f"has schema 1, this streampose reads 2; {again}")


def test_a_detector_of_an_older_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "detector.onnx").write_bytes(b"a graph")
    fields = {
        "schema": 1, "kind": "person-detector", "name": "mine", "target": "onnxruntime", "precision": "fp32",
        "input_size": [64, 96], "input_format": "", "files": {"detector.onnx": sha256(tmp_path / "detector.onnx")},
        "versions": {}, "parity": {},
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    assert read_manifest(tmp_path).kind == "person-detector"


def put_a_folder(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "fuser.onnx").unlink(), "fuser.onnx is missing"),
        (lambda folder: (folder / "encoder.onnx").write_bytes(b"A graph"), "sha256 differs"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "manifest.json").write_text("[1]"), "is damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"), "is damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b'{"schema": 2, "name": "\xff"}'), "is damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b'{"schema": ' + b"[" * 10_000), "is damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b""), "is damaged"),
        (put_a_folder, "cannot be read"),
        (lambda folder: (folder / "manifest.json").unlink(), "no engine bundle"),
    ],
)
def test_a_damaged_bundle_is_refused(make_bundle: MakeBundle, damage: Callable[[Path], object], message: str) -> None:
    folder = make_bundle()
    damage(folder)
    refuse(folder, message)


def test_files_lie_in_the_bundle(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"a graph")
    digest = sha256(tmp_path / "elsewhere")
    refuse(make_bundle(files=dict.fromkeys((*GRAPHS["pose"], "../elsewhere"), digest)), "elsewhere is missing")


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_manifest(folder)
    text = str(caught.value)
    assert message in text
    assert str(folder) in text
    assert "build-engine" in text
    assert "\n" not in text


def test_a_bundled_name_is_the_bundled_model_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in bundled_names():
        Path(name).mkdir()
        assert locate_bundle(name).is_absolute()
        assert locate_bundle(f"./{name}") == Path(name)
        read_manifest(locate_bundle(name))


def test_a_name_that_is_nowhere_is_refused_with_those_that_are() -> None:
    with pytest.raises(ModelError, match=", ".join(bundled_names())):
        locate_bundle("heavy")
