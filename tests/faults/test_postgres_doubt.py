"""A link that breaks at the very commit: whoever wrote is told the truth, and nothing is written twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import pytest

from outrider import Outrider, TaskOptions, WorkerSettings
from outrider.core.errors import StoreUnavailable
from outrider.core.ledger import OutputChunk
from outrider.stores.postgres import PostgresLedger, writer
from outrider.stores.postgres.pipeline import Answer, Pipeline
from tests.proxy import Direction, Proxy
from tests.stores.scene import Scene

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

Write: TypeAlias = Callable[[Scene], Awaitable[Any]]
Count: TypeAlias = Callable[[Scene], Awaitable[int]]


async def _print(scene: Scene) -> None:
    assert list(await scene.ledger.print([OutputChunk("printing", 1, "stdout", "x", scene.now, 1000)])) == [True]


async def _printed(scene: Scene) -> int:
    return sum(len(row.text) for row in (await scene.views.output("printing")).rows)


async def _claim(scene: Scene) -> None:
    assert len(await scene.claimed_ids(worker="one", limit=1)) == 1


async def _claimed(scene: Scene) -> int:
    return len(await scene.views.held_by("one"))


async def _create(scene: Scene) -> None:
    await scene.create("new")


async def _created(scene: Scene) -> int:
    return len(await scene.views.tasks(["new"]))


VERBS: Mapping[str, tuple[Write, Count]] = {
    "print": (_print, _printed),
    "claim": (_claim, _claimed),
    "create": (_create, _created),
}


@dataclass
class Stage:
    """A store behind a proxy, with a task that prints and some to claim; and one beside it, to see what is there."""

    proxy: Proxy
    scene: Scene
    witness: Scene

    def give_up_early(self) -> None:
        """Have the writer take its link for broken soon, and go another way then."""
        far: Any = self.scene.ledger
        near: Any = self.witness.ledger
        far._writer._pipeline.patience = 0.3
        far._database._conninfo = near._database._conninfo


@asynccontextmanager
async def stage(url: str) -> AsyncIterator[Stage]:
    with Proxy(urlsplit(url).port or 0) as proxy:
        far = await PostgresLedger.open(url.replace(f":{urlsplit(url).port}", f":{proxy.port}"))
        near = await PostgresLedger.open(url)
        try:
            scene = Scene(far)
            await scene.session()
            await scene.running("printing")
            await scene.many(3)
            yield Stage(proxy, scene, Scene(near))
        finally:
            proxy.heal()
            await far.close()
            await near.close()


async def until(fact: Callable[[], bool | Awaitable[int]]) -> None:
    async with asyncio.timeout(30):
        while not (seen if isinstance(seen := fact(), bool) else await seen):  # noqa: ASYNC110 - a proxy or a server brings it about
            await asyncio.sleep(0.01)


def at_the_commit(monkeypatch: pytest.MonkeyPatch, harm: Callable[[], None]) -> threading.Event:
    """Do harm, once, just before a commit is sent, when all before it was answered; is set when it was sent."""
    say, sent = Pipeline.say, threading.Event()

    def harmed(self: Pipeline, text: str, parameters: Sequence[Any] = ()) -> Answer:
        is_first = text == "commit" and not sent.is_set()
        if is_first:
            say(self, "select 1").fetchone()
            harm()
        answer = say(self, text, parameters)
        if is_first:
            self._server.flush()
            sent.set()
        return answer

    monkeypatch.setattr(Pipeline, "say", harmed)
    return sent


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("lost", ["to_server", "to_client"])
async def test_a_link_that_breaks_at_a_commit_has_it_done_once(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, verb: str, lost: Direction
):
    write, written = VERBS[verb]
    async with stage(postgres_url) as on:
        sent = at_the_commit(monkeypatch, lambda: on.proxy.freeze(lost))
        writing = asyncio.ensure_future(write(on.scene))
        await until(sent.is_set)
        if lost == "to_client":
            await until(lambda: written(on.witness))
        assert not writing.done()
        on.proxy.drop()
        on.proxy.heal()
        await writing
        assert await written(on.witness) == 1


@pytest.mark.parametrize("verb", VERBS)
async def test_a_commit_that_arrives_after_its_sender_gave_up_is_done_once(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, verb: str
):
    write, written = VERBS[verb]
    async with stage(postgres_url) as on:
        on.give_up_early()
        sent = at_the_commit(monkeypatch, lambda: on.proxy.freeze("to_server"))
        writing = asyncio.ensure_future(write(on.scene))
        await until(sent.is_set)
        assert not (await asyncio.wait([writing], timeout=1))[0], "told while the commit was on its way"
        on.proxy.heal()
        await writing
        assert await written(on.witness) == 1


async def test_a_link_that_falls_silent_is_given_up_and_another_taken(postgres_url: str):
    write, written = VERBS["print"]
    async with stage(postgres_url) as on:
        on.give_up_early()
        on.proxy.freeze()
        await write(on.scene)
        assert await written(on.witness) == 1


@pytest.mark.parametrize("verb", VERBS)
async def test_who_is_told_that_the_database_is_away_has_written_nothing(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, verb: str
):
    monkeypatch.setattr(writer, "PATIENCE", 0.1)
    write, written = VERBS[verb]
    async with stage(postgres_url) as on:
        sent = at_the_commit(monkeypatch, lambda: on.proxy.freeze("to_server"))
        writing = asyncio.ensure_future(write(on.scene))
        await until(sent.is_set)
        on.proxy.cut()
        assert not (await asyncio.wait([writing], timeout=0.5))[0], "told before anybody could know"
        on.proxy.heal()
        with pytest.raises(StoreUnavailable):
            await writing
        assert await written(on.witness) == 0
        await write(on.scene)
        assert await written(on.witness) == 1


async def test_a_worker_whose_claim_is_in_doubt_goes_when_it_is_told_to(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    app = Outrider(WorkerSettings(drain_timeout=0.2))
    ran: list[int] = []

    @app.tool
    def run() -> None:
        ran.append(1)

    port = urlsplit(postgres_url).port or 0
    with Proxy(port) as proxy:
        async with app.open(postgres_url, worker=False) as witness:
            session = await witness.sessions.create()
            async with asyncio.timeout(30):  # an outage may last for hours
                async with app.open(postgres_url.replace(f":{port}", f":{proxy.port}")) as far:
                    await (await (await far.sessions.get(session.id)).spawn("run")).result()
                    task = await session.spawn("run", options=TaskOptions(delay=0.5))
                    sent = at_the_commit(monkeypatch, lambda: proxy.freeze("to_server"))
                    await until(sent.is_set)
                    proxy.cut()
            assert len(ran) == 1
    async with app.open(postgres_url) as near:
        await near.tasks.result(task.id, timeout=30)
    assert len(ran) == 2
