"""What an OpenTelemetry SDK is told of tasks, attempts, steps and model calls; and that nothing is told without one."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from outrider import Failure, Outrider, SyncTaskContext, TaskContext, TaskOptions
from outrider.runtime.counting import look
from outrider.runtime.telemetry import Counted, trace_id
from outrider.testing import Call, Reply, open_test, replies, script
from tests.runtime.isolated_app import app as isolated_app
from tests.telemetry import Told, attributes_of, ident, listening, parent, traces

pytestmark = pytest.mark.anyio

app = Outrider()
KIND = "background_tool"


@pytest.fixture
def told() -> Iterator[Told]:
    with listening() as told:
        yield told


def mine() -> Any:
    """A span of the program's own."""
    return trace.get_tracer("mine").start_as_current_span("mine")


@app.tool
async def asks(task: TaskContext) -> str:
    await task.step("before", lambda: "done")
    return "yes" if await task.ask("Go on?", bool) else "no"


@app.tool
async def spawns(task: TaskContext) -> int:
    child = await task.spawn("where_am_i")
    await task.wait_for([child])

    async def below() -> str:
        return (await task.spawn("where_am_i", options=TaskOptions(name="below"))).id

    await task.step("in a step", below)
    return 1


@app.tool
def where_am_i(task: SyncTaskContext) -> list[int]:
    inside = task.step("look", lambda: trace.get_current_span().get_span_context().span_id)
    return [trace.get_current_span().get_span_context().span_id, inside]


@app.tool(max_failures=2, backoff=0)
async def fails(task: TaskContext) -> None:
    await task.step("broken", _break)


def _break() -> None:
    raise Failure("no luck", kind="out_of_luck", retryable=True)


@app.tool
def nothing() -> None:
    pass


@app.tool
async def hangs_once(task: TaskContext) -> None:
    await task.step("once", lambda: None)
    if task.attempt == 1:
        task.detail("hangs")
        await asyncio.Event().wait()


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not fact():  # noqa: ASYNC110 - the SDK rings no bell
            await asyncio.sleep(0.01)


# --- spans -----------------------------------------------------------------------------------------------


async def test_all_attempts_and_the_task_itself_are_children_of_the_span_that_made_the_task(store, told: Told):
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        with mine():
            task = await session.spawn("asks")
        await runtime.run_until_idle()
        await runtime.advance(5)  # past the grace: it parks
        await task.answer(True)
        assert await task.result() == "yes"
        await runtime.run_until_idle()
        record = await task.record()
    attempts, own = told.spans("outrider.attempt"), told.span("outrider.task")
    assert [attributes_of(each)["outrider.attempt.ending"] for each in attempts] == ["parked", "succeeded"]
    assert {parent(each) for each in (*attempts, own)} == {ident(told.span("mine"))}
    assert len(traces(told.spans())) == 1
    assert record.finished_at is not None
    assert own.start_time == int(record.created_at.timestamp()) * 1_000_000_000
    assert own.end_time == int(record.finished_at.timestamp()) * 1_000_000_000
    assert {each.status.status_code for each in told.spans()} == {StatusCode.UNSET}


async def test_a_step_that_is_in_the_journal_is_not_told_of_again(store, told: Told):
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("hangs_once")
        await until(lambda: bool(told.spans("outrider.step")))
        await runtime.crash()
        await runtime.run_until_idle()
        await task.result()
    # A process that dies takes the span of its attempt along; the step was told of before.
    (attempt,) = [each for each in told.spans("outrider.attempt") if attributes_of(each)["outrider.task.attempt"] == 2]
    step = told.span("outrider.step")
    assert attributes_of(step)["outrider.task.attempt"] == 1
    assert traces([step]) == traces([attempt])
    assert told.counted("outrider.task.recovered") == {(KIND,): 1}


async def test_a_child_hangs_on_the_attempt_or_the_step_that_spawned_it(store, told: Told):
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        with mine():
            task = await session.spawn("spawns")
        await runtime.run_until_idle()
        await task.result()
    attempts = [(attributes_of(each)["outrider.task.name"], each) for each in told.spans("outrider.attempt")]
    first = dict(reversed(attempts))
    steps = {attributes_of(each)["outrider.step.name"]: each for each in told.spans("outrider.step")}
    assert parent(first["where_am_i"]) == ident(first["spawns"])
    assert parent(first["below"]) == ident(steps["in a step"])
    assert attributes_of(first["below"])["outrider.task.parent.id"] == task.id
    assert len(traces(told.spans())) == 1


async def test_the_span_of_the_attempt_or_the_step_is_current_in_threads(store, told: Told):
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        outside, inside = await (await session.spawn("where_am_i")).result()
        await runtime.run_until_idle()
    assert outside == ident(told.span("outrider.attempt"))
    assert inside == ident(told.span("outrider.step"))


async def test_a_failure_is_told_by_its_kind_on_step_attempt_and_task(store, told: Told):
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("fails")
        await runtime.run_until_idle()
        await runtime.advance(60)
        assert (await task.record()).error is not None
    assert len(told.spans("outrider.attempt")) == 2
    for span in (*told.spans("outrider.attempt"), told.span("outrider.task")):
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "no luck"
        assert attributes_of(span)["error.type"] == "out_of_luck"
    assert {attributes_of(each)["outrider.step.ending"] for each in told.spans("outrider.step")} == {"failed"}
    assert told.counted("outrider.task.retried") == {(KIND, "out_of_luck"): 1}
    assert told.counted("outrider.task.ended") == {(KIND, "failed", "out_of_luck"): 1}


async def test_a_task_made_where_nothing_traces_has_a_trace_of_its_own_whoever_runs_it(told: Told):
    async with open_test(app, store="memory") as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("asks", options=TaskOptions(id="task_fixed"))
        await runtime.run_until_idle()
        await runtime.advance(5)
        await task.answer(True)
        await task.result()
        await runtime.run_until_idle()
        stored = await runtime.tasks.get(task.id)
    assert stored.input.origin == {}
    (found,) = traces(told.spans())
    # The same in every process and every version: it is all that makes one trace of attempts in several of them.
    assert f"{found:032x}" == trace_id(stored) == "626a7dc612bf081b384bf126ec92b53b"


async def test_a_trace_context_that_the_maker_gives_is_kept_and_nonsense_is_not(told: Told):
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with open_test(app, store="memory") as runtime:
        session = await runtime.sessions.create()
        good = await session.spawn("nothing", options=TaskOptions(origin={"traceparent": given, "turn": 3}))
        bad = await session.spawn("nothing", options=TaskOptions(origin={"traceparent": "00-nonsense\n"}))
        await good.result()
        await bad.result()
        await runtime.run_until_idle()
        stored = await runtime.tasks.get(bad.id)
    by_task = {attributes_of(each)["outrider.task.id"]: each for each in told.spans("outrider.attempt")}
    assert f"{parent(by_task[good.id]):016x}" == "b7ad6b7169203331"
    assert traces([by_task[bad.id]]) == {int(trace_id(stored) or "", 16)}


async def test_creating_again_under_another_span_is_the_same_task(told: Told):
    async with open_test(app, store="memory") as runtime:
        session = await runtime.sessions.create()
        ids = set()
        for _ in range(2):
            with mine():
                ids.add((await session.spawn("nothing", options=TaskOptions(idempotency_key="one"))).id)
        await runtime.run_until_idle()
    assert len(ids) == 1
    assert told.counted("outrider.task.created") == {(KIND,): 1}


@pytest.mark.slow
async def test_steps_of_a_tool_in_a_process_of_its_own_are_told_too(told: Told, tmp_path):
    async with isolated_app.open("memory://") as runtime:
        session = await runtime.sessions.create()
        await (await session.spawn("traced", path=str(tmp_path / "notes"))).result()
    attempt = told.span("outrider.attempt")
    steps = {attributes_of(each)["outrider.step.name"]: each for each in told.spans("outrider.step")}
    assert {parent(each) for each in steps.values()} == {ident(attempt)}
    assert {name: attributes_of(each)["outrider.step.ending"] for name, each in steps.items()} == {
        "good": "succeeded",
        "bad": "failed",
    }


# --- agents ----------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_model_call_is_told_once_with_its_tokens_and_nothing_that_was_said(told: Told):
    script("telemetry", replies(Reply(calls=(Call("secret", {"word": "sesame"}),)), Reply(text="open sesame")))
    agents = Outrider()

    @agents.tool
    def secret(word: str) -> str:
        return word

    async with open_test(agents, store="memory") as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn_agent("sesame?", model="scripted:telemetry", tools=["secret"], require_approval=True)
        await runtime.run_until_idle()
        await runtime.advance(5)
        await task.answer(True)
        assert await task.result() == "open sesame"
        await runtime.run_until_idle()
        usage = (await task.record()).usage
    assert len(told.spans("outrider.attempt")) == 2
    chats = [each for each in told.spans() if each.name.startswith("chat ")]
    assert len(chats) == 2
    attributes = dict(chats[0].attributes or {})
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == "scripted:telemetry"
    assert attributes["gen_ai.usage.input_tokens"] == 2
    assert [each.name for each in told.spans() if each.name.startswith("execute_tool")] == ["execute_tool secret"]
    assert len(traces(told.spans())) == 1
    engine = [each for each in told.spans() if not each.name.startswith("outrider.")]
    assert not [each for each in engine if "sesame" in str(attributes_of(each))]
    points = told.metrics()["gen_ai.client.token.usage"]
    assert {point.attributes["gen_ai.token.type"]: point.sum for point in points} == {
        "input": usage.input_tokens,
        "output": usage.output_tokens,
    }


# --- metrics ---------------------------------------------------------------------------------------------


async def test_what_happens_is_counted_and_how_long_it_took_is_measured(store, told: Told):
    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("asks")
        await runtime.run_until_idle()
        await runtime.advance(100)
        await task.answer(True)
        await task.result()
        await session.spawn("nothing", options=TaskOptions(delay=50))
        await runtime.advance(51)
        await (await session.spawn("asks", options=TaskOptions(delay=1000))).cancel()
        await runtime.run_until_idle()
    assert told.counted("outrider.task.created") == {(KIND,): 3}
    assert told.counted("outrider.task.started") == {(KIND,): 2}
    assert told.counted("outrider.task.claimed") == {(KIND,): 3}
    assert told.counted("outrider.task.ended") == {(KIND, "succeeded"): 2, (KIND, "canceled"): 1}
    assert told.counted("outrider.step.duration") == {(KIND, "succeeded"): 1}
    assert told.counted("outrider.attempt.duration") == {
        (KIND, "parked"): 1,
        (KIND, "succeeded"): 2,
    }
    metrics = told.metrics()
    assert metrics["outrider.input.duration"][0].sum == 100
    assert metrics["outrider.task.queue.duration"][0].sum < 2  # the delay is no waiting
    assert metrics["outrider.commit.duration"][0].count > 3
    keys = {key for points in metrics.values() for point in points for key in point.attributes}
    assert keys == {
        "outrider.task.kind",
        "outrider.task.route",
        "outrider.task.state",
        "outrider.attempt.ending",
        "outrider.step.ending",
    }


async def test_how_long_news_stood_in_an_inbox_is_measured_once_for_who_heard_of_it(told: Told):
    script("hears", replies(*[Reply("yes")] * 3))
    agents = Outrider()
    agents.agent("hears", model="scripted:hears")
    agents.registry.tools.update(app.registry.tools)
    async with open_test(agents, store="memory") as runtime:
        session = await runtime.sessions.create(agent="hears")
        await session.send("go")
        await runtime.run_until_idle()
        outside = await runtime.sessions.create()
        await outside.spawn("nothing", options=TaskOptions(wake="on_terminal"))
        await runtime.run_until_idle()
        await runtime.advance(30)
        (entry,) = await outside.inbox.receive(lease=5)
        await runtime.advance(10)
        (again,) = await outside.inbox.receive()
        assert (entry.seq, again.seq) == (again.seq, entry.seq)
    points = {tuple(point.attributes.values()): point for point in told.metrics()["outrider.wake.duration"]}
    assert {key: point.count for key, point in points.items()} == {("user", "agent"): 1, ("terminal", "outside"): 1}
    assert points["terminal", "outside"].sum == 30
    assert points["user", "agent"].sum < 1


async def test_what_waits_for_whom_and_since_when_is_shown(told: Told):
    async with open_test(app, store="memory") as runtime:
        session = await runtime.sessions.create()
        await session.spawn("asks")
        await runtime.run_until_idle()
        await runtime.advance(5)  # past the grace: it parks
        await session.spawn("nothing", options=TaskOptions(delay=1000))
        await session.spawn("nothing", options=TaskOptions(needs="gpu"))  # which no worker here has
        await runtime.advance(60)
        counted = Counted(counts=await look(runtime.services))
        stop = runtime.services.telemetry.watch(counted)
        assert told.counted("outrider.parked.tasks") == {(): 1}
        assert told.counted("outrider.queue.tasks", "") == {
            (f"{KIND}:nothing @gpu", "ready"): 1,
            (f"{KIND}:nothing", "timed"): 1,
        }
        assert told.counted("outrider.queue.age", "") == {(f"{KIND}:nothing @gpu",): 60}
        assert told.counted("outrider.store.size").keys() == {()}
        stop()


async def test_what_a_store_and_its_worker_hold_is_shown_while_the_worker_lives(told: Told, tmp_path):
    url = str(tmp_path / "work.db")
    async with app.open(url, worker=False) as runtime:
        session = await runtime.sessions.create()
        await session.spawn_many("nothing", [{}] * 3)
        assert told.counted("outrider.tasks") == {}
    async with app.open(url) as runtime:
        task = await (await runtime.sessions.create()).spawn("hangs_once")
        await until(lambda: told.counted("outrider.worker.held") == {(): 1})
        assert told.counted("outrider.worker.capacity") == {(): app.settings.concurrency}
        await until(lambda: sum(told.counted("outrider.tasks").values()) >= 3)
        await task.cancel(wait=30)
    assert told.counted("outrider.tasks") == told.counted("outrider.worker.held") == {}


# --- silence ---------------------------------------------------------------------------------------------

SILENT = """
import asyncio, sys
from outrider import Outrider
app = Outrider()
@app.tool
async def work(task):
    return await task.step("one", lambda: 1)
async def main():
    async with app.open("memory://") as outrider:
        session = await outrider.sessions.create()
        task = await session.spawn(work)
        assert await task.result() == 1
        assert (await outrider.tasks.get(task.id)).input.origin == {}
asyncio.run(main())
print(*(name for name in sys.modules if name.startswith("opentelemetry")))
"""


def test_without_an_sdk_nothing_of_opentelemetry_is_even_imported():
    done = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
