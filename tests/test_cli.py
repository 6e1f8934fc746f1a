"""The command line as its users start it: a process, its output, its exit code."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from streampose import cli
from streampose.publish import Publisher
from streampose.redact import redact
from streampose.types import Pose, PoseFrame

WAIT_S = 30


def streampose(*args, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "streampose", *map(str, args)], capture_output=True, text=True, timeout=WAIT_S, **kwargs
    )


def start(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "streampose", *map(str, args)], stdout=-1, stderr=-1, text=True, bufsize=1
    )


def make_frame(index=0, source="cam"):
    pose = Pose(track_id=4, box=np.array([1, 2, 3, 4], np.float32), score=0.5, keypoints=np.ones((17, 3), np.float32))
    return PoseFrame(
        source=source, epoch=0, frame_index=index, pts_s=index / 30, captured_ns=time.monotonic_ns(),
        published_ns=time.monotonic_ns(), width=64, height=48, skeleton="coco17", dropped=0, people=(pose,),
    )  # fmt: skip


@pytest.fixture
def publisher():
    """Publishes a frame every few milliseconds until the test is over."""
    done = threading.Event()
    with Publisher("tcp://127.0.0.1:*", model="lite") as made:

        def talk():
            index = 0
            made.set_state("cam", "online")
            while not done.wait(0.005):
                made.publish(make_frame(index))
                made.publish(make_frame(index, "other"))
                index += 1

        thread = threading.Thread(target=talk)
        thread.start()
        yield made
        done.set()
        thread.join()


def test_help_names_the_commands_and_imports_nothing_heavy():
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "try: import streampose.__main__\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'cv2', 'onnxruntime', 'av', 'scipy', 'numpy', 'zmq'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("run", "listen", "train"):
        assert f"  {command} " in done.stdout


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["bogus"], 2, "No such command 'bogus'"),
        (["run"], 2, "Missing option '--source'"),
        (["run", "--source", "demo", "--bogus"], 2, "No such option: --bogus"),
        (["run", "--source", "demo", "--max-frames", "0"], 2, "--max-frames"),
        (["run", "--source", "demo", "--pace", "slow", "--no-publish"], 2, "pace"),
        (["run", "--source", "demo", "--backend", "opencl"], 2, "opencl"),
        (["run", "--source", "demo", "--backend", "tensorrt"], 4, "tensorrt is not available in this version"),
        (["run", "--source", "demo", "--publish", "tcp://0.0.0.0:5555"], 2, "this machine only"),
        (["run", "--source", "demo", "--publish", "tcp://me:secret@1.2.3.4:5555"], 2, "tcp://***@1.2.3.4:5555"),
        (["listen", "--mode", "newest"], 2, "latest or lossless"),
        (["listen", "--connect", "localhost"], 2, "tcp://HOST:PORT"),
        (["train", "no-such-recipe"], 2, "no-such-recipe"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(args, code, says):
    done = streampose(*args)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert "secret" not in done.stderr


def test_no_command_shows_the_help():
    done = streampose()
    assert done.returncode == 2
    assert "Commands:" in done.stdout


def test_the_unexpected_is_one_line_unless_debug(monkeypatch, capsys):
    def fail(**_):
        raise RuntimeError("broken at rtsp://me:p@ss/word@camera/1\nand more")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["streampose", "run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr().err
    assert ended.value.code == 1
    assert shown.startswith("error: unexpected RuntimeError: broken at rtsp://***@camera/1 and more")
    assert shown.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["streampose", "--debug", "run"])
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "word" not in shown


def test_redact_leaves_other_text_alone():
    assert redact("a file at home/me, mail me@home, tcp://127.0.0.1:5555") == (
        "a file at home/me, mail me@home, tcp://127.0.0.1:5555"
    )


def test_a_missing_package_names_its_extra():
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv[1:] = ['train', 'lite']\n"
        "from streampose.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 1
    assert done.stderr == "error: torch is not installed; install it with: pip install 'streampose[train]'\n"


def test_listen_prints_people_jsonl(publisher):
    done = streampose(
        "listen", "--connect", publisher.endpoint, "--mode", "lossless", "--count", 20, "--source", "cam", "--json"
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["frame_index"] for line in lines] == list(range(lines[0]["frame_index"], lines[0]["frame_index"] + 20))
    assert {line["source"] for line in lines} == {"cam"}
    assert {line["missed"] for line in lines} == {0}
    assert lines[0]["people"][0]["box"] == [1, 2, 3, 4]
    assert "cam: 64x48, coco17, model lite" in done.stderr
    assert "cam: online" in done.stderr
    assert "20 frames, 0 missed" in done.stderr


def test_listen_prints_lines_for_people(publisher):
    done = streampose("listen", "--connect", publisher.endpoint, "--count", 4)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
    assert "1 people" in done.stdout
    assert "#4 0.50 at 1,2" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_listen_waits_for_a_publisher_and_ends_on_a_signal(number):
    with start("listen", "--connect", "tcp://127.0.0.1:1") as process:
        line = process.stderr.readline()
        process.send_signal(number)
        _, rest = process.communicate(timeout=WAIT_S)
    assert line.endswith("waiting for a publisher at tcp://127.0.0.1:1\n")
    assert process.returncode == 0
    assert rest.endswith("0 frames, 0 missed\n")
    assert rest.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_listen_says_when_its_reader_is_gone(publisher):
    with start("listen", "--connect", publisher.endpoint) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 5
    assert errors.endswith("error: cannot write to stdout: Broken pipe\n")
