"""The program: its options, its errors, and what commands share.

Results and machine-readable lines go to stdout, all else (logs, the live table, summaries, errors) to stderr. The exit
codes are those of `streampose.errors`; an error is one line.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from streampose.errors import MissingExtraError, OutputError, StreamposeError

_INTERRUPTED = 130
"""What Typer returns when Ctrl-C ended a command that does not handle it."""
CLOSING_S = 3.0
"""A run closes its outputs in two seconds; further signals are ignored for a little longer."""

_UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]  # Typer exports no name for it

app = typer.Typer(
    name="streampose",
    rich_markup_mode=None,
    help="Live video pose estimation.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show debug logs, and tracebacks of errors.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    context.obj = debug
    if version:
        import streampose

        typer.echo(f"streampose {streampose.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def main() -> int:
    """Run the command line; returns the exit code of its outcome."""
    debug = "--debug" in sys.argv[1:]
    try:
        code = app(prog_name="streampose", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except Exception as error:
        code = _report(error, debug)
    if code == _INTERRUPTED:
        typer.echo("stopped", err=True)
        code = 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the outcome is known; a late Ctrl-C does not change it
    return code or 0


def _report(error: Exception, debug: bool) -> int:
    """Show an error as one line, and with `debug` its traceback; return the exit code."""
    from streampose.redact import redact

    if debug:
        typer.echo(redact("".join(traceback.format_exception(error))), err=True)
    line, code = to_line(error)
    typer.echo(redact(" ".join(line.split())), err=True)
    return code


def to_line(error: Exception) -> tuple[str, int]:
    """What is said of an error, and the exit code."""
    if isinstance(error, _UsageError):
        where = getattr(getattr(error, "ctx", None), "command_path", "streampose")
        return f"error: {error.format_message()} (see {where} --help)", 2
    if isinstance(error, StreamposeError):
        return ("" if error.exit_code == 0 else "error: ") + str(error), error.exit_code
    return f"error: unexpected {type(error).__name__}: {error} (streampose --debug ... shows where)", 1


def write(line: bytes) -> None:
    """A line to stdout, whole and at once."""
    try:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails again when it exits
        raise OutputError(f"cannot write to stdout: {error.strerror}") from None


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets. More of them are ignored while outputs are being closed, and end
    the process as they would have without us where that takes longer than `CLOSING_S`."""
    stop = threading.Event()
    asked_s: list[float] = []

    def handle(number: int, _: FrameType | None) -> None:
        stop.set()
        asked_s.append(time.monotonic())
        if asked_s[-1] - asked_s[0] > CLOSING_S:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def extra(extra: str, packages: tuple[str, ...]) -> Iterator[None]:
    """Say of a missing import which extra brings it.

    Raises:
        MissingExtraError: one of `packages` is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in packages:
            raise
        raise MissingExtraError(package, extra) from None
