"""`/health`, `/ready` and `/metrics`: what those ask who start, balance and watch this process.

`/health` says that the process answers, and nothing of its store: a probe that restarts what lives, for want of a
store, restarts all of it at once. `/ready` says whether it can do its work. Neither tells anything that is not for
everybody; who may see the metrics is up to whoever includes these routes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.params import Depends
from fastapi.responses import JSONResponse
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from outrider.core.errors import StoreError
from outrider.runtime.counting import look
from outrider.runtime.facade import Runtime
from outrider.runtime.log import log
from outrider.runtime.records import Readiness, Record
from outrider.runtime.telemetry import Counted

T = TypeVar("T")
PROBLEM = "application/problem+json"

FRESH = 1.0
"""For how long, in seconds, a look at the store answers whoever asks whether it is ready: anybody may ask often."""

COUNT_FRESH = 5.0
"""The same of what the gauges show."""

PATIENCE = 2.0
"""Seconds that who asks for metrics waits for these."""


class Health(Record):
    """That the process answers."""

    status: str = "alive"


def measured() -> CollectorRegistry:
    """Have all that is measured from now on collected for Prometheus. To be called before the runtime is opened.

    A program that has set up an SDK keeps it, and this reads along; else one is set up that does nothing but this.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    reader = PrometheusMetricReader(registry=registry)
    provider = metrics.get_meter_provider()
    if not isinstance(provider, MeterProvider):
        metrics.set_meter_provider(MeterProvider([reader]))
    elif hasattr(provider, "add_metric_reader"):
        provider.add_metric_reader(reader)
    else:
        log.warning("/metrics tells of the process alone: this version of OpenTelemetry's SDK lets nobody read along")
    return registry


def health_routes(
    runtime: Runtime,
    *,
    registry: CollectorRegistry | None = None,
    is_draining: Callable[[], bool] = lambda: False,
    guard: Sequence[Depends] = (),
) -> APIRouter:
    """Return the routes of one process. Without a registry there is no `/metrics`; `guard` is what it depends on.

    `is_draining` says whether the process takes no new work since it is about to end.
    """
    router = APIRouter(tags=["health"], include_in_schema=False)  # beside /v1: clients are not generated from it
    asked = ["GET", "HEAD"]  # as some who balance do
    doctor = _Recent(FRESH, runtime.doctor.readiness)

    @router.api_route("/health", methods=asked, summary="Whether the process answers")
    async def health() -> Health:
        """Answer, which takes an event loop that lives. Says nothing of the store: restarting would not mend that."""
        return Health()

    @router.api_route(
        "/ready",
        methods=asked,
        summary="Whether the process can do its work",
        response_model=Readiness,
        responses={
            503: {
                "description": "It cannot: `details` has what is wrong. Send requests elsewhere.",
                "content": {PROBLEM: {"example": _problem("this process is about to end")}},
            }
        },
    )
    async def ready() -> Any:
        """Say whether the store can be written, its schema is known, and the worker of this process works."""
        if is_draining():
            return _not_ready("this process is about to end")
        found = await doctor.ask()
        if found.is_ready:
            return found
        wrong = "; ".join(each.text for each in found.checks if not each.is_well)
        return _not_ready(wrong, found)

    if registry is not None:
        scrape = _Scrape(runtime, registry)

        @router.get(
            "/metrics",
            summary="What is measured, for Prometheus",
            dependencies=guard,
            response_class=Response,
            responses={
                200: {
                    "description": "All metrics, in the text format that is asked for: Prometheus' own or OpenMetrics.",
                    "content": {"text/plain": {}, "application/openmetrics-text": {}},
                }
            },
        )
        async def metrics(request: Request) -> Response:
            """Tell what this process measures, and what the store holds by now."""
            return await scrape.answer(request.headers.get("accept", ""))

    return router


class _Recent(Generic[T]):
    """Asks once for all who ask at the same time, or shortly after."""

    def __init__(self, fresh: float, ask: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._fresh = fresh
        self._ask = ask
        self._asked_at = -fresh
        self._answer: asyncio.Task[T] | None = None

    async def ask(self) -> T:
        """The answer, which may be as old as is fresh. Raises what asking raises."""
        if self._answer is None or (self._answer.done() and time.monotonic() - self._asked_at >= self._fresh):
            # A task of its own: who goes away does not take the answer of the others along.
            self._asked_at = time.monotonic()
            self._answer = asyncio.create_task(self._ask())
            self._answer.add_done_callback(_retrieved)
        return await asyncio.shield(self._answer)


class _Scrape:
    """Answers Prometheus."""

    def __init__(self, runtime: Runtime, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._counted = Counted()
        services = runtime.services.whole
        services.telemetry.watch(self._counted)
        self._counts = _Recent(COUNT_FRESH, lambda: look(services))

    async def answer(self, accept: str) -> Response:
        """What there is to tell. What the store holds is as it was last seen while it does not answer, or not soon."""
        with suppress(StoreError, TimeoutError):
            self._counted.counts = await asyncio.wait_for(self._counts.ask(), PATIENCE)
        encode, form = choose_encoder(accept)
        return Response(await asyncio.to_thread(self._told, encode), media_type=form)

    def _told(self, encode: Callable[[CollectorRegistry], bytes]) -> bytes:
        with self._lock:  # the exporter mixes up what it collects for two at once
            return encode(self._registry)


def _retrieved(answer: asyncio.Task[Any]) -> None:
    """Whoever asked may have gone; the loop need not complain that nobody heard of an error."""
    if not answer.cancelled():
        answer.exception()


def _not_ready(detail: str, found: Readiness | None = None) -> JSONResponse:
    return JSONResponse(_problem(detail, found), 503, media_type=PROBLEM, headers={"retry-after": "1"})


def _problem(detail: str, found: Readiness | None = None) -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": "Not ready",
        "status": 503,
        "code": "not_ready",
        "detail": detail,
        "details": None if found is None else found.model_dump(mode="json"),
    }
