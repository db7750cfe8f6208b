"""What is kept for how long: a policy for an organization, and pins on what is kept whatever its policy says.

Without a policy of its own, an organization has that of the settings. `pruning.Retention` is the duty that goes by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from outrider.core.errors import InvalidArguments, NotFound
from outrider.core.ledger import Document, Views
from outrider.core.session import Session
from outrider.core.values import SECOND, JSONObject, Span, evolve
from outrider.runtime.clock import as_datetime, span
from outrider.runtime.options import (
    Length,
    check_flags,
    check_name,
    check_page,
    check_texts,
    check_texts_if_given,
    is_whole,
)
from outrider.runtime.records import PinRecord, RetentionRecord
from outrider.runtime.services import Services

POLICY, PIN = "retention", "pin"
"""The collections of documents that say so."""

PAGE = 1000
MOST_ENDED = 100_000_000
SHORTEST: Span = SECOND


@dataclass(frozen=True, slots=True)
class Policy:
    """How long ended tasks are kept, and how many; None for no bound."""

    age: Span | None
    count: int | None = None
    archives: bool = False
    """Whether whole sessions go, into the archive, in which nothing has happened for so long, in the place of tasks."""

    @classmethod
    def of(cls, document: Document) -> Policy:
        """The policy that a document states."""
        age, count = document.data.get("age"), document.data.get("count")
        archives = document.data.get("archive") is True
        return cls(age if isinstance(age, int) else None, count if isinstance(count, int) else None, archives)


class RetentionPolicies:
    """The policies and pins of one store."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def policy(self, organization_id: str | None = None) -> RetentionRecord:
        """Return the policy of an organization, its own or that of the settings."""
        organization_id = self._named(organization_id)
        document = await self._reach.views.document(POLICY, id=organization_id)
        if document is None:
            age = self._services.settings.retention
            return RetentionRecord(organization_id=organization_id, age=age, count=None, is_own=False)
        return _record(document)

    async def policies(self, *, after: str | None = None, limit: int = 100) -> list[RetentionRecord]:
        """Return the organizations that have a policy of their own, in the order of their ids."""
        check_texts_if_given(after=after)
        found = await self._reach.views.documents(POLICY, after=after, limit=check_page(limit))
        return [_record(each) for each in found]

    async def set_policy(
        self,
        organization_id: str | None = None,
        *,
        age: Length | None,
        count: int | None = None,
        archive: bool = False,
        by: str | None = None,
    ) -> RetentionRecord:
        """Have the ended tasks of an organization kept for so long, and no more than `count` of them; None: no bound.

        With `archive` whole sessions go, with all in them and below them, in which nothing has happened for the `age`:
        into the archive that the setting names, see `Archive.store`; their tasks go with them and not before.

        In the place of the settings' word for it, for all workers. What is over is deleted within minutes, the longest
        ended first. Raises InvalidArguments.
        """
        organization_id = self._named(organization_id)
        check_texts_if_given(by=by)
        length = None if age is None else span(age)
        if length is not None and length < SHORTEST:
            raise InvalidArguments(
                "age is a length of time of a second or more, or None to keep what has ended for ever"
            )
        if count is not None and not (is_whole(count) and 0 <= count <= MOST_ENDED):
            raise InvalidArguments(f"count is a whole number from 0 to {MOST_ENDED:,}, or None for no bound")
        check_flags(archive=archive)
        if archive and (length is None or count is not None):
            raise InvalidArguments("archive goes by age alone: say after how long, and no count")
        if archive:
            from outrider.runtime.archive import check_place

            check_place(self._services)
        data: JSONObject = {
            "age": length,
            "count": count,
            "archive": archive,
            "by": by,
            "at": self._services.clock.now(),
        }
        new = Document(POLICY, organization_id, data, organization_id)
        return _record(await put(self._reach, new))

    async def reset_policy(self, organization_id: str | None = None) -> bool:
        """Have the settings' word hold again for an organization; False if it did."""
        organization_id = self._named(organization_id)
        return await drop(self._reach, POLICY, organization_id)

    @property
    def _reach(self) -> Services:
        """Where policies are read and set: for operators, everywhere."""
        return self._services.whole if self._services.is_operator else self._services

    def _named(self, organization_id: str | None) -> str:
        """That organization, or else one's own, or the default one. Raises InvalidArguments, NotFound."""
        if organization_id is None:
            return self._services.organization_id
        check_name("organization_id", organization_id, self._services.settings.limits.name)
        if not self._services.is_operator and organization_id != self._services.organization_id:
            raise NotFound.of("organization", organization_id)
        return organization_id

    async def pin(self, id: str, *, by: str | None = None, reason: str | None = None) -> PinRecord:
        """Keep a task, or a session with all in it and in the sessions that its tasks opened, until it is unpinned.

        Retention and `Tasks.prune` pass over it; whoever deletes it by name does. A pin that is there stays as it is.
        Raises NotFound.
        """
        check_texts(id=id)
        check_texts_if_given(by=by, reason=reason)
        views = self._services.views
        if (there := await views.document(PIN, id=id)) is not None:
            return _pin(there)
        task, session = await views.task(id), await views.session(id)
        if task is not None:
            owner = task.input.organization_id
        elif session is not None:
            owner = session.organization_id
        else:
            raise NotFound.of("session" if id.startswith("session") else "task", id)
        data: JSONObject = {"by": by, "reason": reason, "at": self._services.clock.now()}
        return _pin(await put(self._services, Document(PIN, id, data, owner)))

    async def unpin(self, id: str) -> bool:
        """Have a task or session go as its organization's policy says; False if it was not pinned."""
        check_texts(id=id)
        return await drop(self._services, PIN, id)

    async def pins(
        self, *, organization_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> list[PinRecord]:
        """Return what is pinned, in the order of ids."""
        check_texts_if_given(organization_id=organization_id, after=after)
        found = await self._services.views.documents(
            PIN, organization_id=organization_id, after=after, limit=check_page(limit)
        )
        return [_pin(each) for each in found]


class Pins:
    """What is pinned, and what has to stay for it: what lies below a pinned session, and what opened it."""

    def __init__(self, views: Views, ids: set[str]) -> None:
        self._views = views
        self._ids = ids
        self._lines: dict[str, list[Session]] = {}
        self.openers: set[str] = set()
        """The tasks that opened a session in which, or below which, something is pinned."""
        self.above: set[str] = set()
        """The sessions in which, or below which, something is pinned, and those themselves."""

    @classmethod
    async def of(cls, views: Views) -> Pins:
        """All pins by now. There are few: people make them."""
        pins = cls(views, {each.id for each in await every(views, PIN)})
        tasks = {task.id: task for task in await views.tasks(sorted(pins._ids))} if pins._ids else {}
        for id in pins._ids:
            for session in await pins._line(tasks[id].session_id if id in tasks else id):
                pins.above.add(session.id)
                if session.parent_task_id is not None:
                    pins.openers.add(session.parent_task_id)
        return pins

    async def without(self, task_ids: Sequence[str]) -> list[str]:
        """Those of these tasks that may be deleted, in their order."""
        if not self._ids:
            return list(task_ids)
        found = {task.id: task for task in await self._views.tasks(task_ids)}
        return [
            id
            for id in task_ids
            if id in found and id not in self.openers | self._ids and not await self._covers(found[id].session_id)
        ]

    async def _covers(self, session_id: str) -> bool:
        return any(session.id in self._ids for session in await self._line(session_id))

    async def _line(self, session_id: str | None) -> list[Session]:
        """A session and those above it."""
        if session_id is None:
            return []
        if session_id not in self._lines:
            session = await self._views.session(session_id)
            above = [] if session is None else [session, *await self._line(session.parent_session_id)]
            self._lines[session_id] = above
        return self._lines[session_id]


async def every(views: Views, collection: str) -> list[Document]:
    """All documents of a collection that is small."""
    found: list[Document] = []
    while page := await views.documents(collection, after=found[-1].id if found else None, limit=PAGE):
        found += page
    return found


async def put(services: Services, document: Document) -> Document:
    """Write a document over whatever is there of its id; whoever comes last has the last word."""
    while True:
        there = await services.views.document(document.collection, id=document.id)
        new = evolve(document, version=0 if there is None else there.version)
        if await services.ledger.keep([new]):
            return evolve(new, version=new.version + 1)


async def drop(services: Services, collection: str, id: str) -> bool:
    """Drop a document, whatever it says by then; False if there is none."""
    while (there := await services.views.document(collection, id=id)) is not None:
        if await services.ledger.keep([], [there]):
            return True
    return False


def _record(document: Document) -> RetentionRecord:
    policy = Policy.of(document)
    return RetentionRecord(
        organization_id=document.id,
        age=None if policy.age is None else policy.age / SECOND,
        count=policy.count,
        archive=policy.archives,
        is_own=True,
        by=_text(document.data.get("by")),
        at=_moment(document.data.get("at")),
    )


def _pin(document: Document) -> PinRecord:
    return PinRecord(
        id=document.id,
        organization_id=document.organization_id,
        at=_moment(document.data.get("at")),
        by=_text(document.data.get("by")),
        reason=_text(document.data.get("reason")),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _moment(value: object) -> datetime | None:
    return as_datetime(value) if isinstance(value, int) else None
