"""The command line. A command parses, calls one function and shows what comes; imports wait until a command runs."""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """Run the program. To import its commands takes a moment, in which Ctrl-C ends it without a traceback, too."""
    try:
        from streampose.cli import commands
    except KeyboardInterrupt:
        raise SystemExit(0) from None
    commands.main()
