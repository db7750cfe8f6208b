"""What is left of tasks that were deleted, in endpoints and their histories, and how it goes.

At once where somebody erases a session, and with the next sweep of whoever is on duty: what was read of a task before
it was deleted may be written after it.
"""

from __future__ import annotations

from collections.abc import Set

from outrider.core.errors import OutriderError
from outrider.core.ledger import Document
from outrider.core.values import SECOND, Instant
from outrider.runtime.clock import span
from outrider.runtime.log import log
from outrider.runtime.services import Services
from outrider.runtime.webhooks.stored import (
    ENDPOINT,
    ERASED,
    MARK,
    PAGE,
    STATUSES,
    TASK_ENDPOINT,
    Endpoint,
    deliveries_of,
    every,
    forget,
    has_any,
)

YOUNG = 3600 * SECOND
"""How old such an endpoint is at least: its task is made after it."""


async def erase(services: Services, organization_id: str) -> None:
    """Drop what was told of those tasks of an organization that are gone; what this misses, the next sweep drops.

    Looks through the histories of all endpoints of the organization.
    """
    try:
        if await has_any(services.views):
            await sweep(services, services.clock.now() - YOUNG, organization_id=organization_id)
    except OutriderError as error:
        log.error("what webhooks told of a deleted session is still there; it goes later", reason=error.message)


async def sweep(services: Services, before: Instant, *, organization_id: str | None = None) -> int:
    """Drop the endpoints made before a moment whose tasks are gone; return how many that were.

    With them goes what was told of tasks that are gone, or long ago. What is still to be sent goes where somebody
    deleted the task by name: he wants it gone, and whoever only keeps little wants it told first. Of one organization,
    or of all, which alone lets go of what is known of tasks that were deleted so.
    """
    views, gone = services.views, 0
    marks = [each async for each in every(views, ERASED)]
    erased = {task_id: each.data["at"] for each in marks for task_id in each.data["task_ids"]}
    after: str | None = None
    while True:
        found = await views.documents(TASK_ENDPOINT, organization_id=organization_id, after=after, limit=PAGE)
        page: list[Document] = list(found)
        there = {task.id: task for task in await views.tasks([each.id.rpartition(MARK)[0] for each in page])}
        for each in page:
            endpoint = Endpoint(each)
            task_id = endpoint.task_id or ""
            is_over = each.data["created_at"] < max(before, erased.get(task_id, before))
            if is_over and not endpoint.concerns(there.get(task_id)):
                gone += await forget(services.ledger, endpoint)
        if len(page) < PAGE:
            break
        after = page[-1].id
    async for each in every(views, ENDPOINT, organization_id=organization_id):
        await _sweep_deliveries(services, each.id, erased.keys())
    for each in marks if organization_id is None else []:
        if each.data["at"] < before:  # until then somebody may be about to write what he read before
            await services.ledger.keep([], [each])
    return gone


async def _sweep_deliveries(services: Services, endpoint_id: str, erased: Set[str]) -> None:
    oldest = services.clock.now() - span(services.settings.webhooks.history_age)
    for status in STATUSES:
        if status == "pending" and not erased:
            continue
        after: str | None = None
        while page := await services.views.documents(deliveries_of(endpoint_id, status), after=after, limit=PAGE):
            there = {task.id for task in await services.views.tasks(list({each.data["task_id"] for each in page}))}
            for each in page:
                task_id, waits = each.data["task_id"], status == "pending"
                is_over = not waits or task_id in erased
                is_old = not waits and each.data["ended_at"] < oldest
                if is_old or (is_over and task_id not in there):
                    await services.ledger.keep([], [each])  # by itself: one that is sent just now is left for later
            after = page[-1].id
