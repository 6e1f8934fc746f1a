"""Where a stream is published: `tcp://HOST:PORT`, and whether other machines reach it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from streampose.errors import UsageError
from streampose.redact import redact

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555"

_ENDPOINT = re.compile(r"tcp://(\[[0-9a-fA-F:.%\w]+\]|[^\[\]@/:\s]+):(\d{1,5}|\*)")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A checked `tcp://HOST:PORT`.

    Attributes:
        host: a name, an IPv4 address, an IPv6 address without its brackets, or `*`.
        port: 1..65535, or None where any free one will do.
    """

    host: str
    port: int | None

    @property
    def is_loopback(self) -> bool:
        """Only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_ipv6(self) -> bool:
        """The host is an IPv6 address."""
        return ":" in self.host

    def __str__(self) -> str:
        host = "127.0.0.1" if self.host == "localhost" else f"[{self.host}]" if self.is_ipv6 else self.host
        return f"tcp://{host}:{self.port or '*'}"


def to_publish_at(endpoint: str, keys: bool, insecure: bool) -> Endpoint:
    """The endpoint that somebody wants to publish at, if that is safe or was asked for.

    Args:
        endpoint: `tcp://HOST:PORT`; HOST an address of this machine, `*` for all of them; PORT `*` for any free one.
        keys: subscribers need keys.
        insecure: let everybody read who reaches the endpoint.

    Raises:
        UsageError: it is not an endpoint, or other machines reach it and neither `keys` nor `insecure` is set.
    """
    parsed = _parse(endpoint)
    if parsed is None:
        raise UsageError(f"cannot publish at {redact(endpoint)}: an endpoint is tcp://HOST:PORT")
    if not (parsed.is_loopback or keys or insecure):
        raise UsageError(
            f"cannot publish at {parsed}: other machines reach it; let in those with a key by --keys DIR "
            "(see streampose keys new), or everybody by --insecure"
        )
    return parsed


def to_connect_to(endpoint: str) -> Endpoint:
    """The endpoint of a publisher.

    Raises:
        UsageError: it is not `tcp://HOST:PORT`.
    """
    parsed = _parse(endpoint)
    if parsed is None or parsed.port is None or parsed.host == "*":
        raise UsageError(f"cannot connect to {redact(endpoint)}: an endpoint is tcp://HOST:PORT")
    return parsed


def _parse(endpoint: str) -> Endpoint | None:
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None:
        return None
    port = None if match[2] == "*" else int(match[2])
    if port is not None and not 0 < port < 65536:
        return None
    return Endpoint(match[1].strip("[]"), port)
