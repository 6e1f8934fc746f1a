"""Damaged messages through everything that receives: nothing stops, and what is whole still arrives."""

import asyncio
import random
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

import streampose
from streampose.messages import SCHEMA, Heartbeat
from streampose.outlet import Outlet
from streampose.record import Recorder, open_sink
from streampose.recording import Entry, read_recording
from streampose.relay import Relay, Upstream
from streampose.smoothing import Smoothing
from streampose.subscribe import Subscriber
from streampose.view.hub import Hub
from streampose.view.session import Session
from streampose.wire import encode_heartbeat, encode_pose

sys.path.insert(0, str(Path(__file__).parent))
from stream_messages import WAIT_S, make_frame, wait_until
from test_wire import make_messages, mutate

COUNT = 3000

pytestmark = pytest.mark.usefixtures("patient_stream")


@pytest.fixture
def fake():
    """A bound XPUB socket with no limit to what waits in it, and its endpoint."""
    context = zmq.Context()
    made = context.socket(zmq.XPUB)
    made.setsockopt(zmq.RCVTIMEO, WAIT_S * 1000)
    made.setsockopt(zmq.SNDHWM, 0)
    made.setsockopt(zmq.XPUB_VERBOSE, 1)
    made.bind_to_random_port("tcp://127.0.0.1")
    yield made, made.getsockopt_string(zmq.LAST_ENDPOINT)
    context.destroy(0)


def send_damage(sender, readers, pace):
    """Damaged messages to so many readers, a whole one at either end; calls `pace` now and then."""
    rng = random.Random(11)
    for _ in range(readers):
        while sender.recv() != b"\x01status.":
            pass
    sender.send_multipart(encode_heartbeat(Heartbeat(schema=SCHEMA, run_id="r", sent_ns=1)))
    for number in range(COUNT):
        sender.send_multipart(mutate(rng.choice(make_messages()), rng))
        if number % 500 == 499:
            pace()
    sender.send_multipart(encode_pose(make_frame(77, "whole"), run_id="r", seq=0))


def test_everything_that_receives_goes_on(fake, tmp_path, caplog):
    sender, endpoint = fake
    stop = threading.Event()
    with ExitStack() as stack:
        outlet = stack.enter_context(Outlet("tcp://127.0.0.1:*"))
        named = stack.enter_context(Relay([Upstream(endpoint, "left")], outlet))
        relayed = stack.enter_context(Subscriber(outlet.endpoint, "lossless"))
        wait_until(lambda: relayed.heard_s)
        smooth = stack.enter_context(Subscriber(endpoint, "lossless", smooth=Smoothing(fill_s=1.0)))
        hub = stack.enter_context(Hub(endpoint))
        sinks = [open_sink(tmp_path / name) for name in ("a.parquet", "a.jsonl")]
        recorders = [stack.enter_context(Recorder(endpoint, sink)) for sink in sinks]
        session = Session(hub)
        send_damage(sender, 5, session.news)
        for stream, source in ((smooth, "whole"), (relayed, "left.whole")):
            frame = next(frame for frame in iter(lambda: stream.receive(WAIT_S), None) if frame.source == source)  # noqa: B023
            assert frame.frame_index == 77
        wait_until(lambda: "whole" in hub.cameras)
        assert b'"whole"' in session.news()
        for recorder in recorders:
            wait_until(lambda: "whole" in recorder.ledger.received)  # noqa: B023
        counts = [smooth.malformed, hub.malformed, named.malformed, *(recorder.malformed for recorder in recorders)]
        stop.set()
    assert min(counts) > COUNT / 4
    assert relayed.malformed == 0  # a relay passes on nothing that is damaged
    assert "could not be taken" not in caplog.text
    for name, recorder in zip(("a.parquet", "a.jsonl"), recorders, strict=True):
        found = [item for item in read_recording(tmp_path / name) if isinstance(item, Entry)]
        assert (len(found), found[-1].frame.source) == (recorder.frames, "whole")


def test_asyncio_goes_on(fake):
    sender, endpoint = fake

    async def read():
        async with streampose.AsyncSubscriber(endpoint, "lossless") as stream:
            sending = asyncio.create_task(asyncio.to_thread(send_damage, sender, 1, lambda: None))
            async for frame in stream:
                if frame.source == "whole":
                    break
            await sending
        return stream.malformed

    assert asyncio.run(asyncio.wait_for(read(), 3 * WAIT_S)) > COUNT / 4
