"""`Runtime`: the one façade, a holder of services by noun. Every edge translates to it and holds no policy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from os import PathLike, fsdecode, fsencode

from outrider.core.errors import InvalidArguments
from outrider.core.ledger import Ledger, Savable, Saved
from outrider.runtime.answer_links import AnswerLinks
from outrider.runtime.archive import Archive
from outrider.runtime.audit import Audit
from outrider.runtime.bounds import Bounds
from outrider.runtime.clock import span
from outrider.runtime.doctor import Doctor
from outrider.runtime.external import ExternalTasks
from outrider.runtime.handles import TaskHandle
from outrider.runtime.inbox import Inbox
from outrider.runtime.keys import Keys
from outrider.runtime.options import Length, check_count, check_texts_if_given
from outrider.runtime.organizations import Organizations
from outrider.runtime.queue import Queue
from outrider.runtime.records import EventRecord, OrganizationSnapshot, StatsRecord, WorkerRecord
from outrider.runtime.retention import RetentionPolicies
from outrider.runtime.secrets import Secrets
from outrider.runtime.services import Services
from outrider.runtime.sessions import Sessions
from outrider.runtime.signals import EVERYTHING
from outrider.runtime.snapshots import snapshot_of_organization
from outrider.runtime.stream import LogReader
from outrider.runtime.tasks import Tasks
from outrider.runtime.webhooks.endpoints import Webhooks

LOOK = 2_000_000
"""Microseconds between two looks of who follows the log of all sessions, whatever rings."""


class Runtime:
    """An open Outrider: `sessions`, `tasks`, `inbox`, `queue` and `workers` of one store.

    `doctor` says what is wrong with it; `external` is for programs that do tasks and are no workers; `retention` says
    what is kept for how long. `organizations`, `keys`, `audit` and `secrets` are what a service needs that others use.
    """

    def __init__(self, services: Services, work: asyncio.Task[None] | None = None) -> None:
        self.services = services
        self.work = work
        """The worker inside; None without one. It only ends by itself when the store will never answer again."""
        self.sessions = Sessions(services)
        self.tasks = Tasks(services)
        self.inbox = Inbox(services)
        self.queue = Queue(services)
        self.doctor = Doctor(services)
        self.external = ExternalTasks(services)
        self.retention = RetentionPolicies(services)
        self.archive = Archive(services)
        self.webhooks = Webhooks(services)
        self.answer_links = AnswerLinks(services)
        self.organizations = Organizations(services)
        self.keys = Keys(services)
        self.audit = Audit(services)
        self.secrets = Secrets(services)

    def within(self, bounds: Bounds) -> Runtime:
        """The same runtime as somebody sees it who reaches no further than one organization, or one session's tree.

        What lies outside is absent: an id of somebody else's is NotFound, whatever is done with it. What concerns the
        whole cluster (limits, pauses of kinds, workers, numbers, backups) is Forbidden but for an operator. Raises
        Forbidden for bounds that reach further than this runtime does.
        """
        return Runtime(self.services.within(bounds))

    @property
    def ledger(self) -> Ledger:
        """The store underneath, for diagnosis."""
        return self.services.ledger

    async def task(self, task_id: str) -> TaskHandle:
        """Return a handle on a task. Raises NotFound."""
        return TaskHandle(self.services, await self.tasks.get(task_id))

    async def backup(self, path: str | PathLike[str], *, replace: bool = False) -> Saved:
        """Save the database into a file while it is in use; whole, checked and durable when this returns.

        It holds all that was acknowledged before, of all organizations. Raises InvalidArguments where the file exists
        already, unless `replace`, and for a store that is kept in no file; Forbidden but for operators.
        """
        name = _path_of(path)
        ledger = self.services.operating("a backup").ledger
        if not isinstance(ledger, Savable):
            raise InvalidArguments("this store is kept in no file, so there is nothing to save")
        return await ledger.save(name, replace=replace)

    async def workers(self) -> list[WorkerRecord]:
        """Return the registered workers, with what each holds."""
        views = self.services.operating("the workers").views
        holders = await views.holders()
        return [
            WorkerRecord.of(worker, holders.get(worker.card.id, 0), self.doctor.is_alive(worker))
            for worker in await views.workers()
        ]

    async def snapshot(self, organization_id: str | None = None) -> OrganizationSnapshot:
        """Return what lives, of one organization or all, and the position of the log after which all is new."""
        check_texts_if_given(organization_id=organization_id)
        return await snapshot_of_organization(self.services, organization_id)

    async def events(
        self, organization_id: str | None = None, *, after: int | None = None
    ) -> AsyncIterator[tuple[int, EventRecord]]:
        """Yield the events of all sessions, of one organization or all, each once with its position, for ever.

        After a position of the log, from now on without one. What was deleted is not told.
        """
        check_texts_if_given(organization_id=organization_id)
        if after is not None:
            check_count("after", after)
        with self.services.signals.listen([EVERYTHING]) as bell:
            position = await self.services.views.position() if after is None else after
            reader = LogReader(self.services, organization_id, after=position)
            while True:
                events = await reader.read()
                for each in events:
                    yield each
                if not events:
                    # What a transaction of PostgreSQL wrote may be told of before it can be read.
                    await bell.wait(self.services.clock.now() + LOOK)

    async def stats(self, within: Length = timedelta(hours=1)) -> StatsRecord:
        """Return the store in numbers: what there is, what waits, and what ended within that time."""
        length = span(within)
        if length <= 0:
            raise InvalidArguments("within is a length of time, and not none")
        views = self.services.operating("the numbers").views
        return StatsRecord.of(await views.statistics(self.services.clock.now() - length), length)


def _path_of(given: str | PathLike[str]) -> str:
    """A path that some file may have. Raises InvalidArguments."""
    try:
        path = fsencode(given)
    except (TypeError, UnicodeEncodeError):
        path = b""
    if not path or b"\0" in path:
        raise InvalidArguments(f"the path of a backup is text or a Path that can name a file, not {given!r:.100}")
    return fsdecode(path)
