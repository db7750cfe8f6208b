"""One task on a stage: events happen to it, time passes only by `later`, and every Change is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from outrider.core.change import Change
from outrider.core.events import (
    Answered,
    Asked,
    CancelRequested,
    Claimed,
    DeadlinePassed,
    Event,
    Failed,
    HolderLost,
    Message,
    MessageReceived,
    Parked,
    Rung,
    Succeeded,
)
from outrider.core.machine import apply, create
from outrider.core.task import Input, InputRequest, NewTask, Phase, Task, TaskError, Wait, phase_of
from outrider.core.values import SECOND, Instant, Span

T = TypeVar("T")

START: Instant = 1_700_000_000 * SECOND
TASK = "task_a"
OTHER = "task_b"
WORKER = "worker_a"
BUG = TaskError("exception", "ValueError: no")


def given(**fields: Any) -> Input:
    """What is asked for; every field may be set."""
    asked: dict[str, Any] = {
        "session_id": "session_a",
        "root_session_id": "session_a",
        "kind": "background_tool",
        "route": "background_tool:index",
        "spec": {"path": "."},
        "created_at": START,
    }
    return Input(**{**asked, **fields})


def question(id: str = "r1", **fields: Any) -> InputRequest:
    asked: dict[str, Any] = {"kind": "question", "prompt": "Go on?", "position": f"ask:{id}", "created_at": START}
    return InputRequest(id=id, task_id=TASK, **{**asked, **fields})


def message(number: int = 1) -> Message:
    return Message(f"tmsg_{number}", TASK, "session_a", "inbound", ({"type": "text", "text": "hello"},), START)


@dataclass
class Stage:
    """A task and what has happened to it."""

    task: Task
    now: Instant = START
    changes: list[Change] = field(default_factory=list)

    @property
    def last(self) -> Change:
        return self.changes[-1]

    @property
    def phase(self) -> Phase | None:
        return phase_of(self.task)

    def later(self, span: Span = SECOND) -> Stage:
        self.now += span
        return self

    def tell(self, event: Event) -> Stage:
        change = apply(self.task, event, self.now)
        self.changes.append(change)
        self.task = change.task
        return self

    # what happens to a task most often, by its present attempt

    def claim(self, worker: str = WORKER) -> Stage:
        return self.tell(Claimed(worker))

    def ask(self, *requests: InputRequest) -> Stage:
        for request in requests or (question(),):
            self.tell(Asked(self.attempt, request))
        return self

    def answer(self, request_id: str = "r1", answer: Any = "yes") -> Stage:
        return self.tell(Answered(request_id, answer, by="ada", via="cli"))

    def park(self, *waits: Wait, journaled: bool = False) -> Stage:
        return self.tell(Parked(self.attempt, waits, journaled))

    def send(self, number: int = 1) -> Stage:
        return self.tell(MessageReceived(message(number)))

    def ring(self) -> Stage:
        return self.tell(Rung("session_a"))

    def succeed(self, result: bytes | None = b"1", **how: Any) -> Stage:
        return self.tell(Succeeded(self.attempt, result, **how))

    def fail(self, **how: Any) -> Stage:
        return self.tell(Failed(self.attempt, BUG, **how))

    def lose(self, *, journaled: bool = False) -> Stage:
        return self.tell(HolderLost(self.attempt, journaled))

    def cancel(self, **how: Any) -> Stage:
        return self.tell(CancelRequested(**how))

    def look(self, active_at: Instant | None = None) -> Stage:
        return self.tell(DeadlinePassed(active_at))

    @property
    def attempt(self) -> int:
        return self.task.core.attempt

    # what came of it

    @property
    def cascades(self) -> list[tuple[str, CancelRequested]]:
        """Which relatives the last event asked to cancel."""
        return [
            (follow_up.relation, follow_up.event)
            for follow_up in self.last.follow_ups
            if isinstance(follow_up.event, CancelRequested)
        ]

    @property
    def told(self) -> list[str]:
        """Why the session was woken, from the beginning."""
        return [entry.reason for change in self.changes for entry in change.inbox]


def new(not_before: Instant | None = None, **fields: Any) -> Stage:
    """A task that was just created."""
    change = create(NewTask(TASK, given(**fields), not_before), START)
    return Stage(change.task, START, [change])


def held(**fields: Any) -> Stage:
    """A task in its first attempt."""
    return new(**fields).later().claim()


def the(value: T | None) -> T:
    """A value that must be there."""
    assert value is not None
    return value
