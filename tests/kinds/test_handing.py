"""Peers that are opened and agents that are invited: each is told once, and one drives a session at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from outrider import Runtime, SessionHandle, State, TaskOptions
from outrider.agents.scripted import Call, Reply, Turn
from outrider.core.errors import ConnectionRequired, IllegalMove, InvalidArguments, UnknownName
from outrider.core.session import Session
from outrider.runtime.codec import decode
from tests.kinds.stage import Stage, calls, steps, turns, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def stage() -> Stage:
    stage = Stage("memory://")
    stage.agent("clerk", lambda turn: Reply(f"clerk: {turn.prompt}"))
    stage.agent("expert", lambda turn: Reply(f"expert: {turn.prompt}"))
    return stage


async def said(runtime: Runtime, session_id: str) -> list[str]:
    """What a session's transcript says, in words."""
    messages: list[Any] = [decode(row.message) for row in await runtime.services.views.transcript(session_id)]
    parts = [part for message in messages for part in message["parts"]]
    return [part["content"] for part in parts if part["part_kind"] in ("user-prompt", "text")]


async def peer_of(runtime: Runtime, task_id: str) -> SessionHandle:
    record = await runtime.tasks.record(task_id)
    assert record.links.child_session_id is not None
    return await runtime.sessions.get(record.links.child_session_id)


async def test_a_peer_answers_its_first_message_and_stays_open_in_the_tree_of_whoever_opened_it(stage: Stage):
    async with stage.app.open(stage.url) as runtime:
        origin = await runtime.sessions.create(agent="clerk", tree_budget={"requests": 20})
        options = TaskOptions(wake="on_terminal", budget={"requests": 10})
        task = await origin.open_peer("Look after the roses.", agent="expert", title="roses", options=options)
        assert await task.result(timeout=10) == "expert: Look after the roses."
        peer = await peer_of(runtime, task.id)
        record = await peer.record()
        assert (record.title, record.agent, record.status) == ("roses", "expert", "idle")
        assert (record.parent_session_id, record.parent_task_id) == (origin.id, None)
        assert record.root_session_id == origin.id
        assert await (await peer.send("And the lilies?")).result() == "expert: And the lilies?"
        assert len(await said(runtime, peer.id)) == 4
        (woken,) = await turns(runtime, origin, 1)
        assert "expert: Look after the roses." in woken
        turn = await peer.turn()
        assert turn is not None
        spent = {each.name: each.spent["requests"] for each in (await turn.spent()).accounts}
        assert spent == {f"session:{peer.id}": 2, f"tree:{origin.id}": 3}
        assert (await origin.usage(tree=True)).requests == 3


async def test_a_peer_outlives_its_task_and_its_origin_unless_what_it_was_asked_is_canceled(stage: Stage):
    stage.agent("slow", steps(calls("work", n=1), Reply("done")), tools=["work"])
    async with stage.app.open(stage.url) as runtime:
        origin = await runtime.sessions.create(agent="slow")
        kept, stopped = [await origin.open_peer(word) for word in ("keep", "stop")]
        for task in (kept, stopped):
            await until(runtime, lambda each: each.core.is_held, parent_task_id=task.id)
        receipt = await stopped.cancel(wait=10)
        assert (len(receipt.states), set(receipt.states.values())) == (2, {State.CANCELED})
        turn = await (await peer_of(runtime, stopped.id)).turn()
        assert turn is not None
        assert (await turn.wait(timeout=10)).state is State.CANCELED
        stage.gate.set()
        assert await kept.result(timeout=10) == "done"
        peer = await peer_of(runtime, kept.id)
        stage.gate.clear()
        turn = await peer.send("again")
        await origin.delete()
        stage.gate.set()
        assert await turn.result(timeout=10) == "done"


async def test_a_peer_that_is_interrupted_at_its_first_message_answers_in_the_turn_after(stage: Stage):
    def script(turn: Turn) -> Reply:
        return calls("drift") if turn.prompt == "first" else Reply(f"heard {turn.prompt}")

    stage.agent("adrift", script, tools=["drift"])
    async with stage.app.open(stage.url) as runtime:
        task = await (await runtime.sessions.create(agent="adrift")).open_peer("first")
        await until(runtime, lambda each: each.state is State.RUNNING, parent_task_id=task.id)
        peer = await peer_of(runtime, task.id)
        told = await peer.send("second", steering="interrupt")
        assert await task.result(timeout=10) == "heard second"
        assert (await told.record()).state is State.CANCELED


async def test_an_invited_agent_takes_its_turn_after_the_one_that_is_taken_and_both_know_what_was_said(stage: Stage):
    stage.agent("host", steps(calls("work", n=1), Reply("host: done")), tools=["work"])
    async with stage.open("host") as (runtime, session):
        first = await session.send("go")
        await until(runtime, lambda task: task.core.is_held, kind="turn")
        task = await session.hand_off("expert", "What do you say?", invite=True)
        await until(runtime, lambda each: bool(each.core.waits), kind="agent_handoff")
        assert (await session.record()).turn_id == first.id
        stage.gate.set()
        assert await task.result(timeout=10) == "expert: What do you say?"
        assert await first.result() == "host: done"
        assert await said(runtime, session.id) == ["go", "host: done", "What do you say?", "expert: What do you say?"]
        drove = await session.turn()
        assert drove is not None
        assert [each.spec["agent"] for each in reversed(await session.tasks(kind="turn"))] == ["host", "expert"]
        assert await (await session.send("on")).result(timeout=10) == "host: done"  # the next is its own agent's


async def test_a_guest_whose_turn_is_interrupted_or_whose_session_is_closed_before_it_says_so(stage: Stage):
    stage.agent("adrift", lambda turn: calls("drift"), tools=["drift"])
    async with stage.open("clerk") as (runtime, session):
        guest = await session.hand_off("adrift", "Say something.", invite=True)
        await until(runtime, lambda task: task.state is State.RUNNING, kind="turn")
        told = await session.send("enough", steering="interrupt")
        assert await (await told.heard_by(timeout=10)).result(timeout=10) == "clerk: enough"
        error = (await guest.wait(timeout=10)).error
        assert error is not None
        assert (error.kind, error.message) == ("interrupted", f"its turn {told.id} was canceled: interrupted")
        closing = await runtime.sessions.create(agent="adrift")
        turn = await closing.send("go")
        late = await closing.hand_off("clerk", "And you?", invite=True)
        await until(runtime, lambda task: bool(task.core.waits), session_id=closing.id, kind="agent_handoff")
        await closing.close()
        await turn.cancel()
        error = (await late.wait(timeout=10)).error
        assert error is not None
        assert (error.kind, error.message) == ("rejected", f"{closing.id} is closed, and hears nothing")


async def test_what_makes_no_sense_of_a_hand_off_is_refused_before_there_is_a_task(stage: Stage):
    @stage.app.connection("github")
    async def github(session: Session) -> bool:
        return False

    async def graph(agent: Any) -> str:
        return "never"

    stage.agent("pusher", lambda turn: Reply("pushed"), connections=["github"])
    stage.app.agent("function", graph)
    async with stage.app.open(stage.url) as runtime:
        talks, silent = await runtime.sessions.create(agent="clerk"), await runtime.sessions.create()
        for invite in (False, True):
            with pytest.raises(ConnectionRequired, match="github"):
                await talks.hand_off("pusher", "Push.", invite=invite)
        with pytest.raises(ConnectionRequired):
            await talks.open_peer("Push.", agent="pusher")
        with pytest.raises(IllegalMove, match="no turns"):
            await silent.hand_off("expert", "Hm?", invite=True)
        with pytest.raises(InvalidArguments, match="engine"):
            await talks.hand_off("function", "Hm?", invite=True)
        with pytest.raises(UnknownName):
            await talks.hand_off("nobody", "Hm?")
        with pytest.raises(UnknownName):
            await silent.open_peer("Hm?")
        with pytest.raises(InvalidArguments, match="model"):
            await talks.create("agent_handoff", {"agent": "expert", "prompt": "x", "invite": True, "model": "scripted"})
        assert [*await talks.tasks(), *await silent.tasks()] == []
        task = await silent.hand_off("expert", "Hm?")
        assert await task.result(timeout=10) == "expert: Hm?"
        assert (await task.record()).kind == "agent_handoff"


async def test_an_agent_opens_peers_and_invites_others_within_the_limits_of_its_tree_and_hears_of_them():
    stage = Stage("memory://", depth=1, detached_live=1)
    stage.agent("expert", lambda turn: Reply(f"expert: {turn.prompt}"))
    spawn = partial(Call, "spawn_agent")
    deeper = calls("spawn_agent", instructions="Deeper.", agent="deep", place="peer")
    stage.agent("deep", steps(deeper, Reply("no deeper")), delegates=True)
    stage.agent("host", lambda turn: host(turn), delegates=True)

    def host(turn: Turn) -> Reply:
        if "<task_wake" in turn.prompt:
            return Reply("heard")
        match turn.number:
            case 1:
                return calls("spawn_agent", instructions="Go.", agent="deep", place="peer", name="deep one")
            case 2:
                return calls("wait_task", task_ids=[turn.results[0].content["task_id"]])
            case 3:
                here = {"instructions": "Speak up.", "agent": "expert", "place": "here"}
                return Reply(
                    calls=(
                        spawn({"instructions": "x", "agent": "host", "place": "here"}),
                        spawn({**here, "mode": "foreground"}),
                        spawn(here),
                        spawn({"instructions": "drift", "agent": "drifting", "place": "peer"}),
                        spawn({"instructions": "drift", "agent": "drifting", "place": "peer"}),
                    )
                )
            case 4:
                return calls("wait_task", task_ids=[turn.results[2].content["task_id"]])
            case 5:
                return Reply(f"walked away: {turn.results[0].content}")
        raise AssertionError

    stage.agent("drifting", steps(calls("drift"), Reply("never")), tools=["drift"])
    async with stage.open("host") as (runtime, session):
        walked = await (await session.send("go")).result(timeout=10)
        assert "takes a turn after yours" in walked
        deep = await until(runtime, lambda task: task.input.display_name == "deep one")
        assert "2 deep" not in str(stage.said["deep"])
        assert "limit_reached: agents may be 1 deep" in str(stage.said["deep"])
        himself, foreground, _, *peers = stage.said["host"][2:7]
        assert "name another agent" in himself
        assert "leave out mode" in foreground
        assert sum("1 detached tasks of the tree live" in str(each) for each in peers) == 1
        invited = await until(runtime, lambda task: task.is_terminal, kind="agent_handoff")
        assert invited.outcome.summary == "expert: Speak up."
        assert stage.said["host"][1]["tasks"][0]["session_id"] == deep.live.links.child_session_id
        peers_like_itself = await session.spawn_agent("Deeper.", agent="deep", require_approval=["work"])
        await peers_like_itself.result(timeout=10)
        assert "asks for no more than it was registered with" in str(stage.said["deep"][-1])
        assert "heard" in await turns(runtime, session, 3)
        await session.delete(cancel=True)
