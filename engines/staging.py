"""Where an engine on a GPU puts what moves between host and device, and the features that stay there.

Copies run beside the host: page-locked memory is written again only once the device has read it, which an event tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from streampose.engines import cuda

Item = TypeVar("Item")


class Ring(Generic[Item]):
    """Some of the same in turns."""

    def __init__(self, make: Callable[[], Item], count: int) -> None:
        self._items = [make() for _ in range(count)]
        self._turn = 0

    def take(self) -> Item:
        """The one that was taken longest ago."""
        item = self._items[self._turn]
        self._turn = (self._turn + 1) % len(self._items)
        return item


class Mirror:
    """An array on the host and on the device: written here, uploaded in parts."""

    def __init__(self, shape: tuple[int, ...], dtype: type, memory: cuda.DeviceMemory | None = None) -> None:
        self._pinned = cuda.PinnedArray(shape, dtype)
        self._item_bytes = self._pinned.array.nbytes // shape[0]
        self._memory = memory or cuda.DeviceMemory(self._pinned.array.nbytes)
        self.host = self._pinned.array
        self.address = self._memory.address

    def upload(self, count: int, stream: cuda.Stream, first: int = 0) -> int:
        """Put the copy of some items into a stream; where they will be on the device."""
        start = first * self._item_bytes
        stream.to_device(self.address + start, self._pinned.address + start, count * self._item_bytes)
        return self.address + start


class Moves:
    """Blocks that a kernel copies between addresses: features into and out of their slots."""

    def __init__(self, most: int) -> None:
        self._from, self._to = (Mirror((most,), np.uint64) for _ in range(2))

    def fill(self, sources: Sequence[int] | NDArray[np.uint64], targets: Sequence[int] | NDArray[np.uint64]) -> None:
        self._from.host[: len(sources)] = sources
        self._to.host[: len(targets)] = targets

    def put(self, blocks: int, words: int, kernel: cuda.Kernel, threads: int, stream: cuda.Stream) -> None:
        """Put the copying of so many blocks of 4-byte words into a stream."""
        self._from.upload(blocks, stream)
        self._to.upload(blocks, stream)
        arguments = (self._from.address, self._to.address, words, blocks)
        stream.launch(kernel, (-(-words // threads), blocks, 1), (threads, 1, 1), arguments)


class EncodePlace:
    """What is written for one run of the encoder.

    Attributes:
        inverses: (batch, 2, 3) crop to picture pixels.
        moves: of the features into their slots.
        free: the device has read all of it.
    """

    def __init__(self, batch: int) -> None:
        self.inverses = Mirror((batch, 2, 3), np.float32)
        self.moves = Moves(batch)
        self.free = cuda.Event()


class FusePlace:
    """What is written for one run of the fuser, and its results.

    Attributes:
        moves: of the features to the windows.
        transforms: (batch, frames, 2, 2, 3).
        results: of each output, as the device copies them back.
        done: they are there.
    """

    def __init__(self, batch: int, frames: int, transforms: cuda.DeviceMemory, outputs: dict[str, Any]) -> None:
        self.moves = Moves(batch * frames)
        self.transforms = Mirror((batch, frames, 2, 2, 3), np.float32, transforms)
        self.results = {
            name: cuda.PinnedArray((batch, *tensor.shape), tensor.dtype) for name, tensor in outputs.items()
        }
        self.done = cuda.Event()
        self._running: Running | None = None

    def begin(self, output: str, count: int) -> Running:
        """The run that was put into a stream, from now on the place's."""
        self._running = Running(self, output, count)
        return self._running

    def clear(self) -> None:
        """Be free to be written: what ran here before is over, and its results are put aside."""
        if self._running is not None:
            self._running.collect()
            self._running = None


class Running:
    """Windows that are being fused."""

    def __init__(self, place: FusePlace, output: str, count: int) -> None:
        self._place, self._output, self._count = place, output, count
        self._values: NDArray[np.float32] | None = None

    def collect(self) -> NDArray[np.float32]:
        """The results, once they are there: (count, ...) float32."""
        if self._values is None:
            self._place.done.wait()
            self._values = np.asarray(self._place.results[self._output].array[: self._count], np.float32).copy()
        return self._values


class Picture:
    """A picture that crops are cut from, on its way to the device; its memory fits the largest so far.

    Attributes:
        address: on the device.
        there: it has been copied.
        used: its crops have been cut.
    """

    def __init__(self) -> None:
        self._pinned: cuda.PinnedArray | None = None
        self._memory: cuda.DeviceMemory | None = None
        self.address = 0
        self.there, self.used = cuda.Event(), cuda.Event()

    def upload(self, image: NDArray[np.uint8], stream: cuda.Stream) -> None:
        """Put the copy into a stream, after the use of the picture before."""
        self.there.wait()
        if self._pinned is None or self._memory is None or self._memory.size < image.nbytes:
            self.used.wait()
            self._pinned = cuda.PinnedArray((image.nbytes,), np.uint8)
            self._memory = cuda.DeviceMemory(image.nbytes)
            self.address = self._memory.address
        self._pinned.array[: image.nbytes] = image.reshape(-1)
        stream.follow(self.used)
        stream.to_device(self.address, self._pinned.address, image.nbytes)
        stream.mark(self.there)


class DeviceFeature:
    """One crop's features in a slot, which is free again when this is gone."""

    __slots__ = ("_slots", "address")

    def __init__(self, slots: Slots, address: int) -> None:
        self._slots = slots
        self.address = address

    def __del__(self) -> None:
        self._slots.free.append(self.address)


class Slots:
    """Device memory in slots of one size, taken and given back; grows by blocks and never shrinks.

    A slot that is given back may be written at once: whatever still reads it was put into the stream before.
    """

    BLOCK = 64

    def __init__(self, item_bytes: int) -> None:
        self.item_bytes = item_bytes
        self.free: list[int] = []
        self._blocks: list[cuda.DeviceMemory] = []

    def take(self) -> DeviceFeature:
        if not self.free:
            block = cuda.DeviceMemory(self.BLOCK * self.item_bytes)
            self._blocks.append(block)
            self.free.extend(block.address + index * self.item_bytes for index in range(self.BLOCK))
        return DeviceFeature(self, self.free.pop())
