"""`isolation="process"`: real processes, and everything that they can do wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from outrider import Outrider, State, TaskCanceled, TaskFailed, TaskOptions
from outrider.core.errors import InvalidArguments
from outrider.runtime.facade import Runtime
from outrider.runtime.handles import SessionHandle, TaskHandle
from tests.runtime.isolated_app import app, ready

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@asynccontextmanager
async def session_on(url: str = "memory://") -> AsyncIterator[SessionHandle]:
    async with app.open(url) as runtime:
        yield await runtime.sessions.create()


async def until(fact: Callable[[], Awaitable[bool] | bool], timeout: float = 20) -> None:
    give_up = time.monotonic() + timeout
    while True:
        found = fact()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < give_up, "it never came to pass"
        await asyncio.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, if only nobody asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


async def asks(task: TaskHandle) -> bool:
    return (await task.record()).input_request is not None


async def is_parked(task: TaskHandle) -> bool:
    record = await task.record()
    return record.state is State.AWAITING_INPUT and record.worker_id is None


async def test_arguments_and_results_keep_the_types_of_their_annotations():
    async with session_on() as session:
        orders = [
            {"name": "rope", "price": "1.10", "day": "2026-02-03"},
            {"name": "tar", "price": 2, "day": "2026-02-04"},
        ]
        task = await session.spawn("buy", orders=orders, tax=1.5)
        receipt = await task.result(timeout=30)
        assert (str(receipt.total), type(receipt).__name__) == ("4.650", "Receipt")
        assert receipt.pid != os.getpid()
        with pytest.raises(InvalidArguments):
            await session.spawn("buy", orders=[{"name": "rope"}])


@pytest.mark.parametrize("tool", ["every_verb", "every_verb_plainly"])
async def test_every_verb_works_and_is_journaled_across_processes(tmp_path: Path, tool: str):
    path = tmp_path / "notes"
    async with session_on(str(tmp_path / "work.db")) as session:
        task = await session.spawn(tool, path=str(path))
        await until(lambda: is_parked(task))
        await task.message("go on")
        await task.answer(7)
        result = await task.result(timeout=30)
        notes = path.read_text().splitlines()
        assert result["number"] == 7
        assert [notes.count(step) for step in ("first", "attempt 1", "attempt 2")] == [1, 1, 1]
        assert len(await task.messages(direction="outbound")) == 1
        assert [each.ending for each in await task.attempts()][-1] == "succeeded"
        assert {each.ending for each in await task.attempts()} == {"parked", "succeeded"}
        record = await task.record()
        assert record.failures == 0
        assert [artifact.name for artifact in record.artifacts] == ["chart"]
        if tool == "every_verb_plainly":
            assert result == {
                "first": "first",
                "child": ["succeeded", 8],
                "text": "text",
                "number": 7,
                "heard": 1,
                "kept": "chart",
            }
            return
        assert result["steps"] == ["first", "second", "left", "right"]
        assert sorted(notes[-2:]) == ["left", "right"]
        assert result["files"] == [["/notes/a.txt", "/notes/b.bin"], "text", "ff00"]
        assert result["missing"] is True
        assert result["kept"] == 6
        assert result["child"] == ["succeeded", "the double", 42]
        assert result["heard"] == ["go on"]
        assert result["self"] == [task.id, session.id, "every_verb"]
        assert record.progress is not None
        assert record.progress.label == "whole"
        assert record.state_detail == "on the way"
        output = [(piece.stream, piece.text) async for piece in task.output()]
        for stream, text in (("voice", "spoken"), ("stdout", "printed"), ("stderr", "complained")):
            assert sum(text in piece for name, piece in output if name == stream) == 1


@pytest.mark.parametrize(
    ("how", "kind", "message", "details"),
    [
        ("error", "exception", "ValueError: not like that", {"type": "ValueError"}),
        ("failure", "sold_out", "no seats left", {"row": 3}),
        ("not json", "invalid_result", "the result is not JSON", {}),
        ("exit", "exception", "exit status 3", {"exit_status": 3}),
        ("sys.exit", "exception", "SystemExit: 4", {"type": "SystemExit"}),
        ("segfault", "exception", "SIGSEGV", {"signal": "SIGSEGV"}),
        ("kill", "exception", "SIGKILL", {"signal": "SIGKILL", "stderr": "last words\n"}),
    ],
)
async def test_whatever_ends_the_process_fails_the_attempt_and_harms_nobody(
    how: str, kind: str, message: str, details: dict[str, Any]
):
    async with session_on() as session:
        task = await session.spawn("fail", kind=how, options=TaskOptions(max_failures=1))
        with pytest.raises(TaskFailed) as failed:
            await task.result(timeout=30)
        assert failed.value.kind == kind
        assert message in failed.value.message
        told = failed.value.details or {}
        assert {name: told.get(name) for name in details} == details
        if how == "error":
            assert 'raise ValueError("not like that")' in told["traceback"]
        assert await (await session.spawn("double", number=1)).result(timeout=30) == 2


async def test_a_failure_that_cannot_be_mended_is_not_tried_again_and_a_death_is():
    async with session_on() as session:
        options = TaskOptions(max_failures=2, backoff=0.01)
        final = await session.spawn("fail", kind="failure", options=options)
        death = await session.spawn("fail", kind="kill", options=options)
        for task, attempts in ((final, 1), (death, 2)):
            with pytest.raises(TaskFailed):
                await task.result(timeout=30)
            assert len(await task.attempts()) == attempts


@pytest.mark.parametrize("tool", ["spin", "stuck", "heed", "await_stop", "tidy", "breed"])
async def test_a_cancel_ends_the_process_politely_if_it_can(tmp_path: Path, tool: str):
    path = tmp_path / "notes"
    async with session_on() as session:
        task = await session.spawn(tool, path=str(path), options=TaskOptions(cancel_grace=1.0))
        pid = await ready(path)
        others = [int(each) for each in path.read_text().split()]
        await task.cancel()
        if tool == "heed":  # it finished first
            assert await task.result(timeout=30) == "cleaned up"
        else:
            with pytest.raises(TaskCanceled):
                await task.result(timeout=30)
        assert is_gone(pid)
        await until(lambda: all(map(is_gone, others)))
        polite = tool in ("heed", "await_stop", "tidy")
        assert ("cleaned up" in path.read_text()) == polite
        endings = [each.ending for each in await task.attempts()]
        assert endings == (["succeeded"] if tool == "heed" else ["canceled"])  # and never `forced`


@pytest.mark.parametrize("tool", ["spin", "stuck"])
async def test_a_timeout_ends_a_process_that_hears_nothing_and_its_work_is_tried_again(tmp_path: Path, tool: str):
    pids: list[int] = []
    async with session_on() as session:
        for timeout in (2.5, 10.0, 40.0):  # a busy machine may not have started the process by then
            path = tmp_path / f"notes {timeout}"
            options = TaskOptions(run_timeout=timeout, cancel_grace=1.5, max_failures=2, backoff=0.01)
            task = await session.spawn(tool, path=str(path), options=options)
            with pytest.raises(TaskFailed) as failed:
                await task.result(timeout=4 * timeout)
            assert failed.value.kind == "timeout"
            pids = [int(each) for each in path.read_text().split()] if path.exists() else []
            assert all(map(is_gone, pids))
            if len(pids) == 2:
                break
    assert len(pids) == 2


async def test_a_silent_process_meets_its_idle_timeout(tmp_path: Path):
    async with session_on() as session:
        options = TaskOptions(idle_timeout=1.0, cancel_grace=0.5, max_failures=1)
        task = await session.spawn("spin", path=str(tmp_path / "notes"), options=options)
        with pytest.raises(TaskFailed, match="idle"):
            await task.result(timeout=30)


async def test_a_busy_process_does_not_hold_up_its_worker(tmp_path: Path):
    path = tmp_path / "notes"
    async with session_on() as session:
        busy = await session.spawn("spin", path=str(path), options=TaskOptions(cancel_grace=0.5))
        await ready(path)
        doubles = await session.spawn_many("double", [{"number": n} for n in range(50)])
        assert [await task.result(timeout=10) for task in doubles] == [2 * n for n in range(50)]
        await busy.cancel(wait=10)
        assert (await busy.record()).state is State.CANCELED


async def test_a_task_that_waits_long_gives_its_process_back(tmp_path: Path):
    path = tmp_path / "notes"
    async with session_on() as session:
        task = await session.spawn("ask_long", path=str(path))
        pid = await ready(path)
        await until(lambda: is_parked(task))
        assert is_gone(pid)
        await task.answer("Ann")
        assert await task.result(timeout=30) == "it is Ann's"
        assert await ready(path) != pid


async def test_a_task_does_not_park_while_a_step_runs_in_its_process(tmp_path: Path):
    path = tmp_path / "notes"
    async with session_on() as session:
        task = await session.spawn("wait_beside_work", path=str(path))
        await until(lambda: asks(task))
        await until(lambda: is_parked(task))
        await task.answer(True)
        assert await task.result(timeout=30) == ["worked", True]
        assert path.read_text() == "worked\n"
        assert len(await task.requests()) == 1


async def test_branches_of_a_process_may_come_to_their_steps_in_another_order(tmp_path: Path):
    path = tmp_path / "notes"
    async with session_on() as session:
        task = await session.spawn("branch", path=str(path), options=TaskOptions(backoff=0.01))
        assert await task.result(timeout=30) == ["slow", "quick"]
        assert path.read_text().split() == ["slow", "quick"]


async def test_a_flood_of_output_keeps_its_end_and_the_worker_its_breath():
    async with session_on() as session:
        task = await session.spawn("flood", lines=50_000)
        assert await task.result(timeout=60) == "done"
        kept = "".join([piece.text async for piece in task.output()])
        assert kept.endswith(f"line 49999 {'x' * 90}\n")
        assert len(kept) < 600_000


async def test_nothing_of_a_tool_outlives_it(tmp_path: Path):
    path = tmp_path / "notes"
    async with session_on() as session:
        task = await session.spawn("breed_and_return", path=str(path))
        grandchild = int(await task.result(timeout=30))
        await until(lambda: is_gone(grandchild))


async def test_who_leaves_the_group_and_keeps_the_pipes_does_not_keep_the_task():
    async with session_on() as session:
        task = await session.spawn("leave_early")
        began = time.monotonic()
        await task.result(timeout=30)
        assert time.monotonic() - began < 4.5


@pytest.mark.parametrize("tool", ["breed", "stuck"])
async def test_nothing_of_a_tool_outlives_its_worker(tmp_path: Path, tool: str):
    path, database = tmp_path / "notes", tmp_path / "work.db"
    async with app.open(str(database), worker=False) as runtime:
        task = await (await runtime.sessions.create()).spawn(tool, path=str(path))
        program = (
            "import asyncio; from tests.runtime.isolated_app import app\n"
            f"async def main():\n  async with app.open({str(database)!r}): await asyncio.sleep(60)\n"
            "asyncio.run(main())"
        )
        worker = subprocess.Popen([sys.executable, "-c", program])
        try:
            await ready(path)
            await until(lambda: len(path.read_text().split()) == (2 if tool == "breed" else 1))
            pids = [int(each) for each in path.read_text().split()]
        finally:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        await until(lambda: all(map(is_gone, pids)))
        await task.cancel()


async def test_a_worker_that_goes_ends_its_processes_and_hands_their_tasks_over(tmp_path: Path):
    path, url = tmp_path / "notes", str(tmp_path / "work.db")
    drained = Outrider(app.settings.__class__(drain_timeout=0.1, drain_grace=1.0))
    drained.registry = app.registry
    async with drained.open(url) as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn("stuck", path=str(path))
        pid = await ready(path)
    assert is_gone(pid)
    async with app.open(url, worker=False) as runtime:
        record = await runtime.tasks.record(task.id)
        assert (record.state, record.worker_id, record.failures) == (State.RUNNING, None, 0)
        assert [each.ending for each in await runtime.tasks.attempts(task.id)] == ["released"]


async def test_a_function_that_nobody_else_can_import_is_refused_when_it_is_registered():
    refuser = Outrider()

    def inner() -> None: ...

    class Thing:
        def method(self) -> None: ...

    for fn in (inner, lambda: None, Thing().method):
        with pytest.raises(InvalidArguments, match="another process"):
            refuser.tool(fn, isolation="process", name="refused")  # type: ignore[call-overload]  # what no overload takes is to be refused


async def test_a_function_whose_name_leads_elsewhere_is_refused_when_it_is_submitted(runtime_of_impostor: Runtime):
    session = await runtime_of_impostor.sessions.create()
    with pytest.raises(InvalidArguments, match="does not lead"):
        await session.spawn("impostor")


@pytest.fixture
async def runtime_of_impostor() -> AsyncIterator[Runtime]:
    impostor = Outrider()

    def not_ready() -> None: ...

    not_ready.__module__, not_ready.__qualname__ = ready.__module__, "ready"
    impostor.tool(not_ready, isolation="process", name="impostor")  # type: ignore[call-overload]  # made to pass for a function here
    async with impostor.open("memory://", worker=False) as runtime:
        yield runtime


PROGRAM = """
import asyncio, os, sys
from outrider import Outrider

app = Outrider()

@app.tool(isolation="process")
def where(number: int) -> list[object]:
    return [number, os.getpid(), __name__]

async def main():
    async with app.open("memory://") as runtime:
        task = await (await runtime.sessions.create()).spawn("where", number=3)
        number, pid, name = await task.result(timeout=30)
        print(number, pid != os.getpid(), name)

{start}
"""


@pytest.mark.parametrize("how", ["file", "module"])
async def test_a_tool_of_the_program_that_runs_is_found_by_its_process(tmp_path: Path, how: str):
    (tmp_path / "program.py").write_text(PROGRAM.format(start='if __name__ == "__main__":\n    asyncio.run(main())'))
    command = [sys.executable, *(["program.py"] if how == "file" else ["-m", "program"])]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("3 True __outrider_main__\n", "", 0)


async def test_a_program_that_runs_whenever_it_is_imported_is_told_so(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM.format(start="asyncio.run(main())"))
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "under `if __name__ == '__main__':`" in done.stderr


async def test_a_program_that_is_no_file_is_told_so():
    program = PROGRAM.format(start="asyncio.run(main())")
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert "put it into a module" in done.stderr
