"""The control socket: cameras added, removed and listed from outside."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from streampose.control import Answer, ControlServer, Request, ask, default_path
from streampose.errors import OutputError, SourceError, StreamposeError, UsageError
from streampose.pipeline import Pipeline
from streampose.settings import Settings
from streampose.sources import Camera, open_sources

sys.path.insert(0, str(Path(__file__).parent))
from camera_kit import WAIT_S, wait_for

pytestmark = pytest.mark.usefixtures("patient_cameras")
WRITERS: list[int] = []
TESTSRC = "lavfi:testsrc2=size=160x120:rate=30"


@pytest.fixture
def pipeline(engine, detector) -> Iterator[Pipeline]:
    """A pipeline that runs, over one endless source called one."""
    made = Pipeline(
        open_sources([Camera(uri=TESTSRC, name="one")]), engine, detector, Settings(keep_open=True, detect_every=30)
    )
    began = threading.Event()

    def iterate() -> None:
        for _ in made.results():
            began.set()

    thread = threading.Thread(target=iterate)
    thread.start()
    assert began.wait(WAIT_S)
    yield made
    made.stop()
    thread.join(WAIT_S)
    assert not thread.is_alive()


@pytest.fixture
def path(tmp_path: Path, pipeline: Pipeline) -> Iterator[Path]:
    with ControlServer(tmp_path / "run" / "control.sock", pipeline) as server:
        yield server.path


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A pipe that nobody writes into; whoever reads from it waits until the test has ended."""
    made = tmp_path / "pipe.mp4"
    os.mkfifo(made)
    yield made
    while WRITERS:
        os.close(WRITERS.pop())


def names(path: Path) -> list[str]:
    return [camera.name for camera in ask(path, Request(do="list")).cameras]


def opened_for_reading(pipe: Path) -> bool:
    """Whether somebody reads from a pipe; whoever waited for a writer waits for a word of it from then on."""
    try:
        WRITERS.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def until(path: Path, wanted: list[str]) -> None:
    wait_for(lambda: names(path) == wanted)


def test_cameras_are_added_listed_and_removed(path: Path) -> None:
    assert ask(path, Request(do="add", camera=Camera(uri=TESTSRC, name="two"))).name == "two"
    until(path, ["one", "two"])
    wait_for(lambda: ask(path, Request(do="list")).cameras[0].state == "online")
    first, _ = ask(path, Request(do="list")).cameras
    assert (first.state, first.uri, first.error) == ("online", "lavfi:testsrc2=size=160x120:rate=30", None)
    assert first.age_s is not None
    assert ask(path, Request(do="remove", name="one")).name == "one"
    until(path, ["two"])
    ask(path, Request(do="remove", name="two"))
    until(path, [])


def test_only_the_owner_may_open_it(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("request_", "kind", "text"),
    [
        (Request(do="add", camera=Camera(uri=TESTSRC, name="one")), UsageError, "a source called one already"),
        (Request(do="add", camera=Camera(uri="nothing.mp4")), SourceError, "no such file"),
        (
            Request(do="add", camera=Camera(uri="ftp://me:secret@h/x")),
            UsageError,
            r"ftp:// is no source \(ftp://\*\*\*@h",
        ),
        (Request(do="add"), UsageError, "add needs a camera"),
        (Request(do="remove"), UsageError, "remove needs a name"),
        (Request(do="remove", name="three"), UsageError, "no source called three; there are: one"),
    ],
)
def test_what_cannot_be_done_is_the_same_error_here(path: Path, request_, kind, text: str) -> None:
    with pytest.raises(kind, match=text):
        ask(path, request_)
    assert names(path) == ["one"]


@pytest.mark.parametrize(
    "line",
    [b"hello\n", b"{}\n", b'{"do": "explode"}\n', b'{"do": "add", "camera": {"uri": "demo", "fps": 0}}\n', b"\xff\n"],
)
def test_nonsense_is_answered_and_does_no_harm(path: Path, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(line)
        answer = msgspec.json.decode(client.recv(4096), type=Answer)
    assert answer.error
    assert answer.exit_code == 2
    assert names(path) == ["one"]


def test_what_cannot_be_opened_never_ends_the_run(path: Path, monkeypatch) -> None:
    for uri, text in (("~nobody-of-that-name/x", "home"), ("x" * 5000, "too long"), ("a\0b", "no such file")):
        with pytest.raises(SourceError, match=text):
            ask(path, Request(do="add", camera=Camera(uri=uri)))

    def fail(*_: object) -> None:
        raise ZeroDivisionError("at rtsp://me:secret@h/x")

    monkeypatch.setattr(Pipeline, "add", fail)
    with pytest.raises(StreamposeError, match=r"unexpected ZeroDivisionError: at rtsp://\*\*\*@h/x"):
        ask(path, Request(do="add", camera=Camera(uri="demo")))
    assert names(path) == ["one"]


def test_what_was_removed_may_be_added_at_once(path: Path) -> None:
    for _ in range(3):
        ask(path, Request(do="remove", name="one"))
        assert ask(path, Request(do="add", camera=Camera(uri=TESTSRC, name="one"))).name == "one"
        ask(path, Request(do="add", camera=Camera(uri=TESTSRC, name="two")))
        ask(path, Request(do="remove", name="two"))
    until(path, ["one"])


def test_a_password_goes_to_no_socket_of_another_user(path: Path, monkeypatch) -> None:
    if os.getuid() == 0:
        os.chown(path, 4711, -1)
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    with pytest.raises(UsageError, match="belongs to another user"):
        ask(path, Request(do="add", camera=Camera(uri="rtsp://me:secret@h/x")))


def test_who_hangs_up_does_no_harm(path: Path) -> None:
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b'{"do"')
    assert names(path) == ["one"]


def test_a_source_that_hangs_while_it_is_opened_holds_up_nobody(pipe: Path, tmp_path: Path, pipeline: Pipeline) -> None:
    server = ControlServer(tmp_path / "control.sock", pipeline).__enter__()
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        ask(server.path, Request(do="add", camera=Camera(uri=str(pipe))))

    def add() -> None:
        with contextlib.suppress(StreamposeError):
            ask(server.path, Request(do="add", camera=Camera(uri=f"lavfi:movie={pipe}", name="hangs")))

    asking = threading.Thread(target=add, daemon=True)
    asking.start()
    wait_for(lambda: opened_for_reading(pipe))
    assert names(server.path) == ["one"]
    ask(server.path, Request(do="add", camera=Camera(uri=TESTSRC, name="two")))
    until(server.path, ["one", "two"])
    ask(server.path, Request(do="remove", name="two"))
    until(server.path, ["one"])
    assert asking.is_alive(), "it is still being opened"
    pipeline.stop()
    leaving = threading.Thread(target=server.__exit__, daemon=True)
    leaving.start()
    leaving.join(WAIT_S)
    assert not leaving.is_alive()
    assert asking.is_alive(), "what hangs was left behind"


def test_a_second_run_cannot_take_the_socket_but_a_dead_ones_is_replaced(path: Path, pipeline: Pipeline) -> None:
    with pytest.raises(OutputError, match="another run has its control socket"):
        ControlServer(path, pipeline)
    dead = path.with_name("dead.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))
    with ControlServer(dead, pipeline):
        assert names(dead) == ["one"]
    assert not dead.exists()


def test_no_run_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run answers at .*--control"):
        ask(tmp_path / "nothing.sock", Request(do="list"))


def test_a_place_that_cannot_be_is_an_output_error(tmp_path: Path, pipeline: Pipeline) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the control socket"):
        ControlServer(tmp_path / "file" / "control.sock", pipeline)
    with pytest.raises(OutputError, match="file is there and no socket; name another place with --control"):
        ControlServer(tmp_path / "file", pipeline)
    assert (tmp_path / "file").is_file()


def test_each_user_has_a_usual_place(monkeypatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_path() == Path("/run/user/7/streampose.sock")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_path().name == "streampose.sock"
    assert default_path().parent.name.startswith("streampose-")
