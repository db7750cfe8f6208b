"""An `AgentRun` in memory: a journal and transcript that outlive an attempt, and ways to die at any of their writes."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from outrider.agents.engine import (
    AgentBrief,
    AgentOutcome,
    Approval,
    Engine,
    Iteration,
    ModelCall,
    ModelFailed,
    Permit,
    said_meanwhile,
)
from outrider.core.errors import Parked
from outrider.core.task import Effects, Usage
from outrider.core.values import JSON, JSONObject


class Killed(BaseException):
    """The process is gone. A test's stand-in for SIGKILL."""


@dataclass
class Record:
    """What is durable: everything here survives an attempt."""

    transcript: list[JSON] = field(default_factory=list)
    journal: dict[str, JSON] = field(default_factory=dict)
    iterations: int = 0
    usage: Usage = field(default_factory=Usage)
    provider: str | None = None
    model: str | None = None
    outcome: AgentOutcome | None = None
    decisions: dict[str, Approval] = field(default_factory=dict)
    answers: dict[str, JSON] = field(default_factory=dict)
    appended_bytes: list[int] = field(default_factory=list)
    journaled_bytes: int = 0
    inbox: list[str] = field(default_factory=list)


@dataclass
class FakeRun:
    """One attempt on a record. `dies_at` counts writes from 0; `stored` says if the fatal write still lands."""

    record: Record
    dies_at: int | None = None
    stored: bool = False
    mismatches: Callable[[JSON], str | None] = lambda _: None
    decide: Callable[[str, JSONObject, str], Approval | None] = lambda *_: None
    answer: Callable[[str], JSON] = lambda _: None
    questions: list[str] = field(default_factory=list)
    output_text: str = ""
    writes: int = 0
    steps_run: list[str] = field(default_factory=list)
    steps_replayed: list[str] = field(default_factory=list)
    steps_effects: dict[str, Effects] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any], str]] = field(default_factory=list)
    permit: Callable[[ModelCall], Permit] = lambda call: Permit(call, call.output_tokens)
    settled: list[tuple[str, Usage | ModelFailed | None]] = field(default_factory=list)
    open_now: int = 0
    open_most: int = 0
    is_alone: bool = True

    async def step(self, key: str, fn: Callable[[], Awaitable[JSON]], *, effects: Effects = "idempotent") -> JSON:
        if key in self.record.journal:
            self.steps_replayed.append(key)
            return json.loads(json.dumps(self.record.journal[key]))
        self.steps_run.append(key)
        self.steps_effects[key] = effects
        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        try:
            value = await fn()
        finally:
            self.open_now -= 1
        with self._write():
            text = json.dumps(value)
            self.record.journaled_bytes += len(text)
            assert key not in self.record.journal, f"{key} was journaled twice"
            self.record.journal[key] = json.loads(text)
        return value

    async def reserve(self, call: ModelCall) -> Permit:
        return self.permit(call)

    async def settle(self, permit: Permit, usage: Usage | None, failure: ModelFailed | None = None) -> float | None:
        self.settled.append((permit.call.model, usage if failure is None else failure))
        return None

    async def append(self, iteration: Iteration) -> None:
        with self._write():
            assert iteration.number == self.record.iterations + 1
            assert self.record.outcome is None
            text = json.dumps(iteration.messages)
            self.record.appended_bytes.append(len(text))
            self.record.transcript.extend(json.loads(text))
            self.record.iterations = iteration.number
            self.record.usage = iteration.usage
            self.record.provider, self.record.model = iteration.provider, iteration.model
            self.record.outcome = iteration.outcome
            if not iteration.keeps_journal:
                self.record.journal.clear()

    def journaled(self, prefix: str = "") -> dict[str, JSON]:
        return {key: value for key, value in self.record.journal.items() if key.startswith(prefix)}

    async def ask(self, key: str, prompt: str, **_: Any) -> JSON:
        self.questions.append(prompt)
        if key not in self.record.answers:
            if (answer := self.answer(prompt)) is None:
                raise Parked
            with self._write():
                self.record.answers[key] = answer
        return self.record.answers[key]

    async def approve(self, tool: str, arguments: JSONObject, call_id: str, *, key: str | None = None) -> Approval:
        self.asked.append((tool, dict(arguments), call_id))
        if call_id not in self.record.decisions:
            decision = self.decide(tool, arguments, call_id)
            if decision is None:
                raise Parked
            with self._write():
                self.record.decisions[call_id] = decision
        return self.record.decisions[call_id]

    async def news(self) -> str | None:
        return None

    async def has_news(self) -> bool:
        return bool(self.record.inbox)

    async def take_news(self, key: str) -> str | None:
        if not self.record.inbox:
            return None
        with self._write():
            text = "\n\n".join(self.record.inbox)
            self.record.inbox.clear()
            self.record.journal[key] = text
            self.record.transcript.extend(said_meanwhile(text))
        return text

    def output(self, text: str) -> None:
        self.output_text += text

    def mismatch(self, result: JSON) -> str | None:
        return self.mismatches(result)

    @contextmanager
    def _write(self) -> Iterator[None]:
        nth = self.writes
        self.writes += 1
        if self.dies_at is not None and (nth > self.dies_at or (nth == self.dies_at and not self.stored)):
            raise Killed  # as does all that goes on beside the write it died at
        yield
        if nth == self.dies_at:
            raise Killed


async def attempt(engine: Engine, brief: AgentBrief, run: FakeRun) -> AgentOutcome:
    """Do what the runtime does with one attempt: settle from the record, or hand over to the engine."""
    record = run.record
    settled = record.outcome
    if settled is not None:
        return settled
    outcome = await engine.run(
        replace(brief, transcript=list(record.transcript), iterations=record.iterations, usage=record.usage), run
    )
    if record.outcome is not None:
        assert record.outcome == outcome
    return outcome


# The engine counts corrections in memory, so a new attempt starts that count anew; iterations bound it all the same.
VOLATILE = frozenset({"timestamp", "run_id", "retry"})


def timeless(value: JSON) -> JSON:
    """Return a transcript without what differs between two attempts that did the same."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [timeless(inner) for inner in value]
    return value
