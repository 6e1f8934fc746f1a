"""`streampose run` and `streampose bench`: a pipeline whose results go to every output that was asked for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, cast

from streampose.endpoint import to_publish_at
from streampose.engines import load_engine
from streampose.errors import ModelError, OutputError, UsageError
from streampose.jsonl import PeopleWriter, to_line
from streampose.people import PersonDetector
from streampose.pictures import Pictures
from streampose.pipeline import Pipeline, Result, Settings
from streampose.publish import Publisher
from streampose.smoothing import Smoother, Smoothing
from streampose.sources import PACES, Source, Status, open_sources
from streampose.types import Frame, PoseFrame
from streampose.wire import check_name

if TYPE_CHECKING:
    from streampose.messages import State
    from streampose.metrics import RunSummary
    from streampose.render import OverlayWriter

log = logging.getLogger(__name__)

LATER_BACKENDS = ("tensorrt", "tensorrt-rtx", "torch-tensorrt")
_TICK_S = 0.5
_FALLBACK_FPS = 30.0
_STATES: dict[Status, State] = {
    Status.ONLINE: "online",
    Status.STALLED: "stalled",
    Status.OFFLINE: "offline",
    Status.ENDED: "ended",
}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What `streampose run` was asked to do; names as on the command line.

    Attributes:
        publish: endpoint, or None to publish nothing.
        save: people.jsonl, or None.
        keys, insecure: see `Publisher`.
        smooth: how all results are smoothed; None leaves them raw.
        render: video with the poses drawn in, or None; of several sources each gets its own, `out-SOURCE.mp4`.
    """

    sources: tuple[str, ...]
    model: str = "lite"
    backend: str = "auto"
    detector: str = "person"
    detect_every: int = 3
    pace: str = "auto"
    max_frames: int | None = None
    publish: str | None = None
    save: Path | None = None
    render: Path | None = None
    keys: Path | None = None
    insecure: bool = False
    smooth: Smoothing | None = None

    def __post_init__(self) -> None:
        if self.backend in LATER_BACKENDS:
            raise ModelError(f"backend {self.backend} is not available in this version; use --backend onnxruntime")
        if self.backend not in ("auto", "onnxruntime"):
            raise UsageError(f"backend is auto or onnxruntime, not {self.backend!r}")
        if self.pace not in PACES:
            raise UsageError(f"pace is one of {', '.join(PACES)}, not {self.pace!r}")
        if self.publish is not None:
            to_publish_at(self.publish, self.keys is not None, self.insecure)
        _check_outputs(self.sources, self.save, self.render)


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
        for source in sources:
            if path.exists() and Path(source).exists() and path.samefile(source):
                raise UsageError(f"{option} {path} is the source itself, which it would overwrite; give another name")


class Watcher(Protocol):
    """Who looks on. Called from two threads."""

    def add(self, frame: PoseFrame) -> None:
        """A result, after all outputs have it."""

    def set_state(self, source: str, state: str) -> None:
        """What a source is doing, twice a second."""

    def tick(self) -> None:
        """Half a second went by."""

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
        if options.publish is not None:
            for source in sources:
                check_name(source.id)
        engine = load_engine(options.model)
        detector = None if options.detector == "none" else PersonDetector(options.detector)
        outputs: list[Callable[[Result], None]] = []
        publisher = None
        if options.publish is not None:
            publisher = Publisher(
                options.publish,
                model=engine.manifest.name,
                offsets=engine.manifest.offsets,
                keys=options.keys,
                insecure=options.insecure,
                smoothed=options.smooth is not None,
            )
            outputs.append(_of_poses(stack.enter_context(publisher).publish))
            outputs.append(_of_frame(stack.enter_context(Pictures(publisher)).offer))
            log.info("publishing at %s", publisher.endpoint)
        if options.save is not None:
            outputs.append(_of_poses(stack.enter_context(PeopleWriter(options.save)).write))
        if options.render is not None:
            outputs.append(stack.enter_context(_Overlays(options.render, sources)).write)
        if print_line is not None:
            outputs.append(lambda result: print_line(to_line(result.poses)))
        outputs.append(_of_poses(watcher.add))
        smoother = None if options.smooth is None else Smoother(options.smooth)
        settings = Settings(detect_every=options.detect_every, max_frames=options.max_frames)
        pipeline = Pipeline(sources, engine, detector, settings, stop)
        stack.callback(lambda: watcher.end(pipeline.summary()))
        stack.enter_context(_Ticker(sources, publisher, watcher))
        results = stack.enter_context(closing(cast("Generator[Result]", pipeline.results())))
        for result in results:
            if smoother is not None:
                result = Result(result.frame, smoother.smooth(result.poses))
            for put in outputs:
                put(result)


def _of_poses(put: Callable[[PoseFrame], None]) -> Callable[[Result], None]:
    return lambda result: put(result.poses)


def _of_frame(put: Callable[[Frame], None]) -> Callable[[Result], None]:
    return lambda result: put(result.frame)


class _Overlays:
    """One video a source, created with its first frame."""

    def __init__(self, path: Path, sources: Sequence[Source]) -> None:
        self._paths = {source.id: path for source in sources}
        if len(sources) > 1:
            self._paths = {source.id: path.with_stem(f"{path.stem}-{source.id}") for source in sources}
        self._fps = {source.id: source.fps or _FALLBACK_FPS for source in sources}
        self._writers: dict[str, OverlayWriter] = {}
        self._stack = ExitStack()

    def write(self, result: Result) -> None:
        frame = result.frame
        writer = self._writers.get(frame.source_id)
        if writer is None:
            from streampose.render import OverlayWriter

            size = (frame.height, frame.width)
            writer = OverlayWriter(self._paths[frame.source_id], self._fps[frame.source_id], size)
            self._writers[frame.source_id] = self._stack.enter_context(writer)
        writer.write(frame, result.poses)

    def __enter__(self) -> _Overlays:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


class _Ticker:
    """A thread that looks at the sources twice a second, since a source that stalls gives no result to notice it by."""

    def __init__(self, sources: Sequence[Source], publisher: Publisher | None, watcher: Watcher) -> None:
        self._sources = sources
        self._publisher = publisher
        self._watcher = watcher
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(_TICK_S):
            self._look()
            self._watcher.tick()

    def _look(self) -> None:
        for source in self._sources:
            status = source.status
            self._watcher.set_state(source.id, str(status))
            if self._publisher is not None and status in _STATES:
                self._publisher.set_state(source.id, _STATES[status])

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
