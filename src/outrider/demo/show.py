"""The show: starts the worker, kills it twice, answers its question, and checks what is left.

The verdict is read off the database and the worker's own notes, never off what was meant to happen.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from outrider.agents.engine import ModelNotReady
from outrider.agents.local import NAME as LOCAL
from outrider.agents.local import weights
from outrider.agents.models import choose
from outrider.agents.scripted import NAME as PLAIN_SCRIPTED
from outrider.core.errors import OutriderError
from outrider.core.task import State
from outrider.core.wording import counted
from outrider.demo.app import CHECKSUMS, PROMPT, REPORT, SCRIPTED, make_app
from outrider.demo.worker import BETWEEN, MID_TOOL
from outrider.runtime.facade import Runtime
from outrider.runtime.handles import SessionHandle, TaskHandle
from outrider.runtime.options import TaskOptions
from outrider.runtime.records import EventRecord, TaskRecord

MOMENTS = (MID_TOOL, BETWEEN)
PATIENCE = 120.0
THINKING = 1.5
SAYING = 90
"""Characters of what the model says that are shown in one line."""
TYPING = 10.0

Say = Callable[[str], None]


@dataclass
class Verdict:
    """What the demonstration found out about itself."""

    ok: bool = False
    model: str = ""
    kills: int = 0
    tasks: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    steps_repeated: int = 0
    steps_cut: int = 0
    model_calls: int = 0
    model_calls_repeated: int = 0
    command_starts: int = 0
    command_lines: int = 0
    command_is_whole: bool = False
    """Whether every line of it is there, once, in its order."""
    events_gap_free: bool = False
    report: str | None = None
    seconds: float = 0.0


def run(path: str = ".", model: str | None = None, *, as_json: bool = False, clean: Callable[[str], str] = str) -> int:
    """Run the demonstration on a folder; return the exit code, 0 only if everything holds.

    Without a model the small one of this machine is taken if it is installed, else a script, and it is said which.
    Raises ModelNotReady for a local model that was asked for and is not there.
    Each line of the story goes through `clean`: it has names and messages in it that come from elsewhere.
    """

    def say(line: str) -> None:
        stream = sys.stderr if as_json else sys.stdout
        stream.write(clean(line) + "\n")
        stream.flush()

    chosen, why = _choose(model)
    verdict = asyncio.run(_Show(Path(path), chosen, why, say, interactive=not as_json).run())
    if as_json:
        sys.stdout.write(json.dumps(asdict(verdict)) + "\n")
        sys.stdout.flush()
    return 0 if verdict.ok else 1


def _choose(model: str | None) -> tuple[str, str]:
    """Return the model, and what is said of the choice."""
    if model in (PLAIN_SCRIPTED, SCRIPTED):
        return SCRIPTED, "the agent is a script, as you asked"
    if model is not None:
        if choose(model).is_local:
            weights(model)
        return model, f"the agent is {model}, as you asked"
    try:
        file = weights()
    except ModelNotReady as error:
        return SCRIPTED, f"the agent is a script ({error.message})"
    return LOCAL, f"the agent is a real small model on this machine ({file.stem}); --model scripted plays a script"


class _Show:
    def __init__(self, root: Path, model: str, why: str, say: Say, *, interactive: bool) -> None:
        self._root = root
        self._model = model
        self._why = why
        self._say_line = say
        self._interactive = interactive and sys.stdin is not None and sys.stdin.isatty()
        self._folder = _own_folder()
        self._db = f"sqlite:///{self._folder / 'demo.db'}"
        self._notes = self._folder / "journal-notes.jsonl"
        self._began = time.monotonic()
        self._worker: asyncio.subprocess.Process | None = None
        self._kills: list[str] = []
        self._last_said = ""

    async def run(self) -> Verdict:
        app = make_app(self._root, self._model)
        self._say(f"surveying {self._root.resolve()} with a tool; an agent ({self._model}) will report on it")
        self._say(self._why)
        async with app.open(self._db, worker=False) as outrider:
            session = await outrider.sessions.create(title="demo")
            survey = await session.spawn("survey", options=TaskOptions(name="survey", max_failures=5))
            agent = await session.spawn_agent(
                PROMPT,
                agent="reporter",
                options=TaskOptions(name="reporter", depends_on=(survey.id,), max_failures=5),
            )
            command = await session.spawn_process(
                shell=CHECKSUMS, cwd=self._root.resolve(), options=TaskOptions(name="checksums")
            )
            tasks = [survey, agent, command]
            helpers = [
                asyncio.create_task(self._keep_a_worker()),
                asyncio.create_task(self._tell(session)),
                asyncio.create_task(self._answer(agent)),
                asyncio.create_task(self._hear(agent)),
            ]
            try:
                for task in tasks:
                    await task.wait(timeout=PATIENCE)
                await asyncio.sleep(0.1)  # let the last lines of the story be told
            except OutriderError as error:
                self._say(f"gave up: {error.message}")
            finally:
                for helper in helpers:
                    helper.cancel()
                await asyncio.gather(*helpers, return_exceptions=True)
                await self._stop_worker()
            return await self._judge(outrider, session, tasks)

    # --- the worker, and its two deaths --------------------------------------------------------------

    async def _keep_a_worker(self) -> None:
        """Start a worker; kill it where it holds still; start the next."""
        for moment in (*MOMENTS, None):
            worker = self._worker = await self._start_worker(moment)
            self._say(f"worker {worker.pid} started")
            assert worker.stdout is not None
            line = (await worker.stdout.readline()).decode().strip()
            if line:
                worker.send_signal(signal.SIGKILL)
                await worker.wait()
                self._kills.append(line)
                self._say(f"SIGKILL to worker {worker.pid}: {line}")
            elif moment is not None:
                await worker.wait()
                self._say(f"worker {worker.pid} ended by itself with {worker.returncode}")

    async def _start_worker(self, moment: str | None) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", "outrider.demo.worker", "--db", self._db, "--path", str(self._root.resolve())]
        command += ["--model", self._model, "--notes", str(self._notes)]
        if moment is not None:
            command += ["--hold", moment]
        log = (self._folder / "worker.log").open("ab")
        with log:
            return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=log)

    async def _stop_worker(self) -> None:
        worker = self._worker
        if worker is None or worker.returncode is not None:
            return
        worker.terminate()
        try:
            await asyncio.wait_for(worker.wait(), 10)
        except TimeoutError:
            worker.kill()
            await worker.wait()

    # --- the story -----------------------------------------------------------------------------------

    async def _tell(self, session: SessionHandle) -> None:
        async for event in session.events():
            told = _story(event)
            if told and told != self._last_said:
                self._last_said = told
                self._say(told)

    async def _hear(self, agent: TaskHandle) -> None:
        """Show what the model says while it says it, line by line."""
        line = ""
        async for piece in agent.output():
            line += piece.text
            *whole, line = line.split("\n")
            if len(line) > SAYING:
                said, _, line = line.rpartition(" ")
                whole.append(said)
            for each in whole:
                if each.strip():
                    self._say(f"reporter says: {each}")

    async def _answer(self, agent: TaskHandle) -> None:
        """Ask whoever sits at the keyboard; when nobody does, say yes after a moment."""
        while True:
            record = await agent.wait(on_question=True)
            if record.is_terminal or record.input_request is None:
                return
            request = record.input_request
            self._say(f"reporter asks: {request.prompt}")
            if self._interactive:
                self._say(f"  y or n? (yes in {TYPING:.0f} s)")
                answer = await asyncio.to_thread(_typed, TYPING)
                by = "you"
            else:
                await asyncio.sleep(THINKING)
                answer, by = None, "nobody at the keyboard"
            with suppress(OutriderError):
                kept = True if answer is None else answer
                await agent.answer(kept, request_id=request.id, by=by, via="demo")
                self._say(f"answered {'yes' if kept else 'no'} ({by})")

    def _say(self, line: str) -> None:
        self._say_line(f"{time.monotonic() - self._began:6.2f} s  {line}")

    # --- the check -----------------------------------------------------------------------------------

    async def _judge(self, outrider: Runtime, session: SessionHandle, tasks: Sequence[TaskHandle]) -> Verdict:
        survey, agent, command = tasks
        records = [await task.record() for task in tasks]
        noted = [note for note in _read_notes(self._notes) if note["task"] != command.id]
        verdict = Verdict(model=self._model, kills=len(self._kills))
        verdict.tasks = [_brief(record) for record in records]
        done = Counter((note["task"], note["position"]) for note in noted if not note["position"].startswith("agent!"))
        calls = Counter((note["task"], note["position"]) for note in noted if note["position"].endswith("/model"))
        tool_calls = Counter((note["task"], note["position"]) for note in noted if "/tool/" in note["position"])
        verdict.steps = len(done) + len(tool_calls)
        verdict.steps_repeated = sum(count - 1 for count in [*done.values(), *tool_calls.values()])
        verdict.steps_cut = sum(1 for moment in self._kills if moment == MID_TOOL)
        verdict.model_calls = len(calls)
        verdict.model_calls_repeated = sum(count - 1 for count in calls.values())
        verdict.events_gap_free = await _is_gap_free(outrider, session.id)
        verdict.command_starts, verdict.command_lines, verdict.command_is_whole = await _printed(outrider, command)
        journal = {step.position for step in await survey.steps() if step.done}
        is_as_noted = journal == {note["position"] for note in noted if note["task"] == survey.id}
        verdict.report = await self._export_report(session)
        verdict.seconds = round(time.monotonic() - self._began, 2)
        verdict.ok = (
            verdict.kills == len(MOMENTS)
            and all(record.state is State.SUCCEEDED for record in records)
            and (await agent.record()).usage.requests == verdict.model_calls
            and is_as_noted
            and verdict.steps_repeated == 0
            and verdict.model_calls_repeated == 0
            and (verdict.command_starts, verdict.command_is_whole) == (1, True)
            and verdict.events_gap_free
            and verdict.report is not None
        )
        self._sum_up(verdict, records, is_as_noted=is_as_noted)
        return verdict

    async def _export_report(self, session: SessionHandle) -> str | None:
        try:
            content = await session.read_file(REPORT)
        except OutriderError:
            return None
        target = self._folder / "report.md"
        target.write_bytes(content)
        return str(target)

    def _sum_up(self, verdict: Verdict, records: Sequence[TaskRecord], *, is_as_noted: bool) -> None:
        say = self._say_line
        say("")
        for record in records:
            failures = counted(record.failures, "failure")
            say(f"{record.display_name}: {record.state}, attempt {record.attempt}, {failures} counted")
        say(f"steps: {verdict.steps} journaled, {verdict.steps_repeated} repeated, {verdict.steps_cut} cut by a kill")
        say(f"model calls: {verdict.model_calls} journaled, {verdict.model_calls_repeated} repeated")
        say(f"the tool's journal is what its workers noted: {'yes' if is_as_noted else 'NO'}")
        begun, lines = counted(verdict.command_starts, "time"), counted(verdict.command_lines, "line")
        whole = "every line of it there once" if verdict.command_is_whole else "LINES OF IT LOST OR DOUBLED"
        say(f"the command: begun {begun}, {lines}, {whole}")
        say(f"event log gap-free: {'yes' if verdict.events_gap_free else 'NO'}")
        say(f"report: {verdict.report or 'none'}")
        conclusion = "everything holds" if verdict.ok else "SOMETHING DOES NOT HOLD"
        say(f"{conclusion}: {counted(verdict.kills, 'kill')}, {verdict.seconds} s")
        if not verdict.ok:
            say(f"the worker's log is {self._folder / 'worker.log'}")


def _own_folder() -> Path:
    name = datetime.now().astimezone().strftime("demo-%Y%m%d-%H%M%S")
    for home in (Path(".outrider"), Path(tempfile.gettempdir())):
        folder = home / f"{name}-{os.getpid()}"
        with suppress(OSError):
            folder.mkdir(parents=True)
            return folder.resolve() if home.is_absolute() else folder
    return Path(tempfile.mkdtemp(prefix="outrider-demo-"))


def _story(event: EventRecord) -> str | None:
    if event.type == "task.progress":
        progress = event.data.get("progress")
        if not progress:
            return None
        who = "survey" if progress["unit"] else "checksums"  # a command counts without units
        return f"{who}: {progress['current']:.0f} of {counted(round(progress['total']), 'file')}"
    task = event.task
    if task is None:
        return None
    where = f" ({task.phase})" if task.phase else ""
    again = f", attempt {task.attempt}" if task.attempt > 1 else ""
    iteration = f", iteration {task.iterations}" if task.iterations else ""
    why = f": {task.error.message}" if task.error is not None else ""
    return f"{task.display_name}: {task.state}{where}{again}{iteration}{why}"


def _typed(seconds: float) -> bool | None:
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    if not ready:
        return None
    return not sys.stdin.readline().strip().lower().startswith("n")


def _read_notes(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


async def _printed(outrider: Runtime, command: TaskHandle) -> tuple[int, int, bool]:
    """How often the command was begun, how many lines it numbered, and whether these are whole and in order."""
    text = "".join([piece.text async for piece in outrider.tasks.output(command.id, follow=False)])
    lines = [line for line in text.splitlines() if line and not line.startswith("::")]
    numbered = [line.partition(" ")[0] for line in lines if line[0].isdigit()]
    is_whole = numbered == [str(n + 1) for n in range(len(numbered))] and lines[-1:] == ["done"]
    return sum(line.startswith("begun ") for line in lines), len(numbered), is_whole


async def _is_gap_free(outrider: Runtime, session_id: str) -> bool:
    expected, after = 1, 0
    while True:
        rows = await outrider.ledger.views.events(session_id, after=after, limit=1000)
        for row in rows:
            if row.seq != expected:
                return False
            expected += 1
        if not rows:
            return expected > 1
        after = rows[-1].seq


def _brief(record: TaskRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "kind": record.kind,
        "state": str(record.state),
        "attempt": record.attempt,
        "failures": record.failures,
    }
