"""Recordings: nothing that was received is lost, and what is played again is what was recorded."""

import csv
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zmq

pa = pytest.importorskip("pyarrow", reason="needs the extra [record]")
import pyarrow.parquet as pq

from streampose.errors import KeyRefusedError, OutputError, StreamError, UsageError
from streampose.export import export, form_of
from streampose.jsonl import PeopleWriter
from streampose.keys import add_key, read_key
from streampose.messages import Hello
from streampose.outlet import Outlet
from streampose.publish import Publisher
from streampose.record import Recorder, open_sink
from streampose.recording import Entry, StateChange, journal_of, read_recording, to_recorded_line
from streampose.replay import replay
from streampose.subscribe import Subscriber

sys.path.insert(0, str(Path(__file__).parent))
from ports import free_endpoint
from stream_messages import WAIT_S, Talk, make_frame, wait_until

pytestmark = pytest.mark.usefixtures("patient_stream")
FORMATS = ("parquet", "jsonl")


@pytest.fixture
def publisher():
    """It repeats nothing."""
    with Publisher("tcp://127.0.0.1:*", model="lite", offsets=(-2, -1), heartbeat_s=3600) as made:
        yield made


def record(publisher, path, frames, *, gap_at=None):
    """Record these frames of two sources; `gap_at` leaves two numbers of the first one out."""
    stop = threading.Event()
    with Recorder(publisher.endpoint, open_sink(path), count=2 * frames) as recorder:
        wait_until(lambda: publisher._outlet.subscribed.is_set() and recorder._inlet.connected)
        for source in ("a", "b"):
            publisher.set_state(source, "online")
        wait_until(lambda: recorder._found)  # states are the last that it subscribes to
        for index in range(frames):
            if index == gap_at:
                publisher._seq["a"] += 2
            publisher.publish(make_frame(index, "a", people=index % 3))
            if index == frames - 1:
                publisher.set_state("b", "offline")
            publisher.publish(make_frame(index, "b", people=1, clock="rtcp", smoothed=True))
        recorder.record(stop, seconds=WAIT_S)
    assert recorder.frames == 2 * frames
    return recorder


def entries(path, source=None):
    return [item for item in read_recording(path) if isinstance(item, Entry) and source in (None, item.frame.source)]


def same(one, other, digits):
    for name in (field.name for field in dataclasses.fields(one)):
        if name == "people":
            assert [p.track_id for p in one.people] == [p.track_id for p in other.people]
            for mine, theirs in zip(one.people, other.people, strict=True):
                np.testing.assert_allclose(mine.box, theirs.box, atol=digits)
                np.testing.assert_allclose(mine.keypoints, theirs.keypoints, atol=digits)
        elif name == "pts_s":
            assert one.pts_s == pytest.approx(other.pts_s, abs=1e-6)
        else:
            assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize("form", FORMATS)
def test_what_was_published_is_what_is_read(publisher, tmp_path, form):
    path = tmp_path / f"session.{form}"
    recorder = record(publisher, path, 30, gap_at=20)
    assert recorder.ledger.missed == {"a": 2, "b": 0}
    got = entries(path, "a")
    assert [entry.seq for entry in got] == [*range(20), *range(22, 32)]
    assert [entry.frame.missed for entry in got] == [*[0] * 20, 2, *[0] * 9]
    assert {entry.run_id for entry in got} == {publisher.run_id}
    assert [entry.received_ns for entry in got] == sorted(entry.received_ns for entry in got)
    assert abs(got[0].received_ns - time.time_ns()) < 60e9
    for entry in got:
        sent = make_frame(entry.frame.frame_index, "a", people=entry.frame.frame_index % 3)
        sent = dataclasses.replace(
            sent, captured_ns=entry.frame.captured_ns, published_ns=entry.frame.published_ns, missed=entry.frame.missed
        )
        same(entry.frame, sent, 0 if form == "parquet" else 0.01)
    assert {(entry.frame.clock, entry.frame.smoothed) for entry in entries(path, "b")} == {("rtcp", True)}
    if form == "parquet":
        items = list(read_recording(path))
        assert [item.source for item in items if isinstance(item, Hello)] == ["a", "b"]
        states = [(item.source, item.state) for item in items if isinstance(item, StateChange)]
        assert states == [("a", "online"), ("b", "online"), ("b", "offline")]
        assert sorted(found.name for found in tmp_path.iterdir()) == ["session.parquet"]


def test_parquet_is_a_table_that_others_read(publisher, tmp_path):
    path = tmp_path / "session.parquet"
    record(publisher, path, 10)
    table = pq.read_table(path)
    assert table.num_rows == 20
    rows = table.filter(pa.compute.equal(table["source"], "a")).to_pylist()
    assert rows[2]["people"][1]["box"] == [10, 2, 18, 22]
    assert np.array(rows[2]["people"][1]["keypoints"]).shape == (17, 3)
    assert rows[0]["people"] == []
    assert rows[0]["offsets"] == [-2, -1]


RECORDER = """
import sys, pathlib, threading
from streampose.record import Recorder, open_sink
with Recorder(sys.argv[1], open_sink(pathlib.Path(sys.argv[2]))) as recorder:
    while recorder.frames < 50: threading.Event().wait(0.01)
    print(recorder.frames, flush=True)
    recorder.record(threading.Event())
"""


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_what_a_killed_recorder_received_is_readable(publisher, tmp_path, form, caplog):
    path = tmp_path / f"session.{form}"
    command = [sys.executable, "-c", RECORDER, publisher.endpoint, str(path)]
    with Talk(publisher, hz=200, people=3), subprocess.Popen(command, stdout=-1, text=True) as process:
        seen = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT_S)
    got = entries(path)
    assert len(got) >= seen
    numbers = [entry.seq for entry in got]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    if form == "parquet":
        assert "was not finished" in caplog.text
        with pytest.raises(UsageError, match="was not finished; save it first: streampose export"):
            open_sink(path)
        (whole,) = export(path, tmp_path / "whole.parquet", "parquet")
        assert [entry.seq for entry in entries(whole)] == numbers


@pytest.mark.parametrize("cut", [1, 7, 9, 100])
def test_a_journal_cut_anywhere_is_read_up_to_there(publisher, tmp_path, cut, caplog):
    path = tmp_path / "session.parquet"
    with Recorder(publisher.endpoint, open_sink(path)) as recorder:
        wait_until(lambda: publisher._outlet.subscribed.is_set() and recorder._inlet.connected)
        for index in range(20):
            publisher.publish(make_frame(index))
        wait_until(lambda: recorder.frames == 20)
        data = journal_of(path).read_bytes()
    torn = tmp_path / "torn.parquet"
    journal_of(torn).write_bytes(data[:-cut])
    assert [entry.seq for entry in entries(torn)] == list(range(19))
    assert "ends inside of a record" in caplog.text
    journal_of(torn).write_bytes(
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :]
    )
    assert 5 < len(entries(torn)) < 19


@pytest.mark.skipif(sys.platform != "linux", reason="file size limits as on Linux")
def test_a_full_disk_ends_the_recording_and_keeps_it(publisher, tmp_path):
    path = tmp_path / "session.parquet"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        recorder = Recorder(publisher.endpoint, open_sink(path))
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, old[1]))
        with recorder, Talk(publisher, people=5), pytest.raises(OutputError, match="File too large"):
            recorder.record(threading.Event(), seconds=WAIT_S)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(entries(path)) > 10


def test_a_long_recording_has_every_frame_in_order(publisher, tmp_path, monkeypatch):
    """Several row groups, and messages of other kinds between them."""
    monkeypatch.setattr("streampose.parquet.ROWS", 40)
    path = tmp_path / "session.parquet"
    record(publisher, path, 300)
    assert pq.ParquetFile(path).num_row_groups > 10
    for source in ("a", "b"):
        assert [entry.seq for entry in entries(path, source)] == list(range(300))
        assert [len(entry.frame.people) for entry in entries(path, source)][:3] == (
            [0, 1, 2] if source == "a" else [1] * 3
        )
    assert entries(path, "a")[299].frame.people[1].keypoints[16].tolist() == [10, 299, 0.75]


def test_a_table_that_cannot_be_written_ends_the_recording_and_keeps_it(publisher, tmp_path, monkeypatch):
    def fail(_):
        raise OutputError("no space left for rows")

    monkeypatch.setattr("streampose.parquet.ROWS", 10)
    monkeypatch.setattr("streampose.parquet.ParquetWriter._write_rows", fail)
    path = tmp_path / "session.parquet"
    with (
        Recorder(publisher.endpoint, open_sink(path)) as recorder,
        Talk(publisher),
        pytest.raises(OutputError, match="no space left for rows"),
    ):
        recorder.record(threading.Event(), seconds=WAIT_S)
    assert len(entries(path)) >= 20


@pytest.mark.parametrize("column", ["seq", "people", "skeleton"])
def test_a_table_with_holes_or_other_types_is_none_of_ours(publisher, tmp_path, column):
    path = tmp_path / "session.parquet"
    record(publisher, path, 3)
    table = pq.read_table(path)
    place, field = table.schema.names.index(column), table.schema.field(column)
    holes = table.set_column(place, field, pa.nulls(table.num_rows, field.type))
    texts = table.set_column(place, pa.field(column, pa.binary()), pa.array([b"x"] * table.num_rows))
    for changed in (holes, texts):
        pq.write_table(changed.replace_schema_metadata(pq.read_metadata(path).metadata), tmp_path / "other.parquet")
        with pytest.raises(UsageError, match="is not a recording of streampose"):
            entries(tmp_path / "other.parquet")


@pytest.mark.parametrize("form", FORMATS)
def test_who_is_not_let_in_is_told_and_nothing_is_left_behind(tmp_path, form):
    add_key(tmp_path / "keys", "one", tmp_path / "one.key")
    add_key(tmp_path / "other", "two", tmp_path / "two.key")
    wrong = dataclasses.replace(read_key(tmp_path / "two.key"), publisher=read_key(tmp_path / "one.key").publisher)
    with (
        Publisher("tcp://127.0.0.1:*", model="lite", keys=tmp_path / "keys") as publisher,
        pytest.raises(KeyRefusedError),
        Recorder(publisher.endpoint, open_sink(tmp_path / f"session.{form}"), key=wrong) as recorder,
    ):
        recorder.record(threading.Event(), seconds=WAIT_S)
    with pytest.raises(UsageError, match="tcp://HOST:PORT"):
        Recorder("nowhere", open_sink(tmp_path / f"session.{form}"))
    assert not list(tmp_path.glob("session*"))


@pytest.mark.parametrize("form", FORMATS)
def test_exactly_as_many_frames_are_recorded_as_asked_for(publisher, tmp_path, form, caplog):
    """However many come while nobody looks; it says what it is connected to and which sources it records, each once."""
    caplog.set_level("INFO", "streampose.record")
    path = tmp_path / f"session.{form}"
    with Recorder(publisher.endpoint, open_sink(path), count=3) as recorder:
        taken = watch_puts(recorder)
        wait_until(lambda: publisher._outlet.subscribed.is_set() and recorder._inlet.connected)
        for index in range(10):
            for source in ("b", "a"):
                publisher.publish(make_frame(index, source))
        wait_until(lambda: taken.count(b"pose.a") >= 10)
        recorder.record(threading.Event(), seconds=WAIT_S)
    assert recorder.frames == len(entries(path)) == 3
    assert recorder.ledger.received == {"b": 2, "a": 1}
    assert caplog.messages == [f"connected to {publisher.endpoint}", "recording a", "recording b"]


def watch_puts(recorder):
    """The topics of the messages that reach a recorder, one by one once they were dealt with."""
    topics, put = [], recorder._inlet._put

    def watch(parts):
        put(parts)
        topics.append(parts[0])

    recorder._inlet._put = watch
    return topics


@pytest.mark.parametrize("form", FORMATS)
def test_one_source_is_recorded_and_reported_alone(publisher, tmp_path, form):
    """Topics are beginnings: those of "cam1" bring "cam10" too, which is neither recorded nor counted."""
    path = tmp_path / f"session.{form}"
    with Recorder(publisher.endpoint, open_sink(path), source="cam1", count=10) as recorder:
        wait_until(lambda: publisher._outlet.subscribed.is_set() and recorder._inlet.connected)
        for index in range(10):
            publisher._seq["cam10"] = 2 * index  # every other one is missing
            publisher.publish(make_frame(index, "cam10"))
            publisher.publish(make_frame(index, "cam1"))
        recorder.record(threading.Event(), seconds=WAIT_S)
    assert recorder.ledger.received == {"cam1": 10}
    assert recorder.ledger.missed == {"cam1": 0}
    assert {item.source if isinstance(item, Hello) else item.frame.source for item in read_recording(path)} == {"cam1"}


def test_a_recorder_says_that_it_is_connected_to_no_publisher(tmp_path, caplog):
    stop = threading.Event()
    with zmq.Context() as context, context.socket(zmq.PUB) as other:
        other.bind("tcp://127.0.0.1:*")
        with Recorder(other.last_endpoint.decode(), open_sink(tmp_path / "session.jsonl")) as recorder:
            thread = threading.Thread(target=recorder.record, args=[stop])
            thread.start()
            try:
                wait_until(lambda: "no streampose publisher answers there; trying again" in caplog.text)
            finally:
                stop.set()
                thread.join()


def test_a_recorder_of_a_source_that_is_not_there_says_which_are(publisher, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("streampose.roster._PATIENCE_S", 0.1)
    publisher.set_state("cam", "online")
    stop = threading.Event()
    with Recorder(publisher.endpoint, open_sink(tmp_path / "session.jsonl"), source="typo") as recorder:
        thread = threading.Thread(target=recorder.record, args=[stop])
        thread.start()
        try:
            wait_until(lambda: "has no source 'typo', but cam; waiting for it" in caplog.text)
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize(
    ("name", "says"), [("a.csv", r"ends in .parquet or .jsonl"), ("there.jsonl", "is not overwritten")]
)
def test_what_cannot_be_recorded_into(tmp_path, name, says):
    (tmp_path / "there.jsonl").touch()
    with pytest.raises(UsageError, match=says):
        open_sink(tmp_path / name)
    with pytest.raises(OutputError, match="there is no folder"):
        open_sink(tmp_path / "missing" / "a.jsonl")


def test_a_recording_that_cannot_begin_leaves_nothing_behind(tmp_path):
    (tmp_path / "session.parquet.part").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        open_sink(tmp_path / "session.parquet")
    assert not list(tmp_path.glob("*.journal"))


def play(path, stop=None, **kwargs):
    """What a subscriber gets of a replay; and its states."""
    got = []
    with Outlet("tcp://127.0.0.1:*") as outlet, Subscriber(outlet.endpoint, "lossless") as stream:
        wait_until(lambda: stream.heard_s)
        count = replay(path, outlet, stop or threading.Event(), **kwargs)
        while len(got) < count:
            got.append(stream.receive(WAIT_S))
        wait_until(lambda: stream.receive(0) is None and "ended" in stream.states.values())
    return got, stream


@pytest.mark.parametrize("form", FORMATS)
def test_a_replay_has_the_original_frames_and_gaps(publisher, tmp_path, form):
    path = tmp_path / f"session.{form}"
    record(publisher, path, 20, gap_at=10)
    got, stream = play(path)
    played = [frame for frame in got if frame.source == "a"]
    recorded = [entry.frame for entry in entries(path, "a")]
    assert stream.missed == {"a": 2, "b": 0}
    for mine, theirs in zip(played, recorded, strict=True):
        assert mine.published_ns - mine.captured_ns == theirs.published_ns - theirs.captured_ns
        assert abs(mine.published_ns - time.monotonic_ns()) < 60e9
        same(dataclasses.replace(mine, captured_ns=0, published_ns=0),
             dataclasses.replace(theirs, captured_ns=0, published_ns=0), 0)  # fmt: skip
    assert stream.hellos["a"].model == ("lite" if form == "parquet" else "recording")


def test_a_replay_keeps_the_time_between_frames(tmp_path, monkeypatch):
    """Frames 20, 300 and 60 ms apart are published so again, or in half of the time."""
    path = tmp_path / "people.jsonl"
    times_s = [0.0, 0.02, 0.32, 0.38]
    with PeopleWriter(path) as writer:
        for index, at_s in enumerate(times_s):
            writer.write(make_frame(index, published_ns=10**12 + int(at_s * 1e9), captured_ns=10**12))
    clock_s = [100.0]

    class Stop(threading.Event):
        def wait(self, timeout=None):
            clock_s[0] += timeout
            return False

    clock = SimpleNamespace(monotonic=lambda: clock_s[0], monotonic_ns=lambda: int(clock_s[0] * 1e9))
    monkeypatch.setattr("streampose.replay.time", clock)
    for speed in (1.0, 2.0):
        got, _ = play(path, Stop(), speed=speed)
        published_s = np.array([frame.published_ns / 1e9 for frame in got])
        np.testing.assert_allclose(published_s - published_s[0], np.array(times_s) / speed, atol=1e-6)


def test_a_loop_is_another_epoch_whose_frames_count_on(tmp_path):
    path = tmp_path / "people.jsonl"
    with PeopleWriter(path) as writer:
        for index in range(3):
            writer.write(make_frame(index, published_ns=index * 50_000_000))
    stop = threading.Event()
    with Outlet("tcp://127.0.0.1:*") as outlet, Subscriber(outlet.endpoint, "lossless") as stream:
        wait_until(lambda: stream.heard_s)
        thread = threading.Thread(target=replay, args=(path, outlet, stop), kwargs={"loop": True})
        thread.start()
        got = [stream.receive(WAIT_S) for _ in range(8)]
        stop.set()
        thread.join(WAIT_S)
    assert [(frame.epoch, frame.frame_index) for frame in got] == [(i // 3, i) for i in range(8)]
    assert stream.missed == {"cam": 0}


def test_csv_has_a_line_a_person(publisher, tmp_path):
    path = tmp_path / "session.parquet"
    record(publisher, path, 6)
    (out,) = export(path, tmp_path / "out.csv", "csv", "a")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["frame_index"] for row in rows] == ["0", "1", "2", "2", "3", "4", "5", "5"]
    assert [row["track_id"] for row in rows] == ["", "1", "1", "2", "", "1", "1", "2"]
    assert (rows[3]["nose_x"], rows[3]["nose_y"], rows[3]["right_ankle_score"]) == ("10.0", "2.0", "0.75")
    assert rows[3]["box_y2"] == "22.0"


def test_coco_results_are_what_its_tools_take(publisher, tmp_path):
    coco = pytest.importorskip("pycocotools.coco", reason="needs the extra [train]")
    path = tmp_path / "session.jsonl"
    record(publisher, path, 6)
    written = export(path, tmp_path / "out.json", "coco")
    assert [found.name for found in written] == ["out-a.json", "out-b.json"]
    truth = coco.COCO()
    truth.dataset = {"images": [{"id": index} for index in range(6)], "annotations": [], "categories": [{"id": 1}]}
    truth.createIndex()
    results = truth.loadRes(str(written[0]))
    assert len(results.anns) == 6
    first = json.loads(written[0].read_text())[0]
    assert first["image_id"] == 1
    assert first["keypoints"] == [0, 1, 0.75] * 17
    assert first["bbox"] == [0, 1, 8, 20]


def test_posetrack_is_what_the_evaluation_reads(publisher, tmp_path):
    labels = pytest.importorskip("streampose.train.posetrack_labels", reason="needs the extra [train]")
    path = tmp_path / "session.parquet"
    record(publisher, path, 6)
    (out,) = export(path, tmp_path / "out.json", "posetrack", "b")
    made = json.loads(out.read_text())
    assert [image["id"] for image in made["images"]] == list(range(6))
    person = made["annotations"][2]
    points = dict(zip(made["categories"][0]["keypoints"], np.reshape(person["keypoints"], (17, 3)), strict=True))
    assert points["head_bottom"].tolist() == [0, 2, 1]
    assert points["left_ear"].tolist() == [0, 0, 0]
    read = labels.read_sequence(out)
    assert [frame.id for frame in read.frames] == list(range(6))
    assert [len(frame.people) for frame in read.frames] == [1] * 6


@pytest.mark.parametrize("form", ["coco", "posetrack"])
def test_an_export_is_written_as_it_is_read(tmp_path, form):
    """500 people as they are written take three times the memory that is allowed here and more."""
    path = tmp_path / "people.jsonl"
    with PeopleWriter(path) as writer:
        for index in range(100):
            writer.write(make_frame(index, people=5))
    tracemalloc.start()
    try:
        (out,) = export(path, tmp_path / "out.json", form)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    made = json.loads(out.read_text())
    assert len(made if form == "coco" else made["annotations"]) == 500
    assert peak_bytes < 500_000


def test_an_export_that_fails_leaves_no_file_behind(tmp_path):
    path = tmp_path / "people.jsonl"
    with PeopleWriter(path) as writer:
        writer.write(make_frame(0, "a"))
        writer.write(make_frame(0, "b", skeleton="strange"))
    for form in ("coco", "posetrack"):
        with pytest.raises(UsageError, match="strange"):
            export(path, tmp_path / "out.json", form)
    assert [found.name for found in tmp_path.iterdir()] == ["people.jsonl"]


@pytest.mark.parametrize("form", FORMATS)
def test_another_form_of_a_recording_loses_nothing(publisher, tmp_path, form):
    path = tmp_path / "session.parquet"
    record(publisher, path, 9, gap_at=4)
    (out,) = export(path, tmp_path / f"again.{form}", form)
    for source in ("a", "b"):
        for mine, theirs in zip(entries(out, source), entries(path, source), strict=True):
            same(mine.frame, theirs.frame, 0.01)
            same(dataclasses.replace(mine, frame=0), dataclasses.replace(theirs, frame=0), 0)


def test_what_was_bridged_is_not_exported_as_seen(tmp_path):
    frame = make_frame(1, people=2)
    people = frame.people[0], dataclasses.replace(frame.people[1], filled=True)
    path = tmp_path / "people.jsonl"
    with PeopleWriter(path) as writer:
        writer.write(dataclasses.replace(frame, people=people))
    (table,) = export(path, tmp_path / "out.csv", "csv")
    assert [row["filled"] for row in csv.DictReader(table.open(newline=""))] == ["0", "1"]
    (coco,) = export(path, tmp_path / "coco.json", "coco")
    assert [person.get("filled") for person in json.loads(coco.read_text())] == [None, True]
    (posetrack,) = export(path, tmp_path / "posetrack.json", "posetrack")
    assert [person.get("filled") for person in json.loads(posetrack.read_text())["annotations"]] == [None, True]


def test_sources_whose_files_would_have_the_same_name(tmp_path):
    path = tmp_path / "people.jsonl"
    with PeopleWriter(path) as writer:
        for source in ("a/b", "a_b", "a\\b"):
            writer.write(make_frame(0, source))
    written = export(path, tmp_path / "out.json", "coco")
    assert [found.name for found in written] == ["out-a_b.json", "out-a_b-run2.json", "out-a_b-run3.json"]


def write_runs(path, runs, people=1):
    """A frame of each run, (source, run_id), as `record` would have written it."""
    with PeopleWriter(path) as writer:
        for source, run_id in runs:
            entry = Entry(received_ns=0, run_id=run_id, seq=0, frame=make_frame(0, source, people))
            writer.write_line(to_recorded_line(entry))


def test_a_source_that_is_called_like_the_second_run_of_another(tmp_path):
    path = tmp_path / "session.jsonl"
    write_runs(path, [("cam", "r1"), ("cam", "r2"), ("cam-run2", "r1"), ("cam", "r3"), ("cam-run2", "r2")])
    written = export(path, tmp_path / "out.json", "coco")
    names = ["out-cam", "out-cam-run3", "out-cam-run2", "out-cam-run4", "out-cam-run2-run2"]
    assert [found.stem for found in written] == names
    assert all(found.exists() for found in written)


@pytest.mark.parametrize("form", ["coco", "posetrack"])
def test_more_runs_than_files_that_may_be_open(tmp_path, form):
    """Each file has what is its run's; where one cannot be written, none is left."""
    path = tmp_path / "session.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = len(os.listdir("/proc/self/fd")) + 250
    write_runs(path, [("cam", f"r{run}") for run in range(limit)], people=2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        written = export(path, tmp_path / "out.json", form)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(set(written)) == limit
    for found in written:
        made = json.loads(found.read_text())
        assert [person["track_id"] for person in (made if form == "coco" else made["annotations"])] == [1, 2]
        found.unlink()
    written[-1].touch()
    with pytest.raises(UsageError, match=rf"{written[-1].name} exists; it is not overwritten"):
        export(path, tmp_path / "out.json", form)
    written[-1].unlink()
    with path.open("ab") as file:
        entry = Entry(received_ns=0, run_id="r", seq=0, frame=make_frame(0, "odd", skeleton="strange"))
        file.write(to_recorded_line(entry))
    with pytest.raises(UsageError, match="strange"):
        export(path, tmp_path / "out.json", form)
    assert [found.name for found in tmp_path.iterdir()] == ["session.jsonl"]


@pytest.mark.parametrize("begin", [b"", b"streampose jou", b"streampose journal 1\n"])
def test_a_recorder_that_died_at_its_start_left_an_empty_recording(tmp_path, begin):
    path = tmp_path / "session.parquet"
    journal_of(path).write_bytes(begin)
    assert entries(path) == []
    for form in ("parquet", "csv", "coco"):
        with pytest.raises(UsageError, match=r"session.parquet has no frames$"):
            export(path, tmp_path / f"saved.{form}", form)
    with Outlet("tcp://127.0.0.1:*") as outlet, pytest.raises(UsageError, match=r"session.parquet has no frames$"):
        replay(path, outlet, threading.Event())
    assert list(tmp_path.iterdir()) == [journal_of(path)]


def test_an_export_of_a_source_that_is_not_there_says_which_are(tmp_path):
    path = tmp_path / "people.jsonl"
    with PeopleWriter(path) as writer:
        for source in ("b", "a"):
            writer.write(make_frame(0, source))
    for form in ("csv", "jsonl", "parquet", "coco"):
        with pytest.raises(UsageError, match="has no frames of a source 'typo', but of a, b"):
            export(path, tmp_path / "out", form, "typo")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("form", FORMATS)
def test_a_recording_without_a_frame_leaves_no_file(publisher, tmp_path, form):
    """Whether it was stopped, or the time was over; with a publisher that has only states to tell, or without one."""
    publisher.set_state("cam", "offline")
    path, stop = tmp_path / f"session.{form}", threading.Event()
    with Recorder(publisher.endpoint, open_sink(path)) as recorder:
        wait_until(lambda: publisher._outlet.subscribed.is_set() and recorder._inlet.connected)
        stop.set()
        recorder.record(stop)
    for endpoint in (publisher.endpoint, "tcp://127.0.0.1:1"):
        with (
            pytest.raises(StreamError, match=f"no frame came from {endpoint} in 0.1 s"),
            Recorder(endpoint, open_sink(path)) as recorder,
        ):
            recorder.record(threading.Event(), seconds=0.1)
    assert not list(tmp_path.iterdir())


def test_several_runs_get_their_own_files(tmp_path):
    path = tmp_path / "session.jsonl"
    endpoint = free_endpoint()
    with Recorder(endpoint, open_sink(path)) as recorder:
        for frames in (1, 2):
            with Publisher(endpoint, model="lite") as publisher:
                wait_until(publisher._outlet.subscribed.is_set)
                publisher.publish(make_frame(0))
                wait_until(lambda: recorder.frames == frames)  # noqa: B023
    written = export(path, tmp_path / "out.json", "coco")
    assert [found.name for found in written] == ["out-cam.json", "out-cam-run2.json"]


def test_mistakes_are_told(publisher, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"source": "a"}\n')
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no PAR1")
    (tmp_path / "empty.jsonl").touch()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    for name, says in [
        ("none.parquet", "there is no recording"),
        ("none.jsonl", "there is no recording"),
        ("bad.jsonl", "line 1 is not one of people.jsonl"),
        ("bad.parquet", "is not a recording of streampose"),
        ("other.parquet", "is not a recording of streampose"),
        ("empty.jsonl", "is empty: no frame was ever written to it"),
        ("a.mp4", "ends in .parquet or .jsonl"),
    ]:
        with pytest.raises(UsageError, match=says):
            export(tmp_path / name, tmp_path / "out.json", "coco")
    with pytest.raises(UsageError, match="--format is one of csv, coco"):
        export(tmp_path / "empty.jsonl", tmp_path / "out.xml", "xml")
    for name in ("out.json", "out"):
        with pytest.raises(UsageError, match=r"end it in .csv, .jsonl or .parquet, or give --format: csv, coco, pose"):
            form_of(tmp_path / name)
    assert [form_of(tmp_path / name) for name in ("out.CSV", "a.b.parquet", "a.coco")] == ["csv", "parquet", "coco"]
    for name in ("none.parquet", "none.jsonl"):
        with pytest.raises(UsageError, match="there is no recording"):
            export(tmp_path / name, tmp_path / name, name.rpartition(".")[2])
        assert not (tmp_path / name).exists()
    with pytest.raises(UsageError, match="is not overwritten"):
        export(tmp_path / "empty.jsonl", tmp_path / "bad.jsonl", "csv")
    with Outlet("tcp://127.0.0.1:*") as outlet, pytest.raises(UsageError, match="a speed is above 0"):
        replay(tmp_path / "empty.jsonl", outlet, threading.Event(), speed=0)
    assert publisher.dropped == 0
