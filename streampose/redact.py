"""No credential is ever shown."""

from __future__ import annotations

import re

_USER_INFO = re.compile(r"(?<=://)\S*@")
_PARAMETER = re.compile(
    r"(?<![A-Za-z0-9])((?:user(?:name)?|usr|login|pass(?:word|wd|phrase)?|pwd|psw|token|secret|(?:api_?)?key|auth)"
    r"(?:=|%3[Dd]))[^&\s/;,'\"<>]*[^&\s/;,'\"<>:]",
    re.IGNORECASE,
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


def redact(text: str) -> str:
    """The text with user names, passwords and tokens of URLs replaced by ***: those before the host, and those in
    parameters as cameras have them (`/user=admin&password=...`, `?token=...`)."""
    hidden = _USER_INFO.sub("***@", text)
    return _URL.sub(lambda url: _PARAMETER.sub(r"\1***", url[0]), hidden)
