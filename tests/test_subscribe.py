"""The client over real sockets: fresh in latest mode, exact about loss, and never silent about what is wrong."""

import asyncio
import contextlib
import inspect
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
import zmq

import streampose
from streampose.errors import NoPublisherError, SchemaError, UsageError
from streampose.inlet import Inlet
from streampose.keys import add_key
from streampose.listener import listen_to
from streampose.messages import Heartbeat
from streampose.publish import Publisher
from streampose.reception import CONNECT_S, QUEUE_LIMIT
from streampose.roster import Search, list_sources
from streampose.subscribe import Subscriber
from streampose.wire import decode, encode_heartbeat, encode_pose

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from ports import free_endpoint
from stream_messages import PUBLISHER, WAIT_S, Talk, make_frame, start_idler, start_publisher, wait_until

pytestmark = pytest.mark.usefixtures("patient_stream")
DEFAULTS = [
    inspect.signature(reader).parameters["connect_s"].default for reader in (Subscriber, streampose.AsyncSubscriber)
]


@pytest.fixture
def publisher():
    with Publisher("tcp://127.0.0.1:*", model="lite") as made:
        yield made


@pytest.fixture
def fake():
    """A bound XPUB socket that sends what it is told to, once somebody has subscribed."""
    context = zmq.Context()
    made = context.socket(zmq.XPUB)
    made.setsockopt(zmq.RCVTIMEO, WAIT_S * 1000)
    made.bind_to_random_port("tcp://127.0.0.1")

    def greet():
        while made.recv() != b"\x01status.":
            pass

    yield made, made.getsockopt_string(zmq.LAST_ENDPOINT), greet
    context.destroy(0)


def fail(endpoint):
    with Subscriber(endpoint, connect_s=CONNECT_S) as stream, pytest.raises(streampose.StreamError) as caught:
        stream.receive(WAIT_S)
    return caught.value


def test_nobody_is_left_in_silence_for_a_second():
    assert DEFAULTS == [CONNECT_S, CONNECT_S]
    assert CONNECT_S < 1


def test_a_slow_reader_is_fresh_and_counts_exactly(publisher):
    """Six frames in, one out: what it gets is the newest that came, and what it skipped is in `missed`."""
    with Subscriber(publisher.endpoint) as stream:
        publisher.publish(make_frame(0))
        assert stream.receive(WAIT_S).missed == 0
        for last in range(6, 49, 6):
            for index in range(last - 5, last + 1):
                publisher.publish(make_frame(index))
            wait_until(lambda: decode(stream._newest.get(b"pose.cam")).header.seq == last if stream._newest else False)  # noqa: B023
            frame = stream.receive(WAIT_S)
            assert (frame.frame_index, frame.missed) == (last, 5)
    assert stream.missed == {"cam": 40}


def test_a_late_joiner_has_it_all(publisher):
    for source in ("a", "b"):
        publisher.publish(make_frame(7, source))
        publisher.set_state(source, "stalled")
    wait_until(lambda: len(publisher._outlet._last) == 6)
    for _ in range(5):
        with Subscriber(publisher.endpoint) as stream:
            got = {stream.receive(WAIT_S).source for _ in range(2)}
            wait_until(lambda: stream.receive(0) is None and len(stream.states) == 2 and len(stream.hellos) == 2)
        assert got == {"a", "b"}
        assert stream.states == {"a": "stalled", "b": "stalled"}


def test_the_greeting_of_another_repeats_nothing(publisher):
    """The last pose goes to everybody again when somebody joins; those who have it do not see it twice."""
    with Subscriber(publisher.endpoint, "lossless") as first:
        wait_until(lambda: first.heard_s)
        publisher.publish(make_frame(0))
        assert first.receive(WAIT_S).frame_index == 0
        with Subscriber(publisher.endpoint) as second:
            assert second.receive(WAIT_S).frame_index == 0
        publisher.publish(make_frame(1))
        frame = first.receive(WAIT_S)
        assert (frame.frame_index, frame.missed) == (1, 0)


def test_a_dead_endpoint_is_an_error_that_says_so():
    error = fail("tcp://127.0.0.1:1")
    assert isinstance(error, NoPublisherError)
    assert str(error) == "nobody publishes at tcp://127.0.0.1:1: connection refused"
    assert error.exit_code == 3


def test_a_host_that_does_not_exist():
    error = fail("tcp://no-such-host.invalid:5555")
    assert isinstance(error, NoPublisherError)
    assert "no such host" in str(error)


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_something_else_at_the_endpoint(answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk():
            peers = []
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                peers.append(peer)
                if answer is not None:
                    peer.sendall(answer)
                    peer.close()

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        error = fail(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        server.shutdown(socket.SHUT_RDWR)
    assert isinstance(error, NoPublisherError)
    assert "something else answers there" in str(error)


def test_another_schema_is_an_error_not_silence(fake):
    sender, endpoint, greet = fake
    with Subscriber(endpoint) as stream:
        greet()
        topic, header, _ = encode_heartbeat(Heartbeat(schema=1, run_id="r", sent_ns=1))
        sender.send_multipart([topic, msgspec.msgpack.encode(msgspec.msgpack.decode(header) | {"schema": 2}), b""])
        with pytest.raises(SchemaError, match=f"{endpoint} speaks schema 2; this version of streampose reads schema 1"):
            stream.receive(WAIT_S)
        sender.send_multipart(encode_pose(make_frame(3), run_id="r", seq=0))
        wait_until(lambda: stream._newest)
        assert stream.receive(WAIT_S).frame_index == 3  # one that is readable after all


@pytest.mark.parametrize("mode", ["latest", "lossless"])
def test_poses_of_another_schema_are_an_error_too(fake, mode):
    """Also where its heartbeat is another one; but not where what was read before was fine."""
    sender, endpoint, greet = fake
    topic, header, blob = encode_pose(make_frame(0), run_id="r", seq=0)
    other = topic, msgspec.msgpack.encode(msgspec.msgpack.decode(header) | {"schema": 2}), blob
    with Subscriber(endpoint, mode) as stream:
        greet()
        sender.send_multipart(other)
        with pytest.raises(SchemaError, match=f"{endpoint} speaks schema 2"):
            stream.receive(WAIT_S)
        sender.send_multipart((topic, header, blob))
        wait_until(lambda: stream._newest or stream._queue)
        assert stream.receive(WAIT_S).frame_index == 0
        sender.send_multipart(other)
        wait_until(lambda: stream._newest or stream._queue)
        assert stream.receive(0) is None
        assert stream.malformed == 2


def test_silence_is_an_error_where_that_is_asked_for(fake):
    sender, endpoint, greet = fake
    with Subscriber(endpoint, silent_s=0.2) as stream:
        greet()
        sender.send_multipart(encode_pose(make_frame(0), run_id="r", seq=0))
        wait_until(lambda: stream._newest)
        assert stream.receive(WAIT_S).frame_index == 0
        with pytest.raises(NoPublisherError, match=r"silent for 0\.2 s"):
            stream.receive(WAIT_S)


def test_silence_counts_from_the_connection(fake):
    _, endpoint, greet = fake
    with Subscriber(endpoint, connect_s=None, silent_s=0.2) as stream:
        greet()
        with pytest.raises(NoPublisherError, match=r"silent for 0\.2 s"):
            stream.receive(WAIT_S)


@pytest.mark.parametrize("kind", [zmq.PUB, zmq.XPUB])
def test_a_socket_that_is_no_publisher_is_an_error_until_it_speaks(kind):
    with zmq.Context() as context, context.socket(kind) as other:
        other.linger = 0
        other.bind("tcp://127.0.0.1:*")
        endpoint = other.last_endpoint.decode()
        with Subscriber(endpoint, connect_s=60) as stream:
            wait_until(lambda: stream.connected)  # where that takes long, too long is another error
            stream._inlet._answer_until_s = time.monotonic() + CONNECT_S
            with pytest.raises(NoPublisherError) as caught:
                stream.receive(WAIT_S)
            assert str(caught.value) == (
                f"nobody publishes at {endpoint}: something that is no streampose publisher answers there"
            )
            assert stream.connected
            other.send_multipart(encode_pose(make_frame(3), run_id="r", seq=0))
            wait_until(lambda: stream._newest)
            assert stream.receive(WAIT_S).frame_index == 3
            assert stream.receive(0) is None  # and no error any more


def test_a_listener_says_what_it_is_connected_to(fake, caplog, monkeypatch):
    _, endpoint, greet = fake
    caplog.set_level("INFO")
    stop, streams = threading.Event(), []

    class Noted(Subscriber):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            streams.append(self)

    monkeypatch.setattr("streampose.listener.Subscriber", Noted)
    monkeypatch.setattr("streampose.listener._WAITING_S", 120)
    thread = threading.Thread(target=lambda: list(listen_to(endpoint, "latest", None, None, stop)))
    thread.start()
    greet()
    try:
        wait_until(lambda: streams and streams[0].connected)
        monkeypatch.setattr("streampose.listener._WAITING_S", 0)
        wait_until(lambda: "waiting for a publisher" in caplog.text)
    finally:
        stop.set()
        thread.join()
    assert f"at {endpoint}: something that is no streampose publisher answers there" in caplog.text


@contextlib.contextmanager
def listening(endpoint, source, stop, key=None):
    """The frames that a listener hands out, as they come."""
    frames = []
    thread = threading.Thread(
        target=lambda: frames.extend(listen_to(endpoint, "lossless", source, None, stop, key=key))
    )
    thread.start()
    try:
        yield frames
    finally:
        stop.set()
        thread.join(WAIT_S)
    assert not thread.is_alive()


def test_a_listener_to_a_source_that_is_not_there_says_once_which_are_and_waits(tmp_path, caplog, monkeypatch):
    """With keys, as it connects once more to ask; poses, states and hellos all make a source known."""
    monkeypatch.setattr("streampose.roster._PATIENCE_S", 0.1)
    key = add_key(tmp_path / "keys", "one", tmp_path / "one.key")
    stop = threading.Event()
    with Publisher("tcp://127.0.0.1:*", model="lite", keys=tmp_path / "keys") as publisher:
        publisher.set_state("lost", "offline")
        publisher.publish(make_frame(0, "cam10"))
        with listening(publisher.endpoint, "cam1", stop, tmp_path / "one.key") as frames:
            wait_until(lambda: "has no source" in caplog.text)
            publisher.publish(make_frame(0, "cam1"))
            wait_until(lambda: frames)
        assert caplog.text.count(f"{publisher.endpoint} has no source 'cam1', but cam10, lost; waiting for it") == 1
        assert caplog.text.count("has no source") == 1
        publisher.forget("lost")
        for source in ("cam1", "cam10"):
            publisher.forget(source)
        wait_until(lambda: list_sources(publisher.endpoint, key, threading.Event()) == [])


def test_a_listener_to_a_source_that_is_there_says_nothing(publisher, caplog, monkeypatch):
    """Also before its first frame, and where there is no publisher."""
    monkeypatch.setattr("streampose.roster._PATIENCE_S", 0)
    caplog.set_level("INFO")
    publisher.set_state("cam", "offline")
    for endpoint, says in ((publisher.endpoint, "cam: offline"), ("tcp://127.0.0.1:1", "waiting for a publisher")):
        with listening(endpoint, "cam", threading.Event()):
            wait_until(lambda: says in caplog.text)  # noqa: B023
    assert "has no source" not in caplog.text


def test_more_sources_than_fit_into_a_line_are_counted(publisher, caplog, monkeypatch):
    monkeypatch.setattr("streampose.roster._PATIENCE_S", 0)
    for number in range(30):
        publisher.set_state(f"cam{number:02d}", "online")
    search = Search(publisher.endpoint, "typo", None, threading.Event())
    wait_until(lambda: search.look(connected=True, found=False) or caplog.text)
    assert "but cam00, cam01" in caplog.text
    assert "cam19 and 10 more; waiting for it" in caplog.text


def test_a_timeout_gives_none(publisher):
    with Subscriber(publisher.endpoint) as stream:
        began_s = time.monotonic()
        assert stream.receive(0.05) is None
        assert time.monotonic() - began_s > 0.04
        assert stream.receive(0) is None


def test_it_may_wait_for_a_publisher_for_ever():
    endpoint = free_endpoint()
    with Subscriber(endpoint, connect_s=None) as stream:
        assert stream.receive(CONNECT_S + 0.6) is None
        assert not stream.connected
        with Publisher(endpoint, model="lite") as publisher, Talk(publisher):
            assert stream.receive(WAIT_S) is not None
            assert stream.connected


@pytest.mark.skipif(os.name != "posix", reason="kill as on POSIX")
def test_a_publisher_that_is_killed_and_started_again():
    process, endpoint = start_publisher(HERE, free_endpoint())
    with process, Subscriber(endpoint, "lossless") as stream:
        assert stream.receive(WAIT_S).source == "cam"
        process.kill()
        process.wait(WAIT_S)
        wait_until(lambda: not stream.connected)
        while stream.receive(0.1) is not None:
            pass
        again, _ = start_publisher(HERE, endpoint)
        with again:
            frame = stream.receive(WAIT_S)
            assert frame.missed == 0
            following = stream.receive(WAIT_S)
            assert following.frame_index == frame.frame_index + 1
            assert stream.reconnections == 1
            again.stdin.close()


def test_fifty_subscribers_get_everything(publisher):
    streams = [Subscriber(publisher.endpoint, "lossless") for _ in range(50)]
    try:
        wait_until(lambda: all(stream.heard_s for stream in streams), 3 * WAIT_S)
        for index in range(100):
            publisher.publish(make_frame(index, people=3))
        for stream in streams:
            assert [stream.receive(WAIT_S).frame_index for _ in range(100)] == list(range(100))
            assert stream.missed == {"cam": 0}
    finally:
        for stream in streams:
            stream.close()
    assert publisher.dropped == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory as Linux tells it")
def test_who_never_reads_costs_the_publisher_nothing(publisher):
    """30,000 frames of ten people past ten subscribers that stopped reading: none waits, and memory stays flat."""

    def memory_mb():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def send(count):
        """So many frames, as fast as the publisher sends them; it is waited for now and then."""
        for index in range(count):
            publisher.publish(make_frame(index, people=10))
            if index % 100 == 0:
                wait_until(lambda: not publisher._outlet._queue)

    send(2000)
    lazy = [start_idler(publisher.endpoint) for _ in range(10)]
    try:
        publisher.publish(make_frame(0))
        for process in lazy:
            assert process.stdout.readline() == b"here\n"
        send(15000)  # fills their queues and the kernel's
        before_mb = memory_mb()
        send(15000)
        assert memory_mb() - before_mb < 10
        assert publisher.dropped == 0
        with Subscriber(publisher.endpoint) as stream:  # and others are served as ever
            wait_until(lambda: stream.heard_s)
            publisher.publish(make_frame(77))
            wait_until(lambda: (frame := stream.receive(0.1)) is not None and frame.frame_index == 77)
    finally:
        for process in lazy:
            process.kill()
            process.communicate()


def test_a_lossless_reader_that_stalls_holds_up_nobody_and_is_bounded(publisher):
    with Subscriber(publisher.endpoint, "lossless") as stream:
        wait_until(lambda: stream.heard_s)
        for index in range(3 * QUEUE_LIMIT):
            publisher.publish(make_frame(index, people=0))
            if index % 500 == 0:
                wait_until(lambda: not publisher._outlet._queue)
        assert len(stream._queue) <= QUEUE_LIMIT
        got = [stream.receive(WAIT_S) for _ in range(QUEUE_LIMIT)]
        assert [frame.frame_index for frame in got[:100]] == list(range(100))


def test_many_sources_of_a_stranger_are_bounded(fake, monkeypatch):
    monkeypatch.setattr("streampose.ledger.SOURCES_LIMIT", 5)
    sender, endpoint, greet = fake
    with Subscriber(endpoint, "lossless") as stream:
        greet()
        for number in range(10):
            sender.send_multipart(encode_pose(make_frame(source=f"s{number}"), run_id="r", seq=0))
        sender.send_multipart(encode_pose(make_frame(5, source="s0"), run_id="r", seq=1))
        assert [stream.receive(WAIT_S).source for _ in range(6)] == ["s0", "s1", "s2", "s3", "s4", "s0"]
        assert len(stream.missed) == 5


def test_what_waits_is_bounded_in_bytes(fake, monkeypatch):
    monkeypatch.setattr("streampose.reception.BYTES_LIMIT", 20_000)
    sender, endpoint, greet = fake
    with Subscriber(endpoint) as stream:
        greet()
        for number in range(50):
            sender.send_multipart([b"pose.s%d" % number, b"x" * 1000, b""])
        sender.send_multipart(encode_heartbeat(Heartbeat(schema=1, run_id="r", sent_ns=1)))
        wait_until(lambda: stream._understood)  # the heartbeat, sent last
        assert len(stream._newest) == 19
        assert stream.receive(0.1) is None
        assert stream.malformed == 19
        assert stream._bytes == 0


def test_a_fault_of_ours_costs_a_message_not_the_stream(publisher, caplog):
    got = []

    def put(parts):
        got.append(parts)
        if len(got) < 3:
            raise ValueError("something unforeseen")

    with Inlet(publisher.endpoint, key=None, topics=[b"pose."], put=put), Talk(publisher):
        wait_until(lambda: len(got) > 3)
    assert caplog.text.count("could not be taken") == 1


def test_asyncio(publisher):
    async def read():
        async with streampose.AsyncSubscriber(publisher.endpoint, "lossless") as stream:
            while not stream.heard_s:
                assert await stream.receive(0.01) is None
            for index in range(50):
                publisher.publish(make_frame(index))
            got = []
            async for frame in stream:
                got.append(frame.frame_index)
                if len(got) == 50:
                    break
            assert await stream.receive(0.02) is None
            return got

    assert asyncio.run(read()) == list(range(50))


def test_asyncio_leaves_other_tasks_their_turn(publisher):
    """Frames that wait already are handed out one a turn of the loop, and a reader of them can be cancelled."""

    async def read():
        ticks = got = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        async def drain(stream):
            nonlocal got
            async for _ in stream:
                got += 1

        async with streampose.AsyncSubscriber(publisher.endpoint, "lossless") as stream:
            while not stream.heard_s:
                assert await stream.receive(0.01) is None
            for index in range(300):
                publisher.publish(make_frame(index))
            await asyncio.to_thread(wait_until, lambda: len([m for m in stream._queue if m[0] == b"pose.cam"]) == 300)
            ticker = asyncio.create_task(tick())
            for _ in range(100):
                await stream.receive(WAIT_S)
            assert ticks >= 99
            reader = asyncio.create_task(drain(stream))
            while got < 50:
                await asyncio.sleep(0)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            left = [(await stream.receive(WAIT_S)).frame_index for _ in range(200 - got)]
            ticker.cancel()
        assert got < 100
        assert left == list(range(100 + got, 300))

    asyncio.run(read())


def test_asyncio_reads_many_streams_in_one_loop(publisher):
    async def read():
        with Talk(publisher, "a", "b"):
            streams = [streampose.AsyncSubscriber(publisher.endpoint, source=source) for source in "ab"]
            frames = await asyncio.gather(*(stream.receive(WAIT_S) for stream in streams))
            await asyncio.gather(*(stream.close() for stream in streams))
        return [frame.source for frame in frames]

    assert asyncio.run(read()) == ["a", "b"]


def test_asyncio_has_the_same_errors():
    async def read():
        async with streampose.AsyncSubscriber("tcp://127.0.0.1:1", connect_s=CONNECT_S) as stream:
            with pytest.raises(NoPublisherError):
                await stream.receive(WAIT_S)

    asyncio.run(read())


def test_asyncio_loses_nothing_when_a_wait_is_cancelled(publisher):
    """Waits are given up at odd moments, before and after a frame has come for them."""

    async def read():
        got = []
        async with streampose.AsyncSubscriber(publisher.endpoint, "lossless") as stream:
            with Talk(publisher, hz=200):
                for turn in range(200):
                    waiting = asyncio.create_task(stream.receive(WAIT_S))
                    for _ in range(turn % 4):
                        await asyncio.sleep(0)
                    waiting.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        got.append(await waiting)
                    if turn % 2:
                        got.append(await stream.receive(WAIT_S))
            return [frame.frame_index for frame in got]

    numbers = asyncio.run(read())
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_asyncio_cleans_up_when_its_task_is_cancelled(publisher):
    async def read():
        started = asyncio.Event()

        async def wait_for_ever():
            async with streampose.AsyncSubscriber(publisher.endpoint) as stream:
                started.set()
                async for _ in stream:
                    pass

        task = asyncio.create_task(wait_for_ever())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(read())
    assert not [thread for thread in threading.enumerate() if thread.name == "subscribe"]


def test_asyncio_ends_a_waiting_reader(publisher):
    async def read():
        stream = streampose.AsyncSubscriber(publisher.endpoint)
        waiting = asyncio.create_task(stream.receive())
        await asyncio.sleep(0)
        await stream.close()
        return await asyncio.wait_for(waiting, WAIT_S)

    assert asyncio.run(read()) is None


@pytest.mark.parametrize(
    "endpoint", ["", "127.0.0.1:5555", "tcp://127.0.0.1", "tcp://u:p@host:1", "tcp://*:5", "ipc://x", "http://host:1"]
)
def test_a_wrong_endpoint_is_refused(endpoint):
    """By the subscriber, before it connects; what an endpoint is, is tested in test_endpoint.py."""
    with pytest.raises(UsageError, match="tcp://HOST:PORT"):
        Subscriber(endpoint)


def can_make_hosts():
    """Whether network namespaces can be made here."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-Urn", "true"], capture_output=True).returncode == 0


TWO_HOSTS = """
set -eu
ip link set lo up
mkdir -p /run/netns 2>/dev/null || true
ip link add left type veth peer name right
unshare -n sleep 300 & other=$!
for _ in $(seq 1000); do
    [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/$$/ns/net)" ] && break
    sleep 0.05
done
ip link set right netns $other
ip addr add 10.77.0.1/24 dev left; ip link set left up
nsenter -n -t $other ip addr add 10.77.0.2/24 dev right; nsenter -n -t $other ip link set right up
"$1" -c "$2" "$3" tcp://10.77.0.1:5555 < /dev/zero > /dev/null & publisher=$!
nsenter -n -t $other "$1" -c "$4"
kill $publisher $other
"""
READER = """
from streampose.errors import NoPublisherError
from streampose.subscribe import Subscriber
with Subscriber("tcp://10.77.0.1:5555", connect_s=60) as stream:
    frames = [stream.receive(60) for _ in range(20)]
    assert sum(frame.missed for frame in frames) == frames[-1].frame_index - frames[0].frame_index - 19
try:
    with Subscriber("tcp://10.77.0.9:5555") as stream:
        stream.receive(60)
except NoPublisherError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not can_make_hosts(), reason="network namespaces cannot be made here")
def test_two_hosts():
    """Publisher and reader in network namespaces of their own, an address each; and an address where nobody is."""
    done = subprocess.run(
        ["unshare", "-Urnm", "bash", "-c", TWO_HOSTS, "bash", sys.executable, PUBLISHER, str(HERE), READER],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nobody publishes at tcp://10.77.0.9:5555: ")
