"""The overlay: what is drawn where, and a file that plays however the run ended."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest

from streampose.draw import draw_poses, track_colour
from streampose.errors import OutputError
from streampose.render import OverlayWriter
from streampose.types import Frame, Pose, PoseFrame


def someone(track_id: int = 1, score: float = 0.9, left: float = 100) -> Pose:
    keypoints = np.zeros((17, 3), np.float32)
    keypoints[:, 0] = left + np.linspace(10, 90, 17)
    keypoints[:, 1] = np.linspace(70, 230, 17)
    keypoints[:, 2] = score
    return Pose(track_id, np.array([left, 60, left + 100, 240], np.float32), score, keypoints)


def pair(index: int, *people: Pose, size: tuple[int, int] = (300, 400), pts_s: float | None = None):
    image = np.full((*size, 3), 60, np.uint8)
    time_s = index / 25 if pts_s is None else pts_s
    frame = Frame(image, "cam", index, time_s, index * 40_000_000)
    poses = PoseFrame(
        "cam", 0, index, time_s, index * 40_000_000, index * 40_000_000 + 1, size[1], size[0], "coco17", 0, people
    )
    return frame, poses


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def test_a_written_file_is_h264_with_the_frames_and_their_times(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with OverlayWriter(path, 25, (300, 400)) as writer:
        for index in range(10):
            writer.write(*pair(index, someone()))
        assert writer.frames == 10
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    frames = decoded(path)
    np.testing.assert_allclose([float(frame.time) for frame in frames], np.arange(10) / 25, atol=1e-3)
    assert {(frame.height, frame.width) for frame in frames} == {(300, 400)}


def test_times_of_a_live_source_are_kept_and_never_go_back(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with OverlayWriter(path, 25, (300, 400)) as writer:
        for index, pts_s in enumerate([0.0, 0.2, 1.0, 0.0, 0.2]):
            writer.write(*pair(index, pts_s=pts_s))
    times = [float(frame.time) for frame in decoded(path)]
    np.testing.assert_allclose(times, [0.0, 0.2, 1.0, 1.04, 1.24], atol=1e-3)


@pytest.mark.parametrize("size", [(301, 403), (150, 600), (600, 150)])
def test_frames_of_other_sizes_are_fitted(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "out.mp4"
    with OverlayWriter(path, 25, (300, 400)) as writer:
        writer.write(*pair(0))
        writer.write(*pair(1, size=size))
    assert [(frame.height, frame.width) for frame in decoded(path)] == [(300, 400)] * 2


def test_odd_sizes_are_padded_for_the_codec(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with OverlayWriter(path, 30, (101, 75)) as writer:
        writer.write(*pair(0, size=(101, 75)))
    assert [(frame.height, frame.width) for frame in decoded(path)] == [(102, 76)]


def test_a_file_whose_writer_was_never_closed_plays(tmp_path: Path) -> None:
    path, whole = tmp_path / "out.mp4", tmp_path / "killed.mp4"
    writer = OverlayWriter(path, 25, (300, 400))
    for index in range(200):
        writer.write(*pair(index, someone(left=100 + index / 2)))
    whole.write_bytes(path.read_bytes())
    assert len(decoded(whole)) >= 25
    writer.close()
    writer.close()
    assert len(decoded(path)) == 200


def test_an_error_in_the_run_still_closes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"

    def fail() -> None:
        with OverlayWriter(path, 25, (300, 400)) as writer:
            writer.write(*pair(0))
            raise RuntimeError("the run")

    with pytest.raises(RuntimeError, match="the run"):
        fail()
    assert len(decoded(path)) == 1


@pytest.mark.parametrize("where", ["missing/out.mp4", "."])
def test_what_cannot_be_written_is_one_line(tmp_path: Path, where: str) -> None:
    with pytest.raises(OutputError) as failure:
        OverlayWriter(tmp_path / where, 25, (300, 400))
    assert str(tmp_path) in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    os.symlink("/dev/full", path)
    rng = np.random.default_rng(0)

    def write_much() -> None:
        with OverlayWriter(path, 25, (300, 400)) as writer:
            for index in range(60):
                frame, poses = pair(index)
                noise = rng.integers(0, 255, frame.image.shape, np.uint8)
                writer.write(Frame(noise, "cam", index, index / 25, 0), poses)

    with pytest.raises(OutputError, match=r"out\.mp4: cannot be written \(No space left"):
        write_much()


def test_drawing_leaves_the_frame_alone() -> None:
    frame, poses = pair(0, someone())
    before = frame.image.copy()
    drawn = draw_poses(frame.image, poses)
    np.testing.assert_array_equal(frame.image, before)
    assert drawn.shape == frame.image.shape
    assert drawn.dtype == np.uint8


def test_limbs_are_drawn_in_the_tracks_colour_and_only_sure_ones() -> None:
    pose = someone(track_id=2)
    pose.keypoints[9:, 2] = 0.1
    frame, poses = pair(0, pose)
    drawn = draw_poses(frame.image, poses)
    shoulder, hidden = pose.keypoints[5, :2].astype(int), pose.keypoints[13, :2].astype(int)
    assert np.abs(drawn[shoulder[1], shoulder[0]].astype(int) - 60).max() > 40
    np.testing.assert_array_equal(drawn[hidden[1], hidden[0]], [60, 60, 60])


def test_unsure_joints_are_fainter() -> None:
    changes = []
    for score in (0.9, 0.4):
        pose = someone(score=score)
        frame, poses = pair(0, pose)
        x, y = pose.keypoints[5, :2].astype(int)
        changes.append(np.abs(draw_poses(frame.image, poses)[y, x].astype(int) - 60).sum())
    assert 0 < changes[1] < 0.7 * changes[0]


def test_the_caption_is_there_and_poses_outside_the_frame_do_no_harm() -> None:
    frame, poses = pair(3, someone(left=-300), someone(track_id=5, left=5000))
    drawn = draw_poses(frame.image, poses, fps=24.7)
    assert (drawn[-12:, :100] != 60).any()
    tiny, few = pair(0, size=(4, 4))
    assert draw_poses(tiny.image, few).shape == (4, 4, 3)


def test_neighbouring_tracks_differ_in_colour() -> None:
    colours = np.array([track_colour(number) for number in range(1, 9)])
    gaps = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 1000 * np.eye(8)
    assert gaps.min() > 40
