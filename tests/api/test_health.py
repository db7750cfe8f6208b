"""`/health`, `/ready` and `/metrics`, asked over real connections to a server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_metrics

from outrider import Outrider
from outrider.api import health
from outrider.api.health import health_routes, measured
from outrider.core.errors import StoreNewer, StoreUnavailable
from outrider.runtime.facade import Runtime
from outrider.runtime.records import Readiness
from tests.api.loopback import serving

pytestmark = pytest.mark.anyio
app = Outrider()


@app.tool
def nothing() -> None:
    pass


def routes(runtime: Runtime, **more: Any) -> FastAPI:
    application = FastAPI(telemetry={"auto_configure": False})
    application.include_router(health_routes(runtime, **more))
    return application


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks twice is answered twice."""
    monkeypatch.setattr(health, "FRESH", 0.0)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The API lets a process set its provider once, and a test needs it for itself."""
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", None)
    monkeypatch.setattr(
        metrics._internal, "_METER_PROVIDER_SET_ONCE", type(metrics._internal._METER_PROVIDER_SET_ONCE)()
    )
    yield
    provider = metrics.get_meter_provider()
    if isinstance(provider, MeterProvider):
        provider.shutdown()


async def ready(client: httpx2.AsyncClient, status: int) -> dict[str, Any]:
    """What `/ready` says, once it is this status."""
    async with asyncio.timeout(10):
        while (answer := await client.get("/ready")).status_code != status:  # noqa: ASYNC110 - it is asked each time
            await asyncio.sleep(0.01)
    told: dict[str, Any] = answer.json()
    return told


def unwell(problem: dict[str, Any]) -> dict[str, Any]:
    found = Readiness.model_validate(problem["details"])
    assert not found.is_ready
    return {each.name: each.code or each.text for each in found.checks if not each.is_well}


async def test_a_process_with_a_worker_is_ready_once_that_works_and_no_more_when_it_ends(fresh, tmp_path: Path):
    async with app.open(str(tmp_path / "work.db")) as runtime:
        ending = False
        async with serving(routes(runtime, is_draining=lambda: ending)) as client:
            told = await ready(client, 200)
            assert {each["name"] for each in told["checks"] if each["is_well"]} == {"store", "schema", "worker"}
            ending = True
            answer = await client.get("/ready")
            assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
            assert answer.json()["code"] == "not_ready"
            assert (await client.get("/health")).json() == {"status": "alive"}


async def test_a_worker_that_starts_drains_is_lost_or_has_gone_is_not_ready(fresh):
    async with app.open("memory://") as runtime, serving(routes(runtime)) as client:
        await ready(client, 200)
        standing = runtime.services.standing
        worker: Any = standing.worker
        worker._is_draining = True
        assert "is draining" in unwell(await ready(client, 503))["worker"]
        worker._is_draining, worker._is_lost = False, True
        assert "is lost" in unwell(await ready(client, 503))["worker"]
        worker._is_lost = False
        renewed, worker._lease._renewed = worker._lease._renewed, -1e6
        assert "renewed 1" in unwell(await ready(client, 503))["worker"]
        worker._lease._renewed = renewed
        standing.worker = None
        assert unwell(await ready(client, 503)) == {"worker": "no worker runs in this process, and one should"}
        standing.worker = worker


async def test_a_process_without_a_worker_needs_none(fresh):
    async with app.open("memory://", worker=False) as runtime, serving(routes(runtime)) as client:
        assert [each["name"] for each in (await ready(client, 200))["checks"]] == ["store", "schema"]


async def test_a_store_that_cannot_be_written_is_not_ready_and_its_path_is_not_told(fresh, tmp_path: Path):
    path = tmp_path / "work.db"
    async with app.open(str(path), worker=False) as runtime, serving(routes(runtime)) as client:
        await ready(client, 200)
        moved = path.rename(tmp_path / "away.db")
        problem = await ready(client, 503)
        assert unwell(problem)["store"].startswith("store_")
        assert str(tmp_path) not in str(problem)
        moved.rename(path)


async def test_a_store_that_says_nothing_is_not_ready_in_bounded_time(fresh, monkeypatch: pytest.MonkeyPatch):
    def refuse(worker_id: str, timeout: float) -> bool:
        raise StoreUnavailable("the store did not answer")

    async def newer() -> int:
        raise StoreNewer("it has schema 99")

    async with app.open("memory://", worker=False) as runtime, serving(routes(runtime)) as client:
        monkeypatch.setattr(runtime.ledger, "renew", refuse)
        monkeypatch.setattr(runtime.ledger.views, "schema", newer)
        assert unwell(await ready(client, 503)) == {"store": "store_unavailable", "schema": "store_newer"}


async def test_many_who_ask_at_once_make_one_look(monkeypatch: pytest.MonkeyPatch):
    async with app.open("memory://", worker=False) as runtime, serving(routes(runtime)) as client:
        looks = 0
        renew = runtime.ledger.renew

        def counted(worker_id: str, timeout: float) -> bool:
            nonlocal looks
            looks += 1
            return renew(worker_id, timeout)

        monkeypatch.setattr(runtime.ledger, "renew", counted)
        answers = await asyncio.gather(*(client.get("/ready") for _ in range(20)))
        assert {each.status_code for each in answers} == {200}
        assert looks == 1


async def test_metrics_are_told_in_both_formats_and_by_a_process_without_a_worker(alone):
    registry = measured()
    async with app.open("memory://", worker=False) as runtime:
        session = await runtime.sessions.create()
        await session.spawn_many("nothing", [{}] * 3)
        async with serving(routes(runtime, registry=registry)) as client:
            plain = await client.get("/metrics")
            both = await asyncio.gather(
                *(client.get("/metrics", headers={"accept": "application/openmetrics-text"}) for _ in range(5))
            )
    assert plain.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in plain_metrics(plain.text)}
    (made,) = families["outrider_task_created"].samples
    assert (made.value, made.labels["outrider_task_kind"]) == (3, "background_tool")
    assert [sample.value for sample in families["outrider_queue_tasks"].samples] == [3]
    assert "process_resident_memory_bytes" in families
    for answer in both:
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        names = [family.name for family in open_metrics(answer.text)]
        assert len(names) == len(set(names))
        assert "outrider_task_created" in names


async def test_a_program_with_an_sdk_of_its_own_keeps_it_and_its_metrics_are_told_too(alone):
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    registry = measured()
    metrics.get_meter("theirs").create_counter("theirs").add(1)
    async with app.open("memory://", worker=False) as runtime:
        await (await runtime.sessions.create()).spawn("nothing")
        async with serving(routes(runtime, registry=registry)) as client:
            told = (await client.get("/metrics")).text
    assert "theirs_total" in told
    assert "outrider_task_created_total" in told
    data = reader.get_metrics_data()
    assert data is not None
    assert "outrider.task.created" in data.to_json()


async def test_without_a_registry_there_are_no_metrics():
    async with app.open("memory://", worker=False) as runtime, serving(routes(runtime)) as client:
        assert (await client.get("/metrics")).status_code == 404
