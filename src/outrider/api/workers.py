"""The routes of workers, and of the store as a whole: numbers, and what is wrong with it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from outrider.api import wire
from outrider.api.access import FOR_OPERATORS, Operating, Reading
from outrider.api.paging import Page
from outrider.api.routing import noun
from outrider.runtime.records import Finding, StatsRecord, WorkerRecord

router = noun("workers")

YEAR = 366 * 86_400.0


@router.get("/workers", response_model=Page[WorkerRecord], openapi_extra=FOR_OPERATORS)
async def list_workers(runtime: Reading) -> Response:
    """List the registered workers, with what each holds."""
    return wire.page(await runtime.workers())


@router.get("/stats", response_model=StatsRecord, openapi_extra=FOR_OPERATORS)
async def get_stats(
    runtime: Reading,
    within: Annotated[float, Query(ge=0.001, le=YEAR, allow_inf_nan=False, description="Seconds.")] = 3600.0,
) -> Response:
    """Get the store in numbers: what there is, what waits, and what ended within so many seconds."""
    return wire.record(await runtime.stats(within))


@router.get("/doctor", response_model=Page[Finding], openapi_extra=FOR_OPERATORS)
async def examine(
    runtime: Operating, deep: Annotated[bool, Query(description="Compare every index with its table.")] = False
) -> Response:
    """Look at the database, the workers and the queue, and say what is wrong."""
    return wire.page(await runtime.doctor.examine(deep=deep))
