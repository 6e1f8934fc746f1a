"""What training would see twice, or before it is asked for it: near-duplicates among pictures and clips, by hash.

What 256 bits can tell was looked up on 70 clips (2,415 pairs): 18 pairs show the same person at the same place, and in
each of them 38 % at least of one clip's frames are within 24 bits of a frame of the other; in no other pair is any, not
even in one of another person in the same room (from 25 bits on). Frames of one clip 5 apart differ by 2 to 20 bits
where the camera stands, so that fingerprints of a fixed camera tell neither its moments nor small people apart; where
the camera moves they differ by 70 to 130, so that two parts of such a take are not recognised. Copies of half the size
and of poor quality are within 8 bits of their originals, mirrored ones are not found.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.progress import Progress

from streampose.train.fingerprint import Hashes, bits_apart, fingerprint, share_alike
from streampose.train.label_input import ClipInput, StillSet, decode_picture

log = logging.getLogger(__name__)

SCENE_BITS, SCENE_SHARE = 24, 0.25
"""What is this near to validation shows the same; of clips, so large a share of either's frames."""
PICTURE_BITS = 12
"""Training pictures this near to each other, or to a frame of a training clip, are near-duplicates."""
COPY_BITS, COPY_SHARE = 8, 0.9
"""A training clip with so many frames this near to another's is a copy: a fixed camera's other takes are to stay."""
CLIP_EVERY = 5
"""Of a clip in question every n-th frame is looked for, among all of the other's."""
NOTHING = np.zeros((0, 4), np.uint64)


@dataclass(frozen=True, slots=True)
class Original:
    """What something is a near-duplicate of: a kind, such as "a validation clip", and a name."""

    kind: str
    name: str


@dataclass(slots=True)
class Duplicates:
    """Training pictures, by set and name, and training clips, by name, that are left out."""

    pictures: dict[tuple[str, str], Original] = field(default_factory=dict)
    clips: dict[str, Original] = field(default_factory=dict)

    def names(self) -> dict[str, str]:
        """What each picture and clip that is left out is like, in words."""
        names = {name: original for (_, name), original in self.pictures.items()} | self.clips
        return {name: f"{original.kind}, {original.name}" for name, original in names.items()}


@dataclass(slots=True)
class _Shown:
    """Fingerprints, and whose they are."""

    hashes: Hashes
    names: list[str]

    def nearest(self, one: Hashes, bits: int) -> str:
        """Whose is nearest, if it is at most so many bits apart; else empty."""
        if not len(self.hashes):
            return ""
        apart = bits_apart(one, self.hashes)
        place = int(apart.argmin())
        return self.names[place] if apart[place] <= bits else ""


def find_duplicates(sets: Sequence[StillSet], clips: Sequence[ClipInput], bar: Progress) -> Duplicates:
    """Training pictures and clips that show what a validation picture or clip shows, or what earlier training ones do.

    Validation pictures and clips are never duplicates.

    Raises:
        UsageError: a clip cannot be decoded.
    """
    job = bar.add_task("fingerprints", total=sum(len(s.files) for s in sets) + len(clips))
    pictures: list[tuple[str, str, bool, Hashes]] = []
    for still_set in sets:
        for image in still_set.labels["images"]:
            name = image["file_name"]
            validation = still_set.splits[name] == "val"
            pictures.append((still_set.name, name, validation, fingerprint(decode_picture(still_set.files[name]))))
            bar.advance(job)
    hashes: dict[str, Hashes] = {}
    for clip in clips:
        hashes[clip.name] = np.stack([fingerprint(frame) for frame in clip.frames()])
        bar.advance(job)
    bar.remove_task(job)
    unseen = _Shown(_stacked([h for *_, val, h in pictures if val]), [n for _, n, val, _ in pictures if val])
    found = Duplicates()
    _judge_clips(clips, hashes, unseen, found)
    by_split = {split: _frames_of(clips, hashes, split, found) for split in ("val", "train")}
    _judge_pictures(pictures, unseen, by_split["val"], by_split["train"], found)
    for name, text in found.names().items():
        log.info("%s is left out: near-duplicate of %s", name, text)
    return found


def _judge_clips(clips: Sequence[ClipInput], hashes: dict[str, Hashes], unseen: _Shown, found: Duplicates) -> None:
    kept: list[str] = []
    validation = [clip.name for clip in clips if clip.split == "val"]
    for clip in clips:
        if clip.split == "val":
            continue
        original = _original_of_clip(hashes[clip.name], hashes, validation, kept, unseen)
        if original is None:
            kept.append(clip.name)
        else:
            found.clips[clip.name] = original


def _original_of_clip(
    frames: Hashes, hashes: dict[str, Hashes], validation: Sequence[str], kept: Sequence[str], unseen: _Shown
) -> Original | None:
    some = frames[::CLIP_EVERY]
    for name in validation:
        shares = (
            share_alike(*pair, SCENE_BITS) for pair in ((some, hashes[name]), (hashes[name][::CLIP_EVERY], frames))
        )
        if max(shares) >= SCENE_SHARE:
            return Original("a validation clip", name)
    for frame in some:
        if name := unseen.nearest(frame, SCENE_BITS):
            return Original("a validation picture", name)
    for name in kept:
        if share_alike(some, hashes[name], COPY_BITS) >= COPY_SHARE:
            return Original("another training clip", name)
    return None


def _judge_pictures(
    pictures: Sequence[tuple[str, str, bool, Hashes]], unseen: _Shown, unseen_frames: _Shown, frames: _Shown,
    found: Duplicates,
) -> None:  # fmt: skip
    known = np.zeros((len(pictures), 4), np.uint64)
    names: list[str] = []
    for set_name, name, validation, own in pictures:
        if validation:
            continue
        for kind, shown, bits in (
            ("a validation picture", unseen, SCENE_BITS),
            ("a validation clip", unseen_frames, SCENE_BITS),
            ("another training picture", _Shown(known[: len(names)], names), PICTURE_BITS),
            ("a training clip", frames, PICTURE_BITS),
        ):
            if like := shown.nearest(own, bits):
                found.pictures[set_name, name] = Original(kind, like)
                break
        else:
            known[len(names)] = own
            names.append(name)


def _frames_of(clips: Sequence[ClipInput], hashes: dict[str, Hashes], split: str, found: Duplicates) -> _Shown:
    """All frames of the clips of a split that are not left out."""
    chosen = [clip.name for clip in clips if clip.split == split and clip.name not in found.clips]
    return _Shown(
        np.concatenate([NOTHING, *(hashes[name] for name in chosen)]),
        [name for name in chosen for _ in range(len(hashes[name]))],
    )


def _stacked(hashes: Sequence[Hashes]) -> Hashes:
    return np.stack(hashes) if hashes else NOTHING
