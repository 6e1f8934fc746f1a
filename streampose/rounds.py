"""How many frames go into a round."""

from __future__ import annotations

_DECAY = 0.95


class RoundSize:
    """Learns what a round costs, and how many frames keep it short.

    A round of n frames takes about a + b n seconds: a for each call of the engine, b for each frame. Everybody in a
    round waits for its end, so that where b is large (a CPU) small rounds give fresher poses at the same rate, and
    where a is large (a GPU) only large rounds keep the rate up. The size is the largest with a + b n within the
    longest round wanted; but with b n up to a, since smaller ones would then mostly pay for calls.

    Args:
        most: frames in a round.
        longest_s: how long a round should take at most, seconds.
    """

    def __init__(self, most: int, longest_s: float) -> None:
        self._most = most
        self._longest_s = longest_s
        self._weight = self._n = self._s = self._nn = self._ns = 0.0
        self.frames = min(most, 2)

    def learn(self, frames: int, seconds: float) -> None:
        """A round of so many frames took so long."""
        self._weight = self._weight * _DECAY + 1
        self._n = self._n * _DECAY + frames
        self._s = self._s * _DECAY + seconds
        self._nn = self._nn * _DECAY + frames * frames
        self._ns = self._ns * _DECAY + frames * seconds
        call_s, frame_s = self._costs()
        budget_s = max(self._longest_s - call_s, call_s)
        self.frames = self._most if frame_s * self._most <= budget_s else max(1, int(budget_s / frame_s))

    def _costs(self) -> tuple[float, float]:
        """Seconds a call and seconds a frame, by least squares; all for the frames while rounds had but one size."""
        mean_n, mean_s = self._n / self._weight, self._s / self._weight
        spread = self._nn / self._weight - mean_n * mean_n
        if spread < 1e-3:
            return 0.0, mean_s / mean_n
        frame_s = (self._ns / self._weight - mean_n * mean_s) / spread
        frame_s = min(max(frame_s, 0.0), mean_s / mean_n)
        return mean_s - frame_s * mean_n, frame_s
