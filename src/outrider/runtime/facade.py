"""`Runtime`: the one façade, a holder of services by noun. Every edge translates to it and holds no policy."""

from __future__ import annotations

from datetime import timedelta
from os import PathLike, fsdecode, fsencode

from outrider.core.errors import InvalidArguments
from outrider.core.ledger import Ledger, Savable, Saved
from outrider.runtime.clock import span
from outrider.runtime.doctor import Doctor
from outrider.runtime.external import ExternalTasks
from outrider.runtime.handles import TaskHandle
from outrider.runtime.inbox import Inbox
from outrider.runtime.options import Length
from outrider.runtime.queue import Queue
from outrider.runtime.records import StatsRecord, WorkerRecord
from outrider.runtime.retention import RetentionPolicies
from outrider.runtime.services import Services
from outrider.runtime.sessions import Sessions
from outrider.runtime.tasks import Tasks


class Runtime:
    """An open Outrider: `sessions`, `tasks`, `inbox`, `queue` and `workers` of one store.

    `doctor` says what is wrong with it; `external` is for programs that do tasks and are no workers; `retention` says
    what is kept for how long.
    """

    def __init__(self, services: Services) -> None:
        self.services = services
        self.sessions = Sessions(services)
        self.tasks = Tasks(services)
        self.inbox = Inbox(services)
        self.queue = Queue(services)
        self.doctor = Doctor(services)
        self.external = ExternalTasks(services)
        self.retention = RetentionPolicies(services)

    @property
    def ledger(self) -> Ledger:
        """The store underneath, for diagnosis."""
        return self.services.ledger

    async def task(self, task_id: str) -> TaskHandle:
        """Return a handle on a task. Raises NotFound."""
        return TaskHandle(self.services, await self.tasks.get(task_id))

    async def backup(self, path: str | PathLike[str], *, replace: bool = False) -> Saved:
        """Save the database into a file while it is in use; whole, checked and durable when this returns.

        It holds all that was acknowledged before. Raises InvalidArguments where the file exists already, unless
        `replace`, and for a store that is kept in no file.
        """
        name = _path_of(path)
        if not isinstance(self.ledger, Savable):
            raise InvalidArguments("this store is kept in no file, so there is nothing to save")
        return await self.ledger.save(name, replace=replace)

    async def workers(self) -> list[WorkerRecord]:
        """Return the registered workers, with what each holds."""
        holders = await self.services.views.holders()
        return [
            WorkerRecord.of(worker, holders.get(worker.card.id, 0), self.doctor.is_alive(worker))
            for worker in await self.services.views.workers()
        ]

    async def stats(self, within: Length = timedelta(hours=1)) -> StatsRecord:
        """Return the store in numbers: what there is, what waits, and what ended within that time."""
        length = span(within)
        if length <= 0:
            raise InvalidArguments("within is a length of time, and not none")
        return StatsRecord.of(await self.services.views.statistics(self.services.clock.now() - length), length)


def _path_of(given: str | PathLike[str]) -> str:
    """A path that some file may have. Raises InvalidArguments."""
    try:
        path = fsencode(given)
    except (TypeError, UnicodeEncodeError):
        path = b""
    if not path or b"\0" in path:
        raise InvalidArguments(f"the path of a backup is text or a Path that can name a file, not {given!r:.100}")
    return fsdecode(path)
