"""An RTSP server that does as it is told: which packets it sends, when, with what times and reports. H.264 over TCP."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from types import TracebackType

import av
import numpy as np

FPS = 30
TICKS = 90_000 // FPS
_NTP_1970 = 2_208_988_800
_CHUNK = 1200
_INTERLEAVED = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=puppet\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    "a=fmtp:96 packetization-mode=1\r\na=control:track1\r\n"
)


def encode(
    size: tuple[int, int] = (120, 160), gop: int = FPS, b_frames: int = 0, noise: bool = False
) -> Iterator[tuple[int, bytes]]:
    """(presentation number, H.264 of one picture), for ever, in the order of decoding; `noise` makes them large."""
    grain = np.random.default_rng(3)
    codec = av.CodecContext.create("libx264", "w")
    codec.height, codec.width = size
    codec.pix_fmt = "yuv420p"
    codec.time_base, codec.framerate = Fraction(1, FPS), Fraction(FPS, 1)
    asked = f"bframes={b_frames}:b-adapt=0:scenecut=0:rc-lookahead=0:sync-lookahead=0:sliced-threads=1"
    codec.options = {"g": str(gop), "preset": "veryfast", "x264-params": asked}
    for index in itertools.count():
        image = np.full((*size, 3), 16, np.uint8)
        image[30:80, 10 + 2 * index % (size[1] - 40) :][:, :20] = 235
        if noise:
            image[::2] = grain.integers(0, 255, image[::2].shape)
        frame = av.VideoFrame.from_ndarray(image, format="bgr24")
        frame.pts, frame.time_base = index, Fraction(1, FPS)
        for packet in codec.encode(frame):
            assert packet.pts is not None
            yield packet.pts, bytes(packet)


class Wire:
    """One client's connection, once it plays."""

    def __init__(self, connection: socket.socket) -> None:
        self.closed = threading.Event()
        self.began_s = time.monotonic()
        self._connection = connection
        self._number = random.randrange(1 << 15)
        self._first = random.randrange(1 << 30)

    def pause_until(self, second: float) -> None:
        """Wait until so many seconds after the beginning."""
        self.closed.wait(max(0.0, self.began_s + second - time.monotonic()))

    def send(self, data: bytes, ticks: int, share: float = 1.0) -> None:
        """One picture in RTP packets, to be shown at so many ticks of 90 kHz; or only the first part of it."""
        units = [unit.rstrip(b"\0") for unit in data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")[1:]]
        for unit in units:
            last = unit is units[-1]
            if len(unit) <= _CHUNK:
                self._packet(unit, ticks, last)
                continue
            parts = [unit[i : i + _CHUNK] for i in range(1, len(unit), _CHUNK)]
            for number, part in enumerate(parts[: math.ceil(share * len(parts))]):
                end = number == len(parts) - 1
                flags = (0x80 if not number else 0) | (0x40 if end else 0) | (unit[0] & 31)
                self._packet(bytes([unit[0] & 0xE0 | 28, flags]) + part, ticks, last and end)

    def report(self, ticks: int, wall_s: float) -> None:
        """An RTCP report: at so many ticks the camera's clock showed that time, seconds since 1970."""
        ntp = int((wall_s + _NTP_1970) * (1 << 32))
        self._write(1, struct.pack(">BBHIQIII", 0x80, 200, 6, 7, ntp, self._first + ticks & 0xFFFFFFFF, 0, 0))

    def _packet(self, payload: bytes, ticks: int, last: bool) -> None:
        head = struct.pack(">BBHII", 0x80, 96 | last << 7, self._number & 0xFFFF, self._first + ticks & 0xFFFFFFFF, 7)
        self._number += 1
        self._write(0, head + payload)

    def _write(self, channel: int, data: bytes) -> None:
        self._connection.sendall(b"$" + bytes([channel]) + struct.pack(">H", len(data)) + data)


class Puppet:
    """The server; `play(wire)` sends to each client what it likes until it returns. A context manager.

    Who wants UDP gets nothing at all, as behind a firewall.
    """

    def __init__(self, play: Callable[[Wire], None]) -> None:
        self._play = play
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/cam"
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="puppet", daemon=True)]

    def __enter__(self) -> Puppet:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in (self._listener, *self._open):
            _shut(end)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            self._threads.append(threading.Thread(target=self._answer, args=(connection,), daemon=True))
            self._threads[-1].start()

    def _answer(self, connection: socket.socket) -> None:
        wire = Wire(connection)
        text = b""
        try:
            while piece := connection.recv(65536):
                text += piece
                while text.startswith(b"$") and len(text) >= 4:  # reports of the client
                    text = text[4 + int.from_bytes(text[2:4], "big") :]
                while b"\r\n\r\n" in text and not text.startswith(b"$"):
                    request, _, text = text.partition(b"\r\n\r\n")
                    connection.sendall(_reply(request.decode()))
                    if request.startswith(b"PLAY"):
                        wire.began_s = time.monotonic()
                        threading.Thread(target=self._run, args=(wire,), daemon=True).start()
        except OSError:
            pass
        finally:
            wire.closed.set()
            connection.close()

    def _run(self, wire: Wire) -> None:
        try:
            self._play(wire)
        except OSError:
            wire.closed.set()


def _reply(request: str) -> bytes:
    method = request.split(" ", 1)[0]
    number = next(line.split(":")[1].strip() for line in request.splitlines() if line.lower().startswith("cseq:"))
    head = f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\nSession: 1\r\n"
    if method == "DESCRIBE":
        return f"{head}Content-Type: application/sdp\r\nContent-Length: {len(_SDP)}\r\n\r\n{_SDP}".encode()
    if method == "SETUP":
        ports = re.search(r"client_port=\d+-\d+", request)
        head += f"Transport: RTP/AVP;unicast;{ports[0]};server_port=9-10\r\n" if ports else _INTERLEAVED
    return f"{head}\r\n".encode()


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was quicker
        end.shutdown(socket.SHUT_RDWR)
    end.close()
