"""Replay: a recording published again, at the pace at which it came."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from streampose.errors import UsageError
from streampose.messages import SCHEMA, Hello, Parts, State, Status
from streampose.outlet import Outlet
from streampose.readahead import ReadAhead
from streampose.recording import Choice, Entry, Item, StateChange, read_recording
from streampose.skeleton import SKELETONS
from streampose.types import PoseFrame
from streampose.wire import MessageError, decode, encode_hello, encode_pose, encode_status

log = logging.getLogger(__name__)

_EARLIEST_NS, _LATEST_NS = -(2**63), 2**63 - 1


def replay(
    path: Path,
    outlet: Outlet,
    stop: threading.Event,
    *,
    speed: float = 1.0,
    source: str | None = None,
    loop: bool = False,
) -> int:
    """Publish a recording again: one run, with the gaps in `seq` that the recording has.

    Frames go out at the times at which they were received, counted from the first one. `captured_ns` and `published_ns`
    are moved to this machine's clock, so that the time between the two stays as it was. A source without a state by its
    first frame is told to be online, and every source to have ended at the end.

    Args:
        path: of `record`, or people.jsonl of `run --save`.
        outlet: where to; the caller's to close.
        stop: set it to end.
        speed: 2 is twice as fast.
        source: replay this source only.
        loop: begin again at the end, as another epoch.

    Returns:
        How many frames were published.

    Raises:
        UsageError: it is not a recording, has no frames of the source, or one that cannot be published.
    """
    if not 0 < speed <= 1000:
        raise UsageError(f"a speed is above 0 and at most 1000, not {speed:g}")
    player = _Player(outlet, stop, speed)
    frames = 0
    while True:
        before = player.frames
        choice = Choice(source)
        with ReadAhead(player.prepare(read_recording(path), choice), stop, _is_any) as plays:
            player.play(plays)
        frames = player.frames
        if frames == before and not stop.is_set():
            raise UsageError(f"{path} has {choice.lack}")
        if stop.is_set() or not loop:
            break
        player.begin_again()
    player.end()
    return frames


@dataclass(frozen=True, slots=True)
class _Play:
    """What an item of a recording becomes.

    Attributes:
        received_ns: when it came; None: it goes out at once.
        parts: messages, ready to be sent.
        source: of the item.
        encode: makes the pose that follows them, published at a time of `time.monotonic_ns()`; None: there is none.
    """

    received_ns: int | None
    source: str
    parts: tuple[Parts, ...]
    encode: Callable[[int], Parts] | None = None


def _is_any(play: _Play | None) -> bool:
    return play is not None


class _Player:
    """Prepares messages in one thread, and sends them in another."""

    def __init__(self, outlet: Outlet, stop: threading.Event, speed: float) -> None:
        self.frames = 0
        self._outlet = outlet
        self._stop = stop
        self._speed = speed
        self._hellos: dict[str, Hello] = {}
        self._told: set[str] = set()
        self._seq: dict[str, int] = {}
        self._index: dict[str, int] = {}
        self._epoch = self._epochs = 0
        self._first_index: dict[str, int] = {}
        self._played: dict[str, None] = {}

    def prepare(self, items: Iterable[Item], choice: Choice) -> Iterator[_Play | None]:
        """Make, and check, what is to be sent; None for each item that is not asked for."""
        for item in items:
            if not choice.takes(item):
                yield None
            elif isinstance(item, Hello):
                hello = msgspec.structs.replace(item, run_id=self._outlet.run_id)
                yield _Play(None, item.source, (self._describe(hello),))
            elif isinstance(item, StateChange):
                yield _Play(item.received_ns, item.source, (self._tell(item.source, item.state),))
            else:
                yield self._prepare_pose(item)

    def play(self, plays: Iterable[_Play | None]) -> None:
        """Publish what was prepared at its times, until it ends or the stop."""
        began_s, first_ns = 0.0, None
        for play in filter(None, plays):
            if play.received_ns is not None:
                if first_ns is None:
                    began_s, first_ns = time.monotonic(), play.received_ns  # it took a while to open the file
                wait_s = (play.received_ns - first_ns) / 1e9 / self._speed - (time.monotonic() - began_s)
                wait_s = min(wait_s, threading.TIMEOUT_MAX)
                if (wait_s > 0 and self._stop.wait(wait_s)) or self._stop.is_set():
                    return
            for parts in play.parts:
                self._outlet.send(parts)
            if play.encode is not None:
                self._outlet.send(play.encode(time.monotonic_ns()))
                self.frames += 1
            if play.received_ns is not None:
                self._played[play.source] = None

    def begin_again(self) -> None:
        """The next round is another epoch, whose frames count on."""
        self._epoch = self._epochs + 1
        self._first_index = {source: index + 1 for source, index in self._index.items()}

    def end(self) -> None:
        """Tell that all sources are at their end."""
        for source in self._played:
            self._outlet.send(self._tell(source, "ended"))

    def _prepare_pose(self, entry: Entry) -> _Play:
        frame = self._count_on(entry.frame)
        known = self._hellos.get(frame.source)
        parts: tuple[Parts, ...] = ()
        if known is None or (known.width, known.height, known.skeleton) != (frame.width, frame.height, frame.skeleton):
            parts += (self._describe(self._hello_of(frame, entry.offsets)),)
        if frame.source not in self._told:
            parts += (self._tell(frame.source, "online"),)
        seq = self._seq.get(frame.source, -1) + 1 + (frame.missed if frame.source in self._seq else 0)
        self._seq[frame.source] = seq

        def encode(now_ns: int) -> Parts:
            return encode_pose(_move(frame, now_ns), run_id=self._outlet.run_id, seq=seq, offsets=entry.offsets)

        what = f"frame {entry.frame.frame_index} of {frame.source!r}"
        _check(what, lambda: encode(time.monotonic_ns()))  # at another time it is as good: all times are in range
        return _Play(entry.received_ns, frame.source, parts, encode)

    def _count_on(self, frame: PoseFrame) -> PoseFrame:
        """A frame of this round."""
        index = frame.frame_index + self._first_index.get(frame.source, 0)
        self._index[frame.source] = index
        epoch = frame.epoch + self._epoch
        self._epochs = max(self._epochs, epoch)
        return dataclasses.replace(frame, epoch=epoch, frame_index=index)

    def _describe(self, hello: Hello) -> Parts:
        self._hellos[hello.source] = hello
        return _check(f"the hello of {hello.source!r}", lambda: encode_hello(hello))

    def _tell(self, source: str, state: State) -> Parts:
        self._told.add(source)
        status = Status(schema=SCHEMA, run_id=self._outlet.run_id, source=source, state=state)
        return _check(f"a state of {source!r}", lambda: encode_status(status))

    def _hello_of(self, frame: PoseFrame, offsets: tuple[int, ...]) -> Hello:
        """A hello for frames that were recorded without."""
        known = self._hellos.get(frame.source)
        skeleton = SKELETONS.get(frame.skeleton)
        if skeleton is None:
            raise UsageError(f"the recording has frames of a skeleton {frame.skeleton!r}, and does not say what it is")
        return Hello(
            schema=SCHEMA,
            run_id=self._outlet.run_id,
            source=frame.source,
            skeleton=skeleton.name,
            joints=skeleton.joints,
            edges=skeleton.edges,
            width=frame.width,
            height=frame.height,
            model=known.model if known else "recording",
            offsets=offsets,
        )


def _move(frame: PoseFrame, now_ns: int) -> PoseFrame:
    """A frame published now."""
    captured_ns = min(_LATEST_NS, max(_EARLIEST_NS, now_ns - (frame.published_ns - frame.captured_ns)))
    return dataclasses.replace(frame, captured_ns=captured_ns, published_ns=now_ns)


def _check(what: str, encode: Callable[[], Parts]) -> Parts:
    """Make a message, if it is one that subscribers can read: files hold what no publisher sends.

    Raises:
        UsageError: it is none.
    """
    try:
        parts = encode()
        decode(parts)
    except (MessageError, OverflowError, ValueError) as error:
        raise UsageError(f"{what} cannot be replayed: {error}") from None
    return parts
