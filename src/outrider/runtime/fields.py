"""A task in the words of its public record, as plain values: what `TaskRecord` is made of, without pydantic.

`outrider tasks --json` writes these as they are; a test holds them equal to what the record says of itself. All
moments become datetimes in UTC here, and all spans seconds.
"""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from typing import Any

from outrider.core.queue import split_route
from outrider.core.task import EXTERNAL, InputRequest, Task, phase_of
from outrider.core.values import Instant, Span
from outrider.runtime.around import Around
from outrider.runtime.clock import as_datetime


def task_fields(task: Task, *, heartbeat_at: Instant | None = None, around: Around | None = None) -> dict[str, Any]:
    """All fields of a task's record but `checkpoint`, which is read off its journal.

    The phase takes in what is `around` it, where that is known.
    """
    given, core, live, outcome = task.input, task.core, task.live, task.outcome
    phase = phase_of(task) if around is None else around.phase(task)
    requests = tuple(request_fields(request) for request in core.requests)
    timeouts, retry = given.timeouts, given.retry
    return {
        "id": task.id,
        "organization_id": given.organization_id,
        "session_id": given.session_id,
        "root_session_id": given.root_session_id,
        "parent_task_id": given.parent_task_id,
        "retry_of": given.retry_of,
        "kind": given.kind,
        "display_name": given.display_name,
        "labels": given.labels,
        "origin": given.origin,
        "spec": task.spec,
        "wake_policy": given.wake_policy,
        "idempotency_key": given.named_idempotency_key,
        "priority": task.priority,
        "concurrency_key": given.key_name,
        "needs": None if given.kind == EXTERNAL else split_route(given.route)[1],
        "debounce_key": given.debounce_key,
        "depends_on": given.depends_on,
        "detached": given.detached,
        "retry": {
            "max_failures": retry.max_failures,
            "initial": retry.initial / 1e6,
            "factor": float(retry.factor),
            "maximum": retry.maximum / 1e6,
        },
        "timeouts": {
            "queue": _seconds(timeouts.queue),
            "run": _seconds(timeouts.run),
            "idle": _seconds(timeouts.idle),
            "total": _seconds(timeouts.total),
        },
        "budget": given.budget,
        "result_schema": given.result_schema,
        "message_schema": given.message_schema,
        "state": core.state,
        "phase": phase.name if phase else None,
        "phase_reason": phase.reason if phase else None,
        "state_detail": live.state_detail,
        "progress": _progress(task),
        "input_request": requests[0] if requests else None,
        "input_requests": requests,
        "cancel_requested_at": _moment(core.cancel_requested_at),
        "cancel_reason": core.cancel_reason,
        "iterations": live.iterations,
        "provider": live.provider,
        "model": live.model,
        "usage": {**_plain(live.usage), "cost": None if live.usage.cost is None else float(live.usage.cost)},
        "links": _plain(live.links),
        "summary": outcome.summary,
        "result_path": outcome.result_path,
        "artifacts": tuple(_plain(artifact) for artifact in outcome.artifacts),
        "error": None if outcome.error is None else _plain(outcome.error),
        "version": core.version,
        "attempt": core.attempt,
        "failures": core.failures,
        "worker_id": core.worker_id,
        "heartbeat_at": _moment(heartbeat_at),
        "due_at": _moment(core.due_at),
        "next_deadline_at": _moment(core.next_deadline_at),
        "created_at": as_datetime(given.created_at),
        "started_at": _moment(core.started_at),
        "finished_at": _moment(core.finished_at),
        "updated_at": as_datetime(core.updated_at),
    }


def request_fields(request: InputRequest) -> dict[str, Any]:
    """The fields of an input request's record."""
    return {
        "id": request.id,
        "task_id": request.task_id,
        "kind": request.kind,
        "prompt": request.prompt,
        "expected": request.expected,
        "details": request.details,
        "status": request.status,
        "created_at": as_datetime(request.created_at),
        "deadline_at": _moment(request.deadline_at),
        "on_expiry": request.on_expiry,
        "default": request.default,
        "answer": request.answer,
        "answered_by": request.answered_by,
        "answered_via": request.answered_via,
        "closed_at": _moment(request.closed_at),
    }


def _progress(task: Task) -> dict[str, Any] | None:
    progress = task.live.progress
    if progress is None:
        return None
    total = None if progress.total is None else float(progress.total)
    return {**_plain(progress), "current": float(progress.current), "total": total}


def _plain(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _moment(moment: Instant | None) -> datetime | None:
    return None if moment is None else as_datetime(moment)


def _seconds(span: Span | None) -> float | None:
    return None if span is None else span / 1e6
