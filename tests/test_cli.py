"""The command line as its users start it: a process, its output, its exit code."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

import streampose
from streampose.cli import commands, program
from streampose.jsonl import PeopleWriter
from streampose.publish import Publisher
from streampose.redact import redact
from streampose.types import Pose, PoseFrame

WAIT_S = 120
pytestmark = pytest.mark.usefixtures("patient_stream")
WEIGHTS = Path(streampose.__file__).parent / "weights"

needs_models = pytest.mark.skipif(
    not all((WEIGHTS / name / "manifest.json").exists() for name in ("lite", "person")),
    reason="the bundled models are not built yet",
)
needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")


def start(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "streampose", *map(str, args)], stdout=-1, stderr=-1, text=True, bufsize=1
    )


@pytest.fixture
def call(monkeypatch, capsys):
    """call("run", ...): the command line without a process of its own."""
    logger = logging.getLogger("streampose")
    before = logger.handlers[:], logger.level, logger.propagate
    handler = signal.getsignal(signal.SIGINT)

    def main(*args):
        monkeypatch.setattr(sys, "argv", ["streampose", *map(str, args)])
        code = commands.main()
        shown = capsys.readouterr()
        return subprocess.CompletedProcess(args, code, shown.out, shown.err)

    yield main
    signal.signal(signal.SIGINT, handler)
    logger.handlers[:], logger.level, logger.propagate = before


def make_frame(index=0, source="cam"):
    pose = Pose(track_id=4, box=np.array([1, 2, 3, 4], np.float32), score=0.5, keypoints=np.ones((17, 3), np.float32))
    return PoseFrame(
        source=source, epoch=0, frame_index=index, pts_s=index / 30, captured_ns=time.monotonic_ns(),
        published_ns=time.monotonic_ns(), width=64, height=48, skeleton="coco17", dropped=0, people=(pose,),
    )  # fmt: skip


@pytest.fixture
def publisher():
    """Publishes frames of two sources, fifty a second, until the test is over."""
    done = threading.Event()
    with Publisher("tcp://127.0.0.1:*", model="lite") as made:

        def talk():
            index = 0
            made.set_state("cam", "online")
            while not done.wait(0.02):
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
    commands = ("run", "listen", "relay", "record", "replay", "export", "view", "keys", "train", "bench", "models")
    for command in commands:
        assert f"  {command} " in done.stdout


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["bogus"], 2, "No such command 'bogus'"),
        (["run"], 2, "no source given"),
        (["run", "--source", "demo", "--bogus"], 2, "No such option: --bogus"),
        (["run", "--source", "demo", "--max-frames", "0"], 2, "--max-frames"),
        (["run", "--source", "demo", "--pace", "slow", "--no-publish"], 2, "pace"),
        (["run", "--source", "demo", "--backend", "opencl"], 2, "opencl"),
        (["run", "--source", "demo", "--backend", "tensorrt"], 4, "build-engine --model lite --target tensorrt"),
        (["run", "--source", "demo", "--publish", "tcp://0.0.0.0:5555"], 2, "other machines reach it"),
        (["run", "--source", "demo", "--publish", "tcp://me:secret@1.2.3.4:5555"], 2, "tcp://***@1.2.3.4:5555"),
        (["run", "--source", "demo", "--keys", "no-such-folder"], 2, "streampose keys new NAME"),
        (["run", "--source", "demo", "--fill-gaps", "0.2"], 2, "give --smooth too"),
        (["listen", "--key", "none.key"], 2, "cannot read the key none.key"),
        (["relay"], 2, "Missing option '--connect'"),
        (["relay", "--connect", "here"], 2, "tcp://HOST:PORT"),
        (["record", "--out", "session.mp4"], 2, "ends in .parquet or .jsonl"),
        (["replay", "none.parquet", "--publish", "tcp://127.0.0.1:*"], 2, "there is no recording none.parquet"),
        (["export", "none.jsonl", "--out", "out.csv"], 2, "there is no recording none.jsonl"),
        (["export", "none.jsonl", "--out", "out.json"], 2, "or give --format: csv, coco, posetrack, jsonl, parquet"),
        (["keys", "new", "../tablet"], 2, "a name has up to 64"),
        (["view", "--port", "0", "--token", "short"], 2, "at least 12 characters"),
        (["listen", "--mode", "newest"], 2, "latest or lossless"),
        (["listen", "--connect", "localhost"], 2, "tcp://HOST:PORT"),
        (["train", "no-such-recipe"], 2, "no-such-recipe"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(call, args, code, says):
    done = call(*args)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert "secret" not in done.stderr


def test_no_command_shows_the_help(call):
    done = call()
    assert done.returncode == 2
    assert "Commands:" in done.stdout


def test_the_unexpected_is_one_line_unless_debug(monkeypatch, call):
    def fail(**_):
        raise RuntimeError("broken at rtsp://me:p@ss/word@camera/1\nand more")

    monkeypatch.setattr(program, "app", fail)
    done = call("run")
    assert done.returncode == 1
    assert done.stderr.startswith("error: unexpected RuntimeError: broken at rtsp://***@camera/1 and more")
    assert done.stderr.count("\n") == 1
    shown = call("--debug", "run").stderr
    assert "Traceback" in shown
    assert "word" not in shown


def test_ctrl_c_while_it_is_still_starting_is_no_traceback():
    code = """
import sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from streampose.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_is_lost_where_a_thread_is_left_behind():
    code = """
import atexit, ctypes, sys, threading, time
libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.abort, None, None)  # taking Python down under the thread would crash by chance; now always
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
atexit.register(print, "last words")
sys.argv[1:] = ["run", "--source", "nothing.mp4", "--no-publish"]
from streampose.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout) == (3, "last words\n")
    assert done.stderr == "error: nothing.mp4: no such file\n"


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


def test_listen_prints_people_jsonl(call, publisher):
    done = call(
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


def test_listen_prints_lines_for_people(call, publisher):
    done = call("listen", "--connect", publisher.endpoint, "--count", 4)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
    assert "1 people" in done.stdout
    assert "#4 0.50 at 1,2" in done.stdout


def test_keys_are_made_listed_and_revoked(call, tmp_path):
    folder, file = tmp_path / "keys", tmp_path / "tablet.key"
    made = call("keys", "new", "tablet", "--keys", folder, "--out", file)
    assert made.returncode == 0, made.stderr
    secret = tomllib.loads(file.read_text())["secret"]
    assert secret not in made.stdout + made.stderr
    listed = json.loads(call("keys", "list", "--keys", folder, "--json").stdout)
    assert [entry["name"] for entry in listed["allowed"]] == ["tablet"]
    assert listed["publisher"] in call("keys", "list", "--keys", folder).stdout
    assert "tablet is revoked" in call("keys", "revoke", "tablet", "--keys", folder).stdout
    assert json.loads(call("keys", "list", "--keys", folder, "--json").stdout)["allowed"] == []
    assert call("keys", "revoke", "tablet", "--keys", folder).returncode == 2


def test_a_stream_with_keys_from_end_to_end(call, tmp_path):
    """keys new, then listen with the key, without one, and with one of another publisher."""
    for folder, name in (("keys", "tablet"), ("other", "stranger")):
        assert call("keys", "new", name, "--keys", tmp_path / folder, "--out", tmp_path / f"{name}.key").returncode == 0
    with Publisher("tcp://127.0.0.1:*", model="lite", keys=tmp_path / "keys") as secured:
        secured.publish(make_frame())
        heard = call("listen", "--connect", secured.endpoint, "--key", tmp_path / "tablet.key", "--count", 1, "--json")
        assert json.loads(heard.stdout)["source"] == "cam"
        for key, says in (([], "name your key file with --key"), (["--key", tmp_path / "stranger.key"], "'stranger'")):
            done = call("listen", "--connect", secured.endpoint, *key)
            assert done.returncode == 3
            assert says in done.stderr.splitlines()[-1]


def test_a_stream_is_recorded_exported_and_replayed(call, publisher, tmp_path):
    pytest.importorskip("pyarrow", reason="needs the extra [record]")
    path = tmp_path / "session.parquet"
    done = call("record", "--connect", publisher.endpoint, "--out", path, "--count", 20)
    assert done.returncode == 0, done.stderr
    assert f"{path}: 20 frames, 0 messages malformed" in done.stderr
    assert f"connected to {publisher.endpoint}" in done.stderr
    assert "recording cam" in done.stderr
    done = call("export", path, "--out", tmp_path / "people.csv")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'people.csv'}\n"), done.stderr
    done = call("replay", path, "--publish", "tcp://127.0.0.1:*", "--speed", 100)
    assert done.returncode == 0, done.stderr
    assert "frames" in done.stderr


def test_relay_and_replay_end_when_their_publishing_does(call, tmp_path, monkeypatch):
    def crash(_):
        raise OSError("broken")

    path = tmp_path / "people.jsonl"
    with PeopleWriter(path) as writer:
        writer.write(make_frame())
    monkeypatch.setattr("streampose.outlet.Outlet._beat", crash)
    at = ("--publish", "tcp://127.0.0.1:*")
    for args in (("replay", path, "--wait", *at), ("relay", "--connect", "tcp://127.0.0.1:1", *at)):
        too_long = threading.Timer(WAIT_S, os.kill, (os.getpid(), signal.SIGTERM))  # which ends them with 0
        too_long.start()
        done = call(*args)
        too_long.cancel()
        assert done.returncode == 5
        assert re.fullmatch(
            r"error: publishing at tcp://127\.0\.0\.1:\d+ crashed with OSError: broken", done.stderr.splitlines()[-1]
        )


def test_an_endpoint_in_use_is_told_with_the_options_of_the_command(call, publisher, tmp_path):
    path = tmp_path / "people.jsonl"
    with PeopleWriter(path) as writer:
        writer.write(make_frame())
    for args in (("replay", path), ("relay", "--connect", "tcp://127.0.0.1:1")):
        done = call(*args, "--publish", publisher.endpoint)
        advice = "publish elsewhere with --publish tcp://127.0.0.1:PORT"
        assert (done.returncode, done.stderr) == (5, f"error: {publisher.endpoint} is in use; {advice}\n")


def test_the_schema_is_printed(call):
    assert json.loads(call("schema").stdout)["version"] == 1


@needs_models
def test_run_puts_out_a_line_a_frame(call, tmp_path):
    path = tmp_path / "people.jsonl"
    done = call("run", "--source", "demo", "--no-publish", "--save", path, "--max-frames", 8, "--json")
    assert done.returncode == 0, done.stderr
    assert path.read_text() == done.stdout
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["frame_index"] for line in lines] == list(range(8))
    assert any(line["people"] for line in lines)
    assert "8 frames in " in done.stderr


@needs_models
@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_run_ends_on_a_signal_with_a_summary(tmp_path):
    path = tmp_path / "people.jsonl"
    with start("run", "--source", "demo", "--no-publish", "--pace", "live", "--save", path, "--json") as process:
        first = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, errors
    assert path.read_text() == first + rest
    assert path.read_text().endswith("}\n")
    assert " frames in " in errors


@needs_models
def test_run_and_listen_meet(call, publisher):
    """A second run at the endpoint of another publisher ends with 5; at a free one a listener hears it."""
    done = call("run", "--source", "demo", "--publish", publisher.endpoint)
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1].startswith(
        f"error: {publisher.endpoint} is in use; publish elsewhere with --pub"
    )
    endless = "lavfi:testsrc2=size=160x120:rate=30"
    with start("run", "--source", endless, "--publish", "tcp://127.0.0.1:*") as process:
        assert "lite runs on onnxruntime (CPU) in fp32, from " in process.stderr.readline()
        line = process.stderr.readline()
        assert "publishing at tcp://127.0.0.1:" in line
        heard = call("listen", "--connect", line.split()[-1], "--count", 3, "--json")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert [json.loads(line)["source"] for line in heard.stdout.splitlines()] == ["lavfi"] * 3


@needs_models
@needs_dev_full
def test_a_full_disk_ends_the_run_with_5(call):
    done = call("run", "--source", "demo", "--no-publish", "--save", "/dev/full")
    assert done.returncode == 5, done.stderr
    assert done.stderr.endswith("error: cannot write /dev/full: No space left on device\n")


@needs_models
@needs_dev_full
def test_a_full_stdout_ends_the_run_with_5():
    command = [sys.executable, "-m", "streampose", "run", "--source", "demo", "--no-publish", "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=-1, text=True, timeout=WAIT_S)
    assert done.returncode == 5, done.stderr
    assert done.stderr.endswith("error: cannot write to stdout: No space left on device\n")


@needs_models
def test_bench_prints_one_object(call):
    done = call("bench", "--max-frames", 5, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["frames"] == 5
    assert figures["stages"]["encode"]["count"] >= 1
    assert figures["stages"]["total"]["median_ms"] > 0


@needs_models
def test_models_are_listed_shown_and_verified(call, tmp_path):
    listed = call("models", "list")
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[:2] for line in listed.stdout.splitlines()] == [
        ["lite", "pose"],
        ["person", "person-detector"],
    ]
    bundle = tmp_path / "bundle"
    shutil.copytree(WEIGHTS / "lite", bundle)
    (bundle / "CARD.md").write_text("Trained on nothing.\n")
    shown = call("models", "show", bundle)
    assert "offsets: -4, -3, -2, -1\n" in shown.stdout
    assert shown.stdout.endswith("\n\nTrained on nothing.\n")
    assert json.loads(call("models", "show", "person", "--json").stdout)["kind"] == "person-detector"
    verified = call("models", "verify")
    assert verified.returncode == 0
    lite = verified.stdout.splitlines()[0]
    assert lite.startswith("lite: encoder.onnx, fuser.onnx, reference.npz as built; 99 of 100 joints within ")
    assert "px of torch's" in lite


@needs_models
def test_a_damaged_model_is_a_model_error(call, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(WEIGHTS / "lite", bundle)
    with (bundle / "fuser.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    for command in (["models", "verify", bundle], ["run", "--source", "demo", "--model", bundle]):
        done = call(*command)
        assert done.returncode == 4
        assert f"{bundle / 'fuser.onnx'} is not the file" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_listen_waits_for_a_publisher_and_ends_on_a_signal():
    with start("listen", "--connect", "tcp://127.0.0.1:1") as process:
        line = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=WAIT_S)
    assert line.endswith("waiting for a publisher at tcp://127.0.0.1:1: connection refused\n")
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
