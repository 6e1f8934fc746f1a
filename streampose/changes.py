"""Sources that are added and removed while a run goes on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from streampose.errors import UsageError
from streampose.lanes import Lane, Lanes
from streampose.sources import Camera, Source, open_sources, unique_name
from streampose.wire import check_name


class Changes:
    """What is asked for and not done yet, in order. Any thread asks; the one that iterates the pipeline carries it out.

    A source is opened by whoever asks for it, and while it is, nobody waits: a file that hangs delays nobody else.
    """

    def __init__(self, lanes: Lanes, stop: threading.Event) -> None:
        """Changes of `lanes`; once `stop` is set, nothing can be added."""
        self._lanes = lanes
        self._stop = stop
        self._closed = False
        self._lock = threading.Lock()
        self._asked: deque[Source | str] = deque()

    def __len__(self) -> int:
        return len(self._asked)

    @property
    def first(self) -> Source | str:
        """What was asked for first: a source to take in, or the id of one to let go."""
        return self._asked[0]

    def add(self, source: str | Camera, check: Callable[[Source], None]) -> str:
        """Open a source and ask for it to be taken in; returns its id. `check` raises where it cannot be.

        Raises:
            UsageError: the URI is none, the name is taken, or the run is ending.
            SourceError: a file is not there. A camera is connected to later, and for ever.
        """
        with self._lock:
            self._check_open(source)
        (opened,) = open_sources([source])
        try:
            check_name(opened.id)
            check(opened)
            with self._lock:
                self._check_open(source)
                opened.id = unique_name(opened.id, set(self._names()))
                self._asked.append(opened)
        except BaseException:
            opened.close()
            raise
        self._lanes.wake.set()
        return opened.id

    def remove(self, source_id: str) -> None:
        """Ask for a source to be let go; raises UsageError where there is none."""
        with self._lock:
            known = self._names()
            if source_id not in known:
                raise UsageError(f"there is no source called {source_id}; there are: {', '.join(known) or 'none'}")
            self._asked.append(source_id)
        self._lanes.wake.set()

    def take_in(self, lane: Lane) -> None:
        """Do the first, which is this lane's source."""
        with self._lock:
            self._asked.popleft()
            self._lanes.add(lane)

    def let_go(self, source_id: str) -> None:
        """Do the first, which is this source's removal."""
        with self._lock:
            self._asked.popleft()
            self._lanes.remove(source_id)

    def close(self) -> None:
        """Take no more, and close the sources that were never taken in."""
        with self._lock:
            self._closed = True
            for asked in self._asked:
                if isinstance(asked, Source):
                    asked.close()

    def _check_open(self, source: str | Camera) -> None:
        if self._stop.is_set() or self._closed:
            raise UsageError("the run is ending; no source can be added")
        if isinstance(source, Camera) and source.name in self._names():
            raise UsageError(f"there is a source called {source.name} already; remove it first")

    def _names(self) -> list[str]:
        return self._lanes.names_after(self._asked)
