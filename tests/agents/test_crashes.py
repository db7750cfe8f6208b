"""Death at every write: whatever was journaled is not done again, and the end is as if nothing had happened."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from outrider.agents import scripted
from outrider.agents.engine import AgentBrief, AgentOutcome, Approval, ToolError, ToolRetry, ToolSpec, load_engine
from outrider.agents.scripted import Call, Reply, Turn
from outrider.core.values import JSON, JSONObject
from tests.agents.fakes import FakeRun, Killed, Record, attempt, timeless

pytestmark = pytest.mark.anyio


@dataclass
class World:
    """What happens outside: how often each model call was made and each tool was run, over all attempts."""

    models: Counter[int] = field(default_factory=Counter)
    tools: Counter[str] = field(default_factory=Counter)

    def brief(self, name: str, script: scripted.Script, **more: Any) -> AgentBrief:
        def counted(turn: Turn) -> Reply:
            self.models[turn.number] += 1
            return script(turn)

        scripted.register(name, counted)
        return AgentBrief("task_1", "ses_1", 1, "Do it.", model=f"scripted:{name}", tools=self.given(), **more)

    def given(self) -> list[ToolSpec]:
        def tool(name: str, answer: Callable[[JSONObject], JSON], **more: Any) -> ToolSpec:
            async def call(arguments: JSONObject, call_id: str) -> JSON:
                self.tools[call_id] += 1
                # Others get their turn, so that calls of one response really overlap.
                await asyncio.sleep(0)
                return answer(arguments)

            return ToolSpec(name, name, {"type": "object", "properties": {}}, call, **more)

        def fussy(arguments: JSONObject) -> JSON:
            if not arguments.get("please"):
                raise ToolRetry("say please")
            return "thank you"

        def broken(_: JSONObject) -> JSON:
            raise ToolError("no disk")

        return [
            tool("look", lambda arguments: {"seen": arguments.get("at"), "nothing": None}),
            tool("fussy", fussy),
            tool("broken", broken),
            tool("publish", lambda _: "published", requires_approval=True, effects="once"),
        ]


STORIES: dict[str, tuple[tuple[Reply, ...], dict[str, Any]]] = {
    "answer": ((Reply("Here it is.", chunks=3),), {}),
    "one tool": ((Reply("Let me look.", calls=(Call("look", {"at": 1}),)), Reply("Done.")), {}),
    "parallel": (
        (
            Reply(calls=(Call("look", {"at": 1}), Call("look", {"at": 2}), Call("look", {"at": 3}))),
            Reply("Again.", calls=(Call("look", {"at": 4}), Call("look", {"at": 5}))),
            Reply("Done."),
        ),
        {},
    ),
    "errors": (
        (
            Reply(calls=(Call("fussy", {}), Call("broken", {}), Call("unheard_of", {}))),
            Reply(calls=(Call("fussy", {}),)),
            Reply(calls=(Call("fussy", {"please": True}),)),
            Reply("Done."),
        ),
        {},
    ),
    "approval": (
        (
            Reply(calls=(Call("look", {}), Call("publish", {"to": "all"}), Call("publish", {"to": "me"}))),
            Reply("Done."),
        ),
        {},
    ),
    "result": (
        (Reply(calls=(Call("look", {}),)), Reply("So:", result={"n": 1}), Reply(result={"n": 2})),
        {"result_schema": {"type": "object", "properties": {"n": {"type": "integer"}}}},
    ),
    "result beside a tool": (
        (Reply(calls=(Call("look", {}),), result=[1]),),
        {"result_schema": {"type": "array"}},
    ),
    "limit": (
        (Reply("One.", calls=(Call("look", {}),)), Reply("Two.", calls=(Call("look", {}),)), Reply("never")),
        {"max_iterations": 2},
    ),
}


def run_of(record: Record, **dying: Any) -> FakeRun:
    return FakeRun(
        record,
        decide=lambda _tool, arguments, _id: Approval(arguments["to"] == "all", "not to you"),
        mismatches=lambda result: "n is too small" if result == {"n": 1} else None,
        **dying,
    )


async def undisturbed(name: str, script: scripted.Script, more: dict[str, Any]) -> tuple[Record, AgentOutcome, FakeRun]:
    run = run_of(Record())
    outcome = await attempt(load_engine(), World().brief(name, script, **more), run)
    return run.record, outcome, run


@pytest.mark.parametrize("stored", [False, True], ids=["before it is stored", "after it is stored"])
@pytest.mark.parametrize("story", STORIES)
async def test_a_crash_at_any_write_repeats_nothing_journaled_and_changes_nothing_at_the_end(story, stored):
    replies, more = STORIES[story]
    name = f"crash {story} {stored}"
    expected, outcome, whole = await undisturbed(name, scripted.replies(*replies), more)

    for dies_at in range(whole.writes):
        world = World()
        brief = world.brief(name, scripted.replies(*replies), **more)
        record = Record()
        with pytest.raises(Killed):
            await attempt(load_engine(), brief, run_of(record, dies_at=dies_at, stored=stored))
        journaled = dict(record.journal)
        models, tools = world.models.copy(), world.tools.copy()
        open_iteration = record.iterations + 1

        run = run_of(record)
        assert await attempt(load_engine(), replace(brief, attempt=2), run) == outcome, dies_at

        assert not set(run.steps_run) & set(journaled), dies_at
        for number in range(1, open_iteration):
            assert world.models[number] == models[number], (dies_at, number)
        if f"{open_iteration}/model" in journaled:
            assert world.models[open_iteration] == models[open_iteration], dies_at
        for key in journaled:
            _, kind, *call = key.split("/")
            if kind == "tool":
                assert world.tools[call[0]] == tools[call[0]], (dies_at, key)
        # At most what was in flight is done twice.
        assert world.models.total() <= len(whole.record.appended_bytes) + 1
        assert all(times <= 2 for times in world.tools.values())

        assert timeless(record.transcript) == timeless(expected.transcript), dies_at
        assert (record.usage, record.iterations) == (expected.usage, expected.iterations), dies_at
        assert (record.provider, record.model) == (expected.provider, expected.model)
        assert record.journal == {}


@pytest.mark.parametrize("stored", [False, True], ids=["before it is stored", "after it is stored"])
async def test_a_process_that_dies_at_every_write_in_turn_still_gets_there(stored):
    replies, more = STORIES["parallel"]
    name = f"dying {stored}"
    expected, outcome, _ = await undisturbed(name, scripted.replies(*replies), more)
    world, record, result = World(), Record(), None
    brief = world.brief(name, scripted.replies(*replies), **more)
    for nth in range(40):
        # A write that does not land makes no progress, so every second attempt gets one step further.
        run = run_of(record, dies_at=0 if stored else nth % 2, stored=stored)
        try:
            result = await attempt(load_engine(), replace(brief, attempt=nth + 1), run)
            break
        except Killed:
            continue
    assert result == outcome
    assert timeless(record.transcript) == timeless(expected.transcript)
    assert record.usage == expected.usage
    if stored:
        assert set(world.models.values()) == {1}


async def test_a_replayed_response_is_not_shown_again():
    replies, more = STORIES["one tool"]
    world, record = World(), Record()
    brief = world.brief("replayed", scripted.replies(*replies), **more)
    first = run_of(record, dies_at=0, stored=True)
    with pytest.raises(Killed):
        await attempt(load_engine(), brief, first)
    second = run_of(record)
    await attempt(load_engine(), replace(brief, attempt=2), second)
    assert first.output_text.split() == ["Let", "me", "look."]
    assert second.output_text.split() == ["Done."]


async def test_an_outcome_that_was_recorded_is_not_worked_out_again():
    replies, more = STORIES["result beside a tool"]
    world, record = World(), Record()
    brief = world.brief("recorded", scripted.replies(*replies), **more)
    whole = run_of(Record())
    await attempt(load_engine(), brief, whole)
    world.models.clear()
    world.tools.clear()
    with pytest.raises(Killed):
        await attempt(load_engine(), brief, run_of(record, dies_at=whole.writes - 1, stored=True))
    before = (world.models.copy(), world.tools.copy())
    assert (await attempt(load_engine(), replace(brief, attempt=2), run_of(record))).result == [1]
    assert (world.models, world.tools) == before
