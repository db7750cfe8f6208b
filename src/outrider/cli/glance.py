"""A task at a glance: the few things that a line of a list or a tree says of it, every one harmless.

Read off the stored task where there is one: a list is then there before pydantic is imported.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider.cli.terminal import on_one_line
from outrider.core.task import Phase, Progress, State, Task, phase_of
from outrider.core.values import Span
from outrider.runtime.around import Around

if TYPE_CHECKING:
    from outrider.runtime.records import ProgressRecord, TaskRecord

_MADE_HERE = re.compile(r"task_[0-9a-f]{32}")
STYLES = {
    State.QUEUED: "dim",
    State.RUNNING: "cyan",
    State.AWAITING_INPUT: "bold yellow",
    State.SUCCEEDED: "green",
    State.FAILED: "bold red",
    State.CANCELED: "magenta",
}


@dataclass(frozen=True, slots=True)
class Glance:
    """A task at a glance."""

    id: str
    name: str
    kind: str
    state: State
    phase: str
    news: str
    """What matters most now: its question, its error, its progress, its detail."""
    progress: Progress | ProgressRecord | None
    took: Span
    """Since it was created, or from then to its end."""

    @classmethod
    def of(cls, task: Task | TaskRecord, around: Around | None = None) -> Glance:
        """A task as it stands, with what is around it where that is known; its record knows."""
        if not isinstance(task, Task):
            return cls._of_record(task)
        until = task.core.finished_at or time.time_ns() // 1000
        return cls(
            id=on_one_line(task.id),
            name=on_one_line(task.input.display_name),
            kind=on_one_line(task.input.kind),
            state=task.state,
            phase=_said(phase_of(task) if around is None else around.phase(task)),
            news=on_one_line(_news(task)),
            progress=task.live.progress,
            took=max(0, until - task.input.created_at),
        )

    @classmethod
    def _of_record(cls, record: TaskRecord) -> Glance:
        until = time.time() if record.finished_at is None else record.finished_at.timestamp()
        return cls(
            id=on_one_line(record.id),
            name=on_one_line(record.display_name),
            kind=on_one_line(record.kind),
            state=record.state,
            phase=_phrase(record.phase, record.phase_reason),
            news=on_one_line(_news_of(record)),
            progress=record.progress,
            took=max(0, round((until - record.created_at.timestamp()) * 1e6)),
        )

    @property
    def short_id(self) -> str:
        """The end of the id, which is its random part; whole where a person chose it."""
        return short(self.id)

    @property
    def standing(self) -> str:
        """The state, with the phase where that says more."""
        return f"{self.state} ({self.phase})" if self.phase else str(self.state)


def short(task_id: str) -> str:
    """The end of an id, enough for a person to name it by."""
    return task_id[-8:] if _MADE_HERE.fullmatch(task_id) else on_one_line(task_id)


def progress_text(progress: Progress | ProgressRecord) -> str:
    """`3/10 files  setup.py`."""
    amount = f"{progress.current:g}" + ("" if progress.total is None else f"/{progress.total:g}")
    return "  ".join(filter(None, [" ".join(filter(None, [amount, progress.unit])), progress.label]))


def age_text(span: Span) -> str:
    """`12s`, `3m 05s`, `2h 10m`, `4d 3h`."""
    whole = span // 1_000_000
    if whole < 60:
        return f"{span / 1e6:.1f}s" if span < 10_000_000 else f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def _said(phase: Phase | None) -> str:
    return "" if phase is None else _phrase(phase.name, phase.reason)


def _phrase(phase: str | None, reason: str | None) -> str:
    if phase is None or phase in ("ready", "executing"):
        return "" if reason is None else on_one_line(reason)
    return phase if reason is None else on_one_line(f"{phase}: {reason}")


def _news_of(record: TaskRecord) -> str:
    if record.error is not None:
        return f"{record.error.kind}: {record.error.message}"
    if record.input_request is not None:
        return f"asks: {record.input_request.prompt}"
    if record.is_terminal:
        return record.cancel_reason or record.summary or ""
    said = [progress_text(record.progress)] if record.progress else []
    return "  ".join([*said, record.state_detail] if record.state_detail else said)


def _news(task: Task) -> str:
    error, live = task.outcome.error, task.live
    if error is not None:
        return f"{error.kind}: {error.message}"
    if task.core.requests:
        return f"asks: {task.core.requests[0].prompt}"
    if task.is_terminal:
        return task.core.cancel_reason or task.outcome.summary or ""
    said = [progress_text(live.progress)] if live.progress else []
    if live.state_detail:
        said.append(live.state_detail)
    return "  ".join(said)
