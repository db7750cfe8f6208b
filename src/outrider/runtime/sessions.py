"""The sessions of a runtime."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

from outrider.core.errors import InvalidArguments, NotEnded, NotFound, WaitTimeout
from outrider.core.events import FileWrite
from outrider.core.ledger import Closed, Described, GrantSet, Reopened, TaskFilter
from outrider.core.session import Grant, NewSession, Seed, Session
from outrider.core.task import LIVE_STATES, Task
from outrider.core.values import JSONObject, evolve
from outrider.runtime.around import Around
from outrider.runtime.budgets import usage_of_session
from outrider.runtime.codec import check_size
from outrider.runtime.context import Parts, message_parts
from outrider.runtime.exporting import export_session
from outrider.runtime.files import clean_path, file_content, task_of
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
from outrider.runtime.records import (
    EventRecord,
    FileRecord,
    GrantRecord,
    SessionRecord,
    SessionSnapshot,
    SpentRecord,
    TaskRecord,
    TranscriptRecord,
)
from outrider.runtime.services import Services
from outrider.runtime.snapshots import snapshot_of_session
from outrider.runtime.stream import EventReader, life_of
from outrider.runtime.trees import tasks_below
from outrider.runtime.turns import Steering, check_steering, last_turn, say
from outrider.runtime.webhooks.sweeping import erase

if TYPE_CHECKING:
    from outrider.runtime.handles import SessionHandle

Remaining: TypeAlias = Literal["finish", "cancel", "refuse"]
"""What becomes of the live tasks of a session that is to be closed: they go on to their end, they are canceled, or the
session stays open because of them. Detached ones go on in any case."""

_LEEWAY = timedelta(seconds=2)
_PAGE = 1000
ROUNDS = 5
"""How often the tasks of a session that is being deleted are canceled."""


class Said(NamedTuple):
    """The turn that was told something, or made for it; `is_before` the one that hears it, which follows it then."""

    turn: Task
    is_before: bool


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
        organization_id: str | None = None,
        budget: Mapping[str, float] | None = None,
        tree_budget: Mapping[str, float] | None = None,
    ) -> SessionHandle:
        """Create a session, or get the one of that id. Raises InvalidArguments or TooLarge.

        It belongs to the organization of this runtime, `org_default` where that reaches everywhere; NotFound is raised
        for another one that is out of reach, AlreadyExists for an id that is taken there.
        `budget` bounds what the model calls of its tasks take together, `tree_budget` those of its tasks and of all
        sessions that these open, and so on down; see `TaskOptions.budget`.
        """
        from outrider.runtime.handles import SessionHandle

        if id is not None:
            check_id("session", id)
        limits = self._services.settings.limits
        check_texts_if_given(agent=agent, title=title)
        if agent is not None and not agent.strip():
            raise InvalidArguments("agent is the name of one; leave it out for a session without")
        for what, text in (("agent", agent), ("title", title)):
            if text:
                check_name(what, text, limits.spec)
        organization_id = self._services.organization_id if organization_id is None else organization_id
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

    async def grants(self, session_id: str) -> builtins.list[GrantRecord]:
        """Return the tools that need no more approval in a session, for somebody said `always`. Raises NotFound.

        What was granted in the first session of a tree holds in all of it.
        """
        session = await self._session(session_id)
        return [GrantRecord.of(each) for each in await self._services.views.grants([session.id]) if each.is_allowed]

    async def revoke(self, session_id: str, tool: str, *, by: str | None = None) -> bool:
        """Have a tool of a session need an approval again; False if it did already. Raises NotFound.

        A call that was let through already is not stopped.
        """
        check_name("tool", tool, self._services.settings.limits.name)
        check_texts_if_given(by=by)
        session = await self._session(session_id)
        found = await self._services.views.grants([session.id])
        granted = next((each for each in found if each.tool == tool and each.is_allowed), None)
        if granted is None:
            return False
        # Whoever granted it may have had a clock that is ahead of ours.
        at = max(self._services.clock.now(), granted.at + 1)
        return await self._services.ledger.control(GrantSet(Grant(session.id, tool, False, at, by)))

    async def usage(self, session_id: str, *, tree: bool = False) -> SpentRecord:
        """Return what a session's tasks have used together, and what of its budget is spent; `tree`: its whole tree.

        Deleted tasks are no part of the usage; of the budget they are. Looks at each task. Raises NotFound.
        """
        check_flags(tree=tree)
        return await usage_of_session(self._services.views, await self._session(session_id), tree=tree)

    async def send(
        self, session_id: str, content: Parts, *, steering: Steering = "inject", sender: str | None = None
    ) -> Said:
        """Say something to a session's agent, durably; return the turn that was told or made.

        See `SessionHandle.send`. Raises NotFound, SessionBusy, SessionClosed, InvalidArguments, TooLarge, and
        IllegalMove where the session has no agent.
        """
        check_steering(steering)
        check_texts(session_id=session_id)
        check_texts_if_given(sender=sender)
        parts = message_parts(content, self._services.settings.limits.message)
        if all(part["type"] == "text" and not str(part["text"]).strip() for part in parts):
            raise InvalidArguments("say something: there is nothing in it")
        body = {"parts": parts, "steering": steering, "sender": sender}
        turn, was_taken = await say(self._services.lifecycle, session_id, body, steering)
        return Said(turn, was_taken and steering in ("after", "interrupt"))

    async def turn(self, session_id: str) -> Task | None:
        """Return the turn that a session's agent takes or took last, None before the first. Raises NotFound."""
        return await last_turn(self._services.lifecycle, await self._session(session_id))

    async def transcript(
        self, session_id: str, *, after: int | None = None, limit: int = 100, newest_first: bool = False
    ) -> builtins.list[TranscriptRecord]:
        """Return what a session's agent has heard, said and done, in order, after the entry of that number.

        With `newest_first` from the end on, and `after` is the number below which to go on. Raises NotFound.
        """
        check_flags(newest_first=newest_first)
        check_page(limit)
        if after is not None:
            check_count("after", after)
        session, views = await self._session(session_id), self._services.views
        if not newest_first:
            rows = await views.transcript(session.id, after=after or 0, limit=limit)
            return [TranscriptRecord.of(session.id, row) for row in rows]
        last = await views.last_entry(session.id)
        upto = last if after is None else min(last, after - 1)
        begin = max(0, upto - limit)
        rows = await views.transcript(session.id, after=begin, limit=upto - begin) if upto > begin else ()
        return [TranscriptRecord.of(session.id, row) for row in reversed(rows)]

    async def files(
        self, session_id: str, prefix: str = "/", *, after: str | None = None, limit: int = 1000
    ) -> builtins.list[FileRecord]:
        """Return a session's files below a prefix, in the order of their paths, after the one of that path."""
        check_texts(session_id=session_id, prefix=prefix)
        check_texts_if_given(after=after)
        views, limit = self._services.views, check_page(limit)
        return [FileRecord.of(info) for info in await views.files(session_id, prefix=prefix, after=after, limit=limit)]

    async def read_file(self, session_id: str, path: str) -> bytes:
        """Return a file's content. Raises NotFound, InvalidPath."""
        check_texts(session_id=session_id)
        clean = clean_path(path, task_id=task_of(path))
        content = await self._services.views.file(session_id, clean)
        if content is None:
            raise NotFound.of("file", clean)
        return content

    async def write_file(self, session_id: str, path: str, content: bytes | str, media_type: str | None = None) -> str:
        """Write a file whole; return its path in normal form. Raises InvalidPath, InvalidArguments, TooLarge."""
        check_texts(session_id=session_id)
        clean = clean_path(path)
        raw, kind = file_content(clean, content, media_type, self._services.settings.limits.file)
        await self._services.ledger.write_file(FileWrite(session_id, clean, raw, kind, self._services.clock.now()))
        return clean

    async def delete_file(self, session_id: str, path: str) -> bool:
        """Delete a file; False if there was none."""
        check_texts(session_id=session_id)
        return await self._services.ledger.delete_file(session_id, clean_path(path))

    async def tree(self, session_id: str) -> builtins.list[TaskRecord]:
        """Return the tasks of a session and those below them, oldest first; of more than 200 some. Raises NotFound."""
        session = await self._session(session_id)
        found = await tasks_below(self._services.views, session.id)
        around = await Around.look(self._services.ledger)
        return [TaskRecord.of(task, heartbeat_at=around.beat(task), around=around) for task in found]

    async def fork(
        self,
        session_id: str,
        *,
        upto: str | None = None,
        iteration: int | None = None,
        title: str | None = None,
        id: str | None = None,
    ) -> SessionHandle:
        """Make a session that goes on from where this one is, on its own: with copies of its transcript and files.

        It has the same agent, labels and budget, of which nothing is spent, and no tasks; it is its own root. Of a turn
        that is being taken it has the iterations that are finished. `upto` is a turn's id: the transcript is taken up
        to the end of that one, and with `iteration` up to the end of that iteration of it. Files are those of now, and
        without those in the folders of tasks. One transaction copies it all. With an `id` that there is already, that
        session is returned. Raises NotFound, InvalidArguments or TooLarge.
        """
        from outrider.runtime.handles import SessionHandle

        check_texts_if_given(upto=upto, title=title)
        if id is not None:
            check_id("session", id)
        if iteration is not None:
            if upto is None:
                raise InvalidArguments("iteration is one of a turn: name that with upto")
            check_count("iteration", iteration)
        if title:
            check_name("title", title, self._services.settings.limits.spec)
        source = await self._session(session_id)
        entries = await self._services.views.last_entry(session_id, task_id=upto, iteration=iteration)
        if upto is not None and not entries:
            raise InvalidArguments(f"the transcript of {session_id} has nothing of {upto!r} so far")
        new = NewSession(
            id=id or new_id("session"),
            created_at=self._services.clock.now(),
            organization_id=source.organization_id,
            agent=source.agent,
            title=source.title if title is None else title,
            labels=source.labels,
            budget=source.budget,
        )
        made = await self._services.ledger.create_session(new, Seed(session_id, entries, files=True))
        return SessionHandle(self._services, made)

    async def update(
        self, session_id: str, *, title: str | None = None, labels: Mapping[str, str | None] | None = None
    ) -> SessionRecord:
        """Give a session another title or other labels; what is not named stays.

        An empty title takes it away, and so does None for a label. Raises NotFound, InvalidArguments or TooLarge.
        """
        limits = self._services.settings.limits
        check_texts(session_id=session_id)
        check_texts_if_given(title=title)
        if title:
            check_name("title", title, limits.spec)
        if labels is not None:
            check_mappings(labels=labels)
            labels = {name: None if value is None else str(value) for name, value in labels.items()}
        session = await self._session(session_id)
        order = Described(session_id, self._services.clock.now(), title, labels or {})
        after = {"agent": session.agent, "title": session.title, "labels": session.labels}
        after.update(order.changes(session.title, session.labels))
        check_size("the description of the session (agent, title, labels)", tuple(after.values()), limits.spec)
        await self._services.ledger.control(order)
        return await self.record(session_id)

    async def close(self, session_id: str, *, tasks: Remaining = "finish") -> SessionRecord:
        """Have a session take nothing any more: what is sent, spawned or imported there is refused with SessionClosed.

        Its live `tasks` go on to their end (`finish`), and may still spawn, be answered and be told something; their
        news stay in its inbox and make no turn. With `cancel` they are canceled, the turn that is taken too; with
        `refuse` NotEnded is raised while there are any, and nothing is changed. Detached ones go on in any case. All
        that is in it stays. Closing it again changes nothing, but does cancel. Raises NotFound.
        """
        if tasks not in get_args(Remaining):
            raise InvalidArguments(f"tasks is one of {', '.join(get_args(Remaining))}, not {tasks!r:.100}")
        check_texts(session_id=session_id)
        now = self._services.clock.now()
        await self._services.ledger.control(Closed(session_id, now, when_idle=tasks == "refuse"))
        if tasks == "cancel":
            live = await self._live_of(session_id)
            await self._request_cancel(
                [task for task in live if not task.input.detached], "its session was closed", include_detached=False
            )
        return await self.record(session_id)

    async def reopen(self, session_id: str) -> SessionRecord:
        """Open a closed session again: its agent hears at once what came into its inbox meanwhile. Raises NotFound."""
        check_texts(session_id=session_id)
        await self._services.ledger.control(Reopened(session_id, self._services.clock.now()))
        return await self.record(session_id)

    async def record(self, session_id: str) -> SessionRecord:
        """Return the record of a session as it stands. Raises NotFound."""
        session = await self._session(session_id)
        return SessionRecord.of(session, await last_turn(self._services.lifecycle, session))

    async def delete(self, session_id: str, *, cancel: bool = False) -> int:
        """Delete a session with its tasks, files, transcript, inbox and log, and the sessions that its tasks opened.

        Peers that they opened stay. Returns how many tasks went. While any of them lives it is refused with NotEnded
        and nothing is deleted; with `cancel` they are canceled first, detached ones too, and waited for as long as
        their grace. What webhooks told of it goes too, before this returns but for what is just being told. Raises
        NotFound.
        """
        check_flags(cancel=cancel)
        session = await self._session(session_id)
        gone = sum([count async for count in self._delete(session, cancel=cancel)])
        if gone:
            await erase(self._services.whole, session.organization_id)
        return gone

    async def _delete(self, session: Session, *, cancel: bool) -> AsyncIterator[int]:
        canceled: set[str] = set()
        for _ in range(ROUNDS if cancel else 0):
            # The end of what is canceled may wake the agent, which then takes a turn: that is canceled, too.
            live = await live_in(self._services, session)
            if canceled.issuperset(task.id for task in live):
                break
            canceled.update(task.id for task in live)
            await self._cancel(live)
            with suppress(NotEnded):
                async for count in delete_session(self._services, session):
                    yield count
                return
        async for count in delete_session(self._services, session):
            yield count

    async def export(self, session_id: str, *, tree: bool = True) -> AsyncIterator[JSONObject]:
        """Yield all that is in a session as JSON objects, each with a `record` that says what it is of.

        With the sessions that its tasks opened, and so on down, unless `tree` is False. The last one is of the `end`
        and has their `counts`: without it something is missing. What goes on meanwhile is exported as it was when its
        turn came; close the session first, and wait for its tasks, for one that stands still. Raises NotFound.
        """
        check_flags(tree=tree)
        session = await self._session(session_id)
        async for record in export_session(self._services, session, tree=tree):
            yield record

    async def events(self, session_id: str, *, after: int = 0) -> AsyncIterator[EventRecord]:
        """Yield a session's events, each once, after that number, for ever. Raises NotFound, also once deleted."""
        check_count("after", after)
        life = life_of(await self._session(session_id))
        async for event in EventReader(self._services, session_id, after=after).follow(life):
            yield event

    async def snapshot(self, session_id: str) -> SessionSnapshot:
        """Return a session with its live tasks, and the number of the event after which all is new. Raises NotFound."""
        check_texts(session_id=session_id)
        return await snapshot_of_session(self._services, session_id)

    async def _cancel(self, live: Sequence[Task]) -> None:
        """Cancel tasks, and wait until all have ended or the longest grace is over."""
        from outrider.runtime.tasks import Tasks

        await self._request_cancel(live, "its session is being deleted", include_detached=True)
        if live:
            grace = timedelta(microseconds=max(task.input.cancel_grace for task in live))
            with suppress(NotFound, WaitTimeout):  # whoever deletes says which still live
                await Tasks(self._services).wait([task.id for task in live], timeout=grace + _LEEWAY)

    async def _request_cancel(self, live: Sequence[Task], reason: str, *, include_detached: bool) -> None:
        from outrider.runtime.tasks import Tasks

        for task in live:
            with suppress(NotFound):  # deleted meanwhile
                await Tasks(self._services).cancel(task.id, reason=reason, include_detached=include_detached)

    async def _live_of(self, session_id: str) -> builtins.list[Task]:
        page = TaskFilter(session_id=session_id, states=tuple(LIVE_STATES), limit=_PAGE)
        found: builtins.list[Task] = []
        while tasks := await self._services.views.list_tasks(page):
            found += tasks
            page = evolve(page, after=tasks[-1].id)
        return found

    async def _session(self, session_id: str) -> Session:
        check_texts(session_id=session_id)
        session = await self._services.views.session(session_id)
        if session is None:
            raise NotFound.of("session", session_id)
        return session
