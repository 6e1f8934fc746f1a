"""Who is who from frame to frame: one tracker a source, boxes in, tracks out, poses back in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from streampose.boxes import (
    extent,
    longer_side,
    recentre,
    shifted,
    visible_share,
    widened,
)
from streampose.camera_motion import CameraMotion
from streampose.follower import Track, pose_quality, pose_score
from streampose.geometry import box_iou
from streampose.likeness import SHORT_REACH, astray, box_likeness, pose_likeness, pose_likenesses
from streampose.meetings import Meetings
from streampose.skeleton import COCO17, Skeleton
from streampose.tracked import Life, Tracked, carried
from streampose.types import Pose

_QUALITY_GAIN = 0.2
"""How much the quality of one frame's pose counts in its track's: one bad frame makes nobody doubtful."""
_POSE_SHARE = 0.7
"""How far a published box is drawn to the extent of its joints, where the pose is good: it fits better than a box that
follows the detector calmly."""
_CALM_S = 0.4
"""Over how long the velocity is averaged with which somebody goes on who is not seen."""
_UNSURE_S = 0.3
"""How long before it was lost a track's box may have been wrong already."""
_LONGEST_REACH = 0.6
_REACH_PER_S = 1.0
"""How much farther from where they are expected people may reappear, in longer sides of their box a second."""


@dataclass(frozen=True, slots=True)
class TrackerSettings:
    """How people are followed. Scores and shares 0..1, times in seconds.

    Attributes:
        sure_score: a detection this good is published at once; a weaker one at its second time.
        min_match: least similarity of a detection and a track in view.
        min_return: least similarity of a detection and a lost track.
        memory_s: how long a lost track may come back under its id.
        unseen_s: how long a track lives on its keypoints alone, when no detection confirms it.
        missed_runs: detector runs without a match after which a track with poor keypoints is lost.
        poor_pose: keypoint quality under which a track needs the detector.
        hopeless_pose: keypoint quality under which one missed detection is enough, and under which a track without a
            good detection is not published.
        same_pose: OKS from which two tracks were given the pose of one person.
        joint_score: keypoints below it say nothing.
    """

    sure_score: float = 0.6
    min_match: float = 0.25
    min_return: float = 0.4
    memory_s: float = 1.0
    unseen_s: float = 3.0
    missed_runs: int = 2
    poor_pose: float = 0.8
    hopeless_pose: float = 0.7
    same_pose: float = 0.7
    joint_score: float = 0.3


class Tracker:
    """Follows the people of one source.

    A frame takes two steps: `advance` moves everybody to the frame's time, matches detections where the detector ran
    and gives the tracks to estimate; `settle` takes their keypoints and gives the poses to publish.
    """

    def __init__(self, settings: TrackerSettings | None = None, skeleton: Skeleton = COCO17) -> None:
        self._set = settings or TrackerSettings()
        self._skeleton = skeleton
        self._states: list[Tracked] = []
        self._next_key = self._next_id = 1
        self._now_s = 0.0
        self._size = (1, 1)
        self._meetings = Meetings()
        self._camera = CameraMotion()

    @property
    def undecided(self) -> bool:
        """The next frame should be looked at by the detector: nobody is followed, or somebody is not confirmed."""
        return not any(state.life is Life.ACTIVE for state in self._states) or any(
            state.life is Life.TENTATIVE for state in self._states
        )

    @property
    def keys(self) -> tuple[int, ...]:
        """The keys of all tracks that are followed or remembered."""
        return tuple(state.key for state in self._states)

    def reset(self) -> None:
        """Forget everybody; ids go on."""
        self._states.clear()
        self._meetings.clear()
        self._camera.clear()

    def advance(
        self,
        pts_s: float,
        size: tuple[int, int],
        detections: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
        image: NDArray[np.uint8] | None = None,
    ) -> tuple[Track, ...]:
        """Go on to a frame.

        Args:
            pts_s: the frame's time, seconds; later than the last one's.
            size: (height, width) of the frame.
            detections: boxes (N, 4) xyxy frame pixels and scores (N,) 0..1; None where the detector did not run.
            image: (H, W, 3) uint8 BGR, the frame. Without it nobody is told by their looks, and the camera rests.

        Returns:
            The people to estimate in this frame.
        """
        dt_s = max(0.0, pts_s - self._now_s)
        self._now_s, self._size = pts_s, size
        if image is not None:
            self._carry(pts_s, image)
        for state in self._states:
            state.fresh = False
            state.box = shifted(state.box, state.velocity * np.float32(dt_s))
            state.ghost = shifted(state.ghost, state.course * np.float32(dt_s))
        if detections is not None:
            seen = self._meet(*detections)
            if image is not None:
                self._meetings.see(image, self._states, seen, pts_s)
        self._retire()
        active = [state for state in self._states if state.life is Life.ACTIVE]
        for state in active:
            goal = widened(state.box, state.pose_at(pts_s), self._set.joint_score)
            state.crop_box = recentre(state.crop_box, goal)
        return tuple(Track(s.key, s.box.copy(), s.crop_box.copy(), s.score) for s in active)

    def _carry(self, pts_s: float, image: NDArray[np.uint8]) -> None:
        """Move everybody along with the background, where the camera moves."""
        if not self._states:
            self._camera.clear()
            return
        affine = self._camera.follow(pts_s, image, np.stack([state.box for state in self._states]))
        if affine is not None:
            for state in self._states:
                state.carry(affine)

    def settle(
        self, pts_s: float, tracks: Sequence[Track], keypoints: Sequence[NDArray[np.float32]]
    ) -> tuple[Pose, ...]:
        """Take the keypoints of the tracks that `advance` gave for a frame, the last one or one shortly before.

        Args:
            pts_s: the frame's time, seconds.
            tracks: those to publish in it.
            keypoints: of each, (J, 3) in frame pixels, score 0..1.

        Returns:
            The poses to publish: everybody followed, without those that turned out to be somebody else.
        """
        states = {state.key: state for state in self._states}
        moved = self._camera.since(pts_s)
        found = {
            track.key: points if moved is None else carried(points, moved)
            for track, points in zip(tracks, keypoints, strict=True)
            if track.key in states and states[track.key].life is Life.ACTIVE
        }
        self._tell_apart([(states[key], points) for key, points in found.items()], pts_s)
        for key, points in found.items():
            if not states[key].hidden:
                self._follow(states[key], pts_s, points)
        self._revive()
        poses = []
        for track, points in zip(tracks, keypoints, strict=True):
            state = states.get(track.key)
            if state is None or state.life is not Life.ACTIVE or state.hidden or self._doubtful(state):
                continue
            if state.track_id is None:
                state.track_id, self._next_id = self._next_id, self._next_id + 1
            box = self._fitted(state.box if pts_s == self._now_s else track.box, points)
            poses.append(Pose(state.track_id, box, pose_score(state.score, points), points))
        return tuple(poses)

    def _fitted(self, box: NDArray[np.float32], keypoints: NDArray[np.float32]) -> NDArray[np.float32]:
        """The box to publish: the calm one of the track, drawn to the extent of its joints where these are sure."""
        reached = extent(keypoints, self._set.joint_score)
        if reached is None:
            return box.copy()
        share = np.interp(pose_quality(keypoints), [self._set.hopeless_pose, self._set.poor_pose], [0, _POSE_SHARE])
        return np.asarray(box + share * (reached - box), np.float32)

    def _doubtful(self, state: Tracked) -> bool:
        """Neither the detector nor the pose says that this is a person: followed, and not published."""
        return state.quality < self._set.hopeless_pose and state.score < self._set.sure_score

    def _meet(self, boxes: NDArray[np.float32], scores: NDArray[np.float32]) -> dict[int, NDArray[np.float32]]:
        """Match detections with tracks: first those in view, then what is left with the lost ones. One detection of two
        people of whom one hides the other is of who is in front; two tell which of them is where."""
        free, seen = list(range(len(boxes))), {}
        there = [state for state in self._states if state.life is not Life.LOST]
        lost = [state for state in self._states if state.life is Life.LOST]
        for states, least in ((there, self._set.min_match), (lost, self._set.min_return)):
            pairs = self._match(states, boxes, free, least)
            matched = {state.key for state, _ in pairs}
            for state, index in pairs:
                rival = state.rival
                if rival is not None and rival.key in matched:
                    self._part(state, rival)
                elif state.hidden and rival is not None:
                    state = rival
                self._seen(state, boxes[index], float(scores[index]))
                seen[state.key] = boxes[index]
                free.remove(index)
        for state in self._states:
            if not state.fresh:
                state.missed += 1
        for index in free:
            sure = bool(scores[index] >= self._set.sure_score)
            box = boxes[index].astype(np.float32)
            life = Life.ACTIVE if sure else Life.TENTATIVE
            score = float(scores[index])
            self._states.append(Tracked(self._next_key, box, box.copy(), score, self._now_s, self._now_s, life))
            seen[self._next_key] = box
            self._next_key += 1
        return seen

    def _match(
        self, states: list[Tracked], boxes: NDArray[np.float32], free: list[int], least: float
    ) -> list[tuple[Tracked, int]]:
        """Pairs of tracks and free detections, most alike over all (Hungarian)."""
        if not states or not free:
            return []
        found = boxes[free]
        alike = np.stack([self._likeness(state, found) for state in states])
        rows, columns = linear_sum_assignment(alike, maximize=True)
        return [
            (states[row], free[column])
            for row, column in zip(rows, columns, strict=True)
            if alike[row, column] >= least
        ]

    def _likeness(self, state: Tracked, found: NDArray[np.float32]) -> NDArray[np.float32]:
        """How alike a track and detections (N, 4) are. Of two people of whom one hid the other, each is where it would
        be, had it gone on as it went; the longer ago that was, the less exactly."""
        floor, pose = self._set.joint_score, state.pose_at(self._now_s)
        if state.rival is None:
            return box_likeness(state.box, found, None if state.life is Life.LOST else pose, floor)
        alike = box_likeness(state.ghost, found, None, floor, self._reach(self._now_s - state.met_s))
        alike = np.where(alike >= self._set.min_return, alike, np.float32(0))
        if state.hidden:
            return alike
        return np.maximum(alike, box_likeness(state.box, found, pose, floor) / 2)

    def _reach(self, unsure_s: float) -> float:
        return SHORT_REACH + min(_REACH_PER_S * unsure_s, _LONGEST_REACH)

    def _seen(self, state: Tracked, box: NDArray[np.float32], score: float) -> None:
        """Correct a track by its detection: gently where they nearly agree, so that boxes do not tremble."""
        agree = float(box_iou(state.box[None], box[None])[0, 0])
        gain = np.float32(np.interp(agree, [0.6, 0.9], [0.8, 0.35]))
        if state.life is Life.LOST or state.keypoints is None:
            gain = np.float32(1.0)
            state.keypoints = None
        state.box = (state.box + gain * (box - state.box)).astype(np.float32)
        state.score += 0.5 * (score - state.score)
        state.life, state.fresh, state.missed, state.detected_s = Life.ACTIVE, True, 0, self._now_s

    def _follow(self, state: Tracked, pts_s: float, keypoints: NDArray[np.float32]) -> None:
        """Move a track with its keypoints: by the median way of the joints, so that a waving arm moves nobody."""
        quality = pose_quality(keypoints)
        gain = _QUALITY_GAIN if state.posed else 1.0
        state.quality, state.posed = state.quality + gain * (quality - state.quality), True
        if quality < self._set.hopeless_pose:
            return
        expected, dt_s = state.pose_at(pts_s), np.float32(pts_s - state.pose_s)
        if expected is not None and 0 < dt_s <= self._set.memory_s:
            both = (keypoints[:, 2] > self._set.joint_score) & (expected[:, 2] > self._set.joint_score)
            if both.sum() >= 4:
                astray = np.median(keypoints[both, :2] - expected[both, :2], axis=0).astype(np.float32)
                limit = 4.0 * longer_side(state.box)
                state.velocity = np.clip(state.velocity + 0.4 * astray / dt_s, -limit, limit).astype(np.float32)
                share = np.float32(min(1.0, float(dt_s) / min(max(pts_s - state.born_s, float(dt_s)), _CALM_S)))
                state.calm = (state.calm + share * (state.velocity - state.calm)).astype(np.float32)
                if not state.fresh:
                    state.box = shifted(state.box, 0.7 * astray)
        reached = extent(keypoints, self._set.joint_score)
        if reached is not None and pts_s - state.detected_s > 0.3:
            state.box = (state.box + np.float32(0.1) * (reached - state.box)).astype(np.float32)
        state.keypoints, state.pose_s = keypoints, pts_s

    def _retire(self) -> None:
        """Let go of tracks that left, that nothing confirms, or that were lost for too long."""
        for state in self._states:
            if state.hidden:
                if self._now_s - state.met_s > self._set.memory_s:
                    self._lose(state)
            elif state.life is Life.ACTIVE:
                unseen = state.missed >= self._set.missed_runs and state.quality < self._set.poor_pose
                hopeless = state.missed >= 1 and state.quality < self._set.hopeless_pose
                alone = self._now_s - state.detected_s > self._set.unseen_s
                gone = visible_share(state.box, self._size) < 0.3
                if unseen or hopeless or alone or gone:
                    self._lose(state)
        self._states = [
            state
            for state in self._states
            if not (state.life is Life.LOST and self._now_s - state.lost_s > self._set.memory_s)
            and not (state.life is Life.TENTATIVE and state.missed)
        ]

    def _lose(self, state: Tracked) -> None:
        if state.rival is not None:
            state.box = state.ghost if state.hidden else state.box
            state.rival.rival, state.rival.hidden, state.rival = None, False, None
        state.life, state.lost_s, state.hidden = Life.LOST, self._now_s, False
        state.velocity = state.calm.copy()

    def _tell_apart(self, found: Sequence[tuple[Tracked, NDArray[np.float32]]], pts_s: float) -> None:
        """Deal with poses that two tracks were given: one of them is hidden, or, where it was never published, no
        second person."""
        order = sorted(found, key=lambda pair: (pair[0].track_id is None, pair[0].born_s, pair[0].key))
        if len(order) < 2:
            return
        alike = pose_likenesses(np.stack([points for _, points in order]), self._set.joint_score, self._skeleton)
        for first, second in np.argwhere(np.triu(alike >= self._set.same_pose, 1)):
            (older, points), (younger, others) = order[first], order[second]
            if not older.life is younger.life is Life.ACTIVE:
                continue
            if younger.track_id is None:
                self._lose(younger)
            elif older.rival is None and younger.rival is None:
                behind = max(
                    (older, points),
                    (younger, others),
                    key=lambda p: (p[0].missed, astray(p[0].pose_at(pts_s), p[1])),
                )[0]
                self._cover(behind, older if behind is younger else younger)

    def _cover(self, behind: Tracked, front: Tracked) -> None:
        """One hides the other. From now on poses and boxes may be of either: until both are found, each is expected
        where it would be, had it gone on as it went."""
        for state, other in ((behind, front), (front, behind)):
            state.rival, state.met_s, state.ghost, state.course = other, self._now_s, state.box, state.calm
        behind.hidden = True

    def _part(self, *states: Tracked) -> None:
        """Both are found: what was seen of them meanwhile may have been the other."""
        for state in states:
            state.velocity, state.calm = state.course.copy(), state.course.copy()
            state.rival, state.hidden, state.keypoints = None, False, None

    def _revive(self) -> None:
        """A lost track's id goes on where its pose reappears, or a person near where it may be by now."""
        for state in self._states:
            if state.life is not Life.ACTIVE or state.track_id is not None or state.keypoints is None:
                continue
            gone = [s for s in self._states if s.life is Life.LOST and s.track_id is not None]
            lost = next((s for s in gone if self._same(s, state)), None) or self._nearest(gone, state.box)
            if lost is not None:
                state.track_id, state.born_s, lost.track_id = lost.track_id, lost.born_s, None
                state.look = state.look if lost.look is None else lost.look
                self._meetings.renew(lost.key, state.key)
        self._states = [s for s in self._states if not (s.life is Life.LOST and s.track_id is None)]

    def _nearest(self, gone: list[Tracked], box: NDArray[np.float32]) -> Tracked | None:
        """Who of those that are lost came back in a box: they may have turned or stopped meanwhile."""
        best, alike = None, self._set.min_return
        for state in gone:
            unsure_s = min(self._now_s - state.detected_s, self._now_s - state.lost_s + _UNSURE_S)
            near = float(box_likeness(state.box, box[None], None, self._set.joint_score, self._reach(unsure_s))[0])
            if near >= alike:
                best, alike = state, near
        return best

    def _same(self, a: Tracked, b: Tracked) -> bool:
        """Whether the poses of two tracks coincide now."""
        return self._alike(a.pose_at(self._now_s), b.pose_at(self._now_s)) >= self._set.same_pose

    def _alike(self, first: NDArray[np.float32] | None, second: NDArray[np.float32] | None) -> float:
        return pose_likeness(first, second, self._set.joint_score, self._skeleton)
