"""Poses drawn over a picture: limbs, joints, boxes, ids and a caption, as thick as people are large."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from streampose.skeleton import COCO17, SKELETONS, Skeleton
from streampose.types import Pose, PoseFrame

JOINT_SCORE = 0.3
"""Joints below this score are not drawn."""
SURE_SCORE = 0.55
"""Joints and limbs below this score are drawn half transparent."""
_INK = (28, 24, 20)
_PAPER = (245, 245, 245)
_THINNEST_RIMMED = 1.6
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SHIFT = 4
_SMALLEST_TEXT = 0.15

Colour = tuple[int, int, int]
Canvas = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Mark:
    """A limb (two ends) or a joint (`end` is None)."""

    start: tuple[float, float]
    end: tuple[float, float] | None
    paint: Colour
    width: float
    score: float


def draw_poses(image: NDArray[np.uint8], poses: PoseFrame, fps: float | None = None) -> NDArray[np.uint8]:
    """A copy of a picture with everybody's pose.

    Args:
        image: (H, W, 3) uint8 BGR.
        poses: the people in it, in its pixels.
        fps: measured results a second, for the caption.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    skeleton = SKELETONS.get(poses.skeleton, COCO17)
    people = sorted(poses.people, key=lambda pose: float(pose.box[3]))
    canvas = image.copy()
    for pose in people:
        _draw_box(canvas, pose)
    marks = [mark for pose in people for mark in _marks(pose, skeleton)]
    unsure = [mark for mark in marks if mark.score < SURE_SCORE]
    if unsure:
        layer = canvas.copy()
        _draw_marks(layer, unsure)
        canvas = np.asarray(cv2.addWeighted(layer, 0.5, canvas, 0.5, 0), np.uint8)
    _draw_marks(canvas, [mark for mark in marks if mark.score >= SURE_SCORE])
    scale = _text_scale(image)
    for pose in people:
        roomy = pose.box[2] - pose.box[0] > 160 * scale
        label = f"{pose.track_id}  {pose.score:.2f}" if roomy else f"{pose.track_id}"
        _draw_text(canvas, label, (float(pose.box[0]), float(pose.box[1])), track_colour(pose.track_id), _INK, scale)
    count = len(people)
    parts = [poses.source, f"frame {poses.frame_index}", f"{count} {'person' if count == 1 else 'people'}"]
    if fps is not None:
        parts.append(f"{fps:.1f} fps")
    if poses.dropped:
        parts.append(f"{poses.dropped} dropped")
    _draw_text(canvas, "   ".join(parts), (0.0, float(image.shape[0])), _INK, _PAPER, scale, 0.65)
    return canvas


def track_colour(track_id: int) -> Colour:
    """The BGR colour of a track: hues a golden angle apart, so that neighbours differ."""
    red, green, blue = colorsys.hsv_to_rgb((0.47 + 0.381966 * (track_id - 1)) % 1.0, 0.78, 1.0)
    return round(255 * blue), round(255 * green), round(255 * red)


def _marks(pose: Pose, skeleton: Skeleton) -> list[_Mark]:
    """Limbs, then joints; the person's left side lighter, the right side deeper."""
    colour = track_colour(pose.track_id)
    side_colours = {"left": _mixed(colour, 255, 0.5), "right": _mixed(colour, 0, 0.3)}
    sides = [name.partition("_")[0] for name in skeleton.joints]
    width = float(np.clip(max(pose.box[2:] - pose.box[:2]) / 75, 1.0, 10.0))
    points = [(float(x), float(y)) for x, y in pose.keypoints[:, :2]]
    marks = []
    for a, b in skeleton.edges:
        score = float(min(pose.keypoints[a, 2], pose.keypoints[b, 2]))
        paint = side_colours.get(sides[a], colour) if sides[a] == sides[b] else colour
        marks.append(_Mark(points[a], points[b], paint, width, score))
    for point, side, score in zip(points, sides, pose.keypoints[:, 2], strict=True):
        marks.append(_Mark(point, None, side_colours.get(side, colour), width, float(score)))
    return [mark for mark in marks if mark.score >= JOINT_SCORE]


def _draw_marks(canvas: Canvas, marks: list[_Mark]) -> None:
    """Limbs and over them joints as dots, all with a dark rim unless they are thin."""
    for rim in (True, False):
        for mark in marks:
            if mark.end is not None:
                if rim and mark.width < _THINNEST_RIMMED:
                    continue
                width = max(1, round(mark.width * (1.6 if rim else 1.0)))
                paint = _INK if rim else mark.paint
                cv2.line(canvas, _fixed(mark.start), _fixed(mark.end), paint, width, cv2.LINE_AA, _SHIFT)
    for mark in marks:
        if mark.end is None:
            radius = 1.15 * mark.width
            if mark.width >= _THINNEST_RIMMED:
                cv2.circle(canvas, _fixed(mark.start), round(1.3 * radius * 2**_SHIFT), _INK, -1, cv2.LINE_AA, _SHIFT)
            cv2.circle(canvas, _fixed(mark.start), round(radius * 2**_SHIFT), mark.paint, -1, cv2.LINE_AA, _SHIFT)


def _draw_box(canvas: Canvas, pose: Pose) -> None:
    """A thin box whose corners stand out."""
    colour = track_colour(pose.track_id)
    x1, y1, x2, y2 = (float(v) for v in pose.box)
    thin = max(1, round(canvas.shape[0] / 720))
    corners = [(x1, y1, 1, 1), (x2, y1, -1, 1), (x2, y2, -1, -1), (x1, y2, 1, -1)]
    cv2.rectangle(canvas, _fixed((x1, y1)), _fixed((x2, y2)), _mixed(colour, 0, 0.35), thin, cv2.LINE_AA, _SHIFT)
    arm = 0.16 * min(x2 - x1, y2 - y1)
    for x, y, right, down in corners:
        for end in ((x + right * arm, y), (x, y + down * arm)):
            cv2.line(canvas, _fixed((x, y)), _fixed(end), colour, 2 * thin, cv2.LINE_AA, _SHIFT)


def _draw_text(
    canvas: Canvas,
    text: str,
    corner: tuple[float, float],
    ground: Colour,
    ink: Colour,
    scale: float,
    opacity: float = 0.9,
) -> None:
    """Text on a plate whose lower left corner is at `corner`, moved into the picture where it would stick out;
    none where it could not be read."""
    weight = max(1, round(1.6 * scale))
    (width, height), below = cv2.getTextSize(text, _FONT, scale, weight)
    if width + 20 * scale > canvas.shape[1]:
        scale *= canvas.shape[1] / (width + 20 * scale)
        (width, height), below = cv2.getTextSize(text, _FONT, scale, weight)
    if scale < _SMALLEST_TEXT:
        return
    pad = round(10 * scale)
    plate = (width + 2 * pad, height + below + pad)
    left = int(np.clip(round(corner[0]), 0, max(0, canvas.shape[1] - plate[0])))
    top = int(np.clip(round(corner[1]) - plate[1], 0, max(0, canvas.shape[0] - plate[1])))
    area = canvas[top : top + plate[1], left : left + plate[0]]
    area[:] = cv2.addWeighted(area, 1 - opacity, np.full_like(area, ground), opacity, 0)
    cv2.putText(canvas, text, (left + pad, top + pad // 2 + height), _FONT, scale, ink, weight, cv2.LINE_AA)


def _text_scale(image: NDArray[np.uint8]) -> float:
    return float(np.clip(image.shape[0] / 1100, 0.38, 1.2))


def _mixed(colour: Colour, other: int, share: float) -> Colour:
    """A colour mixed with white (255) or black (0)."""
    blue, green, red = (round(value + share * (other - value)) for value in colour)
    return blue, green, red


def _fixed(point: tuple[float, float]) -> tuple[int, int]:
    """A point in OpenCV's fixed-point coordinates, in which pixel centres are whole numbers."""
    x, y = (int(np.clip(round((value - 0.5) * 2**_SHIFT), -(2**18), 2**18)) for value in point)
    return x, y
