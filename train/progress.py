"""How far something long is, for who looks on: a bar on stderr, and nothing where that is no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

T = TypeVar("T")


def bar_on_stderr(*, shown: bool = True, transient: bool = False) -> Progress:
    """Bars with counts and remaining time.

    Args:
        shown: False for none even on a terminal.
        transient: they vanish when they are done.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=transient, disable=not (shown and console.is_terminal))


def tracked(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The same items, and a bar that follows them and vanishes at the end.

    Args:
        what: the items are, such as "windows".
        total: how many, where they do not say it themselves.
    """
    console = Console(stderr=True)
    yield from track(items, what, total, console=console, transient=True, disable=not console.is_terminal)
