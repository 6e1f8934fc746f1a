"""docs/protocol.md and docs/protocol.schema.json say what the code does."""

import re
import sys
import unicodedata
from pathlib import Path

import msgspec
import numpy as np

from streampose import messages
from streampose.outlet import HEARTBEAT_S, QUEUE_LIMIT
from streampose.pictures import RATE_HZ, WIDTH_PX
from streampose.schema import protocol_schema, schema_text
from streampose.sources.pace import STALLED_FRAMES, STALLED_S
from streampose.types import Pose, PoseFrame
from streampose.wire import _is_name, decode, encode_pose

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "protocol.md").read_text()


def test_the_schema_in_docs_is_current():
    assert (DOCS / "protocol.schema.json").read_text() == schema_text(), "streampose schema > docs/protocol.schema.json"


def test_the_schema_knows_every_topic_and_describes_every_field():
    schema = protocol_schema()
    assert set(schema["topics"]) == {
        "pose.<source>",
        "hello.<source>",
        "status.<source>",
        "picture.<source>",
        "heartbeat",
    }
    for name, component in schema["$defs"].items():
        fields = {field.name for field in msgspec.structs.fields(getattr(messages, name))}
        assert set(component["properties"]) == fields
        assert all(field.get("description") for field in component["properties"].values()), name
    assert schema["$defs"]["PoseHeader"]["properties"]["people"]["maxItems"] == messages.PEOPLE_LIMIT
    for name, kind, limit in (("joints", "Hello", 512), ("edges", "Hello", 2048), ("offsets", "PoseHeader", 64)):
        assert schema["limits"][name] == schema["$defs"][kind]["properties"][name]["maxItems"] == limit
    assert schema["limits"]["frame_pixels"] == schema["$defs"]["Hello"]["properties"]["width"]["maximum"] == 1 << 20
    assert schema["limits"]["name_characters"] == schema["$defs"]["Hello"]["properties"]["model"]["maxLength"] == 200
    assert schema["limits"]["sources"] == messages.SOURCES_LIMIT
    assert "smoothed" not in schema["$defs"]["PoseHeader"]["required"]


def test_the_page_names_every_field():
    for kind in (messages.PoseHeader, messages.Hello, messages.Status, messages.PictureHeader, messages.Heartbeat):
        for field in msgspec.structs.fields(kind):
            assert f"`{field.name}`" in PAGE, field.name
    for field in msgspec.structs.fields(messages.PersonHeader):
        assert f"`people[].{field.name}`" in PAGE


def test_the_page_has_the_limits_of_the_code():
    assert messages.SCHEMA == 1
    assert (QUEUE_LIMIT, messages.PEOPLE_LIMIT, messages.PART_LIMIT) == (1000, 1000, 1 << 20)
    assert (messages.COORDINATE_LIMIT, RATE_HZ, WIDTH_PX) == (1e6, 12, 480)
    assert (messages.JOINTS_LIMIT, messages.EDGES_LIMIT, messages.OFFSETS_LIMIT) == (512, 2048, 64)
    assert (messages.SIZE_LIMIT, messages.OFFSET_LIMIT, messages.SOURCES_LIMIT) == (1_048_576, 1000, 1000)
    assert (HEARTBEAT_S, STALLED_S, STALLED_FRAMES, messages.NAME_LIMIT) == (1, 1, 4, 200)
    for text in (
        "once 1,000 wait",
        "blob; at most 1,000 |",
        "at most 1,000 sources at a time",
        "1 MiB",
        "1,000,000 pixels",
        "12 times a second",
        "480 pixels",
        "no frame for a second, or for four intervals",
        "| every second |",
        "1 to 200 printable",
        "J names, 1 to 512,",
        "limbs; at most 2,048)",
        "at most 64, each -1,000 to 1,000",
        "1 to 1,048,576 pixels",
    ):
        assert text in " ".join(PAGE.split())


def test_printable_is_what_the_page_says():
    others, separators = re.search(r'"other" \((.*?)\) and "separator" \((.*?)\), and the space U\+0020', PAGE).groups()
    left_out = {*others.split(", "), *separators.split(", ")}
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        printable = character == " " or unicodedata.category(character) not in left_out
        assert printable == _is_name(character), hex(code)
    assert [_is_name(name) for name in ("\U0001f3a5" * 200, "x" * 201, "", "cam 1", "cam\n")] == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_the_example_in_hex_is_a_message():
    frame = PoseFrame(
        source="cam", epoch=0, frame_index=41, pts_s=1.5, captured_ns=1000, published_ns=2000, width=640, height=480,
        skeleton="stick", dropped=2,
        people=(
            Pose(
                track_id=7,
                box=np.array([300, 50, 400, 450], np.float32),
                score=0.5,
                keypoints=np.array([[320.5, 60.25, 0.75], [330, 440, 1]], np.float32),
            ),
        ),
    )  # fmt: skip
    shown = [bytes.fromhex(block) for block in re.findall(r"```hex\n(.*?)```", PAGE, re.DOTALL)]
    assert tuple(shown) == encode_pose(frame, run_id="r1", seq=3, offsets=(-1,))
    assert f"Header, {len(shown[1])} bytes" in PAGE
    assert decode(shown).frame.people[0].keypoints[1].tolist() == [330, 440, 1]
