"""Spans and durations of requests: FastAPI's own, in the HTTP conventions, without what a query holds.

A request that comes with a trace context goes on in that trace, and so do the tasks that it makes.
"""

from __future__ import annotations

from typing import Any

from fastapi.telemetry import TelemetryConfig
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Tracer, TracerProvider
from opentelemetry.util.types import Attributes
from starlette.types import Scope

from outrider.api.access_log import PROBES
from outrider.runtime.answer_links import PATH as ANSWER
from outrider.runtime.telemetry import Telemetry

QUERY = "url.query"
"""What may have anything in it: a cursor, a search, the signature of a link."""


def http_telemetry(told: Telemetry) -> TelemetryConfig:
    """What FastAPI is to be told as `telemetry=`: nothing where the program has set up no SDK, as in `told`."""
    return {
        "tracing": told.traces is not None,
        "tracer_provider": None if told.traces is None else _WithoutQueries(told.traces),
        "metrics": told.meters is not None,
        "meter_provider": told.meters,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": _is_probe,
    }


def _is_probe(scope: Scope) -> bool:
    """What is not traced: probes, and links to answer by, whose path is all that it takes to answer."""
    return scope["path"] in PROBES or scope["path"].startswith(ANSWER)


class _WithoutQueries(TracerProvider):
    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider

    def get_tracer(self, *given: Any, **named: Any) -> Tracer:
        return _Tracer(self._provider.get_tracer(*given, **named))


class _Tracer(Tracer):
    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        *rest: Any,
        **named: Any,
    ) -> Span:
        plain = {key: value for key, value in (attributes or {}).items() if key != QUERY}
        return self._tracer.start_span(name, context, kind, plain, *rest, **named)

    @property
    def start_as_current_span(self) -> Any:
        """As it is: no request begins so."""
        return self._tracer.start_as_current_span
