"""The example subscribers, in JavaScript, C++ and Python, against a real publisher."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from streampose.keys import add_key, revoke
from streampose.messages import SCHEMA, Hello, Status
from streampose.publish import Publisher
from streampose.skeleton import COCO17
from streampose.wire import encode_hello, encode_pose, encode_status

sys.path.insert(0, str(Path(__file__).parent))
from stream_messages import Talk, make_frame

EXAMPLES = Path(__file__).parent.parent / "examples"
NODE = EXAMPLES / "node"
WAIT_S = 120

PATIENT = """
import runpy, sys
from streampose.subscribe_async import AsyncSubscriber
AsyncSubscriber.__init__.__kwdefaults__["connect_s"] = 120
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs an example as it is, but for how long a connection on this machine may take."""
PYTHON = [sys.executable, "-c", PATIENT, str(EXAMPLES / "python" / "subscriber.py")]

pytestmark = pytest.mark.usefixtures("patient_stream")
needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (NODE / "node_modules" / "zeromq").exists(),
    reason="needs node, and npm install in examples/node",
)
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or not all(Path("/usr/include", name).exists() for name in ("zmq.h", "msgpack.h")),
    reason="needs g++, libzmq3-dev and libmsgpack-dev",
)


@pytest.fixture
def publisher():
    with Publisher("tcp://127.0.0.1:*", model="lite") as made, Talk(made, hz=100, people=2):
        yield made


def run(*command):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=WAIT_S)


def check_lines(text, count):
    """What the JavaScript example prints: whole frames, one after the other."""
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["seq"] for line in lines] == list(range(lines[0]["seq"], lines[0]["seq"] + count))
    assert {line["source"] for line in lines} == {"cam"}
    sent = make_frame(lines[1]["seq"], people=2).people[1]
    person = lines[1]["people"][1]
    assert (person["track_id"], person["score"]) == (2, 0.5)
    np.testing.assert_array_equal(person["box"], sent.box)
    np.testing.assert_array_equal(person["joints"]["left_wrist"], sent.keypoints[9])
    assert len(person["joints"]) == 17


@needs_node
def test_javascript(publisher):
    done = run("node", NODE / "subscriber.mjs", publisher.endpoint, "--count", 20)
    assert done.returncode == 0, done.stderr
    check_lines(done.stdout, 20)


@needs_node
def test_javascript_takes_times_of_any_size():
    with Publisher("tcp://127.0.0.1:*", model="lite") as made:
        made.publish(make_frame(captured_ns=5, published_ns=2**60))
        done = run("node", NODE / "subscriber.mjs", made.endpoint, "--count", 1)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["latency_ms"] == pytest.approx(2**60 / 1e6)


@needs_node
def test_javascript_with_a_key(tmp_path):
    add_key(tmp_path / "keys", "page", tmp_path / "page.key")
    with Publisher("tcp://127.0.0.1:*", model="lite", keys=tmp_path / "keys") as made, Talk(made, hz=100, people=2):
        done = run("node", NODE / "subscriber.mjs", made.endpoint, "--key", tmp_path / "page.key", "--count", 5)
    assert done.returncode == 0, done.stderr
    check_lines(done.stdout, 5)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The C++ example, built with the compiler's checks."""
    made = tmp_path_factory.mktemp("cpp") / "subscriber"
    built = run("g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined",
                EXAMPLES / "cpp" / "subscriber.cpp", "-lzmq", "-lmsgpackc", "-o", made)  # fmt: skip
    assert built.returncode == 0, built.stderr
    return made


@needs_compiler
def test_cpp_with_a_key(program, tmp_path):
    add_key(tmp_path / "keys", "robot", tmp_path / "robot.key")
    with Publisher("tcp://127.0.0.1:*", model="lite", keys=tmp_path / "keys") as made, Talk(made, hz=100, people=1):
        done = run(program, made.endpoint, 3, tmp_path / "robot.key")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    done = run(program, made.endpoint, 3, tmp_path / "keys" / "allowed" / "robot.pub")
    assert (done.returncode, done.stderr.endswith("robot.pub is no key file\n")) == (1, True)


@needs_compiler
def test_cpp(publisher, program):
    done = run(program, publisher.endpoint, 10)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 20
    first = int(lines[0][2])
    assert [int(line[2]) for line in lines] == [first + i // 2 for i in range(20)]
    assert lines[1] == f"cam seq {first} track 2 joints 17 first 10.00 {first % 1000}.00 0.75".split()


def damage():
    """Messages that are none."""
    topic, header, blob = encode_pose(make_frame(0, people=1), run_id="r", seq=0)
    fields = msgspec.msgpack.decode(header)
    return (
        [topic, b"\xc1 junk", blob],
        [topic, header],
        [topic, header, b""],
        [topic, header, blob[:-1]],
        [topic, msgspec.msgpack.encode(7), blob],
        [topic, msgspec.msgpack.encode(fields | {"people": 3}), blob],
        [topic, msgspec.msgpack.encode(fields | {"schema": 2}), blob],
    )


def disturb(command):
    """Run an example on messages that are none among those that are; its line of what it skipped, and its count."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as sender:
        sender.linger = 0
        sender.rcvtimeo = 1000 * WAIT_S
        sender.bind("tcp://127.0.0.1:*")
        endpoint = sender.last_endpoint.decode()
        with subprocess.Popen([*map(str, command(endpoint))], stdout=-1, stderr=-1, text=True) as process:
            while sender.recv() != b"\x01pose.":
                pass
            for bad in damage():
                sender.send_multipart(bad)
            sender.send_multipart(encode_pose(make_frame(0, people=1), run_id="r", seq=0))
            sender.send_multipart(encode_pose(make_frame(1, people=1), run_id="r", seq=1))
            out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, err
    assert len(out.splitlines()) == 2, err
    said = err.splitlines()
    assert len(said) == 2, err
    assert said[0].startswith("skipped a message: ")
    assert said[1] == "skipped 7 in all"


@needs_node
def test_javascript_skips_what_is_no_message():
    disturb(lambda endpoint: ["node", NODE / "subscriber.mjs", endpoint, "--count", 2])


@needs_compiler
def test_cpp_skips_what_is_no_message(program):
    disturb(lambda endpoint: [program, endpoint, 2])


def first_error(*command):
    """The first line that an example says of what is wrong."""
    with subprocess.Popen(list(map(str, command)), stderr=-1, text=True) as process:
        line = process.stderr.readline()
        process.kill()
    return line


@pytest.fixture
def stranger(tmp_path):
    """A publisher with keys, and the file of a key that it does not let in."""
    add_key(tmp_path / "keys", "one", tmp_path / "one.key")
    revoke(tmp_path / "keys", "one")
    add_key(tmp_path / "keys", "two", tmp_path / "two.key")
    with Publisher("tcp://127.0.0.1:*", model="lite", keys=tmp_path / "keys") as made:
        yield made.endpoint, tmp_path / "one.key"


@needs_node
def test_javascript_says_why_nothing_comes(stranger, tmp_path):
    endpoint, key = stranger
    refused = "no connection: the publisher does not let this key in; trying again\n"
    assert first_error("node", NODE / "subscriber.mjs", endpoint, "--key", key) == refused
    nobody = "no connection: nobody answers there; trying again\n"
    assert first_error("node", NODE / "subscriber.mjs", "tcp://127.0.0.1:1") == nobody
    (tmp_path / "bad.key").write_text("no key")
    done = run("node", NODE / "subscriber.mjs", endpoint, "--key", tmp_path / "bad.key")
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path / 'bad.key'} is no key file\n")


@needs_compiler
def test_cpp_says_why_nothing_comes(program, stranger):
    endpoint, key = stranger
    refused = "no connection: the publisher does not let this key in; trying again\n"
    assert first_error(program, endpoint, 1, key) == refused
    nobody = "no connection: nobody answers there; trying again\n"
    assert first_error(program, "tcp://127.0.0.1:1") == nobody


def test_python(publisher, tmp_path):
    """Somebody raises the left hand above the nose; the example says so, for as long as it runs."""
    frame = make_frame(0, "stage")
    frame.people[0].keypoints[9, 1] = -50
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    command = [*PYTHON, publisher.endpoint]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment, cwd=tmp_path) as process:
        publisher.publish(frame)
        assert process.stdout.readline() == "stage frame 0: 1 raises left_wrist\n"
        process.terminate()
        process.communicate(timeout=WAIT_S)


def cut(frame, joints):
    """A frame whose people have only so many joints."""
    people = [dataclasses.replace(pose, keypoints=pose.keypoints[:joints]) for pose in frame.people]
    return dataclasses.replace(frame, people=people)


def test_python_skips_what_is_no_message_and_what_it_cannot_read(tmp_path):
    """A pose may come before its hello, have fewer joints than that names, or none of those that are looked for."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    raising = make_frame(0, "stage")
    raising.people[0].keypoints[9, 1] = -50
    hello = Hello(
        schema=SCHEMA, run_id="r", source="", skeleton="coco17", joints=COCO17.joints, edges=COCO17.edges,
        width=640, height=480, model="lite", offsets=(),
    )  # fmt: skip
    noseless = msgspec.structs.replace(hello, skeleton="stick", joints=("left_wrist", "tip"), edges=((0, 1),))
    sent = [
        encode_pose(make_frame(0, "early"), run_id="r", seq=0),
        encode_pose(make_frame(1, "early"), run_id="r", seq=1),
        encode_hello(msgspec.structs.replace(hello, source="short", skeleton="cross")),
        encode_pose(cut(make_frame(0, "short", skeleton="cross"), 5), run_id="r", seq=0),
        encode_hello(msgspec.structs.replace(noseless, source="stick")),
        encode_pose(cut(make_frame(0, "stick", skeleton="stick"), 2), run_id="r", seq=0),
        encode_hello(msgspec.structs.replace(hello, source="stage")),
        encode_pose(raising, run_id="r", seq=0),
    ]
    with zmq.Context() as context, context.socket(zmq.XPUB) as sender:
        sender.linger = 0
        sender.rcvtimeo = 1000 * WAIT_S
        sender.bind("tcp://127.0.0.1:*")
        command = [
            sys.executable,
            "-c",
            PATIENT,
            str(EXAMPLES / "python" / "subscriber.py"),
            sender.last_endpoint.decode(),
        ]
        with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment, cwd=tmp_path) as process:
            while sender.recv() != b"\x01status.":
                pass
            sender.send_multipart(encode_status(Status(schema=SCHEMA, run_id="r", source="cam", state="online")))
            for parts in (*damage(), *sent):
                sender.send_multipart(parts)
            line = process.stdout.readline()
            process.terminate()
            _, err = process.communicate(timeout=WAIT_S)
    assert line == "stage frame 0: 1 raises left_wrist\n", err
    said = err.splitlines()
    assert len(said) == 4, err
    assert said[0].startswith("left out a message from tcp://127.0.0.1:")
    assert said[1].startswith("skipped early frame ")
    assert said[1].endswith(": its hello, which names the joints, has not come yet")
    assert said[2:] == [
        "skipped short frame 0: it has other joints than its hello names",
        "skipped stick frame 0: skeleton stick has no nose, right_wrist",
    ]


def test_python_says_where_nobody_is():
    done = run(sys.executable, EXAMPLES / "python" / "subscriber.py", "tcp://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr == "error: nobody publishes at tcp://127.0.0.1:1: connection refused\n"
