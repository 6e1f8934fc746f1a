"""Networks in torch on people whose boxes are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [train] extra")

from streampose.errors import ModelError, UsageError
from streampose.geometry import crop_affine, cut, invert, transform
from streampose.model import fami_pose, normalise
from streampose.skeleton import COCO17
from streampose.train.predict import TorchModel, estimate_still, evaluate_windows, open_model

SIZE = (96, 64)


@dataclass(frozen=True)
class Pictures:
    images: tuple[np.ndarray, ...]

    def image(self, index: int) -> np.ndarray:
        return self.images[index]


@dataclass(frozen=True)
class Person:
    box: np.ndarray


@dataclass(frozen=True)
class Subject:
    source: Pictures
    person: Person
    index: int
    support_indices: tuple[int, ...]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    return fami_pose("lite", (-1, 2)).eval()


@pytest.fixture
def subjects() -> list[Subject]:
    rng = np.random.default_rng(5)
    source = Pictures(tuple(rng.integers(0, 256, (90, 120, 3), np.uint8) for _ in range(4)))
    boxes = np.array([[20, 10, 60, 80], [30.5, 20, 90, 70], [5, 5, 50, 60]], np.float32)
    return [Subject(source, Person(box), 1, (0, 3)) for box in boxes]


def test_windows_are_the_frames_around_in_one_crop(network, subjects: list[Subject]) -> None:
    found = evaluate_windows(network, subjects, SIZE, batch_size=2)
    assert found.shape == (3, 17, 3)
    for keypoints, subject in zip(found, subjects, strict=True):
        affine = crop_affine(subject.person.box, SIZE)
        crops = np.stack([cut(subject.source.image(index), affine, SIZE) for index in (1, 0, 3)])
        with torch.no_grad():
            expected = network.decode(network(normalise(torch.from_numpy(crops))[None]))[0].numpy()
        assert keypoints[:, 2] == pytest.approx(expected[:, 2], abs=1e-4)
        assert keypoints[:, :2] == pytest.approx(transform(expected[:, :2], invert(affine)), abs=1e-2)
    assert evaluate_windows(network, [], SIZE).shape == (0, 17, 3)


def test_the_network_keeps_its_mode(network, subjects: list[Subject]) -> None:
    expected = evaluate_windows(network, subjects, SIZE)
    network.train()
    try:
        assert evaluate_windows(network, subjects, SIZE) == pytest.approx(expected, abs=1e-2)
        assert network.training
    finally:
        network.eval()


def test_a_still_is_a_window_of_equal_frames(network, subjects: list[Subject]) -> None:
    image = subjects[0].source.image(2)
    boxes = np.stack([subject.person.box for subject in subjects])
    still = [Subject(subject.source, subject.person, 2, (2, 2)) for subject in subjects]
    model = TorchModel(network, COCO17, SIZE, torch.device("cpu"))
    assert estimate_still(model, image, boxes) == pytest.approx(evaluate_windows(network, still, SIZE), abs=1e-2)


def test_a_network_of_single_frames(subjects: list[Subject]) -> None:
    torch.manual_seed(4)
    network = fami_pose("lite", ()).eval()
    alone = [Subject(subject.source, subject.person, 1, ()) for subject in subjects]
    found = evaluate_windows(network, alone, SIZE)
    affine = crop_affine(subjects[0].person.box, SIZE)
    crop = cut(subjects[0].source.image(1), affine, SIZE)
    with torch.no_grad():
        heatmaps = network.single(network.encode(normalise(torch.from_numpy(crop[None]))))
    assert found[0, :, 2] == pytest.approx(network.decode(heatmaps)[0, :, 2].numpy(), abs=1e-4)


def test_with_the_flip_test_a_mirrored_picture_has_the_mirrored_pose(network, subjects: list[Subject]) -> None:
    mirrored = Pictures(tuple(np.ascontiguousarray(image[:, ::-1]) for image in subjects[0].source.images))
    width = mirrored.images[0].shape[1]
    there = [
        Subject(mirrored, Person(np.array([width - x2, y1, width - x1, y2], np.float32)), 1, (0, 3))
        for x1, y1, x2, y2 in (subject.person.box for subject in subjects)
    ]
    for flip in (True, False):
        found = evaluate_windows(network, subjects, SIZE, flip=flip)
        back = evaluate_windows(network, there, SIZE, flip=flip)[:, list(COCO17.mirror)]
        back[..., 0] = width - back[..., 0]
        same = float((np.abs(found - back) < 0.05).all(axis=-1).mean())
        assert same > 0.8 if flip else same < 0.2  # not all: where two hills are equally high, one side wins


def test_models_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.pt is missing"):
        open_model(str(tmp_path / "none.pt"))
    with pytest.raises(UsageError, match=r"--flip-test goes with a checkpoint .*lite is a bundle"):
        open_model("lite", flip=True)
    with pytest.raises(ModelError, match="no model 'nothing'"):
        open_model("nothing")


@pytest.mark.parametrize(("offsets", "size"), [((-1,), None), ((), (64, 64))])
def test_a_checkpoint_says_what_it_is(tmp_path: Path, offsets: tuple[int, ...], size: tuple[int, int] | None) -> None:
    network = fami_pose("lite", offsets, skeleton="posetrack")
    path = tmp_path / "checkpoint.pt"
    torch.save({"ema": network.state_dict(), "network": network.description}, path)
    model = open_model(str(path), flip=True, size=size)
    assert (model.skeleton.name, model.offsets, model.size) == ("posetrack", offsets, size or (256, 192))
