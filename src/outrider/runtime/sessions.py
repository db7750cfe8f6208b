"""The sessions of a runtime."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from outrider.core.errors import NotEnded, NotFound, WaitTimeout
from outrider.core.session import NewSession, Session
from outrider.core.task import DEFAULT_ORGANIZATION, Task
from outrider.runtime.budgets import usage_of_session
from outrider.runtime.codec import check_size
from outrider.runtime.ids import check_id, new_id
from outrider.runtime.options import (
    check_budget,
    check_count,
    check_flags,
    check_mappings,
    check_name,
    check_page,
    check_texts,
    check_texts_if_given,
)
from outrider.runtime.pruning import delete_session, live_in
from outrider.runtime.records import EventRecord, SessionRecord, SpentRecord
from outrider.runtime.services import Services
from outrider.runtime.stream import EventReader

if TYPE_CHECKING:
    from outrider.runtime.handles import SessionHandle

_LEEWAY = timedelta(seconds=2)
ROUNDS = 5
"""How often the tasks of a session that is being deleted are canceled."""


class Sessions:
    """All sessions of one store."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def create(
        self,
        *,
        agent: str | None = None,
        title: str | None = None,
        labels: Mapping[str, str] | None = None,
        id: str | None = None,
        organization_id: str = DEFAULT_ORGANIZATION,
        budget: Mapping[str, float] | None = None,
        tree_budget: Mapping[str, float] | None = None,
    ) -> SessionHandle:
        """Create a session, or get the one of that id. Raises InvalidArguments or TooLarge.

        `budget` bounds what the model calls of its tasks take together, `tree_budget` those of its tasks and of all
        sessions that these open, and so on down; see `TaskOptions.budget`.
        """
        from outrider.runtime.handles import SessionHandle

        if id is not None:
            check_id("session", id)
        limits = self._services.settings.limits
        check_texts_if_given(agent=agent, title=title)
        for what, text in (("agent", agent), ("title", title)):
            if text:
                check_name(what, text, limits.spec)
        check_name("organization_id", organization_id, limits.name)
        if labels is not None:
            check_mappings(labels=labels)
        check_budget("budget", budget)
        check_budget("tree_budget", tree_budget)
        parts = {name: dict(part) for name, part in (("session", budget), ("tree", tree_budget)) if part is not None}
        check_size("the description of the session (agent, title, labels)", (agent, title, labels), limits.spec)

        new = NewSession(
            id=id or new_id("session"),
            created_at=self._services.clock.now(),
            organization_id=organization_id,
            agent=agent,
            title=title,
            labels={name: str(value) for name, value in (labels or {}).items()},
            budget=parts or None,
        )
        return SessionHandle(self._services, await self._services.ledger.create_session(new))

    async def get(self, session_id: str) -> SessionHandle:
        """Return a session. Raises NotFound."""
        from outrider.runtime.handles import SessionHandle

        return SessionHandle(self._services, await self._session(session_id))

    async def list(self, *, after: str | None = None, limit: int = 100) -> list[SessionRecord]:
        """Return sessions, newest first, after the one of that id."""
        check_texts_if_given(after=after)
        views = self._services.views
        found = await views.sessions(after=after, limit=check_page(limit))
        named = [each.driver_task_id for each in found if each.driver_task_id is not None]
        turns = {turn.id: turn for turn in await views.tasks(named)} if named else {}
        return [SessionRecord.of(each, turns.get(each.driver_task_id or "")) for each in found]

    async def usage(self, session_id: str, *, tree: bool = False) -> SpentRecord:
        """Return what a session's tasks have used together, and what of its budget is spent; `tree`: its whole tree.

        Deleted tasks are no part of the usage; of the budget they are. Looks at each task. Raises NotFound.
        """
        check_flags(tree=tree)
        return await usage_of_session(self._services.views, await self._session(session_id), tree=tree)

    async def delete(self, session_id: str, *, cancel: bool = False) -> int:
        """Delete a session with its tasks, files, transcript, inbox and log, and the sessions that its tasks opened.

        Returns how many tasks went. While any of them lives it is refused with NotEnded and nothing is deleted; with
        `cancel` they are canceled first, detached ones too, and waited for as long as their grace. Raises NotFound.
        """
        check_flags(cancel=cancel)
        session = await self._session(session_id)
        canceled: set[str] = set()
        for _ in range(ROUNDS if cancel else 0):
            # The end of what is canceled may wake the agent, which then takes a turn: that is canceled, too.
            live = await live_in(self._services, session)
            if canceled.issuperset(task.id for task in live):
                break
            canceled.update(task.id for task in live)
            await self._cancel(live)
            with suppress(NotEnded):
                return await delete_session(self._services, session)
        return await delete_session(self._services, session)

    async def events(self, session_id: str, *, after: int = 0) -> AsyncIterator[EventRecord]:
        """Yield a session's events, each once, after that number, for ever. Raises NotFound, also once deleted."""
        check_count("after", after)
        await self._session(session_id)
        async for event in EventReader(self._services, session_id, after=after).follow():
            yield event

    async def _cancel(self, live: Sequence[Task]) -> None:
        """Cancel tasks, and wait until all have ended or the longest grace is over."""
        from outrider.runtime.tasks import Tasks

        tasks = Tasks(self._services)
        for task in live:
            with suppress(NotFound):  # deleted meanwhile
                await tasks.cancel(task.id, reason="its session is being deleted", include_detached=True)
        if live:
            grace = timedelta(microseconds=max(task.input.cancel_grace for task in live))
            with suppress(NotFound, WaitTimeout):  # whoever deletes says which still live
                await tasks.wait([task.id for task in live], timeout=grace + _LEEWAY)

    async def _session(self, session_id: str) -> Session:
        check_texts(session_id=session_id)
        session = await self._services.views.session(session_id)
        if session is None:
            raise NotFound.of("session", session_id)
        return session
