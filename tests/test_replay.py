"""Replay of files that hold what no publisher sends: messages that subscribers can read, or an error."""

import json
import random
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from streampose.errors import UsageError
from streampose.jsonl import PeopleWriter
from streampose.outlet import Outlet
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
    wait_until(lambda: len(sent) == 2)
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
