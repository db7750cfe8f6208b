"""Endpoints in the making, and those that come with a task.

A task's endpoints are kept before the task is: nothing is missed, and nothing is added to the transaction of the task.
Those of a task that was not made after all are dropped, at once or, after a crash, by whoever sweeps.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from outrider.core.errors import InvalidArguments, StoreError
from outrider.core.events import Step
from outrider.core.ledger import Committed, Document, Existing, Views
from outrider.core.task import NewTask, Task
from outrider.core.values import evolve
from outrider.runtime.options import check_lists, check_name
from outrider.runtime.services import Services
from outrider.runtime.webhooks import stored
from outrider.runtime.webhooks.guard import Guard
from outrider.runtime.webhooks.secrets import kept
from outrider.runtime.webhooks.signing import key_of, new_secret
from outrider.runtime.webhooks.stored import ENDPOINT, EVENTS, MARK, TASK_ENDPOINT, Endpoint, Event, lane_for

MOST_OF_TASK = 10
DEFAULT_EVENTS: tuple[Event, ...] = ("terminal", "awaiting_input")
_KNOWN = {"url", "events", "secret", "description"}


async def create_with_webhooks(
    services: Services, tasks: Sequence[NewTask], given: Sequence[Sequence[Any]], steps: tuple[Step, ...] = ()
) -> Sequence[Committed | Existing]:
    """Create tasks, each with the webhooks given for it; see `Lifecycle.create`.

    Raises what that raises, and InvalidArguments or AddressRefused for a webhook, before anything is made.
    """
    if not any(given):
        return await services.lifecycle.create(tasks, steps)
    told = [_hooks(each) for each in given]
    for each in (hook for hooks in told for hook in hooks):
        await new_endpoint(services, each, "")  # all are sound before any is kept
    await stored.start_following(services.whole.ledger)
    documents: list[Document] = []
    for task, hooks in zip(tasks, told, strict=True):
        for number, each in enumerate(hooks):
            id = _id_for(task, str(number), each["url"])
            documents.append((await new_endpoint(services, each, id, task.input.organization_id, task))[0])
    async with _keeping(services, documents):
        return await services.lifecycle.create(tasks, steps)


@asynccontextmanager
async def handing_on_webhooks(services: Services, old: Task, new: NewTask) -> AsyncIterator[None]:
    """Make a task within, which has the webhooks of the one that it repeats, with their secrets."""
    documents: list[Document] = []
    for each in await stored.of_task(services.whole.views, old.id):
        if each.concerns(old):
            id, now = _id_for(new, each.id), services.clock.now()
            changes = {"created_at": now, "updated_at": now, "disabled": None, "since": await services.views.position()}
            documents.append(evolve(each.changed(**changes), id=f"{new.id}{MARK}{id}", key=id, version=0))
    async with _keeping(services, documents):
        yield


@asynccontextmanager
async def _keeping(services: Services, documents: Sequence[Document]) -> AsyncIterator[None]:
    """Keep the endpoints of tasks that are made within, and drop those of the ones that were not made.

    Of a task that is there already nothing is kept: it has its own, and may be somebody else's.
    """
    ledger, kept_here = services.whole.ledger, list[Endpoint]()
    endpoints = [Endpoint(each) for each in documents]
    taken = await _tasks_of(ledger.views, endpoints)
    try:
        for each in endpoints:
            if each.task_id not in taken and await ledger.keep([each.document, lane_for(each.document)]):
                kept_here.append(each)
        yield
    finally:
        with suppress(StoreError):  # whoever sweeps drops them, then
            # What is there now may be made by somebody else who was to make the same, and counts on what is kept.
            there = await _tasks_of(ledger.views, kept_here)
            for each in kept_here:
                if not each.concerns(there.get(each.task_id)):
                    await stored.forget(ledger, each)


async def _tasks_of(views: Views, endpoints: Sequence[Endpoint]) -> Mapping[str | None, Task]:
    ids = list(dict.fromkeys(each.task_id for each in endpoints if each.task_id is not None))
    return {task.id: task for task in await views.tasks(ids)} if ids else {}


def _id_for(task: NewTask, *parts: str) -> str:
    """The same for whoever makes the same task twice, and for nobody else."""
    named = (task.input.organization_id, task.input.session_id, task.id, *parts)
    return f"whk_{hashlib.sha256(chr(0).join(named).encode()).hexdigest()[:32]}"


async def new_endpoint(
    services: Services,
    told: Mapping[str, Any],
    id: str,
    organization_id: str = "",
    task: NewTask | Task | None = None,
) -> tuple[Document, str]:
    """The document of an endpoint to be, and its secret. Raises InvalidArguments and AddressRefused."""
    Guard(services.settings.webhooks).check(told["url"])
    secret: str = told.get("secret") or new_secret()
    now = services.clock.now()
    data = {
        "url": told["url"],
        "events": events_of(told.get("events", DEFAULT_EVENTS)),
        "description": description_of(services, told.get("description", "")),
        "secrets": [kept(services, key_of(secret))],
        "since": await services.views.position(),
        "created_at": now,
        "updated_at": now,
        "disabled": None,
    }
    if task is None:
        return Document(ENDPOINT, id, data, organization_id=organization_id), secret
    data["session_id"] = task.input.session_id
    return Document(TASK_ENDPOINT, f"{task.id}{MARK}{id}", data, organization_id=organization_id, key=id), secret


def events_of(given: Iterable[object]) -> Sequence[Event]:
    """The events that an endpoint is told of, each once. Raises InvalidArguments."""
    check_lists(events=given)
    named = list(given)
    if not named or not all(each in EVENTS for each in named):
        raise InvalidArguments(f"events are some of {', '.join(EVENTS)}, not {given!r:.100}")
    return [each for each in EVENTS if each in named]


def description_of(services: Services, given: object) -> str:
    """What an endpoint is for. Raises InvalidArguments or TooLarge."""
    if given != "":
        check_name("the description", given, services.settings.limits.name)
    return str(given)


def _hooks(given: Iterable[Any]) -> list[Mapping[str, Any]]:
    check_lists(webhooks=given)
    told = [{"url": each} if isinstance(each, str) else each for each in given]
    if len(told) > MOST_OF_TASK:
        raise InvalidArguments(f"a task has up to {MOST_OF_TASK} webhooks")
    for each in told:
        if not isinstance(each, Mapping) or "url" not in each or not set(each) <= _KNOWN:
            raise InvalidArguments(f"a webhook of a task is a URL, or has {', '.join(sorted(_KNOWN))}: {each!r:.100}")
    return told
