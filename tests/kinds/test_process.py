"""Commands: what is refused, how each ends, and what becomes of them when a worker, supervisor or machine is gone."""

import asyncio
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from outrider import Outrider, State, TaskContext, TaskFailed, TaskHandle, TaskOptions, TaskRecord, WorkerSettings
from outrider.core.errors import InvalidArguments, TooLarge, UnknownName
from outrider.kinds.process_output import Reading, marked_progress
from outrider.kinds.process_run import Piece, Place, Run, Spool, runs_of
from outrider.kinds.supervisor import start_time
from outrider.runtime.clock import SystemClock
from outrider.settings import Limits
from outrider.testing import TestRuntime, open_test

pytestmark = pytest.mark.anyio

SETTINGS = WorkerSettings(process_linger=0.3, recovery_interval=0.05)
PYTHON = sys.executable


@asynccontextmanager
async def opened(app: Outrider | None = None, **options: Any) -> AsyncIterator[TestRuntime]:
    """A runtime on a file, and nothing of its commands alive afterwards."""
    async with open_test(app or Outrider(SETTINGS), store="sqlite", clock=SystemClock(), **options) as runtime:
        try:
            yield runtime
        finally:
            for run in runs(runtime):
                if run.order_end(0):
                    await until(lambda run=run: not run.is_supervised)  # type: ignore[misc]  # mypy sees no default


async def spawn(runtime: TestRuntime, *command: str, **options: Any) -> TaskHandle:
    session = await runtime.sessions.create(id="here")
    return await session.spawn_process(command or None, **options)


async def run(*command: str, **options: Any) -> tuple[TaskRecord, Any, str]:
    """Run a command to its end: the record, the result or the error, and what it printed."""
    async with opened() as runtime:
        task = await spawn(runtime, *command, **options)
        record = await ended(task)
        told = await task.result() if record.state is State.SUCCEEDED else record.error
        return record, told, await printed(task)


async def ended(task: TaskHandle) -> TaskRecord:
    return await task.wait(timeout=30)


async def printed(task: TaskHandle, stream: str | None = None) -> str:
    return "".join([piece.text async for piece in task.output() if stream in (None, piece.stream)])


async def has_printed(task: TaskHandle, text: str) -> None:
    async for piece in task.output():
        if text in piece.text:
            return
    raise AssertionError(f"it ended without printing {text!r}")


async def until(fact: Callable[[], Any], seconds: float = 20) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := fact()):  # noqa: ASYNC110 - files and processes ring no bell
            await asyncio.sleep(0.01)
        return found


def runs(runtime: TestRuntime) -> list[Run]:
    folder, _ = runs_of(runtime.ledger)
    return [Run(path) for path in sorted(folder.iterdir())] if folder.exists() else []


async def started(runtime: TestRuntime) -> tuple[Run, dict[str, Any]]:
    """The only run there is, and what its supervisor wrote down of its start."""
    await until(lambda: [run for run in runs(runtime) if run.started()])
    (run,) = runs(runtime)
    return run, run.started() or {}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def pids(text: str) -> list[int]:
    return [int(word) for word in text.split() if word.isdigit()]


# --- what is asked for -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({}, "either a command"),
        ({"command": ["a"], "shell": "b"}, "either a command"),
        ({"command": "ls -l"}, "list of texts"),
        ({"command": []}, "list of texts"),
        ({"command": [""]}, "no name"),
        ({"command": ["a", 1]}, r"command\[1\] is text"),
        ({"command": ["a\0b"]}, "NUL"),
        ({"shell": "a\0b"}, "NUL"),
        ({"command": ["\ud800"]}, "no Unicode text"),
        ({"command": ["a"], "cwd": "a\0b"}, "NUL"),
        ({"command": ["a"], "env": {"": "x"}}, "cannot name"),
        ({"command": ["a"], "env": {"a=b": "x"}}, "cannot name"),
        ({"command": ["a"], "env": {"a": "x\0"}}, "NUL"),
        ({"command": ["a"], "env": {"a": 1}}, "is text"),
        ({"command": ["a"], "stdin": b"x"}, "is text"),
        ({"command": ["a"], "limits": {"cpu": 0}}, "limits.cpu"),
        ({"command": ["a"], "limits": {"memory": 1.5}}, "limits.memory"),
        ({"command": ["a"], "limits": {"time": 1}}, "limits is"),
        ({"command": ["a"], "artifacts": "x"}, "list of patterns"),
        ({"command": ["a"], "effects": "twice"}, "effects is"),
        ({"command": ["a"], "success": []}, "exit codes"),
        ({"command": ["a"], "success": [300]}, "exit codes"),
        ({"command": ["a"], "retry": "yes"}, "true or false"),
        ({"command": ["a"], "nice": 3}, "has no nice"),
    ],
)
async def test_a_spec_that_makes_no_sense_is_refused_before_anything_is_written(spec: dict[str, Any], problem: str):
    async with open_test(Outrider(), worker=False) as runtime:
        session = await runtime.sessions.create()
        with pytest.raises(InvalidArguments, match=problem):
            await session.create("process", spec)
        assert await session.tasks() == []


async def test_a_spec_that_is_too_large_is_refused():
    async with open_test(Outrider(), worker=False) as runtime:
        session = await runtime.sessions.create()
        with pytest.raises(TooLarge):
            await session.spawn_process(["cat"], stdin="x" * 300_000)


async def test_an_app_can_do_without_commands():
    async with open_test(Outrider(processes=False)) as runtime:
        session = await runtime.sessions.create()
        with pytest.raises(UnknownName, match="unknown kind 'process'"):
            await session.spawn_process(["true"])
        assert "process" not in (await runtime.workers())[0].routes


# --- how they end ------------------------------------------------------------------------------------


async def test_a_command_tells_how_it_ended_and_what_it_took():
    record, result, output = await run("/bin/sh", "-c", "echo out; echo err >&2")
    assert record.state is State.SUCCEEDED
    assert record.display_name == "/bin/sh -c 'echo out; echo err >&2'"
    assert (result["exit_code"], result["signal"], result["output_bytes"]) == (0, None, 8)
    assert result["tail"] == output
    assert sorted(output.split()) == ["err", "out"]
    assert 0 < result["cpu_time"] < 5
    assert 0 < result["duration"] < 20
    assert result["max_rss"] > 0


async def test_an_exit_code_fails_the_task_unless_it_counts_as_success():
    record, error, _ = await run(shell="echo 'no such luck' >&2; exit 3")
    assert (record.state, record.attempt, error.kind) == (State.FAILED, 1, "exit_status")
    assert error.message == "the command ended with exit code 3: no such luck"
    assert (error.details["exit_code"], error.details["signal"]) == (3, None)
    record, result, _ = await run(shell="exit 3", success=[0, 3])
    assert (record.state, result["exit_code"]) == (State.SUCCEEDED, 3)


async def test_a_signal_that_nobody_here_sent_is_named():
    record, error, _ = await run(shell="kill -9 $$")
    assert (record.state, error.kind, error.details["signal"]) == (State.FAILED, "exit_status", "SIGKILL")
    assert "not sent by Outrider" in error.message


@pytest.mark.parametrize(
    ("command", "cwd", "words", "code"),
    [
        ("no-such-command", None, "there is no command 'no-such-command'", 127),
        ("/etc/passwd", None, "not executable", 126),
        ("pwd", "/no/such/folder", "cannot run in '/no/such/folder'", 126),
    ],
)
async def test_what_cannot_be_started_says_why(command: str, cwd: str | None, words: str, code: int):
    record, error, _ = await run(command, cwd=cwd)
    assert (record.state, record.attempt, error.kind) == (State.FAILED, 1, "not_started")
    assert words in error.message
    assert error.details["exit_code"] == code


async def test_a_command_that_fails_is_run_again_only_when_that_was_asked_for(tmp_path: Path):
    again = TaskOptions(max_failures=3, backoff=0.01)
    shell = f"echo run >> {tmp_path}/runs; test $(wc -l < {tmp_path}/runs) -ge 3"
    record, result, _ = await run(shell=shell, options=again)
    assert (record.state, record.attempt, result["exit_code"]) == (State.SUCCEEDED, 3, 0)
    record, error, _ = await run(shell="echo run; exit 1", options=again)
    assert (record.state, record.failures, error.kind) == (State.FAILED, 3, "exit_status")
    record, _, output = await run(shell="echo run; exit 1", options=again, effects="once")
    assert (record.state, record.attempt, output) == (State.FAILED, 1, "run\n")


async def test_it_runs_where_and_with_what_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_SECRET", "of the worker")
    monkeypatch.setenv("LC_MONETARY", "C")
    env = {"A b": "1", "é%%": "ü", "PATH": os.environ["PATH"]}
    _, _, output = await run("env", "-0", env=env)
    seen = dict(pair.split("=", 1) for pair in output.split("\0") if pair)
    assert (seen["A b"], seen["é%%"], seen["LC_MONETARY"]) == ("1", "ü", "C")
    assert "A_SECRET" not in seen
    _, _, output = await run("/usr/bin/env", clean_env=True, env={"ONLY": "this"})
    assert {line.split("=")[0] for line in output.splitlines()} == {
        "ONLY", "OUTRIDER_TASK", "OUTRIDER_SESSION", "OUTRIDER_RUN",
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    assert (await run("pwd"))[2] == f"{tmp_path}\n"
    assert (await run("pwd", cwd="below"))[2] == f"{tmp_path}/below\n"
    assert (await run("cat", stdin="in\0put é"))[2] == "in\0put é"
    assert (await run("cat"))[2] == ""


async def test_it_has_a_plain_surrounding_of_its_own(monkeypatch: pytest.MonkeyPatch):
    """No terminal, no signal ignored, no descriptor of the worker; a session and a group of its own.

    Nor are there secrets of the worker in the supervisor, in which the command can read."""
    monkeypatch.setenv("A_SECRET", "of the worker")
    program = (
        "import os, signal; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1], os.getsid(0) == os.getpgrp(), "
        "os.getpid() == os.getpgrp(), [n for n in (1, 2, 3, 13, 15, 25) if signal.getsignal(n) == signal.SIG_IGN])"
    )
    _, _, output = await run("/bin/sh", "-c", f'exec "{PYTHON}" -I -S -c "{program}"')
    assert output == "[0, 1, 2] True True [13, 25]\n"  # those two Python itself ignores
    _, _, output = await run("/bin/sh", "-c", "cat /proc/$PPID/environ; trap; grep SigIgn /proc/self/status")
    assert "of the worker" not in output
    ignored = int(output.rpartition("SigIgn:")[2], 16)
    assert ignored & 0x7FFFFFFF == 0  # from 32 on they are the C library's own, as this process inherited them


# --- limits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "value", "program"),
    [
        ("cpu", 1, "while True: pass"),
        ("memory", 60_000_000, "import time; held = bytearray(150_000_000); time.sleep(60)"),
        ("output", 100_000, "while True: print('spam' * 100)"),
    ],
)
async def test_a_limit_that_is_hit_ends_the_command_and_is_named(limit: str, value: int, program: str):
    record, error, _ = await run(PYTHON, "-c", program, **{f"{limit}_limit": value})
    assert (record.state, record.attempt, error.kind) == (State.FAILED, 1, "limit_exceeded")
    assert f"its {limit} limit of {value:,}" in error.message
    assert error.details["limit"] == limit


async def test_the_memory_of_all_descendants_counts():
    program = "import time; held = bytearray(40_000_000); print('held', flush=True); time.sleep(60)"
    shell = f'"{PYTHON}" -c "{program}" & "{PYTHON}" -c "{program}" & wait'
    _, error, _ = await run(shell=shell, memory_limit=75_000_000)
    assert (error.kind, error.details["limit"]) == ("limit_exceeded", "memory")


async def test_the_run_timeout_ends_a_command_and_all_that_it_started():
    record, error, output = await run(
        shell="trap '' TERM; sleep 300 & echo $!; wait; sleep 300",
        options=TaskOptions(run_timeout=0.5, cancel_grace=1.5, max_failures=1),
    )
    assert (record.state, error.kind) == (State.FAILED, "timeout")
    assert not any(map(is_alive, pids(output)))


async def test_a_command_that_ran_out_of_time_is_not_run_again_unasked(tmp_path: Path):
    options = TaskOptions(run_timeout=0.3, backoff=0.01)
    record, error, _ = await run(shell="echo run >> ran; sleep 60", cwd=tmp_path, options=options)
    assert (record.state, error.kind, (tmp_path / "ran").read_text()) == (State.FAILED, "timeout", "run\n")
    record, _, _ = await run(
        shell="test -e ran && exit 0; echo run > ran; sleep 60", cwd=tmp_path, options=options, retry=True
    )
    assert record.state is State.SUCCEEDED


async def begun(runtime: TestRuntime) -> tuple[int, Run]:
    """A command that goes on until it is ended: its process, and its run."""
    task = await spawn(runtime, shell="echo $$; exec sleep 300")
    await has_printed(task, "\n")
    (pid,) = pids(await printed_so_far(runtime, task))
    (run,) = [each for each in runs(runtime) if each.folder.name.startswith(task.id)]
    return pid, run


async def test_a_command_of_a_store_in_memory_ends_with_the_program():
    app = Outrider(SETTINGS)
    async with open_test(app, clock=SystemClock()) as runtime:
        pid, run = await begun(runtime)
        assert is_alive(pid)
        await runtime.drain()
        await until(lambda: not is_alive(pid) and not run.is_supervised)


async def test_a_command_is_not_taken_for_dead_by_who_can_open_no_more_files():
    app = Outrider(SETTINGS)
    async with open_test(app, clock=SystemClock()) as runtime:
        pid, run = await begun(runtime)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                run.end_leftovers()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert is_alive(pid)
        assert run.end_leftovers() == 0


async def test_another_task_can_start_a_command_and_wait_for_it():
    app = Outrider(SETTINGS)

    @app.tool
    async def parent(task: TaskContext) -> str:
        child = await task.spawn("process", {"command": ["echo", "hello"]}, kind="process")
        await task.wait_for([child])
        return str((await child.result())["tail"])

    async with open_test(app, store="sqlite", clock=SystemClock()) as runtime:
        session = await runtime.sessions.create()
        assert await (await session.spawn("parent")).result(timeout=20) == "hello\n"


# --- what it prints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [30_000_000, pytest.param(1_000_000_000, marks=pytest.mark.soak)])
async def test_a_gigabyte_of_output_fills_neither_disk_nor_memory(size: int):
    async with opened(limits=Limits(process_output=1 << 20)) as runtime:
        task = await spawn(runtime, shell=f"head -c {size} /dev/zero | tr '\\0' x; echo; echo the end")
        most = 0
        waiting = asyncio.create_task(ended(task))
        while not waiting.done():
            for run in runs(runtime):
                with suppress(FileNotFoundError):
                    most = max(most, sum(path.stat().st_size for path in run.folder.glob("out.*")))
            await asyncio.sleep(0.01)
        assert (await waiting).state is State.SUCCEEDED
        assert 0 < most < 1.5 * (1 << 20)
        pieces = [piece async for piece in task.output()]
        assert sum(len(piece.text.encode()) for piece in pieces) < (256 + 128 + 65) * 1024
        assert "".join(piece.text for piece in pieces).endswith("x\nthe end\n")
        assert (await task.result())["output_bytes"] == size + 9


async def test_garbage_and_lines_without_end_are_text_all_the_same():
    program = "import sys; sys.stdout.buffer.write(bytes(range(256)) + b'\\xc3'); sys.stdout.flush()"
    _, result, output = await run(PYTHON, "-c", program)
    assert output == (bytes(range(256)) + b"\xc3").decode(errors="replace")
    assert result["output_bytes"] == 257
    _, _, output = await run(PYTHON, "-c", "print('é' * 50_000, end='')")
    assert output == "é" * 50_000


async def test_marked_lines_become_progress_detail_and_artifacts(tmp_path: Path):
    (tmp_path / "report.txt").write_text("all is well")
    (tmp_path / "elsewhere").symlink_to("/etc/passwd")
    shell = (
        "echo ::progress 3/10 three of them; echo '::detail hard at work' >&2; echo ::artifact report.txt; "
        "echo ::artifact /etc/passwd; echo ::artifact elsewhere; echo ::artifact nothing; printf '::progress 40'; "
        "sleep 0.2; echo '% almost'"
    )
    async with opened() as runtime:
        task = await spawn(runtime, shell=shell, cwd=tmp_path)
        record = await ended(task)
        assert record.progress is not None
        assert (record.progress.current, record.progress.total, record.progress.label) == (40, 100, "almost")
        assert record.state_detail == "hard at work"
        (artifact,) = record.artifacts
        assert (artifact.name, artifact.size, artifact.media_type) == ("report.txt", 11, "text/plain")
        session = await runtime.sessions.get("here")
        assert artifact.path is not None
        assert await session.read_file(artifact.path) == b"all is well"
        assert "::progress 3/10 three of them\n" in await printed(task)


async def test_files_that_fit_a_pattern_are_kept_also_of_a_command_that_failed(tmp_path: Path):
    shell = (
        "mkdir -p out/deep; echo 1 > out/a.csv; echo 2 > out/deep/b.csv; head -c 5000 /dev/zero > big.bin; "
        "ln -s /etc/passwd out/c.csv; exit 1"
    )
    async with opened(limits=Limits(file=1000)) as runtime:
        task = await spawn(
            runtime, shell=shell, cwd=tmp_path, artifacts=["out/**/*.csv", "*.bin", "none*", "/etc/passwd"]
        )
        record = await ended(task)
        assert record.state is State.FAILED
        kept = {each.name: (each.size, each.url) for each in record.artifacts}
        big = (tmp_path / "big.bin").as_uri()
        assert kept == {"out/a.csv": (2, None), "out/deep/b.csv": (2, None), "big.bin": (5000, big)}


async def test_links_that_lead_in_circles_do_not_keep_a_command_from_ending(tmp_path: Path):
    shell = "mkdir -p out/.deep; echo 1 > out/.deep/a.csv; ln -s . one; ln -s . two; ln -s .. out/three"
    async with opened() as runtime:
        task = await spawn(runtime, shell=shell, cwd=tmp_path, artifacts=["**/*.csv", f"{tmp_path}/out/**", "../**"])
        assert [each.name for each in (await ended(task)).artifacts] == ["out/.deep/a.csv"]


@pytest.mark.parametrize("pattern", ["x" * 5000, "/" * 300, "**/..", ".", "[", "**.csv/**", "***"])
async def test_no_pattern_breaks_a_command_that_ran(pattern: str, tmp_path: Path):
    record, _, _ = await run("true", cwd=tmp_path, artifacts=[pattern])
    assert record.state is State.SUCCEEDED


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("3/10 label of it", (3, 10, "label of it")),
        ("3/10", (3, 10, None)),
        ("12.5%", (12.5, 100, None)),
        ("7 files", (7, None, "files")),
        ("many", None),
        ("-1/3", None),
        ("9" * 400, None),
    ],
)
async def test_what_a_progress_line_says(text: str, told: Any):
    assert marked_progress(text) == told


async def test_text_is_the_same_wherever_the_reading_stops_and_goes_on():
    raw = "aé\n::detail ü\n€".encode() + b"\xff::progress 1\n"
    whole = Reading.after(0, [])
    said = whole.take([Piece(1, raw, Place(len(raw), len(raw)))])
    for cut in range(1, len(raw)):
        first = Reading.after(0, []).take([Piece(1, raw[:cut], Place(cut, cut))])
        state = json.loads(json.dumps(first.after))
        rest = Reading.after(state["offset"], [(1, [first.before, state])])
        second = rest.take([Piece(1, raw[cut:], Place(len(raw), len(raw)))])
        assert "".join(text for _, text in [*first.texts, *second.texts]) == said.texts[0][1]
        assert [*first.marks, *second.marks] == list(said.marks) == [("detail", "ü")]


# --- what it leaves running --------------------------------------------------------------------------


async def test_what_a_command_leaves_running_is_ended_after_it():
    record, _, output = await run(
        shell="sleep 300 & echo $!; (trap '' TERM; exec setsid sh -c 'trap \"\" TERM; echo $$; sleep 300') & sleep 0.5"
    )
    assert record.state is State.SUCCEEDED
    assert len(pids(output)) == 2
    assert not any(map(is_alive, pids(output)))


async def test_a_cancel_ends_the_whole_group_and_those_that_do_not_listen():
    async with opened() as runtime:
        task = await spawn(
            runtime,
            shell="trap '' TERM; setsid sleep 300 & echo $!; sleep 300 & echo $! $$ ready; wait; wait; sleep 300",
            options=TaskOptions(cancel_grace=1.5),
        )
        await has_printed(task, "ready")
        receipt = await task.cancel(wait=20)
        assert receipt.states[task.id] is State.CANCELED
        record = await ended(task)
        assert (record.state, [each.ending for each in await task.attempts()]) == (State.CANCELED, ["canceled"])
        assert not any(map(is_alive, pids(await printed(task))))


async def test_a_command_has_time_to_end_when_it_is_canceled():
    async with opened() as runtime:
        task = await spawn(runtime, shell="trap 'echo goodbye; exit 5' TERM; echo ready; sleep 300 & wait")
        await has_printed(task, "ready")
        await task.cancel(wait=20)
        assert (await task.record()).state is State.CANCELED
        assert await printed(task) == "ready\ngoodbye\n"


# --- the worker is gone ------------------------------------------------------------------------------

COUNT = "echo $$; for n in 1 2 3 4 5 6 7 8 9; do echo line $n; sleep 0.1; done; exit 4"
COUNTED = "".join(f"line {number}\n" for number in range(1, 10))


async def test_a_lost_worker_is_no_failure_and_the_next_adopts_the_command():
    async with opened() as runtime:
        task = await spawn(runtime, shell=COUNT, success=[4])
        await has_printed(task, "line 2")
        await runtime.crash()
        assert [(step.verb, step.done) for step in await task.steps()] == [("outlives", False)]
        record = await ended(task)
        assert [step.done for step in await task.steps()] == [True]
        assert (record.state, record.failures, record.attempt) == (State.SUCCEEDED, 0, 2)
        assert (await task.result())["exit_code"] == 4
        assert (await printed(task)).partition("\n")[2] == COUNTED
        assert [each.ending for each in await task.attempts()] == ["lost", "succeeded"]


async def test_a_worker_that_drains_hands_over_at_once_and_the_command_runs_on():
    async with opened(drain_timeout=30) as runtime:
        task = await spawn(runtime, shell=COUNT, success=[4])
        await has_printed(task, "line 2")
        _, command = await started(runtime)
        async with asyncio.timeout(5):
            await runtime.drain()
        assert is_alive(command["pid"])
        assert (await task.record()).worker_id is None
        await runtime.start_worker()
        record = await ended(task)
        assert (record.state, record.failures) == (State.SUCCEEDED, 0)
        assert (await printed(task)).partition("\n")[2] == COUNTED
        assert [each.ending for each in await task.attempts()] == ["released", "succeeded"]


async def test_a_command_that_ended_while_nobody_looked_is_told_of_in_full():
    async with opened() as runtime:
        task = await spawn(runtime, shell=COUNT)
        await has_printed(task, "line 2")
        await runtime.drain()
        (run,) = runs(runtime)
        await until(lambda: run.ended() is not None)
        await runtime.start_worker()
        record = await ended(task)
        assert record.error is not None
        assert (record.error.kind, record.error.details["exit_code"]) == ("exit_status", 4)
        assert (await printed(task)).partition("\n")[2] == COUNTED


async def test_a_command_that_nobody_adopts_is_ended_at_the_limit_and_effects_decide():
    async with opened(process_adopt_limit=0.5) as runtime:
        task = await spawn(runtime, shell="echo $$; exec sleep 300", effects="once", options=TaskOptions(headless=True))
        await has_printed(task, "\n")
        await runtime.drain()
        (run,) = runs(runtime)
        await until(lambda: run.ended() is not None)
        assert not any(map(is_alive, pids(await printed_so_far(runtime, task))))
        await runtime.start_worker()
        record = await ended(task)
        assert record.error is not None
        assert (record.state, record.error.kind) == (State.FAILED, "interrupted")
        assert "adopt limit" in record.error.message


@pytest.mark.parametrize("held_up_by", ["a pause", "a full worker"])
async def test_a_command_whose_task_waits_for_its_turn_runs_on_past_the_adopt_limit(held_up_by: str):
    app = Outrider(SETTINGS)

    @app.tool
    async def busy() -> None:
        await enough.wait()

    enough = asyncio.Event()
    async with opened(app, process_adopt_limit=0.3, concurrency=1) as runtime:
        task = await spawn(runtime, shell=COUNT, success=[4])
        await has_printed(task, "line 2")
        if held_up_by == "a pause":
            await runtime.queue.pause(kind="process")
            await runtime.drain()
        else:
            await (await runtime.sessions.get("here")).spawn("busy", options=TaskOptions(priority=9))
            await runtime.drain()
        await runtime.start_worker()
        (run,) = runs(runtime)
        command = await until(run.ended)
        assert (command["reason"], command["code"]) == (None, 4)
        if held_up_by == "a pause":
            await runtime.queue.resume(kind="process")
        else:
            enough.set()
        record = await ended(task)
        assert (record.state, record.failures, record.attempt) == (State.SUCCEEDED, 0, 2)
        assert (await printed(task)).partition("\n")[2] == COUNTED


async def printed_so_far(runtime: TestRuntime, task: TaskHandle) -> str:
    return "".join(row.text for row in (await runtime.services.views.output(task.id)).rows)


async def test_a_cancel_that_comes_while_no_worker_lives_reaches_the_command_with_the_next():
    async with opened() as runtime:
        task = await spawn(runtime, shell="echo $$; exec sleep 300")
        await has_printed(task, "\n")
        _, command = await started(runtime)
        await runtime.drain()
        await task.cancel()
        assert (await task.record()).state is State.CANCELED
        await runtime.start_worker()
        await until(lambda: not is_alive(command["pid"]))
        await until(lambda: not runs(runtime))


async def test_the_folder_of_a_run_is_private_and_goes_when_its_task_has_ended():
    async with opened() as runtime:
        task = await spawn(runtime, shell="sleep 0.5", env={"PASSWORD": "secret"})
        run, _ = await started(runtime)
        assert run.folder.parent.stat().st_mode & 0o777 == 0o700
        assert run.folder.stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o077 == 0 for path in run.folder.iterdir() if path.name[0] not in "sr")
        await ended(task)
        await until(lambda: not runs(runtime))


async def test_nothing_is_run_from_a_folder_that_others_can_write():
    async with opened(worker=False) as runtime:
        folder, _ = runs_of(runtime.ledger)
        folder.mkdir()
        folder.chmod(0o777)
        task = await spawn(runtime, "true")
        await runtime.start_worker()
        record = await ended(task)
        assert (record.state, record.attempt) == (State.FAILED, 1)
        assert record.error is not None
        assert "permissions" in record.error.message
        assert list(folder.iterdir()) == []


# --- the supervisor, or the machine, is gone ---------------------------------------------------------


async def test_a_killed_supervisor_takes_its_command_along_and_the_run_is_repeated():
    async with opened() as runtime:
        task = await spawn(
            runtime,
            shell="test -e again && exit 0; touch again; setsid sleep 300 & echo $! $$ ready; sleep 300",
            cwd=runs_of(runtime.ledger)[0].parent,
            options=TaskOptions(backoff=0.01),
        )
        await has_printed(task, "ready")
        _, command = await started(runtime)
        kill(command["supervisor"]["pid"])
        record = await ended(task)
        assert (record.state, record.attempt) == (State.SUCCEEDED, 2)
        first = (await task.attempts())[0]
        assert first.error is not None
        assert (first.error.kind, first.error.message) == ("interrupted", "its supervisor was killed")
        assert not any(map(is_alive, pids(await printed(task))))


@pytest.mark.parametrize("answer", ["retry", "skip", "fail"])
async def test_a_command_in_doubt_that_must_not_be_done_twice_is_for_a_person_to_decide(answer: str):
    async with opened() as runtime:
        folder = runs_of(runtime.ledger)[0].parent
        task = await spawn(
            runtime,
            shell="echo run >> ran; test -e again && exit 0; touch again; sleep 300",
            cwd=folder,
            effects="once",
        )
        _, command = await started(runtime)
        await until(lambda: (folder / "again").exists())
        kill(command["supervisor"]["pid"])
        record = await task.wait(timeout=30, on_question=True)
        assert record.input_request is not None
        assert "its supervisor was killed" in record.input_request.prompt
        await runtime.crash()
        await task.answer({"action": answer, **({"value": {"exit_code": 0}} if answer == "skip" else {})})
        record = await ended(task)
        assert (folder / "ran").read_text().count("run") == (2 if answer == "retry" else 1)
        if answer == "fail":
            assert record.error is not None
            assert record.error.kind == "interrupted"
        else:
            assert (await task.result())["exit_code"] == 0


async def test_after_a_reboot_nothing_is_signalled_and_the_run_is_repeated():
    async with opened() as runtime:
        folder = runs_of(runtime.ledger)[0].parent
        task = await spawn(
            runtime,
            shell="test -e again && exit 0; touch again; exec sleep 300",
            cwd=folder,
            options=TaskOptions(backoff=0.01),
        )
        run, command = await started(runtime)
        await until(lambda: (folder / "again").exists())
        await runtime.drain()
        kill(command["supervisor"]["pid"])
        await until(lambda: not is_alive(command["pid"]))
        bystander = await asyncio.create_subprocess_exec("sleep", "300")
        try:
            before = {**command, "boot": "another", "pid": bystander.pid, "start_time": start_time(bystander.pid)}
            (run.folder / "started.json").write_text(json.dumps(before))
            await runtime.start_worker()
            assert (await ended(task)).state is State.SUCCEEDED
            first = (await task.attempts())[1]
            assert first.error is not None
            assert first.error.message == "the machine was started anew while it ran"
            assert bystander.returncode is None
        finally:
            bystander.kill()
            await bystander.wait()


async def test_a_number_that_another_process_has_by_now_is_never_signalled():
    async with opened() as runtime:
        task = await spawn(runtime, "sleep", "300", effects="once", options=TaskOptions(headless=True))
        run, command = await started(runtime)
        await runtime.drain()
        kill(command["supervisor"]["pid"])
        await until(lambda: not is_alive(command["pid"]))
        bystander = await asyncio.create_subprocess_exec("sleep", "300")
        try:
            assert command["start_time"] != start_time(bystander.pid)
            (run.folder / "started.json").write_text(json.dumps({**command, "pid": bystander.pid}))
            await runtime.start_worker()
            record = await ended(task)
            assert record.error is not None
            assert record.error.message.startswith(
                "it is not known what the command has done: its supervisor was killed"
            )
            assert bystander.returncode is None
        finally:
            bystander.kill()
            await bystander.wait()


async def test_a_run_whose_folder_was_deleted_is_ended_before_another_begins():
    async with opened() as runtime:
        task = await spawn(
            runtime,
            shell="test -e again && exit 0; touch again; echo ready; exec sleep 300",
            cwd=runs_of(runtime.ledger)[0].parent,
            options=TaskOptions(backoff=0.01),
        )
        run, command = await started(runtime)
        await has_printed(task, "ready")
        shutil.rmtree(run.folder)
        assert (await ended(task)).state is State.SUCCEEDED
        assert not is_alive(command["pid"])
        await until(lambda: not is_alive(command["supervisor"]["pid"]))


async def test_a_database_that_was_moved_takes_its_command_along_and_a_copy_leaves_it_alone(tmp_path: Path):
    app, here, there, copy = Outrider(SETTINGS), tmp_path / "here.db", tmp_path / "there.db", tmp_path / "copy.db"
    shell = "echo run; echo $$ >> pids; while ! test -e done; do sleep 0.02; done; echo end"
    async with app.open(f"sqlite:///{here}") as runtime:
        session = await runtime.sessions.create()
        task = await session.spawn_process(shell=shell, cwd=tmp_path)
        await has_printed(task, "run")
        await runtime.backup(copy)
        async with app.open(f"sqlite:///{copy}") as other:
            await until(lambda: len(pids((tmp_path / "pids").read_text())) == 2)
            assert all(map(is_alive, pids((tmp_path / "pids").read_text())))
            await other.tasks.cancel(task.id, wait=20)
        assert (await task.record()).state is State.RUNNING
    here.rename(there)
    async with app.open(f"sqlite:///{there}") as runtime:
        moved = await runtime.task(task.id)
        (tmp_path / "done").touch()
        record = await ended(moved)
        assert (record.state, record.failures, await printed(moved)) == (State.SUCCEEDED, 0, "run\nend\n")
    assert len(pids((tmp_path / "pids").read_text())) == 2, "the moved one did not start it again"


async def test_a_run_of_another_version_is_left_to_one_that_knows_it():
    async with opened() as runtime:
        task = await spawn(runtime, shell="echo ready; exec sleep 300")
        run, command = await started(runtime)
        await has_printed(task, "ready")
        await runtime.drain()
        spec = json.loads((run.folder / "spec.json").read_text())
        (run.folder / "spec.json").write_text(json.dumps({**spec, "protocol": 99}))
        await runtime.start_worker()
        events = task.events()
        while "another version" not in ((await task.record()).state_detail or ""):
            await asyncio.wait_for(anext(events), 20)
        assert is_alive(command["pid"])
        (run.folder / "spec.json").write_text(json.dumps(spec))
        await task.cancel(wait=20)
        await until(lambda: not is_alive(command["pid"]))


async def test_a_command_is_started_once_however_many_supervisors_try(tmp_path: Path):
    run = Run(tmp_path / "runs" / "task.1.x")
    spec = {
        "task": "x", "argv": ["/bin/sh", "-c", f"echo run >> {tmp_path}/ran"], "env": {}, "cwd": "/", "stdin": False,
        "limits": {}, "kept": 1 << 20, "adopt": 5.0, "wall": None, "linger": 0.1,
    }  # fmt: skip
    run.prepare(spec, None)
    await asyncio.gather(*(asyncio.to_thread(run.start) for _ in range(6)))
    await until(lambda: run.ended() is not None)
    await asyncio.to_thread(run.start)
    assert (tmp_path / "ran").read_text() == "run\n"


async def test_a_command_of_another_host_is_left_to_it_until_its_supervisor_must_have_ended_it():
    async with opened(process_adopt_limit=0.2) as runtime:
        task = await spawn(runtime, "sleep", "300")
        _, command = await started(runtime)
        await runtime.drain()
        process: Any = runtime._app.registry.executors["process"]
        process._host = "elsewhere"
        await runtime.start_worker()
        await until(lambda: not is_alive(command["pid"]))
        events = task.events()
        while "only a worker there" not in ((await task.record()).state_detail or ""):
            await asyncio.wait_for(anext(events), 20)
        record = await task.record()
        assert (record.state, record.failures) == (State.RUNNING, 0)
        await task.cancel(wait=10)


async def test_output_that_was_dropped_is_counted_exactly(tmp_path: Path):
    from outrider.kinds import supervisor

    folder = tmp_path / "run"
    folder.mkdir()
    before = os.getcwd()
    os.chdir(folder)
    try:
        written = supervisor.Spool(4 * supervisor.CHUNK)
        reader = Spool(Run(folder), Place())
        written.append(1, b"a" * 10)
        assert [piece.text for piece in reader.read(1000)] == [b"a" * 10]
        for number in range(50):
            written.append(2, bytes([number]) * 20_000)
        pieces = reader.read(1 << 30)
        assert pieces[0].lost + sum(len(piece.text) for piece in pieces) == 50 * 20_000
        assert pieces[-1].after.bytes == written.bytes
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 5 * supervisor.CHUNK + 20_005
        assert Spool(Run(folder), Place()).tail(3) == bytes([49]) * 3
    finally:
        os.chdir(before)


async def test_a_failed_task_tells_its_error_to_who_waits_for_the_result():
    async with opened() as runtime:
        task = await spawn(runtime, "false")
        with pytest.raises(TaskFailed, match="exit code 1") as failed:
            await task.result(timeout=20)
        assert failed.value.kind == "exit_status"


async def test_no_file_of_the_database_is_an_artifact_by_whatever_name(tmp_path: Path):
    """Whoever closes one lets go of SQLite's locks on it, and another process may delete the log under a worker."""
    async with opened() as runtime:
        database = runtime.ledger.path  # type: ignore[attr-defined]  # the store on a file has one
        folder = database.parent
        os.link(database, folder / "by another name")
        shell = f"echo '::artifact {database.name}'; echo '::artifact {database.name}-wal'; echo mine > mine.txt"
        locks = Path("/proc/locks").read_text()
        task = await spawn(runtime, shell=shell, cwd=folder, artifacts=["**"])
        assert (await ended(task)).state is State.SUCCEEDED
        assert [each.name for each in (await task.record()).artifacts] == ["mine.txt"]
        inode = f":{os.stat(database).st_ino} "
        assert sum(inode in line for line in locks.splitlines()) > 0
        assert sum(inode in line for line in Path("/proc/locks").read_text().splitlines()) > 0
