"""What running work says: progress, detail and output; heard once, not heard again while replaying."""

import asyncio
import sys
import threading
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, cast

import pytest

from outrider import Outrider, State, SyncTaskContext, TaskContext, WorkerSettings
from outrider.core.change import Page
from outrider.core.errors import InvalidArguments, StoreUnavailable
from outrider.core.ledger import OutputChunk, Report
from outrider.core.values import evolve
from outrider.runtime.attempt import Attempt
from outrider.runtime.voice import Voice
from outrider.settings import Limits
from outrider.testing import Store, open_test

pytestmark = pytest.mark.anyio


async def test_progress_detail_and_output_stand_in_the_record_and_in_the_log(store: Store):
    app = Outrider()

    @app.tool
    async def speaks(task: TaskContext) -> None:
        task.detail("half way")
        task.progress(1, total=2, unit="files", label="a.txt", steps=["read", "write"])
        task.output("one\n")
        task.output("oops\n", stream="stderr")
        task.heartbeat()

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("speaks")
        await runtime.run_until_idle()
        record = await handle.record()
        assert record.state_detail == "half way"
        assert record.progress is not None
        assert record.progress.model_dump() == {
            "current": 1.0,
            "total": 2.0,
            "unit": "files",
            "label": "a.txt",
            "steps": ("read", "write"),
        }
        assert [(piece.stream, piece.text) async for piece in handle.output()] == [
            ("stdout", "one\n"),
            ("stderr", "oops\n"),
        ]


async def test_nothing_is_said_again_while_replaying(store: Store):
    app, runs = Outrider(), []

    @app.tool
    async def speaks(task: TaskContext) -> None:
        runs.append(task.attempt)
        task.output(f"start {task.attempt}\n")
        await task.step("first", lambda: None)
        task.output(f"middle {task.attempt}\n")
        await task.step("second", lambda: None)
        task.output(f"new {task.attempt}\n")
        if task.attempt == 1:
            await asyncio.Event().wait()

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("speaks")
        await runtime.until(lambda: runtime.writes == 2)
        for _ in range(20):
            await asyncio.sleep(0.005)
        await runtime.crash()
        await runtime.run_until_idle()
        text = "".join([piece.text async for piece in handle.output()])
        assert text == "start 1\nmiddle 1\nnew 1\nnew 2\n"


async def test_progress_is_coalesced_and_the_newest_wins():
    app = Outrider()

    @app.tool
    async def counts(task: TaskContext) -> None:
        for n in range(1000):
            task.progress(n, total=1000)
            if n % 100 == 0:
                await asyncio.sleep(0)
        task.progress(1000, total=1000)

    async with open_test(app, progress_interval=0.25) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("counts")
        await runtime.run_until_idle()
        progress = (await handle.record()).progress
        assert progress is not None
        assert progress.current == 1000
        said = [event async for event in handle.events() if event.type == "task.progress"]
        assert len(said) <= 2


@pytest.mark.parametrize("said", [Decimal("1.5"), True, 10**30], ids=repr)
async def test_progress_takes_any_number(said: Any):
    app = Outrider()

    @app.tool
    async def counts(task: TaskContext) -> None:
        task.progress(said, total=said)

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("counts")
        await runtime.run_until_idle()
        progress = (await handle.record()).progress
        assert progress is not None
        assert progress.current == progress.total == float(said)


@pytest.mark.parametrize(
    "said", ["many", object(), None, float("nan"), float("inf")], ids=["text", "object", "none", "nan", "infinity"]
)
async def test_progress_that_is_no_number_fails_the_one_who_said_it_and_nobody_else(said: Any):
    app = Outrider()

    @app.tool(max_failures=1)
    async def counts(task: TaskContext) -> None:
        task.progress(said)

    @app.tool
    async def other(task: TaskContext) -> None:
        task.output("still heard")

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("counts")
        await runtime.run_until_idle()
        record = await handle.record()
        assert record.state is State.FAILED
        assert record.error is not None
        assert "progress" in record.error.message
        beside = await session.spawn("other")
        await runtime.run_until_idle()
        assert [piece.text async for piece in beside.output()] == ["still heard"]


async def test_text_that_utf8_cannot_hold_is_mended(store: Store):
    app = Outrider()

    @app.tool
    async def speaks(task: TaskContext) -> None:
        task.output("a\ud800b")
        task.detail("c\udfffd")
        task.progress(1, label="\ud800", unit="\ud800", steps=["\ud800"])

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("speaks")
        await runtime.run_until_idle()
        assert [piece.text async for piece in handle.output()] == ["a?b"]
        record = await handle.record()
        assert record.state_detail == "c?d"
        assert record.progress is not None
        assert record.progress.label == "?"


async def test_output_is_kept_up_to_its_tail_and_says_what_was_cut(store: Store):
    app = Outrider(WorkerSettings(limits=Limits(output_tail=1000)))

    @app.tool
    async def floods(task: TaskContext) -> None:
        for n in range(200):
            task.output(f"line {n:04d}\n")
            if n % 10 == 0:
                await asyncio.sleep(0.001)

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("floods")
        await runtime.run_until_idle()
        pieces = [piece async for piece in handle.output()]
        kept = "".join(piece.text for piece in pieces)
        assert kept.endswith("line 0199\n")
        assert len(kept.encode()) < 2200
        assert pieces[0].lost > 0 or "were cut here" in kept


@pytest.mark.parametrize("pieces", [1, 100])
async def test_the_tail_of_output_counts_bytes_and_cuts_no_character_in_two(pieces: int, store: Store):
    app = Outrider(WorkerSettings(limits=Limits(output_tail=1001)))

    @app.tool
    async def floods(task: TaskContext) -> None:
        for _ in range(pieces):
            task.output("🦊" * (1000 // pieces))

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("floods")
        await runtime.run_until_idle()
        kept = "".join([piece.text async for piece in handle.output()])
        mark, foxes = kept.split("\n")[1:]
        assert foxes == "🦊" * 250
        assert mark.startswith("[… 3,000 bytes were cut here")


async def test_a_cursor_goes_on_exactly_where_it_stopped_even_within_a_piece(store: Store):
    app = Outrider()
    go_on = asyncio.Event()

    @app.tool
    async def speaks(task: TaskContext) -> None:
        task.output("häuser\n")
        await go_on.wait()
        task.output("und mehr\n")

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("speaks")
        first = await anext(handle.output())
        assert (first.offset, first.next) == (0, 8)
        go_on.set()
        await runtime.run_until_idle()
        assert "".join([piece.text async for piece in handle.output(start=first.next)]) == "und mehr\n"
        within = [piece async for piece in handle.output(start=3)]
        assert "".join(piece.text for piece in within) == "user\nund mehr\n"
        assert within[0].offset == 3
        assert [piece async for piece in handle.output(start=within[-1].next)] == []


async def test_threads_may_speak_all_at_once():
    app = Outrider(WorkerSettings(limits=Limits(output_tail=2000)))

    @app.tool
    def choir(task: SyncTaskContext) -> None:
        def sing() -> None:
            for n in range(2000):
                task.output(f"{n}\n" * 20)
                task.progress(n)

        voices = [threading.Thread(target=sing) for _ in range(4)]
        for voice in voices:
            voice.start()
        for voice in voices:
            voice.join()

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("choir")
        await runtime.run_until_idle(timeout=30)
        assert (await handle.record()).state is State.SUCCEEDED


async def test_details_and_labels_that_are_too_long_are_cut_with_a_mark():
    app = Outrider()

    @app.tool
    async def speaks(task: TaskContext) -> str:
        task.detail("d" * 5000)
        task.progress(1, label="l" * 5000)
        return "s" * 5000

    async with open_test(app) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("speaks")
        await runtime.run_until_idle()
        record = await handle.record()
        assert record.state_detail is not None
        assert record.progress is not None
        assert record.progress.label is not None
        assert record.summary is not None
        assert (len(record.state_detail), record.state_detail[-1]) == (2048, "…")
        assert (len(record.progress.label), record.progress.label[-1]) == (256, "…")
        assert (len(record.summary), record.summary[-1]) == (2048, "…")
        assert await handle.result() == "s" * 5000


async def test_what_was_said_while_the_store_did_not_answer_is_written_when_it_does(store: Store):
    app = Outrider()
    go_on = asyncio.Event()

    @app.tool
    async def speaks(task: TaskContext) -> None:
        task.output("first\n")
        task.progress(1)
        await go_on.wait()

    async with open_test(app, store=store) as runtime:
        (crew,) = runtime._crews
        failures = []

        async def unavailable(*arguments: Any) -> Any:
            failures.append(arguments)
            if len(failures) == 2:
                del crew.probe.__dict__["print"], crew.probe.__dict__["report"]
            raise StoreUnavailable("for a moment")

        crew.probe.__dict__.update(print=unavailable, report=unavailable)
        session = await runtime.sessions.create()
        handle = await session.spawn("speaks")
        await runtime.until(lambda: len(failures) == 2)
        output = handle.output()
        assert (await anext(output)).text == "first\n"
        go_on.set()
        await runtime.run_until_idle()
        progress = (await handle.record()).progress
        assert progress is not None
        assert progress.current == 1


async def test_the_last_words_of_a_task_outlive_a_store_that_does_not_answer(store: Store):
    app = Outrider()

    @app.tool
    async def speaks(task: TaskContext) -> None:
        task.output("last\n")
        task.output("words\n", stream="stderr")

    async with open_test(app, store=store) as runtime:
        (crew,) = runtime._crews
        real = crew.probe.print

        async def unavailable(*arguments: Any) -> Any:
            crew.probe.__dict__["print"] = real
            raise StoreUnavailable("for a moment")

        crew.probe.__dict__["print"] = unavailable
        session = await runtime.sessions.create()
        handle = await session.spawn("speaks")
        await runtime.run_until_idle()
        assert [piece.text async for piece in handle.output()] == ["last\n", "words\n"]


@pytest.mark.parametrize("stream", ["\udc80", "", "a\nb", "x" * 65, 1], ids=ascii)
async def test_a_stream_that_is_no_short_plain_name_is_refused_at_the_call(stream: Any, store: Store):
    app = Outrider()

    @app.tool
    async def speaks(task: TaskContext) -> str:
        task.output("before\n")
        try:
            task.output("lost\n", stream=stream)
        except InvalidArguments as error:
            task.output("after\n", stream="my-own.stream:2")
            return error.code
        return "taken"

    async with open_test(app, store=store) as runtime:
        session = await runtime.sessions.create()
        handle = await session.spawn("speaks")
        await runtime.run_until_idle()
        assert await handle.result() == "invalid_arguments"
        assert "".join([piece.text async for piece in handle.output()]) == "before\nafter\n"


async def test_a_word_that_cannot_be_written_is_lost_alone(store: Store):
    app = Outrider()
    go_on = asyncio.Event()

    @app.tool
    async def speaks(task: TaskContext, words: list[str]) -> None:
        for word in words:
            task.output(word, stream=word)
        task.progress(len(words), label=words[0])
        await go_on.wait()

    async with open_test(app, store=store) as runtime:
        (crew,) = runtime._crews
        real_print, real_report = crew.probe.print, crew.probe.report

        async def print_(chunks: Sequence[OutputChunk]) -> Any:
            if any(chunk.text == "bad" for chunk in chunks):
                raise ValueError("this cannot be written")
            return await real_print(chunks)

        async def report(reports: Sequence[Report]) -> Any:
            if any(each.live and each.live.progress and each.live.progress.label == "bad" for each in reports):
                raise ValueError("this cannot be written")
            return await real_report(reports)

        crew.probe.__dict__.update(print=print_, report=report)
        session = await runtime.sessions.create()
        handles = [
            await session.spawn("speaks", words=words) for words in (["a", "b"], ["bad", "c"], ["d", "bad", "e"])
        ]

        async def labels() -> list[str | None]:
            records = await session.tasks(newest_first=False)
            return [record.progress.label if record.progress else None for record in records]

        async def is_said() -> bool:
            return await labels() == ["a", None, "d"]

        await runtime.until(is_said)
        go_on.set()
        await runtime.run_until_idle()
        assert ["".join([piece.text async for piece in handle.output()]) for handle in handles] == ["ab", "c", "de"]
        assert [record.state for record in await session.tasks()] == ["succeeded"] * 3


async def test_a_thread_may_speak_while_what_was_heard_is_gathered():
    class Speaker:
        has_spoken = False

        @property
        def is_over(self) -> bool:
            if not self.has_spoken:
                self.has_spoken = True
                thread = threading.Thread(target=voice.hear, args=[cast(Attempt, Speaker())])
                thread.start()
                thread.join()
            return True

    async with open_test(Outrider()) as runtime:
        voice = Voice(runtime.services)
        voice.hear(cast(Attempt, Speaker()))
        await voice._write_all()
        assert len(voice._dirty) == 1, "what was said meanwhile is heard"


async def test_the_log_is_told_just_what_the_record_gets_whatever_threads_say_meanwhile():
    app = Outrider()

    @app.tool
    async def quiet() -> None: ...

    async with open_test(app, progress_interval=0.0) as runtime:
        handle = await (await runtime.sessions.create()).spawn("quiet")
        attempt = Attempt(runtime.services, await runtime.services.lifecycle._read(handle.id), lambda _: None)
        voice, told = Voice(runtime.services), dict[str, Any]()

        def speak(field: str) -> None:
            for n in range(5000):
                attempt.update({field: str(n)}, **{field: str(n)})

        threads = [threading.Thread(target=speak, args=[field]) for field in ("state_detail", "model")]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads) or attempt.live_is_dirty:
                report = voice._report_of(attempt)
                if report is not None and report.live is not None:
                    told.update(report.delta or {})
                    assert told == {field: getattr(report.live, field) for field in told}
        finally:
            sys.setswitchinterval(interval)
        assert told == {"state_detail": "4999", "model": "4999"}


async def test_what_is_reported_while_an_iteration_is_written_does_not_take_its_totals_back():
    app = Outrider()

    @app.tool
    async def quiet() -> None: ...

    async with open_test(app, progress_interval=0.0) as runtime:
        handle = await (await runtime.sessions.create()).spawn("quiet")
        task = await runtime.services.lifecycle._read(handle.id)
        attempt, voice = Attempt(runtime.services, task, lambda _: None), Voice(runtime.services)

        def page(iterations: int) -> Page:
            return Page("s", task.id, 1, iterations, (), evolve(task.live, iterations=iterations), 0, None, (), ())

        attempt.update(state_detail="half way")
        with attempt.turning(page(1)):
            assert voice._report_of(attempt) is None
        report = voice._report_of(attempt)
        assert report is not None
        assert report.live == evolve(task.live, iterations=1, state_detail="half way")

        attempt.update(state_detail="further")
        with pytest.raises(asyncio.CancelledError), attempt.turning(page(2)):
            raise asyncio.CancelledError  # it was handed over: the end of the attempt must not take it back
        with pytest.raises(StoreUnavailable), attempt.turning(page(3)):
            raise StoreUnavailable("it was not written")
        assert attempt.take_live() == evolve(task.live, iterations=2, state_detail="further")
