"""Writing a bundle: all of it or nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from streampose.errors import OutputError, UsageError


@contextmanager
def new_bundle(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes `out` if nothing went wrong.

    Raises:
        UsageError: `out` exists.
        OutputError: it cannot be written.
    """
    if out.exists():
        raise UsageError(f"{out} exists already; choose another --out or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}") from error
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that are installed, and our own."""
    found = {}
    for package in ("streampose", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
