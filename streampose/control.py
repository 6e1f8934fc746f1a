"""The control socket: cameras are added, removed and listed while a run goes on. A request is a line of JSON, and so is
the answer; the socket is a file that only its owner may open."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Literal

import msgspec

from streampose.errors import ModelError, OutputError, SourceError, StreamposeError, UsageError
from streampose.pipeline import Pipeline
from streampose.redact import redact
from streampose.sources import Camera, Source

LONGEST_REQUEST = 1 << 20
MOST_REQUESTS = 64
"""Requests at once; who asks for more is hung up on."""
_ANSWER_S = 10.0
_KINDS: dict[int, type[StreamposeError]] = {
    kind.exit_code: kind for kind in (UsageError, SourceError, ModelError, OutputError)
}
_LOOK_S = 0.1
_REQUEST_S = 5.0
_LEAVE_S = 0.5

log = logging.getLogger(__name__)


class CameraState(msgspec.Struct, frozen=True, kw_only=True):
    """One source of a run, as `cameras list` shows it.

    Attributes:
        name, uri: without credentials.
        state: waiting, online, stalled, offline or ended.
        fps: frames a second that the source announces; not measured.
        epoch, reconnects: how often it began anew, and was connected to again.
        dropped: frames that were not estimated, by reason.
        age_s: since its last frame, seconds; None before the first.
        error: why it is offline.
    """

    name: str
    uri: str
    state: str
    fps: float
    epoch: int
    reconnects: int
    dropped: dict[str, int]
    age_s: float | None
    error: str | None


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked: `camera` goes with add, `name` with remove."""

    do: Literal["add", "remove", "list"]
    camera: Camera | None = None
    name: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`error` says why it was not done, else None; `name` is the source added or removed; `cameras` answers list."""

    error: str | None = None
    exit_code: int = 0
    name: str | None = None
    cameras: tuple[CameraState, ...] = ()


def default_path() -> Path:
    """Where the control socket of this user's run is, unless another place is named."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) if runtime else Path(tempfile.gettempdir()) / f"streampose-{_user()}"
    return folder / "streampose.sock"


def describe(source: Source) -> CameraState:
    """A source as it is now."""
    age_s = source.age_s
    return CameraState(
        name=source.id,
        uri=redact(source.name),
        state=str(source.status),
        fps=source.fps,
        epoch=source.epoch,
        reconnects=source.reconnects,
        dropped=source.ring.drops,
        age_s=round(age_s, 3) if age_s < float("inf") else None,
        error=redact(str(source.error)) if source.error else None,
    )


class ControlServer:
    """Answers requests for one pipeline. A context manager; each request has a thread of its own, so that one that
    takes long holds up neither the others nor the end of the run.

    Args:
        path: of the socket; one that a dead run left there is replaced.
        pipeline: who does what is asked.

    Raises:
        OutputError: another run uses that path, or it cannot be made.
    """

    def __init__(self, path: Path, pipeline: Pipeline) -> None:
        self.path = path
        self._pipeline = pipeline
        self._stop = threading.Event()
        self._socket = _listen(path)
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._requests: list[threading.Thread] = []

    def __enter__(self) -> ControlServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        leave_s = time.monotonic() + _LEAVE_S
        for request in self._requests:
            request.join(max(0.0, leave_s - time.monotonic()))
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _run(self) -> None:
        self._socket.settimeout(_LOOK_S)
        try:
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = self._socket.accept()
                    self._requests = [request for request in self._requests if request.is_alive()]
                    if len(self._requests) >= MOST_REQUESTS:
                        connection.close()
                        continue
                    request = threading.Thread(
                        target=self._serve, args=(connection,), name="control-request", daemon=True
                    )
                    request.start()
                    self._requests.append(request)
        except Exception as error:
            self._pipeline.fail(error)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(_REQUEST_S)
        with connection, contextlib.suppress(OSError):  # whoever asked went away
            line = _read_line(connection)
            connection.sendall(self._answer(line))

    def _answer(self, line: bytes) -> bytes:
        """The answer to a line, as a line; no request ends the run, whatever is in it."""
        try:
            answer = self._do(msgspec.json.decode(line, type=Request))
        except StreamposeError as error:
            answer = Answer(error=redact(str(error)), exit_code=error.exit_code)
        except msgspec.MsgspecError as error:
            answer = Answer(error=f"not a request: {error}", exit_code=UsageError.exit_code)
        except Exception as error:
            log.debug("a request failed", exc_info=True)
            answer = Answer(error=redact(f"unexpected {type(error).__name__}: {error}"), exit_code=1)
        return msgspec.json.encode(answer) + b"\n"

    def _do(self, request: Request) -> Answer:
        if request.do == "list":
            return Answer(cameras=tuple(describe(source) for source in self._pipeline.sources))
        if request.do == "add":
            if request.camera is None:
                raise UsageError("add needs a camera")
            return Answer(name=self._pipeline.add(request.camera))
        if request.name is None:
            raise UsageError("remove needs a name")
        self._pipeline.remove(request.name)
        return Answer(name=request.name)


def ask(path: Path, request: Request) -> Answer:
    """Ask the run behind a control socket.

    Raises:
        UsageError: nobody listens there, or what was asked cannot be.
        StreamposeError: it could not be done.
    """
    try:
        _check_owner(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_ANSWER_S)
            connection.connect(str(path))
            connection.sendall(msgspec.json.encode(request) + b"\n")
            answer = msgspec.json.decode(_read_line(connection), type=Answer)
    except TimeoutError:
        raise UsageError(
            f"the run at {path} has not answered in {_ANSWER_S:.0f} s; it may still do what it was asked"
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(
            f"no run answers at {path} ({getattr(error, 'strerror', None) or error}); "
            "start one with streampose run --control, or name its socket with --control"
        ) from error
    if answer.error is not None:
        raise _KINDS.get(answer.exit_code, StreamposeError)(answer.error)
    return answer


def _check_owner(path: Path) -> None:
    """Raise UsageError where the socket is of another user, who would get to know the cameras' passwords."""
    if hasattr(os, "getuid") and os.getuid() and path.stat().st_uid not in (0, os.getuid()):
        raise UsageError(f"{path} belongs to another user; name the socket of your own run with --control")


def _read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(65536)
        if not part or len(line) > LONGEST_REQUEST:
            raise OSError(0, "the connection ended before the line")
        line += part
    return line


def _listen(path: Path) -> socket.socket:
    """A listening socket at a path, in a folder and with rights of its owner alone."""
    if not hasattr(socket, "AF_UNIX"):
        raise OutputError("this system has no Unix sockets; leave out --control")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_socket():
            _remove_dead(path)
        elif path.exists():
            raise OutputError(f"{path} is there and no socket; name another place with --control")
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(8)
    except OSError as error:
        listener.close()
        raise OutputError(f"cannot make the control socket {path} ({error.strerror or error})") from error
    except OutputError:
        listener.close()
        raise
    return listener


def _remove_dead(path: Path) -> None:
    """Remove a socket that nobody listens at; raises OutputError where somebody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise OutputError(f"another run has its control socket at {path}; name another with --control")


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
