"""The dashboard and the alerts ask for nothing that `/metrics` does not have, and for all that it has of ours.

A process is made to measure everything once, on a store in a file; its metrics are read as Prometheus reads them.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import yaml
from fastapi import FastAPI
from opentelemetry import metrics
from prometheus_client.parser import text_string_to_metric_families

from outrider import Failure, Outrider, TaskContext, TaskOptions
from outrider.api.health import health_routes, measured
from outrider.api.tracing import http_telemetry
from outrider.testing import Call, ModelFailure, Reply, open_test, replies, script
from tests.deploy.files import DEPLOY

pytestmark = pytest.mark.anyio
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "outrider.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
QUERIES = [
    *(target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())),
    *(rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]),
]
PROMETHEUS = {"up", "job", "instance", "le"}
"""What Prometheus adds by itself."""
OURS = ("outrider_", "http_", "process_", "gen_ai_", "error_type")

app = Outrider()


@app.tool
async def asks(task: TaskContext) -> bool:
    await task.step("before", lambda: 1)
    return await task.ask("Go on?", bool)


@app.tool(max_failures=2, backoff=0)
def fails() -> None:
    raise Failure("no luck", kind="out_of_luck", retryable=True)


begun = asyncio.Event()


@app.tool
async def hangs_once(task: TaskContext) -> None:
    begun.set()
    if task.attempt == 1:
        await asyncio.Event().wait()


@app.tool
def look(word: str) -> str:
    return word


async def everything_once() -> str:
    """What `/metrics` tells once all that is measured was measured."""
    registry = measured()
    script("worse", lambda turn: Reply(failure=ModelFailure(503)))
    script("dear", replies(Reply(calls=(Call("look", {"word": 1}),)), Reply("yes")))
    app.agent("seer", model=["scripted:worse", "scripted:dear"], tools=["look"])
    app.model("scripted:dear", input_price=1.0, output_price=1.0)
    async with open_test(app, store="sqlite") as runtime:
        session = await runtime.sessions.create()
        asking = await session.spawn("asks", options=TaskOptions(wake="on_terminal"))
        await session.spawn("fails")
        await runtime.run_until_idle()
        await session.spawn("hangs_once")
        await begun.wait()
        await runtime.crash()
        await runtime.run_until_idle()
        await runtime.advance(5)
        await asking.answer(True)
        await runtime.run_until_idle()
        await session.inbox.receive()
        talk = await runtime.sessions.create(agent="seer")
        await talk.send("look")
        await runtime.run_until_idle()
        await runtime.advance(60)
        await session.spawn("asks", options=TaskOptions(needs="gpu"))
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(application_of(runtime, registry)), base_url="http://test"
        ) as client:
            await client.get("/v1/nothing")
            runtime.services.telemetry.lease_lost()  # it takes a minute to lose one
            return (await client.get("/metrics")).text


def application_of(runtime: Any, registry: Any) -> FastAPI:
    made = FastAPI(telemetry=http_telemetry(runtime.services.telemetry))
    made.include_router(health_routes(runtime, registry=registry))
    made.add_api_route("/v1/nothing", lambda: None)
    return made


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", None)
    monkeypatch.setattr(
        metrics._internal, "_METER_PROVIDER_SET_ONCE", type(metrics._internal._METER_PROVIDER_SET_ONCE)()
    )
    yield
    getattr(metrics.get_meter_provider(), "shutdown", lambda: None)()


def names_in(query: str) -> set[str]:
    """The metrics and labels that a query has, without what is quoted."""
    words = set(re.findall(r"[a-z_][a-z0-9_]*", re.sub(r'"[^"]*"', '""', query)))
    return {word for word in words if word.startswith(OURS)}


def labels_in(text: str) -> set[str]:
    return set(re.findall(r"{{ ?\$?(?:labels\.)?([a-z_]+) ?}}", text)) - PROMETHEUS


async def test_all_that_is_asked_for_is_there_and_all_that_is_there_is_shown(alone):
    told = await everything_once()
    samples = [sample for family in text_string_to_metric_families(told) for sample in family.samples]
    there = {sample.name for sample in samples}
    labels = {label for sample in samples for label in sample.labels}
    for query in QUERIES:
        assert names_in(query) - there - labels == set(), query
        for selector in re.findall(r"([a-z_]+){([^}]*)}", query):
            of_metric = {label for each in samples if each.name == selector[0] for label in each.labels}
            assert set(re.findall(r"([a-z_]+)(?:=|!)", selector[1])) <= of_metric | PROMETHEUS, query
    asked = {name for query in QUERIES for name in names_in(query)}
    families = {family.name for family in text_string_to_metric_families(told) if family.name.startswith("outrider_")}
    shown = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in asked}
    assert families - shown == set()
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            assert labels_in(target["legendFormat"]) <= names_in(target["expr"]), panel["title"]


def test_the_dashboard_can_be_imported():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert [each["type"] for each in DASHBOARD["templating"]["list"]] == ["datasource", "query"]
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["title"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_a_query_of_what_is_not_there_would_be_seen():
    assert names_in('sum by (gen_ai_tool_name) (rate(outrider_nothing_total{error_type!=""}[5m]))') == {
        "gen_ai_tool_name",
        "outrider_nothing_total",
        "error_type",
    }


def test_every_alert_says_what_it_is_about_by_labels_that_it_has():
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert labels_in(rule["annotations"]["summary"]) <= names_in(rule["expr"]), rule["alert"]
