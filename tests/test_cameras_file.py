"""Cameras as they are asked for: the TOML file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from streampose.errors import UsageError
from streampose.redact import redact
from streampose.sources import Camera, make_camera, read_cameras

WHOLE = """
[[camera]]
name = "door"
uri = "rtsp://me:${DOOR_PASSWORD}@10.0.0.5/stream1"
fps = 10
detect_every = 5
lookahead = 0
transport = "udp"
hwaccel = "cuda"
regions = [[[0.0, 0.0], [0.5, 0.0], [0.5, 1.0]], [[0.6, 0.6], [1, 0.6], [1, 1]]]

[[camera]]
uri = "webcam:0?size=1280x720&fps=30"
"""


def test_a_file_names_cameras_and_what_is_asked_of_them(tmp_path: Path) -> None:
    path = tmp_path / "cameras.toml"
    path.write_text(WHOLE)
    door, webcam = read_cameras(path)
    assert door == Camera(
        uri="rtsp://me:${DOOR_PASSWORD}@10.0.0.5/stream1", name="door", fps=10.0, detect_every=5, lookahead=0,
        regions=(((0.0, 0.0), (0.5, 0.0), (0.5, 1.0)), ((0.6, 0.6), (1.0, 0.6), (1.0, 1.0))),
        transport="udp", hwaccel="cuda",
    )  # fmt: skip
    assert webcam == Camera(uri="webcam:0?size=1280x720&fps=30")


def test_the_example_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "deploy.md").read_text(encoding="utf-8")
    path = tmp_path / "cameras.toml"
    path.write_text(page.partition("```toml\n")[2].partition("```")[0])
    door, webcam = read_cameras(path)
    assert (door.name, door.transport, webcam.name) == ("door", "udp", None)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "names no camera|camera"),
        ("camera = []", "names no camera"),
        ("[[camera]]", "missing required field `uri`"),
        ('[[camera]]\nuri = "demo"\nspeed = 3', "unknown field `speed`"),
        ('[[cameras]]\nuri = "demo"', "unknown field `cameras`|required field"),
        ('[[camera]]\nuri = "demo"\nfps = 0', "fps is above 0"),
        ('[[camera]]\nuri = "demo"\nfps = "many"', "Expected `float"),
        ('[[camera]]\nuri = "demo"\ndetect_every = 0', "detect_every is at least 1"),
        ('[[camera]]\nuri = "demo"\nlookahead = -1', "lookahead is 0 or more"),
        ('[[camera]]\nuri = "demo"\ntransport = "pigeon"', "transport is tcp or udp, not 'pigeon'"),
        ('[[camera]]\nuri = "demo"\nname = "a b"', "no blanks"),
        ('[[camera]]\nuri = "demo"\nregions = [[[0, 0], [1, 1]]]', "three corners"),
        ('[[camera]]\nuri = "demo"\nregions = [[[0, 0], [1, 1], [2, 0]]]', "in 0..1"),
        ('[[camera]]\nuri = "a"\nname = "x"\n[[camera]]\nuri = "b"\nname = "x"', "two cameras are called x"),
        ('[[camera]]\nuri = "a"\n[[camera]]\nuri = "b"\nname = "yard"\nfps = 0', "toml: camera yard: .*fps is above 0"),
        ('[[camera]]\nuri = "a"\n[[camera]]\nuri = "b"\nfast = 1', "toml: camera number 2: .*unknown field `fast`"),
        ("[[camera", "not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "cameras.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=error) as failure:
        read_cameras(path)
    assert str(failure.value).startswith(str(path))
    assert "\n" not in str(failure.value)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.toml: cannot be read"):
        read_cameras(tmp_path / "no.toml")


@pytest.mark.parametrize("uri", ["rtsp://me:secret@h/x", "rtsp://me:more secret@h/x", "rtsp:/me:secret@h/x"])
def test_a_camera_never_shows_its_password(uri: str) -> None:
    assert "secret" not in repr(make_camera(uri=uri))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://me:secret@h/x is gone", "rtsp://***@h/x is gone"),
        ("rtsp://h/user=admin&password=secret&channel=1/", "rtsp://h/user=***&password=***&channel=1/"),
        ("rtsp://h/live?token=secret&x=1", "rtsp://h/live?token=***&x=***"),
        ("rtsp://h/a?Pwd=secret", "rtsp://h/a?Pwd=***"),
        ("rtsp://me:se@cret@h/x", "rtsp://***@h/x"),
        ("the key=value of this text is no URL", "the key=value of this text is no URL"),
        ("rtsp://h/live?token=***: nothing listens", "rtsp://h/live?token=***: nothing listens"),
        ("rtsp://h/channel=1/", "rtsp://h/channel=1/"),
        ("rtsp://h/monkey=1", "rtsp://h/monkey=***"),
        ("rtsp://h/authToken=secret/live", "rtsp://h/authToken=***"),
        ("rtsp://h/x?authToken=secret", "rtsp://h/x?authToken=***"),
        ("rtsp://h/x?sig=secret: gone", "rtsp://h/x?sig=***: gone"),
        ("rtsp://h/x?jwt=sec.r/et==&a=1", "rtsp://h/x?jwt=***&a=***"),
        ("rtsp://h/x?session=sec?ret;s=secret", "rtsp://h/x?session=***"),
        ("'rtsp://h/x?secret' is gone", "'rtsp://h/x?***' is gone"),
        (r"lavfi:movie=filename=rtsp\\://a\\:secret@h/x", "***@h/x"),
        (r"movie=rtsp\\://a\\:sec@ret@h/x: no graph", r"movie=rtsp\\://***@h/x: no graph"),
        (r"lavfi:movie=rtsp\://h/x?token\=secret", r"lavfi:movie=rtsp\://h/x?token\=***"),
        ("rtsp://me:se cr@t@h:9/x: no answer", "rtsp://***@h:9/x: no answer"),
        ("rtsp://h:554/x: a; rtsp://me:secret@g/y", "rtsp://h:554/x: a; rtsp://***@g/y"),
        ("rtsp:/me:secret@h/x: no such file", "***@h/x: no such file"),
        ("me:secret@h/x: no such file", "***@h/x: no such file"),
        ("rtsp://h/a?usr=me&pwd=sec/ret, and", "rtsp://h/a?usr=***&pwd=***, and"),
    ],
)
def test_credentials_are_hidden_wherever_a_url_has_them(text: str, shown: str) -> None:
    assert redact(text) == shown
