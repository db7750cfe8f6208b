"""An SDK with exporters in memory, in place of the process's providers for as long as a test lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Told:
    """What has been told so far."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.traces = TracerProvider()
        self.traces.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider([self._reader])

    def spans(self, name: str = "") -> list[ReadableSpan]:
        """The spans that have ended, in the order of their begin."""
        found = [span for span in self._exporter.get_finished_spans() if not name or span.name == name]
        return sorted(found, key=lambda span: span.start_time or 0)

    def span(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span

    def metrics(self) -> dict[str, list[Any]]:
        """The points of each instrument."""
        data = self._reader.get_metrics_data()
        scopes = [scope for resource in (data.resource_metrics if data else ()) for scope in resource.scope_metrics]
        return {metric.name: list(metric.data.data_points) for scope in scopes for metric in scope.metrics}

    def counted(self, name: str, without: str = "outrider.task.route") -> dict[tuple[Any, ...], float]:
        """The values of an instrument, or how many were measured, by the values of the attributes but one."""
        found: dict[tuple[Any, ...], float] = {}
        for point in self.metrics().get(name, []):
            key = tuple(value for attribute, value in (point.attributes or {}).items() if attribute != without)
            found[key] = found.get(key, 0) + (point.count if hasattr(point, "count") else point.value)
        return found


@contextmanager
def listening() -> Iterator[Told]:
    told = Told()
    with pytest.MonkeyPatch.context() as patch:
        # The API lets a process set its providers once, and a test needs them for itself alone.
        patch.setattr(trace, "_TRACER_PROVIDER", told.traces)
        patch.setattr(metrics._internal, "_METER_PROVIDER", told.meters)
        yield told
    told.traces.shutdown()
    told.meters.shutdown()


def parent(span: ReadableSpan) -> int:
    assert span.parent is not None
    return int(span.parent.span_id)


def ident(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def traces(spans: list[ReadableSpan]) -> set[int]:
    return {span.context.trace_id for span in spans if span.context is not None}


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})
