"""What is logged and traced of requests, by real connections: enough to find one, and nothing of what was said."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse

from outrider import Outrider
from outrider.api.access_log import AccessLog
from outrider.api.health import health_routes
from outrider.api.tracing import http_telemetry
from outrider.runtime.facade import Runtime
from outrider.runtime.telemetry import Telemetry
from tests.api.loopback import serving
from tests.telemetry import Told, attributes_of, ident, listening, parent, traces

pytestmark = pytest.mark.anyio
app = Outrider()
TRACE = "0af7651916cd43dd8448eb211c80319c"
SECRET = "sesame"


@app.tool
def nothing() -> None:
    pass


def admit(request: Request) -> None:
    request.scope["outrider.caller"] = SimpleNamespace(name="ci", organization_id="org_a")


def application(runtime: Runtime | None = None, telemetry: Telemetry | None = None) -> FastAPI:
    router = APIRouter(prefix="/sessions")

    @router.post("/{session_id}/tasks", dependencies=[Depends(admit)])
    async def create(session_id: str, request: Request) -> dict[str, str]:
        await request.body()
        if runtime is None:
            return {}
        session = await runtime.sessions.create(id=session_id)
        return {"id": (await session.spawn("nothing")).id}

    @router.get("/{session_id}/broken")
    async def broken(session_id: str) -> None:
        raise RuntimeError("broken")

    outer = APIRouter(prefix="/v1")
    outer.include_router(router)
    made = FastAPI(telemetry=http_telemetry(telemetry or Telemetry()))
    made.include_router(outer)
    if runtime is not None:
        made.include_router(health_routes(runtime))
    made.add_middleware(AccessLog)
    return made


class Lines:
    """The fields of the lines about requests, as they come."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def __iter__(self) -> Iterator[dict[str, Any]]:
        fields = (getattr(record, "outrider", {}) for record in self._caplog.records)
        return (each for each in fields if each.get("event") == "request")

    async def until(self, count: int) -> list[dict[str, Any]]:
        async with asyncio.timeout(10):
            while len(found := [*self]) < count:  # noqa: ASYNC110 - a line rings no bell
                await asyncio.sleep(0.005)
        return found


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level(logging.INFO, "outrider")
    return Lines(caplog)


async def test_a_request_is_one_line_with_its_route_and_nothing_of_what_was_said(lines: Lines, caplog):
    headers = {"authorization": f"Bearer {SECRET}", "x-request-id": "mine-1"}
    async with serving(application()) as client:
        answer = await client.post(f"/v1/sessions/{SECRET}/tasks?q={SECRET}", json={"prompt": SECRET}, headers=headers)
        assert answer.headers["x-request-id"] == "mine-1"
        await client.get(f"/{SECRET}", headers={"x-request-id": f"no\t{SECRET} plain"})
        assert (await client.get("/v1/sessions/a/broken")).status_code == 500
    created, missing, broken = await lines.until(3)
    assert created.pop("seconds") > 0
    assert created == {
        "event": "request",
        "method": "POST",
        "route": "/v1/sessions/{session_id}/tasks",
        "status": 200,
        "request": "mine-1",
        "caller": "ci",
        "organization": "org_a",
    }
    assert (missing["route"], missing["status"]) == (None, 404)
    assert missing["request"].startswith("request_")
    assert (broken["route"], broken["status"]) == ("/v1/sessions/{session_id}/broken", 500)
    told = [record for record in caplog.records if record.name == "outrider"]
    assert [record.levelname for record in told] == ["INFO", "INFO", "WARNING"]
    assert not [record for record in told if SECRET in record.getMessage()]


async def test_probes_are_not_logged_unless_somebody_wants_every_detail(lines: Lines, caplog):
    async with app.open("memory://", worker=False) as runtime, serving(application(runtime)) as client:
        await client.get("/health")
        caplog.set_level(logging.DEBUG, "outrider")
        await client.get("/ready")
    assert [each["route"] for each in lines] == ["/ready"]


async def test_a_stream_is_passed_on_as_it_comes_and_logged_when_it_ends_or_is_cut_off(lines: Lines):
    made, go_on = application(), asyncio.Event()

    @made.get("/stream")
    async def stream() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one\n"
            await go_on.wait()
            yield b"two\n"

        return StreamingResponse(pieces())

    async with serving(made) as client:
        async with client.stream("GET", "/stream") as answer:
            pieces = answer.aiter_lines()
            assert await anext(pieces) == "one"
            assert [*lines] == []
            go_on.set()
            assert await anext(pieces) == "two"
        (whole,) = await lines.until(1)
        assert "cut" not in whole
        go_on.clear()
        async with client.stream("GET", "/stream") as answer:
            assert await anext(answer.aiter_lines()) == "one"
        assert (await lines.until(2))[1]["cut"] is True


async def test_a_request_goes_on_in_its_callers_trace_and_so_does_the_task_that_it_makes(lines: Lines):
    with listening() as told:
        async with app.open("memory://") as runtime:
            async with serving(application(runtime, runtime.services.telemetry)) as client:
                answer = await client.post(
                    f"/v1/sessions/session_a/tasks?signature={SECRET}",
                    headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
                )
                await client.get("/health")
            await (await runtime.task(answer.json()["id"])).result()
            await _until(told)
    span = told.span("POST /v1/sessions/{session_id}/tasks")
    assert f"{parent(span):016x}" == "b7ad6b7169203331"
    assert SECRET not in str(attributes_of(span))
    assert parent(told.span("outrider.attempt")) == ident(span)
    assert traces(told.spans()) == {int(TRACE, 16)}
    assert [each["trace"] for each in lines] == [TRACE]
    assert [key for key in told.metrics() if key.startswith("http.")] != []


async def _until(told: Told) -> None:
    async with asyncio.timeout(10):
        while not told.spans("outrider.task") or not told.spans("outrider.attempt"):  # noqa: ASYNC110 - nor does a span
            await asyncio.sleep(0.005)
