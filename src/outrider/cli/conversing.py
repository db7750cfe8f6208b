"""A session as whoever talks with its agent sees it: answers as they come, what its tasks do, what they ask.

All of it is told in the order of the session's log, whichever process does the work. The log says how far the output of
a turn went at each moment, and each byte is read once: nothing is lost or shown twice, and where an attempt was cut
short it shows in the right place.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from outrider.agents.engine import said_in
from outrider.cli.asking import Question
from outrider.cli.asking import asked as wording
from outrider.cli.glance import Glance, short
from outrider.cli.looking import is_seen, result_of
from outrider.cli.staging import Stage
from outrider.cli.terminal import json_text
from outrider.core.errors import NotFound
from outrider.core.task import LIVE_STATES, TURN, State, Task
from outrider.core.wording import counted
from outrider.kinds.hearing import WAKE

if TYPE_CHECKING:
    from outrider.cli.database import Opened
    from outrider.runtime.handles import SessionHandle, TaskHandle
    from outrider.runtime.records import EventRecord, TaskRecord, TranscriptRecord

Stood: TypeAlias = "Task | TaskRecord"
"""A task as it stands: as it is stored, or as a server tells of it."""

RECALLED = 3
"""How many turns of an earlier conversation are shown."""
PAGE = 100
"""How many entries of the transcript are looked at for them at a time."""
PAGES = 20
"""How often: a turn that is longer than all of these is shown without what it was told first."""
MOST = 200
"""How many live tasks are looked for when one joins."""
_KEPT = 65_536
"""How many characters of what a turn said are kept, to know its result by; no result is longer."""
_CUT = re.compile(r"\[… cut here, of [\d,]+ characters\]\Z")


@dataclass(slots=True)
class _Turn:
    """What is known of a turn that is followed."""

    attempt: int = 1
    offset: int = 0
    """Up to where its output was read."""
    said: str = ""
    expects: bool = False
    """Whether somebody waits for what comes after it."""


class Conversation:
    """Follows one session, and shows on a stage what happens there."""

    def __init__(self, runtime: Opened, session: SessionHandle, stage: Stage) -> None:
        self._runtime = runtime
        self._session = session
        self._stage = stage
        self._after = 0
        self._turns: dict[str, _Turn] = {}
        """The turns that live, as far as the log was read."""
        self._ended: set[str] = set()
        """The tasks of which nothing more is told."""
        self._open: dict[str, Question] = {}
        self._skipped: set[str] = set()
        self._answered: set[str] = set()
        """Questions answered here: what was read before may still have them open."""
        self._expects_next = False
        self._quiet = asyncio.Event()
        self._moved = asyncio.Event()
        self.worst: State = State.SUCCEEDED
        """How the last turn ended that did not succeed."""

    @property
    def turn(self) -> str | None:
        """The turn that is taken now."""
        return next(iter(self._turns), None)

    @property
    def questions(self) -> list[Question]:
        """What is asked and was not left for later, oldest first."""
        return [each for each in self._open.values() if each.id not in self._skipped]

    def request(self, request_id: str) -> Question | None:
        """A question, while it is open."""
        return self._open.get(request_id)

    @property
    def oldest(self) -> Question | None:
        """The oldest question, one that was left for later only where there is no other."""
        return next(iter([*self.questions, *self._open.values()]), None)

    def skip(self, request_id: str) -> None:
        """Leave a question for later, or for somebody else."""
        self._skipped.add(request_id)
        self._aim()

    def close(self, request_id: str) -> None:
        """A question was answered here; nobody needs to be told that it is no longer open."""
        self._answered.add(request_id)
        self._open.pop(request_id, None)
        self._aim()

    def expect(self, turn_id: str, *, after: bool) -> None:
        """Something was said, of which this turn hears; or, `after` it, the next one."""
        if turn_id not in self._ended:
            self._turns.setdefault(turn_id, _Turn()).expects |= after
            self._quiet.clear()

    async def quiet(self) -> None:
        """Wait until no turn is taken that was seen or expected."""
        await self._quiet.wait()

    async def asked(self) -> None:
        """Wait until something is asked, or no turn is taken that might."""
        while not self._open and not self._quiet.is_set():
            await self._moved.wait()

    async def join(self) -> None:
        """Show what was said before, and what is under way. To be called once, before `follow`."""
        self._after = (await self._session.record()).last_seq
        if self._stage.is_live:
            await self._recall()
        found = await self._session.tasks(states=tuple(LIVE_STATES), limit=MOST)
        live: dict[str, Stood] = {task.id: task for task in reversed(found)}
        if (turn := await self._session.turn()) is not None and turn.id not in self._ended:
            live[turn.id] = await self._runtime.tasks.get(turn.id)
        for task in live.values():
            if task.is_terminal:
                continue  # the log will tell, if it is news
            if _kind(task) == TURN:
                self._turns[task.id] = _Turn(_attempt(task))
                await self._read(task.id)
            await self._show(task)
        self._settle()

    async def follow(self) -> None:
        """Show what happens, until cancelled. Raises NotFound once the session is deleted."""
        async for event in self._session.events(after=self._after):
            if event.task_id is not None and event.task_id not in self._ended:
                await self._tell(event, event.task_id)

    async def _tell(self, event: EventRecord, task_id: str) -> None:
        try:
            if event.type == "task.output":
                if task_id in self._turns:
                    await self._read(task_id, upto=event.data["to"])
                return
            task: Stood = await self._runtime.tasks.get(task_id)
            if _kind(task) == TURN:
                await self._take_turn(task, event.task)
            else:
                await self._show(task)
        except NotFound:  # deleted meanwhile
            self._turns.pop(task_id, None)
            self._open = {id: each for id, each in self._open.items() if each.task_id != task_id}
            self._aim()
        self._settle()

    async def _show(self, task: Stood) -> None:
        if task.is_terminal:
            self._ended.add(task.id)
        await self._stage.show(Glance.of(task))
        await self._compare(task)

    # --- turns ---------------------------------------------------------------------------------------

    async def _take_turn(self, task: Stood, record: TaskRecord | None) -> None:
        """A turn was made, claimed, moved or ended; `record` is how it was when the log was told."""
        self._expects_next = False
        known = self._turns.setdefault(task.id, _Turn())
        if record is not None and record.attempt > known.attempt:
            await self._go_on(task, known, record.attempt)
        if record is not None and record.is_terminal:
            await self._end_turn(task, known, record)
        else:
            await self._stage.show(Glance.of(task))
        await self._compare(task)

    async def _go_on(self, task: Stood, known: _Turn, attempt: int) -> None:
        """Say so where an attempt takes up what another one was kept from finishing."""
        endings = {each.attempt: each.ending for each in await self._runtime.tasks.attempts(task.id)}
        ended = [endings.get(number) for number in range(known.attempt, attempt)]
        cut = [ending for ending in ended if ending not in ("parked", "returned")]
        known.attempt = attempt
        if cut:
            was = {"lost": "its worker was lost", "failed": "it failed", "forced": "it was stopped by force"}
            why = was.get(str(cut[-1]), "its worker left")
            again = "; what it was saying it says anew" if known.said else ""
            await self._stage.break_off(f"the turn is taken up again, as {why} (attempt {attempt}){again}")

    async def _read(self, turn_id: str, upto: int | None = None) -> None:
        """Show what a turn said since, as far as the log has come."""
        known = self._turns[turn_id]
        async for piece in self._runtime.tasks.output(turn_id, start=known.offset, follow=False):
            if upto is not None and piece.offset >= upto:
                break
            known.offset = piece.next
            if piece.lost:
                await self._stage.note(f"[{counted(piece.lost, 'byte')} of output cut]")
            known.said = (known.said + piece.text)[-_KEPT:]
            await self._stage.say(piece.text)

    async def _end_turn(self, task: Stood, known: _Turn, record: TaskRecord) -> None:
        await self._read(task.id)
        self._ended.add(task.id)
        result = await result_of(await self._runtime.task(task.id), record)
        is_shown = result is None or is_seen(result, known.said) or _is_cut(result, known.said)
        await self._stage.answered(record, result, seen=is_shown)
        await self._stage.show(Glance.of(task))
        if record.state is State.CANCELED:
            await self._stage.note(
                f"the turn was canceled{f': {record.cancel_reason}' if record.cancel_reason else ''}"
            )
        elif record.error is not None:
            await self._stage.note(f"the turn failed: {record.error.kind}: {record.error.message}")
        if record.state is not State.SUCCEEDED:
            self.worst = record.state
        self._expects_next = known.expects
        del self._turns[task.id]

    def _settle(self) -> None:
        if self._turns or self._expects_next:
            self._quiet.clear()
        else:
            self._quiet.set()
        self._moved.set()
        self._moved.clear()

    # --- questions -----------------------------------------------------------------------------------

    async def _compare(self, task: Stood) -> None:
        """Show what a task asks that it did not ask before, and forget what it asks no more."""
        asks = {} if task.is_terminal else {each.id: each for each in _asked(task)}
        for request in list(self._open.values()):
            if request.task_id == task.id and request.id not in asks:
                del self._open[request.id]
                await self._stage.note(f"answered or closed elsewhere: {request.prompt}")
        for request in asks.values():
            if request.id not in self._open and request.id not in self._answered:
                self._open[request.id] = request
                await self._stage.note(self._question(task, request))
        self._aim()

    def _question(self, task: Stood, request: Question) -> str:
        how = "/skip leaves it for later" if self._stage.is_live else f"outrider answer {short(task.id)} VALUE"
        return f"{Glance.of(task).name} asks: {wording(request)}\n  ({how})"

    def _aim(self) -> None:
        self._stage.ask(next(iter(self.questions), None))

    # --- what was before -----------------------------------------------------------------------------

    async def _recall(self) -> None:
        """Show the last turns, as far as they are kept. Of one that is taken, what it was told."""
        entries = await self._last_entries()
        for task_id in list(dict.fromkeys(entry.task_id for entry in entries))[-RECALLED:]:
            for text in (said_in(entry.message) for entry in entries if entry.task_id == task_id):
                if text is not None:
                    await self._stage.recall(text, is_users=not text.startswith(f"<{WAKE} "))
            with suppress(NotFound):  # deleted long ago
                await self._recall_answer(await self._runtime.task(task_id))

    async def _last_entries(self) -> list[TranscriptRecord]:
        """The end of the transcript, in order: as much as has the last turns, or as is looked at."""
        found: list[TranscriptRecord] = []
        after = None
        for _ in range(PAGES):
            page = await self._session.transcript(after=after, limit=PAGE, newest_first=True)
            found += page
            if len(page) < PAGE or len({entry.task_id for entry in found}) > RECALLED:
                break
            after = page[-1].number
        return found[::-1]

    async def _recall_answer(self, turn: TaskHandle) -> None:
        record = await turn.record()
        if not record.is_terminal:
            return
        self._ended.add(turn.id)
        result: Any = await result_of(turn, record)
        if result is None:
            await self._stage.note(f"the turn {Glance.of(record).standing}  {Glance.of(record).news}")
        else:
            await self._stage.recall(result if isinstance(result, str) else json_text(result), is_users=False)


def _kind(task: Stood) -> str:
    return task.input.kind if isinstance(task, Task) else task.kind


def _attempt(task: Stood) -> int:
    return task.core.attempt if isinstance(task, Task) else task.attempt


def _asked(task: Stood) -> Sequence[Question]:
    """What a task asks now, oldest first."""
    return task.core.requests if isinstance(task, Task) else task.input_requests


def _is_cut(result: Any, said: str) -> bool:
    """Whether a result is an answer that was too long to be kept whole, and was seen whole as it came."""
    return bool(said) and isinstance(result, str) and _CUT.search(result) is not None
