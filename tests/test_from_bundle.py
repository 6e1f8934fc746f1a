"""Networks out of bundles: they compute what ships, and can be trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [train] extra")

import torch

from streampose.engines import load_engine, whole_pictures
from streampose.errors import ModelError
from streampose.model import normalise
from streampose.people import PersonDetector
from streampose.train.from_bundle import detector_of_bundle, is_bundle, pose_of_bundle, settle


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (5, 256, 192, 3), np.uint8)


def test_the_bundled_pose_network_in_torch_computes_what_ships(crops: np.ndarray) -> None:
    network, engine = pose_of_bundle("lite"), load_engine("lite")
    shipped = engine.encode(whole_pictures(crops))
    with torch.inference_mode():
        features = network.encode(normalise(torch.from_numpy(crops)))
        np.testing.assert_allclose(features, np.stack([engine.read(f) for f in shipped]), atol=1e-3)
        moved = np.tile(np.eye(2, 3, dtype=np.float32), (1, 5, 2, 1, 1))
        moved[0, 1:, 0, :, 2] = 3.5
        moved[0, 1:, 1, :, 2] = 1.5
        heatmaps = network.fuse(features[None], torch.from_numpy(moved))
    np.testing.assert_allclose(heatmaps, engine.heatmaps([shipped], moved), atol=1e-2)


def test_the_bundled_detector_in_torch_computes_what_ships() -> None:
    network = detector_of_bundle("person")
    picture = np.random.default_rng(2).integers(0, 256, (*network.input_size, 3), np.uint8)
    with torch.inference_mode():
        scores = network(normalise(torch.from_numpy(picture[None]))).logits[0].sigmoid()
    shipped = PersonDetector("person").detect(picture, 0.0)[1]
    assert float(scores.max()) == pytest.approx(float(shipped.max()), abs=1e-4)


def test_settling_changes_nothing_in_evaluation_and_makes_training_mode_agree(crops: np.ndarray) -> None:
    network = pose_of_bundle("lite")
    frames = normalise(torch.from_numpy(crops))
    with torch.no_grad():
        before = network.encode(frames)
        unsettled = network.train().encode(frames)
        network = pose_of_bundle("lite").train()
        settle(network.encoder, lambda: network.encode(frames))
        assert network.encoder.training
        after = network.eval().encode(frames)
        trained = network.train().encode(frames)
    spread = float(before.std())
    assert float((after - before).abs().max()) < 1e-3 * spread
    assert float((trained - before).abs().max()) < 0.05 * spread
    assert float((unsettled - before).abs().mean()) > 0.1 * spread


def test_what_cannot_be_trained_on_is_named(tmp_path: Path) -> None:
    assert is_bundle("lite")
    assert is_bundle(str(tmp_path))
    assert not is_bundle(str(tmp_path / "checkpoint.pt"))
    with pytest.raises(ModelError, match="training begins with a pose for onnxruntime in fp32"):
        pose_of_bundle("person")
    with pytest.raises(ModelError, match="manifest"):
        pose_of_bundle(str(tmp_path))
