"""CURVE keys: who gets in, who does not, and that nobody is left in silence."""

import dataclasses
import os
import stat
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

from streampose.errors import EncryptionError, KeyRefusedError, OutputError, StreamError, UsageError
from streampose.keys import AllowList, add_key, allow_public, list_allowed, read_key, read_pair, revoke
from streampose.publish import Publisher
from streampose.subscribe import Subscriber

sys.path.insert(0, str(Path(__file__).parent))
from stream_messages import WAIT_S, Talk

pytestmark = pytest.mark.usefixtures("patient_stream")


@pytest.fixture
def folder(tmp_path):
    add_key(tmp_path / "keys", "tablet", tmp_path / "tablet.key")
    add_key(tmp_path / "keys", "robot", tmp_path / "robot.key")
    return tmp_path / "keys"


@pytest.fixture
def secured(folder):
    """Publishes a frame every few milliseconds, to those with keys."""
    with Publisher("tcp://127.0.0.1:*", model="lite", keys=folder) as made, Talk(made):
        yield made


def fail(endpoint, **kwargs):
    """The error of a subscriber that gets nothing; that it is slow is none for two minutes."""
    with Subscriber(endpoint, **kwargs) as stream, pytest.raises(StreamError) as caught:
        stream.receive(WAIT_S)
    return caught.value


def until_cut_off(tablet):
    """Read what still comes, until the key is refused."""
    until_s = time.monotonic() + WAIT_S
    with pytest.raises(KeyRefusedError, match="'tablet'"):
        all(time.monotonic() < until_s for _ in tablet)


def test_those_with_a_key_get_in(secured, tmp_path):
    for name in ("tablet", "robot"):
        for key in (tmp_path / f"{name}.key", str(tmp_path / f"{name}.key"), read_key(tmp_path / f"{name}.key")):
            with Subscriber(secured.endpoint, key=key) as stream:
                assert stream.receive(WAIT_S).source == "cam"
                assert stream.connected


def test_no_key_is_an_error_that_says_so(secured):
    error = fail(secured.endpoint)
    assert isinstance(error, EncryptionError)
    assert "lets in only those with a key" in str(error)


def test_a_key_that_is_not_allowed_is_refused(secured, folder, tmp_path):
    stranger = add_key(tmp_path / "other", "stranger", tmp_path / "stranger.key")
    error = fail(secured.endpoint, key=dataclasses.replace(stranger, publisher=read_pair(folder).public))
    assert isinstance(error, KeyRefusedError)
    assert "does not let the key 'stranger' in" in str(error)


def test_a_key_for_another_publisher_is_refused(secured, tmp_path):
    add_key(tmp_path / "other", "tablet", tmp_path / "other.key")
    error = fail(secured.endpoint, key=tmp_path / "other.key")
    assert isinstance(error, KeyRefusedError)
    assert "is not the publisher that the key 'tablet' is for" in str(error)


def test_a_key_is_not_used_in_the_clear(tmp_path, folder):
    assert folder.is_dir()
    with Publisher("tcp://127.0.0.1:*", model="lite") as plain:
        error = fail(plain.endpoint, key=tmp_path / "tablet.key")
    assert isinstance(error, EncryptionError)
    assert "offers no encryption" in str(error)


def test_a_revoked_subscriber_is_cut_off_and_the_others_notice_nothing(secured, folder, tmp_path):
    with (
        Subscriber(secured.endpoint, key=tmp_path / "tablet.key") as tablet,
        Subscriber(secured.endpoint, key=tmp_path / "robot.key", mode="lossless") as robot,
    ):
        assert tablet.receive(WAIT_S)
        got = [robot.receive(WAIT_S)]
        revoke(folder, "tablet")
        until_cut_off(tablet)
        got += [robot.receive(WAIT_S) for _ in range(300)]
        assert robot.reconnections == 0
        numbers = [frame.frame_index for frame in got]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    add_key(folder, "tablet", tmp_path / "tablet2.key")
    with Subscriber(secured.endpoint, key=tmp_path / "tablet2.key") as stream:
        assert stream.receive(WAIT_S)


def test_a_revoked_subscriber_is_cut_off_whatever_others_do_meanwhile(secured, folder, tmp_path):
    """Whoever connects makes the publisher look at the list, too: others come and go without a pause."""
    done = threading.Event()

    def come_and_go():
        while not done.is_set():
            with Subscriber(secured.endpoint, key=tmp_path / "robot.key") as stream:
                stream.receive(WAIT_S)

    others = threading.Thread(target=come_and_go)
    with Subscriber(secured.endpoint, key=tmp_path / "tablet.key") as tablet:
        assert tablet.receive(WAIT_S)
        others.start()
        try:
            revoke(folder, "tablet")
            until_cut_off(tablet)
        finally:
            done.set()
            others.join()


def test_who_comes_after_a_revoked_subscriber_is_let_in_at_once(secured, folder, tmp_path):
    """They get the descriptors that are free again, one of them the revoked one's."""
    with Subscriber(secured.endpoint, key=tmp_path / "robot.key") as robot:
        with Subscriber(secured.endpoint, key=tmp_path / "tablet.key") as tablet:
            assert robot.receive(WAIT_S)
            assert tablet.receive(WAIT_S)
            revoke(folder, "tablet")
            until_cut_off(tablet)
            assert not secured._outlet._audience._ended, "a newcomer with that descriptor would not be heard"
        with ExitStack() as stack:
            for _ in range(6):
                stream = stack.enter_context(Subscriber(secured.endpoint, key=tmp_path / "robot.key"))
                assert stream.receive(WAIT_S)
                assert stream.reconnections == 0


def test_a_key_allowed_later_gets_in_without_a_restart(secured, folder, tmp_path):
    public, secret = (key.decode() for key in zmq.curve_keypair())
    key = dataclasses.replace(read_key(tmp_path / "tablet.key"), name="late")
    key = dataclasses.replace(key, pair=dataclasses.replace(key.pair, public=public, secret=secret))
    assert isinstance(fail(secured.endpoint, key=key), KeyRefusedError)
    assert allow_public(folder, "late", public) == read_pair(folder).public
    with Subscriber(secured.endpoint, key=key) as stream:
        assert stream.receive(WAIT_S)


def test_the_secret_is_in_the_key_file_only(folder, tmp_path):
    key = read_key(tmp_path / "tablet.key")
    assert key.name == "tablet"
    assert key.publisher == read_pair(folder).public
    for path in folder.rglob("*"):
        if path.is_file():
            assert key.pair.secret not in path.read_text()
    assert key.pair.secret not in repr(key)
    if os.name == "posix":
        for path in (tmp_path / "tablet.key", folder / "publisher.key"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_list_and_what_is_wrong_with_it(folder, caplog):
    assert [entry.name for entry in list_allowed(folder)] == ["robot", "tablet"]
    (folder / "allowed" / "bad.pub").write_text('public = "short"\n')
    assert [entry.name for entry in list_allowed(folder)] == ["robot", "tablet"]
    assert "bad.pub is not a key file" in caplog.text


def test_the_allow_list_is_read_again_when_it_changes(folder, tmp_path):
    allowed = AllowList(folder)
    key = add_key(folder, "third", tmp_path / "third.key")
    assert allowed.name_of(key.pair.public) == "third"
    assert key.pair.public in allowed
    revoke(folder, "third")
    assert key.pair.public in allowed  # as last looked at
    allowed.refresh()
    assert key.pair.public not in allowed
    assert allowed.name_of(key.pair.public) is None
    for path in (folder / "allowed").iterdir():
        path.unlink()
    (folder / "allowed").rmdir()
    assert allowed.name_of(read_key(tmp_path / "tablet.key").pair.public) is None


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a b", "x" * 65, "a\n"])
def test_a_name_is_a_plain_one(folder, tmp_path, name):
    with pytest.raises(UsageError, match="a name has"):
        add_key(folder, name, tmp_path / "new.key")
    with pytest.raises(UsageError, match=r"nobody named .* see: streampose keys list --keys "):
        revoke(folder, name)


def test_nothing_is_overwritten(folder, tmp_path):
    with pytest.raises(UsageError, match="has a key already"):
        add_key(folder, "tablet", tmp_path / "new.key")
    with pytest.raises(UsageError, match="it is not overwritten"):
        add_key(folder, "third", tmp_path / "tablet.key")
    with pytest.raises(OutputError, match="cannot write"):
        add_key(folder, "third", tmp_path / "no" / "third.key")
    assert [entry.name for entry in list_allowed(folder)] == ["robot", "tablet"]


@pytest.mark.parametrize("public", ["", "x", '"' * 40, "#" * 40, "ü" * 40])
def test_a_public_key_is_one(folder, public):
    with pytest.raises(UsageError, match="40 characters of Z85"):
        allow_public(folder, "third", public)


def test_a_key_is_on_the_list_under_one_name(folder, tmp_path):
    """Or who revokes one name would leave the key working under the other."""
    public = read_key(tmp_path / "tablet.key").pair.public
    with pytest.raises(UsageError, match="tablet has this key already"):
        allow_public(folder, "third", public)
    assert [entry.name for entry in list_allowed(folder)] == ["robot", "tablet"]
    (folder / "allowed" / "copy.pub").write_bytes((folder / "allowed" / "tablet.pub").read_bytes())
    with pytest.raises(UsageError, match="but the same key is let in as copy"):
        revoke(folder, "tablet")
    assert AllowList(folder).name_of(public) == "copy"
    revoke(folder, "copy")
    assert AllowList(folder).name_of(public) is None
    assert allow_public(folder, "third", public) == read_pair(folder).public


def test_files_that_are_no_keys(folder, tmp_path):
    with pytest.raises(UsageError, match="cannot read the key"):
        read_key(tmp_path / "none.key")
    (tmp_path / "bad.key").write_bytes(b"\xff\x00")
    with pytest.raises(UsageError, match="is not a key file"):
        read_key(tmp_path / "bad.key")
    mixed = (tmp_path / "tablet.key").read_text().splitlines()
    mixed[2] = (tmp_path / "robot.key").read_text().splitlines()[2]
    (tmp_path / "mixed.key").write_text("\n".join(mixed))
    with pytest.raises(UsageError, match="do not belong together"):
        read_key(tmp_path / "mixed.key")
    with pytest.raises(UsageError, match="streampose keys new NAME"):
        Publisher("tcp://127.0.0.1:*", model="lite", keys=tmp_path / "empty")
    assert folder.is_dir()


@pytest.mark.skipif(os.name != "posix", reason="file modes as on POSIX")
def test_a_key_that_others_can_read_is_warned_of(folder, tmp_path, caplog):
    assert folder.is_dir()
    path = tmp_path / "tablet.key"
    Path.chmod(path, 0o644)
    read_key(path)
    assert "chmod 600" in caplog.text


@pytest.mark.skipif(os.name != "posix", reason="file modes as on POSIX")
@pytest.mark.parametrize("which", ["", "allowed"])
def test_an_allow_list_that_others_can_write_is_warned_of(folder, caplog, which):
    read_pair(folder)
    assert caplog.text == ""
    (folder / which).chmod(0o770)
    read_pair(folder)
    assert f"can write into {folder / which}, and so let anybody in" in caplog.text


def test_a_key_file_is_left_behind_only_where_it_lets_somebody_in(folder, tmp_path):
    for path in (folder / "allowed").iterdir():
        path.unlink()
    (folder / "allowed").rmdir()
    (folder / "allowed").touch()
    with pytest.raises(OutputError, match="cannot make"):
        add_key(folder, "third", tmp_path / "third.key")
    assert not (tmp_path / "third.key").exists()
