"""What a subscriber waits for: hello, an error, a fresh frame; and how well a replay keeps its time.

    python benchmarks/subscriber.py [--rounds 20] [--replays-only]

Joins: from making a `Subscriber` until it has hello, state and last pose of two sources. Errors: from making one until
`receive` raises. Ages: how old (since `published_ns`) frames are that a reader takes five times a second out of 30.
Replay (extra [record]): how much later than the most prompt one frames are published, of 3 times 2,500 frames at 8
times their pace, which is 240 frames a second: read ahead and, to compare, each when it is due. Before all that, what
`Publisher.publish` costs its caller, alone and beside ten subscribers that never read, and the memory that these take
once their queues are full. On this machine, over TCP.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import zmq
from extras import needs
from rich.console import Console
from rich.table import Table
from stream import make_frame

from streampose.errors import StreamError
from streampose.keys import SubscriberKey, add_key, read_pair
from streampose.messages import Heartbeat, Parts
from streampose.outlet import Outlet
from streampose.publish import Publisher
from streampose.recording import Entry
from streampose.replay import replay
from streampose.subscribe import Subscriber
from streampose.wire import encode_heartbeat

with needs("record"):
    from streampose.parquet import ParquetWriter

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from stream_messages import start_idler

READ_HZ = 5.0
JOIN_PAUSE_S = 0.1
CROWD = 50
FRAMES_HZ = 30.0
REPLAYED = 2500
SPEED = 8.0
TURNS = 3


@contextmanager
def talking(publisher: Publisher, *sources: str) -> Iterator[None]:
    """Publishes 30 frames a second of ten people a source."""
    frame, done = make_frame(10), threading.Event()

    def talk() -> None:
        index, began_s = 0, time.monotonic()
        while not done.wait(max(0.0, began_s + index / FRAMES_HZ - time.monotonic())):
            for source in sources:
                now_ns = time.monotonic_ns()
                publisher.publish(
                    dataclasses.replace(
                        frame, source=source, frame_index=index, captured_ns=now_ns, published_ns=now_ns
                    )
                )
            index += 1

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def join_ms(endpoint: str) -> float:
    """Time until a new subscriber has it all of two sources."""
    began_s = time.monotonic()
    with Subscriber(endpoint) as stream:
        seen = set()
        while len(seen) < 2 or len(stream.hellos) < 2 or len(stream.states) < 2:
            frame = stream.receive(0.001)
            seen |= {frame.source} if frame is not None else set()
        return 1e3 * (time.monotonic() - began_s)


def joins_ms(endpoint: str, rounds: int) -> dict[str, list[float]]:
    """Times of subscribers that come one by one, and of fifty that come at once: answers are paced where many come."""
    alone = []
    for _ in range(rounds):
        time.sleep(JOIN_PAUSE_S)
        alone.append(join_ms(endpoint))
    with ThreadPoolExecutor(CROWD) as crowd:
        together = list(crowd.map(join_ms, [endpoint] * CROWD))
    return {"hello, state and pose of two sources": alone, f"the same, {CROWD} subscribers at once": together}


def stale_ms(endpoint: str, rounds: int) -> list[float]:
    """Ages of what a slow reader gets."""
    ages = []
    with Subscriber(endpoint, source="a") as stream:
        stream.receive(10)
        for _ in range(rounds):
            time.sleep(1 / READ_HZ)
            frame = stream.receive(10)
            assert frame is not None
            ages.append((time.monotonic_ns() - frame.published_ns) / 1e6)
    return ages


def error_ms(endpoint: str, key: SubscriberKey | None, expected: str) -> float:
    """Time until a subscriber knows what is wrong."""
    began_s = time.monotonic()
    with Subscriber(endpoint, key=key) as stream:
        try:
            stream.receive(30)
        except StreamError as error:
            took_s = time.monotonic() - began_s
            if type(error).__name__ == expected:
                return 1e3 * took_s
            raise
    raise AssertionError(f"no {expected}")


@contextmanager
def another_schema() -> Iterator[str]:
    """A publisher of another version, which answers each subscription with a heartbeat of its own."""
    context = zmq.Context()
    sender = context.socket(zmq.XPUB)
    sender.setsockopt(zmq.XPUB_VERBOSE, 1)
    sender.bind_to_random_port("tcp://127.0.0.1")
    parts = encode_heartbeat(Heartbeat(schema=2, run_id="r", sent_ns=1))
    done = threading.Event()

    def answer() -> None:
        while not done.is_set():
            if sender.poll(50) and sender.recv() == b"\x01heartbeat":
                sender.send_multipart(parts)

    thread = threading.Thread(target=answer)
    thread.start()
    yield sender.getsockopt_string(zmq.LAST_ENDPOINT)
    done.set()
    thread.join()
    context.destroy(0)


def measure_errors(rounds: int) -> dict[str, list[float]]:
    """Times until each error."""
    with (
        tempfile.TemporaryDirectory() as folder,
        another_schema() as newer,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        keys = Path(folder) / "keys"
        key = add_key(keys, "known", Path(folder) / "known.key")
        stranger = add_key(Path(folder) / "other", "stranger", Path(folder) / "stranger.key")
        refused = dataclasses.replace(stranger, publisher=read_pair(keys).public)
        with (
            Publisher("tcp://127.0.0.1:*", model="lite", keys=keys) as secured,
            Publisher("tcp://127.0.0.1:*", model="lite") as plain,
        ):
            elsewhere = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
            cases: dict[str, tuple[str, SubscriberKey | None, str]] = {
                "error: key not on the allow list": (secured.endpoint, refused, "KeyRefusedError"),
                "error: key of another publisher": (secured.endpoint, stranger, "KeyRefusedError"),
                "error: no key, and one is needed": (secured.endpoint, None, "EncryptionError"),
                "error: a key, and no encryption": (plain.endpoint, key, "EncryptionError"),
                "error: nobody at the endpoint": ("tcp://127.0.0.1:1", None, "NoPublisherError"),
                "error: no ZeroMQ at the endpoint": (elsewhere, None, "NoPublisherError"),
                "error: another schema": (newer, None, "SchemaError"),
            }
            return {name: [error_ms(*case) for _ in range(rounds)] for name, case in cases.items()}


def measure_replay(people: int, *, inline: bool = False) -> list[float]:
    """How late frames of a recording are published, milliseconds; `inline`: each read when it is due, not ahead."""
    frame = make_frame(people)
    rng = np.random.default_rng(0)
    due_ns = np.cumsum(rng.integers(20_000_000, 46_000_000, REPLAYED)) + 10**18
    with tempfile.TemporaryDirectory() as folder, Outlet("tcp://127.0.0.1:*") as outlet:
        path = Path(folder) / "session.parquet"
        with ParquetWriter(path) as writer:
            for index, at_ns in enumerate(due_ns.tolist()):
                writer.write(Entry(at_ns, "r", index, dataclasses.replace(frame, frame_index=index)))
        sent_ns: list[int] = []
        send = outlet.send

        def note(parts: Parts) -> None:
            if parts[0].startswith(b"pose."):
                sent_ns.append(time.monotonic_ns())
            send(parts)

        outlet.send = note  # type: ignore[method-assign]
        with patch("streampose.replay.ReadAhead", lambda items, *_: nullcontext(items)) if inline else nullcontext():
            replay(path, outlet, threading.Event(), speed=SPEED)
    sent = np.array(sent_ns, np.float64)
    late = (sent - sent[0] - (due_ns - due_ns[0]) / SPEED) / 1e6
    return [float(value) for value in late - late.min()]


def measure_replays() -> dict[str, list[float]]:
    """How late frames are published, read ahead and read when they are due, which take turns."""
    found: dict[str, list[float]] = {}
    for _ in range(TURNS):
        for people in (10, 50):
            for way, inline in (("read ahead", False), ("read when due", True)):
                found.setdefault(f"replay, {people} people, {way}", []).extend(measure_replay(people, inline=inline))
    return found


def publish_us(publisher: Publisher, count: int) -> list[float]:
    """What `publish` costs whoever calls it, at 1,000 frames a second of ten people."""
    frame, times = make_frame(10), []
    due = time.monotonic()
    for index in range(count):
        due += 0.001
        time.sleep(max(0.0, due - time.monotonic()))
        began_ns = time.perf_counter_ns()
        publisher.publish(dataclasses.replace(frame, frame_index=index))
        times.append((time.perf_counter_ns() - began_ns) / 1e3)
    return times


def measure_idlers() -> None:
    """Print what `publish` costs, and how much memory it takes, before and while ten subscribers do not read."""
    with Publisher("tcp://127.0.0.1:*", model="lite") as publisher:
        publish_us(publisher, 1000)
        before = publish_us(publisher, 5000)
        idlers = [start_idler(publisher.endpoint) for _ in range(10)]
        for idler in idlers:
            assert idler.stdout is not None
            idler.stdout.readline()
        publish_us(publisher, 15000)  # fills their queues, and the kernel's
        begin_mb = memory_mb()
        beside = publish_us(publisher, 5000)
        publish_us(publisher, 15000)
        grown_mb = memory_mb() - begin_mb
        for idler in idlers:
            idler.kill()
            idler.communicate()
    for name, times in (("alone", before), ("beside ten that never read", beside)):
        p50, p99 = np.percentile(times, [50, 99])
        print(f"publish, {name}: {p50:.0f} us, p99 {p99:.0f}")
    print(f"memory after 20,000 frames more than when their queues were full: {grown_mb:+.1f} MB")


def memory_mb() -> float:
    """What this process has in memory, megabytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--replays-only", action="store_true", help="leave out all else")
    options = parser.parse_args()
    rounds = options.rounds
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores at the begin")
    if options.replays_only:
        show(measure_replays())
        print(f"load average {os.getloadavg()[0]:.1f} at the end")
        return
    measure_idlers()
    with Publisher("tcp://127.0.0.1:*", model="lite") as publisher, talking(publisher, "a", "b"):
        for source in ("a", "b"):
            publisher.set_state(source, "online")
        times = joins_ms(publisher.endpoint, 5 * rounds)
        times["age of a frame at 5 reads of 30 frames a second"] = stale_ms(publisher.endpoint, 5 * rounds)
    times |= measure_errors(rounds)
    show(times | measure_replays())
    print(f"load average {os.getloadavg()[0]:.1f} at the end")


def show(times: dict[str, list[float]]) -> None:
    table = Table(title="Milliseconds", title_justify="left", box=None, pad_edge=False)
    for name in ("", "median", "p95", "p99", "worst", "of"):
        table.add_column(name, justify="right" if name else "left")
    for name, found in times.items():
        figures = np.percentile(found, [50, 95, 99, 100])
        table.add_row(name, *(f"{figure:.1f}" for figure in figures), str(len(found)))
    Console().print(table)


if __name__ == "__main__":
    main()
