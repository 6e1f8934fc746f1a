"""Variations of training windows. Geometry is the same for all frames, or known: it goes into the transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from streampose.geometry import compose, invert, transform
from streampose.skeleton import Skeleton

Image = NDArray[np.uint8]
Array = NDArray[np.float32]
Rng = np.random.Generator

LOWER_BODY = ("hip", "knee", "ankle")
SWING_SIGMA = (0.8, 1.6)
"""A moving limb takes along what is near it: the spread of that, over the farthest that it moves in a window."""
HALF_BODY_GROWTH = 1.2
"""Half a body's box is the extent of its joints grown by this; with the crop's margin of 1.25 that is HRNet's 1.5."""
LEAST_HALF_BODY = 3


def half_body_box(keypoints: Array, skeleton: Skeleton, least_joints: int, rng: Rng) -> Array | None:
    """The box (4,) xyxy of a person's upper or lower half; None where too little is labelled.

    Args:
        keypoints: (J, 3) x, y, weight.
        least_joints: so many labelled joints the whole person must have (8 in HRNet and FAMI-Pose).
    """
    labelled = keypoints[:, 2] > 0
    if labelled.sum() < least_joints:
        return None
    lower = np.array([any(part in name for part in LOWER_BODY) for name in skeleton.joints])
    halves = [half for half in (labelled & lower, labelled & ~lower) if half.sum() >= LEAST_HALF_BODY]
    if not halves:
        return None
    points = keypoints[halves[int(rng.integers(len(halves)))], :2]
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    half = np.maximum((points.max(axis=0) - points.min(axis=0)) / 2 * HALF_BODY_GROWTH, 4.0)
    return np.concatenate([middle - half, middle + half]).astype(np.float32)


def motions(centre: Array, side: float, offsets: Sequence[int], strength: float, rng: Rng) -> list[Array]:
    """Made-up movement of a still picture: an affine (2, 3) for the key frame (none) and for each supporting frame.

    Args:
        centre: (2,) of the person, in picture pixels; turning and growing leave it.
        side: of the person's box, in picture pixels.
        strength: largest movement between neighbouring frames, in sides; 0 is none at all.
    """
    identity = np.eye(2, 3, dtype=np.float32)
    if not strength:
        return [identity] * (1 + len(offsets))
    speed = rng.uniform(-1, 1, 2) * strength * side
    turn, growth = float(rng.uniform(-2, 2)), float(rng.uniform(-0.01, 0.01))
    moved = [identity]
    for offset in offsets:
        angle, scale = np.deg2rad(turn * offset), 1 + growth * offset
        linear = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        shift = centre - linear @ centre + speed * offset + rng.uniform(-0.005, 0.005, 2) * side
        moved.append(np.concatenate([linear, shift[:, None]], axis=1).astype(np.float32))
    return moved


def swing(crops: list[Image], labels: list[Array], offsets: Sequence[int], speed: float, rng: Rng) -> None:
    """Made-up movement of limbs: in the supporting frames of a still, the surroundings of a few joints lie elsewhere.

    Args:
        crops: of the window, key frame first, which stays.
        labels: (J, 3) of each frame, x and y in its crop's pixels, and weight; they move along.
        speed: largest movement between neighbouring frames, in crop pixels.
    """
    seen = np.flatnonzero(labels[0][:, 2] > 0)
    if not len(seen):
        return
    chosen = rng.choice(seen, min(len(seen), int(rng.integers(1, 5))), replace=False)
    angles, sizes = rng.uniform(0, 2 * np.pi, len(chosen)), rng.uniform(0, speed, len(chosen))
    velocities = np.column_stack([np.cos(angles), np.sin(angles)]) * sizes[:, None]
    sigmas = np.maximum(rng.uniform(*SWING_SIGMA, len(chosen)) * sizes * -min(offsets), 0.06 * len(crops[0]))
    for frame, offset in enumerate(offsets, 1):
        centres = labels[frame][chosen, :2].astype(np.float64)

        def displacement(points: NDArray[np.float64], at: NDArray[np.float64] = centres, by: int = offset) -> Any:
            apart = np.square(points[..., None, :] - at).sum(axis=-1)
            near = np.exp(-apart / (2 * sigmas**2))
            return (near / np.maximum(1, near.sum(axis=-1, keepdims=True))) @ (velocities * by)

        crops[frame] = _warped(crops[frame], displacement)
        labels[frame] = labels[frame].copy()
        labels[frame][:, :2] += displacement(labels[frame][:, :2].astype(np.float64))


def _warped(crop: Image, displacement: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Image:
    """The crop with what lies at each point p moved to p + displacement(p), for points (..., 2)."""
    height, width = crop.shape[:2]
    step = 8
    grid = np.stack(np.meshgrid(np.arange(0, width + 1, step), np.arange(0, height + 1, step)), axis=-1).astype(float)
    origin = grid.copy()
    for _ in range(4):
        origin = grid - displacement(origin)
    fine = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1).astype(np.float32) / step
    off = cv2.remap((origin - grid).astype(np.float32), fine[..., 0], fine[..., 1], cv2.INTER_LINEAR)
    at = fine * step + off - 0.5
    moved = cv2.remap(crop, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8)


def drift(key: Array, side: float, size: tuple[int, int], strength: float, rng: Rng) -> Array:
    """The crop affine (2, 3) of a supporting frame: often the key frame's, otherwise up to `strength` box sides off."""
    if rng.random() < 0.5:
        return key
    scale = 1 + rng.uniform(-1, 1) * strength
    centre = np.array([size[1] / 2, size[0] / 2])
    shift = centre * (1 - scale) + rng.uniform(-1, 1, 2) * strength * side * np.hypot(*key[0, :2])
    return compose(np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], np.float32), key)


def repeat_oldest(frames: Sequence[list[Any]], offsets: Sequence[int], age: int) -> None:
    """Put the oldest of the `age` newest frames before the key, or the key itself, where older ones are missing; in
    each of the lists, which are in the order of the window."""
    by_age = sorted(range(1 + len(offsets)), key=lambda slot: -(0, *offsets)[slot])
    oldest = by_age[age]
    for slot in by_age[age + 1 :]:
        for values in frames:
            values[slot] = values[oldest]


def flip(crops: list[Image], points: Array, transforms: Array, skeleton: Skeleton) -> tuple[list[Image], Array, Array]:
    """Mirror crops, points (J, 2) (left and right joints exchanged) and transforms (T, 2, 2, 3)."""
    mirror = np.array([[-1, 0, crops[0].shape[1]], [0, 1, 0]], np.float32)
    flipped = [np.ascontiguousarray(crop[:, ::-1]) for crop in crops]
    same = np.broadcast_to(mirror, transforms.shape)
    mirrored = transform(points, mirror)[list(skeleton.mirror)]
    return flipped, mirrored, compose(same, compose(transforms, invert(same)))


def shade(crops: list[Image], rng: Rng) -> None:
    """The same change of light, contrast and tint on all frames of the window."""
    gain = rng.uniform(0.65, 1.4) * rng.uniform(0.92, 1.08, 3)
    bias = rng.uniform(-25, 25)
    tables = np.clip(np.arange(256)[:, None] * gain + bias, 0, 255).astype(np.uint8)
    for index, crop in enumerate(crops):
        crops[index] = np.asarray(cv2.LUT(crop, tables[None]), np.uint8)


def cover(crops: list[Image], points: Array, rng: Rng) -> None:
    """A flat patch over one of the joints (J, 2), in all frames."""
    height, width = crops[0].shape[:2]
    x, y = points[int(rng.integers(len(points)))]
    half = rng.uniform(0.05, 0.16, 2) * height
    low = np.clip([x - half[0], y - half[1]], 0, [width, height]).astype(int)
    high = np.clip([x + half[0], y + half[1]], 0, [width, height]).astype(int)
    colour = rng.integers(0, 256, 3)
    for crop in crops:
        crop[low[1] : high[1], low[0] : high[0]] = colour


def degrade(crops: list[Image], rng: Rng) -> None:
    """What cameras and codecs do, the same on all frames: few pixels, JPEG's blocks, mild blur or low light."""
    kind = rng.integers(4)
    height, width = crops[0].shape[:2]
    quality, share = int(rng.integers(8, 40)), float(rng.uniform(0.15, 0.5))
    strength, angle_deg, gain = (
        float(rng.uniform(0.015, 0.05)),
        float(rng.uniform(0, 180)),
        float(rng.uniform(0.15, 0.5)),
    )
    for index, crop in enumerate(crops):
        if kind == 0:
            small = cv2.resize(crop, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
            crops[index] = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
        elif kind == 1:
            encoded = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            crops[index] = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)
        elif kind == 2:
            crops[index] = blur(crop, strength, angle_deg)
        else:
            crops[index] = darken(crop, gain, rng)


def paste(crops: list[Image], points: Array, other: Image, rng: Rng) -> None:
    """Another person's crop (H, W, 3) as a soft ellipse over part of the person, in all frames.

    Args:
        points: (J, 2) joints in crop pixels; the middle of the other person comes near one of them.
    """
    height, width = crops[0].shape[:2]
    scale = rng.uniform(0.5, 1.0)
    middle = points[int(rng.integers(len(points)))] + rng.uniform(-0.25, 0.25, 2) * width
    matrix = np.array([[scale, 0, middle[0] - scale * width / 2], [0, scale, middle[1] - scale * height / 2]])
    rows, columns = np.indices((height, width), np.float32)
    inside = ((columns / width - 0.5) / 0.28) ** 2 + ((rows / height - 0.5) / 0.42) ** 2
    mask = np.clip(4 * (1 - inside), 0, 1)
    laid, mask = (cv2.warpAffine(layer, matrix, (width, height)) for layer in (other, mask))
    for index, crop in enumerate(crops):
        crops[index] = (crop + mask[..., None] * (laid.astype(np.float32) - crop)).astype(np.uint8)


def corrupt(crop: Image, points: Array, rng: Rng) -> Image:
    """Motion blur, low light or patches, on one frame.

    Args:
        crop: (H, W, 3) uint8.
        points: (J, 2) joints in crop pixels; a patch lies over one of them.
    """
    kind = rng.integers(3)
    if kind == 0:
        return blur(crop, float(rng.uniform(0.04, 0.14)), float(rng.uniform(0, 180)))
    if kind == 1:
        return darken(crop, float(rng.uniform(0.05, 0.25)), rng)
    covered = crop.copy()
    for _ in range(int(rng.integers(1, 3))):
        cover([covered], points, rng)
    return covered


def spoil(crop: Image, points: Array, kind: str, strength: float, rng: Rng) -> Image:
    """One kind of corruption at a given strength, for measuring.

    Args:
        crop: (H, W, 3) uint8; points: (J, 2) joints in crop pixels.
        kind: "blur", "dark" or "cover".
        strength: of "blur" its length and of "cover" half the side of a patch over one joint, as shares of the crop's
            height; of "dark" the share of the light that is taken away.
    """
    if kind == "blur":
        return blur(crop, strength, float(rng.uniform(0, 180)))
    if kind == "dark":
        return darken(crop, 1 - strength, rng)
    covered = crop.copy()
    x, y = points[int(rng.integers(len(points)))]
    low = np.clip([x - strength * len(crop), y - strength * len(crop)], 0, crop.shape[1::-1]).astype(int)
    high = np.clip([x + strength * len(crop), y + strength * len(crop)], 0, crop.shape[1::-1]).astype(int)
    covered[low[1] : high[1], low[0] : high[0]] = rng.integers(0, 256, 3)
    return covered


def blur(crop: Image, strength: float, angle_deg: float) -> Image:
    """Linear motion blur over `strength` of the crop's height (0..1) along `angle_deg`."""
    length = max(3, int(strength * crop.shape[0]) | 1)
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1
    turn = cv2.getRotationMatrix2D((length // 2, length // 2), angle_deg, 1)
    turned = cv2.warpAffine(kernel, turn, (length, length))
    return np.asarray(cv2.filter2D(crop, -1, turned / turned.sum()), np.uint8)


def darken(crop: Image, gain: float, rng: Rng) -> Image:
    """Low light: `gain` (0..1) of the light is left, with the noise of a sensor that amplifies it."""
    noise = rng.normal(0, 6, crop.shape)
    return np.asarray(np.clip(crop * gain + noise, 0, 255), np.uint8)
