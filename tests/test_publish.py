"""Publisher and subscriber over real sockets."""

import dataclasses
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import zmq

from streampose.audience import TOPICS_LIMIT
from streampose.errors import OutputError, UsageError
from streampose.messages import SOURCES_LIMIT
from streampose.outlet import QUEUE_LIMIT, Outlet
from streampose.peer import Peer
from streampose.publish import Publisher
from streampose.subscribe import Subscriber
from streampose.wire import Hello, PoseMessage, decode, encode_pose

sys.path.insert(0, str(Path(__file__).parent))
from ports import free_endpoint
from stream_messages import WAIT_S, Talk, make_frame, wait_until

pytestmark = pytest.mark.usefixtures("patient_stream")


@pytest.fixture
def publisher():
    with Publisher("tcp://127.0.0.1:*", model="lite", offsets=(-4, -3, -2, -1)) as made:
        yield made


@pytest.fixture
def raw():
    """Plain sockets, with bounded waits."""
    context = zmq.Context()

    def make(kind):
        made = context.socket(kind)
        made.setsockopt(zmq.RCVTIMEO, WAIT_S * 1000)
        made.setsockopt(zmq.LINGER, 0)
        return made

    yield make
    context.destroy(0)


@pytest.fixture
def fake(raw):
    """A publisher that sends what it is told to, and a way to wait for subscriptions."""
    made = raw(zmq.XPUB)
    made.bind_to_random_port("tcp://127.0.0.1")

    def greet():
        while made.recv() != b"\x01status.":
            pass

    return made, made.getsockopt_string(zmq.LAST_ENDPOINT), greet


def subscribe(publisher, **kwargs):
    """A subscriber that the publisher has heard of."""
    made = Subscriber(publisher.endpoint, **kwargs)
    wait_until(lambda: made.heard_s > 0)
    return made


def test_frames_arrive_in_order_and_whole(publisher):
    with subscribe(publisher, mode="lossless") as stream:
        for index in range(200):
            publisher.publish(make_frame(index, people=index % 3))
        got = [stream.receive(WAIT_S) for _ in range(200)]
    assert [frame.frame_index for frame in got] == list(range(200))
    assert [len(frame.people) for frame in got] == [index % 3 for index in range(200)]
    assert {frame.missed for frame in got} == {0}
    np.testing.assert_array_equal(got[1].people[0].box, make_frame(1).people[0].box)


def test_a_late_joiner_gets_hello_and_status_without_waiting_for_a_pose(publisher, raw):
    publisher.publish(make_frame())
    publisher.set_state("cam", "stalled")
    with subscribe(publisher, mode="lossless") as first:
        wait_until(lambda: first.receive(0) is None and first.hellos and first.states == {"cam": "stalled"})
        hello = first.hellos["cam"]
    assert (hello.model, hello.skeleton, hello.width, hello.height) == ("lite", "coco17", 640, 480)
    assert hello.offsets == (-4, -3, -2, -1)
    assert (hello.joints[0], hello.edges[0]) == ("nose", (0, 1))
    second = raw(zmq.SUB)
    second.connect(publisher.endpoint)
    second.subscribe(b"hello.")
    assert isinstance(decode(second.recv_multipart()), Hello)


def test_nobody_is_greeted_with_a_source_that_is_gone_and_its_numbers_go_on(publisher, raw):
    for source in ("gone", "there"):
        publisher.publish(make_frame(source=source))
        publisher.set_state(source, "online")
    publisher.forget("gone")
    with subscribe(publisher, mode="lossless") as first:
        wait_until(lambda: first.receive(0) is None and first.states == {"there": "online"})
        assert list(first.hellos) == ["there"]
        publisher.publish(make_frame(1, source="gone"))
        assert first.receive(WAIT_S).source == "gone"
        assert set(first.hellos) == {"there", "gone"}, "what comes back says hello again"
    second = raw(zmq.SUB)
    second.connect(publisher.endpoint)
    second.subscribe(b"pose.gone")
    message = decode(second.recv_multipart())
    assert isinstance(message, PoseMessage)
    assert message.header.seq == 1


def test_a_second_subscriber_to_the_same_topic_is_greeted_too(publisher, raw):
    publisher.publish(make_frame())
    for _ in range(2):
        stream = raw(zmq.SUB)
        stream.connect(publisher.endpoint)
        stream.subscribe(b"hello.cam")
        assert decode(stream.recv_multipart()).source == "cam"


def test_hello_is_there_before_the_first_pose(publisher, raw):
    """However a subscription meets with a pose that is just being sent: 150 join a stream of poses without a pause."""
    done = threading.Event()

    def talk():
        index = 0
        while not done.wait(0.0005):
            publisher.publish(make_frame(index))
            index += 1

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        for _ in range(150):
            stream = raw(zmq.SUB)
            stream.connect(publisher.endpoint)
            stream.subscribe(b"hello.")
            stream.subscribe(b"pose.")
            assert stream.recv_multipart()[0] == b"hello.cam"
            stream.close()
    finally:
        done.set()
        thread.join()


def test_pictures_are_looked_at_until_the_last_one_is_gone(publisher, raw):
    looking = [raw(zmq.SUB) for _ in range(3)]
    for stream in looking:
        stream.connect(publisher.endpoint)
        stream.subscribe(b"picture.cam")
        stream.subscribe(b"heartbeat")
        assert stream.recv_multipart()[0] == b"heartbeat"
    looking[0].close()  # as a browser that crashed
    looking[1].unsubscribe(b"picture.cam")
    wait_until(lambda: [b"picture.cam" in known.topics for _, known in audience(publisher)].count(True) == 1)
    wait_until(lambda: publisher.is_looked_at("cam"))
    looking[2].close()
    wait_until(lambda: not publisher.is_looked_at("cam"))


def test_a_look_ends_with_its_socket_even_if_it_was_asked_for_twice(publisher, raw):
    """One socket subscribes twice, which ZeroMQ passes on twice, but the end of both once."""

    def cancel(stream):
        for _ in range(2):  # the first stays in this socket
            stream.send(b"\x00picture.cam")

    for end in (lambda stream: stream.close(), cancel):
        stream = raw(zmq.XSUB)
        stream.connect(publisher.endpoint)
        for request in (b"\x01picture.cam", b"\x01picture.cam", b"\x01heartbeat"):
            stream.send(request)
        assert stream.recv_multipart()[0] == b"heartbeat"
        wait_until(lambda: publisher.is_looked_at("cam"))
        end(stream)
        wait_until(lambda: not publisher.is_looked_at("cam"))


def test_who_sends_what_is_no_subscription_is_cut_off_alone(publisher, raw, caplog):
    """Strangers, one after the other, send junk before and between subscriptions; a reader loses nothing by it."""
    with subscribe(publisher, mode="lossless") as stream, Talk(publisher, hz=200):
        for index in range(20):
            stranger = raw(zmq.XSUB)
            stranger.setsockopt(zmq.RECONNECT_IVL, -1)
            ended = stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            stranger.connect(publisher.endpoint)
            for request in [b"\x01pose.", b"\x05junk", b"\x01heartbeat", b"more junk"][index % 2 :]:
                stranger.send(request)
            assert ended.poll(WAIT_S * 1000)
            stranger.disable_monitor()
            stranger.close()
        got = [stream.receive(WAIT_S).frame_index for _ in range(200)]
    assert got == list(range(got[0], got[0] + 200))
    assert stream.reconnections == 0
    assert "127.0.0.1: it sent what is no subscription" in caplog.text


def test_subscriptions_are_right_after_a_stranger_sent_junk(publisher, raw):
    """ZeroMQ takes the requests that follow junk for somebody else's: who sends them begins again, and gets his own."""
    for _ in range(10):
        stranger, *streams = raw(zmq.XSUB), raw(zmq.XSUB), raw(zmq.XSUB), raw(zmq.XSUB)
        for stream in (stranger, *streams):
            stream.connect(publisher.endpoint)
        for _ in range(3):
            stranger.send(b"junk")
        for number, stream in enumerate(streams):
            stream.send(f"\x01pose.{number}".encode())
            stream.send(b"\x01heartbeat")
        for number, stream in enumerate(streams):
            while stream.recv_multipart()[0] != b"heartbeat":
                pass
            wanted = {f"pose.{number}".encode(), b"heartbeat"}
            wait_until(lambda: wanted in [known.topics for _, known in audience(publisher)])  # noqa: B023
        publisher.publish(make_frame(source="0"))
        publisher.publish(make_frame(source="1"))
        publisher.publish(make_frame(source="2"))
        for number, stream in enumerate(streams):
            got = b"heartbeat"
            while got == b"heartbeat":
                got = stream.recv_multipart()[0]
            assert got == f"pose.{number}".encode()
            stream.close()
        stranger.close()


def audience(publisher):
    return list(publisher._outlet._audience._connections.items())


def test_who_asks_again_and_again_floods_nobody(publisher, raw):
    """One topic of one connection is answered once a second, however often it is asked for."""
    publisher.publish(make_frame())
    quiet, loud = raw(zmq.SUB), raw(zmq.XSUB)
    loud.setsockopt(zmq.SNDHWM, 0)
    for stream in (quiet, loud):
        stream.connect(publisher.endpoint)
    quiet.subscribe(b"hello.")
    assert quiet.recv_multipart()[0] == b"hello.cam"
    began_s = time.monotonic()
    for _ in range(50):
        for _ in range(40):
            loud.send(b"\x01hello.")
        loud.send(b"\x01heartbeat" + uuid.uuid4().bytes)  # in between, something new
    loud.send(b"\x01status.")
    publisher.set_state("cam", "online")
    while loud.recv_multipart()[0] != b"status.cam":
        pass
    seconds = time.monotonic() - began_s
    assert quiet.recv_multipart()[0] == b"hello.cam"
    quiet.setsockopt(zmq.RCVTIMEO, 200)
    greeted = 1
    with suppress(zmq.Again):
        while quiet.recv_multipart():
            greeted += 1
    assert greeted <= 2 + seconds


def test_who_subscribes_to_too_much_is_cut_off(publisher, raw, caplog):
    greedy = raw(zmq.XSUB)
    greedy.setsockopt(zmq.SNDHWM, 0)
    greedy.connect(publisher.endpoint)
    with subscribe(publisher) as stream:
        for number in range(TOPICS_LIMIT + 5):
            greedy.send(f"\x01pose.{number}".encode())
        wait_until(lambda: f"more than {TOPICS_LIMIT} topics" in caplog.text)
        publisher.publish(make_frame(3))
        assert stream.receive(WAIT_S).frame_index == 3
        assert stream.reconnections == 0


def test_who_repeats_a_subscription_without_end_is_cut_off_alone(publisher, raw, caplog, monkeypatch):
    """What it sends until then is heard in small portions: frames go out in between."""
    monkeypatch.setattr("streampose.audience._REQUESTS_A_SECOND", 0)  # however slowly it sends here
    loud = raw(zmq.XSUB)
    loud.setsockopt(zmq.RECONNECT_IVL, -1)
    loud.connect(publisher.endpoint)
    with subscribe(publisher, mode="lossless") as stream, Talk(publisher, hz=200):
        for _ in range(50):
            for _ in range(200):
                loud.send(b"\x01x")
            loud.poll(1)
        wait_until(lambda: "it subscribes without end" in caplog.text)
        got = [stream.receive(WAIT_S).frame_index for _ in range(100)]
    assert got == list(range(got[0], got[0] + 100))
    assert stream.reconnections == 0
    assert caplog.text.count("cut off") == 1


FLOOD = """
import sys, zmq
context = zmq.Context()
loud = context.socket(zmq.XSUB)
loud.setsockopt(zmq.SNDHWM, 0)
loud.setsockopt(zmq.RECONNECT_IVL, -1)
loud.connect(sys.argv[1])
ended = loud.get_monitor_socket(zmq.EVENT_DISCONNECTED)
for _ in range(30_000):
    loud.send(b"\\x01x")
assert ended.poll(60_000)
joiners = [context.socket(zmq.SUB) for _ in range(8)]
monitors = [joiner.get_monitor_socket(zmq.EVENT_DISCONNECTED) for joiner in joiners]
for joiner in joiners:
    joiner.connect(sys.argv[1])
    joiner.subscribe(b"heartbeat")
for joiner in joiners:
    assert joiner.poll(60_000)
counts = []
for monitor in monitors:
    counts.append(0)
    while monitor.poll(0):
        monitor.recv_multipart()
        counts[-1] += 1
print(sum(counts), max(counts))
context.destroy(0)
"""


def test_what_a_flood_leaves_behind_is_not_charged_to_those_who_join(publisher, caplog):
    """They may get the descriptor of the connection that was ended, while thousands of its requests still wait."""
    done = subprocess.run(
        [sys.executable, "-c", FLOOD, publisher.endpoint], check=True, capture_output=True, text=True, timeout=240
    )
    disconnected, most = map(int, done.stdout.split())
    assert (disconnected, most) in [(0, 0), (1, 1)]  # whoever has the descriptor begins again, once
    assert caplog.text.count("cut off") == 1


def test_who_was_not_heard_begins_again_though_nobody_sends_anything_more(publisher, raw):
    """A descriptor is still noted as an ended connection's, and the newcomer that has it has said all it will say."""
    stream = raw(zmq.SUB)
    again = stream.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    stream.connect(publisher.endpoint)
    stream.subscribe(b"heartbeat")
    assert stream.recv_multipart()[0] == b"heartbeat"
    wait_until(lambda: audience(publisher))
    ((peer, _),) = audience(publisher)
    publisher._outlet._audience._ended[peer.fd] = Peer(peer.fd, "another's")
    assert again.poll(WAIT_S * 1000)
    wait_until(lambda: not publisher._outlet._audience._ended)
    stream.disable_monitor()


def test_a_source_is_forgotten_even_where_the_queue_overflows(publisher, monkeypatch):
    publisher.publish(make_frame(source="gone"))
    publisher.set_state("gone", "ended")
    wait_until(lambda: not publisher._outlet._queue)
    monkeypatch.setattr(publisher._outlet, "_flush", lambda: None)
    publisher.forget("gone")
    for index in range(QUEUE_LIMIT + 10):
        publisher.publish(make_frame(index))
    monkeypatch.undo()
    publisher.publish(make_frame(source="there"))
    with subscribe(publisher, mode="lossless") as late:
        wait_until(lambda: late.receive(0.01) or "there" in late.hellos)
        assert "gone" not in late.hellos
        assert "gone" not in late.states


def test_hello_comes_again_when_the_size_changes(publisher):
    with subscribe(publisher) as stream:
        publisher.publish(make_frame())
        publisher.publish(dataclasses.replace(make_frame(1), width=128))
        wait_until(
            lambda: (stream.receive(0.01) or True) and "cam" in stream.hellos and stream.hellos["cam"].width == 128
        )


def test_the_same_state_is_told_once(raw):
    with Publisher("tcp://127.0.0.1:*", model="lite", heartbeat_s=3600) as publisher:
        stream = raw(zmq.SUB)
        stream.connect(publisher.endpoint)
        stream.subscribe(b"")
        decode(stream.recv_multipart())
        for state in ("online", "online", "ended"):
            publisher.set_state("cam", state)
        got = []
        while "ended" not in got:
            parts = stream.recv_multipart()
            if parts[0] == b"status.cam":
                got.append(decode(parts).state)
    assert got == ["online", "ended"]


def test_hellos_and_states_come_again_within_ten_heartbeats(raw):
    """They have no `seq`: who has lost one, as a slow reader may, does not know it."""
    with Publisher("tcp://127.0.0.1:*", model="lite", heartbeat_s=0.02) as publisher:
        for source in "abcdefghijkl":
            publisher.publish(make_frame(source=source))
            publisher.set_state(source, "online")
        wait_until(lambda: not publisher._outlet._queue)
        stream = raw(zmq.SUB)
        stream.connect(publisher.endpoint)
        stream.subscribe(b"heartbeat")
        assert stream.recv_multipart()[0] == b"heartbeat"
        for kind in (b"hello.", b"status."):
            stream.subscribe(kind)
        while not stream.recv_multipart()[0].startswith(b"status."):
            pass
        beats = -1
        topics = []
        while beats < 31:
            parts = stream.recv_multipart()
            beats += parts[0] == b"heartbeat"
            topics += [parts[0]] * (parts[0] != b"heartbeat")
    told = {f"{kind}.{source}".encode() for kind in ("hello", "status") for source in "abcdefghijkl"}
    assert set(topics) == told
    assert all(3 <= topics.count(topic) <= 5 for topic in told)  # greeted, and once in each round


def test_a_greeting_of_a_thousand_sources_is_whole(raw, monkeypatch):
    """It goes out in portions that a subscriber's socket holds; here it holds all, or a pause would lose some."""
    portions, greet = [], Outlet._greet

    def count(outlet):
        owed = len(outlet._owed)
        greet(outlet)
        portions.append(owed - len(outlet._owed) if owed else 0)

    monkeypatch.setattr(Outlet, "_greet", count)
    monkeypatch.setattr("streampose.outlet.QUEUE_LIMIT", 4 * SOURCES_LIMIT)
    with Publisher("tcp://127.0.0.1:*", model="lite", heartbeat_s=3600) as publisher:
        for number in range(SOURCES_LIMIT):
            publisher.publish(make_frame(source=f"s{number}"))
            publisher.set_state(f"s{number}", "online")
            if number % 100 == 99:
                wait_until(lambda: not publisher._outlet._queue)
        stream = raw(zmq.SUB)
        stream.connect(publisher.endpoint)
        stream.subscribe(b"")
        got = Counter()
        while not got["heartbeat"]:
            got[stream.recv_multipart()[0].decode().partition(".")[0]] += 1
    assert got == {"hello": SOURCES_LIMIT, "status": SOURCES_LIMIT, "pose": SOURCES_LIMIT, "heartbeat": 1}
    assert len([portion for portion in portions if portion]) > 3 * SOURCES_LIMIT / QUEUE_LIMIT
    assert max(portions) < QUEUE_LIMIT / 2


def test_heartbeats_come_by_themselves(raw):
    with Publisher("tcp://127.0.0.1:*", model="lite", heartbeat_s=0.02) as publisher:
        stream = raw(zmq.SUB)
        stream.connect(publisher.endpoint)
        stream.subscribe(b"heartbeat")
        beats = [decode(stream.recv_multipart()) for _ in range(4)]
    assert {beat.run_id for beat in beats} == {publisher.run_id}
    assert [beat.sent_ns for beat in beats] == sorted({beat.sent_ns for beat in beats})


def test_each_source_has_its_own_numbers(publisher, raw):
    stream = raw(zmq.SUB)
    stream.connect(publisher.endpoint)
    stream.subscribe(b"")
    decode(stream.recv_multipart())
    for source in ("a", "b", "a"):
        publisher.publish(make_frame(source=source))
    got = []
    while len(got) < 3:
        message = decode(stream.recv_multipart())
        if isinstance(message, PoseMessage):
            got.append((message.header.source, message.header.seq, message.header.offsets))
    assert got == [("a", 0, (-4, -3, -2, -1)), ("b", 0, (-4, -3, -2, -1)), ("a", 1, (-4, -3, -2, -1))]


def test_only_the_source_asked_for_is_handed_out(publisher):
    with subscribe(publisher, mode="lossless", source="cam1") as stream:
        for source in ("cam10", "cam", "cam1"):
            publisher.publish(make_frame(source=source))
        assert stream.receive(WAIT_S).source == "cam1"


def test_gaps_are_counted_per_source_and_run(fake):
    sender, endpoint, greet = fake
    with Subscriber(endpoint, mode="lossless") as stream:
        greet()
        for source, run, seq in [
            ("a", "r1", 7), ("b", "r1", 0), ("a", "r1", 8), ("a", "r1", 12), ("b", "r1", 2),
            ("a", "r2", 3), ("a", "r2", 5),
        ]:  # fmt: skip
            sender.send_multipart(encode_pose(make_frame(source=source), run_id=run, seq=seq))
        got = [stream.receive(WAIT_S) for _ in range(7)]
    assert [(frame.source, frame.missed) for frame in got] == [
        ("a", 0), ("b", 0), ("a", 0), ("a", 3), ("b", 1), ("a", 0), ("a", 1),
    ]  # fmt: skip


def test_a_slow_reader_gets_the_newest_frame(publisher):
    """Far more frames than any buffer on the way holds, none read before the last is sent."""
    last = 5 * QUEUE_LIMIT
    with subscribe(publisher, mode="latest") as stream:
        publisher.publish(make_frame(0))
        assert stream.receive(WAIT_S).frame_index == 0
        for index in range(1, last + 1):
            publisher.publish(make_frame(index))
            if index % 200 == 0:
                wait_until(lambda: not publisher._outlet._queue)
        wait_until(lambda: decode(stream._newest[b"pose.cam"]).frame.frame_index == last)
        frame = stream.receive(WAIT_S)
    assert frame.frame_index == last
    assert frame.missed == last - 1


def test_a_subscriber_that_does_not_read_holds_up_nobody(publisher, raw):
    lazy = raw(zmq.SUB)
    lazy.setsockopt(zmq.RCVHWM, 1)
    lazy.connect(publisher.endpoint)
    lazy.subscribe(b"")
    decode(lazy.recv_multipart())
    with subscribe(publisher, mode="latest") as stream:
        frame = make_frame(people=10)
        for _ in range(20 * QUEUE_LIMIT):  # would never end if somebody were waited for
            publisher.publish(frame)
        wait_until(lambda: stream.receive(0.01) is not None and not publisher._outlet._queue)


def test_a_full_queue_drops_the_oldest_and_shows_the_gap(publisher, monkeypatch):
    with subscribe(publisher, mode="lossless") as stream:
        publisher.publish(make_frame(0))
        assert stream.receive(WAIT_S).missed == 0
        idle = threading.Event()
        monkeypatch.setattr(publisher._outlet, "_flush", idle.set)
        publisher.publish(make_frame(1))  # which the thread may still send, or not
        assert idle.wait(WAIT_S)
        for index in range(2, QUEUE_LIMIT + 7):
            publisher.publish(make_frame(index))
        monkeypatch.undo()
        publisher.publish(make_frame(QUEUE_LIMIT + 7))
        frame = stream.receive(WAIT_S)
        if frame.frame_index == 1:
            frame = stream.receive(WAIT_S)
        assert frame.missed == publisher.dropped >= 5


def test_a_damaged_message_is_skipped_and_counted(fake):
    sender, endpoint, greet = fake
    with Subscriber(endpoint, mode="lossless") as stream:
        greet()
        good = encode_pose(make_frame(), run_id="r", seq=0)
        for parts in [(b"pose.cam",), (good[0], good[1], good[2][:-1]), (b"pose.cam", b"junk", b""), good]:
            sender.send_multipart(parts)
        assert stream.receive(WAIT_S).frame_index == 0
        assert stream.malformed == 3


def test_a_subscriber_outlives_its_publisher():
    with Publisher(free_endpoint(), model="lite") as first:
        stream = subscribe(first, mode="lossless")
        first.publish(make_frame(1))
        assert stream.receive(WAIT_S).frame_index == 1
    heard = stream.heard_s
    with stream, Publisher(first.endpoint, model="lite") as second:
        wait_until(lambda: stream.heard_s > heard)
        second.publish(make_frame(2))
        frame = stream.receive(WAIT_S)
        assert (frame.frame_index, frame.missed) == (2, 0)


def test_closing_sends_what_is_queued():
    with Publisher("tcp://127.0.0.1:*", model="lite") as publisher:
        stream = subscribe(publisher, mode="lossless")
        for index in range(100):
            publisher.publish(make_frame(index))
    with stream:
        assert [stream.receive(WAIT_S).frame_index for _ in range(100)] == list(range(100))


def test_closing_ends_a_waiting_reader(publisher):
    stream = subscribe(publisher)
    got = []
    reader = threading.Thread(target=lambda: got.extend(stream))
    reader.start()
    stream.close()
    reader.join(WAIT_S)
    assert not reader.is_alive()
    assert got == []


def test_a_subscriber_in_another_process(publisher):
    code = (
        "import sys, streampose.subscribe as s\n"
        "with s.Subscriber(sys.argv[1], mode='lossless', connect_s=60) as stream:\n"
        "    while not stream.heard_s: stream.receive(0.01)\n"
        "    print('here', flush=True)\n"
        "    print([stream.receive(60).frame_index for _ in range(3)])\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, publisher.endpoint], stdout=-1, text=True) as process:
        assert process.stdout.readline() == "here\n"
        for index in range(3):
            publisher.publish(make_frame(index))
        assert process.communicate(timeout=WAIT_S)[0] == "[0, 1, 2]\n"


def test_the_example_of_the_protocol_reads_the_stream(publisher):
    """The block of docs/protocol.md, three messages long."""
    page = (Path(__file__).parent.parent / "docs" / "protocol.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    code = code.replace("tcp://127.0.0.1:5555", publisher.endpoint).replace("while True", "for _ in range(3)")
    names = {}
    reader = threading.Thread(target=exec, args=(code, names), daemon=True)
    reader.start()
    index = 0
    while reader.is_alive():
        publisher.publish(make_frame(index, people=2))
        index += 1
        reader.join(0.01)
        assert index < WAIT_S * 100
    assert names["pose"]["skeleton"] == "coco17"
    sent = make_frame(names["pose"]["frame_index"], people=2).people
    np.testing.assert_array_equal(names["boxes"], [person.box for person in sent])
    np.testing.assert_array_equal(names["keypoints"], [person.keypoints for person in sent])


def test_an_endpoint_in_use_is_an_output_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OutputError, match=rf"{endpoint} is in use.*--publish.*--no-publish"):
            Publisher(endpoint, model="lite")


def test_a_wrong_mode_is_refused():
    with pytest.raises(UsageError, match="latest or lossless"):
        Subscriber("tcp://127.0.0.1:5555", mode="newest")
