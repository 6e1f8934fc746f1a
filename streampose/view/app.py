"""The pages and the socket that a browser talks to."""

from __future__ import annotations

import asyncio
import hmac
from contextlib import suppress
from importlib import resources
from urllib.parse import urlsplit

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from streampose.view.hub import Hub
from streampose.view.session import TICK_S, Session

NO_TOKEN = 4403
TOO_MANY = 1013
"""Why a socket is closed; view.js knows both numbers."""
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_HEADERS = {
    b"content-security-policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        b"manifest-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}
_BROWSERS_LIMIT = 50


def make_app(hub: Hub, token: str | None, secure: bool = False) -> Starlette:
    """The application.

    Args:
        hub: what is shown.
        token: what browsers must present, as `/?token=...` once; None on loopback, where the Host header must then be a
            loopback name, so that no other site can reach the page through a name of its own.
        secure: browsers come by TLS.
    """
    browsers: set[int] = set()

    async def page(request: Request) -> Response:
        if token is not None and "token" in request.query_params:
            if not _matches(request.query_params["token"], token):
                return _ask_for_token("That token is not the right one.")
            answer = RedirectResponse("/", status_code=303)
            answer.set_cookie(
                _cookie(request), token, httponly=True, samesite="strict", secure=secure, max_age=30 * 86400
            )
            return answer
        if not _may_enter(request, token):
            return _ask_for_token("")
        return HTMLResponse(_static("index.html"))

    async def socket(websocket: WebSocket) -> None:
        if not _is_same_site(websocket):
            await websocket.close()
            return
        await websocket.accept()
        if not _may_enter(websocket, token):
            await websocket.close(NO_TOKEN)
            return
        if len(browsers) >= _BROWSERS_LIMIT:
            await websocket.close(TOO_MANY)
            return
        session = Session(hub)
        browsers.add(session.number)
        talking = asyncio.create_task(_talk(websocket, session))
        try:
            while True:
                session.request(await websocket.receive_text())
        except msgspec.MsgspecError:
            talking.cancel()
            await websocket.close(1008)
        except (WebSocketDisconnect, KeyError):
            pass  # gone; or it sent bytes, which nobody asked for
        finally:
            talking.cancel()
            browsers.discard(session.number)
            session.end()

    static = StaticFiles(packages=[("streampose.view", "static")])
    return Starlette(
        routes=[Route("/", page), WebSocketRoute("/stream", socket), Mount("/static", static)],
        middleware=[Middleware(_Guard, loopback_only=token is None)],
    )


async def _talk(websocket: WebSocket, session: Session) -> None:
    """Send what is new, for ever; a slow browser gets less often, and still the newest."""
    with suppress(WebSocketDisconnect, RuntimeError):  # gone
        while True:
            news = session.news()
            if news is not None:
                await websocket.send_text(news.decode())
            for picture in session.pictures():
                await websocket.send_bytes(picture)
            await asyncio.sleep(TICK_S)


class _Guard:
    """Adds headers, and refuses foreign Host headers where there is no token."""

    def __init__(self, app: ASGIApp, loopback_only: bool) -> None:
        self._app = app
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and self._loopback_only:
            host = HTTPConnection(scope).headers.get("host", "")
            if urlsplit(f"//{host}").hostname not in _LOOPBACK:
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close"})
                else:
                    await Response("this page is for this machine only\n", 403)(scope, receive, send)
                return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS.items()]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _may_enter(connection: HTTPConnection, token: str | None) -> bool:
    return token is None or _matches(connection.cookies.get(_cookie(connection), ""), token)


def _cookie(connection: HTTPConnection) -> str:
    """The cookie's name: browsers send cookies to all ports of a host, where other pages of ours may be."""
    return f"streampose-token-{connection.url.port or 'default'}"


def _matches(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _is_same_site(websocket: WebSocket) -> bool:
    """Whether the page that opened the socket is ours: browsers always say where it came from."""
    origin = websocket.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == websocket.headers.get("host")


def _ask_for_token(note: str) -> Response:
    return HTMLResponse(_static("token.html").replace("<!--note-->", note), status_code=401)


def _static(name: str) -> str:
    return (resources.files("streampose.view") / "static" / name).read_text(encoding="utf-8")
