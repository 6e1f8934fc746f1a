"""What this machine has of what streampose needs, and the command that brings what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec

from streampose.control import default_path
from streampose.errors import StreamposeError
from streampose.probe import Probe, probe
from streampose.redact import redact
from streampose.sources import Camera

Verdict = Literal["ok", "note", "problem"]
DEFAULT_PORT = 5555
_DECODERS = {"h264": "most cameras", "hevc": "H.265 cameras", "mjpeg": "webcams and old cameras"}
_ENGINES = {
    "tensorrt": ("tensorrt", "pip install 'streampose[tensorrt]'"),
    "tensorrt-rtx": ("tensorrt_rtx", "pip install 'streampose[tensorrt-rtx]'"),
    "torch-tensorrt": ("torch_tensorrt", "pip install 'streampose[torch-tensorrt]'"),
}
_EXTRAS = {
    "train": ("training and building engines", ("torch",)),
    "record": ("recordings in Parquet", ("pyarrow",)),
    "web": ("streampose view", ("starlette", "uvicorn", "websockets")),
}
_JITTER_SHARE = 0.5
_LATE_MS = 500.0


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    Attributes:
        area: python, packages, codecs, gpu, engines, zeromq, ports, control or source.
        verdict: ok; note: works without it; problem: does not work.
        text: what was found.
        mend: the command or step that mends it; empty where nothing is to be mended.
        probe: of a source, what it sends.
    """

    area: str
    verdict: Verdict
    text: str
    mend: str = ""
    probe: Probe | None = None


def examine(sources: tuple[Camera, ...] = (), seconds: float = 5.0) -> Iterator[Finding]:
    """Look at this machine, then at each source for some seconds. Never raises: what fails is a finding."""
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (
        look_at_python, look_at_packages, look_at_codecs, look_at_gpu, look_at_engines, look_at_zeromq, look_at_ports,
        look_at_control,
    )  # fmt: skip
    for look in looks:
        try:
            yield from look()
        except Exception as error:
            area = look.__name__.removeprefix("look_at_")
            yield Finding(area=area, verdict="problem", text=f"the look failed with {type(error).__name__}: {error}")
    for camera in sources:
        yield look_at_source(camera, seconds)


def look_at_python() -> Iterator[Finding]:
    """The interpreter and the system."""
    text = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    yield Finding(area="python", verdict="ok", text=text)


def look_at_packages() -> Iterator[Finding]:
    """The packages that streampose asks for, as they are installed."""
    from packaging.requirements import Requirement

    for line in metadata.requires("streampose") or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            version = ""
        good = bool(version) and wanted.specifier.contains(version, prereleases=True)
        text = f"{wanted.name} {version or 'is missing'}" + ("" if good else f", {wanted.specifier} is needed")
        mend = "" if good else f"pip install '{wanted}'"
        yield Finding(area="packages", verdict="ok" if good else "problem", text=text, mend=mend)
    for extra, (what, modules) in _EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        text = f"{what}: {', '.join(missing)} missing" if missing else f"{what}: {', '.join(modules)} there"
        mend = f"pip install 'streampose[{extra}]'" if missing else ""
        yield Finding(area="packages", verdict="note" if missing else "ok", text=text, mend=mend)


def look_at_codecs() -> Iterator[Finding]:
    """What FFmpeg inside PyAV can decode and encode."""
    import av
    from av.codec.hwaccel import hwdevices_available

    mend = "pip install --force-reinstall --only-binary av av"
    for name, what in _DECODERS.items():
        there = name in av.codecs_available
        text = f"{name} ({what}) can {'' if there else 'not '}be decoded"
        yield Finding(area="codecs", verdict="ok" if there else "problem", text=text, mend="" if there else mend)
    there = "libx264" in av.codecs_available
    text = "--render can write H.264" if there else "--render cannot write H.264: this FFmpeg has no libx264"
    yield Finding(area="codecs", verdict="ok" if there else "note", text=text, mend="" if there else mend)
    kinds = ", ".join(hwdevices_available()) or "none"
    yield Finding(area="codecs", verdict="ok", text=f"hardware decoders that FFmpeg knows here (--hwaccel): {kinds}")


def look_at_gpu() -> Iterator[Finding]:
    """An NVIDIA GPU and its driver."""
    from streampose.engines.store import has_nvidia_gpu

    program = shutil.which("nvidia-smi")
    text = _ask_driver(program) if program else ""
    if has_nvidia_gpu():
        yield Finding(area="gpu", verdict="ok", text=text or "an NVIDIA GPU, and its driver answers")
    elif program or Path("/proc/driver/nvidia").exists():
        yield Finding(
            area="gpu", verdict="problem", text=text or "the NVIDIA driver is installed and finds no GPU",
            mend="install the driver again for the running kernel; in a container: docker run --gpus all",
        )  # fmt: skip
    else:
        yield Finding(area="gpu", verdict="note", text="no NVIDIA GPU; everything runs on the CPU")


def look_at_engines() -> Iterator[Finding]:
    """The bundled model, and which targets could be run here."""
    from streampose.engines.onnxruntime_cuda import is_offered
    from streampose.engines.store import choose_engine, has_nvidia_gpu

    try:
        engine = choose_engine("lite")
        text = f"model lite runs on {engine.manifest.target} in {engine.manifest.precision}"
        yield Finding(area="engines", verdict="ok", text=text)
    except StreamposeError as error:
        mend = "pip install --force-reinstall streampose"
        yield Finding(area="engines", verdict="problem", text=str(error), mend=mend)
    for target, (module, mend) in _ENGINES.items():
        there = find_spec(module) is not None
        if there or has_nvidia_gpu():
            text = f"{target}: {module} is {'there' if there else 'missing'}"
            if there:
                mend = ""
            yield Finding(area="engines", verdict="ok" if there else "note", text=text, mend=mend)
    offered = is_offered()
    if offered or has_nvidia_gpu():
        text = f"onnxruntime-cuda: this ONNX Runtime {'offers' if offered else 'has not'} the CUDA provider"
        mend = "" if offered else "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
        yield Finding(area="engines", verdict="ok" if offered else "note", text=text, mend=mend)


def look_at_zeromq() -> Iterator[Finding]:
    """libzmq, and whether it can encrypt."""
    import zmq

    curve = bool(zmq.has("curve"))
    text = f"libzmq {zmq.zmq_version()}, {'with' if curve else 'without'} CURVE"
    mend = "" if curve else "pip install --force-reinstall --only-binary pyzmq pyzmq"
    yield Finding(area="zeromq", verdict="ok" if curve else "problem", text=text, mend=mend)


def look_at_ports() -> Iterator[Finding]:
    """Whether the port that `run` publishes at is free."""
    with socket.socket() as probe_socket:
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind(("127.0.0.1", DEFAULT_PORT))
        except OSError as error:
            yield Finding(
                area="ports", verdict="note", text=f"port {DEFAULT_PORT} is not free ({error.strerror})",
                mend=f"end the run that has it, or publish elsewhere: --publish tcp://127.0.0.1:{DEFAULT_PORT + 1}",
            )  # fmt: skip
            return
    yield Finding(area="ports", verdict="ok", text=f"port {DEFAULT_PORT} is free")


def look_at_control() -> Iterator[Finding]:
    """Where the control socket would be."""
    folder = default_path().parent
    while not folder.exists():
        folder = folder.parent
    good = os.access(folder, os.W_OK)
    text = f"control socket: {default_path()}" + ("" if good else ", which this user cannot make")
    mend = "" if good else "export XDG_RUNTIME_DIR=/run/user/$(id -u), or name a place with --control"
    yield Finding(area="control", verdict="ok" if good else "note", text=text, mend=mend)


def look_at_source(camera: Camera, seconds: float) -> Finding:
    """What a source sends, or why it sends nothing."""
    try:
        seen = probe(camera, seconds)
    except StreamposeError as error:
        return Finding(area="source", verdict="problem", text=redact(str(error)), mend=_mend(str(error)))
    except Exception as error:
        text = redact(f"{camera.uri}: the look failed with {type(error).__name__}: {error}")
        return Finding(area="source", verdict="problem", text=text, mend=_mend(""))
    size = f"{seen.width}x{seen.height}"
    parts = [f"{seen.name}: {size}", *([seen.codec] if seen.codec else []), f"{seen.fps:g} fps"]
    parts.append(f"first picture after {seen.first_picture_s * 1e3:.0f} ms, decoding {seen.decode_ms:.1f} ms a picture")
    if seen.jitter_ms is not None:
        parts.append(f"jitter {seen.jitter_ms:.1f} ms")
        late = "not known (no RTCP report yet)" if seen.latency_ms is None else f"{seen.latency_ms:.0f} ms"
        parts.append(f"latency {late}")
    verdict: Verdict = "ok"
    mend = ""
    if seen.jitter_ms is not None and seen.jitter_ms > _JITTER_SHARE * 1e3 / seen.fps:
        verdict, mend = "note", "uneven: use a cable instead of radio, or try --transport udp"
    if seen.latency_ms is not None and seen.latency_ms > _LATE_MS:
        verdict, mend = "note", "late: set the camera's NTP server, and its stream to no B-frames and a low bit rate"
    return Finding(area="source", verdict=verdict, text=", ".join(parts), mend=mend, probe=seen)


def _mend(error: str) -> str:
    """What to do about a source that cannot be opened, by what its error says."""
    for words, mend in (
        (
            "user name or password",
            "export STREAMPOSE_RTSP_USER=... STREAMPOSE_RTSP_PASSWORD=..., or give them in the URL",
        ),
        ("at this path", "look up the camera's RTSP path in its web page; players accept the same URL: ffplay URL"),
        ("nothing listens", "switch RTSP on in the camera, and look at the port (554 is usual)"),
        ("no answer", "see whether the camera is on and reachable: ping its address"),
        ("no host is called", "use the camera's IP address, or mend the name in the DNS"),
        ("no such camera", "ls /dev/video*; sudo usermod -aG video $USER, then log in again"),
        ("no such file", "give the path of a file that is there"),
        ("cannot be read (Permission denied)", "chmod a+r FILE, or run as a user who may read it"),
    ):
        if words in error:
            return mend
    return "play it with another program to see whether it sends a picture: ffplay URL"


def _ask_driver(program: str) -> str:
    """GPU and driver as nvidia-smi tells them; empty where it does not."""
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.split("\n")).strip("; ") if done.returncode == 0 else ""
