"""Network cameras, over RTSP through PyAV."""

from __future__ import annotations

import logging
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import av
import numpy as np
from av.codec.context import Flags
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from streampose.errors import SourceError
from streampose.redact import redact
from streampose.ring import Drop
from streampose.sources.address import check_url
from streampose.sources.pace import LATE_S, Pace
from streampose.sources.reader import DecodeFailedError, DisconnectedError, Picture
from streampose.sources.video import open_video, reason, to_image

OPEN_S = 5.0
"""How long a camera may take to answer."""
SILENT_S = 2.0
"""A connection that brings nothing for so long is given up; slow cameras get more."""
LONGEST_SILENT_S = 15.0
UNDECODED_S = 5.0
"""A connection whose packets give no picture for so long is given up."""
KEYLESS_S = 30.0
"""But so long where no key frame came yet: with some cameras they are far apart."""
UNTIMELY_S = 8.0
"""A connection of which no picture was on time for so long is given up; slow cameras get more. A camera reports its
clock every five seconds or so, and until then a slow clock cannot be told from a slow network."""
BEHIND_S = 1.0
"""Late pictures are decoded for so long, then skipped to the next key frame."""
NOMINAL_FPS = 25.0
PLAUSIBLE_AGE_S = (-0.25, 10.0)
"""How old a picture may be by the camera's clock for that clock to be believed."""

_LOW_DELAY = {"probesize": "32", "analyzeduration": "0"}
_ANSWERS: dict[type[Exception], str] = {
    av.error.HTTPUnauthorizedError: "the camera refuses the user name or password",
    av.error.HTTPForbiddenError: "the camera forbids this user the stream",
    av.error.HTTPNotFoundError: "the camera has nothing at this path",
    av.error.HTTPClientError: "the camera refuses the request, or has no video",
    av.error.HTTPServerError: "the camera answers with an error of its own",
    av.error.ConnectionRefusedError: "nothing listens at this address",
    av.error.ConnectionResetError: "the connection was cut",
    av.error.TimeoutError: "no answer in time",
    av.error.ExitError: "no answer in time",
    av.error.InvalidDataError: "what answers there does not speak RTSP, or not of a video",
    av.error.EOFError: "the connection was closed",
}
_KEPT = 64

log = logging.getLogger(__name__)


class RtspCamera:
    """How to reach one camera, again and again.

    It first asks FFmpeg not to look ahead, which brings the first picture at once. Where that gave no picture, the next
    connection lets it probe for as long as it likes.
    """

    def __init__(self, url: str, transport: str = "tcp", hwaccel: str | None = None) -> None:
        """Nothing is opened yet.

        Args:
            url: with credentials, if the camera wants some.
            transport: "tcp" or "udp".
            hwaccel: a hardware decoder's name, as "cuda".

        Raises:
            UsageError: the URL names no host.
        """
        self.name = redact(url)
        self._url = url
        self._address = check_url(url)
        self._transport = transport
        self._hwaccel = hwaccel
        self._probe = False
        self._silent_s = SILENT_S
        self._last: RtspReader | None = None

    def connect(self) -> RtspReader:
        """Connect, now.

        Raises:
            SourceError: it cannot be reached, refuses, or sends no video.
        """
        self._learn()
        began_s = time.monotonic()
        options = {"rtsp_transport": self._transport, "allowed_media_types": "video"}
        try:
            _resolve(*self._address)
            container = open_video(
                self._url,
                self.name,
                self._hwaccel,
                options=options if self._probe else options | _LOW_DELAY,
                timeout=(OPEN_S, self._silent_s),
            )
        except (FFmpegError, OSError, ValueError) as error:
            late = time.monotonic() - began_s >= OPEN_S
            if isinstance(error, av.error.InvalidDataError) and not late:
                self._probe = not self._probe
            text = f"no answer in {OPEN_S:.0f} s" if late else _explain(error)
            log.debug("%s: FFmpeg says: %s", self.name, reason(error))
            raise SourceError(f"{self.name}: {text}") from None  # its own text holds the password
        if not container.streams.video:
            container.close()
            raise SourceError(f"{self.name}: the camera sends no video")
        self._last = RtspReader(self.name, container, self._silent_s, self._transport)
        return self._last

    def _learn(self) -> None:
        """From how the last connection went, how to make the next one."""
        last, self._last = self._last, None
        if last is None:
            return
        if not last.decoded and last.packets:
            self._probe = not self._probe
        self._silent_s = min(LONGEST_SILENT_S, max(SILENT_S, 2 * last.stall_s))
        if last.packets == 1:  # too slow a camera to be told from a dead one so soon
            self._silent_s = min(LONGEST_SILENT_S, 2 * last.silent_s)


@dataclass(frozen=True, slots=True)
class _Note:
    """What is known of a packet until its picture leaves the decoder."""

    arrived_ns: int
    captured_ns: int | None
    fresh: bool
    section: int


class RtspReader:
    """The pictures of one connection."""

    live = True

    def __init__(
        self, name: str, container: av.container.InputContainer, silent_s: float, transport: str = "tcp"
    ) -> None:
        self.name = name
        self._transport = transport
        self.silent_s = silent_s
        self.packets = 0
        self.decoded = 0
        self._container = container
        self._stream: VideoStream = container.streams.video[0]
        self._stream.codec_context.flags |= Flags.low_delay
        self.fps = float(self._stream.average_rate or NOMINAL_FPS)
        self._pace = Pace()
        self._notes: dict[int | None, _Note] = {}
        self._fresh_ns = self._decoded_ns = 0
        self._gaps = 0
        self._keyed = False
        self._pts_s = 0.0
        self._captured_ns = 0
        self._skipping = False
        self._believed: bool | None = None

    @property
    def codec(self) -> str:
        """FFmpeg's name of the video's codec."""
        return self._stream.codec_context.name

    @property
    def stall_s(self) -> float:
        """How long without a picture is a stall of this camera, seconds."""
        return self._pace.stall_s

    def pictures(self) -> Iterator[Picture]:
        """See `Reader.pictures`. A camera has no end: a connection that closes is a DisconnectedError."""
        began_ns = heard_ns = decoded_ns = self._fresh_ns = time.monotonic_ns()
        try:
            for packet in self._container.demux(self._stream):
                arrived_ns = time.monotonic_ns()
                silent_s, heard_ns = (arrived_ns - heard_ns) / 1e9, arrived_ns
                if silent_s >= self.silent_s:  # FFmpeg hands out what it had half of, and would wait once more
                    raise DisconnectedError(f"{self.name}: {self._silence(silent_s)}")
                if packet.size:
                    self.packets += 1
                    count = self.decoded
                    yield from self._decode(packet, arrived_ns)
                    decoded_ns = arrived_ns if self.decoded > count or self._skipping else decoded_ns
                self._check(arrived_ns, decoded_ns)
        except (FFmpegError, OSError) as error:
            silent_s = (time.monotonic_ns() - heard_ns) / 1e9
            text = self._silence(silent_s) if silent_s >= self.silent_s else _explain(error)
            raise DisconnectedError(f"{self.name}: {text}") from None  # its own text holds the password
        lasted_s = (time.monotonic_ns() - began_ns) / 1e9
        raise DisconnectedError(f"{self.name}: the camera closed the connection after {lasted_s:.1f} s")

    def close(self) -> None:
        """Close the connection."""
        self._container.close()

    def _silence(self, silent_s: float) -> str:
        blocked = self._transport == "udp" and not self.packets
        advice = " over UDP; where a firewall stops that, use transport tcp" if blocked else ""
        return f"sent nothing for {silent_s:.1f} s{advice}"

    def _check(self, now_ns: int, decoded_ns: int) -> None:
        """Raise where packets come and no picture of them can be used."""
        limit_s = UNDECODED_S if self._keyed else KEYLESS_S
        if now_ns - decoded_ns > limit_s * 1e9:
            what = "picture" if self._keyed else "key frame"
            raise DecodeFailedError(f"{self.name}: no {what} in {limit_s:.0f} s of what the camera sends")
        if now_ns - self._fresh_ns > max(UNTIMELY_S, 3 * self.stall_s) * 1e9:
            late_s = self._pace.late_s
            why = "pictures come in bursts, or their presentation times are wrong"
            if late_s > LATE_S:
                why = f"pictures come {late_s:.1f} s late; is the network slower than the camera? Lower its bit rate"
            raise DisconnectedError(f"{self.name}: {why}")

    def _decode(self, packet: Packet[VideoStream], arrived_ns: int) -> Iterator[Picture]:
        """The pictures that a packet completes."""
        time_s = self._time_s(packet)
        taken_s = _taken_s(packet)
        fresh = self._pace.judge(time_s, arrived_ns / 1e9, taken_s)
        self._fresh_ns = arrived_ns if fresh else self._fresh_ns
        self._keyed |= packet.is_keyframe
        if not fresh and self._pace.settling_s(arrived_ns / 1e9) > BEHIND_S:
            self._skipping = True
        if self._skipping and not (fresh and packet.is_keyframe):
            yield self._lost(time_s, arrived_ns, Drop.BEHIND)
            return
        self._skipping = False
        captured_ns = self._captured(packet, arrived_ns) if fresh else None
        if len(self._notes) >= _KEPT:
            del self._notes[next(iter(self._notes))]
        self._notes[packet.pts] = _Note(arrived_ns, captured_ns, fresh, self._pace.section)
        began = time.perf_counter()
        try:
            frames = packet.decode()
        except FFmpegError as error:
            log.debug("%s: a packet cannot be decoded (%s)", self.name, reason(error))
            yield self._lost(time_s, arrived_ns, Drop.DAMAGED)
            return
        spent_s = (time.perf_counter() - began) / max(1, len(frames))
        for frame in frames:
            yield self._picture(frame, time_s, arrived_ns, spent_s)

    def _picture(self, frame: VideoFrame, time_s: float, arrived_ns: int, spent_s: float) -> Picture:
        self.decoded += 1
        note = self._notes.pop(frame.pts, None) or _Note(arrived_ns, None, False, self._pace.section)
        stale = not note.fresh or arrived_ns - note.arrived_ns > self.stall_s * 1e9
        if not frame.is_corrupt:
            if self._decoded_ns and arrived_ns - self._decoded_ns > self.stall_s * 1e9:  # nothing could be decoded
                stale, self._gaps = True, self._gaps + 1
            self._decoded_ns = arrived_ns
        drop = Drop.DAMAGED if frame.is_corrupt else Drop.STALE if stale else None
        if frame.pts is not None and frame.time is not None:
            time_s = frame.time
        section = note.section + self._gaps
        return Picture(partial(to_image, frame), time_s, note.arrived_ns, spent_s, note.captured_ns, section, drop)

    def _lost(self, time_s: float, arrived_ns: int, why: Drop) -> Picture:
        return Picture(_nothing, time_s, arrived_ns, 0.0, None, self._pace.section + self._gaps, why)

    def _time_s(self, packet: Packet[VideoStream]) -> float:
        """When the packet's picture was to be shown; FFmpeg does not know it of a connection's first packet."""
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is not None:
            self._pts_s = float(stamp * packet.time_base)
        return self._pts_s

    def _captured(self, packet: Packet[VideoStream], arrived_ns: int) -> int | None:
        """Monotonic time of capture by the camera's clock; None before its first report, or where it is wrong."""
        wall_us = _producer_time_us(packet)
        if wall_us is None:
            return None
        age_s = time.time() - wall_us / 1e6
        believed = PLAUSIBLE_AGE_S[0] <= age_s <= PLAUSIBLE_AGE_S[1]
        if believed != self._believed:
            self._believed = believed
            if not believed:
                log.warning(
                    "%s: the camera's clock is %.1f s off; times are of arrival (set its NTP server)", self.name, -age_s
                )
        if not believed:
            return None
        self._captured_ns = min(arrived_ns, max(self._captured_ns + 1, arrived_ns - int(age_s * 1e9)))
        return self._captured_ns


def _producer_time_us(packet: Packet[VideoStream]) -> int | None:
    """The camera's wall clock at capture, microseconds since 1970, from its last RTCP report."""
    for data in packet.iter_sidedata():
        if data.data_type == "prft" and len(bytes(data)) >= 8:
            return int(struct.unpack_from("=q", bytes(data))[0])
    return None


def _taken_s(packet: Packet[VideoStream]) -> float | None:
    """When the picture whose turn it is to be decoded was taken, by the camera's wall clock, seconds."""
    wall_us = _producer_time_us(packet)
    if wall_us is None:
        return None
    ahead = packet.pts - packet.dts if packet.pts is not None and packet.dts is not None else 0
    return wall_us / 1e6 - float(ahead * packet.time_base)


def _nothing() -> NDArray[np.uint8]:
    return np.zeros((1, 1, 3), np.uint8)


def _resolve(host: str, port: int) -> None:
    """Look the host up, since FFmpeg only says "input/output error" of an unknown one."""
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise OSError(0, f"no host is called {host}") from None


def _explain(error: Exception) -> str:
    """Why a camera cannot be read, without its URL."""
    for kind, text in _ANSWERS.items():
        if isinstance(error, kind):
            return text
    return f"cannot be reached ({reason(error)})"
