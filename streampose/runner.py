"""`streampose run` and `streampose bench`: a pipeline whose results go to every output that was asked for."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, cast

from streampose.endpoint import to_publish_at
from streampose.engines.store import BACKENDS, choose_engine
from streampose.errors import OutputError, UsageError
from streampose.jsonl import PeopleWriter, to_line
from streampose.keys import read_pair
from streampose.notify import notify
from streampose.people import PersonDetector
from streampose.pictures import Pictures
from streampose.pipeline import Pipeline, Result
from streampose.publish import Publisher
from streampose.settings import Settings
from streampose.smoothing import Smoother, Smoothing
from streampose.sources import PACES, Camera, open_sources, unique_name
from streampose.ticker import Listener, Ticker
from streampose.types import Frame, PoseFrame
from streampose.wire import check_name

if TYPE_CHECKING:
    from streampose.metrics import RunSummary
    from streampose.render import OverlayWriter

log = logging.getLogger(__name__)

_FALLBACK_FPS = 30.0


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What `streampose run` was asked to do; names as on the command line.

    Attributes:
        sources: URIs, or cameras with what else is asked of them.
        publish: endpoint, or None to publish nothing.
        save: people.jsonl, or None.
        keys, insecure: see `Publisher`.
        smooth: how all results are smoothed; None leaves them raw.
        render: video with the poses drawn in, or None; of several sources each gets its own, `out-SOURCE.mp4`.
        control: path of the control socket, or None for none; with one, the run goes on when no source is left.
        control_must: whether a control socket that cannot be made ends the run.
        metrics_port, metrics_host: where figures are served over HTTP; no port for nowhere.
        keep_trying: go on where no camera could be connected to.
        batch_wait_s, batch_frames: see `Settings`.
    """

    sources: tuple[str | Camera, ...]
    model: str = "lite"
    backend: str = "auto"
    detector: str = "person"
    detect_every: int = 3
    pace: str = "auto"
    max_frames: int | None = None
    publish: str | None = None
    save: Path | None = None
    render: Path | None = None
    control: Path | None = None
    control_must: bool = True
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    keep_trying: bool = False
    batch_wait_s: float = 0.005
    batch_frames: int = 16
    keys: Path | None = None
    insecure: bool = False
    smooth: Smoothing | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UsageError(f"backend is one of {', '.join(BACKENDS)}, not {self.backend!r}")
        if self.pace not in PACES:
            raise UsageError(f"pace is one of {', '.join(PACES)}, not {self.pace!r}")
        if self.publish is not None:
            to_publish_at(self.publish, self.keys is not None, self.insecure)
        uris = [source.uri if isinstance(source, Camera) else source for source in self.sources]
        _check_outputs(uris, self.save, self.render)


def _check_outputs(sources: Sequence[str], save: Path | None, render: Path | None) -> None:
    """Refuse outputs that would destroy a source or each other, before anything is opened."""
    if render is not None and render.suffix.lower() != ".mp4":
        raise UsageError(f"--render {render}: the video is an MP4, give it a name that ends in .mp4")
    if save is not None and render is not None and save.resolve() == render.resolve():
        raise UsageError(f"--save and --render both name {save}; give them two names")
    for option, path in (("--save", save), ("--render", render)):
        if path is None:
            continue
        if not path.parent.is_dir():
            raise OutputError(f"{option} {path}: there is no folder {path.parent}")
        _spare_sources(option, path, sources)


def _spare_sources(option: str, path: Path, sources: Sequence[str]) -> None:
    """Refuse an output that is a source, or a file in a folder of pictures that is one."""
    if not path.exists():
        return
    for source in sources:
        if os.path.exists(source) and os.path.samefile(path, source):
            raise UsageError(f"{option} {path} is the source itself, which it would overwrite; give another name")
        if os.path.isdir(source) and os.path.samefile(path.parent, source):
            raise UsageError(
                f"{option} {path} lies in the source's folder, whose file it would overwrite; give another"
            )


def _video_path(render: Path, source_id: str, alone: bool) -> Path:
    """Where the video of a source goes: of several, each has its own."""
    return render if alone else render.with_stem(f"{render.stem}-{source_id}")


class Watcher(Listener, Protocol):
    """Who looks on. Called from two threads."""

    def add(self, frame: PoseFrame) -> None:
        """A result, after all outputs have it."""

    def end(self, summary: RunSummary) -> None:
        """What came of the run; also of one that failed, where it had begun."""


def run_pipeline(
    options: RunOptions,
    watcher: Watcher,
    stop: threading.Event,
    print_line: Callable[[bytes], None] | None = None,
) -> None:
    """Run until the sources end or `stop` is set; what waits then is still estimated and put out.

    Args:
        print_line: gets each result as a line of people.jsonl.

    Raises:
        StreamposeError: a source, a model or an output failed; all outputs are closed then.
    """
    with ExitStack() as stack:
        sources = open_sources(options.sources, options.pace)
        for source in sources:
            stack.callback(source.close)
        if options.render is not None:
            uris = [source.uri if isinstance(source, Camera) else source for source in options.sources]
            for source in sources:
                _spare_sources("--render", _video_path(options.render, source.id, len(sources) == 1), uris)
        if options.publish is not None:
            for source in sources:
                check_name(source.id)
        if options.keys is not None:
            read_pair(options.keys)
        engine = choose_engine(options.model, options.backend)
        detector = None if options.detector == "none" else PersonDetector(options.detector)
        pipeline = Pipeline(sources, engine, detector, _settings(options), stop)
        outputs: list[Callable[[Result], None]] = []
        publisher = None
        if options.publish is not None:
            publisher = Publisher(
                options.publish,
                model=engine.manifest.name,
                offsets=engine.manifest.offsets,
                keys=options.keys,
                insecure=options.insecure,
                on_crash=pipeline.fail,
            )
            outputs.append(_of_poses(stack.enter_context(publisher).publish))
            outputs.append(_of_frame(stack.enter_context(Pictures(publisher, pipeline.fail)).offer))
            log.info("publishing at %s", publisher.endpoint)
        if options.save is not None:
            outputs.append(_of_poses(stack.enter_context(PeopleWriter(options.save)).write))
        if options.render is not None:
            outputs.append(stack.enter_context(_Overlays(options.render, pipeline)).write)
        if print_line is not None:
            outputs.append(lambda result: print_line(to_line(result.poses)))
        outputs.append(_of_poses(watcher.add))
        _serve(options, pipeline, stack)
        smoother = None if options.smooth is None else Smoother(options.smooth)
        stack.callback(lambda: watcher.end(pipeline.summary()))
        stack.enter_context(Ticker(pipeline, watcher, publisher))
        results = stack.enter_context(closing(cast("Generator[Result]", pipeline.results())))
        notify("READY=1")
        stack.callback(notify, "STOPPING=1")
        for result in results:
            shown = result
            if smoother is not None:
                smoother.keep({source.id for source in pipeline.sources})
                shown = Result(result.frame, smoother.smooth(result.poses))
            with pipeline.metrics.time("publish"):
                for put in outputs:
                    put(shown)


def _settings(options: RunOptions) -> Settings:
    return Settings(
        detect_every=options.detect_every,
        max_frames=options.max_frames,
        batch_wait_s=options.batch_wait_s,
        batch_frames=options.batch_frames,
        keep_trying=options.keep_trying,
        keep_open=options.control is not None,
    )


def _serve(options: RunOptions, pipeline: Pipeline, stack: ExitStack) -> None:
    """Begin to answer whoever asks about the run or wants it changed."""
    if options.control is not None:
        from streampose.control import ControlServer

        try:
            stack.enter_context(ControlServer(options.control, pipeline))
        except OutputError as error:
            if options.control_must:
                raise
            log.warning("no control socket: %s", error)
    if options.metrics_port is not None:
        from streampose.monitor import Monitor

        monitor = stack.enter_context(Monitor(pipeline, options.metrics_port, options.metrics_host))
        host = f"[{options.metrics_host}]" if ":" in options.metrics_host else options.metrics_host
        log.info("figures at http://%s:%d/metrics", host, monitor.port)


def _of_poses(put: Callable[[PoseFrame], None]) -> Callable[[Result], None]:
    return lambda result: put(result.poses)


def _of_frame(put: Callable[[Frame], None]) -> Callable[[Result], None]:
    return lambda result: put(result.frame)


class _Overlays:
    """One video a source, created with its first frame, and finished with the next frame of any once it is removed. One
    that comes back under the same name gets another file, `out-SOURCE-2.mp4`."""

    def __init__(self, path: Path, pipeline: Pipeline) -> None:
        self._path = path
        self._alone = len(pipeline.sources) == 1
        self._pipeline = pipeline
        self._writers: dict[str, OverlayWriter] = {}
        self._names: set[str] = set()

    def write(self, result: Result) -> None:
        frame = result.frame
        for gone in self._writers.keys() - {source.id for source in self._pipeline.sources}:
            self._writers.pop(gone).close()
        writer = self._writers.get(frame.source_id)
        if writer is None:
            from streampose.render import OverlayWriter

            path = _video_path(self._path, frame.source_id, self._alone and not self._names)
            path = path.with_stem(unique_name(path.stem, self._names))
            self._names.add(path.stem)
            fps = next((s.fps for s in self._pipeline.sources if s.id == frame.source_id), 0.0) or _FALLBACK_FPS
            writer = OverlayWriter(path, fps, (frame.height, frame.width))
            self._writers[frame.source_id] = writer
        writer.write(frame, result.poses)

    def __enter__(self) -> _Overlays:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack = ExitStack()
        for writer in self._writers.values():
            stack.push(writer)
        stack.__exit__(kind, error, trace)
