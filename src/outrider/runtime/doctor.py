"""What is wrong, and why a task does not run: answers for people, in sentences.

Nothing here is decided or changed. A finding is a `problem` when work is lost, stands still or may soon, a `note` when
somebody should know; whoever finds nothing finds an empty list.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Literal

from outrider.core.errors import OutriderError, StoreError
from outrider.core.ledger import Worker
from outrider.core.queue import kind_of, next_return, split_route, starts_left
from outrider.core.task import (
    EXTERNAL,
    OUTSIDER,
    State,
    Task,
    Wait,
    WaitForAnswer,
    WaitForMessage,
    WaitForNews,
    WaitForTasks,
    WaitUntil,
    split_key,
)
from outrider.core.values import SECOND, Instant
from outrider.core.wording import counted
from outrider.runtime.around import Around
from outrider.runtime.clock import as_datetime
from outrider.runtime.labels import LABEL, NO_LABEL
from outrider.runtime.lease import seen_alive
from outrider.runtime.log import log
from outrider.runtime.records import Check, Explanation, Finding, Readiness
from outrider.runtime.services import Services
from outrider.runtime.webhooks.stored import LANE, disabled_in

LITTLE_SPACE = 256 * 1024 * 1024
"""With fewer bytes free on the disk of the database, it may be full soon."""

LONG_LOG = 256 * 1024 * 1024
"""A WAL of more bytes means that some reader keeps it from being copied back."""


LATE = 60 * SECOND
"""After how long what is to be sent to an endpoint should have been taken up by somebody."""


class Doctor:
    """Examines a store and those who work on it. Made by `Runtime`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def is_alive(self, worker: Worker) -> bool | None:
        """Whether a worker lives; None when that cannot be seen from this machine but by waiting for its beat."""
        return seen_alive(worker, self._services.ledger)

    # --- all of it -----------------------------------------------------------------------------------

    async def examine(self, *, deep: bool = False) -> list[Finding]:
        """Look at the database, the workers and the queue. `deep` compares every index of the database too.

        Raises a StoreError for a database that cannot even be read, and InvalidArguments where a server has nothing to
        compare its indexes with, and Forbidden but for operators.
        """
        if self._services.bounds is not None:
            return await Doctor(self._services.operating("the state")).examine(deep=deep)
        views = self._services.views
        restore = "outrider restore FILE" if hasattr(self._services.ledger, "path") else "pg_restore"
        findings = [
            Finding(level="problem", about="database", text=text, advice=f"restore a backup: {restore}")
            for text in await views.problems(deep=deep)
        ]
        findings += await self._of_storage()
        around = await Around.look(self._services.ledger)
        findings += await self._of_workers(around)
        findings += await self._of_queue(around)
        findings += await self._of_webhooks()
        return findings

    async def _of_storage(self) -> list[Finding]:
        storage = (await self._services.views.statistics(self._services.clock.now())).storage
        findings = []
        path = getattr(self._services.ledger, "path", None)
        if isinstance(path, Path):
            free = shutil.disk_usage(path.parent).free
            if free < LITTLE_SPACE:
                text = f"only {_bytes(free)} are free on the disk of the database"
                findings.append(Finding(level="problem", about="disk", text=text, advice="make room: outrider prune"))
        if storage.log is not None and storage.log > LONG_LOG:
            text = f"{_bytes(storage.log)} of the database stand in its WAL: some reader has been at it for long"
            findings.append(Finding(level="note", about="database", text=text, advice="end programs that hold it open"))
        return findings

    async def _of_webhooks(self) -> list[Finding]:
        now = self._services.clock.now()
        findings = [
            Finding(
                level="problem",
                about="webhooks",
                text=f"{endpoint.id} ({endpoint.url}) is disabled since {_moment(told['at'])}: {told['reason']}",
                advice=f"outrider webhooks enable {endpoint.id}",
            )
            async for endpoint, told in disabled_in(self._services.views)
        ]
        late = await self._services.views.documents(LANE, due_by=now - LATE, limit=1000)
        if late:
            text = f"webhooks to {counted(len(late), 'endpoint')} wait for more than {LATE / SECOND:g} s to be sent"
            advice = "workers send them, and servers: start one, or look at what they log"
            findings.append(Finding(level="problem", about="webhooks", text=text, advice=advice))
        return findings

    async def _of_workers(self, around: Around) -> list[Finding]:
        findings = []
        now = self._services.clock.now()
        holders = await self._services.views.holders()
        known = {worker.card.id for worker in around.workers}
        for worker in around.workers:
            card, held = worker.card, holders.get(worker.card.id, 0)
            alive = self.is_alive(worker)
            silent = (now - worker.beat_at) / SECOND
            where = f"{card.id} ({card.host}, pid {card.pid})"
            if alive is False:
                text = f"worker {where} is dead, and nobody has cleared up after it; it held {counted(held, 'task')}"
                findings.append(Finding(level="problem", about="workers", text=text, advice=start_one()))
            elif silent > (card.lost_after or self._services.settings.lease.lost):
                text = f"worker {where} has not renewed its lease for {silent:.0f} s; it holds {counted(held, 'task')}"
                advice = "it was stopped or is cut off from the database; others take over its work" if held else ""
                findings.append(Finding(level="problem", about="workers", text=text, advice=advice))
            elif held >= card.concurrency > 0:
                text = f"worker {where} is full: it holds {counted(held, 'task')}"
                advice = "more at once: outrider worker --concurrency N; more cores: --processes N"
                findings.append(Finding(level="note", about="workers", text=text, advice=advice))
        findings += [
            Finding(
                level="problem",
                about="workers",
                text=f"{worker_id}, which nobody knows, holds {counted(count, 'task')}",
                advice="the next worker frees them",
            )
            for worker_id, count in holders.items()
            if worker_id not in known and not worker_id.startswith(OUTSIDER)
        ]
        return findings

    async def _of_queue(self, around: Around) -> list[Finding]:
        now = self._services.clock.now()
        told = await self._services.views.statistics(now)
        findings = []
        unserved: dict[str, int] = {}
        for waiting in told.waiting:
            if waiting.route not in around.served and kind_of(waiting.route) != EXTERNAL:
                unserved[waiting.route] = unserved.get(waiting.route, 0) + waiting.count
        findings += [
            Finding(
                level="problem",
                about="queue",
                text=f"no live worker serves {route}, awaited by {counted(count, 'task')}{_why_not(route, around)}",
                advice=start_one(route),
            )
            for route, count in sorted(unserved.items())
        ]
        for pause in around.gates.pauses().values():
            what = f"{pause.scope} {pause.name}".strip()
            reason = f": {pause.reason}" if pause.reason else ""
            text = f"{what} is paused since {_moment(pause.at)}{_by(pause.by)}{reason}"
            findings.append(Finding(level="note", about="queue", text=text, advice="outrider resume"))
        late = [
            w
            for w in told.waiting
            if w.readiness == "ready" and w.route in around.served and w.oldest_due_at is not None
        ]
        for waiting in late:
            waited = (now - (waiting.oldest_due_at or now)) / SECOND
            if waited > 60 and not around.gates.is_paused:
                text = f"{counted(waiting.count, 'ready task')} of {waiting.route}, the oldest for {waited:.0f} s"
                findings.append(Finding(level="note", about="queue", text=text, advice="its workers may be too few"))
        return findings

    # --- this process --------------------------------------------------------------------------------

    async def readiness(self, patience: float = 2.0) -> Readiness:
        """Say whether this process can do what it is there for: use the store, and work, if it is to work.

        It writes to the store, and changes nothing there. Takes no longer than about twice `patience`, in seconds. The
        texts are for anybody: they name no path and no address; the log has the whole reason.
        """
        checks = [await self._can_write(patience), await self._knows_schema(patience)]
        if self._services.standing.is_wanted or self._services.standing.worker is not None:
            checks.append(self._has_worker())
        return Readiness(is_ready=all(each.is_well for each in checks), checks=tuple(checks))

    async def _can_write(self, patience: float) -> Check:
        try:
            # The beat of a worker that there is not: a transaction like that of any lease, in which no row changes.
            renewal = asyncio.to_thread(self._services.whole.ledger.renew, "", patience)
            await asyncio.wait_for(renewal, 2 * patience)
        except (StoreError, TimeoutError) as error:
            return _unwell("store", "the store cannot be written", error)
        return Check(name="store", is_well=True, text="the store answers and can be written")

    async def _knows_schema(self, patience: float) -> Check:
        try:
            number = await asyncio.wait_for(self._services.whole.views.schema(), patience)
        except (StoreError, TimeoutError) as error:
            return _unwell("schema", "the schema of the store cannot be used", error)
        return Check(name="schema", is_well=True, text=f"migration {number} is the newest")

    def _has_worker(self) -> Check:
        worker, lease = self._services.standing.worker, self._services.settings.lease
        if worker is None:
            return Check(name="worker", is_well=False, text="no worker runs in this process, and one should")
        age, condition = worker.lease_age, worker.condition
        is_well = condition == "working" and age is not None and age < lease.cancel
        text = f"{worker.id} is {condition}" + ("" if age is None else f"; its lease was renewed {age:.1f} s ago")
        return Check(name="worker", is_well=is_well, text=text)

    # --- one task ------------------------------------------------------------------------------------

    async def explain(self, task_id: str) -> Explanation:
        """Say why a task is where it is, and what would move it. Raises NotFound."""
        from outrider.runtime.tasks import Tasks

        task = await Tasks(self._services).get(task_id)
        around = await Around.look(self._services.ledger)
        phase = around.phase(task)
        return Explanation(
            task_id=task.id,
            state=task.state,
            phase=phase.name if phase else None,
            because=tuple([text async for text in self._because(task, around)]),
        )

    async def _because(self, task: Task, around: Around) -> AsyncIterator[str]:
        core, now = task.core, self._services.clock.now()
        if task.is_terminal:
            yield self._end_of(task)
            return
        if core.cancel_requested_at is not None:
            yield f"a cancel was asked for at {_moment(core.cancel_requested_at)}{_by(core.canceled_by)}"
        for request in core.requests:
            until = f", until {_moment(request.deadline_at)}" if request.deadline_at is not None else ""
            yield f"it asks: {request.prompt} (request {request.id}{until}); answer it: outrider answer {task.id} VALUE"
        if core.is_held:
            yield self._holder_of(task, around, now)
            return
        if core.failures:
            attempts = await self._services.views.attempts(task.id)
            error = attempts[-1].error if attempts else None
            told = f": {error.kind}, {error.message}" if error is not None else ""
            yield f"it has failed {core.failures} of {task.input.retry.max_failures} times{told}"
        for other in await self._services.views.tasks(core.dependencies):
            yield f"it depends on {other.id} ({other.input.display_name}), which is {other.state}"
        if core.readiness is None:
            for wait in core.waits:
                yield await self._wait_of(wait)
            if core.returned:
                yield "its code has returned; it waits for the children that it owns"
            return
        if task.input.kind == EXTERNAL:
            yield f"it waits for a program that is no worker to claim {task.input.route}"
        elif not around.is_served(task):
            route = task.input.route
            yield f"no live worker serves {route}{_why_not(route, around)}; {start_one(route)}"
        pause = around.gates.pause_of(task.input.kind, task.session_id) if around.gates.is_paused else None
        if pause is not None:
            what = f"{pause.scope} {pause.name}".strip()
            reason = f": {pause.reason}" if pause.reason else ""
            yield f"{what} is paused since {_moment(pause.at)}{_by(pause.by)}{reason}; outrider resume lets it start"
        if task.input.concurrency_key is not None and core.readiness != "timed":
            async for text in self._limit_of(task.input.concurrency_key, around, now):
                yield text
        for wait in core.waits:
            yield await self._wait_of(wait)
        if core.readiness == "timed" and core.due_at is not None and not core.waits:
            yield f"it is not due before {_moment(core.due_at)}, in {max(0, core.due_at - now) / SECOND:.1f} s"
        if core.readiness == "ready" and pause is None:
            ahead = await self._services.views.ahead(task.id)
            if ahead is not None:
                yield f"it is ready, with {counted(ahead, 'task')} of {task.input.route} before it"
                if around.is_served(task):
                    yield await self._room_for(task, around)

    def _end_of(self, task: Task) -> str:
        error, core = task.outcome.error, task.core
        told = f"it ended as {core.state} at {_moment(core.finished_at)}"
        if error is not None:
            return f"{told}: {error.kind}, {error.message}"
        if core.state is State.CANCELED:
            return f"{told}{_by(core.canceled_by)}" + (f": {core.cancel_reason}" if core.cancel_reason else "")
        return told

    def _holder_of(self, task: Task, around: Around, now: Instant) -> str:
        worker = next((each for each in around.workers if each.card.id == task.core.worker_id), None)
        since = _moment(task.core.attempt_started_at)
        holder = task.core.worker_id or ""
        if holder.startswith(OUTSIDER):
            return f"attempt {task.core.attempt} is done since {since} by {holder}, a program that is no worker"
        if worker is None:
            return f"attempt {task.core.attempt} is held by {task.core.worker_id}, which nobody knows; it will be freed"
        card, alive = worker.card, self.is_alive(worker)
        seen = (now - worker.beat_at) / SECOND
        state = "which is dead; the next worker takes over" if alive is False else f"which was seen {seen:.1f} s ago"
        place = f" ({card.host}, pid {card.pid})" if self._services.is_operator else ""
        return f"attempt {task.core.attempt} runs since {since} on {card.id}{place}, {state}"

    async def _wait_of(self, wait: Wait) -> str:
        match wait:
            case WaitUntil():
                return f"it sleeps until {_moment(wait.until)}"
            case WaitForAnswer():
                return f"it waits for the answer to {wait.request_id}"
            case WaitForMessage():
                return "it waits for a message: outrider message"
            case WaitForNews():
                return "it hears what comes into its inbox meanwhile"
            case WaitForTasks():
                found = await self._services.views.tasks(wait.task_ids[:10])
                named = ", ".join(f"{task.id} ({task.state})" for task in found)
                more = f" and {len(wait.task_ids) - 10} more" if len(wait.task_ids) > 10 else ""
                return f"it waits for {'all' if wait.every else 'any'} of: {named}{more}"

    async def _limit_of(self, key: str, around: Around, now: Instant) -> AsyncIterator[str]:
        limit = around.gates.limit(key)
        (use,) = await self._services.views.uses([key])
        name, _ = split_key(key)
        if limit.capacity is not None and use.held >= limit.capacity:
            source = "" if limit.key else " (no limit is set, so it is one)"
            bounds = self._services.bounds
            if bounds is None or bounds.hold_key(key):
                use_of_all = f": {use.held} of {limit.capacity} running{source}, {use.waiting} waiting"
            else:  # a key that is common to all: how many of others' tasks run and wait is nobody else's
                use_of_all = source
            yield f"the limit of {name} is full{use_of_all}"
        left, moment = starts_left(limit, use.spent, now), next_return(limit, use.spent, now)
        if limit.rate is not None and left == 0 and moment is not None:
            rate = f"{counted(limit.rate, 'start')} in {limit.span / SECOND:g} s"
            yield f"the rate of {name} is spent: {rate}; the next is at {_moment(moment)}"

    async def _room_for(self, task: Task, around: Around) -> str:
        holders = await self._services.views.holders()
        living = [worker for worker in around.workers if worker.card.id not in around.dead]
        serving = [worker for worker in living if task.input.route in worker.card.routes]
        now = self._services.clock.now()
        room = [
            f"{worker.card.id} holds {holders.get(worker.card.id, 0)} of {worker.card.concurrency}"
            f"{_silence(worker, now)}"
            for worker in serving
        ]
        return f"it is served by {counted(len(serving), 'worker')}: {'; '.join(room)}"


def _unwell(name: Literal["store", "schema"], text: str, error: Exception) -> Check:
    code = error.code if isinstance(error, OutriderError) else "store_unavailable"
    log.warning("this process is not ready", check=name, reason=str(error) or "no answer in time")
    return Check(name=name, is_well=False, text=f"{text} ({code})", code=code)


def start_one(route: str = "") -> str:
    """What to do where nobody serves a route. Commands, and agents without tools, need no app."""
    plain, label = split_route(route)
    app = "" if plain in ("process", "subagent") else " --app MODULE:APP"
    return f"start one: outrider worker{app}" + ("" if label is None else f" --serves {LABEL}{label}")


def _why_not(route: str, around: Around) -> str:
    """What the live workers that come nearest to serving a route lack; empty when none comes near."""
    plain, label = split_route(route)
    cards = [worker.card for worker in around.workers if worker.card.id not in around.dead]
    served = [split_route(there) for card in cards for there in card.routes]
    labels = sorted({other or NO_LABEL for there, other in served if there == plain})
    if labels and label is None:
        return f" (those that do take only what needs a label: {', '.join(labels)})"
    if labels:
        return f" (those that do do not state the label {label}, but {', '.join(labels)})"
    kind = kind_of(plain)
    near = [card for card in cards if any(kind_of(there) == kind for there in card.routes)]
    versions = sorted({f"app {card.app_version}" if card.app_version else "an app without a version" for card in near})
    return f" (live workers for {kind} know other names: {', '.join(versions)})" if near and plain != kind else ""


def _silence(worker: Worker, now: Instant) -> str:
    """That a worker has not shown itself for so long that it is lost; empty for one that has."""
    silent = (now - worker.beat_at) / SECOND
    return f" and is silent for {silent:.0f} s" if 0 < worker.card.lost_after < silent else ""


def _moment(moment: Instant | None) -> str:
    at: datetime | None = None if moment is None else as_datetime(moment)
    return "an unknown time" if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _by(who: str | None) -> str:
    return f" by {who}" if who else ""


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("the last unit holds any size")
