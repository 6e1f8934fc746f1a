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
TWINS = 0.94
"""Of two people more alike than this, looks say nothing."""
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
        self._open = {(new if a == old else a, new if b == old else b): seen_s for (a, b), seen_s in self._open.items()}

    def see(self, image: NDArray[np.uint8], states: Sequence[Tracked], seen: Mapping[int, Array], now_s: float) -> None:
        """Look at a frame in which people were detected: who turns out to have another's id gets their own back.

        Args:
            image: (H, W, 3) uint8 BGR.
            states: everybody who is followed or remembered.
            seen: by key, the detection (4,) of whoever has one.
            now_s: the frame's time, seconds.
        """
        by_key = {state.key: state for state in states}
        there = [state for state in states if state.life is not Life.LOST and not state.hidden]
        boxes = np.array([seen.get(state.key, state.box) for state in there], np.float32).reshape(-1, 4)
        self._open = {
            (a, b): near_s
            for (a, b), near_s in self._open.items()
            if a in by_key and b in by_key and now_s - near_s <= OPEN_S
        }
        shares = covered(boxes)
        near = [(there[i], there[j]) for i, j in np.argwhere(np.triu(np.maximum(shares, shares.T) > NEAR))]
        for a, b in near + [(s, s.rival) for s in states if s.rival is not None]:
            self._open[min(a.key, b.key), max(a.key, b.key)] = now_s
        clear = shares.max(axis=1, initial=0) <= CLEAR
        looks = _looks(
            image, [(s, box) for s, box, free in zip(there, boxes, clear, strict=True) if free and s.key in seen]
        )
        for pair in list(self._open):
            if self._told(by_key[pair[0]], by_key[pair[1]], looks):
                del self._open[pair]
        self._learn(by_key, looks)

    def _told(self, a: Tracked, b: Tracked, looks: Mapping[int, Array]) -> bool:
        """Whether looks told two people apart; where each looks more like the other, they exchange ids."""
        if a.look is None or b.look is None or a.key not in looks or b.key not in looks:
            return False
        if look_likeness(a.look, b.look) > TWINS:
            return False
        gains = [
            look_likeness(looks[one.key], own) - look_likeness(looks[one.key], others)
            for one, own, others in ((a, a.look, b.look), (b, b.look, a.look))
        ]
        if sum(gains) < -MARGIN and max(gains) <= 0:
            a.look, b.look = b.look, a.look
            a.track_id, b.track_id = b.track_id, a.track_id
            a.born_s, b.born_s = b.born_s, a.born_s
            return True
        return sum(gains) > MARGIN

    def _learn(self, by_key: Mapping[int, Tracked], looks: Mapping[int, Array]) -> None:
        busy = {key for pair in self._open for key in pair}
        for key, found in looks.items():
            state = by_key[key]
            if state.look is None:
                state.look = found
            elif key not in busy:
                state.look = state.look + np.float32(_GAIN) * (found - state.look)


def _looks(image: NDArray[np.uint8], people: Sequence[tuple[Tracked, Array]]) -> dict[int, Array]:
    """What people look like whose boxes (4,) are seen well, by key."""
    found = {state.key: look(image, box) for state, box in people}
    return {key: one for key, one in found.items() if one is not None}
