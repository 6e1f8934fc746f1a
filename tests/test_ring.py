"""The ring of frames: bounded, oldest out first, every loss counted."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from streampose.ring import FrameRing
from streampose.types import Frame

IMAGE = np.zeros((2, 2, 3), np.uint8)


def frame(index: int, epoch: int = 0) -> Frame:
    return Frame(IMAGE, "cam", index, index / 25, index, epoch)


def drained(ring: FrameRing) -> list[int]:
    taken = []
    while (one := ring.get()) is not None:
        taken.append(one.index)
    return taken


def test_frames_come_out_in_order() -> None:
    ring = FrameRing(3)
    for index in range(3):
        assert ring.put(frame(index))
    assert len(ring) == 3
    assert drained(ring) == [0, 1, 2]
    assert ring.dropped == 0


def test_a_full_ring_overwrites_its_oldest_and_counts() -> None:
    ring = FrameRing(3)
    for index in range(8):
        ring.put(frame(index))
    assert drained(ring) == [5, 6, 7]
    assert ring.drops == {"overwritten": 5}


def test_latest_skips_what_is_older_and_counts() -> None:
    ring = FrameRing(4)
    for index in range(3):
        ring.put(frame(index))
    newest = ring.get(latest=True)
    assert newest is not None
    assert newest.index == 2
    assert ring.drops == {"superseded": 2}
    assert len(ring) == 0


def test_a_new_epoch_empties_a_live_ring() -> None:
    ring = FrameRing(4)
    ring.put(frame(0))
    ring.put(frame(1))
    ring.put(frame(2, epoch=1))
    assert drained(ring) == [2]
    assert ring.drops == {"epoch": 2}


def test_a_new_epoch_loses_nothing_of_a_lossless_ring() -> None:
    ring = FrameRing(4)
    ring.put(frame(0), wait=True)
    ring.put(frame(1, epoch=1), wait=True)
    assert drained(ring) == [0, 1]
    assert ring.dropped == 0


def test_a_lossless_writer_waits_for_room() -> None:
    ring = FrameRing(2)
    results: list[bool] = []
    writer = threading.Thread(target=lambda: results.extend(ring.put(frame(i), wait=True) for i in range(50)))
    writer.start()
    taken = []
    while len(taken) < 50:
        one = ring.get(timeout_s=60)
        assert one is not None
        assert len(ring) <= 2
        taken.append(one.index)
    writer.join(60)
    assert taken == list(range(50))
    assert results == [True] * 50
    assert ring.dropped == 0


def test_closing_frees_a_waiting_writer_and_keeps_the_frames() -> None:
    ring = FrameRing(1)
    ring.put(frame(0))
    result: list[bool] = []
    writer = threading.Thread(target=lambda: result.append(ring.put(frame(1), wait=True)))
    writer.start()
    ring.close()
    writer.join(60)
    assert result == [False]
    assert drained(ring) == [0]
    assert not ring.put(frame(2))


def test_closing_frees_a_waiting_reader() -> None:
    ring = FrameRing(1)
    result: list[Frame | None] = []
    reader = threading.Thread(target=lambda: result.append(ring.get(timeout_s=60)))
    reader.start()
    ring.close()
    reader.join(60)
    assert not reader.is_alive()
    assert result == [None]


def test_listeners_hear_of_frames_and_of_the_end() -> None:
    ring, event = FrameRing(1), threading.Event()
    ring.listen(event)
    ring.put(frame(0))
    assert event.is_set()
    event.clear()
    ring.close()
    assert event.is_set()


def test_taken_frames_are_let_go() -> None:
    ring = FrameRing(2)
    ring.put(frame(0))
    ring.get()
    assert ring._slots == [None, None]


def test_an_empty_ring_gives_nothing() -> None:
    assert FrameRing(1).get(timeout_s=0.01) is None


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_ring_holds_something(capacity: int) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        FrameRing(capacity)
