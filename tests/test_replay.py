"""Replay: files that hold what no publisher sends, and reading ahead of the time at which frames are due."""

import itertools
import json
import random
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from streampose.errors import UsageError
from streampose.inlet import Inlet
from streampose.jsonl import PeopleWriter
from streampose.messages import Heartbeat, PoseMessage, Status
from streampose.outlet import Outlet
from streampose.readahead import LIMIT, ReadAhead
from streampose.recording import Entry
from streampose.replay import replay
from streampose.wire import decode

sys.path.insert(0, str(Path(__file__).parent))
from stream_messages import WAIT_S, make_frame, wait_until

LEAST, MOST = -(2**63), 2**63 - 1
ODD = [LEAST, -1, 0, 1, 2**31, 2**53 + 1, MOST, 2**63, 1e30, -1e30, "", "\x1b[2J", "x" * 200, "coco17", None, [], True]


@pytest.fixture
def outlet():
    with Outlet("tcp://127.0.0.1:*") as made:
        yield made


def make_lines(tmp_path, count=2, people=1):
    """`count` frames as `run --save` writes them, received at once."""
    with PeopleWriter(tmp_path / "good.jsonl") as writer:
        for index in range(count):
            writer.write(make_frame(index, people=people))
    return [json.loads(line) | {"received_ns": 0} for line in (tmp_path / "good.jsonl").read_text().splitlines()]


def write(tmp_path, lines):
    path = tmp_path / "people.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_times_out_of_range_are_the_nearest_in_range(tmp_path, outlet, monkeypatch):
    sent = []
    monkeypatch.setattr(outlet, "send", sent.append)
    lines = make_lines(tmp_path)
    lines[0] |= {"captured_ns": LEAST, "published_ns": MOST}
    lines[1] |= {"captured_ns": MOST, "published_ns": LEAST}
    assert replay(write(tmp_path, lines), outlet, threading.Event()) == 2
    assert [decode(parts).header.captured_ns for parts in sent if parts[0] == b"pose.cam"] == [LEAST, MOST]


@pytest.mark.parametrize("field", ["missed", "frame_index", "epoch"])
def test_numbers_that_run_over_are_an_error_that_names_the_frame(tmp_path, outlet, field):
    lines = make_lines(tmp_path, 4)
    for line in lines[1:]:
        line[field] = MOST
    with pytest.raises(UsageError, match=r"frame \d+ of 'cam' cannot be replayed"):
        replay(write(tmp_path, lines), outlet, threading.Event(), loop=True)


def test_a_frame_of_the_far_future_is_waited_for(tmp_path, outlet, monkeypatch):
    sent, stop, counts = [], threading.Event(), []
    monkeypatch.setattr(outlet, "send", sent.append)
    lines = make_lines(tmp_path)
    lines[0]["received_ns"], lines[1]["received_ns"] = LEAST, MOST
    path = write(tmp_path, lines)
    thread = threading.Thread(target=lambda: counts.append(replay(path, outlet, stop)))
    thread.start()
    wait_until(lambda: sent and sent[-1][0] == b"pose.cam")
    stop.set()
    thread.join(WAIT_S)
    assert counts == [1]


def test_whatever_a_file_holds_subscribers_can_read_what_is_sent(tmp_path, outlet, monkeypatch):
    sent, rng, outcomes = [], random.Random(5), Counter()
    monkeypatch.setattr(outlet, "send", sent.append)
    good = make_lines(tmp_path, 3, people=2)
    for _ in range(400):
        lines = json.loads(json.dumps(good))
        for _ in range(rng.randint(1, 2)):
            place = rng.choice(lines)
            while rng.random() < 0.6 and any(isinstance(value, list | dict) and value for value in items(place)):
                place = rng.choice([value for value in items(place) if isinstance(value, list | dict) and value])
            key = rng.choice([*place] if isinstance(place, dict) else range(len(place)))
            if isinstance(place, list) and rng.random() < 0.3:
                del place[key]
            elif key != "received_ns":
                place[key] = rng.choice(ODD)
        try:
            replay(write(tmp_path, lines), outlet, threading.Event())
            outcomes["played"] += 1
        except UsageError:
            outcomes["refused"] += 1
        for parts in sent:
            decode(parts)
        sent.clear()
    assert min(outcomes["played"], outcomes["refused"]) > 50


def items(place):
    return place.values() if isinstance(place, dict) else place


def test_what_is_read_ahead_comes_in_order_and_then_its_error():
    def items():
        yield from range(5)
        raise UsageError("damaged")

    got = []
    with (
        pytest.raises(UsageError, match="damaged"),
        ReadAhead(items(), threading.Event(), lambda n: n % 2 == 0) as read,
    ):
        got.extend(read)
    assert got == [0, 2, 4]
    with ReadAhead(iter(range(200)), threading.Event(), bool, limit=3) as read:
        assert list(read) == list(range(1, 200))


def test_no_more_is_read_ahead_than_the_limit():
    taken = itertools.count()
    made = (next(taken) for _ in itertools.count())
    with ReadAhead(made, threading.Event(), lambda _: True, limit=5) as read:
        wait_until(lambda: len(read._waiting) == 5)
        assert [next(read) for _ in range(3)] == [0, 1, 2]
        wait_until(lambda: len(read._waiting) == 5)
        thread = read._thread
    assert not thread.is_alive()
    assert next(taken) <= 3 + 5 + 2, "those taken, those that wait, and one in the thread's hand"


def test_reading_ahead_ends_with_the_stop_and_with_its_block_whatever_is_left_to_read():
    stop, got = threading.Event(), []
    with ReadAhead(itertools.count(), stop, lambda _: False) as read:
        waiter = threading.Thread(target=lambda: got.extend(read))
        waiter.start()
        stop.set()
        waiter.join(WAIT_S)
        assert not waiter.is_alive()
    assert not read._thread.is_alive()
    assert got == []


def test_the_next_frames_are_read_while_one_is_waited_for(outlet, monkeypatch, tmp_path):
    """The second frame is due in an hour; what follows it is decoded by then, and no more than fits."""
    stop, taken = threading.Event(), []

    def frames(_):
        for index in range(10 * LIMIT):
            taken.append(index)
            yield Entry(received_ns=index * 3600 * 10**9, run_id="r", seq=index, frame=make_frame(index))

    monkeypatch.setattr("streampose.replay.read_recording", frames)
    counts = []
    thread = threading.Thread(target=lambda: counts.append(replay(tmp_path / "any", outlet, stop)))
    thread.start()
    try:
        wait_until(lambda: len(taken) > LIMIT and b"pose.cam" in outlet._last)
    finally:
        stop.set()
        thread.join(WAIT_S)
    assert counts == [1]
    assert len(taken) <= 1 + 1 + LIMIT + 1, "sent, waited for, read ahead, and in the thread's hand"


def test_messages_are_checked_by_the_thread_that_reads_ahead(tmp_path, outlet, monkeypatch):
    sent, checked = [], []

    def check(parts):
        checked.append((threading.current_thread().name, parts[0]))
        return decode(parts)

    monkeypatch.setattr(outlet, "send", lambda parts: sent.append((threading.current_thread(), parts[0])))
    monkeypatch.setattr("streampose.replay.decode", check)
    assert replay(write(tmp_path, make_lines(tmp_path, 3)), outlet, threading.Event()) == 3
    before_the_end = (b"hello.cam", b"status.cam", *3 * (b"pose.cam",))
    assert sent == [(threading.current_thread(), topic) for topic in (*before_the_end, b"status.cam")]
    assert checked[:5] == [("read ahead", topic) for topic in before_the_end]


def test_what_was_read_ahead_and_never_sent_is_not_told_to_end(outlet, monkeypatch, tmp_path):
    stop, sent, read = threading.Event(), [], threading.Event()

    def frames(_):
        for index, source in enumerate(("now", "never")):
            yield Entry(received_ns=index * 3600 * 10**9, run_id="r", seq=0, frame=make_frame(0, source))
        read.set()

    monkeypatch.setattr("streampose.replay.read_recording", frames)
    monkeypatch.setattr(outlet, "send", sent.append)
    thread = threading.Thread(target=replay, args=(tmp_path / "any", outlet, stop))
    thread.start()
    try:
        wait_until(lambda: len(sent) == 3 and read.is_set())
    finally:
        stop.set()
        thread.join(WAIT_S)
    assert [parts[0] for parts in sent] == [b"hello.now", b"status.now", b"pose.now", b"status.now"]


def test_times_count_from_the_first_frame_however_long_it_took_to_open_the_file(outlet, monkeypatch, tmp_path):
    clock, waits = [0.0], []

    def frames(_):
        clock[0] += 100
        for index in range(3):
            yield Entry(received_ns=index * 50 * 10**9, run_id="r", seq=index, frame=make_frame(index))

    class Stop(threading.Event):
        def wait(self, timeout):
            waits.append(timeout)
            clock[0] += timeout
            return False

    monkeypatch.setattr("streampose.replay.read_recording", frames)
    monkeypatch.setattr("streampose.replay.time", SimpleNamespace(monotonic=lambda: clock[0], monotonic_ns=lambda: 1))
    assert replay(tmp_path / "any", outlet, Stop()) == 3
    assert waits == [50, 50]


@pytest.mark.parametrize(
    ("source", "said"), [(None, "has no frames"), ("typo", "has no frames of a source 'typo', but of a, b")]
)
def test_a_recording_without_the_frames_asked_for_says_which_there_are(tmp_path, outlet, source, said):
    frames = [make_frame(source=name) for name in ("b", "a")] if source else []
    with PeopleWriter(tmp_path / "people.jsonl") as writer:
        for frame in frames:
            writer.write(frame)
    if not frames:
        (tmp_path / "people.jsonl").write_text("{")
    with pytest.raises(UsageError, match=said):
        replay(tmp_path / "people.jsonl", outlet, threading.Event(), source=source)


@pytest.mark.parametrize("loop", [False, True])
def test_sources_without_recorded_states_are_online_from_their_first_pose_to_the_end(tmp_path, outlet, loop):
    """people.jsonl has poses only; between the rounds of a loop nothing ends."""
    with PeopleWriter(tmp_path / "people.jsonl") as writer:
        for index in range(4):
            writer.write(make_frame(index, "ab"[index % 2], published_ns=index * 1_000_000))
    stop, heard, got = threading.Event(), threading.Event(), []

    def put(parts):
        message = decode(parts)
        if isinstance(message, Heartbeat):
            heard.set()
        elif isinstance(message, Status):
            got.append((message.source, message.state))
        elif isinstance(message, PoseMessage):
            got.append(parts[0].decode())

    with Inlet(outlet.endpoint, key=None, topics=[b""], put=put):
        assert heard.wait(WAIT_S)  # subscribed
        player = threading.Thread(target=replay, args=(tmp_path / "people.jsonl", outlet, stop), kwargs={"loop": loop})
        player.start()
        if loop:
            wait_until(lambda: got.count("pose.b") >= 6)
            stop.set()
        wait_until(lambda: {("a", "ended"), ("b", "ended")} <= set(got))
        player.join(WAIT_S)
    assert got[:4] == [("a", "online"), "pose.a", ("b", "online"), "pose.b"]
    states = [item for item in got if isinstance(item, tuple)]
    assert states == [("a", "online"), ("b", "online"), ("a", "ended"), ("b", "ended")]
    assert got[-2:] == states[2:]


@pytest.mark.parametrize("name", ["session.jsonl", "session.parquet"])
def test_an_empty_file_is_said_to_be_one(tmp_path, outlet, name):
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=f"{name} is empty: no frame was ever written to it"):
        replay(tmp_path / name, outlet, threading.Event())
