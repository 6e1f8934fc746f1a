"""Reading ahead: a thread takes items before they are asked for, so that asking does not wait for what makes them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

LIMIT = 64
"""Items that wait at most."""

_LOOK_S = 0.1
_T = TypeVar("_T")


class ReadAhead(Generic[_T]):
    """What another iterator gives, which a thread asks for it. A context manager; leaving it ends the thread.

    Args:
        items: where they come from; used by the thread alone.
        stop: once it is set, there are no more.
        wanted: leave out all others.
        limit: items that wait at most; the thread then waits, too, until half of them are taken.

    Raises:
        Exception: whatever `items` raises, in its turn: after the items before it.
    """

    def __init__(
        self, items: Iterator[_T], stop: threading.Event, wanted: Callable[[_T], bool], limit: int = LIMIT
    ) -> None:
        self._items = items
        self._stop = stop
        self._wanted = wanted
        self._limit = limit
        self._waiting: deque[_T] = deque()
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._done = False
        self._closing = False
        self._thread = threading.Thread(target=self._read, name="read ahead", daemon=True)

    def __enter__(self) -> ReadAhead[_T]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        with self._changed:
            while not (self._waiting or self._done or self._stop.is_set()):
                self._changed.wait(_LOOK_S)
            if self._stop.is_set():
                raise StopIteration
            if self._waiting:
                item = self._waiting.popleft()
                if self._is_low():
                    self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            raise StopIteration

    def _read(self) -> None:
        """The thread."""
        error: Exception | None = None
        try:
            for item in self._items:
                if not self._keep(item):
                    return
        except Exception as caught:
            error = caught
        with self._changed:
            self._error, self._done = error, True
            self._changed.notify_all()

    def _keep(self, item: _T) -> bool:
        """Put an item where it waits, once there is room; returns whether to go on."""
        wanted = self._wanted(item)
        with self._changed:
            if wanted:
                if len(self._waiting) >= self._limit:
                    self._changed.wait_for(lambda: self._closing or self._is_low())
                self._waiting.append(item)
                self._changed.notify_all()
            return not self._closing

    def _is_low(self) -> bool:
        """Whether to read on: seldom and many at a time, so that the thread is not in the way of each item."""
        return len(self._waiting) <= self._limit // 2
