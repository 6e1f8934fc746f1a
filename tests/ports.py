"""Ports of this machine that are ours for as long as the tests run."""

from __future__ import annotations

import socket

_RESERVED: list[socket.socket] = []


def free_port() -> int:
    """A port that nothing listens at, and that nobody gets who asks for any: only who asks for it by its number, as
    the servers here do, with SO_REUSEADDR."""
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    _RESERVED.append(kept)
    return int(kept.getsockname()[1])


def free_endpoint() -> str:
    """The same for a publisher that comes, goes and comes again."""
    return f"tcp://127.0.0.1:{free_port()}"
