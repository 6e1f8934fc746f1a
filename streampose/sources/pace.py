"""Which pictures of a camera come when they happen, and which have waited on the way."""

from __future__ import annotations

STALLED_S = 1.0
"""A camera without a picture for so long is stalled; slow cameras get `STALLED_FRAMES` of their own intervals."""
STALLED_FRAMES = 4.0
LATE_S = 0.5
"""A picture so much later than the quickest ones of the last seconds has waited somewhere."""
_BUCKET_S = 15.0
_LOOK_S = 0.3
_CAUGHT_UP = 0.1
_CORRECTED_S = 0.1
_LONGEST_INTERVAL_S = 10.0


class Pace:
    """Judges each picture of one connection by when it arrived and its presentation time.

    What was held up on the way (a frozen camera or server, a full network, a decoder that cannot keep up) arrives
    later than its presentation time says, and then in a burst. Such pictures are stale. Neither of the two clocks need
    be right: only their difference counts, against its smallest value of the last 15 to 30 seconds.

    The first picture of a connection and the first after a stall are stale by definition: nothing tells how old they
    are. Publishing begins with the first picture that comes at its pace.

    Presentation times that stood still in a stall, or that run slow, look like lateness and are none. So lateness that
    came with a stall and stays as it is is taken for the new normal. Where it came little by little, the network may be
    slower than the camera: then the picture stays stale, unless the camera's own clock, which it reports now and then,
    contradicts. Of a camera that reports none it is taken for a slow clock.

    Attributes:
        section: 0, 1, ..., +1 at each stall, and after each time without a fresh picture as long as one.
        stall_s: how long without a picture is a stall, seconds.
        late_s: how much later than the quickest the last picture came, seconds.
    """

    def __init__(self) -> None:
        self.section = 0
        self.stall_s = STALLED_S
        self.late_s = 0.0
        self._last: tuple[float, float] | None = None
        self._interval_s: float | None = None
        self._by_pts = _Delay()
        self._by_clock = _Delay()
        self._clock_offset_s: float | None = None
        self._slow_pts = False
        self._settling_since_s: float | None = None
        self._after_stall = True
        self._look = (0.0, 0.0)

    def settling_s(self, now_s: float) -> float:
        """For how long pictures have been stale, seconds; 0 where they are not."""
        return 0.0 if self._settling_since_s is None else now_s - self._settling_since_s

    def judge(self, pts_s: float, arrived_s: float, taken_s: float | None = None) -> bool:
        """Whether a picture is fresh; pictures in order of arrival.

        Args:
            pts_s, arrived_s: presentation time and arrival, seconds of any two steady clocks.
            taken_s: when the camera took it by its own clock, seconds; None where it has not reported that clock.
        """
        last, self._last = self._last, (pts_s, arrived_s)
        self.late_s = self._measure(pts_s, arrived_s, taken_s)
        if last is None:
            self._settle(arrived_s, after_stall=True)
            return False
        step_s, gap_s = pts_s - last[0], arrived_s - last[1]
        stalled = gap_s > self.stall_s
        self._learn(step_s if step_s > 0 else gap_s)
        if stalled:
            self.section += 1
        if stalled or (self._settling_since_s is None and self.late_s > LATE_S):
            self._settle(arrived_s, after_stall=stalled)
        if self._settling_since_s is None:
            return True
        if stalled or step_s <= 0 or gap_s < 0.5 * step_s or self._catching_up(arrived_s) or self._behind():
            return False
        if self.late_s > LATE_S:  # its presentation times stood still: from here on this is on time
            self._by_pts.rebase(pts_s, arrived_s)
            self.late_s = 0.0
        self.section += not self._after_stall and self.settling_s(arrived_s) > self.stall_s
        self._settling_since_s = None
        return True

    def _measure(self, pts_s: float, arrived_s: float, taken_s: float | None) -> float:
        """How late a picture is, seconds: by its presentation time, and also by the camera's clock where known."""
        late_s = self._by_pts.late_s(pts_s, arrived_s)
        if taken_s is None:
            return late_s
        before_s, self._clock_offset_s = self._clock_offset_s, taken_s - pts_s
        if before_s is not None and self._clock_offset_s - before_s > _CORRECTED_S:
            self._slow_pts = True
        return min(late_s, self._by_clock.late_s(taken_s, arrived_s))

    def _behind(self) -> bool:
        """Whether lateness came little by little, and by the camera's clock, too."""
        known = self._clock_offset_s is not None and not self._slow_pts
        return known and not self._after_stall and self.late_s > LATE_S

    def _settle(self, arrived_s: float, after_stall: bool) -> None:
        self._after_stall = after_stall
        self._settling_since_s = arrived_s
        self._look = (arrived_s, self.late_s)

    def _catching_up(self, arrived_s: float) -> bool:
        """Whether late pictures become less late; looked at over 0.3 s."""
        if self.late_s <= LATE_S:
            return False
        since_s, late_s = self._look
        if arrived_s - since_s < _LOOK_S:
            return True
        self._look = (arrived_s, self.late_s)
        return late_s - self.late_s > _CAUGHT_UP * (arrived_s - since_s)

    def _learn(self, interval_s: float) -> None:
        """Adjust to how often the camera sends."""
        before_s, interval_s = self._interval_s, min(interval_s, _LONGEST_INTERVAL_S)
        self._interval_s = interval_s if before_s is None else before_s + 0.1 * (interval_s - before_s)
        self.stall_s = max(STALLED_S, STALLED_FRAMES * self._interval_s)


class _Delay:
    """By how much the way here took longer than at its quickest lately, between two clocks."""

    def __init__(self) -> None:
        self._best_s = self._best_before_s = float("inf")
        self._bucket_s = float("-inf")

    def late_s(self, sent_s: float, arrived_s: float) -> float:
        """Of what was sent then and arrived now, seconds."""
        if arrived_s - self._bucket_s > _BUCKET_S:
            self._best_before_s, self._best_s, self._bucket_s = self._best_s, float("inf"), arrived_s
        self._best_s = min(self._best_s, arrived_s - sent_s)
        return arrived_s - sent_s - min(self._best_s, self._best_before_s)

    def rebase(self, sent_s: float, arrived_s: float) -> None:
        """Take this way for the quickest from now on."""
        self._best_s, self._best_before_s, self._bucket_s = arrived_s - sent_s, float("inf"), arrived_s
