"""What webhooks keep in the store, all of it documents: endpoints, their lanes, deliveries, and how far was read.

An endpoint has a lane, the document by which it is due: whoever moves its `due_at` ahead has the endpoint to himself.
A delivery waits in a collection of its endpoint's own, so that no backlog is looked through for another's sake; it is
moved to another one when it was made or given up.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from outrider.core.errors import NotFound
from outrider.core.ledger import Document, Ledger, Views
from outrider.core.task import Task
from outrider.core.values import Instant, JSONObject, evolve
from outrider.runtime.ids import new_id

ENDPOINT = "webhook"
TASK_ENDPOINT = "task_webhook"
"""Those of one task. Their ids begin with the task's, so that a page of tasks finds its endpoints in a row of reads."""
ERASED = "webhook_erased"
"""Which tasks somebody deleted by name, until nothing of them waits to be sent any more."""
LANE = "webhook_lane"
CURSOR = "cursor"
FOLLOWER = "webhooks"
"""The id of the cursor."""

Event: TypeAlias = Literal["terminal", "awaiting_input", "message", "progress"]
EVENTS: tuple[Event, ...] = ("terminal", "awaiting_input", "message", "progress")
Status: TypeAlias = Literal["pending", "delivered", "dead"]
STATUSES: tuple[Status, ...] = ("pending", "delivered", "dead")

MARK = "!"
"""Between the id of a task and that of its endpoint. It comes before all that an id may have in it."""
PAGE = 100


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where webhooks are sent to. `document` is what it was read from."""

    document: Document

    @property
    def id(self) -> str:
        """Its id, `whk_...`."""
        return self.document.id.rpartition(MARK)[2]

    @property
    def organization_id(self) -> str:
        """Whose events it is told."""
        return self.document.organization_id

    @property
    def task_id(self) -> str | None:
        """The one task that it is told of, None for all of its organization."""
        return self.document.id.rpartition(MARK)[0] or None

    @property
    def url(self) -> str:
        """Where it is."""
        return str(self.document.data["url"])

    @property
    def host(self) -> str:
        """The host of that: all of it that goes into a log. The rest of a URL is often a secret."""
        return urlsplit(self.url).hostname or ""

    @property
    def disabled(self) -> JSONObject | None:
        """Since when (`at`) nothing is sent to it, and the `reason`."""
        found: JSONObject | None = self.document.data.get("disabled")
        return found

    def wants(self, event: Event, position: int) -> bool:
        """Whether it is told of such an event, which stands there in the log."""
        data = self.document.data
        return self.disabled is None and event in data["events"] and position > data["since"]

    def concerns(self, task: Task | None) -> bool:
        """Whether it is told of that task. Somebody may have named one before it was made, or one that is not his."""
        if task is None or task.input.organization_id != self.organization_id:
            return False
        if self.task_id is None:
            return True
        return self.task_id == task.id and self.document.data.get("session_id", task.session_id) == task.session_id

    def changed(self, **data: Any) -> Document:
        """Its document with some of its data replaced."""
        return evolve(self.document, data={**self.document.data, **data})


def pending(endpoint_id: str) -> str:
    """The collection of the deliveries that wait to be made to an endpoint."""
    return deliveries_of(endpoint_id, "pending")


def deliveries_of(endpoint_id: str, status: Status) -> str:
    """The collection of an endpoint's deliveries that have come so far."""
    return f"webhook_{status}:{endpoint_id}"


def lane_for(endpoint: Document, due_at: Instant | None = None) -> Document:
    """The lane of a new endpoint."""
    id = Endpoint(endpoint).id
    return Document(LANE, id, {"failures": 0}, organization_id=endpoint.organization_id, due_at=due_at)


def woken(lane: Document, due_at: Instant) -> Document:
    """A lane for which there is something more to do from then on.

    One that rests, rests on. Who has it to himself keeps it until then; that it was written tells him to look once more
    before he lets go.
    """
    due_at = max(due_at, lane.data.get("rests_until", 0))
    if lane.data.get("holder") is not None or (lane.due_at is not None and lane.due_at <= due_at):
        return lane
    return evolve(lane, due_at=due_at)


def rested(lane: Document) -> Document:
    """A lane that need not rest any more: somebody says that it can take something again."""
    return evolve(lane, data={**lane.data, "rests_until": 0, "rounds": 0})


async def endpoint(views: Views, id: str) -> Endpoint:
    """The endpoint of that id. Raises NotFound."""
    found = await endpoint_if_there(views, id)
    if found is None:
        raise NotFound.of("webhook", id)
    return found


async def endpoint_if_there(views: Views, id: str) -> Endpoint | None:
    """The endpoint of that id, of all of an organization or of a task."""
    found = await views.document(ENDPOINT, id=id) or await views.document(TASK_ENDPOINT, key=id)
    return None if found is None else Endpoint(found)


async def endpoints_of_tasks(views: Views, task_ids: Iterable[str]) -> Sequence[Endpoint]:
    """The endpoints of these tasks alone: one read where there are few in all, one for each task at worst."""
    found: dict[str, Document] = {}
    reached = ""
    for task_id in sorted(set(task_ids)):
        if task_id < reached:
            continue
        page = await views.documents(TASK_ENDPOINT, after=task_id + MARK, limit=PAGE)
        found.update((each.id, each) for each in page)
        if len(page) < PAGE:
            break
        reached = page[-1].id.rpartition(MARK)[0]
    return [Endpoint(each) for each in found.values()]


async def of_task(views: Views, task_id: str) -> Sequence[Endpoint]:
    """The endpoints of one task."""
    return [Endpoint(each) for each in await views.documents(TASK_ENDPOINT, below=task_id + MARK)]


async def every(
    views: Views, collection: str, *, organization_id: str | None = None, below: str = ""
) -> AsyncIterator[Document]:
    """All documents of a collection, a page a read."""
    after: str | None = None
    while True:
        page = await views.documents(collection, organization_id=organization_id, below=below, after=after, limit=PAGE)
        for each in page:
            yield each
        if len(page) < PAGE:
            return
        after = page[-1].id


async def has_any(views: Views) -> bool:
    """Whether there is any endpoint at all."""
    for collection in (ENDPOINT, TASK_ENDPOINT):
        if await views.documents(collection, limit=1):
            return True
    return False


async def disabled_in(views: Views) -> AsyncIterator[tuple[Endpoint, JSONObject]]:
    """The endpoints that nothing is sent to, each with since when and why."""
    for collection in (ENDPOINT, TASK_ENDPOINT):
        async for each in every(views, collection):
            found = Endpoint(each)
            if found.disabled is not None:
                yield found, found.disabled


async def mark_erased(ledger: Ledger, task_ids: Sequence[str], now: Instant) -> None:
    """Have what waits to be told of tasks that are about to be deleted go with them, where there is any endpoint."""
    if task_ids and await has_any(ledger.views):
        await ledger.keep([Document(ERASED, new_id("erased"), {"task_ids": list(task_ids), "at": now})])


async def start_following(ledger: Ledger) -> None:
    """Have the log be followed from here on, before the first endpoint is made.

    Nobody needs what was logged while there was none. What follows the return of whoever made an endpoint comes after
    the position that is kept here, whoever else makes one meanwhile: who finds one there leaves the position alone.
    """
    views = ledger.views
    cursor = await views.document(CURSOR, id=FOLLOWER)
    position = await views.position()
    if cursor is None:
        await ledger.keep([Document(CURSOR, FOLLOWER, {"position": position})])
    elif not await has_any(views):
        await ledger.keep([evolve(cursor, data={"position": max(position, cursor.data["position"])})])


async def put(ledger: Ledger, endpoint_id: str, deliveries: Sequence[Document], *dropped: Document) -> bool:
    """Have deliveries be made from the earliest of their moments on, in the place of others; False if these are gone.

    Nothing is put where the endpoint is gone. One that rests is tried at once.
    """
    while True:
        lane = await ledger.views.document(LANE, id=endpoint_id)
        if lane is None:
            return False
        due_at = min(each.due_at or 0 for each in deliveries)
        if await ledger.keep([woken(rested(lane), due_at), *deliveries], dropped):
            return True
        if await ledger.views.document(LANE, id=endpoint_id) == lane:
            return False


async def forget(ledger: Ledger, found: Endpoint) -> bool:
    """Drop an endpoint and all its deliveries; False where it was gone already."""
    while True:
        lane = await ledger.views.document(LANE, id=found.id)
        here = await endpoint_if_there(ledger.views, found.id)
        if here is None:
            break
        if await ledger.keep([], [here.document, *([] if lane is None else [lane])]):
            break
    await clear(ledger, found.id)
    return here is not None


async def clear(ledger: Ledger, endpoint_id: str) -> None:
    """Drop all deliveries of an endpoint that is gone."""
    for status in STATUSES:
        while page := await ledger.views.documents(deliveries_of(endpoint_id, status), limit=PAGE):
            await ledger.keep([], page)


def moved(delivery: Document, to: Status, data: Mapping[str, Any], due_at: Instant | None = None) -> Document:
    """A delivery as it is to be kept among those that have come so far; the one it was made of is to be dropped."""
    endpoint_id = delivery.collection.partition(":")[2]
    return evolve(
        delivery,
        collection=deliveries_of(endpoint_id, to),
        data={**delivery.data, **data},
        due_at=due_at,
        version=0,
    )
