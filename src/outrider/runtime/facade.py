"""`Runtime`: the one façade, a holder of services by noun. Every edge translates to it and holds no policy."""

from __future__ import annotations

from os import PathLike, fspath

from outrider.core.errors import InvalidArguments
from outrider.core.ledger import Ledger, Savable, Saved
from outrider.runtime.external import ExternalTasks
from outrider.runtime.handles import TaskHandle
from outrider.runtime.queue import Queue
from outrider.runtime.records import WorkerRecord
from outrider.runtime.services import Services
from outrider.runtime.sessions import Sessions
from outrider.runtime.tasks import Tasks


class Runtime:
    """An open Outrider: `sessions`, `tasks`, `queue` and `workers` of one store, and `external`, for other programs."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.sessions = Sessions(services)
        self.tasks = Tasks(services)
        self.queue = Queue(services)
        self.external = ExternalTasks(services)

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
        if not isinstance(self.ledger, Savable):
            raise InvalidArguments("this store is kept in no file, so there is nothing to save")
        return await self.ledger.save(fspath(path), replace=replace)

    async def workers(self) -> list[WorkerRecord]:
        """Return the registered workers."""
        return [WorkerRecord.of(worker) for worker in await self.services.views.workers()]
