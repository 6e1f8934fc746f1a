"""No credential is ever shown."""

from __future__ import annotations

import re

_USER_INFO = re.compile(r"(?<=://)(?:[^\s/@:]*:(?:(?!://)[^\n])*|\S*)@")
_MISTYPED = re.compile(r"""[^\s:@/'"]+:(?!//)[^\s@]*@""")
_PARAMETER = re.compile(
    r"(?<![A-Za-z0-9])((?:user(?:name)?|usr|login|pass(?:word|wd|phrase)?|pwd|psw|token|secret|(?:api_?)?key|auth)"
    r"(?:=|%3[Dd]))[^&\s'\"<>]*[^&\s'\"<>/;,:)]",
    re.IGNORECASE,
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


def redact(text: str) -> str:
    """The text with user names, passwords and tokens of URLs replaced by ***: those before the host, with or without a
    scheme that is one and also where a password has blanks, and those in parameters as cameras have them
    (`/user=admin&password=...`, `?token=...`). Where it cannot be told where a secret ends, more is hidden."""
    hidden = _MISTYPED.sub("***@", _USER_INFO.sub("***@", text))
    return _URL.sub(lambda url: _PARAMETER.sub(r"\1***", url[0]), hidden)
