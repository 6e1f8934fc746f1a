"""What is shown on stderr while something runs."""

import io
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from streampose import console
from streampose.console import Screen, frame_line, set_up_logging, summary_fields, to_json
from streampose.metrics import RunSummary, SourceSummary, StageSummary
from streampose.types import Pose, PoseFrame

SUMMARY = RunSummary(
    frames=10,
    poses=12,
    seconds=2.0,
    stages={"encode": StageSummary(10, 4.25, 6.5, 7.0)},
    sources={"cam": SourceSummary(10, {"overwritten": 3}, "disconnected", "rtsp://me:secret@host/1: gone")},
)


MEASURED = RunSummary(
    frames=22,
    poses=30,
    seconds=2.0,
    stages={"encode": StageSummary(10, 4.2, 6.5)},
    sources={"cam": SourceSummary(22, {}, "open", None, reconnects=4, age_s=0.1)},
    batches=4,
    people_per_batch=2.5,
)


@pytest.fixture(autouse=True)
def quiet_logger():
    logger = logging.getLogger("streampose")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


def make_frame(captured_ns=0, people=1):
    pose = Pose(track_id=4, box=np.array([1, 2, 3, 4], np.float32), score=0.5, keypoints=np.ones((17, 3), np.float32))
    return PoseFrame(
        source="cam", epoch=0, frame_index=7, pts_s=0.0, captured_ns=captured_ns, published_ns=captured_ns + 25_000_000,
        width=64, height=48, skeleton="coco17", dropped=2, people=(pose,) * people,
    )  # fmt: skip


def make_console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def test_logs_hide_credentials_and_keep_tracebacks_for_debug(capsys):
    for debug in (False, True):
        set_up_logging(debug)
        log = logging.getLogger("streampose.sources")
        log.debug("quiet")
        try:
            raise ValueError("rtsp://me:secret@host/1 is gone")
        except ValueError:
            log.warning("cannot open rtsp://me:secret@host/1", exc_info=True)
        shown = capsys.readouterr().err
        assert "WARNING cannot open rtsp://***@host/1\n" in shown
        assert "secret" not in shown
        assert ("Traceback" in shown, "quiet" in shown) == (debug, debug)


def test_away_from_a_terminal_there_is_a_line_a_source_every_five_seconds(caplog, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO, "streampose"), Screen(make_console(False)) as screen:
        screen.set_state("cam", "online")
        for _ in range(11):
            screen.add(make_frame())
            screen.tick()
            clock[0] += 0.1
        assert caplog.messages == []
        clock[0] = 105.0
        for _ in range(11):
            clock[0] += 0.1
            screen.add(make_frame(people=3))
        screen.tick(MEASURED)
        screen.tick(MEASURED)
    (line,) = caplog.messages
    assert line.startswith("cam: online, 22 frames, 10.0 fps, latency p50 25 ms, 3 people, 2 dropped, 4 reconnects, ")
    assert line.endswith("last 0.1 s ago")


def test_on_a_terminal_there_is_a_table():
    shown = make_console(True)
    with Screen(shown) as screen:
        screen.set_state("cam", "stalled")
        screen.add(make_frame())
        screen.tick(MEASURED)
    assert "latency p50 ms" in shown.file.getvalue()
    assert "stalled" in shown.file.getvalue()
    assert "median ms: encode 4.2; 2.5 people a call" in shown.file.getvalue()


def test_the_summary_is_shown_last():
    shown = make_console(False)
    with Screen(shown) as screen:
        screen.end(SUMMARY)
        assert shown.file.getvalue() == ""
    assert shown.file.getvalue().splitlines() == [
        "10 frames in 2.0 s (5.0 fps), 12 poses, 3 dropped",
        "cam: disconnected, 10 frames, dropped: 3 overwritten",
        "median/p95 ms: encode 4.2/6.5",
    ]


def test_the_summary_as_json():
    assert b'"fps":5.0,"frames":10' in to_json(summary_fields(SUMMARY))
    assert b'"stages":{"encode":{"count":10,"median_ms":4.25,"p95_ms":6.5,"p99_ms":7.0}}' in to_json(
        summary_fields(SUMMARY)
    )


def test_a_received_frame_as_a_line(monkeypatch):
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic_ns=lambda: 70_000_000))
    line = frame_line(make_frame(30_000_000))
    assert line.startswith("cam          frame       7   1 people      40 ms    0 missed  #4 0.50 at 1,2")
