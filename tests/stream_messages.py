"""Frames, waits and publishers in processes of their own, for the tests of the stream."""

import subprocess
import sys
import threading
import time

import numpy as np

from streampose.types import Pose, PoseFrame

WAIT_S = 60
"""A bound against hanging, of every wait here: no claim about speed."""


def make_frame(index=0, source="cam", people=1, **fields):
    """Frame `index`; person i has track id i + 1 and stands at (10 i, index)."""
    poses = tuple(
        Pose(
            track_id=person + 1,
            box=np.array([10 * person, index, 10 * person + 8, index + 20], np.float32),
            score=0.5,
            keypoints=np.full((17, 3), [10 * person, index % 1000, 0.75], np.float32),
        )
        for person in range(people)
    )
    known = {
        "source": source, "epoch": 0, "frame_index": index, "pts_s": index / 30, "captured_ns": time.monotonic_ns(),
        "published_ns": time.monotonic_ns(), "width": 640, "height": 480, "skeleton": "coco17", "dropped": 0,
        "people": poses,
    }  # fmt: skip
    return PoseFrame(**(known | fields))


def wait_until(condition, seconds=WAIT_S):
    """Wait for a condition, within bounds."""
    until_s = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < until_s, "waited in vain"
        pause.wait(0.002)


class Talk:
    """Publishes frames of some sources at that rate at most, from a thread, while it is entered."""

    def __init__(self, publisher, *sources, hz=200.0, people=1):
        self.sent = 0
        self._publisher = publisher
        self._sources = sources or ("cam",)
        self._pause_s = 1 / hz
        self._people = people
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._done.wait(self._pause_s):  # what was slept through is not made up for, or queues would overflow
            for source in self._sources:
                self._publisher.publish(make_frame(self.sent, source, self._people))
            self.sent += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()


NEVER_READS = """
import sys, zmq
stream = zmq.Context().socket(zmq.SUB)
stream.setsockopt(zmq.RCVHWM, 1)
stream.connect(sys.argv[1])
stream.subscribe(b"")
stream.recv_multipart()
print("here", flush=True)
sys.stdin.read()
"""


def start_idler(endpoint):
    """A process that subscribes to everything and reads one message, after which it prints a line, and no more."""
    return subprocess.Popen([sys.executable, "-c", NEVER_READS, endpoint], stdin=-1, stdout=-1)


PUBLISHER = """
import sys
sys.path[:0] = [sys.argv[1]]
from stream_messages import Talk
from streampose.publish import Publisher
with Publisher(sys.argv[2], model="lite", insecure=True) as publisher, Talk(publisher, *sys.argv[3:], hz=100):
    publisher.set_state("cam", "online")
    print(publisher.endpoint, flush=True)
    sys.stdin.read()
"""


def start_publisher(folder, endpoint="tcp://127.0.0.1:*", *sources, wrapper=()):
    """A process that publishes until its stdin is closed; returns it and its endpoint."""
    command = [*wrapper, sys.executable, "-c", PUBLISHER, str(folder), endpoint, *sources]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()
