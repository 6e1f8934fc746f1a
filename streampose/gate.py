"""Who may connect: ZeroMQ asks here about each connection that proves to have a key (ZAP, rfc.zeromq.org/spec/27)."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import zmq
from zmq.utils import z85

from streampose.keys import AllowList, read_pair

log = logging.getLogger(__name__)

_ADDRESS = "inproc://zeromq.zap.01"
_REMEMBERED = 1000
_REFUSE_S = 1.0


class Gate:
    """Answers for the allow list of a folder of keys. All of it belongs to the thread that polls `socket`.

    Args:
        folder: see `keys`.
        context: of the sockets that are guarded; a context has one gate at most.

    Raises:
        UsageError: the folder has no publisher's pair.
    """

    def __init__(self, folder: Path, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._pair = read_pair(folder)
        self._allowed = AllowList(folder)
        self._allowed.refresh()
        self._told: dict[str, None] = {}
        self._refused_s, self._unsaid = -_REFUSE_S, 0
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ADDRESS)

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        """Let a socket that is not bound yet take connections with allowed keys only."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._pair.secret.encode())
        socket.setsockopt_string(zmq.ZAP_DOMAIN, "streampose")

    def answer(self) -> None:
        """Answer the request that waits at `socket`."""
        request = self.socket.recv_multipart()
        if len(request) < 2 or request[0] != b"1.0":
            self.socket.send_multipart([b"1.0", *request[1:2], b"500", b"not ZAP 1.0", b"", b""])
            return
        mechanism, credentials = (request[5], request[6:]) if len(request) > 5 else (b"", [])
        name, public = None, ""
        if mechanism == b"CURVE" and len(credentials) == 1 and len(credentials[0]) == 32:
            public = z85.encode(credentials[0]).decode()
            name = self._allowed.name_of(public)
            self._tell(public, name, request[3].decode(errors="replace"))
        verdict = [b"200", b"OK", public.encode(), b""] if name is not None else [b"400", b"key not allowed", b"", b""]
        self.socket.send_multipart([b"1.0", request[1], *verdict])

    def refresh(self) -> None:
        """Look at the allow list again."""
        self._allowed.refresh()

    def allows(self, public: str) -> bool:
        """Whether a public key (in Z85: the user id of its connections) was on the allow list, when last looked at."""
        return public in self._allowed

    def close(self) -> None:
        """Close the socket."""
        self.socket.close(0)

    def _tell(self, public: str, name: str | None, address: str) -> None:
        """Log each key's first verdict; refusals at most once a second, for keys are free to make."""
        if f"{public}{name}" in self._told:
            return
        self._told[f"{public}{name}"] = None
        if len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
        if name is not None:
            log.info("%s subscribes from %s", name, address)
        elif time.monotonic() - self._refused_s < _REFUSE_S:
            self._unsaid += 1
        else:
            more = f" (and {self._unsaid} more since the last time this was said)" if self._unsaid else ""
            log.warning("refused the key %s from %s: it is not on the allow list%s", public, address, more)
            self._refused_s, self._unsaid = time.monotonic(), 0
