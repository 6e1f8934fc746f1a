"""people.jsonl: the contract's fields, whole lines, and an error where they cannot be written."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streampose.errors import OutputError
from streampose.jsonl import PeopleWriter, to_line
from streampose.types import Pose, PoseFrame

FRAME = PoseFrame(
    source="demo", epoch=0, frame_index=41, pts_s=1.36666666667, captured_ns=123, published_ns=456, width=768,
    height=576, skeleton="coco17", dropped=0,
    people=(
        Pose(
            track_id=3,
            box=np.array([1.006, 2, 3.3333333, 4.1], np.float32),
            score=0.912345,
            keypoints=np.full((17, 3), [100.1, 0.005, 0.87654321], np.float32),
        ),
    ),
)  # fmt: skip


def test_a_line_has_the_fields_of_the_contract_in_order():
    line = to_line(FRAME)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "source": "demo", "epoch": 0, "frame_index": 41, "pts_s": 1.366667, "captured_ns": 123, "published_ns": 456,
        "width": 768, "height": 576, "skeleton": "coco17", "dropped": 0,
        "people": [
            {
                "track_id": 3,
                "box": [1.01, 2.0, 3.33, 4.1],
                "score": 0.9123,
                "keypoints": [[100.1, 0.0, 0.8765]] * 17,
            }
        ],
    }  # fmt: skip
    fields = [field.name for field in dataclasses.fields(PoseFrame)]
    assert list(json.loads(line)) == [name for name in fields if name not in ("missed", "clock", "smoothed")]


def test_a_line_says_of_a_smoothed_frame_that_it_is():
    assert json.loads(to_line(dataclasses.replace(FRAME, smoothed=True))) == json.loads(to_line(FRAME)) | {
        "smoothed": True
    }


def test_a_frame_without_people_has_an_empty_list():
    assert json.loads(to_line(dataclasses.replace(FRAME, people=())))["people"] == []


def test_each_line_is_in_the_file_when_write_returns(tmp_path):
    path = tmp_path / "people.jsonl"
    path.write_text("from a run before\n")
    with PeopleWriter(path) as writer:
        for index in range(3):
            writer.write(dataclasses.replace(FRAME, frame_index=index))
            assert [json.loads(line)["frame_index"] for line in path.open()] == list(range(index + 1))
        assert writer.lines == 3


def test_a_folder_that_is_missing_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*people\.jsonl: No such file"):
        PeopleWriter(tmp_path / "missing" / "people.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_an_output_error():
    with PeopleWriter(Path("/dev/full")) as writer, pytest.raises(OutputError, match="/dev/full: No space left"):
        writer.write(FRAME)


@pytest.mark.skipif(sys.platform != "linux", reason="file size limits as on Linux")
def test_a_disk_that_fills_up_inside_a_line_keeps_whole_lines(tmp_path):
    """A file size limit ends the third line's write in its middle."""
    path = tmp_path / "people.jsonl"
    size = len(to_line(FRAME))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size + size // 2, old[1]))
    try:
        with PeopleWriter(path) as writer:
            writer.write(FRAME)
            writer.write(FRAME)
            with pytest.raises(OutputError, match="2 whole lines are kept"):
                writer.write(FRAME)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == to_line(FRAME) * 2


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_a_killed_writer_leaves_whole_lines(tmp_path):
    path = tmp_path / "people.jsonl"
    code = (
        "import sys, pathlib; sys.path[:0] = [sys.argv[2]]; import test_jsonl as t\n"
        "w = t.PeopleWriter(pathlib.Path(sys.argv[1]))\n"
        "while True: w.write(t.FRAME); print('.', flush=True) if w.lines == 50 else None"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path), str(Path(__file__).parent)], stdout=-1) as process:
        assert process.stdout.readline() == b".\n"
        process.kill()
    data = path.read_bytes()
    assert len(data) >= 50 * len(to_line(FRAME))
    assert data.endswith(b"\n")
