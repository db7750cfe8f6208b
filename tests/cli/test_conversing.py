"""What somebody sees who follows a session: each word once, whenever they came, and what is asked while it is asked.

Whether the session is in a database or at a server: every test runs on both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

import pytest

from outrider import Client, Outrider, SessionHandle, TaskRecord, WorkerSettings
from outrider.agents.function import AgentContext
from outrider.cli import conversing
from outrider.cli.asking import Question
from outrider.cli.conversing import Conversation
from outrider.cli.database import Opened
from outrider.cli.glance import Glance
from outrider.cli.staging import Typed
from tests.client.stage import WAYS, Way, served
from tests.facts import until

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("way", WAYS)]
LONG = "A long story. " * 8000


class Notebook:
    """A stage that writes down what is shown on it."""

    is_live = True

    def __init__(self) -> None:
        self.text = ""
        self.recalled: list[str] = []
        self.notes: list[str] = []
        self.asked: list[Question | None] = []

    def taken(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def lines(self) -> AsyncGenerator[Typed]:
        for _ in ():
            yield Typed("")

    def ask(self, question: Question | None) -> None:
        self.asked.append(question)

    async def say(self, text: str) -> None:
        self.text += text

    async def recall(self, text: str, *, is_users: bool) -> None:
        self.recalled.append(f"> {text}" if is_users else text)

    async def answered(self, record: TaskRecord, result: Any, *, seen: bool) -> None:
        self.text += "" if seen else f"{result}\n"

    async def note(self, text: str) -> None:
        self.notes.append(text)

    async def break_off(self, why: str) -> None:
        self.notes.append(why)

    async def show(self, glance: Glance) -> None:
        """The tasks are no concern here."""


class Stage:
    """An app whose agent tells stories, and stops in their midst until the gate is open."""

    def __init__(self) -> None:
        self.app = Outrider(WorkerSettings(park_grace=0.02))
        self.gate = asyncio.Event()
        self.midst = asyncio.Event()

        async def teller(ctx: AgentContext) -> str:
            match ctx.prompt:
                case "long":
                    ctx.output(LONG)
                    return LONG
                case "slowly":
                    ctx.output("Once upon ")
                    self.midst.set()
                    await self.gate.wait()
                    ctx.output("a time.\n")
                    return "Once upon a time."
                case "ask":
                    return str(await ctx.ask("Which story?", str))
                case _:
                    return f"No story: {ctx.prompt}"

        self.app.agent("teller", teller)

    @asynccontextmanager
    async def open(self, way: Way) -> AsyncIterator[tuple[Opened, SessionHandle]]:
        async with self.app.open("memory://") as runtime:
            if way == "runtime":
                yield runtime, await runtime.sessions.create(agent="teller")
                return
            async with served(runtime) as url, Client(url) as client:
                yield client, await client.sessions.create(agent="teller")


@asynccontextmanager
async def following(runtime: Opened, session: SessionHandle) -> AsyncIterator[tuple[Conversation, Notebook]]:
    notebook = Notebook()
    conversation = Conversation(runtime, session, notebook)
    await conversation.join()
    job = asyncio.ensure_future(conversation.follow())
    try:
        yield conversation, notebook
    finally:
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


async def shown(notebook: Notebook, text: str) -> None:
    await until(lambda: text in notebook.text, within=30)


async def test_whoever_joins_in_the_midst_of_an_answer_sees_all_of_it_once(way: Way):
    stage = Stage()
    async with stage.open(way) as (runtime, session), following(runtime, session) as (_, early):
        turn = await session.send("slowly")
        await stage.midst.wait()
        await shown(early, "Once upon ")
        async with following(runtime, session) as (_, late):
            assert (late.text, late.recalled) == ("Once upon ", ["> slowly"])
            stage.gate.set()
            await turn.wait()
            await shown(early, "a time.\n")
            await shown(late, "a time.\n")
        async with following(runtime, session) as (_, later):
            assert (later.text, later.recalled) == ("", ["> slowly", "Once upon a time."])
        assert early.text == late.text == "Once upon a time.\n"


async def test_of_what_was_said_before_the_last_turns_are_recalled_however_long_they_were(
    way: Way, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(conversing, "PAGE", 2)
    async with Stage().open(way) as (runtime, session):
        for word in ("one", "two", "three", "four"):
            await (await session.send(word)).wait()
        async with following(runtime, session) as (_, late):
            said = ("> two", "No story: two", "> three", "No story: three", "> four", "No story: four")
            assert late.recalled == [*said]


async def test_a_result_is_shown_once_whether_it_was_streamed_or_not_and_however_long(way: Way):
    async with Stage().open(way) as (runtime, session), following(runtime, session) as (conversation, notebook):
        for said in ("long", "none"):
            conversation.expect((await session.send(said)).id, after=False)
            await conversation.quiet()
    assert notebook.text == f"{LONG}No story: none\n"


async def test_it_is_quiet_when_what_was_said_for_later_is_answered_too(way: Way):
    stage = Stage()
    async with stage.open(way) as (runtime, session), following(runtime, session) as (conversation, notebook):
        turn = await session.send("slowly")
        await stage.midst.wait()
        await shown(notebook, "Once upon ")
        assert conversation.turn == turn.id
        told = await session.send("then this", steering="after")
        conversation.expect(told.id, after=True)
        stage.gate.set()
        await conversation.quiet()
    assert notebook.text == "Once upon a time.\nNo story: then this\n"


async def test_a_question_is_asked_until_it_is_answered_and_no_answer_of_its_turn_is_missing(way: Way):
    async with Stage().open(way) as (runtime, session), following(runtime, session) as (conversation, notebook):
        turn = await session.send("ask")
        conversation.expect(turn.id, after=False)
        await conversation.asked()
        (question,) = conversation.questions
        assert notebook.asked[-1] == question
        conversation.skip(question.id)
        assert notebook.asked[-1:] == [None]
        assert conversation.oldest == question
        await session.send("then this")
        await turn.answer("The long one")
        await conversation.quiet()
        assert conversation.request(question.id) is None
    assert notebook.notes[-1] == "answered or closed elsewhere: Which story?"
    assert notebook.text == "The long one\nNo story: then this\n"
