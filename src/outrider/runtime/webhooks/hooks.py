"""Endpoints in the making, and those that come with a task.

A task's endpoints are kept before the task is: nothing is missed, and nothing is added to the transaction of the task.
Those of a task that was not made after all are dropped, at once or, after a crash, by whoever sweeps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from outrider.core.errors import InvalidArguments
from outrider.core.events import Step
from outrider.core.ledger import Committed, Document, Existing
from outrider.core.task import NewTask
from outrider.core.values import evolve
from outrider.runtime.ids import new_id
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
    told, ledger = [_hooks(each) for each in given], services.whole.ledger
    for each in (hook for hooks in told for hook in hooks):
        await new_endpoint(services, each, "", "", "")  # all are sound before any is kept
    await stored.start_following(ledger)
    kept_here: list[Document] = []
    for task, hooks in zip(tasks, told, strict=True):
        for number, each in enumerate(hooks):
            # The same for whoever makes the same task twice.
            name = hashlib.sha256(f"{task.id}\0{number}\0{each['url']}".encode()).hexdigest()[:32]
            document, _ = await new_endpoint(services, each, f"whk_{name}", task.input.organization_id, task.id)
            if await ledger.keep([document, lane_for(document)]):
                kept_here.append(evolve(document, version=1))
    made = await services.lifecycle.create(tasks, steps)
    stood_for = {task.id for task, verdict in zip(tasks, made, strict=True) if verdict.task.id != task.id}
    for document in kept_here:
        if (endpoint := Endpoint(document)).task_id in stood_for:
            await stored.forget(ledger, endpoint)
    return made


async def hand_on_webhooks(services: Services, old_id: str, new: NewTask) -> None:
    """Give a task that is about to be made the webhooks of the one that it repeats, with their secrets."""
    whole = services.whole
    for each in await stored.of_task(whole.views, old_id):
        id, now = new_id("whk"), services.clock.now()
        changes = {"created_at": now, "updated_at": now, "disabled": None, "since": await services.views.position()}
        document = evolve(each.changed(**changes), id=f"{new.id}{MARK}{id}", key=id, version=0)
        await whole.ledger.keep([document, lane_for(document)])


async def new_endpoint(
    services: Services, told: Mapping[str, Any], id: str, organization_id: str, task_id: str | None
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
    if task_id is None:
        return Document(ENDPOINT, id, data, organization_id=organization_id), secret
    return Document(TASK_ENDPOINT, f"{task_id}{MARK}{id}", data, organization_id=organization_id, key=id), secret


def events_of(given: object) -> Sequence[Event]:
    """The events that an endpoint is told of, each once. Raises InvalidArguments."""
    check_lists(events=given)
    named = list(given)  # type: ignore[call-overload]  # it was just seen to be iterable
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
