"""Progress bars: on a terminal's stderr, and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

pytest.importorskip("torch", reason="needs the [train] extra")

from streampose.train.progress import tracked


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_follows_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    assert list(tracked((n for n in range(3)), "sequences", 3)) == [0, 1, 2]
    assert "sequences" in terminal.getvalue()
    assert "100%" in terminal.getvalue()


def test_nothing_is_said_where_stderr_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(tracked([1, 2], "sequences")) == [1, 2]
    assert capfd.readouterr() == ("", "")
