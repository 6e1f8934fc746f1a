"""The relay: many streams in, one out, with the loss on the way still counted."""

import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

from streampose.errors import UsageError
from streampose.keys import add_key, read_key
from streampose.messages import SCHEMA, Heartbeat, Status
from streampose.outlet import Outlet
from streampose.publish import Publisher
from streampose.relay import Relay, Upstream, parse_upstreams
from streampose.subscribe import Subscriber
from streampose.view.hub import Hub
from streampose.wire import decode, encode_heartbeat, encode_pose, encode_status

sys.path.insert(0, str(Path(__file__).parent))
from ports import free_endpoint
from stream_messages import WAIT_S, Talk, make_frame, wait_until

pytestmark = pytest.mark.usefixtures("patient_stream")
SILENT_S = "streampose.relay.SILENT_S"


@pytest.fixture
def make_relay():
    """make_relay(Upstream(...), ...) -> a relay that is served, and its endpoint."""
    with ExitStack() as stack:

        def make(*upstreams, **kwargs):
            outlet = stack.enter_context(Outlet("tcp://127.0.0.1:*", **kwargs))
            relay = stack.enter_context(Relay(upstreams, outlet))
            stop = threading.Event()
            thread = threading.Thread(target=relay.serve, args=(stop,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(stop.set)
            return relay, outlet.endpoint

        yield make


@pytest.fixture
def publisher():
    with Publisher("tcp://127.0.0.1:*", model="lite") as made:
        yield made


@pytest.fixture
def make_fake():
    """make_fake() -> a bound XPUB socket that sends what it is told to, and its endpoint."""
    context = zmq.Context()

    def make():
        made = context.socket(zmq.XPUB)
        made.setsockopt(zmq.RCVTIMEO, WAIT_S * 1000)
        made.bind_to_random_port("tcp://127.0.0.1")
        return made, made.getsockopt_string(zmq.LAST_ENDPOINT)

    yield make
    context.destroy(0)


def wait_for_subscriber(sender):
    while sender.recv() != b"\x01status.":
        pass


def test_streams_of_two_machines_arrive_at_one_endpoint(make_relay):
    with (
        Publisher("tcp://127.0.0.1:*", model="lite") as left,
        Publisher("tcp://127.0.0.1:*", model="other") as right,
    ):
        relay, endpoint = make_relay(Upstream(left.endpoint, "left"), Upstream(right.endpoint, "right"))
        with Talk(left, "cam"), Talk(right, "cam"), Subscriber(endpoint, "lossless") as stream:
            got = [stream.receive(WAIT_S) for _ in range(100)]
            wait_until(lambda: stream.receive(0.01) and len(stream.hellos) == 2)
    assert {frame.source for frame in got} == {"left.cam", "right.cam"}
    assert {name: hello.model for name, hello in stream.hellos.items()} == {"left.cam": "lite", "right.cam": "other"}
    assert stream.missed == {"left.cam": 0, "right.cam": 0}
    assert relay.malformed == relay.conflicts == 0


def test_what_passes_is_unchanged(make_relay, publisher):
    _, endpoint = make_relay(Upstream(publisher.endpoint))
    with Subscriber(endpoint, "lossless") as stream:
        wait_until(lambda: stream.heard_s)
        sent = make_frame(5, people=3, dropped=2, clock="rtcp")
        wait_until(lambda: publisher._outlet.subscribed.is_set())
        publisher.publish(sent)
        got = stream.receive(WAIT_S)
    assert (got.frame_index, got.dropped, got.clock, len(got.people)) == (5, 2, "rtcp", 3)
    assert got.captured_ns == sent.captured_ns


def test_a_relay_says_once_what_keeps_it_from_a_publisher(make_relay, caplog):
    caplog.set_level("INFO")
    make_relay(Upstream("tcp://127.0.0.1:1"))
    wait_until(lambda: "nobody publishes at" in caplog.text)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [("WARNING", "nobody publishes at tcp://127.0.0.1:1: connection refused; trying again")]


def test_a_relay_beats_for_itself(make_relay, publisher):
    relay, endpoint = make_relay(Upstream(publisher.endpoint))
    with zmq.Context() as context, context.socket(zmq.SUB) as stream:
        stream.setsockopt(zmq.RCVTIMEO, WAIT_S * 1000)
        publisher.publish(make_frame(0))
        wait_until(lambda: relay.sources)
        stream.connect(endpoint)
        stream.subscribe(b"")
        runs = {}
        while len(runs) < 2:
            parts = stream.recv_multipart()
            if parts[0] in (b"heartbeat", b"pose.cam"):
                message = decode(parts)
                runs[parts[0]] = message.run_id if parts[0] == b"heartbeat" else message.header.run_id
    assert runs == {b"heartbeat": relay._outlet.run_id, b"pose.cam": publisher.run_id}
    assert publisher.run_id != relay._outlet.run_id


def test_a_late_joiner_at_the_relay_is_greeted(make_relay, publisher):
    relay, endpoint = make_relay(Upstream(publisher.endpoint))
    publisher.publish(make_frame(3))
    publisher.set_state("cam", "stalled")
    wait_until(lambda: relay.sources)
    with Subscriber(endpoint) as stream:
        assert stream.receive(WAIT_S).frame_index == 3
        wait_until(lambda: stream.receive(0) is None and stream.states == {"cam": "stalled"})
        assert stream.hellos["cam"].model == "lite"


def test_the_sources_of_a_lost_machine_are_offline(make_relay, monkeypatch):
    with Publisher(free_endpoint(), model="lite", heartbeat_s=0.1) as publisher:
        relay, endpoint = make_relay(Upstream(publisher.endpoint))
        stream = Subscriber(endpoint)
        with stream:
            publisher.publish(make_frame())
            publisher.set_state("cam", "online")
            wait_until(lambda: stream.receive(0.01) is None and stream.states == {"cam": "online"})
            publisher.close()
            monkeypatch.setattr(SILENT_S, 0.4)
            wait_until(lambda: stream.receive(0.01) is None and stream.states == {"cam": "offline"})
            wait_until(lambda: relay.sources == {})
            monkeypatch.setattr(SILENT_S, 60)
            with Publisher(publisher.endpoint, model="lite") as again:
                again.set_state("cam", "online")
                wait_until(lambda: stream.receive(0.01) is None and stream.states == {"cam": "online"})


@pytest.mark.parametrize("told", ["stalled", None])
@pytest.mark.parametrize("name", ["", "left"])
def test_a_source_that_was_silent_for_long_is_back_with_its_first_message(
    make_relay, make_fake, monkeypatch, told, name
):
    """The connection stays, so that the publisher greets nobody again, and never says the same state twice."""
    sender, endpoint = make_fake()
    relay, relayed = make_relay(Upstream(endpoint, name))
    source = f"{name}.cam".removeprefix(".")
    with Subscriber(relayed, "lossless") as stream:
        wait_until(lambda: stream.heard_s)
        wait_for_subscriber(sender)
        sender.send_multipart(encode_pose(make_frame(0), run_id="r", seq=0))
        if told:
            sender.send_multipart(encode_status(Status(schema=SCHEMA, run_id="r", source="cam", state=told)))
        assert stream.receive(WAIT_S).frame_index == 0
        wait_until(lambda: stream.receive(0.01) is None and stream.states.get(source) == told)
        monkeypatch.setattr(SILENT_S, 0.3)
        wait_until(lambda: stream.receive(0.01) is None and stream.states == {source: "offline"})
        wait_until(lambda: relay.sources == {})
        monkeypatch.setattr(SILENT_S, 60)
        sender.send_multipart(encode_pose(make_frame(1), run_id="r", seq=1))
        assert stream.receive(WAIT_S).frame_index == 1
        assert stream.states == {source: told or "online"}
    with Subscriber(relayed) as late:
        assert late.receive(WAIT_S).frame_index == 1
        assert late.states == {source: told or "online"}


def test_who_takes_a_source_over_tells_what_it_said_before(make_relay, make_fake, monkeypatch):
    monkeypatch.setattr(SILENT_S, 60)
    (first, first_at), (second, second_at) = make_fake(), make_fake()
    relay, relayed = make_relay(Upstream(first_at), Upstream(second_at))
    beat = encode_heartbeat(Heartbeat(schema=SCHEMA, run_id="r2", sent_ns=1))
    with Subscriber(relayed, "lossless") as stream:
        wait_until(lambda: stream.heard_s)
        for sender in (first, second):
            wait_for_subscriber(sender)
        first.send_multipart(encode_pose(make_frame(0), run_id="r1", seq=0))
        assert stream.receive(WAIT_S).frame_index == 0
        second.send_multipart(encode_status(Status(schema=SCHEMA, run_id="r2", source="cam", state="stalled")))
        wait_until(lambda: relay.conflicts == 1)
        monkeypatch.setattr(SILENT_S, 0.5)

        def is_lost():
            second.send_multipart(beat)
            return stream.receive(0.01) is None and stream.states == {"cam": "offline"}

        wait_until(is_lost)
        monkeypatch.setattr(SILENT_S, 60)
        second.send_multipart(encode_pose(make_frame(5), run_id="r2", seq=0))
        assert stream.receive(WAIT_S).frame_index == 5
        assert stream.states == {"cam": "stalled"}
        assert relay.sources == {"cam": second_at}


def test_a_source_of_two_machines_is_taken_from_one(make_relay, publisher, caplog):
    with Publisher("tcp://127.0.0.1:*", model="lite") as second:
        relay, endpoint = make_relay(Upstream(publisher.endpoint), Upstream(second.endpoint))
        with Subscriber(endpoint, "lossless") as stream:
            with Talk(publisher):
                assert stream.receive(WAIT_S).source == "cam"
                with Talk(second):
                    wait_until(lambda: relay.conflicts > 10)
            assert stream.missed == {"cam": 0}
    assert "left out source cam" in caplog.text
    assert "--connect NAME=" in caplog.text


def test_what_a_later_version_adds_passes_whatever_it_is(make_relay, make_fake):
    """Fields that this version does not know are no reason to stop: bytes, odd keys, times out of range, text that is
    none. A field whose name is none is refused."""
    sender, endpoint = make_fake()
    relay, relayed = make_relay(Upstream(endpoint, "left"))
    topic, header, blob = encode_pose(make_frame(), run_id="r", seq=0)
    assert header[:2] == b"\xde\x00"  # a map, and its length in one byte
    odd = [
        b"\xa1\xff",
        b"\x81\x80\x01",
        b"\xd6\xff\x00\x00\x00\x01",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        b"\x91" * 400 + b"\x01",
    ]
    with Subscriber(relayed, "lossless") as stream:
        wait_until(lambda: stream.heard_s)
        wait_for_subscriber(sender)
        for seq, value in enumerate([b"\x01", *odd]):
            known = encode_pose(make_frame(seq), run_id="r", seq=seq)[1]
            longer = b"\xde\x00" + bytes([known[2] + 1]) + known[3:]
            sender.send_multipart([topic, longer + b"\xa3new" + value, blob])
        sender.send_multipart([topic, longer + b"\xa1\xff\x01", blob])
        sender.send_multipart(encode_pose(make_frame(6), run_id="r", seq=6))
        assert [stream.receive(WAIT_S).frame_index for _ in range(7)] == list(range(7))
    assert relay.malformed == 1


def test_relays_in_a_ring_pass_nothing_twice(make_relay, publisher, caplog):
    with Outlet("tcp://127.0.0.1:*") as outlet:
        there, there_at = make_relay(Upstream(outlet.endpoint, "here"))
        with Relay([Upstream(publisher.endpoint), Upstream(there_at, "there")], outlet) as here:
            with Talk(publisher), Subscriber(outlet.endpoint, "lossless") as stream:
                wait_until(lambda: "come back" in caplog.text)
                got = [stream.receive(WAIT_S).source for _ in range(50)]
            assert set(got) == {"cam"}
            assert set(here.sources) == {"cam"}
            assert set(there.sources) == {"here.cam"}


def test_what_came_back_before_it_came_is_given_up(make_relay, make_fake):
    """A relay of a ring was started again: the other one greets it with what it had from it before."""
    (publisher, publisher_at), (other, other_at) = make_fake(), make_fake()
    relay, endpoint = make_relay(Upstream(publisher_at), Upstream(other_at, "there"))
    for sender in (publisher, other):
        wait_for_subscriber(sender)
    with Subscriber(endpoint) as stream:
        other.send_multipart(encode_pose(make_frame(0, "here.cam"), run_id="r", seq=0))
        assert stream.receive(WAIT_S).source == "there.here.cam"
        publisher.send_multipart(encode_pose(make_frame(1, "cam"), run_id="r", seq=1))
        assert stream.receive(WAIT_S).source == "cam"
        other.send_multipart(encode_pose(make_frame(1, "here.cam"), run_id="r", seq=1))
        wait_until(lambda: stream.receive(0.01) is None and stream.states == {"there.here.cam": "offline"})
    assert set(relay.sources) == {"cam"}


def test_a_name_that_grows_too_long_is_said(make_relay, publisher, caplog):
    relay, _ = make_relay(Upstream(publisher.endpoint, "left"))
    with Talk(publisher, "x" * 200, "cam"):
        wait_until(lambda: "longer than 200 characters" in caplog.text and relay.sources)
    assert set(relay.sources) == {"left.cam"}


def test_pictures_are_asked_for_where_somebody_looks(make_relay, publisher):
    _, endpoint = make_relay(Upstream(publisher.endpoint, "left"))
    with Talk(publisher), Hub(endpoint) as hub:
        wait_until(lambda: "left.cam" in hub.cameras)
        assert not publisher.is_looked_at("cam")
        hub.look(1, ["left.cam"])
        wait_until(lambda: publisher.is_looked_at("cam"))
        publisher.show("cam", b"\xff\xd8\xff", epoch=0, frame_index=4, captured_ns=1, size=(48, 64))
        wait_until(lambda: hub.cameras["left.cam"].picture is not None)
        assert hub.cameras["left.cam"].picture.header.frame_index == 4
        hub.look(1, [])
        wait_until(lambda: not publisher.is_looked_at("cam"))


def test_keys_on_both_sides(make_relay, tmp_path):
    add_key(tmp_path / "up", "relay", tmp_path / "relay.key")
    add_key(tmp_path / "down", "reader", tmp_path / "reader.key")
    with Publisher("tcp://127.0.0.1:*", model="lite", keys=tmp_path / "up") as publisher, Talk(publisher):
        upstream = Upstream(publisher.endpoint, key=read_key(tmp_path / "relay.key"))
        _, endpoint = make_relay(upstream, keys=tmp_path / "down")
        with Subscriber(endpoint, key=tmp_path / "reader.key") as stream:
            assert stream.receive(WAIT_S).source == "cam"


def test_upstreams_of_the_command_line(tmp_path):
    for name in ("a", "b"):
        add_key(tmp_path / "keys", name, tmp_path / f"{name}.key")
    keys = [tmp_path / "a.key", tmp_path / "b.key"]
    made = parse_upstreams(["left=tcp://h:1", "tcp://h:2"], keys)
    assert [(upstream.name, upstream.endpoint, upstream.key.name) for upstream in made] == [
        ("left", "tcp://h:1", "a"),
        ("", "tcp://h:2", "b"),
    ]
    assert parse_upstreams(["tcp://h:1", "tcp://h:2"], keys[:1])[1].key.name == "a"
    for texts, given, says in [
        (["tcp://h:1"], keys, "one for each of the 1"),
        (["a=tcp://h:1", "a=tcp://h:2"], [], "the same name"),
        (["tcp://h:1", "b=tcp://h:1"], [], "the same endpoint"),
        (["=tcp://h:1"], [], "no name before ="),
        (["a\x1b=tcp://h:1"], [], "printable"),
    ]:
        with pytest.raises(UsageError, match=says):
            parse_upstreams(texts, given)


def test_a_relay_does_not_collect_from_itself():
    with Outlet("tcp://127.0.0.1:*") as outlet, pytest.raises(UsageError, match="where it publishes itself"):
        Relay([Upstream(outlet.endpoint)], outlet)


def send_state(sender, state, source="cam", run_id="r"):
    sender.send_multipart(encode_status(Status(schema=SCHEMA, run_id=run_id, source=source, state=state)))


def test_of_a_removed_source_a_late_joiner_hears_nothing_and_it_may_come_back(make_relay, publisher):
    relay, endpoint = make_relay(Upstream(publisher.endpoint))
    with Subscriber(endpoint, "lossless") as stream:
        publisher.publish(make_frame(0, "gone"))
        publisher.set_state("gone", "online")
        wait_until(lambda: stream.receive(0.01) is None and stream.states == {"gone": "online"})
        publisher.set_state("gone", "ended")
        publisher.forget("gone")
        wait_until(lambda: stream.receive(0.01) is None and stream.states == {"gone": "ended"})
        wait_until(lambda: not relay.sources and not relay._outlet._last)
        publisher.publish(make_frame(0, "here"))
        with Subscriber(endpoint, "lossless") as late:
            assert late.receive(WAIT_S).source == "here"
            assert (set(late.hellos), late.states) == ({"here"}, {})
        publisher.publish(make_frame(7, "gone"))
        publisher.set_state("gone", "online")
        wait_until(lambda: stream.receive(0.01) is None and stream.states == {"gone": "online"})
        publisher.publish(make_frame(8, "gone"))
        wait_until(lambda: b"pose.gone" in relay._outlet._last)
        assert set(relay.sources) == {"gone", "here"}
    with Subscriber(endpoint, "lossless", source="gone") as late:
        assert late.receive(WAIT_S).frame_index == 8
        assert late.hellos["gone"].model == "lite"


def test_what_is_said_of_a_source_after_its_end_is_passed_on_but_not_kept(make_relay, make_fake):
    """A publisher may repeat the hello of a source between its end and its removal, and the pose comes after both."""
    sender, endpoint = make_fake()
    relay, relayed = make_relay(Upstream(endpoint))
    with Subscriber(relayed, "lossless") as stream:
        wait_for_subscriber(sender)
        wait_until(relay._outlet.subscribed.is_set)
        send_state(sender, "ended")
        for seq in range(2):
            sender.send_multipart(encode_pose(make_frame(seq), run_id="r", seq=seq))
        assert [stream.receive(WAIT_S).frame_index for _ in range(2)] == [0, 1]
        wait_until(lambda: not relay.sources and not relay._outlet._last)
        sender.send_multipart(encode_pose(make_frame(0), run_id="another", seq=0))
        assert stream.receive(WAIT_S).frame_index == 0
        wait_until(lambda: relay.sources == {"cam": endpoint})


def test_sources_come_and_go_at_a_relay_for_ever(make_relay, monkeypatch, caplog):
    """Eight times as many as are kept, of which every other one ends, and the rest goes offline with its publisher."""
    monkeypatch.setattr("streampose.relay.SOURCES_LIMIT", 4)
    port = free_endpoint()
    relay, endpoint = make_relay(Upstream(port))
    with Subscriber(endpoint, "lossless") as stream:
        for run in range(8):
            names = {f"{run}{letter}" for letter in "abcd"}
            with Publisher(port, model="lite", heartbeat_s=0.1) as made:
                for name in sorted(names):
                    made.publish(make_frame(0, name))
                    made.set_state(name, "online")
                wait_until(lambda: stream.receive(0.01) is None and set(relay.sources) == names)  # noqa: B023
                for name in sorted(names)[:2]:
                    made.set_state(name, "ended")
                    made.forget(name)
                wait_until(lambda: len(relay.sources) == 2)
            monkeypatch.setattr(SILENT_S, 0.1)
            wait_until(lambda: not relay.sources)
            monkeypatch.setattr(SILENT_S, 60)
    assert "left out" not in caplog.text
    kept = {topic.partition(b".")[2].decode() for topic in relay._outlet._last}
    assert len(kept) <= 4
    assert {"7c", "7d"} <= kept


def test_a_source_too_many_is_said_to_be_one(make_relay, publisher, monkeypatch, caplog):
    monkeypatch.setattr("streampose.relay.SOURCES_LIMIT", 1)
    relay, _ = make_relay(Upstream(publisher.endpoint))
    publisher.publish(make_frame(0, "first"))
    wait_until(lambda: relay.sources)
    publisher.publish(make_frame(0, "second"))
    wait_until(lambda: "left out" in caplog.text)
    assert "left out source second" in caplog.text
    assert "the relay has 1 sources already" in caplog.text
    assert "--connect" not in caplog.text


def test_what_a_publisher_tells_nothing_of_when_connected_to_again_is_offline(make_relay, monkeypatch):
    """It was away for shorter than it takes to be called silent, and came back with one of its two sources."""
    publisher = Publisher(free_endpoint(), model="lite")
    relay, endpoint = make_relay(Upstream(publisher.endpoint))
    with Subscriber(endpoint, "lossless") as stream:
        for source in ("a", "b"):
            publisher.publish(make_frame(0, source))
            publisher.set_state(source, "online")
        wait_until(lambda: stream.receive(0.01) is None and stream.states == {"a": "online", "b": "online"})
        publisher.close()
        with Publisher(publisher.endpoint, model="lite", heartbeat_s=0.1) as again:
            again.publish(make_frame(0, "a"))
            again.set_state("a", "online")
            wait_until(lambda: relay._branches[0]._heard["a"].connection == 2)
            monkeypatch.setattr(SILENT_S, 1.0)
            wait_until(lambda: stream.receive(0.01) is None and stream.states == {"a": "online", "b": "offline"})
            monkeypatch.setattr(SILENT_S, 60)
            wait_until(lambda: set(relay.sources) == {"a"})
            again.set_state("b", "online")
            wait_until(lambda: stream.receive(0.01) is None and stream.states == {"a": "online", "b": "online"})


def test_what_a_publisher_has_not_told_of_for_long_is_offline(make_relay, monkeypatch):
    """The end of a source may be lost on the way, or be told while much of another connection still waits."""
    monkeypatch.setattr(SILENT_S, 1.0)
    monkeypatch.setattr("streampose.relay.UNTOLD_S", 2.0)
    with Publisher("tcp://127.0.0.1:*", model="lite", heartbeat_s=0.02) as publisher:
        for source in ("here", "gone"):
            publisher.publish(make_frame(source=source))
            publisher.set_state(source, "online")
        _, endpoint = make_relay(Upstream(publisher.endpoint))
        with Subscriber(endpoint, "lossless") as stream:
            wait_until(lambda: stream.receive(0.01) or stream.states == {"here": "online", "gone": "online"})
            publisher.forget("gone")
            wait_until(lambda: stream.receive(0.01) is None and stream.states == {"here": "online", "gone": "offline"})


def test_the_end_of_a_source_does_not_go_round_in_a_ring(make_relay, publisher, caplog):
    with Outlet("tcp://127.0.0.1:*") as outlet:
        _, there_at = make_relay(Upstream(outlet.endpoint, "here"))
        with Relay([Upstream(publisher.endpoint), Upstream(there_at, "there")], outlet) as here:
            with Subscriber(there_at, "lossless") as stream:
                publisher.publish(make_frame(0))
                wait_until(lambda: "come back" in caplog.text)
                publisher.set_state("cam", "ended")
                publisher.set_state("end", "online")
                wait_until(lambda: stream.receive(0.01) is None and "here.end" in stream.states)
            assert stream.states == {"here.cam": "ended", "here.end": "online"}
            assert set(here.sources) == {"end"}
