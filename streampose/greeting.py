"""How a ZeroMQ peer introduces itself: the first bytes of a connection (ZMTP 3.1, rfc.zeromq.org/spec/37)."""

from __future__ import annotations

import socket
import time

from streampose.endpoint import Endpoint

_SIGNATURE_AND_VERSION = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00"
"""As far as this a peer tells us its own mechanism without having judged ours."""
_MECHANISM = slice(12, 32)


def read_mechanism(where: Endpoint, timeout_s: float, *, strict: bool = False) -> str | None:
    """The security mechanism that a peer offers: "NULL", "CURVE", or another one.

    Args:
        timeout_s: for all of it.
        strict: raise OSError where there is no connection, instead of returning None.

    Returns:
        None where the peer is not ZeroMQ, or does not answer in time.
    """
    assert where.port is not None
    until_s = time.monotonic() + timeout_s
    try:
        peer = socket.create_connection((where.host, where.port), timeout_s)
    except OSError:
        if strict:
            raise
        return None
    with peer:
        try:
            peer.sendall(_SIGNATURE_AND_VERSION)
            theirs = b""
            while len(theirs) < _MECHANISM.stop:
                peer.settimeout(max(0.001, until_s - time.monotonic()))
                data = peer.recv(_MECHANISM.stop - len(theirs))
                if not data:
                    return None
                theirs += data
        except OSError:
            return None
    if theirs[:1] != b"\xff" or theirs[9:10] != b"\x7f":
        return None
    return theirs[_MECHANISM].rstrip(b"\0").decode("ascii", errors="replace")
