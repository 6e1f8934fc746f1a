"""The command line. A command parses, calls one function and shows what comes; imports wait until a command runs."""

from streampose.cli import keys, live, models, networks, stream
from streampose.cli.program import app, main

__all__ = ["app", "keys", "live", "main", "models", "networks", "stream"]
