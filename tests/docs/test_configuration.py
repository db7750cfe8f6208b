"""docs/configuration.md gives the defaults that the code has."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from outrider import Outrider, TaskOptions
from outrider.core.task import Retry, Timeouts
from outrider.runtime.clock import span
from outrider.settings import (
    CANCEL_GRACE,
    DEFAULT_DATABASE,
    EXTERNAL_LEASE,
    KIB,
    MIB,
    RELEASE_FAILURES,
    RELEASE_TIMEOUT,
    AccessSettings,
    ClientSettings,
    DelegationLimits,
    IssuerSettings,
    LeaseTimes,
    Limits,
    LocalModelSettings,
    ServeSettings,
    StreamSettings,
    WebhookSettings,
    WorkerSettings,
)

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
CHARACTERS = {"summary", "detail", "name"}
TOKENS = {"context_tokens", "answer_tokens", "model_answer_tokens", "rate", "burst"}
COUNTS = {"iterations", "concurrency", "threads", "slots", "max_calls", "retention_batch", "depth", "live", "total"}
COUNTS |= {"model_tries", "breaker_failures", "port", "most", "failures", "detached_live", "detached_total"}
COUNTS |= {"at_once", "endpoints_at_once", "disable_failures", "history", "dead_letters"}
SIZES = {field.name for field in fields(Limits)} | {"body", "bodies", "header", "token_size"}
NESTED = {"lease", "limits", "delegation", "streams", "webhooks", "scopes", "algorithms"}


def rows() -> dict[str, str]:
    """The second column by the first, of all tables."""
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line[:1] == "|"]
    return {row[0].strip(): row[1].strip() for row in cells}


def told(name: str, value: Any) -> str:
    """A default as the page writes it."""
    if not value and not isinstance(value, int | float):
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return f"{value}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if name in {"retention", "history_age"}:
        return f"{value / 86_400:g} days"
    if name in CHARACTERS:
        return f"{value:,} characters"
    if name in TOKENS:
        return f"{value:,.0f}"
    if name in SIZES:
        return f"{value // MIB} MiB" if value % MIB == 0 else f"{value // KIB} KiB"
    return f"{value:g}" if name in COUNTS else f"{value:g} s"


@pytest.mark.parametrize(
    "settings",
    [
        WorkerSettings(),
        LeaseTimes(),
        DelegationLimits(),
        Limits(),
        LocalModelSettings(),
        ServeSettings(),
        ClientSettings(),
        WebhookSettings(),
        StreamSettings(),
        AccessSettings(),
        IssuerSettings("", ""),
    ],
    ids=lambda each: type(each).__name__,
)
def test_every_setting_is_listed_with_its_default(settings: object):
    listed = rows()
    expected = {
        f"`{field.name}`": told(field.name, getattr(settings, field.name))
        for field in fields(settings)  # type: ignore[arg-type]  # all of them are dataclasses
        if field.name not in NESTED
    }
    assert {name: listed.get(name) for name in expected} == expected


def test_every_option_of_a_task_is_listed():
    named = set(re.findall(r"`(\w+)`", " ".join(rows())))
    assert {field.name for field in fields(TaskOptions)} - named == set()


def test_the_defaults_of_a_task_are_those_of_the_page():
    listed, options, retry = rows(), TaskOptions(), Retry()
    assert listed["`max_failures`"] == f"{retry.max_failures}"
    assert listed["`backoff`, `backoff_max`"] == f"{retry.initial / 1e6:g} s, {retry.maximum / 60e6:g} min"
    assert retry.factor == 2
    assert Timeouts() == Timeouts(None, None, None, None)
    assert listed["`cancel_grace`"] == f"{CANCEL_GRACE.total_seconds():g} s"
    assert listed["`wake`"] == f"`{options.wake}`"
    assert listed["`priority`"] == f"{options.priority}"
    assert listed["`on_open_children`"] == f"`{options.on_open_children}`"
    assert {options.detached, options.headless, options.run_if_dependency_fails} == {False}


SOURCES = sorted((Path(__file__).parents[2] / "src" / "outrider").rglob("*.py"))
PREFIXES = r"\b(?:OUTRIDER|OPENAI|OTEL)_[A-Z0-9_]*[A-Z0-9]\b"


def looked_up(path: Path) -> Iterator[str]:
    """The environment variables that a module names in its strings, or asks for by a literal."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Constant(value=str(text)):
                yield from re.findall(PREFIXES, text)
            case ast.Call(func=ast.Attribute(attr="get" | "getenv" | "pop"), args=[ast.Constant(value=str(name)), *_]):
                if "environ" in ast.unparse(node.func) or "getenv" in ast.unparse(node.func):
                    yield name
            case ast.Call(func=ast.Name(id="environment" | "getenv"), args=[ast.Constant(value=str(name))]):
                yield name
            case ast.Subscript(value=value, slice=ast.Constant(value=str(name))) if "environ" in ast.unparse(value):
                yield name


def test_every_environment_variable_is_listed_and_every_listed_one_is_looked_up():
    table = PAGE.partition("\n## Environment variables\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)]
    assert sorted(listed) == sorted({name for path in SOURCES for name in looked_up(path)})


def test_the_search_for_environment_variables_finds_each_way_to_ask_for_one(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os\nos.environ.get('A')\nos.environ['B']\nos.getenv('C')\nenvironment('D')\n{}.get('E')\n"
        "NAME = 'OUTRIDER_F'\n'says OUTRIDER_G, and OUTRIDER_ alone'\n"
    )
    assert sorted(looked_up(program)) == ["A", "B", "C", "D", "OUTRIDER_F", "OUTRIDER_G"]


@pytest.mark.anyio
async def test_the_grace_of_a_cancel_is_the_one_that_is_listed():
    app = Outrider()
    app.tool(name="nothing")(_nothing)
    async with app.open("memory://", worker=False) as outrider:
        session = await outrider.sessions.create()
        task = await session.spawn("nothing")
        stored = await outrider.tasks.get(task.id)
    assert stored.input.cancel_grace == span(CANCEL_GRACE)


def _nothing() -> None:
    pass


def test_what_is_fixed_is_as_listed():
    listed = rows()
    assert listed["what releases a resource may fail, until it is given up"] == f"{RELEASE_FAILURES} times"
    assert listed["and how long it may take each time"] == f"{RELEASE_TIMEOUT.total_seconds() / 60:g} min"
    lease = listed["an `external` task is lost without a report for, unless `idle_timeout` says otherwise"]
    assert lease == f"{EXTERNAL_LEASE.total_seconds():g} s"
    assert f"`{DEFAULT_DATABASE}`" in PAGE


def test_the_example_is_accepted_and_sets_what_it_says():
    (source,) = re.findall(r"```python fragment\n(.*?)```", PAGE, re.DOTALL)
    program: dict[str, object] = {}
    exec(source, program)
    app = program["app"]
    assert isinstance(app, Outrider)
    assert (app.settings.concurrency, app.settings.lease.lost) == (20, 5)
