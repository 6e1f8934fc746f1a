"""A run's figures in the words of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from streampose.metrics import Histogram
from streampose.pipeline import Pipeline
from streampose.sources import Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def expose(pipeline: Pipeline) -> bytes:
    """All figures of a pipeline now, as the text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(pipeline))
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def collect(self) -> Iterator[Metric]:
        yield from self._times()
        yield from self._sources()
        metrics = self._pipeline.metrics
        yield CounterMetricFamily("streampose_poses", "People in all results.", metrics.count("poses"))

    def _times(self) -> Iterator[Metric]:
        stages = HistogramMetricFamily(
            "streampose_stage_seconds", "Time spent in a stage.", labels=["stage", "source"], unit="seconds"
        )
        latency = HistogramMetricFamily(
            "streampose_latency_seconds", "From capture to result.", labels=["source"], unit="seconds"
        )
        for (stage, source), histogram in self._pipeline.metrics.histograms().items():
            if stage == "total":
                latency.add_metric([source], _buckets(histogram), histogram.sum)
            else:
                stages.add_metric([stage, source], _buckets(histogram), histogram.sum)
        batches = HistogramMetricFamily("streampose_batch_people", "People in an engine call.")
        histogram = self._pipeline.metrics.batches()
        batches.add_metric([], _buckets(histogram), histogram.sum)
        yield from (stages, latency, batches)

    def _sources(self) -> Iterator[Metric]:
        frames = CounterMetricFamily("streampose_frames", "Results of a source.", labels=["source"])
        drops = CounterMetricFamily("streampose_dropped", "Frames not estimated.", labels=["source", "reason"])
        reconnects = CounterMetricFamily("streampose_reconnects", "Connections after the first.", labels=["source"])
        fps = GaugeMetricFamily(
            "streampose_source_fps", "Frames a second that the source announces; not measured.", labels=["source"]
        )
        age = GaugeMetricFamily("streampose_last_frame_age_seconds", "Since the last frame came.", labels=["source"])
        people = GaugeMetricFamily("streampose_people", "People in the last result.", labels=["source"])
        state = GaugeMetricFamily("streampose_source_state", "1 for what the source does.", labels=["source", "state"])
        counts = self._pipeline.counts()
        for source in self._pipeline.sources:
            results, last = counts.get(source.id, (0, 0))
            frames.add_metric([source.id], results)
            people.add_metric([source.id], last)
            reconnects.add_metric([source.id], source.reconnects)
            fps.add_metric([source.id], source.fps)
            if source.age_s < float("inf"):
                age.add_metric([source.id], source.age_s)
            for reason, count in source.ring.drops.items():
                drops.add_metric([source.id, reason], count)
            status = source.status
            for known in Status:
                state.add_metric([source.id, str(known)], float(known is status))
        yield from (frames, drops, reconnects, fps, age, people, state)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound, as Prometheus has them."""
    total, buckets = 0, []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", float(total)))
    return buckets
