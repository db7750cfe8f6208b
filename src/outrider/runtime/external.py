"""Tasks of kind `external`: claimed, reported and ended by a program that is no worker of ours.

The number of its attempt is its token: it goes with every call, and one whose attempt is over is told so by
`LeaseLost`. It holds a task as long as it reports at least as often as the task's idle timeout says; after that the
task is due again, and that counts as a failure. No code of ours tells it to stop: it sees `cancel_requested_at`.
"""

from __future__ import annotations

from contextlib import suppress

from outrider.core import machine
from outrider.core.errors import InvalidArguments, LeaseLost, OutriderError, Superseded
from outrider.core.events import (
    Asked,
    Claimed,
    DeadlinePassed,
    Failed,
    HolderEvent,
    Parked,
    Released,
    Stopped,
    Succeeded,
)
from outrider.core.ledger import Claim, OutputChunk, Report
from outrider.core.task import EXTERNAL, OUTSIDER, InputRequest, Progress, Task, TaskError, WaitForAnswer
from outrider.core.values import JSON, JSONObject, difference, evolve
from outrider.runtime.attempt import check_stream, shorten
from outrider.runtime.codec import check_size, decode, jsonable
from outrider.runtime.ids import check_id, new_id
from outrider.runtime.options import check_flags, check_page, check_texts, check_texts_if_given, is_whole
from outrider.runtime.records import InputRequestRecord, TaskRecord
from outrider.runtime.schemas import check_schema, mismatch
from outrider.runtime.services import Services

OVERDUE = 100
MOST = 1e300
"""What progress may count to. Not to infinity, of which JSON knows nothing."""


def route_of(name: object) -> str:
    """What tasks for a program of that name are claimed by; None for those for any. Raises InvalidArguments."""
    return EXTERNAL if name is None else f"{EXTERNAL}:{check_id('program', name)}"


class ExternalTasks:
    """What a program of somebody else's may do with the tasks that are for it."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def claim(self, holder: str, *, name: str | None = None, limit: int = 1) -> list[TaskRecord]:
        """Take up to `limit` tasks that are due, of those whose spec has that `name`; none if there are none.

        `holder` says who takes them; its records then name it as `external:HOLDER`. The `attempt` of each record is
        the token for everything else. Tasks whose holder has stopped reporting are made due first.
        """
        await self._free_lost()
        now, worker_id = self._services.clock.now(), OUTSIDER + check_id("holder", holder)
        claim = Claim(worker_id, (route_of(name),), check_page(limit), now)
        claims = await self._services.ledger.claim(claim, lambda task: machine.apply(task, Claimed(worker_id), now))
        return [TaskRecord.of(task) for task in claims.tasks]

    async def report(
        self,
        task_id: str,
        attempt: int,
        *,
        current: float | None = None,
        total: float | None = None,
        unit: str | None = None,
        label: str | None = None,
        detail: str | None = None,
        output: str | None = None,
        stream: str = "stdout",
    ) -> TaskRecord:
        """Say how far it is, print, or with nothing only say that it is still at it; this renews the lease.

        Returns the record: stop when it has `cancel_requested_at`, and say so by `stopped`. Raises LeaseLost.
        """
        check_texts_if_given(unit=unit, label=label, detail=detail, output=output)
        check_stream(stream)
        progress = None
        if current is not None:
            progress = Progress(_number(current), None if total is None else _number(total), unit, label)
        task = await self._held(task_id, attempt)
        now, limits = self._services.clock.now(), self._services.settings.limits
        live = task.live
        if progress is not None:
            live = evolve(live, progress=progress)
        if detail is not None:
            live = evolve(live, state_detail=shorten(detail, limits.detail))
        check_size("the report", (current, total, unit, label, detail), limits.message)
        delta = jsonable(difference(task.live, live))
        report = Report(task_id, attempt, now, live if delta else None, delta or None)
        kept = await self._services.ledger.report([report])
        if output:
            check_size("the output", (stream, output), limits.output_tail)
            chunk = OutputChunk(task_id, attempt, stream, output, now, limits.output_tail)
            kept = [*kept, *await self._services.ledger.print([chunk])]
        if not all(kept):
            raise _lost(task_id, attempt)
        return TaskRecord.of(evolve(task, live=live))

    async def ask(
        self, task_id: str, attempt: int, prompt: str, *, expected: JSONObject | None = None, details: JSON = None
    ) -> InputRequestRecord:
        """Ask whoever the session answers to. Keep reporting meanwhile, or `give_back` the task until it is answered.

        The answer stands in `tasks.requests`. Raises LeaseLost, InvalidSchema or TooLarge.
        """
        check_texts(prompt=prompt)
        task = await self._held(task_id, attempt)
        if expected is not None:
            check_schema(expected)
        check_size("the question", (prompt, expected, details), self._services.settings.limits.question)
        request_id = new_id("req")
        request = InputRequest(
            request_id,
            task_id,
            "question",
            prompt,
            position=f"ask:{request_id}",
            created_at=self._services.clock.now(),
            expected=jsonable(expected),
            details=jsonable(details),
        )
        moved = await self._move(task, Asked(attempt, request, live=task.live))
        return InputRequestRecord.of(next(each for each in moved.core.requests if each.id == request_id))

    async def give_back(self, task_id: str, attempt: int) -> TaskRecord:
        """Let go of the task unharmed: it is due again at once, or when one of its questions is answered."""
        task = await self._held(task_id, attempt)
        waits = tuple(WaitForAnswer(request.id) for request in task.core.requests)
        return TaskRecord.of(await self._move(task, Parked(attempt, waits) if waits else Released(attempt)))

    async def succeed(
        self, task_id: str, attempt: int, result: JSON = None, *, summary: str | None = None
    ) -> TaskRecord:
        """End it with a result. One that does not fit `result_schema` fails it. Raises LeaseLost, TooLarge."""
        check_texts_if_given(summary=summary)
        task = await self._held(task_id, attempt)
        limits = self._services.settings.limits
        encoded = None if result is None else check_size("the result", result, limits.result)
        problem = None
        if encoded is not None and task.input.result_schema is not None:
            problem = mismatch(decode(encoded), task.input.result_schema)
        summary = None if summary is None else shorten(summary, limits.summary)
        children = await self._services.views.children(task_id)
        open_children = tuple(each.id for each in children if not each.is_terminal and not each.input.detached)
        event = Succeeded(attempt, encoded, summary, open_children, problem)
        return TaskRecord.of(await self._move(task, event))

    async def fail(
        self,
        task_id: str,
        attempt: int,
        message: str,
        *,
        kind: str = "exception",
        details: JSON = None,
        retryable: bool = True,
    ) -> TaskRecord:
        """Let the attempt fail: it is tried again after a pause while failures are left, if it is `retryable`."""
        check_texts(message=message, kind=kind)
        check_flags(retryable=retryable)
        task = await self._held(task_id, attempt)
        check_size("the error", (kind, message, details), self._services.settings.limits.message)
        error = TaskError(kind, message, jsonable(details))
        return TaskRecord.of(await self._move(task, Failed(attempt, error, retryable)))

    async def stopped(self, task_id: str, attempt: int) -> TaskRecord:
        """Say that it has stopped, as a cancel asked; without one the task is only given back."""
        return TaskRecord.of(await self._move(await self._held(task_id, attempt), Stopped(attempt)))

    async def _held(self, task_id: str, attempt: int) -> Task:
        """The task, if that attempt of an outsider holds it. Raises LeaseLost, InvalidArguments for another kind."""
        check_texts(task_id=task_id)
        if not is_whole(attempt):
            raise InvalidArguments(f"attempt is the number of an attempt, not {attempt!r:.100}")
        task = await self._services.views.task(task_id)
        if task is not None and task.input.kind != EXTERNAL:
            raise InvalidArguments(
                f"{task_id} is of kind {task.input.kind}; only {EXTERNAL} tasks are done from outside"
            )
        if task is None or not task.core.is_held or task.core.attempt != attempt:
            raise _lost(task_id, attempt)
        return task

    async def _move(self, task: Task, event: HolderEvent) -> Task:
        try:
            return await self._services.lifecycle.move(task, event)
        except Superseded as error:
            raise _lost(task.id, error.attempt) from None

    async def _free_lost(self) -> None:
        """Look at the clock, as every worker does: there may be none."""
        services = self._services.whole  # a duty, done for all
        for task in await services.views.overdue(services.clock.now(), OVERDUE):
            with suppress(OutriderError):  # somebody else was faster
                await services.lifecycle.move(task, DeadlinePassed(await services.views.active_at(task.id)))


def _number(value: object) -> float:
    """A number that a report can hold. Raises InvalidArguments."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MOST:
        raise InvalidArguments(f"current and total are numbers, not {value!r:.100}")
    return float(value)


def _lost(task_id: str, attempt: int) -> LeaseLost:
    return LeaseLost(
        f"attempt {attempt} does not hold {task_id}: it has ended, or others go on with it",
        details={"task_id": task_id, "attempt": attempt},
    )
