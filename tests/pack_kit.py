"""A made-up pack with maps, small enough for tests of recipes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from streampose.train.maps import pack_maps
from streampose.train.pack import STILL_SETS

FRAMES = 24


def labels_of(person_id: int, image_id: int, maps: list[int], shift: int = 0) -> dict[str, Any]:
    keypoints = [value for joint in range(17) for value in (45 + shift + joint, 15 + 5 * joint, 2)]
    return {
        "id": person_id, "image_id": image_id, "bbox": [40 + shift, 10, 30, 95], "keypoints": keypoints,
        "kpt_score": [1] * 17, "source": "human+teacher", "track_id": 1, "maps": maps,
    }  # fmt: skip


def write_pack(root: Path, make_video: Callable[..., Path], sets: Sequence[str] = STILL_SETS) -> Path:
    """Write it to the folder `root`, which is new and lies where `make_video` writes."""
    (root / "stills").mkdir(parents=True)
    (root / "clips" / "annotations").mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 256, (120, 120, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    spots = np.zeros((17, 64, 64), np.uint8)
    spots[:, 30:34, 30:34] = 255
    maps = pack_maps(spots)
    for name in sets:
        images = []
        with tarfile.open(root / "stills" / f"{name}_00.tar", "w") as tar:
            for index in range(4):
                member = tarfile.TarInfo(f"{index}.jpg")
                member.size = len(jpeg)
                tar.addfile(member, io.BytesIO(jpeg))
                images.append(
                    {"id": index, "tar": 0, "file_name": member.name, "split": "val" if index == 3 else "train"}
                )
        annotations = [labels_of(index, index, [0, len(maps)]) for index in range(4)]
        (root / "stills" / f"{name}.json").write_text(json.dumps({"images": images, "annotations": annotations}))
        (root / "stills" / f"{name}.maps").write_bytes(maps)
    for clip, split in (("walk", "train"), ("stroll", "val")):
        make_video(f"{root.name}/clips/{clip}.mp4", frames=FRAMES)
        annotations = [labels_of(index, index, [0, len(maps)], index) for index in range(FRAMES)]
        images = [{"id": index} for index in range(FRAMES)]
        content = {"info": {"fps": "25"}, "split": split, "images": images, "annotations": annotations}
        (root / "clips" / "annotations" / f"{clip}.json").write_text(json.dumps(content))
        (root / "clips" / "annotations" / f"{clip}.maps").write_bytes(maps)
    return root
