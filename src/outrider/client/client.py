"""The client itself: the nouns of a server. It holds no state but connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from types import TracebackType

from outrider.client.answer_links import AnswerLinks
from outrider.client.archive import Archive
from outrider.client.audit import Audit
from outrider.client.connection import Connection, Told
from outrider.client.doctor import Doctor
from outrider.client.external import ExternalTasks
from outrider.client.handles import TaskHandle
from outrider.client.inbox import Inbox
from outrider.client.keys import Keys
from outrider.client.organizations import Organizations
from outrider.client.queue import Queue
from outrider.client.retention import RetentionPolicies
from outrider.client.secrets import Secrets
from outrider.client.sessions import Sessions
from outrider.client.tasks import Tasks
from outrider.client.webhooks import Webhooks
from outrider.core.errors import InvalidArguments, ServerDiffers
from outrider.runtime.clock import span
from outrider.runtime.options import Length, check_count
from outrider.runtime.records import EventRecord, OrganizationSnapshot, StatsRecord, WorkerRecord
from outrider.settings import ClientSettings


class Client:
    """A server of Outrider, with the nouns and verbs of a `Runtime`: `async with Client(url, key=...) as outrider`.

    `url` is `http://host:port`, `https://…`, also with a path in front of the `/v1` of the API, or `unix:/path` for a
    socket. Nothing is asked of the server before the first verb. What a verb raises is what a `Runtime` raises, or a
    ServerError where the server cannot be used. One client is for one event loop, and for many tasks of it at once.
    """

    def __init__(self, url: str, *, key: str | None = None, settings: ClientSettings | None = None) -> None:
        self._connection = Connection(url, key, settings or ClientSettings())
        self.sessions = Sessions(self._connection)
        self.tasks = Tasks(self._connection)
        self.inbox = Inbox(self._connection)
        self.queue = Queue(self._connection)
        self.doctor = Doctor(self._connection)
        self.external = ExternalTasks(self._connection)
        self.retention = RetentionPolicies(self._connection)
        self.archive = Archive(self._connection)
        self.webhooks = Webhooks(self._connection)
        self.answer_links = AnswerLinks(self._connection)
        self.organizations = Organizations(self._connection)
        self.keys = Keys(self._connection)
        self.audit = Audit(self._connection)
        self.secrets = Secrets(self._connection)

    def __repr__(self) -> str:
        return f"<Client {self.url}>"

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._connection.url

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of all connections. Streams that are being followed end with an error."""
        await self._connection.close()

    async def task(self, task_id: str) -> TaskHandle:
        """Return a handle on a task. Raises NotFound."""
        return TaskHandle(self._connection, await self.tasks.get(task_id))

    async def workers(self) -> list[WorkerRecord]:
        """Return the registered workers, with what each holds."""
        return (await self._connection.ask("GET", "/v1/workers")).page(WorkerRecord)

    async def snapshot(self) -> OrganizationSnapshot:
        """Return what lives, and the position of the log after which all is new."""
        return await self._connection.snapshot("/v1/events", OrganizationSnapshot)

    async def events(self, *, after: int | None = None) -> AsyncIterator[tuple[int, EventRecord]]:
        """Yield the events of all sessions, each once with its position, for ever.

        After a position of the log, from now on without one. What was deleted is not told.
        """
        if after is not None:
            check_count("after", after)
        async for told in self._connection.follow("/v1/events", after):
            if not isinstance(told, Told):
                raise ServerDiffers(f"the server at {self.url} ended a stream that has no end, with {told!r}")
            if told.name != "snapshot":
                yield told.cursor, told.record(EventRecord)

    async def stats(self, within: Length = timedelta(hours=1)) -> StatsRecord:
        """Return the store in numbers: what there is, what waits, and what ended within that time."""
        length = span(within)
        if length <= 0:
            raise InvalidArguments("within is a length of time, and not none")
        return (await self._connection.ask("GET", "/v1/stats", params={"within": length / 1e6})).record(StatsRecord)
