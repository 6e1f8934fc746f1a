"""CURVE keys: the publisher's own pair, the allow list of those who may subscribe, and a key file for each of them.

A folder of keys, on the publisher's machine:

    publisher.key       its pair; the secret half never leaves the folder
    allowed/NAME.pub    one a subscriber: its public half

A key file (NAME.key) holds what a subscriber needs: its own pair and the publisher's public half. All files are TOML
with keys in Z85, ZeroMQ's text form of 32 bytes.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import struct
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import zmq
from zmq.utils import z85

from streampose.errors import OutputError, UsageError

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_FILE_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A pair in Z85, 40 characters each."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair({self.public!r}, ...)"


@dataclass(frozen=True, slots=True)
class SubscriberKey:
    """What a key file says: who subscribes, with which pair, to which publisher (its public key)."""

    name: str
    pair: KeyPair
    publisher: str


@dataclass(frozen=True, slots=True)
class Allowed:
    """An entry of the allow list.

    Attributes:
        public: in Z85.
        since: when it was allowed, ISO 8601 in UTC.
    """

    name: str
    public: str
    since: str


def read_key(path: Path) -> SubscriberKey:
    """Read a subscriber's key file.

    Raises:
        UsageError: it is not there, or not a key file.
    """
    fields = _read(path)
    _warn_if_shared(path)
    pair = KeyPair(_key(fields, "public", path), _key(fields, "secret", path))
    _check_pair(pair, path)
    return SubscriberKey(str(fields.get("name", path.stem)), pair, _key(fields, "publisher", path))


def read_pair(folder: Path) -> KeyPair:
    """The publisher's pair in a folder of keys.

    Raises:
        UsageError: there is none.
    """
    path = folder / "publisher.key"
    if not path.is_file():
        raise UsageError(f"there are no keys in {folder}; make them with: streampose keys new NAME --keys {folder}")
    fields = _read(path)
    _warn_if_shared(path)
    _warn_if_writable(folder)
    pair = KeyPair(_key(fields, "public", path), _key(fields, "secret", path))
    _check_pair(pair, path)
    return pair


def add_key(folder: Path, name: str, out: Path) -> SubscriberKey:
    """Make a subscriber's pair, put it on the allow list and write its key file; the first call makes the publisher's.

    Args:
        folder: of the publisher's keys; made where it is not there.
        name: of the subscriber: letters, digits, `.`, `_` and `-`.
        out: the key file, to be carried to the subscriber. Its secret is kept nowhere else.

    Raises:
        UsageError: the name is not one or is taken, or `out` exists.
        OutputError: a file cannot be written.
    """
    _check_free(folder, name)
    if out.exists():
        raise UsageError(f"{out} exists; it is not overwritten")
    publisher = _make_publisher(folder)
    pair = _new_pair()
    text = (
        f"# Lets {name} subscribe. Keep it secret: whoever has it can read the stream.\n"
        f'name = "{name}"\npublic = "{pair.public}"\nsecret = "{pair.secret}"\npublisher = "{publisher.public}"\n'
    )
    _write(out, text, 0o600)
    try:
        _allow(folder, name, pair.public)
    except BaseException:
        out.unlink(missing_ok=True)  # a key that lets nobody in
        raise
    return SubscriberKey(name, pair, publisher.public)


def allow_public(folder: Path, name: str, public: str) -> str:
    """Put a public key on the allow list whose secret half the subscriber made and keeps; returns the publisher's.

    Raises:
        UsageError: the name is not one or is taken, or the key is not one or is on the list already.
        OutputError: a file cannot be written.
    """
    _check_free(folder, name)
    if not _is_key(public):
        raise UsageError("a public key is 40 characters of Z85, as zmq_curve_keypair makes them")
    if public in (names := _names_by_key(folder)):
        raise UsageError(
            f"{names[public][0]} has this key already; revoke {names[public][0]} first, or take another key"
        )
    publisher = _make_publisher(folder)
    _allow(folder, name, public)
    return publisher.public


def list_allowed(folder: Path) -> tuple[Allowed, ...]:
    """The allow list, by name; files in it that cannot be read are logged and left out."""
    found = []
    for path in sorted((folder / "allowed").glob("*.pub")):
        try:
            fields = _read(path)
            found.append(Allowed(path.stem, _key(fields, "public", path), str(fields.get("since", ""))))
        except UsageError as error:
            log.warning("left out of the allow list: %s", error)
    return tuple(found)


def revoke(folder: Path, name: str) -> None:
    """Take a subscriber off the allow list; a running publisher ends its connection within a second or two.

    Raises:
        UsageError: there is none of this name; or others have the same key, which their names still let in.
        OutputError: the file cannot be removed.
    """
    path = folder / "allowed" / f"{name}.pub"
    if not _NAME.fullmatch(name) or not path.is_file():
        see = f"streampose keys list --keys {folder}"
        raise UsageError(f"nobody named {name!r} is on the allow list in {folder}; see: {see}")
    names = _names_by_key(folder)
    try:
        path.unlink()
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror}") from None
    sharing = next((each for each in names.values() if name in each), [name])
    if others := " and ".join(each for each in sharing if each != name):
        raise UsageError(f"{name} is revoked, but the same key is let in as {others}; revoke that too")


def _names_by_key(folder: Path) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for entry in list_allowed(folder):
        names.setdefault(entry.public, []).append(entry.name)
    return names


class AllowList:
    """The allow list as it is now, read again whenever its files change. For one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: object = None
        self._names: dict[str, str] = {}

    def name_of(self, public: str) -> str | None:
        """Who has this public key, or None where nobody allowed has it."""
        self.refresh()
        return self._names.get(public)

    def __contains__(self, public: str) -> bool:
        """Whether somebody had this public key when it was last read."""
        return public in self._names

    def refresh(self) -> None:
        """Read it again if it changed."""
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            self._names = {entry.public: entry.name for entry in list_allowed(self._folder)}

    def _look(self) -> object:
        """What changes when a file of the list does."""
        try:
            with os.scandir(self._folder / "allowed") as entries:
                files = [(entry.name, entry.stat()) for entry in entries]
        except OSError:
            return None
        return sorted((name, found.st_mtime_ns, found.st_size, found.st_ino) for name, found in files)


def _check_free(folder: Path, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(f"a name has up to 64 letters, digits, '.', '_' and '-', not {name!r}")
    if (folder / "allowed" / f"{name}.pub").exists():
        raise UsageError(f"{name} has a key already; revoke it first, or take another name")


def _make_publisher(folder: Path) -> KeyPair:
    if (folder / "publisher.key").is_file():
        return read_pair(folder)
    pair = _new_pair()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror}") from None
    text = f'# The publisher\'s own pair. Keep it secret.\npublic = "{pair.public}"\nsecret = "{pair.secret}"\n'
    _write(folder / "publisher.key", text, 0o600)
    return pair


def _allow(folder: Path, name: str, public: str) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        (folder / "allowed").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder / 'allowed'}: {error.strerror}") from None
    part = folder / "allowed" / f".{name}.part"
    try:
        part.unlink(missing_ok=True)
        _write(part, f'public = "{public}"\nsince = "{since}"\n', 0o644)
        part.rename(folder / "allowed" / f"{name}.pub")
    except OSError as error:
        raise OutputError(f"cannot write {folder / 'allowed'}: {error.strerror}") from None


def _new_pair() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def _write(path: Path, text: str, mode: int) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
            file.write(text)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None


def _read(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            return tomllib.loads(file.read(_FILE_LIMIT).decode())
    except OSError as error:
        raise UsageError(f"cannot read the key {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise UsageError(f"{path} is not a key file of streampose") from None


def _key(fields: dict[str, object], name: str, path: Path) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not _is_key(value):
        raise UsageError(f"{path} is not a key file of streampose: it has no {name} key of 40 characters")
    return value


def _is_key(text: str) -> bool:
    try:
        return len(text) == 40 and len(z85.decode(text.encode())) == 32
    except (ValueError, KeyError, UnicodeEncodeError, struct.error):
        return False


def _check_pair(pair: KeyPair, path: Path) -> None:
    if zmq.curve_public(pair.secret.encode()).decode() != pair.public:
        raise UsageError(f"{path} is damaged: its public and secret keys do not belong together")


def _warn_if_shared(path: Path) -> None:
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        log.warning("%s can be read by others on this machine; chmod 600 it", path)


def _warn_if_writable(folder: Path) -> None:
    """Whoever can write into the allow list lets in whom he likes."""
    for path in (folder, folder / "allowed"):
        if os.name == "posix" and path.is_dir() and stat.S_IMODE(path.stat().st_mode) & 0o022:
            log.warning("others on this machine can write into %s, and so let anybody in; chmod go-w it", path)
