"""`streampose run` as a service, in a process of its own: cameras, signals, logs, figures, control."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import cv2
import pytest

pytest.importorskip("aio_rtsp_toolkit", reason="needs the [dev] extra")

from streampose.control import CameraState, Request, ask

sys.path.insert(0, str(Path(__file__).parent))
from camera_kit import WAIT_S, Gate, Server, file_server, make_clip, wait_for
from ports import free_port

ABORT_UNDER_THREADS = """
import atexit, ctypes, threading
libc = ctypes.CDLL(None)
atexit.register(lambda: threading.active_count() > 1 and libc.__cxa_atexit(libc.abort, None, None))
"""
"""Has a process that takes Python down under a thread left behind crash always, not just by chance."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("clips")
    make_clip(folder / "clip.mp4")
    with file_server(folder, "clip.mp4?play_count=0") as running:
        yield running


class Program:
    """`streampose ...` in a process, its output in files. A context manager that ends it."""

    def __init__(self, folder: Path, *args: object, **environment: str) -> None:
        self._out, self._err = folder / "out.txt", folder / "err.txt"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streampose", *map(str, args)], stdout=out, stderr=err,
                env={**os.environ, "XDG_RUNTIME_DIR": str(folder), **environment},
            )  # fmt: skip

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def frames(self) -> list[dict]:
        whole = self.out.rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def wait(self, timeout_s: float = 2 * WAIT_S) -> int:
        return self.process.wait(timeout_s)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def control(folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streampose", "cameras", *map(str, args)], capture_output=True, text=True,
        timeout=2 * WAIT_S, env={**os.environ, "XDG_RUNTIME_DIR": str(folder)}, check=False,
    )  # fmt: skip


def told(folder: Path) -> tuple[CameraState, ...]:
    return ask(folder / "streampose.sock", Request(do="list")).cameras


def health(port: int) -> str:
    """What the health page says; it answers with an error's code where nothing is online."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=WAIT_S) as answer:
            return str(json.load(answer)["status"])
    except HTTPError as error:
        return str(json.load(error)["status"])


def test_a_service_from_start_to_sigterm(server: Server, tmp_path: Path) -> None:
    port = free_port()
    dead = f"rtsp://me:secret@127.0.0.1:{free_port()}/x"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(tmp_path / "notify"))
    listening.settimeout(WAIT_S)
    with Program(
        tmp_path, "run", "--source", server.url, "--source", dead, "--no-publish", "--json", "--log-json",
        "--metrics-port", port, "--detector", "none", NOTIFY_SOCKET=str(tmp_path / "notify"),
    ) as run:  # fmt: skip
        assert listening.recv(100) == b"READY=1"
        wait_for(lambda: len(run.frames) >= 5)
        assert listening.recv(100) == b"WATCHDOG=1"
        added = control(tmp_path, "add", server.url, "--name", "more", "--fps", "5")
        assert (added.returncode, added.stdout) == (0, "added more\n"), added.stderr
        wait_for(lambda: any(frame["source"] == "more" for frame in run.frames))
        wait_for(lambda: "online" in {now.state for now in told(tmp_path) if now.name == "more"})
        wait_for(lambda: "offline" in {now.state for now in told(tmp_path) if now.error})
        listed = control(tmp_path, "list", "--json")
        known = [json.loads(line) for line in listed.stdout.splitlines()]
        assert [line["state"] for line in known if line["name"] == "more"] in (["online"], ["stalled"])
        (gone,) = [line for line in known if line["uri"].startswith("rtsp://***@")]
        assert gone["state"] == "offline"
        assert "nothing listens" in gone["error"]
        wait_for(lambda: health(port) == "degraded")
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_S) as answer:
            assert re.search(r'streampose_frames_total\{source="more"\} [1-9]', answer.read().decode())
        more = tmp_path / "more.toml"
        more.write_text(f'[[camera]]\nname = "filed"\nuri = "{server.url}"\n')
        assert control(tmp_path, "add", "--cameras", more).stdout == "added filed\n"
        assert control(tmp_path, "add").returncode == 2
        assert control(tmp_path, "remove", "more").returncode == 0
        assert control(tmp_path, "remove", "more").returncode == 2
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 0
        lines = [json.loads(line) for line in run.err.splitlines()]
        assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
        summary = lines[-1]["summary"]
        assert summary["sources"]["more"]["frames"] >= 1
        assert {"encode", "fuse", "publish", "total"} <= summary["stages"].keys()
        assert any(line.get("source") == "more" and line["message"] == "more: added" for line in lines)
        assert "secret" not in run.out + run.err + listed.stdout
        assert not (tmp_path / "streampose.sock").exists()
    listening.close()


@pytest.mark.parametrize("option", [(), ("--debug",)])
def test_a_camera_that_cannot_be_opened_is_exit_code_3_and_one_line(tmp_path: Path, option: tuple[str, ...]) -> None:
    url = f"rtsp://me:secret@127.0.0.1:{free_port()}/x?token=secret"
    with Program(tmp_path, *option, "run", "--source", url, "--no-publish", "--detector", "none") as run:
        assert run.wait() == 3
        shown = run.err
    assert "secret" not in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("error:")]
    assert re.fullmatch(r"error: rtsp://\*\*\*@127\.0\.0\.1:\d+/x\?token=\*\*\*: nothing listens at this address", line)


def test_a_service_waits_for_its_cameras_where_it_is_told_to(server: Server, tmp_path: Path) -> None:
    cameras = tmp_path / "cameras.toml"
    cameras.write_text('[[camera]]\nname = "door"\nuri = "${WHERE}"\n')
    args = ("run", "--cameras", cameras, "--keep-trying", "--no-publish", "--json", "--detector", "none")
    with Program(tmp_path, *args, "--max-frames", "3", WHERE=f"rtsp://127.0.0.1:{free_port()}/x") as run:
        wait_for(lambda: "trying again" in run.err)
        assert run.process.poll() is None
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 0
    with Program(tmp_path, *args, "--max-frames", "3", WHERE=server.url) as run:
        assert run.wait() == 0
        assert [frame["source"] for frame in run.frames] == ["door"] * 3


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--source", "nothing.mp4"), 3, "nothing.mp4: no such file"),
        (("--source", "demo", "--pace", "slow"), 2, "pace is one of"),
        (("--source", "rtsp://me:more secret@h/x"), 2, "write %20 for a blank"),
    ],
)
def test_with_log_json_errors_are_lines_of_json_too(
    tmp_path: Path, args: tuple[str, ...], code: int, says: str
) -> None:
    with Program(tmp_path, "run", *args, "--no-publish", "--log-json") as run:
        assert run.wait() == code
        *_, last = [json.loads(line) for line in run.err.splitlines()]
    assert (last["level"], says in last["message"]) == ("error", True)
    assert "secret" not in run.err


def test_a_camera_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(ABORT_UNDER_THREADS)
    saved = tmp_path / "people.jsonl"
    with Gate() as hole, Program(tmp_path, "run", "--source", f"rtsp://127.0.0.1:{hole.port}/x", "--source",
                                 "lavfi:testsrc2=size=160x120:rate=30", "--no-publish", "--json", "--save", saved,
                                 PYTHONPATH=str(tmp_path)) as run:  # fmt: skip
        wait_for(lambda: hole.connections and run.frames)
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 0
        assert "Traceback" not in run.err
        assert "lavfi: stopped" in run.err
        assert saved.read_text() == run.out


def test_a_metrics_port_in_use_is_exit_code_5(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        Program(tmp_path, "run", "--source", "demo", "--no-publish", "--metrics-port", taken.getsockname()[1]) as run,
    ):
        assert run.wait() == 5
        assert "choose another --metrics-port" in run.err


def test_no_run_to_control_is_exit_code_2(tmp_path: Path) -> None:
    done = control(tmp_path, "list")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: no run answers at {tmp_path}/streampose.sock")
    assert done.stderr.count("\n") == 1


def test_the_doctor_looks_at_a_camera(server: Server, tmp_path: Path) -> None:
    url = server.url.replace("rtsp://", "rtsp://me:secret@")
    with Program(tmp_path, "doctor", "--source", url, "--seconds", "1", "--json") as run:
        assert run.wait() == 0
        (seen,) = [finding for finding in run.frames if finding["area"] == "source"]
    assert (seen["verdict"], seen["probe"]["codec"], seen["probe"]["width"]) in [
        ("ok", "h264", 160), ("note", "h264", 160)
    ]  # fmt: skip
    assert "secret" not in run.out + run.err
    bad = f"rtsp://me:secret@127.0.0.1:{free_port()}/x"
    with Program(tmp_path, "doctor", "--source", bad) as run:
        assert run.wait() == 3
    assert "-> switch RTSP on" in run.out
    assert "secret" not in run.out + run.err


def test_signals_in_a_row_lose_nothing(tmp_path: Path) -> None:
    """Impatience: the video has every frame that was saved."""
    saved, video = tmp_path / "people.jsonl", tmp_path / "poses.mp4"
    source = "lavfi:testsrc2=size=160x120:rate=30"
    arguments = ("run", "--source", source, "--detector", "none", "--no-publish", "--save", saved, "--render", video)
    with Program(tmp_path, *arguments) as run:
        assert wait_for(lambda: saved.exists() and saved.read_bytes().count(b"\n") > 5)
        for _ in range(4):
            run.process.send_signal(signal.SIGINT)
            time.sleep(0.02)  # no condition to wait for: impatience is a rhythm
        assert run.wait() == 0
        assert "Traceback" not in run.err
    capture = cv2.VideoCapture(str(video))
    frames = 0
    while capture.read()[0]:
        frames += 1
    capture.release()
    assert frames == saved.read_bytes().count(b"\n")
