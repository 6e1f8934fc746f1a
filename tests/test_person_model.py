"""The person detector's training: cells, boxes, verdicts and pictures mean the same thing from labels to detections."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="needs the [train] extra")

from torch import Tensor, nn

from streampose.errors import UsageError
from streampose.model.checkpoint import DETECTOR, load_detector
from streampose.model.network import normalise
from streampose.model.person import STRIDES, PersonExport, PersonNetwork, cell_centres
from streampose.train.loop import LoopSettings, fit
from streampose.train.pack import STILL_SETS, Person
from streampose.train.person import MOST_BOXES, Mosaics, PersonTask, assign, giou, person_task
from streampose.train.person_score import Scene, detect, match, score_scenes, summarise
from streampose.train.recipe import PersonStage, read_recipe
from streampose.train.run import run_recipe

GREEN, RED = (0, 255, 0), (0, 0, 255)
Box = tuple[float, float, float, float]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Nets this small gain nothing from threads, and lose much where the processors are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def person(box: Box, ignore: bool = False) -> Person:
    """A label without keypoints."""
    keypoints = np.zeros((17, 3), np.float32)
    return Person(np.array(box, np.float32), keypoints, keypoints[:, 2] > 0, suspect=False, ignore=ignore, track_id=-1)


def picture(size: tuple[int, int], people: Sequence[Person]) -> bytes:
    """A black picture (JPEG) with people as green ellipses that fill their boxes, and ignored regions as red ones."""
    image = np.zeros((*size, 3), np.uint8)
    y, x = np.indices(size) + 0.5
    for one in people:
        x1, y1, x2, y2 = one.box
        away = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2
        image[away < 1] = RED if one.ignore else GREEN
    ok, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 98])
    assert ok
    return jpeg.tobytes()


def scene(size: tuple[int, int], *people: Person) -> Scene:
    return Scene(picture(size, people), people, "made")


# Cells and boxes


def owned(boxes: Sequence[Box], kinds: Sequence[int], size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Owner and ignored of one picture, with each cell's centre and stride."""
    owner, ignored = assign(torch.tensor([boxes], dtype=torch.float32), torch.tensor([kinds]), size)
    grids = [cell_centres(size // stride, size // stride, stride, torch.zeros(1)) for stride in STRIDES]
    strides = torch.cat([torch.full((len(grid),), stride) for grid, stride in zip(grids, STRIDES, strict=True)])
    return owner[0], ignored[0], torch.cat(grids), strides


def test_a_small_person_is_answered_for_by_the_fine_cells_around_its_middle() -> None:
    owner, ignored, points, strides = owned([(16, 24, 56, 72)], [1], 96)  # its middle is (36, 48)
    mine = owner == 0
    assert {tuple(point) for point in points[mine].tolist()} == {(x, y) for x in (28, 36, 44) for y in (44, 52)}
    assert strides[mine].tolist() == [8] * 6
    assert (owner[~mine] == -1).all()
    assert not ignored.any()


def test_a_large_person_is_answered_for_by_the_coarse_cells() -> None:
    owner, _, points, strides = owned([(32, 0, 352, 384)], [1], 384)  # its middle is (192, 192)
    mine = owner == 0
    assert strides[mine].tolist() == [32] * 4
    assert {tuple(point) for point in points[mine].tolist()} == {(x, y) for x in (176, 208) for y in (176, 208)}


def test_of_two_people_around_one_cell_the_smaller_has_it() -> None:
    for boxes, inner in (([(16, 16, 80, 80), (36, 36, 60, 60)], 1), ([(36, 36, 60, 60), (16, 16, 80, 80)], 0)):
        owner, _, points, strides = owned(boxes, [1, 1], 96)
        fine = strides == 8
        inside = ((points - 48).abs() < 12).all(1) & fine
        assert inside.sum() == 4
        assert (owner[inside] == inner).all()
        assert (owner[strides == 16] == 1 - inner).any()


def test_ignored_regions_silence_their_cells_but_not_a_person_before_them() -> None:
    owner, ignored, points, _ = owned([(0, 0, 96, 64), (16, 8, 48, 56), (64, 64, 96, 96)], [2, 1, 0], 96)
    in_region = points[:, 1] < 64
    assert (owner == 1).any()
    assert not ((owner == 0) | (owner == 2)).any()
    assert torch.equal(ignored, in_region & (owner == -1))


def test_nobody_falls_between_the_levels() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        sides = np.exp(rng.uniform(np.log(10), np.log(384), 2))
        low = rng.uniform(0, 384 - sides)
        owner, *_ = owned([(*low, *(low + sides))], [1], 384)
        assert (owner == 0).any(), f"no cell for a person of {sides} px at {low}"


def test_giou_of_boxes_worked_out_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 2, 3], [0, 0, 1, 1], [1, 2, 4, 9]])
    b = torch.tensor([[1.0, 1, 4, 2], [3, 0, 4, 2], [1, 2, 4, 9]])
    iou, general = giou(a, b)
    assert iou.tolist() == pytest.approx([1 / 8, 0, 1])
    assert general.tolist() == pytest.approx([1 / 8 - 4 / 12, -5 / 8, 1])
    for swapped, straight in zip(giou(b, a), (iou, general), strict=True):
        assert torch.equal(swapped, straight)


def test_giou_pulls_boxes_that_do_not_touch_together() -> None:
    a = torch.tensor([[0.0, 0, 1, 1]], requires_grad=True)
    (slope,) = torch.autograd.grad(giou(a, torch.tensor([[3.0, 0, 4, 2]]))[1].sum(), a)
    assert slope[0, 2] > 0
    assert slope[0, 3] > 0


# Verdicts


def judged(found: Sequence[Box], people: Sequence[Person], min_height_px: float = 80) -> tuple[list[float], int]:
    """Verdicts on detections given best first."""
    scores = np.linspace(0.9, 0.5, len(found), dtype=np.float32)
    verdict, count = match(np.array(found, np.float32).reshape(-1, 4), scores, people, min_height_px)
    return verdict.tolist(), count


def test_a_person_is_found_once() -> None:
    alice, bob = person((10, 10, 50, 110)), person((100, 10, 140, 110))
    assert judged([(12, 12, 52, 112), (10, 10, 50, 110), (300, 10, 340, 110)], [alice, bob]) == ([1, 0, 0], 2)


def test_the_surer_detection_has_the_person_whatever_the_order() -> None:
    boxes = np.array([(0, 0, 40, 110), (10, 10, 50, 110)], np.float32)
    people = [person((10, 10, 50, 110))]
    assert match(boxes, np.array([0.4, 0.8], np.float32), people, 80)[0].tolist() == [0, 1]
    assert match(boxes, np.array([0.8, 0.4], np.float32), people, 80)[0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ((210, 0, 250, 90), -1),  # inside the ignored region
        ((180, 0, 230, 100), -1),  # three fifths of it inside
        ((170, 0, 220, 100), 0),  # two fifths
        ((300, 0, 330, 81), -1),  # on the person too small to count
        ((400, 0, 440, 79), -1),  # itself too small to count
        ((400, 0, 440, 81), 0),
        ((0, 0, 40, 100), 1),
    ],
)
def test_what_cannot_be_judged_is_left_out(found: Box, verdict: float) -> None:
    people = [person((0, 0, 40, 100)), person((200, 0, 280, 100), ignore=True), person((300, 0, 330, 79))]
    assert judged([found], people) == ([verdict], 1)


def test_a_person_before_an_ignored_region_counts_as_found() -> None:
    people = [person((10, 0, 50, 100)), person((0, 0, 200, 120), ignore=True)]
    assert judged([(10, 0, 50, 100), (60, 0, 100, 100)], people) == ([1, -1], 1)


def test_nothing_found_and_nothing_to_find() -> None:
    assert judged([], [person((0, 0, 40, 100))]) == ([], 1)
    assert judged([(0, 0, 40, 100)], []) == ([0], 0)


SCORES = np.array([0.55, 0.5, 0.9, 0.7, 0.8], np.float32)
VERDICTS = np.array([-1, 1, 1, 1, 0], np.float32)
"""Ranked: right, wrong, right, right. Of four people: recall 1/4, 1/4, 2/4, 3/4, precision 1, 1/2, 2/3, 3/4."""


def test_figures_worked_out_by_hand() -> None:
    score = summarise(SCORES, VERDICTS, people=4)
    assert score.ap50 == pytest.approx(1 / 4 * 1 + 1 / 4 * 3 / 4 + 1 / 4 * 3 / 4)
    assert (score.recall, score.precision) == pytest.approx((3 / 4, 3 / 4))
    assert score.threshold == pytest.approx(0.5)
    assert score.people == 4
    fixed = summarise(SCORES, VERDICTS, people=4, threshold=0.75)
    assert (fixed.recall, fixed.precision, fixed.ap50) == pytest.approx((1 / 4, 1 / 2, score.ap50))


def test_figures_when_no_detection_is_left() -> None:
    none = np.zeros(0, np.float32)
    assert summarise(none, none, people=3).recall == 0
    above = summarise(SCORES, VERDICTS, people=3, threshold=0.95)
    assert (above.recall, above.precision) == (0, 0)
    assert above.ap50 > 0


# Pictures put together


TALL = scene((240, 320), person((40, 30, 80, 150)), person((230, 100, 270, 220)))
CROWD = scene((200, 160), person((60, 60, 100, 180)), person((110, 0, 160, 50), ignore=True))
EMPTY = scene((120, 200))


def painted(image: NDArray[np.uint8], channel: int) -> NDArray[np.bool_]:
    """Where a picture is clearly green (1) or red (2)."""
    others = np.delete(image, channel, axis=2).max(axis=2).astype(int)
    return np.asarray(image[..., channel] - others > 0.5 * image[..., channel].max())


def extent(mask: NDArray[np.bool_], box: NDArray[np.float32]) -> NDArray[np.float64]:
    """Box of what is painted within a box and 4 px around it; nan where nothing is."""
    x1, y1, x2, y2 = np.clip(box.round().astype(int) + np.array([-4, -4, 4, 4]), 0, mask.shape[0])
    y, x = np.nonzero(mask[y1:y2, x1:x2])
    if not len(x):
        return np.full(4, np.nan)
    return np.array([x.min() + x1, y.min() + y1, x.max() + 1 + x1, y.max() + 1 + y1], np.float64)


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_boxes_lie_on_the_people(mosaic: float) -> None:
    pictures = Mosaics([([TALL, CROWD, EMPTY], 1)], 256, mosaic, seed=5)
    off, kinds_of_people = [], set()
    for index in range(60):
        sample = pictures[index]
        image, kinds = sample["picture"], sample["kinds"]
        if (np.ptp(image, axis=2) == 0).all():  # made grey: the colours do not tell any more
            continue
        green, red = painted(image, 1), painted(image, 2)
        unlabelled = green | red
        for box, kind in zip(sample["boxes"][kinds > 0], kinds[kinds > 0], strict=True):
            found, is_red = extent(green, box), bool(np.isnan(extent(green, box)).all())
            whole = (box > 1).all() and (box < 255).all()
            if is_red:
                assert kind == 2
            else:
                kinds_of_people.add(int(kind))
                assert kind == 1 or mosaic or not whole
                if whole:
                    off.append(found - box)
            x1, y1, x2, y2 = box.round().astype(int)
            unlabelled[max(0, y1 - 3) : y2 + 3, max(0, x1 - 3) : x2 + 3] = False
        assert not unlabelled.any()
    assert kinds_of_people == {1, 2}
    assert len(off) > 20
    assert np.median(np.abs(off), axis=0) == pytest.approx(0, abs=1)
    if not mosaic:  # in a mosaic, inner edges cut people too
        assert np.abs(off).max() < 3
        assert np.mean(off, axis=0).reshape(2, 2).mean(axis=0) == pytest.approx(0, abs=0.2)


def test_a_part_without_people_touches_nobody() -> None:
    groups = [([TALL, CROWD, EMPTY], 1)]
    with_people = Mosaics(groups, 256, 0.0, seed=5)
    parts = Mosaics(groups, 256, 0.0, seed=5, background=1.0)
    empty = 0
    for index in range(30):
        sample = parts[index]
        picture = sample["picture"]
        if not sample["kinds"].any():
            empty += bool(with_people[index]["kinds"].any())
            assert (np.ptp(picture, axis=2) == 0).all() or not (painted(picture, 1) | painted(picture, 2)).any()
    assert empty > 3


def test_a_sample_depends_on_seed_and_number_alone() -> None:
    groups = [([TALL, EMPTY], 0.7), ([CROWD], 0.3)]
    once, again, other = (Mosaics(groups, 96, 0.5, seed) for seed in (5, 5, 6))
    again[0]  # what was drawn before does not matter
    for key, value in once[3].items():
        assert (value == again[3][key]).all()
    assert (once[3]["picture"] != once[4]["picture"]).any()
    assert (once[3]["picture"] != other[3]["picture"]).any()
    assert once[3]["picture"].shape == (96, 96, 3)
    assert (once[3]["boxes"].shape, once[3]["kinds"].shape) == ((MOST_BOXES, 4), (MOST_BOXES,))


# The network and its training


def test_the_network_is_small_and_starts_silent() -> None:
    network = PersonNetwork().eval()
    assert sum(p.numel() for p in network.parameters()) < 2.5e6
    with torch.inference_mode():
        found = network(torch.randn(2, 3, 64, 96))
    cells = 8 * 12 + 4 * 6 + 2 * 3
    assert (found.boxes.shape, found.logits.shape) == ((2, cells, 4), (2, cells))
    assert (found.boxes[..., 2:] > found.boxes[..., :2]).all()
    assert found.logits.sigmoid().max() < 0.1


@pytest.fixture
def network() -> PersonNetwork:
    """A network whose answers depend on the picture: ImageNet's trunk, and statistics of some noise."""
    torch.manual_seed(2)
    made = PersonNetwork()
    made.trunk.load_imagenet()
    nn.init.normal_(made.score.weight, std=0.5)
    norms = [part for part in made.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        made.train()(torch.randn(4, 3, 128, 128))
    return made.eval()


def test_what_is_exported_sees_the_same_in_raw_bgr(network: PersonNetwork) -> None:
    frames = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (2, 64, 96, 3), np.uint8))
    with torch.inference_mode():
        boxes, logits = network(normalise(frames))
        for given, same in ((frames, True), (frames.flip(-1), False)):
            exported_boxes, scores = PersonExport(network).eval()(given)
            assert ((exported_boxes - boxes).abs().max() < 1e-3 * boxes.std()) == same
            assert ((scores - logits.sigmoid()).abs().max() < 1e-4) == same


def test_a_cell_looks_at_its_own_place(network: PersonNetwork) -> None:
    height, width = 256, 384
    frames = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1), requires_grad=True)
    found = network(frames)
    points = torch.cat([cell_centres(height // s, width // s, s, frames) for s in STRIDES])
    assert found.boxes.shape == (1, len(points), 4)
    assert ((found.boxes[0, :, :2] < points) & (points < found.boxes[0, :, 2:])).all()
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    first = 0
    for stride in STRIDES:
        rows, columns = height // stride, width // stride
        cell = first + rows // 4 * columns + columns * 3 // 4  # up and to the right
        first += rows * columns
        (slope,) = torch.autograd.grad(found.logits[0, cell], frames, retain_graph=True)
        weight = slope[0].square().sum(0)
        seen = torch.stack([(x * weight).sum(), (y * weight).sum()]) / weight.sum()
        assert (seen - points[cell]).abs().max() < 48, stride


@pytest.mark.slow
def test_it_learns_to_put_boxes_where_the_labels_are(tmp_path: Path) -> None:
    scenes = [scene((96, 96), person((x, y, x + 30, y + 84))) for x, y in ((4, 6), (20, 2), (50, 9), (60, 4), (33, 6))]
    torch.manual_seed(0)
    made = PersonNetwork()
    made.trunk.load_imagenet()
    task = PersonTask(made, Mosaics([(scenes[:4], 1), ([EMPTY], 0.3)], 96, 0, seed=1), scenes[4:], trunk_lr=0.5)
    settings = LoopSettings(steps=150, batch_size=6, lr=3e-3, warmup_steps=10, ema_decay=0.9, workers=0, seed=1)
    trained = fit(task, settings, tmp_path)
    assert isinstance(trained, PersonNetwork)
    score = score_scenes(trained, scenes[4:], 96, min_height_px=80)
    assert (score.people, score.recall, score.precision) == (1, 1, 1)
    _, scores = detect(trained, EMPTY.image(), 96)
    assert (scores < score.threshold).all()


def test_ignored_cells_and_empty_pictures_have_a_finite_loss() -> None:
    network = PersonNetwork().eval()
    task = PersonTask(network, Mosaics([([EMPTY], 1)], 64, 0, seed=1), [], trunk_lr=0.5)
    batch = {
        "picture": torch.zeros(1, 64, 64, 3, dtype=torch.uint8),
        "boxes": torch.tensor([[[0.0, 0, 64, 64]]]),
        "kinds": torch.tensor([[2]]),
    }
    assert {name: float(value.detach()) for name, value in task.losses(batch).items()} == {"score": 0, "box": 0}
    nothing = task.losses({**batch, "kinds": torch.tensor([[0]])})
    assert nothing["score"] > 0
    assert nothing["box"] == 0
    nothing["score"].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


# The recipe


@pytest.fixture
def pack(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    """A data pack of a few small pictures and two clips."""
    root = tmp_path / "pack"
    (root / "stills").mkdir(parents=True)
    (root / "clips" / "annotations").mkdir(parents=True)
    for name in STILL_SETS:
        count = 62 if name == "lspet" else 1  # the fourth block of twenty is validation
        people = [] if name == "davis_neg" else [person((40, 10, 80, 110))]
        jpeg = picture((120, 120), people)
        images, annotations = [], []
        with tarfile.open(root / "stills" / f"{name}_00.tar", "w") as tar:
            for index in range(count):
                member = tarfile.TarInfo(f"{index:03d}.jpg")
                member.size = len(jpeg)
                tar.addfile(member, io.BytesIO(jpeg))
                images.append({"id": index, "tar": 0, "file_name": member.name})
                annotations += [{"image_id": index, "bbox": [40, 10, 40, 100]} for _ in people]
        _write(root / "stills" / f"{name}.json", {"images": images, "annotations": annotations})
    for name in ("walk", "asl_walk"):  # the second is a validation clip
        make_video(f"pack/clips/{name}.mp4", frames=6)
        images = [{"id": index} for index in range(6)]
        annotations = [{"image_id": index, "bbox": [10 + 2 * index, 30, 20, 50], "track_id": 1} for index in range(6)]
        labels = {"info": {"fps": "25"}, "images": images, "annotations": annotations}
        _write(root / "clips" / "annotations" / f"{name}.json", labels)
    return root


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def overrides(steps: int) -> list[str]:
    """The bundled recipe at a size for tests. While it warms up, the rates do not depend on the number of steps."""
    small = ("size=64", "clip_every=3", "loop.batch_size=2", "loop.workers=0", "loop.warmup_steps=9")
    stages = [stage.name for stage in read_recipe("person").stage]
    return [f"{stage}.{key}" for stage in stages for key in (*small, f"loop.steps={steps}")]


def test_the_recipe_runs_and_goes_on_where_it_stopped(tmp_path: Path, pack: Path) -> None:
    whole = _state(run_recipe("person", pack, tmp_path / "whole", overrides=overrides(2)))
    assert whole["step"] == 2
    last = read_recipe("person").stage[-1].name
    shorter = [*overrides(2), f"{last}.loop.steps=1"]
    cut = _state(run_recipe("person", pack, tmp_path / "cut", overrides=shorter))
    assert cut["step"] == 1
    with pytest.raises(UsageError, match="--resume"):
        run_recipe("person", pack, tmp_path / "cut", overrides=overrides(2))
    resumed = _state(run_recipe("person", pack, tmp_path / "cut", resume=True, overrides=overrides(2)))
    for part in ("model", "ema"):
        assert whole[part].keys() == resumed[part].keys()
        for name, value in whole[part].items():
            assert torch.allclose(value, resumed[part][name], atol=1e-6), name
    assert any(not torch.equal(cut["ema"][name], value) for name, value in whole["ema"].items())


def _state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return state


def test_a_stage_starts_from_the_one_before_and_leaves_the_early_trunk_alone(tmp_path: Path, pack: Path) -> None:
    stage = read_recipe("person", overrides(1)).stage[-1]
    assert isinstance(stage, PersonStage)
    before = PersonNetwork()
    torch.save({"network": {DETECTOR: "person"}, "ema": before.state_dict()}, tmp_path / "before.pt")
    task = person_task(stage, pack, tmp_path / "before.pt")
    fit(task, stage.loop, tmp_path / "out")
    assert load_detector(tmp_path / "out" / "checkpoint.pt").input_size == (stage.size, stage.size)
    after = task.model.state_dict()
    frozen = {name for name in after if name.startswith(("trunk.stem.", "trunk.stages.0.", "trunk.stages.1."))}
    assert frozen
    for name, value in before.state_dict().items():
        if value.dtype.is_floating_point:
            assert torch.equal(value, after[name]) == (name in frozen), name
