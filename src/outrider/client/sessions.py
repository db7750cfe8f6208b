"""The sessions of a server: the verbs of `outrider.runtime.sessions.Sessions`."""

from __future__ import annotations

import asyncio
import builtins
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import NamedTuple, get_args
from urllib.parse import quote

from outrider.client.connection import Connection, Told, segment
from outrider.client.handles import SessionHandle, TaskHandle
from outrider.client.inbox import Inbox
from outrider.client.tasks import NO_LIMIT, Tasks
from outrider.core.errors import InvalidArguments, NotFound, WaitTimeout
from outrider.core.ledger import TaskFilter
from outrider.core.task import TURN
from outrider.core.values import JSONObject
from outrider.runtime.context import Parts, message_parts
from outrider.runtime.files import clean_path, file_content, task_of
from outrider.runtime.ids import check_id, new_id
from outrider.runtime.options import (
    Length,
    check_budget,
    check_count,
    check_flags,
    check_mappings,
    check_texts,
    check_texts_if_given,
    not_negative,
)
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
from outrider.runtime.sessions import Remaining
from outrider.runtime.turns import Steering, check_steering

LOOK = 0.1
"""Seconds between two looks for a turn that is about to be made."""


class Said(NamedTuple):
    """The turn that was told something, or made for it; `is_before` the one that hears it, which follows it then."""

    turn: TaskRecord
    is_before: bool


class Sessions:
    """All sessions of one organization, or those that the key may see."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(
        self,
        *,
        agent: str | None = None,
        title: str | None = None,
        labels: Mapping[str, str] | None = None,
        id: str | None = None,
        budget: Mapping[str, float] | None = None,
        tree_budget: Mapping[str, float] | None = None,
    ) -> SessionHandle:
        """Create a session, or get the one of that id. Raises InvalidArguments or TooLarge.

        It gets its id here, so that it is made once however often it has to be asked for.
        """
        check_texts_if_given(agent=agent, title=title)
        if labels is not None:
            check_mappings(labels=labels)
        check_budget("budget", budget)
        check_budget("tree_budget", tree_budget)
        body = {
            "id": new_id("session") if id is None else check_id("session", id),
            "agent": agent,
            "title": title,
            "labels": None if labels is None else {name: str(value) for name, value in labels.items()},
            "budget": budget,
            "tree_budget": tree_budget,
        }
        answer = await self._connection.ask("POST", "/v1/sessions", body=body, again=True)
        return SessionHandle(self._connection, answer.record(SessionRecord))

    async def get(self, session_id: str) -> SessionHandle:
        """Return a session. Raises NotFound."""
        return SessionHandle(self._connection, await self.record(session_id))

    async def list(self, *, after: str | None = None, limit: int = 100) -> list[SessionRecord]:
        """Return sessions, newest first, after the one of that id."""
        return await self._connection.listed("/v1/sessions", SessionRecord, after=after, limit=limit)

    async def grants(self, session_id: str) -> builtins.list[GrantRecord]:
        """Return the tools that need no more approval in a session, for somebody said `always`. Raises NotFound."""
        return (await self._connection.ask("GET", f"{_path(session_id)}/grants")).page(GrantRecord)

    async def revoke(self, session_id: str, tool: str, *, by: str | None = None) -> bool:
        """Have a tool of a session need an approval again; False if it did already. Raises NotFound."""
        check_texts(tool=tool)
        check_texts_if_given(by=by)
        body = {"tool": tool, "by": by}
        answer = await self._connection.ask("POST", f"{_path(session_id)}/grants/revoke", body=body, again=True)
        return answer.changed()

    async def usage(self, session_id: str, *, tree: bool = False) -> SpentRecord:
        """Return what a session's tasks have used together, and what of its budget is spent; `tree`: its whole tree."""
        check_flags(tree=tree)
        answer = await self._connection.ask("GET", f"{_path(session_id)}/usage", params={"tree": tree})
        return answer.record(SpentRecord)

    async def send(
        self, session_id: str, content: Parts, *, steering: Steering = "inject", sender: str | None = None
    ) -> Said:
        """Say something to a session's agent, durably; return the turn that was told or made.

        It is said once: where it is in doubt whether it arrived, ServerUnreachable says so and it is not said again.
        """
        check_steering(steering)
        check_texts_if_given(sender=sender)
        body = {"content": message_parts(content, NO_LIMIT), "steering": steering, "sender": sender}
        before = await self.turn(session_id) if steering in ("after", "interrupt") else None
        answer = await self._connection.ask("POST", f"{_path(session_id)}/send", body=body)
        turn = answer.record(TaskRecord)
        return Said(turn, before is not None and before.id == turn.id)

    async def turn(self, session_id: str) -> TaskRecord | None:
        """Return the turn that a session's agent takes or took last, None before the first. Raises NotFound."""
        answer = await self._connection.ask("GET", f"{_path(session_id)}/turn")
        return None if answer.plain() is None else answer.record(TaskRecord)

    async def transcript(
        self, session_id: str, *, after: int | None = None, limit: int = 100, newest_first: bool = False
    ) -> builtins.list[TranscriptRecord]:
        """Return what a session's agent has heard, said and done, in order, after the entry of that number.

        With `newest_first` from the end on, and `after` is the number below which to go on. Raises NotFound.
        """
        check_flags(newest_first=newest_first)
        if after is not None:
            check_count("after", after)
        cursor = None if after is None else str(after)
        path, params = f"{_path(session_id)}/transcript", {"newest_first": newest_first}
        return await self._connection.listed(path, TranscriptRecord, params, after=cursor, limit=limit)

    async def files(
        self, session_id: str, prefix: str = "/", *, after: str | None = None, limit: int = 1000
    ) -> builtins.list[FileRecord]:
        """Return a session's files below a prefix, in the order of their paths, after the one of that path."""
        check_texts(prefix=prefix)
        path, params = f"{_path(session_id)}/files", {"prefix": prefix}
        return await self._connection.listed(path, FileRecord, params, after=after, limit=limit)

    async def read_file(self, session_id: str, path: str) -> bytes:
        """Return a file's content. Raises NotFound, InvalidPath."""
        clean = clean_path(path, task_id=task_of(path))
        return (await self._connection.ask("GET", _file(session_id, clean))).content

    async def write_file(self, session_id: str, path: str, content: bytes | str, media_type: str | None = None) -> str:
        """Write a file whole; return its path in normal form. Raises InvalidPath, InvalidArguments, TooLarge."""
        clean = clean_path(path)
        raw, kind = file_content(clean, content, media_type, NO_LIMIT)
        if not kind.isascii():
            raise InvalidArguments(f"over HTTP media_type is ASCII, not {kind!r:.100}")
        await self._connection.ask("PUT", _file(session_id, clean), content=raw, headers={"Content-Type": kind})
        return clean

    async def delete_file(self, session_id: str, path: str) -> bool:
        """Delete a file; False if there was none."""
        return (await self._connection.ask("DELETE", _file(session_id, clean_path(path)))).changed()

    async def tree(self, session_id: str) -> builtins.list[TaskRecord]:
        """Return the tasks of a session and those below them, oldest first; of more than 200 some. Raises NotFound."""
        return (await self._connection.ask("GET", f"{_path(session_id)}/tree")).page(TaskRecord)

    async def fork(
        self,
        session_id: str,
        *,
        upto: str | None = None,
        iteration: int | None = None,
        title: str | None = None,
        id: str | None = None,
    ) -> SessionHandle:
        """Make a session that goes on from where this one is, on its own: with copies of its transcript and files."""
        check_texts_if_given(upto=upto, title=title)
        if iteration is not None:
            check_count("iteration", iteration)
        new = new_id("session") if id is None else check_id("session", id)
        body = {"upto": upto, "iteration": iteration, "title": title, "id": new}
        answer = await self._connection.ask("POST", f"{_path(session_id)}/fork", body=body, again=True)
        return SessionHandle(self._connection, answer.record(SessionRecord))

    async def update(
        self, session_id: str, *, title: str | None = None, labels: Mapping[str, str | None] | None = None
    ) -> SessionRecord:
        """Give a session another title or other labels; what is not named stays. An empty title takes it away."""
        check_texts_if_given(title=title)
        if labels is not None:
            check_mappings(labels=labels)
            labels = {name: None if value is None else str(value) for name, value in labels.items()}
        body = {"title": title, "labels": labels}
        answer = await self._connection.ask("PATCH", _path(session_id), body=body, again=True)
        return answer.record(SessionRecord)

    async def close(self, session_id: str, *, tasks: Remaining = "finish") -> SessionRecord:
        """Have a session take nothing any more; its live `tasks` go on, are canceled, or have it refused."""
        if tasks not in get_args(Remaining):
            raise InvalidArguments(f"tasks is one of {', '.join(get_args(Remaining))}, not {tasks!r:.100}")
        body = {"tasks": tasks}
        answer = await self._connection.ask("POST", f"{_path(session_id)}/close", body=body, again=True)
        return answer.record(SessionRecord)

    async def reopen(self, session_id: str) -> SessionRecord:
        """Open a closed session again: its agent hears at once what came into its inbox meanwhile. Raises NotFound."""
        return (await self._connection.ask("POST", f"{_path(session_id)}/reopen", again=True)).record(SessionRecord)

    async def record(self, session_id: str) -> SessionRecord:
        """Return the record of a session as it stands. Raises NotFound."""
        return (await self._connection.ask("GET", _path(session_id))).record(SessionRecord)

    async def delete(self, session_id: str, *, cancel: bool = False) -> int:
        """Delete a session with all in it, and the sessions that its tasks opened; return how many tasks went.

        What is canceled is waited for by the server, for a minute at most: NotEnded says what lives by then.
        """
        check_flags(cancel=cancel)
        waits = self._connection.settings.patience if cancel else 0.0  # as long as what is canceled takes to stop
        answer = await self._connection.ask("DELETE", _path(session_id), params={"cancel": cancel}, waits=waits)
        return int(answer.plain()["tasks"])

    async def events(self, session_id: str, *, after: int = 0) -> AsyncIterator[EventRecord]:
        """Yield a session's events, each once, after that number, for ever. Raises NotFound, also once deleted."""
        check_count("after", after)
        async for told in self._connection.follow(f"{_path(session_id)}/events", after):
            if not isinstance(told, Told):
                raise NotFound.of("session", session_id)
            yield told.record(EventRecord)

    async def export(self, session_id: str, *, tree: bool = True) -> AsyncIterator[JSONObject]:
        """Yield all that is in a session as JSON objects; the last one is of the `end`, without which it raises."""
        check_flags(tree=tree)
        async for record in self._connection.lines(f"{_path(session_id)}/export", {"tree": tree}):
            yield record

    async def snapshot(self, session_id: str) -> SessionSnapshot:
        """Return a session with its live tasks, and the number of the event after which all is new. Raises NotFound."""
        return await self._connection.snapshot(f"{_path(session_id)}/events", SessionSnapshot)


async def turn_after(connection: Connection, turn: TaskHandle, timeout: Length | None) -> TaskRecord | None:
    """Wait for the turn after one, which hears what that leaves; None once that is over and leaves nothing, or the
    session is closed. Raises NotFound once it is deleted, and WaitTimeout.
    """
    sessions, tasks, inbox = Sessions(connection), Tasks(connection), Inbox(connection)
    until = None if timeout is None else time.monotonic() + not_negative("timeout", timeout) / 1e6
    following = TaskFilter(session_id=turn.session_id, kind=TURN, after=turn.id, limit=1, newest_first=False)
    while True:
        own, left = await tasks.record(turn.id), await inbox.list(turn.session_id, limit=1)
        session = await sessions.record(turn.session_id)  # the last of the three: what was left has made no turn yet
        if session.turn_id != turn.id and (found := await tasks.list(following)):
            return found[0]
        if own.is_terminal and (session.turn_id != turn.id or not left or session.closed_at is not None):
            return None
        rest = None if until is None else until - time.monotonic()
        if rest is not None and rest <= 0:
            raise WaitTimeout(f"the turn after {turn.id} has not begun")
        if own.is_terminal:
            await asyncio.sleep(LOOK if rest is None else min(LOOK, rest))
            continue
        with suppress(WaitTimeout):
            await tasks.wait([turn.id], timeout=rest)


def _path(session_id: str) -> str:
    return f"/v1/sessions/{segment('session', session_id)}"


def _file(session_id: str, clean: str) -> str:
    return f"{_path(session_id)}/files/{quote(clean.lstrip('/'), safe='/')}"
