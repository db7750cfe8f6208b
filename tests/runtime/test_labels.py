"""Labels: a task that needs one goes only to workers that state it, and these take nothing else unless told to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from outrider import Outrider, TaskContext, TaskOptions
from outrider.core.errors import IdempotencyConflict, InvalidArguments
from outrider.core.queue import kind_of, route_needing, split_route
from outrider.runtime.facade import Runtime

pytestmark = pytest.mark.anyio

GPU = TaskOptions(needs="gpu")


def made(version: str = "") -> Outrider:
    app = Outrider(version=version)

    @app.tool
    async def where(x: int = 0) -> int:
        return x

    @app.tool(needs="gpu")
    async def embed(text: str = "") -> int:
        return len(text)

    return app


async def told(outrider: Runtime, task_id: str, text: str) -> str:
    """What the doctor says of a task, as soon as it says that."""
    while True:
        found = "\n".join((await outrider.doctor.explain(task_id)).because)
        if text in found:
            return found
        await asyncio.sleep(0.01)


def test_a_route_says_the_label_and_its_kind_stays_the_same():
    for route in ("process", "background_tool:a:b", "background_tool:a@b"):
        assert split_route(route) == (route, None)
        assert split_route(route_needing(route, "gpu=a100/x")) == (route, "gpu=a100/x")
        assert kind_of(route_needing(route, "gpu")) == kind_of(route)


async def test_a_task_that_needs_a_label_goes_only_where_it_is_stated_and_says_why_it_waits(tmp_path: Path):
    url = f"{tmp_path}/work.db"
    async with made().open(url) as plain:
        session = await plain.sessions.create()
        needy = await session.spawn("where", x=1, options=GPU)
        by_tool = await session.spawn("embed", text="abc")
        assert await (await session.spawn("where", x=2)).result() == 2
        record = await needy.record()
        assert (record.state, record.phase, record.needs) == ("queued", "blocked", "gpu")
        assert record.phase_reason == "no worker serves background_tool:where @gpu"
        text = await told(plain, needy.id, "no live worker serves")
        assert "do not state the label gpu, but none" in text
        assert "--serves label:gpu" in text
        assert any("awaited by 1 task (those that do" in each.text for each in await plain.doctor.examine())
        async with made("7").open(url, serves=["label:gpu"]) as special:
            assert [await each.result() for each in (needy, by_tool)] == [1, 3]
            (there,) = [each for each in await special.workers() if each.labels == ("gpu",)]
            assert (there.app_version, there.lost_after, there.is_alive) == ("7", 10.0, True)


async def test_a_worker_with_a_label_takes_nothing_else_unless_it_says_so(tmp_path: Path):
    url = f"{tmp_path}/work.db"
    async with made().open(url, serves=["label:gpu", "background_tool:*"]) as outrider:
        session = await outrider.sessions.create()
        plain = await session.spawn("where", x=1)
        assert await (await session.spawn("where", x=2, options=GPU)).result() == 2
        assert (await plain.record()).phase_reason == "no worker serves background_tool:where"
        assert "take only what needs a label: gpu" in await told(outrider, plain.id, "no live worker")
    async with made().open(url, serves=["label:gpu", "label:none"]) as outrider:
        assert await (await outrider.task(plain.id)).result() == 1
        other = await (await outrider.sessions.create()).spawn("where", options=TaskOptions(needs="eu"))
        assert "but gpu, none" in await told(outrider, other.id, "no live worker")


async def test_what_a_caller_says_goes_before_what_the_tool_does(tmp_path: Path):
    async with made().open(f"{tmp_path}/work.db", worker=False) as outrider:
        session = await outrider.sessions.create()
        assert (await (await session.spawn("embed")).record()).needs == "gpu"
        assert (await (await session.spawn("embed", options=TaskOptions(needs="eu"))).record()).needs == "eu"


async def test_retried_and_forked_a_task_needs_what_it_needed(tmp_path: Path):
    async with made().open(f"{tmp_path}/work.db", serves=["label:gpu"]) as outrider:
        session = await outrider.sessions.create()
        first = await session.spawn("where", x=1, options=GPU)
        assert await first.result() == 1
        again = await outrider.task((await outrider.tasks.retry(first.id)).id)
        forked = await outrider.task((await outrider.tasks.fork(first.id, arguments={"x": 5})).id)
        assert [await each.result() for each in (again, forked)] == [1, 5]
        assert (await again.record()).needs == (await forked.record()).needs == "gpu"


async def test_the_same_key_with_another_label_is_another_task(tmp_path: Path):
    async with made().open(f"{tmp_path}/work.db", worker=False) as outrider:
        session = await outrider.sessions.create()
        await session.spawn("where", options=TaskOptions(idempotency_key="k", needs="gpu"))
        with pytest.raises(IdempotencyConflict):
            await session.spawn("where", options=TaskOptions(idempotency_key="k"))


async def test_a_paused_kind_is_paused_with_every_label(tmp_path: Path):
    async with made().open(f"{tmp_path}/work.db", serves=["label:gpu"]) as outrider:
        session = await outrider.sessions.create()
        await outrider.queue.pause(kind="background_tool")
        task = await session.spawn("where", x=3, options=GPU)
        assert (await task.record()).phase_reason == "kind paused"
        await outrider.queue.resume(kind="background_tool")
        assert await task.result() == 3


async def test_what_was_held_with_a_label_is_released_with_it(tmp_path: Path):
    app, freed = Outrider(), asyncio.Event()

    @app.resource("card")
    async def free(resource_id: str) -> None:
        freed.set()

    @app.tool
    async def use(task: TaskContext) -> None:
        await task.hold("card", "0")

    async with app.open(f"{tmp_path}/work.db", serves=["label:gpu"]) as outrider:
        await (await (await outrider.sessions.create()).spawn("use", options=GPU)).result()
        await freed.wait()


@pytest.mark.parametrize("label", ["", "none", "a b", "@gpu", "*", "ü", "-x", "x" * 64, "a:b", 7])
async def test_what_is_no_label_is_refused(label: Any):
    app = made()
    with pytest.raises(InvalidArguments):
        app.tool(name="other", needs=label)(lambda: None)
    if label != "none":
        with pytest.raises(InvalidArguments):
            app.registry.serve([f"label:{label}" if isinstance(label, str) else "label:"])
    async with app.open("memory://", worker=False) as outrider:
        session = await outrider.sessions.create()
        with pytest.raises(InvalidArguments):
            await session.spawn("where", options=TaskOptions(needs=label))
        assert not await outrider.tasks.list()


async def test_what_cannot_have_a_label_is_refused():
    app = made()
    app.tool(name="odd @gpu")(lambda: None)
    async with app.open("memory://", worker=False) as outrider:
        session = await outrider.sessions.create()
        with pytest.raises(InvalidArguments, match="in its name"):
            await session.spawn("odd @gpu")
        with pytest.raises(InvalidArguments, match="to a program by its name"):
            await session.create("external", {"name": "theirs"}, options=GPU)
