"""Whatever is given to a public verb, it is taken or refused with a stable code: no error of Python's own comes out."""

import inspect
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from datetime import datetime
from functools import partial
from typing import Any

import pytest

from outrider import Outrider, OutriderError, State, TaskContext, TaskOptions
from outrider.core.errors import InvalidArguments, Refused
from outrider.core.ledger import TaskFilter
from outrider.testing import Store, TestRuntime, open_test
from tests.runtime.conftest import chosen_store

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.soak)])
def store(request: pytest.FixtureRequest) -> Store:
    """As for the other tests of the runtime; these are many, and most is refused before it comes to a store."""
    return chosen_store(request)


UGLY: dict[str, Any] = {
    "None": None,
    "0": 0,
    "-1": -1,
    "1.5": 1.5,
    "True": True,
    "NaN": math.nan,
    "infinity": math.inf,
    "huge": 10**400,
    "empty text": "",
    "a text": "5",
    "a lone surrogate": "\ud800",
    "a NUL": "a\0b",
    "bytes": b"x",
    "a list": ["A"],
    "a list of lists": [["A"]],
    "a tuple": (),
    "a set": {1, 2},
    "a mapping": {"a": 1},
    "a mapping of numbers": {1: 2},
    "an object": object(),
    "a datetime without zone": datetime(2030, 1, 1),  # noqa: DTZ001 - a moment without a zone is the point
}
PROCESS = (
    *("command", "shell", "cwd", "env", "clean_env", "stdin", "cpu_limit", "memory_limit", "output_limit"),
    *("keep_output", "artifacts", "effects", "success", "retry"),
)
OF_A_TASK = (
    *("get", "find", "record", "attempts", "steps", "requests", "messages", "retry", "fork", "export", "delete"),
    *("events", "output", "cancel"),
)
AGENT = ("prompt", "model", "system_prompt", "agent", "tools", "max_iterations", "require_approval")


class Stage:
    """What the verbs need: a session, a task that waits, one that has ended, one that is held from outside."""

    def __init__(self, runtime: TestRuntime) -> None:
        self.runtime = runtime
        self.tasks, self.queue, self.external = runtime.tasks, runtime.queue, runtime.external

    async def set(self) -> None:
        self.session = await self.runtime.sessions.create()
        self.waiting = await self.spawn()
        self.ended = await self.session.spawn("echo")
        await self.runtime.run_until_idle()
        self.document = await self.ended.export()
        await self.session.create("external", {})
        (held,) = await self.external.claim("somebody")
        self.held = (held.id, held.attempt)

    async def spawn(self, **options: Any) -> Any:
        given: dict[str, Any] = {"delay": 9e8, **options}
        if "start_at" in options:
            del given["delay"]
        if "debounce_max" in options:
            given["debounce_key"] = "k"
        return await self.session.spawn("echo", options=TaskOptions(**given))

    async def process(self, **given: Any) -> Any:
        command = {} if "shell" in given else {"command": ["true"]}
        return await self.session.spawn_process(**{**command, **given}, options=TaskOptions(delay=9e8))

    async def agent(self, **given: Any) -> Any:
        asked = {"prompt": "Well?", "model": "scripted:any", **given}
        return await self.session.spawn_agent(**asked, options=TaskOptions(delay=9e8))

    async def cancel(self, **given: Any) -> Any:
        return await self.tasks.cancel((await self.spawn()).id, **{"wait": 0, **given})

    async def load(self, **given: Any) -> Any:
        document = {**self.document, "task": {**self.document["task"], "id": "another"}}
        return await self.tasks.load(document, **given)


Call = Callable[[Stage, Any], Any]


def each(call: Callable[..., Any], *names: str) -> dict[str, Call]:
    """A call for each of these parameters."""
    return {name: partial(named, call, name) for name in names}


def named(call: Callable[..., Any], name: str, stage: Stage, ugly: Any) -> Any:
    return call(stage, **{name: ugly})


def of_a_task(verb: str, stage: Stage, ugly: Any) -> Any:
    return getattr(stage.tasks, verb)(ugly)


def of_kind(kind: str, stage: Stage, ugly: Any) -> Any:
    return stage.session.create(kind, ugly)


CALLS: dict[str, Call] = {
    **{f"option {name}": call for name, call in each(Stage.spawn, *(f.name for f in fields(TaskOptions))).items()},
    **{f"process {name}": call for name, call in each(Stage.process, *PROCESS).items()},
    **{f"agent {name}": call for name, call in each(Stage.agent, *AGENT).items()},
    **{
        f"session {name}": call
        for name, call in each(
            lambda stage, **given: stage.runtime.sessions.create(**given),
            *("agent", "title", "labels", "id", "organization_id"),
        ).items()
    },
    **{
        f"list {name}": call
        for name, call in each(
            lambda stage, **given: stage.tasks.list(**given), *(f.name for f in fields(TaskFilter))
        ).items()
    },
    **{
        f"cancel {name}": call for name, call in each(Stage.cancel, "reason", "by", "grace", "include_detached").items()
    },
    **{f"{verb} of a task": partial(of_a_task, verb) for verb in OF_A_TASK},
    **{
        f"prune {name}": call
        for name, call in each(
            lambda stage, **given: stage.tasks.prune(**{"older_than": 9e8, **given}),
            *("older_than", "states", "organization_id", "session_id", "kind"),
        ).items()
    },
    **{
        f"limit {name}": call
        for name, call in each(
            lambda stage, **given: stage.queue.limit(**{"key": "k", "rate": 1, **given}),
            *("key", "concurrency", "rate", "per"),
        ).items()
    },
    **{
        f"pause {name}": call
        for name, call in each(
            lambda stage, **given: stage.queue.pause(**given), "session", "kind", "everything"
        ).items()
    },
    **{
        f"pause {name}": call
        for name, call in each(lambda stage, **given: stage.queue.pause(kind="k", **given), "by", "reason").items()
    },
    **{
        f"resume {name}": call
        for name, call in each(
            lambda stage, **given: stage.queue.resume(**given), "session", "kind", "everything"
        ).items()
    },
    **{
        f"report {name}": call
        for name, call in each(
            lambda stage, **given: stage.external.report(*stage.held, **{"current": 1, **given}),
            *("current", "total", "unit", "label", "detail", "output", "stream"),
        ).items()
    },
    **{
        f"external ask {name}": call
        for name, call in each(
            lambda stage, **given: stage.external.ask(*stage.held, **{"prompt": "?", **given}),
            *("prompt", "expected", "details"),
        ).items()
    },
    **{
        f"succeed {name}": call
        for name, call in each(
            lambda stage, **given: stage.external.succeed(*stage.held, **given), "result", "summary"
        ).items()
    },
    **{
        f"fail {name}": call
        for name, call in each(
            lambda stage, **given: stage.external.fail(*stage.held, **{"message": "it is so", **given}),
            *("message", "kind", "details", "retryable"),
        ).items()
    },
    "options": lambda stage, ugly: stage.session.spawn("echo", options=ugly),
    "options of a process": lambda stage, ugly: stage.session.spawn_process(["true"], options=ugly),
    "spawn tool": lambda stage, ugly: stage.session.spawn(ugly),
    "spawn given": lambda stage, ugly: stage.session.spawn("echo", ugly),
    "spawn many": lambda stage, ugly: stage.session.spawn_many("echo", ugly),
    "one of many": lambda stage, ugly: stage.session.spawn_many("echo", [ugly]),
    "create kind": lambda stage, ugly: stage.session.create(ugly, {}),
    **{f"spec of {kind}": partial(of_kind, kind) for kind in ("background_tool", "process", "subagent", "external")},
    "part of a command": lambda stage, ugly: stage.process(command=[ugly]),
    "variable": lambda stage, ugly: stage.process(env={"A": ugly}),
    "pattern": lambda stage, ugly: stage.process(artifacts=[ugly]),
    "name of a model": lambda stage, ugly: stage.agent(model={"model": ugly}),
    "address of a model": lambda stage, ugly: stage.agent(model={"model": "openai:m", "base_url": ugly}),
    "settings of a model": lambda stage, ugly: stage.session.create(
        "subagent", {"prompt": "Well?", "model": "scripted:any", "model_settings": ugly}, options=TaskOptions(delay=9e8)
    ),
    "create in": lambda stage, ugly: stage.tasks.create(ugly, "background_tool", {"tool": "echo"}),
    "get session": lambda stage, ugly: stage.runtime.sessions.get(ugly),
    "list sessions after": lambda stage, ugly: stage.runtime.sessions.list(after=ugly),
    "delete session": lambda stage, ugly: stage.runtime.sessions.delete(ugly),
    "events of a session": lambda stage, ugly: stage.runtime.sessions.events(ugly),
    "filter": lambda stage, ugly: stage.tasks.list(ugly),
    "messages direction": lambda stage, ugly: stage.ended.messages(direction=ugly),
    "messages after": lambda stage, ugly: stage.ended.messages(after=ugly),
    "answer request": lambda stage, ugly: stage.waiting.answer(1, request_id=ugly),
    "answer by": lambda stage, ugly: stage.waiting.answer(1, by=ugly),
    "answer via": lambda stage, ugly: stage.waiting.answer(1, via=ugly),
    "message": lambda stage, ugly: stage.waiting.message(ugly),
    "message reply": lambda stage, ugly: stage.waiting.message("x", in_reply_to=ugly),
    "message sender": lambda stage, ugly: stage.waiting.message("x", sender=ugly),
    "fork step": lambda stage, ugly: stage.ended.fork(from_step=ugly),
    "fork arguments": lambda stage, ugly: stage.ended.fork(arguments=ugly),
    "cancel many": lambda stage, ugly: stage.tasks.cancel_many(ugly),
    "cancel one of many": lambda stage, ugly: stage.tasks.cancel_many([ugly]),
    "cancel many filter": lambda stage, ugly: stage.tasks.cancel_many(filter=ugly),
    "wait": lambda stage, ugly: stage.tasks.wait(ugly, timeout=0),
    "wait for one": lambda stage, ugly: stage.tasks.wait([ugly], timeout=0),
    "wait any": lambda stage, ugly: stage.tasks.wait([stage.ended.id], any=ugly),
    "wait timeout": lambda stage, ugly: stage.tasks.wait([stage.ended.id], timeout=ugly),
    "result timeout": lambda stage, ugly: stage.ended.result(timeout=ugly),
    "events after": lambda stage, ugly: stage.ended.events(after=ugly),
    "output start": lambda stage, ugly: stage.ended.output(start=ugly),
    "load": lambda stage, ugly: stage.tasks.load(ugly),
    "load into": lambda stage, ugly: stage.load(session_id=ugly),
    "give away": lambda stage, ugly: stage.tasks.give_away(ugly),
    "inbox": lambda stage, ugly: stage.session.inbox.list(limit=ugly),
    "inbox of": lambda stage, ugly: stage.runtime.inbox.list(ugly),
    "receive of": lambda stage, ugly: stage.runtime.inbox.receive(ugly),
    "receive limit": lambda stage, ugly: stage.session.inbox.receive(limit=ugly),
    "receive lease": lambda stage, ugly: stage.session.inbox.receive(lease=ugly),
    "acknowledge of": lambda stage, ugly: stage.runtime.inbox.acknowledge(ugly, ["task_1.1.1"]),
    "acknowledge": lambda stage, ugly: stage.session.inbox.acknowledge(ugly),
    "acknowledge one": lambda stage, ugly: stage.session.inbox.acknowledge([ugly]),
    "renew": lambda stage, ugly: stage.session.inbox.renew(["task_1.1.1"], lease=ugly),
    "files": lambda stage, ugly: stage.session.files(ugly),
    "files after": lambda stage, ugly: stage.session.files(after=ugly),
    "files limit": lambda stage, ugly: stage.session.files(limit=ugly),
    "read file": lambda stage, ugly: stage.session.read_file(ugly),
    "write file": lambda stage, ugly: stage.session.write_file(ugly, "x"),
    "write content": lambda stage, ugly: stage.session.write_file("/a", ugly),
    "write media type": lambda stage, ugly: stage.session.write_file("/a", "x", ugly),
    "delete file": lambda stage, ugly: stage.session.delete_file(ugly),
    "unlimit": lambda stage, ugly: stage.queue.unlimit(ugly),
    "reprioritize": lambda stage, ugly: stage.queue.reprioritize(ugly, 1),
    "priority": lambda stage, ugly: stage.queue.reprioritize(stage.waiting.id, ugly),
    "runtime task": lambda stage, ugly: stage.runtime.task(ugly),
    "stats": lambda stage, ugly: stage.runtime.stats(ugly),
    "explain": lambda stage, ugly: stage.runtime.doctor.explain(ugly),
    "claim holder": lambda stage, ugly: stage.external.claim(ugly),
    "claim name": lambda stage, ugly: stage.external.claim("x", name=ugly),
    "claim limit": lambda stage, ugly: stage.external.claim("x", limit=ugly),
    "report of": lambda stage, ugly: stage.external.report(ugly, 1),
    "report attempt": lambda stage, ugly: stage.external.report(stage.held[0], ugly),
}


def echoing() -> Outrider:
    app = Outrider()

    @app.tool
    async def echo(value: int = 0) -> int:
        return value

    return app


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_ugly_input_is_taken_or_refused_and_all_can_still_be_read(call: Call, store: Store):
    async with open_test(echoing(), store=store) as runtime:
        stage = Stage(runtime)
        await stage.set()
        codes: set[str] = set()
        for name, ugly in UGLY.items():
            try:
                said = call(stage, ugly)
                if inspect.isawaitable(said):
                    await said
                elif isinstance(said, AsyncIterator):
                    await anext(said, None)
            except OutriderError as error:
                codes.add(error.code)
            except Exception as error:
                raise AssertionError(f"{name}: {type(error).__name__} came out") from error
        assert not codes & {"error", "internal"}
        for record in await runtime.tasks.list(limit=1000):  # what no record can hold would fail this
            await runtime.tasks.record(record.id)
            await runtime.tasks.messages(record.id)
            await runtime.tasks.requests(record.id)
        for session in await runtime.sessions.list():
            await runtime.inbox.list(session.id)
        await runtime.queue.pauses()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda stage: stage.process(env=["A"]), "env is an object of texts"),
        (lambda stage: stage.process(success=0), "success is a list"),
        (lambda stage: stage.process(success=()), "success is a list of exit codes"),
        (lambda stage: stage.process(cwd=5), "cwd is text"),
        (lambda stage: stage.process(cwd=""), "cwd is empty"),
        (lambda stage: stage.agent(tools=5), "tools is a list"),
        (lambda stage: stage.agent(model=5), "a model is a name"),
        (lambda stage: stage.agent(system_prompt=5), "system_prompt is text"),
        (lambda stage: stage.spawn(start_at="tomorrow"), "start_at: a moment is a datetime with a time zone"),
        (lambda stage: stage.spawn(delay="5"), "delay: a length of time is a timedelta or a number of seconds"),
        (lambda stage: stage.spawn(delay=True), "delay: a length of time"),
        *((lambda stage, name=f"{name}_timeout": stage.spawn(**{name: 0}), f"{name}_timeout is more than 0")
          for name in ("queue", "run", "idle", "total")),
        (lambda stage: stage.spawn(run_timeout=-1), "run_timeout cannot be negative"),
        (lambda stage: stage.tasks.prune(-1), "older_than cannot be negative"),
        (lambda stage: stage.cancel(grace=-1), "grace cannot be negative"),
        (lambda stage: stage.queue.pause(everything="no"), "everything is True or False"),
        (lambda stage: stage.runtime.sessions.create(title=5), "title is text"),
        (lambda stage: stage.tasks.list(session_id=5), "session_id is text"),
        (lambda stage: stage.tasks.cancel_many("abc"), "ids is a list"),
        (lambda stage: stage.external.fail(*stage.held, "x", retryable="no"), "retryable is True or False"),
    ],
)  # fmt: skip
async def test_what_was_wrong_is_said_by_its_name_and_nothing_is_written(call: Callable[[Stage], Any], said: str):
    async with open_test(echoing()) as runtime:
        stage = Stage(runtime)
        await stage.set()
        before = [record.id for record in await runtime.tasks.list()]
        with pytest.raises(InvalidArguments) as refusal:
            await call(stage)
        assert refusal.value.message.startswith(said)
        after = [record.id for record in await runtime.tasks.list()]
        assert set(after) - set(before) <= {after[0]} - set(before)
        assert not await runtime.queue.pauses()


async def test_a_backup_goes_nowhere_that_is_no_path(store: Store):
    async with open_test(echoing(), store=store) as runtime:
        for ugly in (None, 5, "", "\ud800", "a\0b", ["x"], object()):
            with pytest.raises(InvalidArguments):
                await runtime.backup(ugly)  # type: ignore[arg-type]  # what is no path is the point


VERBS: dict[str, Callable[[TaskContext, Any], Any]] = {
    "step name": lambda task, ugly: task.step(ugly, lambda: 1),
    "step function": lambda task, ugly: task.step("s", ugly),
    "step effects": lambda task, ugly: task.step("s", lambda: 1, effects=ugly),
    "ask": lambda task, ugly: task.ask(ugly, deadline=1, default=None),
    "ask expected": lambda task, ugly: task.ask("?", ugly),
    "ask kind": lambda task, ugly: task.ask("?", kind=ugly, deadline=1, default=None),
    "ask deadline": lambda task, ugly: task.ask("?", deadline=ugly, default=None),
    "ask default": lambda task, ugly: task.ask("?", deadline=1, default=ugly),
    "ask expiry": lambda task, ugly: task.ask("?", deadline=1, on_expiry=ugly),
    "ask reminder": lambda task, ugly: task.ask("?", deadline=1, default=None, remind_every=ugly),
    "ask details": lambda task, ugly: task.ask("?", deadline=1, default=None, details=ugly),
    "ask name": lambda task, ugly: task.ask("?", deadline=1, default=None, name=ugly),
    "sleep": lambda task, ugly: task.sleep(ugly),
    "sleep name": lambda task, ugly: task.sleep(0, name=ugly),
    "spawn": lambda task, ugly: task.spawn(ugly),
    "spawn given": lambda task, ugly: task.spawn("echo", ugly),
    "spawn options": lambda task, ugly: task.spawn("echo", options=ugly),
    "spawn kind": lambda task, ugly: task.spawn("echo", kind=ugly),
    "spawn position": lambda task, ugly: task.spawn("echo", position=ugly),
    "wait for": lambda task, ugly: task.wait_for(ugly, timeout=0),
    "wait for one": lambda task, ugly: task.wait_for([ugly], timeout=0),
    "wait for timeout": lambda task, ugly: task.wait_for([], timeout=ugly),
    "post": lambda task, ugly: task.post(ugly),
    "post reply": lambda task, ugly: task.post("x", in_reply_to=ugly),
    "messages": lambda task, ugly: task.messages(wait=False, timeout=ugly),
    "messages timeout": lambda task, ugly: task.messages(timeout=0 if ugly is None else ugly),
    "hold": lambda task, ugly: task.hold(ugly, "x"),
    "hold id": lambda task, ugly: task.hold("room", ugly),
    "artifact name": lambda task, ugly: task.artifact(ugly, "x"),
    "artifact content": lambda task, ugly: task.artifact("a", ugly),
    "artifact type": lambda task, ugly: task.artifact("a", type=ugly),
    "artifact path": lambda task, ugly: task.artifact("a", path=ugly),
    "artifact address": lambda task, ugly: task.artifact("a", url=ugly),
    "artifact media type": lambda task, ugly: task.artifact("a", "x", media_type=ugly),
    "files write": lambda task, ugly: task.files.write(ugly, "x"),
    "files content": lambda task, ugly: task.files.write("/a", ugly),
    "files media type": lambda task, ugly: task.files.write("/a", "x", ugly),
    "files read": lambda task, ugly: task.files.read(ugly),
    "files list": lambda task, ugly: task.files.list(ugly),
    "progress": lambda task, ugly: task.progress(ugly),
    "progress total": lambda task, ugly: task.progress(1, ugly),
    "progress unit": lambda task, ugly: task.progress(1, unit=ugly),
    "progress label": lambda task, ugly: task.progress(1, label=ugly),
    "progress steps": lambda task, ugly: task.progress(1, steps=ugly),
    "detail": lambda task, ugly: task.detail(ugly),
    "output": lambda task, ugly: task.output(ugly),
    "output stream": lambda task, ugly: task.output("x", ugly),
    "log": lambda task, ugly: task.log.warning("x", event=ugly, task=ugly, level=ugly),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
async def test_a_verb_of_a_task_takes_ugly_input_or_refuses_it(verb: Callable[[TaskContext, Any], Any], store: Store):
    app = echoing()
    app.resource("room")(lambda resource_id: None)

    @app.tool(max_failures=1)
    async def odd(task: TaskContext, name: str) -> str:
        try:
            said = verb(task, UGLY[name])
            if inspect.isawaitable(said):
                await said
        except OutriderError as error:
            return error.code
        return "taken"

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        tasks = {name: await session.spawn("odd", {"name": name}) for name in UGLY}
        await runtime.run_until_idle()
        await runtime.advance(2)
        await runtime.run_until_idle()
        for name, task in tasks.items():
            record = await task.record()
            if record.state in (State.RUNNING, State.AWAITING_INPUT):  # it was taken, and waits
                continue
            assert record.state is State.SUCCEEDED, f"{name}: {record.error}"
            assert await task.result() not in ("error", "internal")


async def test_a_step_has_a_name():
    app = Outrider()
    seen: list[str] = []

    @app.tool(max_failures=1)
    async def odd(task: TaskContext) -> None:
        names: tuple[Any, ...] = ("", "a\0b", None, 5)
        for name in names:
            try:
                await task.step(name, int)
            except Refused as error:
                seen.append(error.code)

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("odd")
        await runtime.run_until_idle()
        assert (await task.record()).state is State.SUCCEEDED
        assert seen == ["invalid_arguments"] * 4
