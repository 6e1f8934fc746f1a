"""No credential is ever shown."""

from __future__ import annotations

import re

_USER_INFO = re.compile(r"(:\\*/\\*/)(?:[^\s/@:]*:(?:(?!:\\*/\\*/)[^\n])*|\S*)@")
_MISTYPED = re.compile(r"""[^\s:@/'"]+:(?!//)[^\s@]*@""")
_VALUE = r"[^&\s]*?(?=[/;,:)'\"<>]*(?:[&\s]|$))"
_PARAMETER = re.compile(
    r"([A-Za-z0-9_-]*(?:us(?:e?r|ername)|login|pass(?:w(?:or)?d|phrase)?|pwd|psw|token|secret|key|auth|sig(?:nature)?|jwt"
    r"|session|credentials?)(?:=|%3[Dd]))" + _VALUE,
    re.IGNORECASE,
)
_QUERY = re.compile(r"([?&;][^=&;\s]*(?:=|%3[Dd])|\?)" + _VALUE)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*\\*:\\*/\\*/[^\s?]*)(\?\S*)?")


def redact(text: str) -> str:
    """The text with user names, passwords and tokens of URLs replaced by ***: those before the host, with or without a
    scheme that is one and also where a password has blanks, those in parameters as some cameras have them in the path
    (`/user=admin&password=...`), and every value after a `?`. So they are in URLs that are escaped for a filter graph.
    Where it cannot be told where a secret ends, more is hidden."""
    hidden = _MISTYPED.sub("***@", _USER_INFO.sub(r"\1***@", text))
    return _URL.sub(lambda url: _PARAMETER.sub(r"\1***", url[1]) + _QUERY.sub(r"\1***", url[2] or ""), hidden)
