"""`streampose view`: the page, served until it is told to stop."""

from __future__ import annotations

import ipaddress
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from streampose.errors import MissingExtraError, OutputError, UsageError
from streampose.keys import read_key
from streampose.view.hub import Hub

try:
    import uvicorn

    from streampose.view.app import make_app
except ModuleNotFoundError as error:
    raise MissingExtraError((error.name or "starlette").partition(".")[0], "web") from None

log = logging.getLogger(__name__)

_SHORTEST_TOKEN = 12
_LOOK_S = 0.1
_END_S = 5.0
_PATIENCE_S = 1.0


def serve(
    endpoint: str,
    stop: threading.Event,
    show: Callable[[str], None],
    *,
    host: str = "127.0.0.1",
    port: int = 8787,
    token: str | None = None,
    key: Path | None = None,
    certificate: Path | None = None,
    certificate_key: Path | None = None,
) -> None:
    """Serve the page until `stop` is set.

    Args:
        endpoint: of the publisher, which need not be there yet.
        show: gets the page's address, with the token if one was made here. Nothing else tells it: logs hide tokens.
        host: address to listen at. Anything but loopback needs a token; one is made where none is given.
        port: 0 takes any free one.
        token: at least 12 characters.
        key: key file, for a publisher that wants one.
        certificate, certificate_key: PEM files, to serve by TLS.

    Raises:
        UsageError: the endpoint, the key, the token or the certificate is not one.
        OutputError: the address is in use, or is not this machine's.
    """
    if token is not None and len(token) < _SHORTEST_TOKEN:
        raise UsageError(f"--token: at least {_SHORTEST_TOKEN} characters, so that nobody guesses it")
    if (certificate is None) != (certificate_key is None):
        raise UsageError("--tls-cert and --tls-key go together")
    made = secrets.token_urlsafe(16) if token is None and not _is_loopback(host) else None
    token = token or made
    credentials = None if key is None else read_key(key)
    with _listen(host, port) as listening, Hub(endpoint, credentials) as hub:
        config = uvicorn.Config(
            make_app(hub, token, secure=certificate is not None),
            log_level="warning",
            log_config=None,
            ws_max_size=1 << 16,
            timeout_graceful_shutdown=1,
            ssl_certfile=certificate,
            ssl_keyfile=certificate_key,
        )
        try:
            config.load()
        except OSError as error:
            files = f"--tls-cert {certificate} and --tls-key {certificate_key}"
            raise UsageError(f"cannot serve by TLS with {files}: {error.strerror or error}") from None
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), name="view", daemon=True)
        thread.start()
        show(_address(listening, host, certificate is not None, made))
        if token is not None and certificate is None:
            log.warning("the page and its token travel unencrypted; --tls-cert and --tls-key encrypt them")
        news = _News(hub)
        while not stop.wait(_LOOK_S) and thread.is_alive():
            news.look()
        server.should_exit = True
        thread.join(_END_S)


class _News:
    """Logs what keeps a hub from being live, once it has for a second, and when it is live again; each once."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._problem = ""
        self._since_s = time.monotonic()
        self._told = ""

    def look(self) -> None:
        """Log what is new since the last look."""
        problem = self._hub.problem
        if problem != self._problem:
            self._problem, self._since_s = problem, time.monotonic()
        if problem == self._told or (problem and time.monotonic() - self._since_s < _PATIENCE_S):
            return
        self._told = problem
        if problem:
            log.warning("%s; trying again", problem)
        else:
            log.info("%s publishes now", self._hub.endpoint)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = _reason(error) if isinstance(error, OSError) else "a port is 0 to 65535"
        raise OutputError(
            f"cannot serve the page at {host}:{port}: {reason}; choose another --port or --host"
        ) from None


def _reason(error: OSError) -> str:
    """Why an address cannot be listened at, without the address, which Python adds to the system's words."""
    return str(error.strerror or error).partition(" (while attempting")[0]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(listening: socket.socket, host: str, secure: bool, token: str | None) -> str:
    port = listening.getsockname()[1]
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http{'s' if secure else ''}://{shown}:{port}/" + (f"?token={token}" if token else "")
