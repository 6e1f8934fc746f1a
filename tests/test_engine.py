"""The bundled pose engine on ONNX Runtime. Needs no torch."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from streampose.engines import Crops, Engine, load_engine, locate_bundle, read_manifest, whole_pictures
from streampose.engines.manifest import FILE_NAME, bundled_names, sha256
from streampose.engines.onnxruntime import CHUNK
from streampose.engines.parity import check
from streampose.errors import ModelError
from streampose.geometry import crop_affine, cut

if not bundled_names():
    pytest.skip("the bundled models are not built yet", allow_module_level=True)


@pytest.fixture(scope="module")
def lite() -> Engine:
    return load_engine("lite")


def crops_of(engine: Engine, count: int) -> NDArray[np.uint8]:
    """Coarse random pictures: (count, H, W, 3)."""
    height, width = engine.manifest.input_size
    coarse = np.random.default_rng(0).integers(0, 256, (count, height // 32, width // 32, 3), dtype=np.uint8)
    return coarse.repeat(32, axis=1).repeat(32, axis=2)


def test_people_do_not_depend_on_whom_they_are_run_with(lite: Engine) -> None:
    frames, people = 1 + len(lite.manifest.offsets), CHUNK + 2
    crops = crops_of(lite, people * frames)
    features = lite.encode(whole_pictures(crops))
    height, width = lite.manifest.input_size
    last = lite.read(features[-1])
    assert (last.dtype, last.shape[1:]) == (np.float32, (height // 4, width // 4))
    (one,) = lite.encode(whole_pictures(crops[-1:]))
    assert np.abs(lite.read(one) - last).max() <= 1e-3 * last.std()
    windows = [features[start : start + frames] for start in range(0, people * frames, frames)]
    transforms = np.tile(np.eye(2, 3, dtype=np.float32), (people, frames, 2, 1, 1))
    transforms[:, 1:, :, 0, 2] = np.arange(people)[:, None, None]
    keypoints = lite.fuse(windows, transforms)
    assert (keypoints.dtype, keypoints.shape) == (np.float32, (people, 17, 3))
    assert (keypoints[..., :2] >= 0).all()
    assert (keypoints[..., :2] <= [width, height]).all()
    assert (keypoints[..., 2] > 0).all()
    assert (keypoints[..., 2] <= 1).all()
    for person in range(people):
        alone = lite.fuse(windows[person : person + 1], transforms[person : person + 1])[0]
        assert np.abs(alone[:, 2] - keypoints[person, :, 2]).max() < 1e-3


def test_crops_of_a_picture_are_cut_by_the_engine(lite: Engine) -> None:
    """Two people of one picture and one of another are as the three crops cut beforehand."""
    size = lite.manifest.input_size
    first, second = np.random.default_rng(1).integers(0, 256, (2, 90, 120, 3), dtype=np.uint8)
    boxes = np.array([[10, 20, 50, 80], [60, 10, 100, 85], [30, 30, 70, 70]], np.float32)
    affines = np.stack([crop_affine(box, size) for box in boxes])
    found = lite.encode([Crops(first, affines[:2]), Crops(second, affines[2:])])
    pictures = (first, first, second)
    cuts = np.stack([cut(picture, affine, size) for picture, affine in zip(pictures, affines, strict=True)])
    for one, other in zip(found, lite.encode(whole_pictures(cuts)), strict=True):
        np.testing.assert_allclose(lite.read(one), lite.read(other), atol=1e-3)


def test_nobody_is_no_work(lite: Engine) -> None:
    frames = 1 + len(lite.manifest.offsets)
    assert lite.encode([]) == []
    assert lite.encode([Crops(np.zeros((9, 9, 3), np.uint8), np.zeros((0, 2, 3), np.float32))]) == []
    assert lite.fuse([], np.zeros((0, frames, 2, 2, 3), np.float32)).shape == (0, 17, 3)


def test_wrong_arrays_are_named(lite: Engine) -> None:
    crops = crops_of(lite, 1)
    with pytest.raises(ValueError, match=r"a picture is uint8 \(H, W, 3\), not float32"):
        whole_pictures(crops.astype(np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="affines are"):
        Crops(crops[0], np.zeros((2, 3), np.float32))
    windows = [lite.encode(whole_pictures(crops)) * 5]
    with pytest.raises(ValueError, match="transforms of 1 windows are"):
        lite.fuse(windows, np.zeros((1, 4, 2, 2, 3), np.float32))
    with pytest.raises(ValueError, match="transforms of 1 windows are"):
        lite.fuse(windows, np.zeros((1, 5, 2, 3), np.float32))


def swap(folder: Path) -> None:
    (folder / "encoder.onnx").rename(folder / "other")
    (folder / "fuser.onnx").rename(folder / "encoder.onnx")
    (folder / "other").rename(folder / "fuser.onnx")


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        (lambda folder: (folder / "fuser.onnx").write_bytes(b"nonsense"), {}, "cannot be loaded by ONNX Runtime"),
        (swap, {}, "are no encoder and fuser"),
        (lambda _: None, {"input_size": (128, 96)}, "the manifest says"),
        (lambda _: None, {"offsets": [-1]}, "takes windows of"),
    ],
)
def test_a_bundle_that_cannot_run_is_refused_in_one_line(change, fields, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The digests fit, so that only what is inside is wrong."""
    folder = tmp_path / "copy"
    shutil.copytree(locate_bundle("lite"), folder)
    change(folder)
    before = msgspec.json.decode((folder / FILE_NAME).read_bytes())
    files = {name: sha256(folder / name) for name in before["files"]}
    (folder / FILE_NAME).write_bytes(msgspec.json.encode(before | fields | {"files": files}))
    with pytest.raises(ModelError, match=message) as caught:
        load_engine(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", bundled_names())
def test_a_bundled_model_passed_the_gate(name: str) -> None:
    manifest = read_manifest(locate_bundle(name))
    if manifest.kind == "pose":
        assert manifest.parity["joints"] > 100
        check(manifest.name, "fp32", manifest.parity)
    else:
        assert manifest.parity["boxes_max_px"] <= 0.05
        assert manifest.parity["scores_max"] <= 1e-3
