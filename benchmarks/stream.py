"""What a message costs: encoding, decoding, and from publish to receive, beside JSON and pickle over the same socket.

    python benchmarks/stream.py [--messages 300] [--rate 60] [--out FILE]

First encode and decode times for 1, 10 and 50 people. Then the time from just before a message is encoded to its
arrival, undecoded, at 1, 10 and 50 plain sockets in two other processes (which share this machine's cores), over TCP on
this machine; all three ways through the publisher's own outlet: its queue, its thread, its XPUB socket. `client` is the
whole way: from `Publisher.publish` to the return of `Subscriber.receive` with a decoded and checked frame, at as many
subscribers, with two threads each. The three take turns, message by message, so that noise hits them alike; `client`
comes after them, since decoding everywhere would be in the way of whoever has the next turn. Prints tables and, with
--out, writes the figures as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import multiprocessing.process
import os
import pickle
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import zmq
from rich.console import Console
from rich.table import Table

from streampose.messages import Parts
from streampose.outlet import Outlet
from streampose.publish import Publisher
from streampose.subscribe import Subscriber
from streampose.types import Pose, PoseFrame
from streampose.wire import decode, encode_pose

PEOPLE = (1, 10, 50)
SUBSCRIBERS = (1, 10, 50)
PROCESSES = 2
CLIENT = "client"
WARM_UP = 20


def make_frame(people: int) -> PoseFrame:
    """People with joints that are no round numbers."""
    rng = np.random.default_rng(people)
    poses = tuple(
        Pose(
            track_id=person,
            box=rng.uniform(0, 1080, 4).astype(np.float32),
            score=float(rng.uniform()),
            keypoints=(rng.uniform(0, 1, (17, 3)) * [1920, 1080, 1]).astype(np.float32),
        )
        for person in range(people)
    )
    now_ns = time.monotonic_ns()
    return PoseFrame(
        source="cam", epoch=0, frame_index=1, pts_s=1.0, captured_ns=now_ns, published_ns=now_ns, width=1920,
        height=1080, skeleton="coco17", dropped=0, people=poses,
    )  # fmt: skip


def to_fields(frame: PoseFrame) -> dict[str, object]:
    """The frame as plain lists and numbers, for JSON."""
    fields = {name: getattr(frame, name) for name in ("source", "epoch", "frame_index", "pts_s", "captured_ns",
              "published_ns", "width", "height", "skeleton", "dropped")}  # fmt: skip
    people = [
        {"track_id": p.track_id, "score": p.score, "box": p.box.tolist(), "keypoints": p.keypoints.tolist()}
        for p in frame.people
    ]
    return fields | {"people": people}


def from_fields(fields: dict[str, object]) -> list[np.ndarray]:
    """JSON's people as arrays, which is what a reader computes with."""
    return [np.array(person["keypoints"], np.float32) for person in fields["people"]]  # type: ignore[attr-defined]


Encode = Callable[[PoseFrame], Parts]
Decode = Callable[[Sequence[bytes]], object]

WAYS: dict[str, tuple[Encode, Decode]] = {
    "streampose": (lambda frame: encode_pose(frame, run_id="r" * 32, seq=1, offsets=(-4, -3, -2, -1)), decode),
    "json": (
        lambda frame: (b"pose.cam", json.dumps(to_fields(frame)).encode(), b""),
        lambda parts: from_fields(json.loads(parts[1])),
    ),
    "pickle": (
        lambda frame: (b"pose.cam", pickle.dumps(frame, pickle.HIGHEST_PROTOCOL), b""),
        lambda parts: pickle.loads(parts[1]),
    ),
}


def median_us(job: Callable[[], object], seconds: float = 0.3) -> float:
    """Median time of a call, microseconds."""
    times, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter_ns()
        job()
        times.append(time.perf_counter_ns() - began)
    return statistics.median(times) / 1e3


def measure_codecs() -> list[dict[str, object]]:
    """Bytes and times of each way for each number of people."""
    rows = []
    for people in PEOPLE:
        frame = make_frame(people)
        for way, (encode, read) in WAYS.items():
            parts = encode(frame)
            row = {"people": people, "way": way, "bytes": sum(map(len, parts))}
            row["encode_us"] = median_us(lambda encode=encode, frame=frame: encode(frame))
            row["decode_us"] = median_us(lambda read=read, parts=parts: read(parts))
            rows.append(row)
    return rows


def subscribe(endpoint: str, clients: str, count: int, messages: int, answer: Connection) -> None:
    """A process with `count` sockets and as many subscribers; it answers with all latencies by way, in nanoseconds."""
    found: dict[str, list[int]] = {way: [] for way in (*WAYS, CLIENT)}
    context = zmq.Context()
    poller = zmq.Poller()
    left: dict[zmq.Socket[bytes], int] = {}
    for _ in range(count):
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.connect(endpoint)
        socket.subscribe(b"")
        poller.register(socket, zmq.POLLIN)
        left[socket] = messages * len(WAYS)
    streams = [Subscriber(clients, "lossless", connect_s=None) for _ in range(count)]
    threads = [threading.Thread(target=receive, args=(stream, messages, found[CLIENT])) for stream in streams]
    waiting: set[zmq.Socket[bytes] | None] = set(left)
    while left:
        for socket, _ in poller.poll(10):
            topic, _, blob = socket.recv_multipart()
            now_ns = time.monotonic_ns()
            waiting.discard(socket)
            if topic.decode() in WAYS:
                found[topic.decode()].append(now_ns - int.from_bytes(blob[-8:], "little"))
                left[socket] -= 1
                if not left[socket]:
                    poller.unregister(socket)
                    del left[socket]
        if not waiting and all(stream.heard_s for stream in streams):
            answer.send("ready")
            waiting = {None}  # once is enough
            for thread in threads:
                thread.start()
    for thread, stream in zip(threads, streams, strict=True):
        thread.join()
        stream.close()
    context.destroy(0)
    answer.send({way: latencies[WARM_UP * count :] for way, latencies in found.items()})


def receive(stream: Subscriber, messages: int, found: list[int]) -> None:
    """Take so many frames, and note how old they are."""
    for _ in range(messages):
        frame = stream.receive(60)
        assert frame is not None
        found.append(time.monotonic_ns() - frame.captured_ns)


def measure_latency(people: int, subscribers: int, messages: int, rate_hz: float) -> list[dict[str, object]]:
    """p50 and p99 of each way, from before encoding to the arrival of the message."""
    frame = make_frame(people)
    found: dict[str, list[int]] = {way: [] for way in (*WAYS, CLIENT)}
    with Outlet("tcp://127.0.0.1:*") as outlet, Publisher("tcp://127.0.0.1:*", model="lite") as publisher:
        readers = start_readers(outlet.endpoint, publisher.endpoint, subscribers, messages)
        due = time.monotonic()
        for way in [*WAYS] * messages + [CLIENT] * messages:
            due += 1 / rate_hz
            time.sleep(max(0.0, due - time.monotonic()))
            stamp = time.monotonic_ns()
            if way == CLIENT:
                publisher.publish(dataclasses.replace(frame, captured_ns=stamp))
            else:
                _, header, blob = WAYS[way][0](frame)
                outlet.send((way.encode(), header, blob + stamp.to_bytes(8, "little")))
        for process, ours in readers:
            for way, latencies in ours.recv().items():
                found[way] += latencies
            process.join()
    rows = []
    for way, latencies in found.items():
        p50, p99 = np.percentile(latencies, [50, 99]) / 1e6
        rows.append({"people": people, "subscribers": subscribers, "way": way, "p50_ms": p50, "p99_ms": p99})
    return rows


def start_readers(
    endpoint: str, clients: str, subscribers: int, messages: int
) -> list[tuple[multiprocessing.process.BaseProcess, Connection]]:
    """Processes whose sockets and subscribers, so many in all, are connected."""
    spawn = multiprocessing.get_context("spawn")
    readers = []
    for share in (subscribers // PROCESSES + (i < subscribers % PROCESSES) for i in range(PROCESSES)):
        if share:
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=subscribe, args=(endpoint, clients, share, messages, theirs))
            process.start()
            readers.append((process, ours))
    for _, ours in readers:
        ours.recv()
    return readers


def show(title: str, rows: list[dict[str, object]]) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "way" else "right")
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=300)
    parser.add_argument("--rate", type=float, default=60, help="messages a second, of all ways together")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    codecs = measure_codecs()
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores at the begin")
    show("Encode and decode, median", codecs)
    latencies = []
    for people in PEOPLE:
        for subscribers in SUBSCRIBERS:
            latencies += measure_latency(people, subscribers, options.messages, options.rate)
    show("From before encoding to arrival, all subscribers", latencies)
    print(f"load average {os.getloadavg()[0]:.1f} at the end")
    if options.out is not None:
        machine = {"python": platform.python_version(), "zeromq": zmq.zmq_version(), "machine": platform.machine()}
        options.out.write_text(json.dumps({"machine": machine, "codecs": codecs, "latencies": latencies}, indent=1))


if __name__ == "__main__":
    main()
