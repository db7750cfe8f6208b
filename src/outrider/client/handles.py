"""A session or a task of a server in hand: the handles of the runtime, over the nouns of the client.

Every verb is the runtime's own; only what they are verbs of is another.
"""

from __future__ import annotations

from typing import Any, cast

from outrider.client.connection import Connection
from outrider.client.inbox import SessionInbox
from outrider.client.tasks import Tasks
from outrider.runtime import handles
from outrider.runtime.codec import PLAIN, Shape
from outrider.runtime.options import Length
from outrider.runtime.records import SessionRecord, TaskRecord


class TaskHandle(handles.TaskHandle):
    """One task of a server. Its result is plain JSON: what type its tool declares is not known here."""

    __slots__ = ("_connection", "_name")

    def __init__(self, connection: Connection, task: TaskRecord, *, is_before: bool = False) -> None:
        self._connection = connection
        self._is_before = is_before
        self._name = task.display_name
        self._tasks = cast("Any", Tasks(connection))  # of the same verbs, which a test compares
        self.id = task.id
        self.session_id = task.session_id

    def __repr__(self) -> str:
        return f"<TaskHandle {self.id} {self._name}>"

    def _handle(self, task: Any) -> TaskHandle:
        return TaskHandle(self._connection, task)

    async def _turn_after(self, timeout: Length | None) -> Any:
        from outrider.client.sessions import turn_after

        return await turn_after(self._connection, self, timeout)

    def _shape(self) -> Shape:
        return PLAIN


class SessionHandle(handles.SessionHandle):
    """One session of a server."""

    def __init__(self, connection: Connection, session: SessionRecord) -> None:
        from outrider.client.sessions import Sessions

        self._connection = connection
        self._sessions = cast("Any", Sessions(connection))  # of the same verbs, which a test compares
        self._tasks = cast("Any", Tasks(connection))  # likewise
        self._session = cast("Any", session)
        self.id = session.id
        self.inbox = cast("Any", SessionInbox(connection, session.id))  # likewise
        """What the session has yet to be told, and how an outside agent receives it."""

    def _handle(self, task: Any, is_before: bool = False) -> TaskHandle:
        return TaskHandle(self._connection, task, is_before=is_before)
