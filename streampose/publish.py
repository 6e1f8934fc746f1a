"""The publisher: poses out over ZeroMQ, without ever making inference wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from streampose.endpoint import DEFAULT_ENDPOINT
from streampose.errors import StreamposeError
from streampose.messages import SCHEMA, Hello, PictureHeader, State, Status
from streampose.outlet import ADVICE, HEARTBEAT_S, Outlet
from streampose.skeleton import SKELETONS
from streampose.types import PoseFrame
from streampose.wire import check_name, encode_hello, encode_picture, encode_pose, encode_status


class Publisher:
    """Publishes poses, and what is needed to read them: hello, status and heartbeat (docs/protocol.md).

    `publish` only queues, from any thread. Subscribers see what was lost as gaps in `seq`, see `Outlet`.

    Args:
        endpoint: `tcp://127.0.0.1:PORT`; with `*` for PORT any free one, see `endpoint`.
        model: name of the model, for hello.
        offsets: supporting frames of the model, relative to the key frame.
        keys: folder of keys: only those on its allow list may subscribe (see `keys`).
        insecure: allow an endpoint that other machines reach without keys.
        heartbeat_s: seconds between heartbeats.
        on_crash: see `Outlet`.

    Attributes:
        endpoint: where it listens.
        run_id: names this run in every message.

    Raises:
        UsageError: the endpoint is none, or needs keys; there are no keys in the folder.
        OutputError: the endpoint is in use, or cannot be bound for another reason.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        model: str,
        offsets: Sequence[int] = (),
        keys: Path | None = None,
        insecure: bool = False,
        heartbeat_s: float = HEARTBEAT_S,
        on_crash: Callable[[StreamposeError], None] | None = None,
    ) -> None:
        self._outlet = Outlet(
            endpoint,
            keys=keys,
            insecure=insecure,
            heartbeat_s=heartbeat_s,
            on_crash=on_crash,
            advice=f"{ADVICE}, or --no-publish",
        )
        self.endpoint = self._outlet.endpoint
        self.run_id = self._outlet.run_id
        self._model = model
        self._offsets = tuple(offsets)
        self._lock = threading.Lock()
        self._seq: dict[str, int] = {}
        self._hellos: dict[str, Hello] = {}
        self._states: dict[str, Status] = {}

    @property
    def dropped(self) -> int:
        """Messages that left the full queue unsent, so far."""
        return self._outlet.dropped

    def publish(self, frame: PoseFrame) -> None:
        """Queue one frame; returns at once. The first frame of a source, or a change of its size, sends hello first.

        Raises:
            UsageError: the source's name cannot be a topic, or the frame's `pts_s` is not finite.
        """
        with self._lock:
            known = self._hellos.get(frame.source)
            size = (frame.width, frame.height, frame.skeleton)
            if known is None or (known.width, known.height, known.skeleton) != size:
                hello = self._describe(frame)
                self._hellos[frame.source] = hello
                self._outlet.send(encode_hello(hello))
            seq = self._seq.get(frame.source, 0)
            message = encode_pose(frame, run_id=self.run_id, seq=seq, offsets=self._offsets)
            self._seq[frame.source] = seq + 1
            self._outlet.send(message)

    def set_state(self, source: str, state: State) -> None:
        """Tell subscribers, present and future ones, how the source is; the same state again sends nothing."""
        with self._lock:
            status = Status(schema=SCHEMA, run_id=self.run_id, source=check_name(source), state=state)
            if self._states.get(source) == status:
                return
            self._states[source] = status
            self._outlet.send(encode_status(status))

    def is_looked_at(self, source: str) -> bool:
        """Whether a subscriber wants pictures of the source."""
        return self._outlet.looks_at(source)

    def show(
        self, source: str, jpeg: bytes, *, epoch: int, frame_index: int, captured_ns: int, size: tuple[int, int]
    ) -> None:
        """Queue a picture.

        Args:
            jpeg: at most `PART_LIMIT` bytes.
            epoch, frame_index, captured_ns: of the frame it shows.
            size: (height, width) of the source's frames, pixels.
        """
        header = PictureHeader(
            schema=SCHEMA,
            run_id=self.run_id,
            source=source,
            epoch=epoch,
            frame_index=frame_index,
            captured_ns=captured_ns,
            width=size[1],
            height=size[0],
        )
        self._outlet.send(encode_picture(header, jpeg))

    def close(self, linger_s: float = 1.0) -> None:
        """Send what is queued, waiting at most `linger_s` for slow subscribers, and free the endpoint."""
        self._outlet.close(linger_s)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def forget(self, source: str) -> None:
        """Tell future subscribers nothing of a source that is gone; its numbers go on, should it come back."""
        with self._lock:
            self._hellos.pop(source, None)
            self._states.pop(source, None)
            self._outlet.forget(source)

    def _describe(self, frame: PoseFrame) -> Hello:
        skeleton = SKELETONS[frame.skeleton]
        return Hello(
            schema=SCHEMA,
            run_id=self.run_id,
            source=check_name(frame.source),
            skeleton=skeleton.name,
            joints=skeleton.joints,
            edges=skeleton.edges,
            width=frame.width,
            height=frame.height,
            model=self._model,
            offsets=self._offsets,
        )
