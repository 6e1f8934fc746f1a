"""The command line. A command parses, calls one function and shows what comes; imports wait until a command runs."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn


def main() -> NoReturn:
    """Run the program. To import its commands takes a moment, in which Ctrl-C ends it without a traceback, too."""
    try:
        from streampose.cli import commands
    except KeyboardInterrupt:
        raise SystemExit(0) from None
    _end(commands.main())


def _end(code: int) -> NoReturn:
    """End the process with this exit code.

    A thread may be left behind in native code, as one that opens a camera that hangs. FFmpeg asks Python ten times a
    second whether to go on waiting, and the process crashes where Python has been taken down by then. So it is not
    taken down under such threads: what it does before that is done here, and then the process ends at once.
    """
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others and all(thread.daemon for thread in others):  # Python waits for those that are not
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # there is none, or nobody reads it any more
                stream.flush()
        os._exit(code)
    raise SystemExit(code)
