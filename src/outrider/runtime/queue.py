"""The queue of a runtime: limits behind concurrency keys, pauses, and places.

What is set here is in the database, so it holds for every worker of it at once, and outlives them all. It never stops
what runs: a lowered limit or a pause only keeps the next from starting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider.core.errors import InvalidArguments, NotFound
from outrider.core.events import Reprioritized
from outrider.core.ledger import LimitRemoved, LimitSet, Paused, Resumed
from outrider.core.queue import Limit, Pause, Scope
from outrider.core.task import DEFAULT_ORGANIZATION, Task, key_within
from outrider.runtime.clock import span
from outrider.runtime.ids import check_id
from outrider.runtime.options import Length, check_flags, check_key, check_name, check_priority, check_texts, is_whole
from outrider.runtime.records import KeyRecord, LimitRecord, PauseRecord
from outrider.runtime.services import Services

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST = 1_000_000_000


class Queue:
    """Who may start, and in which order."""

    def __init__(self, services: Services) -> None:
        self._services = services

    # --- limits --------------------------------------------------------------------------------------

    async def limit(
        self,
        key: str,
        *,
        concurrency: int | None = None,
        rate: int | None = None,
        per: Length = 1.0,
        organization_id: str | None = None,
    ) -> LimitRecord:
        """Limit the tasks of a concurrency key: so many at once, so many starts in any `per`; None for no bound.

        A key that ends in `*` means each that begins like it, each counted for itself; the longest counts. Without
        an organization it holds for the key that all have in common, and for that of each organization which has no
        limit of its own, each counted for itself. Each attempt is a start: a task that parked starts again. Replaces
        the limit of that key, at once and for all workers. Raises InvalidArguments, and Forbidden but for operators.
        """
        name = self._name(key, organization_id)
        length = span(per)
        if concurrency is not None and not (is_whole(concurrency) and 0 <= concurrency <= MOST):
            raise InvalidArguments("concurrency is a whole number from 0, which lets nothing start")
        if rate is not None and not (is_whole(rate) and 1 <= rate <= MOST):
            raise InvalidArguments("rate is a whole number from 1: how many may start in any `per`")
        if rate is not None and length < 1000:
            raise InvalidArguments("per is a length of time of a millisecond or more")
        limit = Limit(name, concurrency, rate, length)
        await self._services.operating("the limits").ledger.control(LimitSet(limit))
        return LimitRecord.of(limit)

    async def unlimit(self, key: str, *, organization_id: str | None = None) -> bool:
        """Remove the limit of a key; False if there was none. Without any limit a key admits one task at a time.

        That of an organization leaves the one for all. Raises InvalidArguments, and Forbidden but for operators.
        """
        name = self._name(key, organization_id)
        return await self._services.operating("the limits").ledger.control(LimitRemoved(name))

    async def limits(self) -> list[LimitRecord]:
        """Return all limits, in the order of their keys, those for all before those of organizations."""
        gates = await self._services.operating("the limits").views.gates()
        return [LimitRecord.of(limit) for _, limit in sorted(gates.limits.items())]

    async def keys(self) -> list[KeyRecord]:
        """Return the concurrency keys under which anything runs or waits, in their order."""
        views = self._services.operating("the keys").views
        gates, uses = await views.gates(), await views.uses()
        now = self._services.clock.now()
        return [KeyRecord.of(use, gates.limit(use.key), now) for use in uses]

    # --- pauses --------------------------------------------------------------------------------------

    async def pause(
        self,
        *,
        session: str | None = None,
        kind: str | None = None,
        everything: bool = False,
        by: str | None = None,
        reason: str | None = None,
    ) -> bool:
        """Start no more tasks of a session, of a kind, or any at all; what runs goes on. False if it was so already.

        Until `resume`, for all workers. Raises InvalidArguments unless exactly one of the three is named, NotFound for
        a session that does not exist.
        """
        scope, name = self._scope(session, kind, everything)
        limits = self._services.settings.limits
        for what, text in (("who pauses", by), ("the reason of a pause", reason)):
            if text is not None:
                check_name(what, text, limits.message)
        if session is not None and await self._services.views.session(session) is None:
            raise NotFound.of("session", session)
        pause = Pause(scope, name, self._services.clock.now(), by, reason)
        return await self._reaching(scope).ledger.control(Paused(pause))

    async def resume(self, *, session: str | None = None, kind: str | None = None, everything: bool = False) -> bool:
        """End that pause, and no other; False if there was none."""
        scope, name = self._scope(session, kind, everything)
        return await self._reaching(scope).ledger.control(Resumed(scope, name))

    async def pauses(self) -> list[PauseRecord]:
        """Return what is paused: kinds and everything, and sessions within reach."""
        gates, views = await self._services.views.gates(), self._services.views
        found = [pause for _, pause in sorted(gates.pauses().items())]
        if self._services.bounds is not None:
            found = [each for each in found if each.scope != "session" or await views.session(each.name) is not None]
        return [PauseRecord.of(pause) for pause in found]

    # --- places --------------------------------------------------------------------------------------

    async def reprioritize(self, task_id: str, priority: int) -> Task:
        """Give a task another priority; it keeps the time that it has waited. Raises NotFound or TaskFinished."""
        check_texts(task_id=task_id)
        check_priority(priority)
        return await self._services.lifecycle.move(task_id, Reprioritized(priority))

    def _name(self, key: str, organization_id: str | None) -> str:
        check_key("the key of a limit", key, self._services.settings.limits.name)
        if organization_id is None:
            return key
        check_id("organization", organization_id)
        if organization_id == DEFAULT_ORGANIZATION:
            raise InvalidArguments(f"the keys of {DEFAULT_ORGANIZATION} are common to all; leave the organization out")
        return key_within(key, organization_id)

    def _reaching(self, scope: Scope) -> Services:
        return self._services if scope == "session" else self._services.operating("pauses of kinds and of everything")

    def _scope(self, session: str | None, kind: str | None, everything: bool) -> tuple[Scope, str]:
        check_flags(everything=everything)
        named: Mapping[Scope, str | None] = {"session": session, "kind": kind, "everything": "" if everything else None}
        given = [(scope, name) for scope, name in named.items() if name is not None]
        if len(given) != 1:
            raise InvalidArguments("name one of session, kind and everything")
        ((scope, name),) = given
        if scope == "session":
            check_id("session", name)
        elif scope == "kind":
            check_name("a kind", name, self._services.settings.limits.name)
            if ":" in name:
                raise InvalidArguments(f"{name!r:.100} is no kind")
        return scope, name
