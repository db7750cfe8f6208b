"""The queue of a server: the verbs of `outrider.runtime.queue`."""

from __future__ import annotations

from typing import Any

from outrider.client.connection import Connection, segment
from outrider.core.errors import InvalidArguments
from outrider.runtime.clock import span
from outrider.runtime.options import Length, check_flags, check_priority, check_texts, check_texts_if_given
from outrider.runtime.records import KeyRecord, LimitRecord, PauseRecord, TaskRecord


class Queue:
    """Who may start, and in which order."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def limit(
        self,
        key: str,
        *,
        concurrency: int | None = None,
        rate: int | None = None,
        per: Length = 1.0,
        organization_id: str | None = None,
    ) -> LimitRecord:
        """Limit the tasks of a concurrency key: so many at once, so many starts in any `per`; None for no bound."""
        check_texts(key=key)
        check_texts_if_given(organization_id=organization_id)
        body = {"key": key, "concurrency": concurrency, "rate": rate, "per": span(per) / 1e6}
        if organization_id is not None:
            body["organization_id"] = organization_id
        return (await self._connection.ask("PUT", "/v1/queue/limits", body=body)).record(LimitRecord)

    async def unlimit(self, key: str, *, organization_id: str | None = None) -> bool:
        """Remove the limit of a key; False if there was none. Without any limit a key admits one task at a time."""
        check_texts_if_given(organization_id=organization_id)
        return await self._changed("DELETE", "limits", params={"key": key, "organization_id": organization_id})

    async def limits(self) -> list[LimitRecord]:
        """Return all limits, in the order of their keys, those for all before those of organizations."""
        return (await self._connection.ask("GET", "/v1/queue/limits")).page(LimitRecord)

    async def keys(self) -> list[KeyRecord]:
        """Return the concurrency keys under which anything runs or waits, in their order."""
        return (await self._connection.ask("GET", "/v1/queue/keys")).page(KeyRecord)

    async def pause(
        self,
        *,
        session: str | None = None,
        kind: str | None = None,
        everything: bool = False,
        by: str | None = None,
        reason: str | None = None,
    ) -> bool:
        """Start no more tasks of a session, of a kind, or any at all; what runs goes on. False if it was so already."""
        check_texts_if_given(by=by, reason=reason)
        body = {**_scope(session, kind, everything), "by": by, "reason": reason}
        return await self._changed("PUT", "pauses", body=body)

    async def resume(self, *, session: str | None = None, kind: str | None = None, everything: bool = False) -> bool:
        """End that pause, and no other; False if there was none."""
        return await self._changed("DELETE", "pauses", params=_scope(session, kind, everything))

    async def pauses(self) -> list[PauseRecord]:
        """Return what is paused."""
        return (await self._connection.ask("GET", "/v1/queue/pauses")).page(PauseRecord)

    async def reprioritize(self, task_id: str, priority: int) -> TaskRecord:
        """Give a task another priority; it keeps the time that it has waited. Raises NotFound or TaskFinished."""
        check_priority(priority)
        path = f"/v1/tasks/{segment('task', task_id)}/priority"
        return (await self._connection.ask("PUT", path, body={"priority": priority})).record(TaskRecord)

    async def _changed(self, method: str, what: str, **given: Any) -> bool:
        answer = await self._connection.ask(method, f"/v1/queue/{what}", again=True, **given)
        return answer.changed()


def _scope(session: str | None, kind: str | None, everything: bool) -> dict[str, Any]:
    check_texts_if_given(session=session, kind=kind)
    check_flags(everything=everything)
    if (session is not None) + (kind is not None) + everything != 1:
        raise InvalidArguments("name one of session, kind and everything")
    return {"session": session, "kind": kind, "everything": everything}
