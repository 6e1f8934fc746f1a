"""Which engine runs a model here, and the gate that a bundle passes."""

from __future__ import annotations

import ast
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fake_gpu import Gpu

from streampose.engines import cuda, load_engine, locate_bundle, onnxruntime_cuda, open_engine, read_manifest
from streampose.engines.manifest import FILE_NAME, bundled_names, graph_files, sha256
from streampose.engines.onnxruntime import OnnxRuntimeEngine
from streampose.engines.parity import REFERENCE, check, compare, read_reference
from streampose.engines.store import choose_engine, store, stored_bundles, verify
from streampose.errors import ModelError, StreamposeError, UsageError

if "lite" not in bundled_names():
    pytest.skip("the bundled models are not built yet", allow_module_level=True)


@pytest.fixture(autouse=True)
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of this test."""
    monkeypatch.setenv("STREAMPOSE_ENGINES", str(tmp_path / "engines"))
    return tmp_path / "engines"


def copy_lite(folder: Path, **fields: Any) -> Path:
    """The bundled model under another folder, with other fields in its manifest; digests fit."""
    shutil.copytree(locate_bundle("lite"), folder)
    before = msgspec.json.decode((folder / FILE_NAME).read_bytes())
    names = graph_files("pose", fields.get("target", "onnxruntime"))
    for old, new in zip(graph_files("pose", "onnxruntime"), names, strict=True):
        (folder / old).rename(folder / new)
    files = {name: sha256(folder / name) for name in (*names, REFERENCE)}
    (folder / FILE_NAME).write_bytes(msgspec.json.encode(before | {"files": files} | fields))
    return folder


def test_the_store_is_a_folder_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STREAMPOSE_ENGINES")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store() == tmp_path / ".local/share/streampose/engines"


def test_a_store_that_cannot_be_looked_into_holds_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STREAMPOSE_ENGINES", "/x" + "y" * 5000)
    assert choose_engine("lite").manifest == read_manifest(locate_bundle("lite"))
    assert "no engine that was built here can be found" in caplog.messages[0]
    assert "File name too long" in caplog.messages[0]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_user_who_may_not_look_into_its_home_runs_the_bundled_model(tmp_path: Path) -> None:
    """As a service with ProtectHome=yes."""
    home = tmp_path / "home"
    home.mkdir(mode=0o000)
    tmp_path.chmod(0o755)
    for environment in ({"HOME": str(home)}, {}):
        assert as_user(4711, environment) == []


def as_user(number: int, environment: dict[str, str]) -> list[object]:
    """The bundles that a user of this number without an entry in passwd finds in the store."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            for name in ("HOME", "STREAMPOSE_ENGINES"):
                os.environ.pop(name, None)
            os.environ.update(environment)
            os.setuid(number)
            os.write(writing, repr(stored_bundles("lite")).encode())
        except BaseException as error:
            os.write(writing, repr(repr(error)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        answer = told.read()
    os.waitpid(child, 0)
    found: list[object] = ast.literal_eval(answer)
    return found


def test_where_to_build_needs_a_home_or_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAMPOSE_ENGINES")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(UsageError, match="no home folder; name one for engines in STREAMPOSE_ENGINES"):
        store()


def test_without_a_store_the_bundled_model_runs_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        engine = choose_engine("lite")
    assert engine.manifest == read_manifest(locate_bundle("lite"))
    assert caplog.messages == [f"lite runs on onnxruntime (CPU) in fp32, from {locate_bundle('lite')}"]


def test_what_was_built_here_comes_first(engines: Path, caplog: pytest.LogCaptureFixture) -> None:
    built = copy_lite(engines / "mine", precision="int8")
    copy_lite(engines / "of another model", name="other")
    with caplog.at_level(logging.INFO):
        assert choose_engine("lite").manifest.precision == "int8"
    assert caplog.messages == [f"lite runs on onnxruntime (CPU) in int8, from {built}"]
    assert choose_engine("other").manifest.name == "other"


def test_a_folder_is_taken_as_it_is(engines: Path, tmp_path: Path) -> None:
    copy_lite(engines / "mine", precision="int8")
    folder = copy_lite(tmp_path / "given")
    assert choose_engine(str(folder)).manifest.precision == "fp32"


def test_an_engine_that_cannot_run_is_named_and_the_next_one_runs(
    engines: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_lite(engines / "gpu", target="tensorrt", precision="fp16", gpu_architecture="sm_90")
    assert choose_engine("lite").manifest.target == "onnxruntime"
    assert caplog.messages[0].startswith(f"{folder} cannot run here: ")
    with pytest.raises(StreamposeError):
        choose_engine("lite", "tensorrt")


def test_a_damaged_engine_is_named_and_left_out(engines: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = copy_lite(engines / "mine", precision="int8")
    (folder / "fuser.onnx").write_bytes(b"half of it")
    assert choose_engine("lite").manifest.precision == "fp32"
    assert "fuser.onnx is not the file that the manifest describes" in caplog.messages[0]
    command = "streampose build-engine --model lite --target onnxruntime --precision int8"
    rebuild = f"remove {folder} and rebuild it with: {command}"
    assert caplog.messages[0].endswith(rebuild)


def test_what_is_not_built_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"only for onnxruntime; build it with: .* --model lite --target tensorrt"):
        choose_engine("lite", "tensorrt")
    with pytest.raises(ModelError, match=r"build-engine --checkpoint FILE --out .*/lite --target torch-tensorrt"):
        choose_engine("lite", "torch-tensorrt")
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.touch()
    with pytest.raises(
        ModelError, match=r"is a checkpoint, and a bundle is needed: streampose build-engine --checkpoint"
    ):
        choose_engine(str(checkpoint))
    with pytest.raises(ModelError, match="no model 'heavy'; bundled ones are: lite"):
        choose_engine("heavy")
    with pytest.raises(UsageError, match="backend is one of auto, onnxruntime"):
        choose_engine("lite", "opencl")


def test_a_bundle_is_verified_without_torch() -> None:
    folder = locate_bundle("lite")
    assert "as built; 99 of 100 joints within" in verify(folder, read_manifest(folder))


def test_what_computes_something_else_is_not_verified(tmp_path: Path) -> None:
    """Its digests fit; one weight of the head does not."""
    onnx = pytest.importorskip("onnx", reason="needs the [train] extra")
    folder = copy_lite(tmp_path / "other")
    model = onnx.load(folder / "fuser.onnx")
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name.endswith("fuser.correct.3.bias"))
    value = onnx.numpy_helper.to_array(bias).copy()
    value[0] += 0.2
    bias.CopyFrom(onnx.numpy_helper.from_array(value, bias.name))
    onnx.save(model, folder / "fuser.onnx")
    manifest = read_manifest(locate_bundle("lite"))
    with pytest.raises(ModelError, match="lite does not compute what the network computes in torch"):
        verify(folder, manifest)


def test_the_gate_measures_joints_that_torch_is_sure_of() -> None:
    folder = locate_bundle("lite")
    reference, engine = read_reference(folder), load_engine(folder)
    figures = compare(engine, reference)
    assert figures["joints"] == (reference.keypoints[..., 2] >= 0.3).sum() > 100
    moved = reference.keypoints.copy()
    sure = np.argwhere(reference.keypoints[..., 2] >= 0.3)
    for person, joint in sure[: len(sure) // 50]:  # two in a hundred
        moved[person, joint, 0] += 3
    object.__setattr__(reference, "keypoints", moved)
    figures = compare(engine, reference)
    assert figures["keypoints_p99_px"] == pytest.approx(3, abs=0.01)
    check("it", "int8", figures | {"keypoints_p99_px": 1.99})
    with pytest.raises(ModelError, match="keypoints_p99_px is 3, int8 may have 2"):
        check("it", "int8", figures)
    with pytest.raises(ModelError, match="keypoints_p99_px is nan"):
        check("it", "fp16", figures | {"keypoints_p99_px": float("nan")})


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_bundle_without_a_whole_reference_cannot_be_verified(damage: bytes | None, tmp_path: Path) -> None:
    if damage is not None:
        (tmp_path / REFERENCE).write_bytes(damage)
    with pytest.raises(ModelError, match="cannot be verified; build it again") as caught:
        read_reference(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_cuda_provider_runs_or_stops_but_never_in_silence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a package with the provider, on a machine where it cannot start."""
    with pytest.raises(ModelError, match=r"has no CUDA provider; get one with: .*pip install onnxruntime-gpu"):
        choose_engine("lite", "onnxruntime-cuda")
    monkeypatch.setattr(onnxruntime_cuda.ort, "get_available_providers", lambda: [onnxruntime_cuda.PROVIDER])
    for backend in ("auto", "onnxruntime"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert type(choose_engine("lite", backend)) is OnnxRuntimeEngine
        assert caplog.messages[0].startswith(f"{locate_bundle('lite')} cannot run here on onnxruntime (CUDA): ")
        assert caplog.messages[1].startswith("lite runs on onnxruntime (CPU) in fp32")
    with pytest.raises(StreamposeError, match=r"NVIDIA driver|cuda-bindings"):
        choose_engine("lite", "onnxruntime-cuda")
    monkeypatch.setattr(cuda, "driver", lambda: Gpu(1.0))
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(ModelError, match="cannot start its CUDAExecutionProvider here"),
    ):
        choose_engine("lite", "onnxruntime-cuda")


def test_int8_is_for_cpus(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_lite(engines / "mine", precision="int8")
    with pytest.raises(ModelError, match="is in int8, for CPUs"):
        open_engine(engines / "mine", read_manifest(engines / "mine"), on_cuda=True)
    tried = []
    monkeypatch.setattr(onnxruntime_cuda.ort, "get_available_providers", lambda: [onnxruntime_cuda.PROVIDER])
    monkeypatch.setattr(
        "streampose.engines.store.open_engine", lambda *args: tried.append((args[1].precision, args[3]))
    )
    choose_engine("lite")
    assert tried == [("fp32", True)]
