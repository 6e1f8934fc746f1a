"""The relay: many publishers in, one endpoint out. Messages pass unchanged, but for the names of sources."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec

from streampose.errors import UsageError
from streampose.inlet import Inlet
from streampose.keys import SubscriberKey, read_key
from streampose.messages import SCHEMA, SOURCES_LIMIT, Heartbeat, Hello, Status
from streampose.outlet import Outlet
from streampose.redact import redact
from streampose.wire import MessageError, check_name, decode, encode_status

log = logging.getLogger(__name__)

SILENT_S = 3.0
"""A publisher that was silent for so long is gone."""
_LOOK_S = 0.2
_KINDS = ("hello", "status", "pose")


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
    publisher that is gone are told to be offline. A source that comes from two publishers is taken from the first, as
    long as that lives. Pictures are asked for where somebody downstream looks.

    Args:
        upstreams: publishers, which need not be there yet.
        outlet: where it all goes; the caller's to close, after the relay.

    Attributes:
        malformed: messages that could not be read, and were not passed on.
        conflicts: messages of sources that another publisher has.

    Raises:
        UsageError: an endpoint is none, or the relay's own.
    """

    def __init__(self, upstreams: Sequence[Upstream], outlet: Outlet) -> None:
        self.malformed = 0
        self.conflicts = 0
        self._outlet = outlet
        self._lock = threading.Lock()
        self._owners: dict[str, _Branch] = {}
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
    def sources(self) -> dict[str, str]:
        """The endpoint that each source comes from now."""
        with self._lock:
            return {source: branch.endpoint for source, branch in self._owners.items()}

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def claim(self, source: str, branch: _Branch) -> bool:
        """Whether a source is the branch's, or becomes it now."""
        with self._lock:
            if source not in self._owners and len(self._owners) < SOURCES_LIMIT:
                self._owners[source] = branch
            owner = self._owners.get(source)
            self.conflicts += owner is not branch
            return owner is branch

    def release(self, branch: _Branch) -> list[str]:
        """Let others have the sources of a branch; returns them."""
        with self._lock:
            mine = [source for source, owner in self._owners.items() if owner is branch]
            for source in mine:
                del self._owners[source]
            return mine

    def pass_on(self, parts: Sequence[bytes]) -> None:
        """Send a checked message."""
        topic, header, blob = parts
        self._outlet.send((topic, header, blob))

    def _look(self, looks: frozenset[bytes]) -> None:
        for branch in self._branches:
            branch.look(looks)


class _Branch:
    """One upstream."""

    def __init__(self, upstream: Upstream, relay: Relay, stack: ExitStack) -> None:
        self.endpoint = upstream.endpoint
        self._prefix = f"{upstream.name}." if upstream.name else ""
        self._relay = relay
        self._runs: dict[str, str] = {}
        self._told: set[str] = set()
        self._heard_s = 0.0
        self._state = ""
        self._topics = [*(f"{kind}.".encode() for kind in _KINDS), b"heartbeat"]
        self._inlet = Inlet(upstream.endpoint, key=upstream.key, topics=self._topics, put=self._put, connect_s=1.0)
        stack.enter_context(self._inlet)

    def check(self) -> None:
        """Notice what has become of the publisher; log it once."""
        silent = time.monotonic() - self._heard_s > SILENT_S
        if self._inlet.failure is not None:
            state = str(self._inlet.failure)
        elif self._inlet.connected and not silent:
            state = "connected"
        elif self._heard_s:
            state = "lost"
        else:
            return
        if state != self._state:
            self._state = state
            log.info("%s: %s", self.endpoint, state)
        if state != "connected" and silent:
            for source in self._relay.release(self):
                status = Status(schema=SCHEMA, run_id=self._runs[source], source=source, state="offline")
                self._relay.pass_on(encode_status(status))

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
            message = decode(parts)
        except MessageError as error:
            self._relay.malformed += 1
            if self._relay.malformed == 1:
                log.warning("left out a message from %s: %s; more are only counted", self.endpoint, error)
            return
        if isinstance(message, Heartbeat):
            return
        header = message if isinstance(message, Hello | Status) else message.header
        source = self._prefix + header.source
        if not self._relay.claim(source, self):
            if source not in self._told and len(self._told) < SOURCES_LIMIT:
                self._told.add(source)
                owner = self._relay.sources.get(source, "others, too many")
                log.warning(
                    "left out source %s from %s: it comes from %s already; name one of them: --connect NAME=%s",
                    source, self.endpoint, owner, self.endpoint,
                )  # fmt: skip
            return
        self._runs[source] = header.run_id
        self._relay.pass_on(self._renamed(parts, source) if self._prefix else parts)

    @staticmethod
    def _renamed(parts: Sequence[bytes], source: str) -> tuple[bytes, bytes, bytes]:
        """The message under another source name; header fields that this version does not know stay."""
        kind = parts[0].partition(b".")[0]
        header = msgspec.msgpack.decode(parts[1])
        header["source"] = source
        return kind + b"." + source.encode(), msgspec.msgpack.encode(header), parts[2]
