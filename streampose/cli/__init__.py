"""The command line. A command parses, calls one function and shows what comes; imports wait until a command runs."""

from streampose.cli import cameras, doctor, keys, live, models, networks, stream
from streampose.cli.program import app, main

__all__ = ["app", "cameras", "doctor", "keys", "live", "main", "models", "networks", "stream"]
