"""Cameras for tests: real RTSP servers in processes of their own, and a gate in front of them that spoils things."""

from __future__ import annotations

import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from streampose.sources import Source, Status
from streampose.types import Frame

sys.path.insert(0, str(Path(__file__).parent))
from ports import free_port

WAIT_S = 60.0
"""A bound against hanging, of every wait here: no claim about speed."""
GST_PYTHON = "/usr/bin/python3"
_SERVE = "from server_demo import main; main()"
_GST = Path(__file__).parent / "gst_server.py"


def wait_for(what: Callable[[], object], timeout_s: float = WAIT_S, step_s: float = 0.01) -> float:
    """Wait until `what()` is true; returns the seconds it took, and fails the test where it never is."""
    began = time.monotonic()
    pause = threading.Event()
    while not what():
        assert time.monotonic() - began < timeout_s, f"not within {timeout_s} s"
        pause.wait(step_s)
    return time.monotonic() - began


def answers(port: int) -> bool:
    """Whether something listens at a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def make_clip(
    path: Path, seconds: float = 4.0, fps: int = 30, size: tuple[int, int] = (120, 160), gop: int = 30, shade: int = 235
) -> Path:
    """An H.264 clip of a bright block that walks to the right over a dark ground and begins again."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"g": str(gop), "bf": "0", "preset": "ultrafast", "sc_threshold": "0"}
        for index in range(round(seconds * fps)):
            image = np.full((*size, 3), 16, np.uint8)
            left = 10 + 2 * index % (size[1] - 40)
            image[30:80, left : left + 20] = shade
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@dataclass
class Viewer:
    """Takes a source's frames in a thread, as inference would. A context manager."""

    source: Source
    frames: list[Frame] = field(default_factory=list)
    ages_s: list[float] = field(default_factory=list)
    states: list[Status] = field(default_factory=list)

    def __enter__(self) -> Viewer:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.states.append(self.source.status)
        self.source.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.source.stop()
        self._thread.join()
        self.source.__exit__(None, None, None)

    def _look(self) -> None:
        while not self._stop.is_set():
            frame = self.source.read(0.01)
            if frame is not None:
                self.frames.append(frame)
                self.ages_s.append((time.monotonic_ns() - frame.captured_ns) / 1e9)
            status = self.source.status
            if self.states[-1] is not status:
                self.states.append(status)

    def wait_for(self, status: Status, timeout_s: float = WAIT_S) -> float:
        """Wait until a state that lasts is seen, and is the last one in `states`."""
        return wait_for(lambda: self.states[-1] is status, timeout_s)

    def wait_for_frames(self, count: int, timeout_s: float = WAIT_S) -> float:
        goal = len(self.frames) + count
        return wait_for(lambda: len(self.frames) >= goal, timeout_s)

    def wait_for_epoch(self, epoch: int, timeout_s: float = WAIT_S) -> float:
        return wait_for(lambda: bool(self.frames) and self.frames[-1].epoch >= epoch, timeout_s)


class Server:
    """A program that serves RTSP at one port, and can be killed, frozen and started again. A context manager."""

    def __init__(self, command: Callable[[int], list[str]], path: str) -> None:
        self.port = free_port()
        self._command = command(self.port)
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/{self._path}"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: answers(self.port))

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        self.tell(signal.SIGSTOP)

    def thaw(self) -> None:
        self.tell(signal.SIGCONT)

    def tell(self, what: signal.Signals) -> None:
        """Send the program a signal."""
        assert self._process is not None
        self._process.send_signal(what)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self.kill()


def file_server(folder: Path, path: str) -> Server:
    """aio-rtsp-toolkit's server over the files of a folder; a clip comes again and again with `?play_count=0`."""

    def command(port: int) -> list[str]:
        control = free_port()
        return [
            sys.executable, "-c", _SERVE, "-d", str(folder), "-H", "127.0.0.1", "-p", str(port), "-cp", str(control)
        ]  # fmt: skip

    return Server(command, path)


def gst_server(mode: str = "plain") -> Server:
    """GStreamer's server; `mode` as in gst_server.py. `has_gst()` says whether it can run here."""
    return Server(lambda port: [GST_PYTHON, str(_GST), str(port), mode], "cam")


def has_gst() -> bool:
    """Whether GStreamer's RTSP server is installed."""
    if not shutil.which(GST_PYTHON):
        return False
    script = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer as s"
    script += "; Gst.init(None); assert Gst.ElementFactory.find('x264enc') and Gst.ElementFactory.find('rtph264pay')"
    return subprocess.run([GST_PYTHON, "-c", script], capture_output=True, check=False).returncode == 0


class Gate:
    """A TCP gate in front of a server. What passes from the server may be changed, and all of it held back or cut.

    Attributes:
        spoil: bytes from the server -> bytes to the client; None passes them on.
        held: while set, nothing passes in either direction.
        connections: how many clients came.
    """

    def __init__(
        self, target: int = 0, answer: Callable[[bytes], bytes | None] | None = None, piece: int = 65536
    ) -> None:
        """`answer` looks at each piece from the client first; what it returns is sent back instead of asking the
        server. Bytes pass in pieces of `piece` at most."""
        self._piece = piece
        self.spoil: Callable[[bytes], bytes] | None = None
        self.held = threading.Event()
        self.connections = 0
        self._target = target
        self._answer = answer
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, name="gate", daemon=True)

    def __enter__(self) -> Gate:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._stop.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                client, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), name="gate-client", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            if not self._target:
                self._hold(client)
                return
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                while not self._stop.is_set():
                    for ready in select.select([client, server], [], [], 0.05)[0]:
                        while self.held.is_set() and not self._stop.is_set():
                            self._stop.wait(0.01)
                        if not self._pass_on(ready, client, server):
                            return

    def _pass_on(self, ready: socket.socket, client: socket.socket, server: socket.socket) -> bool:
        try:
            data = ready.recv(self._piece)
            if not data:
                return False
            if ready is server:
                client.sendall(self.spoil(data) if self.spoil else data)
            elif self._answer and (reply := self._answer(data)) is not None:
                client.sendall(reply)
            else:
                server.sendall(data)
        except OSError:
            return False
        return True

    def _hold(self, client: socket.socket) -> None:
        """No server behind: answer what `answer` says, or nothing, until the end."""
        while not self._stop.is_set():
            if select.select([client], [], [], 0.05)[0]:
                try:
                    data = client.recv(65536)
                except ConnectionResetError:
                    return
                if not data:
                    return
                if self._answer and (reply := self._answer(data)) is not None:
                    client.sendall(reply)
