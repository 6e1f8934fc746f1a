"""Does the mutual-information objective help? Fusers trained on the same windows, with and without it, and measured.

    python benchmarks/mutual_information.py --data ../shared/data --out runs/mutual_information

The bundled encoder makes the features of all windows once; every arm and seed trains a fuser of its own on them. Half
of the key frames are motion-blurred or covered while their supporting frames are clean. It can be stopped and started
again at any time, and `--arms`/`--seeds` lets several processes share the work: finished runs are kept as json, the
table is printed from all that there are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from extras import needs
from numpy.typing import NDArray
from rich.progress import track

from streampose.engines import Engine, load_engine, whole_pictures

with needs("train"):
    import torch
    from torch import Tensor, nn

    from streampose.model import FamiPose, decode, fami_pose
    from streampose.train.augment import blur
    from streampose.train.losses import distributions, gaussian_maps, heatmap_cross_entropy
    from streampose.train.mutual_information import SupportDecoder, information_gain, released_terms, support_loss
    from streampose.train.pack import read_clips, read_stills
    from streampose.train.pose import human_subjects, training_groups
    from streampose.train.windows import Subject, Windows, WindowSettings, clip_subjects, make_window

OFFSETS = (-4, -3, -2, -1)
CELL_PX = 4.0
SHARES = {"lspet": 0.4, "ccp": 0.1, "lschen_ped": 0.1, "clips": 0.4}
ARMS = ("single", "five", "five+mi", "five+released", "five-joint")
CONDITIONS = ("clean", "blur", "occlusion")
MI_WEIGHT = 0.3


@dataclass(frozen=True)
class Cache:
    """Features of windows, encoded once.

    Attributes:
        keys: (N, 3, C, h, w) of the key frame clean, blurred and covered.
        supports: (N, S, C, h, w).
        transforms: (N, T, 2, 2, 3), see `FamiPose.fuse`.
        points, weights, side: (N, J, 2) and (N,) crop pixels, weights (N, J) 0..1.
    """

    keys: NDArray[np.float16]
    supports: NDArray[np.float16]
    transforms: NDArray[np.float32]
    points: NDArray[np.float32]
    weights: NDArray[np.float32]
    side: NDArray[np.float32]


def cover(crop: NDArray[np.uint8], points: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Two patches of noise, as large as a torso's part, each over a joint."""
    covered = crop.copy()
    height, width = crop.shape[:2]
    for _ in range(2):
        x, y = points[int(rng.integers(len(points)))]
        half = rng.uniform(0.06, 0.16, 2) * height
        low = np.clip([x - half[0], y - half[1]], 0, [width, height]).astype(int)
        high = np.clip([x + half[0], y + half[1]], 0, [width, height]).astype(int)
        patch = rng.integers(0, 256, 3) + rng.normal(0, 25, (*(high - low)[::-1], 3))
        covered[low[1] : high[1], low[0] : high[0]] = np.clip(patch, 0, 255)
    return covered


def encode_all(engine: Engine, samples: Sequence[dict[str, Any]], out: Path, human_only: bool) -> Cache:
    """Encode windows (see `Windows`) and keep them in files under `out`; read them where they are there already."""
    if not (out / "labels.npz").exists():
        out.mkdir(parents=True, exist_ok=True)
        labels: dict[str, list[Any]] = {"transforms": [], "points": [], "weights": [], "side": []}
        shape = (len(samples), 32, 64, 48)
        keys = np.lib.format.open_memmap(out / "keys.npy", "w+", np.float16, (shape[0], 3, *shape[1:]))
        supports = np.lib.format.open_memmap(out / "supports.npy", "w+", np.float16, (shape[0], 4, *shape[1:]))
        for index in track(range(len(samples)), f"encoding {out.name}"):
            sample, rng = samples[index], np.random.default_rng((11, index))
            key, points = sample["crops"][0], sample["points"]
            blurred = blur(key, float(rng.uniform(0.05, 0.14)), float(rng.uniform(0, 180)))
            views = np.stack([key, blurred, cover(key, points, rng), *sample["crops"][1:]])
            features = np.stack([engine.read(feature) for feature in engine.encode(whole_pictures(views))])
            keys[index], supports[index] = features[:3], features[3:]
            for name, values in labels.items():
                values.append(sample[name])
            if human_only:
                labels["weights"][-1] = sample["human"].astype(np.float32)
        np.savez(out / "labels.npz", **{name: np.stack(values) for name, values in labels.items()})
    stored = np.load(out / "labels.npz")
    keys, supports = (np.load(out / f"{name}.npy", mmap_mode="r") for name in ("keys", "supports"))
    return Cache(keys, supports, *(stored[name] for name in ("transforms", "points", "weights", "side")))


class Lazy(Sequence[dict[str, Any]]):
    """Windows of subjects, made when they are looked at."""

    def __init__(self, subjects: Sequence[Subject], settings: WindowSettings) -> None:
        self.subjects, self.settings = subjects, settings

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: Any) -> Any:
        return make_window(self.subjects[index], self.settings, np.random.default_rng((7, index)))


class First(Sequence[dict[str, Any]]):
    """The first `count` samples of endless windows."""

    def __init__(self, windows: Windows, count: int) -> None:
        self.windows, self.count = windows, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        return self.windows[index]


def prepare(data: Path, out: Path, count: int) -> dict[str, Cache]:
    """The training windows, and for validation human-labelled stills and people of clips that are never trained on."""
    engine, size = load_engine("lite"), (256, 192)
    ready = all((out / name / "labels.npz").exists() for name in ("train", "stills", "clips"))
    windows: list[Sequence[dict[str, Any]]] = [[], [], []]
    if not ready:
        settings = WindowSettings(size=size, offsets=OFFSETS, corrupt_key=0.0, born=0.0)
        evaluation = WindowSettings.for_evaluation(size, OFFSETS, 0.0)
        clips = clip_subjects(read_clips(data, "val"), OFFSETS, 2)
        windows = [
            First(Windows(training_groups(data, SHARES, OFFSETS, 3), settings, 5), count),
            Lazy(human_subjects(read_stills(data, "val", ["lspet"])), evaluation),
            Lazy(clips, evaluation),
        ]
    names = ("train", "stills", "clips")
    return {n: encode_all(engine, w, out / n, n == "stills") for n, w in zip(names, windows, strict=True)}


def batch_of(cache: Cache, rows: NDArray[np.intp], views: NDArray[np.intp], single: bool) -> dict[str, Tensor]:
    """A batch; `views` says which of the key frame's three. `single` gives the key frame itself as the one support: the
    same network, as large, that sees nothing of the other frames (four times the same would give the same)."""
    key = cache.keys[rows, views]
    supports = key[:, None] if single else cache.supports[rows]
    transforms = cache.transforms[rows]
    if single:
        transforms = np.broadcast_to(np.eye(2, 3, dtype=np.float32), (len(rows), 2, 2, 2, 3))
    features = np.concatenate([key[:, None], supports], axis=1).astype(np.float32)
    points, weights = torch.from_numpy(cache.points[rows]), torch.from_numpy(cache.weights[rows])
    targets = distributions(gaussian_maps(points, (64, 48), CELL_PX))
    weights = weights * (targets.sum(dim=(2, 3)) > 0)
    return {
        "features": torch.from_numpy(features),
        "transforms": torch.from_numpy(np.ascontiguousarray(transforms)),
        "targets": targets,
        "weights": weights,
    }


def train_head(cache: Cache, rng: np.random.Generator, steps: int, batch_size: int) -> nn.Conv2d:
    """The single-frame head on the key frames' features: what every arm begins with and is compared with."""
    head = nn.Conv2d(32, 17, 1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for step in range(steps):
        rows = rng.integers(len(cache.points), size=batch_size)
        views = np.where(rng.random(batch_size) < 0.5, 0, rng.integers(1, 3, batch_size))
        batch = batch_of(cache, rows, views, single=True)
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimizer.zero_grad()
        heatmap_cross_entropy(head(batch["features"][:, 0]), batch["targets"], batch["weights"]).backward()
        optimizer.step()
    return head


def peaks(logits: Tensor) -> Tensor:
    """Distributions scaled to height 1, as the released formula expects its maps."""
    return (logits - logits.amax(dim=(2, 3), keepdim=True)).exp()


def terms_of(arm: str, network: FamiPose, decoder: SupportDecoder, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The named terms of an arm's loss, weighted; the sum is what is minimised."""
    parts = network.fuse_parts(batch["features"], batch["transforms"])
    targets, weights = batch["targets"], batch["weights"]
    terms = {"heatmap": heatmap_cross_entropy(parts.heatmaps, targets, weights)}
    if arm == "five+mi":
        terms["support"] = MI_WEIGHT * support_loss(decoder, parts.aligned, targets, weights)
    if arm == "five+released":
        key, support = batch["features"][:, 0], batch["features"][:, 1:].mean(dim=1)
        maps = [peaks(network.single(f)) for f in (key, support, parts.fused)]
        terms |= released_terms(*maps, peaks(parts.heatmaps), key, support, parts.fused)
    return terms


def train_arm(arm: str, seed: int, caches: dict[str, Cache], steps: int, batch_size: int) -> dict[str, Any]:
    """Train one fuser and measure it."""
    torch.manual_seed(seed)
    rng, cache = np.random.default_rng(seed), caches["train"]
    head = train_head(cache, rng, 200, 32)
    network = fami_pose("lite", OFFSETS, alignment="joint" if arm == "five-joint" else "per-frame")
    network.encoder.head.load_state_dict(head.state_dict())
    network.fuser.head.load_state_dict(head.state_dict())
    decoder = SupportDecoder(32, 17)
    learnt = [*network.fuser.parameters(), *decoder.parameters()]
    network.freeze_encoder()
    network.train()
    optimizer = torch.optim.AdamW(learnt, lr=1.5e-3, weight_decay=1e-2)
    log: list[dict[str, float]] = []
    for step in track(range(steps), f"{arm} seed {seed}"):
        share = min((step + 1) / 40, 0.5 * (1 + np.cos(np.pi * step / steps)) + 0.02)
        optimizer.param_groups[0]["lr"] = 1.5e-3 * share
        rows = rng.integers(len(cache.points), size=batch_size)
        views = np.where(rng.random(batch_size) < 0.5, 0, rng.integers(1, 3, batch_size))
        batch = batch_of(cache, rows, views, arm == "single")
        terms = terms_of(arm, network, decoder, batch)
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learnt, 5.0)
        optimizer.step()
        log.append({name: float(value.detach()) for name, value in terms.items()})
    network.eval()
    last = log[-50:]
    losses = {name: float(np.mean([row[name] for row in last])) for name in last[0]}
    figures = {name: measure(network, caches[name], arm == "single") for name in ("stills", "clips")}
    return {"arm": arm, "seed": seed, "steps": steps, "batch_size": batch_size, "losses": losses, **figures}


@torch.inference_mode()
def measure(network: FamiPose, cache: Cache, single: bool) -> dict[str, dict[str, float]]:
    """PCK@0.1 of the longer box side (0..1) and information gain (nats) for each condition of the key frame."""
    figures = {}
    for view, condition in enumerate(CONDITIONS):
        right = total = 0.0
        gains, weight = 0.0, 0.0
        for start in range(0, len(cache.points), 32):
            rows = np.arange(start, min(start + 32, len(cache.points)))
            batch = batch_of(cache, rows, np.full(len(rows), view), single)
            heatmaps = network.fuse(batch["features"], batch["transforms"])
            alone = network.single(batch["features"][:, 0])
            share = float(batch["weights"].sum())
            gains += share * float(information_gain(alone, heatmaps, batch["targets"], batch["weights"]))
            weight += share
            keypoints = decode(heatmaps).numpy()
            near = np.linalg.norm(keypoints[..., :2] - cache.points[rows], axis=2) <= 0.1 * cache.side[rows, None]
            counted = cache.weights[rows] > 0.3
            right += (near & counted).sum()
            total += counted.sum()
        figures[condition] = {"pck01": right / total, "gain_nats": gains / weight, "joints": int(total)}
    return figures


def table(out: Path) -> str:
    """Mean and spread (standard deviation over seeds) of all finished runs, as Markdown."""
    runs = [json.loads(path.read_text()) for path in sorted(out.glob("*-*.json"))]
    lines = ["| arm | seeds | " + " | ".join(f"{s} {c}" for s in ("stills", "clips") for c in CONDITIONS) + " |"]
    lines.append("|---|---|" + "---|" * (2 * len(CONDITIONS)))
    for arm in ARMS:
        chosen = [run for run in runs if run["arm"] == arm]
        if not chosen:
            continue
        cells = []
        for split in ("stills", "clips"):
            for condition in CONDITIONS:
                values = [100 * run[split][condition]["pck01"] for run in chosen]
                gain = np.mean([run[split][condition]["gain_nats"] for run in chosen])
                cells.append(
                    f"{np.mean(values):.1f} ± {np.std(values, ddof=min(1, len(values) - 1)):.1f} ({gain:+.2f})"
                )
        lines.append(f"| {arm} | {len(chosen)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in the pack's layout")
    parser.add_argument("--out", type=Path, default=Path("runs/mutual_information"))
    parser.add_argument("--windows", type=int, default=4000, help="training windows to encode")
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    caches = prepare(arguments.data, arguments.out, arguments.windows)
    for seed in arguments.seeds:
        for arm in arguments.arms:
            done = arguments.out / f"{arm}-{seed}.json"
            if done.exists():
                found = json.loads(done.read_text())
                if (found["steps"], found["batch_size"]) != (arguments.steps, arguments.batch_size):
                    parser.error(f"{done} is of a run with other --steps or --batch-size; choose another --out")
            else:
                run = train_arm(arm, seed, caches, arguments.steps, arguments.batch_size)
                done.write_text(json.dumps(run, indent=1))
    print(table(arguments.out))


if __name__ == "__main__":
    main()
