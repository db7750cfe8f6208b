"""A real provider as far as the engine can tell: chat completions over HTTP with server-sent events, on loopback."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from outrider.agents.engine import AgentBrief, ModelFailed, ModelMisbehaved, ToolSpec, load_engine
from outrider.core.task import Usage
from outrider.core.values import JSON, JSONObject
from tests.agents.fakes import FakeRun, Killed, Record, attempt

pytestmark = pytest.mark.anyio


@dataclass
class Provider:
    """Speaks just enough HTTP and chat completions.

    `answers` are choices, one a request; a number is a status, and bytes are sent as they are, after which it hangs up.
    """

    answers: list[dict[str, Any] | int | bytes]
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    before_chunk: Callable[[int], Awaitable[None]] | None = None
    url: str = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Provider]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.split("content-length:")[1].split("\r\n")[0])
            request = json.loads(await reader.readexactly(length))
            assert head.startswith("post /v1/chat/completions")
            self.keys.append(head.split("authorization: bearer ")[1].split("\r\n")[0])
            answer = self.answers[len(self.requests)]
            self.requests.append(request)
            if isinstance(answer, bytes):
                writer.write(answer)
            elif isinstance(answer, int):
                body = json.dumps({"error": {"message": "no more", "type": "server_error"}}).encode()
                writer.write(self._head(answer, "application/json", len(body)) + body)
            else:
                writer.write(self._head(200, "text/event-stream"))
                for nth, chunk in enumerate(self._chunks(answer, request)):
                    if self.before_chunk is not None:
                        await self.before_chunk(nth)
                    writer.write(b"data: " + chunk.encode() + b"\n\n")
                    await writer.drain()
            await writer.drain()
        finally:
            writer.close()

    @staticmethod
    def _head(status: int, kind: str, length: int | None = None) -> bytes:
        sized = "" if length is None else f"Content-Length: {length}\r\n"
        # `x-should-retry` stops the client's own retries, which would only make the test wait.
        return (
            f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{sized}x-should-retry: false\r\nConnection: close\r\n\r\n"
        ).encode()

    @staticmethod
    def _chunks(answer: dict[str, Any], request: dict[str, Any]) -> list[str]:
        def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
            return json.dumps(
                {
                    "id": "chatcmpl-1",
                    "object": "chat.completion.chunk",
                    "created": 1,
                    "model": "tiny-1",
                    "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
                    **more,
                }
            )

        chunks = [chunk({"role": "assistant", "content": word}) for word in answer.get("content", ())]
        for nth, (name, arguments) in enumerate(answer.get("tools", ())):
            text = json.dumps(arguments)
            start = {"index": nth, "id": f"call_{nth}", "type": "function", "function": {"name": name, "arguments": ""}}
            chunks.append(chunk({"tool_calls": [start]}))
            chunks += [
                chunk({"tool_calls": [{"index": nth, "function": {"arguments": piece}}]})
                for piece in (text[:3], text[3:])
            ]
        chunks.append(chunk({}, "tool_calls" if answer.get("tools") else "stop"))
        if request.get("stream_options", {}).get("include_usage"):
            usage = {
                "prompt_tokens": 20,
                "completion_tokens": 5,
                "total_tokens": 25,
                "prompt_tokens_details": {"cached_tokens": 8},
            }
            last = json.loads(chunk({}, usage=usage))
            chunks.append(json.dumps({**last, "choices": []}))
        return [*chunks, "[DONE]"]


async def look(arguments: JSONObject, call_id: str) -> JSON:
    return {"at": arguments["at"], "found": 3}


LOOK = ToolSpec("look", "Looks.", {"type": "object", "properties": {"at": {"type": "string"}}}, look)


def brief(provider: Provider, **more: Any) -> AgentBrief:
    given: dict[str, Any] = {"model": {"model": "openai:tiny", "base_url": provider.url}, "tools": [LOOK], **more}
    return AgentBrief("task_1", "ses_1", 1, "Look there.", **given)


CALL = {"content": ["I ", "look."], "tools": [("look", {"at": "here"})]}
ANSWER = {"content": ["Three ", "things."]}


async def test_a_whole_run_against_an_openai_compatible_server():
    async with Provider([CALL, ANSWER]).serving() as provider:
        run = FakeRun(Record())
        outcome = await attempt(load_engine(), brief(provider, system_prompt="Be brief."), run)
    assert outcome.result == "Three things."
    assert run.output_text == "I look.\nThree things.\n"
    record = run.record
    assert record.usage == replace(Usage(), requests=2, input_tokens=40, output_tokens=10, cached_tokens=16)
    assert (record.provider, record.model, record.iterations) == ("openai", "tiny-1", 2)
    first, second = provider.requests
    assert first["model"] == "tiny"
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert first["tools"][0]["function"]["parameters"]["properties"] == {"at": {"type": "string"}}
    assert [message["role"] for message in second["messages"]] == ["system", "user", "assistant", "tool"]
    assert json.loads(second["messages"][-1]["content"]) == {"at": "here", "found": 3}


async def test_the_server_is_sent_the_whole_history_however_little_the_engine_is_shown():
    async with Provider([CALL, CALL, CALL, CALL, ANSWER]).serving() as provider:
        await attempt(load_engine(), brief(provider), FakeRun(Record()))
    assert [len(request["messages"]) for request in provider.requests] == [1, 3, 5, 7, 9]
    last = [message["role"] for message in provider.requests[-1]["messages"]]
    assert last == ["user", *("assistant", "tool") * 4]


async def test_a_later_turn_sends_all_before_it_in_its_order_also_after_a_crash():
    """The engine is shown the end of it; what is before that is read when it is sent."""
    turns = ["user", *("assistant", "tool") * 2, "assistant", "user"]
    for dies_at in (None, 0, 1, 2, 3, 4, 5):
        async with Provider([CALL, CALL, ANSWER, CALL, CALL, ANSWER]).serving() as provider:
            first = Record()
            await attempt(load_engine(), brief(provider), FakeRun(first))
            record = Record(transcript=[*first.transcript, *load_engine().said("And there?")])
            later = brief(provider, asked=True)
            if dies_at is not None:
                with pytest.raises(Killed):
                    await attempt(load_engine(), later, FakeRun(record, dies_at=dies_at, stored=True))
            await attempt(load_engine(), replace(later, attempt=2), FakeRun(record))
        sent = [[message["role"] for message in request["messages"]] for request in provider.requests]
        assert sent[3] == turns
        assert sent[-1] == [*turns, *("assistant", "tool") * 2]
        assert all(message == then for message, then in zip(sent[3], sent[-1], strict=False))


async def test_after_a_crash_the_server_is_asked_only_for_what_is_missing_and_sees_the_same_history():
    async with Provider([CALL, CALL, ANSWER]).serving() as whole:
        await attempt(load_engine(), brief(whole), FakeRun(Record()))
    for dies_at in range(8):
        async with Provider([CALL, CALL, ANSWER]).serving() as provider:
            record = Record()
            with pytest.raises(Killed):
                await attempt(load_engine(), brief(provider), FakeRun(record, dies_at=dies_at, stored=True))
            await attempt(load_engine(), replace(brief(provider), attempt=2), FakeRun(record))
        assert [request["messages"] for request in provider.requests] == [
            request["messages"] for request in whole.requests
        ], dies_at


async def test_text_is_shown_before_the_response_is_whole():
    shown = asyncio.Event()

    class Watched(FakeRun):
        def output(self, text: str) -> None:
            super().output(text)
            shown.set()

    run = Watched(Record())

    async def wait_until_the_first_is_shown(nth: int) -> None:
        if nth == 1:
            await shown.wait()

    async with Provider([ANSWER], before_chunk=wait_until_the_first_is_shown).serving() as provider:
        await asyncio.wait_for(attempt(load_engine(), brief(provider), run), 10)
    assert run.output_text == "Three things.\n"


@pytest.mark.parametrize(("status", "retryable"), [(500, True), (429, True), (401, False), (404, False)])
async def test_an_http_error_says_its_status_and_if_to_try_again(status, retryable):
    async with Provider([status]).serving() as provider:
        with pytest.raises(ModelFailed) as raised:
            await attempt(load_engine(), brief(provider), FakeRun(Record()))
    assert (raised.value.details["status"], raised.value.retryable) == (status, retryable)
    assert raised.value.kind == "exception"


async def test_a_server_that_is_not_there_is_worth_another_try():
    async with Provider([]).serving() as provider:
        pass
    with pytest.raises(ModelFailed) as raised:
        await attempt(load_engine(), brief(provider, model_settings={"max_retries": 0}), FakeRun(Record()))
    assert raised.value.retryable
    assert raised.value.details["status"] is None


async def test_a_server_that_does_not_answer_in_time_is_a_timeout():
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    provider = Provider([], url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    with pytest.raises(ModelFailed) as raised:
        await attempt(
            load_engine(), brief(provider, model_settings={"timeout": 0.2, "max_retries": 0}), FakeRun(Record())
        )
    server.close()
    assert raised.value.kind == "timeout"
    assert raised.value.retryable


def sent(body: bytes, kind: str = "text/event-stream", *, cut: bool = False) -> bytes:
    """An answer with status 200. `cut`: of a known length, of which more was to come."""
    sized = f"Content-Length: {len(body) + 100}\r\n" if cut else ""
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{sized}Connection: close\r\n\r\n".encode() + body


def chunks(answer: dict[str, Any], count: int) -> bytes:
    return b"".join(b"data: " + chunk.encode() + b"\n\n" for chunk in Provider._chunks(answer, {})[:count])


HALF = chunks({"content": ["Half of ", "an ", "answer"]}, 2)
HALF_A_CALL = chunks({"tools": [("look", {"at": "here"})]}, 1)
UNFINISHED = "ended without a `finish_reason`"
UNREADABLE = "cannot be read.*is that the address of a model"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        pytest.param(sent(HALF), UNFINISHED, id="half an answer, and the end"),
        pytest.param(sent(HALF, cut=True), "peer closed connection", id="half an answer, and hung up"),
        pytest.param(sent(HALF_A_CALL), UNFINISHED, id="half a tool call, and the end"),
        pytest.param(sent(HALF + b'data: {"error": {"message": "overloaded"}}\n\n'), "overloaded", id="error in it"),
        pytest.param(sent(b""), UNREADABLE, id="nothing in the stream"),
        pytest.param(sent(b"", "application/json"), UNREADABLE, id="an empty body"),
        pytest.param(sent(b"{not json", "application/json"), UNREADABLE, id="no JSON"),
        pytest.param(sent(b"data: {not json\n\n"), "decode response as JSON", id="no JSON in the stream"),
        pytest.param(sent(b"<html>It works!</html>", "text/html"), UNREADABLE, id="a web page"),
        pytest.param(sent(b'data: {"id": 5, "choices": [{"delta": "x"}]}\n\n'), UNREADABLE, id="other JSON"),
        pytest.param(b"", "Server disconnected", id="hung up at once"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n", "Server disconnected|illegal", id="no HTTP"),
    ],
)
async def test_what_is_no_whole_answer_of_a_model_is_a_failure_of_the_provider_and_worth_another_try(answer, message):
    done: list[str] = []

    async def look(arguments: JSONObject, call_id: str) -> JSON:
        done.append(call_id)
        return None

    record = Record()
    async with Provider([answer, ANSWER]).serving() as provider:
        asked = brief(provider, tools=[replace(LOOK, call=look)], model_settings={"max_retries": 0})
        with pytest.raises(ModelFailed, match=message) as raised:
            await attempt(load_engine(), asked, FakeRun(record))
        assert (raised.value.retryable, raised.value.kind) == (True, "exception")
        assert (record.transcript, record.journal, done) == ([], {}, [])
        assert (await attempt(load_engine(), asked, FakeRun(record))).result == "Three things."
    first, second = provider.requests
    assert first["messages"] == second["messages"]


async def test_a_stream_that_stops_in_the_midst_of_an_answer_is_a_timeout():
    async def stop(nth: int) -> None:
        if nth == 1:
            await asyncio.Event().wait()

    async with Provider([ANSWER], before_chunk=stop).serving() as provider:
        asked = brief(provider, model_settings={"timeout": 0.2, "max_retries": 0})
        with pytest.raises(ModelFailed) as raised:
            await attempt(load_engine(), asked, FakeRun(Record()))
    assert (raised.value.kind, raised.value.retryable) == ("timeout", True)


async def test_an_answer_cut_at_its_limit_of_tokens_has_a_mark():
    cut = HALF + chunks({}, 1).replace(b'"stop"', b'"length"') + b"data: [DONE]\n\n"
    async with Provider([sent(cut)]).serving() as provider:
        outcome = await attempt(load_engine(), brief(provider), FakeRun(Record()))
    assert outcome.result.startswith("Half of an \n[… cut here")


async def test_halves_of_characters_in_an_answer_are_made_question_marks():
    async with Provider([{"content": ["a\x00b\ud800c"]}]).serving() as provider:
        outcome = await attempt(load_engine(), brief(provider), FakeRun(Record()))
    assert outcome.result == "a\x00b?c"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (("look", "half a {"), "Input should be an object"),
        (("nothing_like_it", {}), "Unknown tool name: 'nothing_like_it'. Available tools: 'look'"),
    ],
)
async def test_a_model_that_calls_a_tool_wrongly_for_ever_ends_with_what_it_was_told(call, told):
    async with Provider([{"tools": [call]}] * 9).serving() as provider:
        with pytest.raises(ModelMisbehaved, match=told) as raised:
            await attempt(load_engine(), brief(provider), FakeRun(Record()))
    assert (raised.value.kind, raised.value.retryable, len(provider.requests)) == ("no_result", False, 4)


async def test_a_model_that_calls_tools_for_ever_ends_at_its_limit_with_what_it_said():
    async with Provider([CALL] * 9).serving() as provider:
        outcome = await attempt(load_engine(), brief(provider, max_iterations=3), FakeRun(Record()))
    assert (outcome.stop, outcome.text, len(provider.requests)) == ("max_iterations", "I look.", 3)


async def test_the_base_url_may_come_from_the_environment_and_the_key_from_a_named_variable(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sesame")
    async with Provider([ANSWER, ANSWER]).serving() as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
        await attempt(load_engine(), brief(provider, model="openai:tiny"), FakeRun(Record()))
        named = {"model": "tiny", "base_url": provider.url, "key_variable": "MY_KEY"}
        await attempt(load_engine(), brief(provider, model=named), FakeRun(Record()))
    assert provider.keys[1] == "sesame"
    assert [request["model"] for request in provider.requests] == ["tiny", "tiny"]


async def test_the_connections_made_for_a_run_are_closed_with_it(monkeypatch):
    from outrider.agents.pydantic_ai import attempt as module
    from outrider.agents.pydantic_ai import serving

    made: list[Any] = []

    async def noted(*args: Any) -> Any:
        made.append(await resolve(*args))
        return made[-1]

    resolve = serving.resolve
    monkeypatch.setattr(module, "resolve", noted, raising=True)
    async with Provider([ANSWER, 500]).serving() as provider:
        await attempt(load_engine(), brief(provider), FakeRun(Record()))
        with pytest.raises(ModelFailed):
            await attempt(load_engine(), brief(provider), FakeRun(Record()))
    assert [model.client.is_closed() for model in made] == [True, True]


async def test_a_structured_result_comes_as_the_arguments_of_a_call():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    async with Provider([{"tools": [("final_result", {"n": 3})]}]).serving() as provider:
        outcome = await attempt(load_engine(), brief(provider, result_schema=schema), FakeRun(Record()))
    assert outcome.result == {"n": 3}
    offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in provider.requests[0]["tools"]}
    assert offered["final_result"]["properties"] == {"n": {"type": "integer"}}


IMPORTS = """
import asyncio, sys, threading

from outrider import Outrider, TaskFailed, TaskOptions


class Watch:
    importers = set()

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "openai":
            self.importers.add(threading.current_thread() is threading.main_thread())
        return None


sys.meta_path.insert(0, Watch())


async def main():
    async with Outrider().open("memory://") as outrider:
        session = await outrider.sessions.create()
        model = {"model": "openai:x", "base_url": "http://127.0.0.1:9/v1"}
        task = await session.spawn_agent("x", model=model, options=TaskOptions(max_failures=1))
        try:
            await task.result()
        except TaskFailed:
            pass
    print(Watch.importers)


asyncio.run(main())
"""


def test_the_package_of_a_provider_is_never_imported_on_the_event_loop():
    ran = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert ran.stdout == "{False}\n", ran.stderr
