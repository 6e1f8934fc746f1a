"""An HTTP server that tells how a run is: `/metrics` for Prometheus, `/health` for people and load balancers, `/live`
for whoever restarts what is stuck."""

from __future__ import annotations

import logging
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import msgspec

from streampose.control import CameraState, describe
from streampose.errors import OutputError
from streampose.exposition import CONTENT_TYPE, expose
from streampose.pipeline import Pipeline
from streampose.ticker import STUCK_S

_REQUEST_S = 5.0

log = logging.getLogger(__name__)


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How a run is.

    Attributes:
        status: ok; degraded: a source is not online; offline: none is; stuck: inference does not go on.
        turned_s_ago: since it last looked for frames, seconds.
        sources: each as `cameras list` shows it.
    """

    status: Literal["ok", "degraded", "offline", "stuck"]
    turned_s_ago: float
    sources: tuple[CameraState, ...]


def judge(pipeline: Pipeline) -> Health:
    """How a pipeline is now."""
    sources = tuple(describe(source) for source in pipeline.sources)
    turned_s_ago = time.monotonic() - pipeline.turned_s
    good = sum(source.state in ("online", "ended") for source in sources)
    status: Literal["ok", "degraded", "offline", "stuck"] = "ok" if good == len(sources) else "degraded"
    if sources and not good:
        status = "offline"
    if turned_s_ago > STUCK_S:
        status = "stuck"
    return Health(status=status, turned_s_ago=round(turned_s_ago, 3), sources=sources)


class Monitor:
    """Serves one pipeline's figures. A context manager.

    Args:
        port: 0 for any free one, see `port`.
        host: where it listens; by default this machine alone.

    Raises:
        OutputError: the port is in use.
    """

    def __init__(self, pipeline: Pipeline, port: int, host: str = "127.0.0.1") -> None:
        try:
            self._server = _Server((host, port), _Handler)
        except OSError as error:
            raise OutputError(
                f"cannot serve metrics at {host}:{port} ({error.strerror or error}); choose another --metrics-port"
            ) from error
        self._server.pipeline = pipeline
        self._pipeline = pipeline
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._server.serve_forever(poll_interval=0.1)
        except Exception as error:
            self._pipeline.fail(error)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    pipeline: Pipeline

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """Leave the log to what matters: most often somebody asked and did not wait for the answer."""
        log.debug("a request of %s failed", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = _REQUEST_S
    server: _Server

    def do_GET(self) -> None:
        """Answer /metrics, /health and /live."""
        path = self.path.partition("?")[0].rstrip("/")
        if path == "/metrics":
            self._answer(HTTPStatus.OK, CONTENT_TYPE, expose(self.server.pipeline))
        elif path in ("/health", "/live"):
            health = judge(self.server.pipeline)
            failing = ("stuck", "offline") if path == "/health" else ("stuck",)
            code = HTTPStatus.SERVICE_UNAVAILABLE if health.status in failing else HTTPStatus.OK
            self._answer(code, "application/json", msgspec.json.encode(health) + b"\n")
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there are /metrics, /health and /live\n")

    def do_HEAD(self) -> None:
        """The same without what they say."""
        self.do_GET()

    def log_message(self, format: str, *_: object) -> None:
        """Say nothing: a scrape every few seconds is no news."""

    def _answer(self, code: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
