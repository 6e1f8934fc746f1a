"""All commands, so that the program has them."""

from streampose.cli import cameras, doctor, keys, live, models, networks, stream
from streampose.cli.program import app, main

__all__ = ["app", "cameras", "doctor", "keys", "live", "main", "models", "networks", "stream"]
