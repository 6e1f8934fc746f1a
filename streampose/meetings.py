"""Who met whom, and whether they exchanged ids meanwhile: what they look like tells, once both are seen well again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from streampose.looks import covered, look, look_likeness
from streampose.tracked import Life, Tracked

CLEAR = 0.1
"""Up to this share of somebody's core may be covered by others who is seen well."""
NEAR = 0.3
"""People of whom one covers more than this share of the other's core may exchange ids."""
MARGIN = 0.1
"""How much more alike two people must be to one another's looks than to their own for their ids to be exchanged."""
OPEN_S = 2.0
"""How long after people parted it is still asked who is who."""
_GAIN = 0.2
Array = NDArray[np.float32]


class Meetings:
    """The meetings of one source's people, and their looks, which are kept in `Tracked.look`.

    A look is learnt only of who is seen well and in no open meeting. A meeting is open until both were seen well and
    their looks told who is who, or for `OPEN_S` after they were near.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], float] = {}

    def clear(self) -> None:
        """Forget all."""
        self._open.clear()

    def renew(self, old: int, new: int) -> None:
        """Somebody goes on under another key."""
        self._open = {
            (new if a == old else a, new if b == old else b): seen_s for (a, b), seen_s in self._open.items()
        }

    def see(
        self, image: NDArray[np.uint8], states: Sequence[Tracked], seen: Mapping[int, Array], now_s: float
    ) -> list[tuple[Tracked, Tracked]]:
        """Look at a frame in which people were detected.

        Args:
            image: (H, W, 3) uint8 BGR.
            states: everybody who is followed or remembered.
            seen: by key, the detection (4,) of whoever has one.
            now_s: the frame's time, seconds.

        Returns:
            Pairs of people who have one another's ids.
        """
        by_key = {state.key: state for state in states}
        self._open = {
            pair: near_s
            for pair, near_s in self._open.items()
            if pair[0] in by_key and pair[1] in by_key and now_s - near_s <= OPEN_S
        }
        there = [state for state in states if state.life is not Life.LOST and not state.hidden]
        boxes = np.array([seen.get(state.key, state.box) for state in there], np.float32).reshape(-1, 4)
        looks: dict[int, Array] = {}
        for place, state in enumerate(there):
            others = np.delete(boxes, place, axis=0)
            if state.key in seen and covered(boxes[place], others) <= CLEAR:
                found = look(image, boxes[place])
                if found is not None:
                    looks[state.key] = found
        self._note(there, boxes, now_s)
        for state in states:
            if state.rival is not None:
                self._open[_pair(state, state.rival)] = now_s
        exchanged = self._decide(by_key, looks)
        busy = {key for pair in self._open for key in pair}
        for key, found in looks.items():
            state = by_key[key]
            if state.look is None:
                state.look = found
            elif key not in busy:
                state.look = state.look + np.float32(_GAIN) * (found - state.look)
        return exchanged

    def _note(self, there: Sequence[Tracked], boxes: Array, now_s: float) -> None:
        for place, state in enumerate(there):
            for other in range(place):
                pair = boxes[[place, other]]
                if max(covered(pair[0], pair[1:]), covered(pair[1], pair[:1])) > NEAR:
                    self._open[_pair(state, there[other])] = now_s

    def _decide(self, by_key: Mapping[int, Tracked], looks: Mapping[int, Array]) -> list[tuple[Tracked, Tracked]]:
        exchanged = []
        for pair in list(self._open):
            first, second = by_key[pair[0]], by_key[pair[1]]
            if first.look is None or second.look is None:
                continue
            gains = [
                look_likeness(looks[one.key], one.look) - look_likeness(looks[one.key], other.look)
                for one, other in ((first, second), (second, first))
                if one.key in looks and one.look is not None and other.look is not None
            ]
            if abs(sum(gains)) <= MARGIN or len(gains) < 2 or (sum(gains) < 0 < max(gains)):
                continue
            if sum(gains) < 0:
                exchanged.append((first, second))
                first.look, second.look = second.look, first.look
                first.track_id, second.track_id = second.track_id, first.track_id
                first.born_s, second.born_s = second.born_s, first.born_s
            del self._open[pair]
        return exchanged


def _pair(a: Tracked, b: Tracked) -> tuple[int, int]:
    return min(a.key, b.key), max(a.key, b.key)
