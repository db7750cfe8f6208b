"""Following the log: each entry that is news becomes a delivery for each endpoint that wants it, once.

The deliveries of a page are written together with the position that was read up to, on condition of the position
before it: of several processes that read the same page, one writes and the others begin anew. So none is lost and none
is made twice, and nothing else needs to decide whose turn it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from outrider.core.ledger import Document
from outrider.core.task import Task
from outrider.core.values import Instant, Span, evolve
from outrider.runtime.clock import span
from outrider.runtime.ids import new_id
from outrider.runtime.services import Services
from outrider.runtime.webhooks.news import News, news_in, payload_of
from outrider.runtime.webhooks.stored import (
    CURSOR,
    ENDPOINT,
    FOLLOWER,
    LANE,
    Endpoint,
    endpoints_of_tasks,
    every,
    pending,
    woken,
)

ROWS = 500
"""How many entries of the log one page has."""

UNSAVED = 5000
"""How many entries are read, at most, that are news for nobody, until it is kept that they were."""

REMEMBERED = 10_000
"""Of how many tasks it is remembered when their progress was told last; of one that is forgotten, it is told again."""


Progress: TypeAlias = OrderedDict[tuple[str, str], Document]
"""The last word of tasks' progress to endpoints, as it was kept; by endpoint and task."""


class Follower:
    """What one process knows of how far the log was followed. Any number of them may follow it."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._version = -1
        self._position = 0
        self._saved = 0
        self._progress: Progress = OrderedDict()

    async def catch_up(self) -> None:
        """Read to the end of the log."""
        while await self.look():
            pass

    async def look(self) -> bool:
        """Read one page and write what becomes of it; False where there is nothing more to read."""
        views = self._services.views
        cursor = await views.document(CURSOR, id=FOLLOWER)
        if cursor is None:
            return False
        if cursor.version != self._version:
            self._version, self._saved = cursor.version, cursor.data["position"]
            self._position = self._saved
        page = await views.log(after=self._position, limit=ROWS)
        if page.next == self._position:
            return False
        news = await news_in(views, page.rows)
        progress = self._progress.copy()
        made = await self._deliveries(news, progress) if news else []
        if made or page.next - self._saved > UNSAVED:
            if not await self._keep(evolve(cursor, data={"position": page.next}), made):
                self._version = -1
                self._progress.clear()  # what it points to may have been sent
                return True
            self._progress = progress
            while len(self._progress) > REMEMBERED:
                self._progress.popitem(last=False)
        self._position = page.next
        return True

    async def rest(self) -> None:
        """Keep how far it came, where that was news for nobody, so that nobody takes it for stuck."""
        cursor = await self._services.views.document(CURSOR, id=FOLLOWER)
        if cursor is not None and cursor.version == self._version and self._position > self._saved:
            await self._keep(evolve(cursor, data={"position": self._position}), [])

    async def is_behind(self) -> tuple[int, bool]:
        """The version of the position that is kept, and whether the log goes on after it."""
        views = self._services.views
        cursor = await views.document(CURSOR, id=FOLLOWER)
        if cursor is None:
            return -1, False
        return cursor.version, await views.position() > cursor.data["position"]

    async def _keep(self, cursor: Document, deliveries: Sequence[Document]) -> bool:
        """Write deliveries and the position after them, and wake their lanes; False if somebody else wrote before."""
        lanes: dict[str, Instant] = {}
        for each in deliveries:
            name = each.collection.partition(":")[2]
            lanes[name] = min(lanes.get(name, each.due_at or 0), each.due_at or 0)
        views = self._services.views
        while True:
            found = [(await views.document(LANE, id=name), due_at) for name, due_at in lanes.items()]
            there = {lane.id: woken(lane, due_at) for lane, due_at in found if lane is not None}
            # An endpoint that was deleted meanwhile has no lane, and nothing is kept for it.
            kept = [each for each in deliveries if each.collection.partition(":")[2] in there]
            if await self._services.ledger.keep([cursor, *there.values(), *kept]):
                self._version, self._saved = cursor.version + 1, cursor.data["position"]
                return True
            stands = [cursor, *(each for each in kept if each.version)]
            for each in stands:  # if these are as they were, it was a lane that somebody let go of
                now = await views.document(each.collection, id=each.id)
                if now is None or now.version != each.version:
                    return False

    # --- what becomes of it --------------------------------------------------------------------------

    async def _deliveries(self, news: Sequence[News], progress: Progress) -> list[Document]:
        """The deliveries that tell of the news. Notes in `progress` which of them the next progress may replace."""
        views, settings = self._services.views, self._services.settings
        task_ids = list(dict.fromkeys(each.task_id for each in news))
        tasks = {task.id: task for task in await views.tasks(task_ids)}
        endpoints = await self._endpoints(tasks)
        now, apart = self._services.clock.now(), span(settings.webhooks.progress_every)
        made: dict[str, Document] = {}
        for each in news:
            task = tasks.get(each.task_id)
            if task is None:  # it was deleted, and there is nothing to tell
                continue
            body: str | None = None
            for endpoint in endpoints[task.id]:
                if not endpoint.wants(each.event, each.row.position):
                    continue
                body = body or payload_of(each, task, settings.limits.webhook)
                delivery = Document(
                    pending(endpoint.id),
                    new_id("dlv"),
                    {
                        "type": f"task.{each.event}",
                        "task_id": task.id,
                        "session_id": task.session_id,
                        "asks": list(each.asks),
                        "payload": body,
                        "created_at": now,
                        "began_at": now,
                        "attempts": [],
                        "failures": 0,
                    },
                    organization_id=task.input.organization_id,
                    due_at=now,
                )
                if each.event == "progress":
                    delivery = _coalesced(delivery, progress.get((endpoint.id, task.id)), made, now, apart)
                    progress[endpoint.id, task.id] = evolve(delivery, version=delivery.version + 1)
                    progress.move_to_end((endpoint.id, task.id))
                made[delivery.id] = delivery
        return list(made.values())

    async def _endpoints(self, tasks: Mapping[str, Task]) -> Mapping[str, Sequence[Endpoint]]:
        """The endpoints that concern each of the tasks."""
        views = self._services.views
        of_organization = {
            name: [Endpoint(each) async for each in every(views, ENDPOINT, organization_id=name)]
            for name in {task.input.organization_id for task in tasks.values()}
        }
        concerned = {task.id: list(of_organization[task.input.organization_id]) for task in tasks.values()}
        for endpoint in await endpoints_of_tasks(views, tasks):
            task = tasks.get(endpoint.task_id or "")
            if task is not None and endpoint.concerns(task):
                concerned[task.id].append(endpoint)
        return concerned


def _coalesced(
    delivery: Document, last: Document | None, made: Mapping[str, Document], now: Instant, apart: Span
) -> Document:
    """A delivery of progress, put off so that they are far enough apart; or in the place of one that is put off."""
    if last is None or last.due_at is None:
        return delivery
    if last.due_at <= now:
        return evolve(delivery, due_at=max(now, last.due_at + apart))
    # It was sent to nobody yet, so its id is given on. If it was after all, what is written here is refused.
    version = made[last.id].version if last.id in made else last.version
    return evolve(last, data={**delivery.data, "created_at": last.data["created_at"]}, version=version)
