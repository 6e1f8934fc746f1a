"""The engine for GPUs, all but the GPU: copies, slots, events, graphs and two batches under way, see fake_gpu.py."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fake_gpu import Gpu, TensorRT

onnx = pytest.importorskip("onnx", reason="needs the [tensorrt] extra")
from numpy.typing import NDArray

from streampose.engines import (
    Crops,
    Engine,
    Overlapping,
    cuda,
    load_engine,
    onnxruntime_cuda,
    read_manifest,
    tensorrt,
    tensorrt_build,
)  # fmt: skip
from streampose.engines.compile import build_engine
from streampose.engines.graphs import to_float_input
from streampose.engines.manifest import bundled_names, locate_bundle
from streampose.engines.onnxruntime import ON_CPU
from streampose.engines.parity import REFERENCE
from streampose.engines.store import choose_engine, verify
from streampose.engines.tensorrt import KERNELS, TensorrtEngine
from streampose.errors import ModelError
from streampose.geometry import between_crops, crop_affine, place_in_crop

if "lite" not in bundled_names():
    pytest.skip("the bundled models are not built yet", allow_module_level=True)

MOST = 4
OTHER_SIZES = ((90, 120), (64, 200), (130, 75))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lite network's graphs in the place of plans."""
    folder = tmp_path_factory.mktemp("gpu")
    encoder, fuser = (onnx.load(locate_bundle("lite") / name) for name in ("encoder.onnx", "fuser.onnx"))
    (folder / "encoder.engine").write_bytes(to_float_input(encoder).SerializeToString())
    (folder / "fuser.engine").write_bytes(fuser.SerializeToString())
    (folder / KERNELS).write_bytes(b"PTX")
    return folder


@pytest.fixture(autouse=True)
def memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:  # noqa: ARG001 before the driver is gone
    yield
    gc.collect()


@pytest.fixture(scope="module")
def on_cpu() -> Engine:
    return load_engine("lite")


def open_engine(
    gpu: Gpu, bundle: Path, monkeypatch: pytest.MonkeyPatch, target: str = "tensorrt-rtx", **options: Any
) -> TensorrtEngine:
    monkeypatch.setattr(cuda, "driver", lambda: gpu)
    manifest = msgspec.structs.replace(read_manifest(locate_bundle("lite")), target="onnxruntime", max_batch=MOST)
    changed = {**msgspec.to_builtins(manifest), "target": target, "files": dict.fromkeys(
        ("encoder.engine", "fuser.engine"), "")}  # fmt: skip
    return TensorrtEngine(TensorRT(gpu, **options), bundle, msgspec.convert(changed, type(manifest)))


Round = tuple[list[Crops], NDArray[np.float32]]


def rounds(engine: Engine, people: list[int]) -> list[Round]:
    """Crops of rounds of so many people, from pictures of different sizes, and the transforms of their windows."""
    rng = np.random.default_rng(3)
    made = []
    for count in people:
        crops, affines, places = [], [], []
        while len(affines) < 5 * count:
            height, width = OTHER_SIZES[len(affines) % len(OTHER_SIZES)]
            coarse = rng.integers(0, 256, (-(-height // 10), -(-width // 10), 3), dtype=np.uint8)
            image = coarse.repeat(10, axis=0).repeat(10, axis=1)[:height, :width]
            corners = rng.uniform(0, 20, (min(3, 5 * count - len(affines)), 2))
            boxes = [np.array([x, y, x + 40, y + 55], np.float32) for x, y in corners]
            some = [crop_affine(box, engine.manifest.input_size) for box in boxes]
            crops.append(Crops(np.ascontiguousarray(image), np.stack(some)))
            affines += some
            places += [place_in_crop(box, affine) for box, affine in zip(boxes, some, strict=True)]
        of_people = np.stack(places).reshape(count, 5, 2, 2, 3)
        made.append((crops, between_crops(of_people[:, :1], of_people)))
    return made


def windows(features: list[Any]) -> list[list[Any]]:
    return [features[start : start + 5] for start in range(0, len(features), 5)]


def by_one(engine: Any, given: list[Round]) -> list[NDArray[np.float32]]:
    return [engine.fuse(windows(engine.encode(crops)), transforms) for crops, transforms in given]


def overlapped(engine: TensorrtEngine, given: list[Round]) -> list[NDArray[np.float32]]:
    """Each round is put in before the results of the one before are asked for."""
    found, waiting = [], []
    for crops, transforms in given:
        waiting.append(engine.begin_fuse(windows(engine.encode(crops)), transforms))
        if len(waiting) > 1:
            found.append(waiting.pop(0)())
    return found + [last() for last in waiting]


def assert_same(found: list[NDArray[np.float32]], wanted: list[NDArray[np.float32]]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        sure = other[..., 2] > SURE
        np.testing.assert_allclose(one[sure], other[sure], atol=0.05)


SURE = 0.2
"""On pictures of nothing the network is sure of little; what is below this jumps with the last digits of arithmetic."""
PEOPLE = [1, 2, 1, 5, 2]  # five are more than a batch; every size comes again, as a recorded graph


@pytest.fixture(scope="module")
def given(on_cpu: Engine) -> list[Round]:
    return rounds(on_cpu, PEOPLE)


@pytest.fixture(scope="module")
def wanted(on_cpu: Engine, given: list[Round]) -> list[NDArray[np.float32]]:
    found = by_one(on_cpu, given)
    assert sum(int((keypoints[..., 2] > SURE).sum()) for keypoints in found) > 30
    return found


@pytest.mark.parametrize("eagerness", [0.0, 0.4, 1.0])
def test_what_the_gpu_is_told_computes_what_the_cpu_does(
    eagerness: float, bundle: Path, on_cpu: Engine, given: list[Round], wanted: list[NDArray[np.float32]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    gpu = Gpu(eagerness)
    engine = open_engine(gpu, bundle, monkeypatch)
    assert_same(by_one(engine, given), wanted)
    assert_same(overlapped(engine, given), wanted)
    assert gpu.graphs > 10
    features = engine.encode(given[0][0])
    np.testing.assert_allclose(engine.read(features[0]), on_cpu.read(on_cpu.encode(given[0][0])[0]), atol=0.05)
    maps = engine.heatmaps(windows(features), given[0][1])
    np.testing.assert_allclose(maps, on_cpu.heatmaps(windows(on_cpu.encode(given[0][0])), given[0][1]), atol=0.05)


def test_nobody_waits_before_two_rounds_are_under_way(
    bundle: Path, on_cpu: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three people in two cameras' pictures are one run of the encoder, and the host waits for nothing till it asks."""
    gpu = Gpu(0.0)
    engine = open_engine(gpu, bundle, monkeypatch)
    assert isinstance(engine, Overlapping)
    assert not isinstance(on_cpu, Overlapping)
    ((crops, _),) = rounds(on_cpu, [1])
    some = [Crops(crops[0].image, crops[0].affines[:2]), Crops(crops[1].image, crops[1].affines[:1])]
    still = np.tile(np.eye(2, 3, dtype=np.float32), (3, 5, 2, 1, 1))

    def begin() -> Any:
        return engine.begin_fuse([[feature] * 5 for feature in engine.encode(some)], still)

    keypoints_bytes = 3 * 17 * 3 * 4
    for _ in range(4):  # both places' graphs are recorded
        begin()()
    assert gpu.copied_to_host == 4 * keypoints_bytes  # of two places, each as it was first run and as it was recorded
    trt = engine._encoder._engine.module
    runs, kernels, up = trt.runs, len(gpu.kernels), gpu.copied_to_device
    first, second = begin(), begin()
    assert trt.runs == runs
    assert gpu.kernels[kernels:] == ["cut_crops"] * 4  # what moves features is in the graphs
    pictures = sum(part.image.nbytes for part in some)
    assert gpu.copied_to_device - up == 2 * (pictures + 3 * 6 * 4)
    keypoints = first()
    assert trt.runs == runs + 2
    np.testing.assert_array_equal(keypoints, second())
    assert trt.runs == runs + 4
    np.testing.assert_array_equal(keypoints, first())


@pytest.mark.parametrize("left_out", ["wait", "follow"])
def test_the_test_finds_who_does_not_wait(
    left_out: str, bundle: Path, given: list[Round], wanted: list[NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(Gpu(0.0), bundle, monkeypatch)
    overlapped(engine, given)
    if left_out == "wait":
        monkeypatch.setattr(cuda.Event, "wait", lambda _: None)
    else:
        monkeypatch.setattr(cuda.Stream, "follow", lambda *_: None)
    with pytest.raises(AssertionError):
        assert_same(overlapped(engine, given), wanted)


def test_slots_are_given_back(bundle: Path, on_cpu: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(Gpu(0.4), bundle, monkeypatch)
    (given,) = rounds(on_cpu, [2])
    for _ in range(12):  # 120 features, one block of slots
        engine.begin_fuse(windows(engine.encode(given[0])), given[1])
    assert len(engine._slots.free) == engine._slots.BLOCK


def test_outputs_that_are_counted_are_taken_in_their_order(
    bundle: Path, on_cpu: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch-tensorrt names them."""
    engine = open_engine(Gpu(1.0), bundle, monkeypatch, "torch-tensorrt", counted_outputs=True)
    given = rounds(on_cpu, [1])
    assert_same(by_one(engine, given), by_one(on_cpu, given))


def test_windows_and_transforms_fit(bundle: Path, on_cpu: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(Gpu(1.0), bundle, monkeypatch)
    (given,) = rounds(on_cpu, [1])
    features = engine.encode(given[0])
    with pytest.raises(ValueError, match="transforms of 1 windows are"):
        engine.begin_fuse(windows(features), given[1][:, :4])
    assert engine.encode([]) == []
    assert engine.fuse([], np.zeros((0, 5, 2, 2, 3), np.float32)).shape == (0, 17, 3)


@pytest.mark.parametrize("eagerness", [0.0, 1.0])
def test_onnx_runtime_is_bound_to_device_memory(
    eagerness: float, on_cpu: Engine, given: list[Round], wanted: list[NDArray[np.float32]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By its own bindings, with the CPU's provider and memory in the place of the GPU's."""
    gpu = Gpu(eagerness)
    monkeypatch.setattr(cuda, "driver", lambda: gpu)
    monkeypatch.setattr(onnxruntime_cuda, "DEVICE", "cpu")
    monkeypatch.setattr(onnxruntime_cuda, "BATCH", 4)
    folder = locate_bundle("lite")
    engine = onnxruntime_cuda.OnnxCudaEngine(folder, read_manifest(folder), 2, ON_CPU)
    assert_same(by_one(engine, given), wanted)
    features = engine.encode(given[0][0])
    np.testing.assert_allclose(engine.read(features[0]), on_cpu.read(on_cpu.encode(given[0][0])[0]), atol=1e-3)
    maps = engine.heatmaps(windows(features), given[0][1])
    np.testing.assert_allclose(maps, on_cpu.heatmaps(windows(on_cpu.encode(given[0][0])), given[0][1]), atol=1e-3)
    with pytest.raises(ValueError, match="transforms of 1 windows are"):
        engine.fuse(windows(features), given[0][1][:, :4])
    del features
    assert len(engine._slots.free) == engine._slots.BLOCK


@pytest.fixture
def rtx_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TensorRT:
    """TensorRT for RTX and a GPU, as far as building and running go: a plan is the graph it would be built from."""
    gpu = Gpu(0.4)
    trt = TensorRT(gpu)
    monkeypatch.setattr(cuda, "driver", lambda: gpu)
    for module in (tensorrt, tensorrt_build):
        monkeypatch.setattr(module, "import_tensorrt", lambda _target: trt)
    monkeypatch.setattr(tensorrt_build, "build_plan", lambda _trt, model, *_: model.SerializeToString())
    monkeypatch.setenv("STREAMPOSE_ENGINES", str(tmp_path / "store"))
    return trt


def test_an_engine_is_built_verified_stored_and_chosen(
    rtx_here: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half precision through the gate; then other machines' and versions' bundles, each refused in one line."""
    manifest, folder = build_engine("lite", None, "tensorrt-rtx", None, MOST, None)
    assert folder == tmp_path / "store" / "lite-tensorrt-rtx-fp16"
    assert (manifest.gpu_architecture, manifest.max_batch, manifest.precision) == ("sm_90", MOST, "fp16")
    assert manifest.versions["tensorrt_rtx"] == rtx_here.__version__
    assert 0 < manifest.parity["keypoints_p99_px"] <= 0.5
    assert set(manifest.files) == {"encoder.engine", "fuser.engine", KERNELS, REFERENCE}
    assert b"cut_crops" in (folder / KERNELS).read_bytes()
    with caplog.at_level(logging.INFO):
        engine = choose_engine("lite")
    assert isinstance(engine, TensorrtEngine)
    assert caplog.messages == [f"lite runs on tensorrt-rtx in fp16, from {folder}"]
    assert "99 of 100 joints within" in verify(folder, manifest)
    command = "streampose build-engine --model lite --target tensorrt-rtx --precision fp16"
    rebuild = f"remove {folder} and rebuild it with: {command}"
    monkeypatch.setattr(rtx_here, "__version__", "1.8")
    with pytest.raises(ModelError, match=r"was built with tensorrt_rtx 1.7.1.116, here is 1.8") as caught:
        choose_engine("lite", "tensorrt-rtx")
    assert str(caught.value).endswith(rebuild)
    monkeypatch.setattr(rtx_here, "__version__", "1.7.1.116")
    monkeypatch.setattr(cuda, "architecture", lambda: "sm_120")
    with pytest.raises(ModelError, match="is for the GPU architecture sm_90, here is sm_120") as caught:
        choose_engine("lite", "tensorrt-rtx")
    assert str(caught.value).endswith(rebuild)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("rtx_here")
def test_an_engine_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel moves features to the wrong slots."""
    move = Gpu.move_blocks
    monkeypatch.setattr(Gpu, "move_blocks", lambda gpu, a, b, words, count: move(gpu, a, b, words // 2, count))
    with pytest.raises(ModelError, match="lite for tensorrt-rtx does not compute what the network computes in torch"):
        build_engine("lite", None, "tensorrt-rtx", None, MOST, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_machine_with_a_gpu_is_told_of_the_faster_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STREAMPOSE_ENGINES", str(tmp_path))
    monkeypatch.setattr("streampose.engines.store.has_nvidia_gpu", lambda: True)
    choose_engine("lite")
    (said,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert said.endswith("a faster engine: streampose build-engine --model lite --target tensorrt")
    assert not list(tmp_path.iterdir())


def test_tensorrt_has_what_the_engine_calls() -> None:
    """The names, in the bindings of TensorRT for RTX, which are TensorRT's."""
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the [tensorrt-rtx] extra")
    names = {
        trt: ("Runtime", "ILogger", "nptype", "__version__"),
        trt.Runtime: ("deserialize_cuda_engine",),
        trt.ICudaEngine: ("num_io_tensors", "device_memory_size_v2", "create_execution_context"),
        trt.IExecutionContext: ("set_device_memory", "set_tensor_address", "set_input_shape", "execute_async_v3"),
        trt.ExecutionContextAllocationStrategy: ("USER_MANAGED",),
        trt.TensorIOMode: ("INPUT",),
    }
    assert [f"{where}.{name}" for where, wanted in names.items() for name in wanted if not hasattr(where, name)] == []
    asked = ("get_tensor_name", "get_tensor_shape", "get_tensor_dtype", "get_tensor_mode")
    assert all(hasattr(trt.ICudaEngine, name) for name in asked)
    assert np.dtype(trt.nptype(trt.DataType.UINT8)) == np.uint8
