"""What systemd is told: ready, alive, stopping. Nothing where systemd did not ask."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str) -> None:
    """Send a line as "READY=1" or "WATCHDOG=1" to the service manager that started this process, if one did."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)  # nobody may wait for a manager that does not read
        sender.connect("\0" + address[1:] if address[0] == "@" else address)
        sender.sendall(message.encode())
