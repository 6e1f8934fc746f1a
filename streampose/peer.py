"""Connections behind a bound ZeroMQ socket, which ZeroMQ itself neither names nor ends one by one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import zmq


@dataclass(frozen=True, slots=True)
class Peer:
    """One connection to a bound endpoint.

    Attributes:
        fd: of its socket here; another connection may get the same one later.
        address: of the other end, as the operating system gives it, which tells the two apart.
    """

    fd: int
    address: object

    @property
    def host(self) -> str:
        """Of the other end."""
        return str(self.address[0]) if isinstance(self.address, tuple) else str(self.address)

    @property
    def is_connected(self) -> bool:
        """Whether this connection still stands."""
        with _borrow(self.fd) as connection:
            return connection is not None and _address_of(connection) == self.address

    def disconnect(self) -> None:
        """End this connection, if it still stands; ZeroMQ notices, and tells the other end nothing."""
        with _borrow(self.fd) as connection:
            if connection is not None and _address_of(connection) == self.address:
                with suppress(OSError):  # it has ended in between
                    connection.shutdown(socket.SHUT_RDWR)


def descriptor_of(message: zmq.Frame) -> int | None:
    """The descriptor that a message (received with `copy=False`) came by; None where ZeroMQ made it itself.

    Another connection may have the descriptor by now.
    """
    try:
        return int(message.get(zmq.SRCFD))
    except zmq.ZMQError:
        return None


def peer_at(fd: int | None, port: int) -> Peer | None:
    """The connection that has a descriptor now.

    Args:
        port: that the receiving socket is bound to.

    Returns:
        None where there is none.
    """
    if fd is None:
        return None
    with _borrow(fd) as connection:
        address = None if connection is None or _port_of(connection) != port else _address_of(connection)
    return None if address is None else Peer(fd, address)


@contextmanager
def _borrow(fd: int) -> Iterator[socket.socket | None]:
    """The socket of a descriptor that belongs to ZeroMQ and stays open; None where it is none any more."""
    try:
        connection = socket.socket(fileno=fd)
    except OSError:
        yield None
        return
    try:
        yield connection
    finally:
        connection.detach()


def _address_of(connection: socket.socket) -> object:
    try:
        return connection.getpeername()
    except OSError:
        return None


def _port_of(connection: socket.socket) -> int | None:
    """The port at this end; None where it is no socket of the internet."""
    try:
        own = connection.getsockname()
    except OSError:
        return None
    return own[1] if isinstance(own, tuple) and len(own) > 1 and isinstance(own[1], int) else None
