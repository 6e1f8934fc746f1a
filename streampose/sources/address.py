"""Addresses of cameras: credentials from the environment, and names that hold none."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit

from streampose.errors import UsageError
from streampose.redact import redact

USER = "STREAMPOSE_RTSP_USER"
PASSWORD = "STREAMPOSE_RTSP_PASSWORD"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_PRINTABLE = re.compile(r"[^\s\x00-\x1f\x7f]*")
_RTSP_PORT = 554


def with_environment(uri: str, environment: Mapping[str, str] = os.environ) -> str:
    """The URI with each `${NAME}` replaced by that environment variable, percent-encoded as URLs need it; one at the
    very beginning stands for the URI, or its beginning, and is taken as it is.

    Raises:
        UsageError: a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in environment:
            raise UsageError(f"{redact(uri)}: the environment variable {match[1]} is not set")
        return environment[match[1]] if match.start() == 0 else quote(environment[match[1]], safe="")

    return _VARIABLE.sub(value, uri)


def for_another_process(uri: str) -> str:
    """The URI with this process's environment in it, and the whole path of a file that is here."""
    whole = with_environment(uri)
    path = os.path.expanduser(whole)
    return str(Path(path).resolve()) if os.path.exists(path) else whole


def with_credentials(url: str, environment: Mapping[str, str] = os.environ) -> str:
    """An RTSP URL that names no user gets those of STREAMPOSE_RTSP_USER and STREAMPOSE_RTSP_PASSWORD, if set."""
    user, password = environment.get(USER), environment.get(PASSWORD)
    scheme, _, rest = url.partition("://")
    if not user or "@" in re.split(r"[/?#]", rest, maxsplit=1)[0]:
        return url
    info = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    return f"{scheme}://{info}@{rest}"


def check_url(url: str) -> tuple[str, int]:
    """Host and port of an RTSP URL.

    Raises:
        UsageError: it names no host, or no port that can be, or has blanks in it.
    """
    if not _PRINTABLE.fullmatch(url):
        host = "***" if "@" in url else re.split(r"[/?#\s]", url.partition("://")[2])[0]
        raise UsageError(f"rtsp://{host}: a URL has no blanks and no control characters; write %20 for a blank")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError(f"{redact(url)}: not a URL of a camera; as in rtsp://192.168.1.20:554/stream1") from None
    if not host or port == 0:
        raise UsageError(f"{redact(url)}: names no camera; as in rtsp://192.168.1.20:554/stream1")
    return host, port or _RTSP_PORT


def camera_id(url: str) -> str:
    """A name for a camera, from its host, port and the plain parts of its path; where an "@" after them may make all
    of it a user and a password, from none of it."""
    host, port = check_url(url)
    parts = urlsplit(url)
    if "@" in parts.path + parts.query + parts.fragment:
        return "camera"
    words = [word for word in parts.path.split("/") if word and "=" not in word and "&" not in word]
    name = "-".join([host, *([str(port)] if port != _RTSP_PORT else []), *words[-2:]])
    return _UNSAFE.sub("-", name).strip("-.")[:100] or "camera"
