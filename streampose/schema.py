"""Protocol v1 for machines: a JSON document made from the types in `messages`. docs/protocol.schema.json is this."""

from __future__ import annotations

import inspect
import re
from typing import Any

import msgspec

from streampose.messages import (
    COORDINATE_LIMIT,
    EDGES_LIMIT,
    JOINTS_LIMIT,
    NAME_LIMIT,
    OFFSETS_LIMIT,
    PART_LIMIT,
    PEOPLE_LIMIT,
    SCHEMA,
    SIZE_LIMIT,
    SOURCES_LIMIT,
    Heartbeat,
    Hello,
    PersonHeader,
    PictureHeader,
    PoseHeader,
    Status,
)

_TOPICS: dict[str, type[msgspec.Struct]] = {
    "pose.<source>": PoseHeader,
    "hello.<source>": Hello,
    "status.<source>": Status,
    "picture.<source>": PictureHeader,
    "heartbeat": Heartbeat,
}
_NO_BLOB = {"type": "empty"}
_BLOBS: dict[str, dict[str, Any]] = {
    "pose.<source>": {
        "type": "float32",
        "byte_order": "little",
        "arrays": [
            {"name": "boxes", "shape": ["P", 4], "columns": ["x1", "y1", "x2", "y2"], "unit": "pixels"},
            {"name": "keypoints", "shape": ["P", "J", 3], "columns": ["x", "y", "score"], "unit": "pixels; score 0..1"},
        ],
        "bytes": "4 * (4 * P + 3 * J * P), 0 where P is 0",
        "range": [-COORDINATE_LIMIT, COORDINATE_LIMIT],
    },
    "picture.<source>": {"type": "jpeg"},
}


def protocol_schema() -> dict[str, Any]:
    """Topics, with the JSON Schema of each header (in msgpack) and the layout of each blob."""
    kinds: list[type[msgspec.Struct]] = [*_TOPICS.values(), PersonHeader]
    references, components = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    for kind in kinds:
        _describe(components[kind.__name__], kind)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "streampose stream",
        "version": SCHEMA,
        "parts": ["topic: UTF-8", "header: msgpack map", "blob: bytes"],
        "limits": {
            "header_bytes": PART_LIMIT,
            "blob_bytes": PART_LIMIT,
            "people": PEOPLE_LIMIT,
            "joints": JOINTS_LIMIT,
            "edges": EDGES_LIMIT,
            "offsets": OFFSETS_LIMIT,
            "frame_pixels": SIZE_LIMIT,
            "name_characters": NAME_LIMIT,
            "sources": SOURCES_LIMIT,
        },
        "topics": {
            topic: {"header": reference, "blob": _BLOBS.get(topic, _NO_BLOB)}
            for topic, reference in zip(_TOPICS, references, strict=False)
        },
        "$defs": components,
    }


def schema_text() -> str:
    """The schema as it stands in docs/protocol.schema.json."""
    return msgspec.json.format(msgspec.json.encode(protocol_schema(), order="sorted"), indent=2).decode() + "\n"


def _describe(component: dict[str, Any], kind: type[msgspec.Struct]) -> None:
    """Put the sentences of the class's docstring to its fields."""
    text = inspect.cleandoc(kind.__doc__ or "")
    component["description"] = " ".join(text.partition("\n\n")[0].split())
    for name, sentence in re.findall(r"^    (\w+): ((?:.|\n        )+)", text, re.MULTILINE):
        component["properties"][name]["description"] = " ".join(sentence.split())
