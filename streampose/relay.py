"""The relay: many publishers in, one endpoint out. Messages pass unchanged, but for the names of sources."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

import msgspec

from streampose.errors import UsageError
from streampose.inlet import SILENT_S, Inlet
from streampose.keys import SubscriberKey, read_key
from streampose.messages import NAME_LIMIT, SCHEMA, SOURCES_LIMIT, Heartbeat, Hello, Parts, Status
from streampose.outlet import Outlet
from streampose.redact import redact
from streampose.rejects import Rejects
from streampose.wire import MessageError, check_name, decode, encode_status

log = logging.getLogger(__name__)

UNTOLD_S = 15.0
"""A source that its publisher, which tells of each every ten seconds, has not told of for so long is gone."""

_LOOK_S = 0.2
_KINDS = ("hello", "status", "pose")
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Upstream:
    """A publisher to collect from.

    Attributes:
        endpoint: `tcp://HOST:PORT`.
        name: what its sources are called by: `NAME.SOURCE`; "" leaves their names as they are.
        key: for a publisher that wants one.
    """

    endpoint: str
    name: str = ""
    key: SubscriberKey | None = None


def parse_upstreams(texts: Sequence[str], keys: Sequence[Path]) -> tuple[Upstream, ...]:
    """Upstreams as the command line names them: `ENDPOINT` or `NAME=ENDPOINT`, with one key for all, or one for each.

    Raises:
        UsageError: two have the same name or endpoint, a name or a key is not one, or the keys do not match in number.
    """
    if len(keys) not in (0, 1, len(texts)):
        raise UsageError(f"give no --key, one for all, or one for each of the {len(texts)} --connect, in their order")
    read = [read_key(path) for path in keys]
    upstreams = []
    for index, text in enumerate(texts):
        name, equals, endpoint = text.partition("=")
        if not equals or "/" in name:
            name, endpoint = "", text
        elif not name.strip():
            raise UsageError(f"{redact(text)}: there is no name before =")
        key = read[index if len(read) > 1 else 0] if read else None
        upstreams.append(Upstream(endpoint, check_name(name) if name else "", key))
    names = [upstream.name for upstream in upstreams if upstream.name]
    if len(set(names)) < len(names) or len({upstream.endpoint for upstream in upstreams}) < len(upstreams):
        raise UsageError("two --connect have the same name, or the same endpoint")
    return tuple(upstreams)


class Relay:
    """Collects streams and sends them on. A context manager; one thread an upstream.

    `seq` and `run_id` pass as they are, so that subscribers count what was lost on either way. The sources of a
    publisher that is gone, and those that it tells nothing of when it is connected to again, are told to be offline.
    A source that ends is let go of: who subscribes later hears only what its publisher repeats of it. A source that
    comes from two publishers is taken from the first, as long as that lives; what comes back by other relays is left
    out. Pictures are asked for where somebody downstream looks.

    Args:
        upstreams: publishers, which need not be there yet.
        outlet: where it all goes; the caller's to close, after the relay.

    Attributes:
        conflicts: messages of sources that another publisher has.
        lock: which publisher has a source, and what is told of it, changes together under this.

    Raises:
        UsageError: an endpoint is none, or the relay's own.
    """

    def __init__(self, upstreams: Sequence[Upstream], outlet: Outlet) -> None:
        self.conflicts = 0
        self.lock = threading.RLock()
        self._outlet = outlet
        self._owners: dict[str, _Branch] = {}
        self._offline: dict[str, None] = {}
        self._ended: dict[str, tuple[_Branch, str]] = {}
        self._stack = ExitStack()
        if outlet.endpoint in {upstream.endpoint for upstream in upstreams}:
            raise UsageError(f"the relay cannot collect from {outlet.endpoint}, where it publishes itself")
        with ExitStack() as stack:
            self._branches = [_Branch(upstream, self, stack) for upstream in upstreams]
            self._stack = stack.pop_all()
        outlet.watch_looks(self._look)

    def serve(self, stop: threading.Event) -> None:
        """Watch the upstreams until `stop` is set."""
        while not stop.wait(_LOOK_S):
            for branch in self._branches:
                branch.check()

    @property
    def malformed(self) -> int:
        """Messages that could not be read, and were not passed on."""
        return sum(branch.malformed for branch in self._branches)

    @property
    def sources(self) -> dict[str, str]:
        """The endpoint that each source comes from now."""
        with self.lock:
            return {source: branch.endpoint for source, branch in self._owners.items()}

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def claim(self, source: str, branch: _Branch) -> bool:
        """Whether a source is the branch's, or becomes it now."""
        with self.lock:
            if source not in self._owners and len(self._owners) < SOURCES_LIMIT:
                self._owners[source] = branch
                self._make_room()
            owner = self._owners.get(source)
            self.conflicts += owner is not branch
            return owner is branch

    def is_echo(self, source: str, run_id: str, branch: _Branch) -> bool:
        """Whether a source is another branch's, come back with names before its own, as relays in a ring send it."""
        own = source
        with self.lock:
            while "." in own:
                own = own.partition(".")[2]
                owner = self._owners.get(own)
                known = self._ended.get(own) if owner is None else (owner, owner.run_of(own))
                if known is not None and known[0] is not branch and known[1] == run_id:
                    return True
        return False

    def release(self, source: str, branch: _Branch) -> bool:
        """Let others have a source of a branch; returns whether it had it."""
        with self.lock:
            mine = self._owners.get(source) is branch
            if mine:
                del self._owners[source]
            return mine

    def tell_offline(self, status: Status) -> None:
        """Tell that a source is gone; what comes of it later tells the opposite."""
        with self.lock:
            self._offline.pop(status.source, None)
            self._offline[status.source] = None
            self._outlet.send(encode_status(status))

    def note_state(self, source: str, status: Status, branch: _Branch) -> None:
        """Remember whether a source of a branch has ended."""
        with self.lock:
            if status.state == "ended":
                _keep(self._ended, source, (branch, status.run_id))
            else:
                self._ended.pop(source, None)

    def forget_ended(self, source: str, run_id: str, branch: _Branch) -> bool:
        """Let go of a source that has ended in this run, once what was passed on of it is sent; returns whether it has.

        It may have been removed: then nothing ever comes of it that would tell so.
        """
        with self.lock:
            if self._ended.get(source) != (branch, run_id):
                return False
            self.release(source, branch)
            self._outlet.forget(source)
            return True

    def _make_room(self) -> None:
        """Forget those that went offline first, where there are too many of them and of those that are there."""
        gone = [source for source in self._offline if source not in self._owners]
        for source in gone[: max(0, len(gone) + len(self._owners) - SOURCES_LIMIT)]:
            del self._offline[source]
            self._outlet.forget(source)

    def pass_on(self, parts: Parts, source: str, run_id: str) -> None:
        """Send a checked message of a source. Before a pose of one that was told to be offline, tell that it is not."""
        with self.lock:
            if source in self._offline and not parts[0].startswith(b"hello."):
                del self._offline[source]
                if not parts[0].startswith(b"status."):
                    status = Status(schema=SCHEMA, run_id=run_id, source=source, state="online")
                    self._outlet.send(encode_status(status))
            self._outlet.send(parts)

    def _look(self, looks: frozenset[bytes]) -> None:
        for branch in self._branches:
            branch.look(looks)


@dataclass(slots=True)
class _Known:
    """What was last said of a source in one run of its publisher, by kind of message."""

    run_id: str
    parts: dict[str, Parts] = field(default_factory=dict)


class _Heard(NamedTuple):
    """The run, the connection to its publisher, and the time, in which a source was last heard of."""

    run_id: str
    connection: int
    at_s: float


class _Branch:
    """One upstream."""

    def __init__(self, upstream: Upstream, relay: Relay, stack: ExitStack) -> None:
        self.endpoint = upstream.endpoint
        self._prefix = f"{upstream.name}." if upstream.name else ""
        self._relay = relay
        self._heard: dict[str, _Heard] = {}
        self._known: dict[str, _Known] = {}
        self._told: set[str] = set()
        self._heard_s = self._connected_s = 0.0
        self._connection = 0
        self._state = ""
        self._rejects = Rejects(upstream.endpoint)
        self._topics = [*(f"{kind}.".encode() for kind in _KINDS), b"heartbeat"]
        self._inlet = Inlet(
            upstream.endpoint, key=upstream.key, topics=self._topics, put=self._put, tell=self._follow, connect_s=1.0
        )
        stack.enter_context(self._inlet)

    @property
    def malformed(self) -> int:
        """Messages of this upstream that could not be read."""
        return self._rejects.count

    def run_of(self, source: str) -> str | None:
        """The run that a source of this branch was last heard of in."""
        heard = self._heard.get(source)
        return None if heard is None else heard.run_id

    def check(self) -> None:
        """Notice what has become of the publisher; log it once."""
        with self._relay.lock:
            now_s = time.monotonic()
            silent = now_s - self._heard_s > SILENT_S
            failure = self._inlet.failure
            if failure is not None:
                state = f"{failure}; trying again"
            elif self._inlet.connected and not silent:
                state = "connected"
            elif self._heard_s:
                state = "lost"
            else:
                return
            if state != self._state:
                self._state = state
                if failure is not None:
                    log.warning("%s", state)  # it names the endpoint
                else:
                    log.info("%s: %s", self.endpoint, state)
            if state != "connected" and silent:
                self._give_up(*self._heard)
            elif state == "connected" and now_s - self._connected_s > SILENT_S:  # it has told of all its sources
                gone = [
                    name
                    for name, heard in self._heard.items()
                    if heard.connection != self._connection or now_s - heard.at_s > UNTOLD_S
                ]
                self._give_up(*gone)

    def _follow(self, inlet: Inlet) -> None:
        """Note another connection; called by the inlet's thread."""
        with self._relay.lock:
            if self._connection != inlet.connections:
                self._connection, self._connected_s = inlet.connections, time.monotonic()

    def _give_up(self, *sources: str) -> None:
        """Tell that sources do not come from here any more, of those that did."""
        for source in sources:
            if self._relay.release(source, self):
                run_id = self._heard.pop(source).run_id
                self._relay.tell_offline(Status(schema=SCHEMA, run_id=run_id, source=source, state="offline"))

    def look(self, looks: Iterable[bytes]) -> None:
        """Ask for the pictures that somebody downstream looks at."""
        wanted = []
        for look in looks:
            begin = look.removeprefix(b"picture.")
            prefix = self._prefix.encode()
            if begin.startswith(prefix):
                wanted.append(b"picture." + begin.removeprefix(prefix))
            elif prefix.startswith(begin):
                wanted.append(b"picture.")
        self._inlet.ask([*self._topics, *wanted])

    def _put(self, parts: list[bytes]) -> None:
        """Pass a message on; called by the inlet's thread."""
        self._heard_s = time.monotonic()
        try:
            self._pass_on(parts)
        except MessageError as error:
            self._rejects.add(error)

    def _pass_on(self, parts: list[bytes]) -> None:
        """Send a message on, under its new name.

        Raises:
            MessageError: it is malformed.
        """
        message = decode(parts)
        if isinstance(message, Heartbeat):
            return
        header = message if isinstance(message, Hello | Status) else message.header
        source = self._prefix + header.source
        if len(source) > NAME_LIMIT:
            self._leave_out(source, f"with the relay's name before it, it is longer than {NAME_LIMIT} characters")
            return
        kind = parts[0].partition(b".")[0].decode()
        renamed = _rename(parts, source) if self._prefix else (parts[0], parts[1], parts[2])
        with self._relay.lock:
            if self._relay.is_echo(source, header.run_id, self):
                self._leave_out(source, "it is a source of this relay, come back; relays should not collect in a ring")
                self._give_up(source)  # it may have come back before it came, after this relay was started again
                return
            said = self._note(source, header.run_id, kind, renamed)
            if not self._relay.claim(source, self):
                owner = self._relay.sources.get(source)
                why = f"it comes from {owner} already; name one of them: --connect NAME={self.endpoint}"
                if owner is None:
                    why = f"the relay has {SOURCES_LIMIT} sources already; collect some of them by another relay"
                self._leave_out(source, why)
                return
            for known in () if source in self._heard else said:
                self._relay.pass_on(known, source, header.run_id)
            self._heard[source] = _Heard(header.run_id, self._connection, time.monotonic())
            self._relay.pass_on(renamed, source, header.run_id)
            if isinstance(message, Status):
                self._relay.note_state(source, message, self)
            if self._relay.forget_ended(source, header.run_id, self):
                del self._heard[source]

    def _note(self, source: str, run_id: str, kind: str, parts: Parts) -> list[Parts]:
        """Keep the last hello and status of a source; returns what was said before this message, of another kind."""
        known = self._known.get(source)
        if known is None or known.run_id != run_id:
            known = _Known(run_id)
        _keep(self._known, source, known)
        if kind in ("hello", "status"):
            known.parts[kind] = parts
        return [said for each, said in known.parts.items() if each != kind]

    def _leave_out(self, source: str, why: str) -> None:
        """Log each source that is not passed on, once."""
        if source not in self._told and len(self._told) < SOURCES_LIMIT:
            self._told.add(source)
            log.warning("left out source %s from %s: %s", source, self.endpoint, why)


def _keep(known: dict[str, _Value], source: str, value: _Value) -> None:
    """Enter the value of a source; where there are too many, without the oldest."""
    known.pop(source, None)
    if len(known) >= SOURCES_LIMIT:
        del known[next(iter(known))]
    known[source] = value


def _rename(parts: Sequence[bytes], source: str) -> Parts:
    """The message under another source name; header fields that this version does not know stay as they are.

    Raises:
        MessageError: it has a field without a name.
    """
    topic, header, blob = parts
    try:
        fields = msgspec.msgpack.decode(header, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise MessageError("a header with a field whose name is no text") from None
    fields["source"] = msgspec.Raw(msgspec.msgpack.encode(source))
    return topic.partition(b".")[0] + b"." + source.encode(), msgspec.msgpack.encode(fields), blob
