"""For benchmarks: a package that is missing is one line that names the extra which brings it, and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from streampose.cli.networks import TRAIN_PACKAGES
from streampose.cli.program import extra, to_line
from streampose.errors import MissingExtraError

PACKAGES = {"train": TRAIN_PACKAGES, "record": ("pyarrow",), "cuda": ("cuda",)}


@contextmanager
def needs(name: str) -> Iterator[None]:
    """Around imports that need the extra `name`, or around what imports them later."""
    try:
        with extra(name, PACKAGES[name]):
            yield
    except MissingExtraError as error:
        print(to_line(error)[0], file=sys.stderr)
        raise SystemExit(2) from None
