"""The subscriber for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType

from streampose.keys import SubscriberKey
from streampose.reception import CONNECT_S, Mode, Reception
from streampose.smoothing import Smoothing
from streampose.types import PoseFrame


class AsyncSubscriber(Reception):
    """`Subscriber` for asyncio: the same arguments, attributes and errors. Made inside of a running loop.

    async with streampose.AsyncSubscriber("tcp://127.0.0.1:5555") as stream:
        async for frame in stream:
            ...
    """

    def __init__(
        self,
        endpoint: str,
        mode: Mode = "latest",
        source: str | None = None,
        *,
        key: str | Path | SubscriberKey | None = None,
        connect_s: float | None = CONNECT_S,
        silent_s: float | None = None,
        smooth: Smoothing | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._told = False
        super().__init__(endpoint, mode, source, key, connect_s, silent_s, smooth, self._tell_loop)

    async def receive(self, timeout_s: float | None = None) -> PoseFrame | None:
        """As `Subscriber.receive`; other tasks have their turn before each frame, also where many wait."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        await asyncio.sleep(0)  # before a frame is taken, so that none is lost where this is cancelled
        while True:
            self._told = False
            self._news.clear()
            frame = self._take()
            if frame is not None or self.closed:
                return frame
            left_s = None if until_s is None else until_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return None
            waits = [wait_s for wait_s in (left_s, self._patience_s()) if wait_s is not None]
            try:
                await asyncio.wait_for(self._news.wait(), min(waits, default=None))
            except TimeoutError:
                continue

    async def __aiter__(self) -> AsyncIterator[PoseFrame]:
        """Frames until closed. Raises as `receive`."""
        while (frame := await self.receive()) is not None:
            yield frame

    async def close(self) -> None:
        """Disconnect; a waiting `receive` returns None."""
        if not self.closed:
            await asyncio.to_thread(self._end)

    async def __aenter__(self) -> AsyncSubscriber:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _tell_loop(self) -> None:
        """Wake the reader, from any thread; once is enough until it looks."""
        if self._told or self._loop.is_closed():
            return
        self._told = True
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:
            return  # the loop has just been closed
