"""The composition root: `Outrider`, the app that names tools and agents, and `open`, which puts a runtime together.

Only this module and `testing` name a concrete store. It imports what it composes when it composes it: who only
looks into a store, as `outrider tasks` does, needs `open_ledger` and nothing that runs tasks.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload
from urllib.parse import unquote

from outrider.core.errors import InvalidArguments, StoreLocked
from outrider.core.ledger import Ledger
from outrider.core.task import Effects, Retry, Timeouts
from outrider.core.values import JSONObject
from outrider.settings import LeaseTimes, WorkerSettings

if TYPE_CHECKING:
    from outrider.runtime.facade import Runtime
    from outrider.runtime.options import Length
    from outrider.runtime.registry import Isolation, Tool
    from outrider.runtime.services import Services
    from outrider.stores.copy import Copied, Place, Progress
    from outrider.stores.sqlite.backup import Restored

F = TypeVar("F", bound=Callable[..., Any])

SILENT = LeaseTimes().lost
"""Seconds after which a worker of another machine, whose beat has not moved since, is dead."""

LOOK = 0.25
"""Seconds between two looks at that."""


class Outrider:
    """An app: the tools and agents that its workers can run, by name.

    Its workers run commands as well, for whoever may submit tasks, unless `processes` is False. `version` is what this
    app calls its own state; its workers show it.
    """

    def __init__(self, settings: WorkerSettings | None = None, *, processes: bool = True, version: str = "") -> None:
        from outrider.kinds.agent_handoff import AgentHandoff
        from outrider.kinds.background_tool import BackgroundTool
        from outrider.kinds.external import External
        from outrider.kinds.session import PeerSession
        from outrider.kinds.subagent import Subagent
        from outrider.kinds.turn import Turn
        from outrider.runtime.options import check_texts
        from outrider.runtime.registry import Registry

        check_texts(version=version)
        self.registry = Registry(version)
        self.settings = settings or WorkerSettings()
        self.registry.executors["background_tool"] = BackgroundTool(self.registry)
        self.registry.executors["subagent"] = Subagent(self.registry)
        self.registry.executors["agent_handoff"] = AgentHandoff(self.registry)
        self.registry.executors["session"] = PeerSession(self.registry)
        self.registry.executors["turn"] = Turn(self.registry)
        if processes:
            from outrider.kinds.process import Process

            self.registry.executors["process"] = Process()
        self.registry.executors["external"] = External()

    @overload
    def tool(self, fn: F, /) -> F: ...
    @overload
    def tool(
        self,
        fn: None = None,
        /,
        *,
        name: str | None = None,
        effects: Effects = "idempotent",
        isolation: Isolation = "none",
        requires_approval: bool = False,
        max_failures: int | None = None,
        backoff: Length | None = None,
        backoff_max: Length | None = None,
        queue_timeout: Length | None = None,
        run_timeout: Length | None = None,
        idle_timeout: Length | None = None,
        total_timeout: Length | None = None,
        concurrency_key: str | None = None,
        needs: str | None = None,
        connections: Sequence[str] = (),
    ) -> Callable[[F], F]: ...

    def tool(
        self,
        fn: F | None = None,
        /,
        *,
        name: str | None = None,
        effects: Effects = "idempotent",
        isolation: Isolation = "none",
        requires_approval: bool = False,
        max_failures: int | None = None,
        backoff: Length | None = None,
        backoff_max: Length | None = None,
        queue_timeout: Length | None = None,
        run_timeout: Length | None = None,
        idle_timeout: Length | None = None,
        total_timeout: Length | None = None,
        concurrency_key: str | None = None,
        needs: str | None = None,
        connections: Sequence[str] = (),
    ) -> F | Callable[[F], F]:
        """Register a function as a tool. A decorator, with options or without.

        Its first parameter may be a `TaskContext`; the others are the tool's arguments, and their annotations
        its schema. `effects="once"` keeps a crash from repeating it, `isolation="process"` gives it a process of
        its own, `requires_approval` makes an agent ask before it calls it. `concurrency_key` names the limit under
        which its tasks run, those of all organizations together; see `Queue.limit`. Only a worker that states the
        label which it `needs` runs them. No task of it is made without its `connections`, by name; see `connection`.
        """
        from outrider.runtime.labels import check_label
        from outrider.runtime.options import check_key, retry_policy, timeouts_of
        from outrider.runtime.registry import Tool

        def register(fn: F) -> F:
            if isolation == "process":
                from outrider.runtime.isolation import importable

                importable(fn)
            if concurrency_key is not None:
                check_key("concurrency_key", concurrency_key, self.settings.limits.name)
            if needs is not None:
                check_label("needs", needs)
            tool = Tool.of(
                fn,
                name,
                effects=effects,
                isolation=isolation,
                requires_approval=requires_approval,
                retry=_given(retry_policy(_NO_RETRY, max_failures, backoff, backoff_max), _NO_RETRY),
                timeouts=_given(
                    timeouts_of(_NO_TIMEOUTS, queue_timeout, run_timeout, idle_timeout, total_timeout), _NO_TIMEOUTS
                ),
                concurrency_key=concurrency_key,
                needs=needs,
                connections=_names("connections", connections),
            )
            if ":" in tool.name:
                raise InvalidArguments(
                    f"the name of a tool has no colon, as {tool.name!r} has: it would be taken for a tool of an agent"
                )
            self._keep(tool)
            return fn

        return register if fn is None else register(fn)

    def _keep(self, tool: Tool) -> None:
        if self.registry.tools.setdefault(tool.name, tool) is not tool:
            raise InvalidArguments(f"there is a tool named {tool.name!r} already")

    def resource(self, name: str) -> Callable[[F], F]:
        """Register what releases a resource of that name: a function of `resource_id`; a decorator.

        It is called when a task that held one (`TaskContext.hold`) has ended, at least once for each id, and again
        while it fails: it should do no harm when the resource is free already.
        """
        import inspect

        from outrider.runtime.registry import Tool, release_tool

        def register(fn: F) -> F:
            if "resource_id" not in inspect.signature(fn).parameters:
                raise InvalidArguments(f"{fn.__qualname__}: what releases a resource has a parameter resource_id")
            self._keep(Tool.of(fn, release_tool(name)))
            return fn

        return register

    def connection(self, name: str) -> Callable[[F], F]:
        """Register what says whether a connection is there: a function of the `Session`, its organization in it.

        A decorator. It may be a coroutine function; a plain one is called in a thread. Anything but True means that the
        connection is missing: what needs it is refused with `connection_required`, and a task that begins without it
        asks for it (kind `auth`).
        """

        def register(fn: F) -> F:
            _names("connections", [name])
            if self.registry.connections.setdefault(name, fn) is not fn:
                raise InvalidArguments(f"there is a connection named {name!r} already")
            return fn

        return register

    def model(
        self,
        name: str,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        input_price: float | None = None,
        output_price: float | None = None,
    ) -> None:
        """State the terms of a model, by the name that tasks give it.

        Agents of all processes that state them wait rather than ask it more often than its rate allows. The prices are
        dollars for a million tokens; without them those that the engine knows count. Raises InvalidArguments.
        """
        from outrider.runtime.options import check_model_terms
        from outrider.runtime.registry import ModelTerms

        terms = ModelTerms(name, requests_per_minute, tokens_per_minute, input_price, output_price)
        check_model_terms(terms, self.settings.limits)
        if name in self.registry.models:
            raise InvalidArguments(f"the terms of the model {name!r} were stated already")
        self.registry.models[name] = terms

    def agent(
        self,
        name: str,
        agent: object | None = None,
        *,
        engine: str | None = None,
        deps: object | None = None,
        model: str | JSONObject | Sequence[str | JSONObject] | None = None,
        model_settings: JSONObject | None = None,
        system_prompt: str | None = None,
        tools: Sequence[str] = (),
        max_iterations: int | None = None,
        require_approval: bool | Sequence[str] = False,
        delegates: bool = False,
        connections: Sequence[str] = (),
    ) -> None:
        """Register an agent under a name: one of an engine's own, as it is, or what a plain one is made of.

        `agent` may be an `async def` that takes an `AgentContext`. `tools` are names of registered tools;
        `require_approval` names those it must ask for, True for all; `engine` None means the one that the agent is
        made for, and the default one without an agent. One that `delegates` is given the tools by which it starts other
        agents, tools and commands in the background, and looks after them. `model` may be a list: where one fails, the
        next is asked. `connections`, and those of its tools, have to be there before it starts; see `connection`.
        Raises InvalidArguments for what no engine runs, and UnknownName for an engine that there is not.
        """
        from outrider.agents.engine import engine_for
        from outrider.agents.registered import RegisteredAgent

        if isinstance(tools, str):
            raise InvalidArguments("tools is a list of names of registered tools")
        if not isinstance(require_approval, bool | list | tuple):
            raise InvalidArguments("require_approval is True, or a list of names of tools")
        if not isinstance(delegates, bool):
            raise InvalidArguments(f"delegates is True or False, not {delegates!r:.100}")
        chosen = engine_for(agent, engine)
        if deps is not None and agent is None:
            raise InvalidArguments("deps are for an agent that is passed; one that is made here would not use them")
        if name in self.registry.agents:
            raise InvalidArguments(f"there is an agent named {name!r} already")
        self.registry.agents[name] = RegisteredAgent(
            name,
            chosen,
            agent,
            deps,
            model,
            model_settings or {},
            system_prompt,
            tools,
            max_iterations,
            require_approval,
            delegates,
            _names("connections", connections),
        )

    @asynccontextmanager
    async def open(
        self,
        url: str = "sqlite:///.outrider/outrider.db",
        *,
        worker: bool = True,
        concurrency: int | None = None,
        serves: Sequence[str] = (),
    ) -> AsyncIterator[Runtime]:
        """Open a store, with a worker inside unless `worker=False`.

        `url` is `sqlite:///relative.db`, `sqlite:////absolute.db`, a plain path, `postgresql://user@host/database`, or
        `memory://`. The worker serves only what matches one of `serves`, as `outrider worker --serves` has it; all that
        the app can, of what needs no label, when there is none. On the way out the worker drains: steps in flight
        finish, the rest is handed over. Raises InvalidArguments for any other form of URL, options after the path too
        (but for those of PostgreSQL), and for what it cannot serve, and a StoreError if the store cannot be opened.
        """
        from outrider.runtime import isolated

        if isolated.is_importing:
            raise InvalidArguments(
                "the process of an isolated tool imports this program, and must not run it: put what opens the "
                "database under `if __name__ == '__main__':`"
            )
        from outrider.runtime.clock import SystemClock
        from outrider.runtime.ending import see_through
        from outrider.runtime.facade import Runtime
        from outrider.runtime.lease import locks_of
        from outrider.runtime.options import check_ids
        from outrider.runtime.services import Services
        from outrider.runtime.worker import keep_working

        check_ids(serves=serves)
        if serves:
            self.registry.serve(serves)
        settings = self.settings if concurrency is None else replace(self.settings, concurrency=concurrency)
        ledger = await open_ledger(url)
        services = Services.over(ledger, SystemClock(ledger), self.registry, settings)
        job: asyncio.Task[None] | None = None
        try:
            if worker:
                job = asyncio.create_task(keep_working(services, locks=locks_of(ledger)), name="outrider-worker")
            yield Runtime(services, job)
        finally:
            await see_through(_close(services, ledger, job))


def _names(what: str, given: Any) -> tuple[str, ...]:
    if isinstance(given, str) or not all(isinstance(name, str) and name for name in given):
        raise InvalidArguments(f"{what} is a list of names, not {given!r:.100}")
    return tuple(given)


async def _close(services: Services, ledger: Ledger, worker: asyncio.Task[None] | None) -> None:
    if worker is not None:
        worker.cancel()
        await asyncio.wait([worker])
        if not worker.cancelled():
            worker.exception()  # it was logged, and the loop need not complain of it
    services.signals.close()
    await ledger.close()


async def open_ledger(url: str) -> Ledger:
    """Open the store that a URL names. Raises InvalidArguments for a URL that names none, or a StoreError."""
    scheme, path = _split(url)
    if scheme == "memory":
        from outrider.stores.memory import MemoryLedger

        return MemoryLedger()
    if scheme == "postgresql":
        try:
            from outrider.stores.postgres import PostgresLedger
        except ImportError as error:
            raise _no_driver(error) from error
        return await PostgresLedger.open(path)
    from outrider.stores.sqlite import SqliteLedger

    return await SqliteLedger.open(path)


def _no_driver(error: ImportError) -> InvalidArguments:
    return InvalidArguments(f"PostgreSQL needs the extra `postgres`: pip install 'outrider[postgres]' ({error})")


async def restore(source: str | Path, url: str) -> Restored:
    """Put a copy of a backup in the place of the database that a URL names, which is kept under a dated name.

    Its next worker goes on with what was held when the backup was made. Raises StoreLocked while a worker or anybody
    else uses the database, and what `outrider.stores.sqlite.backup.restore` raises for a backup that will not do.
    """
    from outrider.stores.sqlite import backup

    database = path_of(url)
    locks = locks_beside(database)

    def check_unused() -> None:
        from outrider.runtime.lease import is_locked

        alive = ", ".join(sorted(lock.stem for lock in locks.glob("*.lock") if is_locked(lock)))
        if alive:
            raise StoreLocked(f"workers use the database {database}; stop them first: {alive}")

    return await asyncio.to_thread(backup.restore, Path(source), database, check_unused)


async def copy(source: str, target: str, *, tell: Callable[[Progress], None] = lambda _: None) -> Copied:
    """Copy all that the database of one URL holds into that of another, which is empty; either may be of any kind.

    It is there whole, compared with what was read and durable when this returns, or not at all; the source stays as it
    is. Workers are not copied: what they held is taken up by the next one at the target, as after a crash. `tell` may
    be called from a thread. Raises NotFound without a source, AlreadyExists for a target that has anything in it,
    StoreLocked while a worker lives on either, InvalidArguments for the same database twice or one in memory,
    CopyDiffers or another StoreError.
    """
    from outrider.runtime.ending import see_through

    here, there = _place(source), _place(target)
    await asyncio.to_thread(here.check_present)
    locks, beats = await _beats_of_dead(source, here.name, tell)
    locks_there, beats_there = await _beats_of_dead(target, there.name, tell)
    if locks == locks_there:
        raise InvalidArguments("source and target are the same database, or one is a copy that its server made")
    is_over = threading.Event()

    def tell_and_heed(progress: Progress) -> None:
        if is_over.is_set():
            raise _CalledOff
        tell(progress)

    def work() -> Copied:
        from outrider.stores.copy import copy_all

        with here.read() as tables, there.write() as empty:
            for each, known in ((tables, beats), (empty, beats_there)):
                if alive := _moved(known, each.beats()):
                    raise _is_worked_on(each.name, alive)
            return copy_all(tables, empty, tell_and_heed)

    job = asyncio.create_task(asyncio.to_thread(work))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        is_over.set()
        await see_through(_ended(job))
        raise


async def separate(url: str, *, tell: Callable[[Progress], None] = lambda _: None) -> str:
    """Give a PostgreSQL database that was copied from another, by its server or a dump, an identity of its own.

    Done in one transaction; returns the identity. The locks of the original's workers, which live, tell nothing of the
    copy's, so that registered workers are watched by their beats: `tell` hears of it. Raises StoreLocked while one
    lives on the copy, InvalidArguments for a database that is known by where it is, StoreForeign or another StoreError.
    """
    from outrider.stores.copy import Progress

    scheme, path = _split(url)
    if scheme != "postgresql":
        raise InvalidArguments("only a PostgreSQL database has an identity to change: a file is known by where it is")
    try:
        from outrider.stores.postgres.copy import PostgresPlace
    except ImportError as error:
        raise _no_driver(error) from error
    place = PostgresPlace(path)

    def beats() -> Mapping[str, int]:
        with place.read() as tables:
            return tables.beats()

    def change(known: Mapping[str, int]) -> str:
        with place.write() as tables:
            if alive := _moved(known, tables.beats()):
                raise _is_worked_on(place.name, alive)
            return tables.separate()

    await asyncio.to_thread(place.check_present)
    known = await asyncio.to_thread(beats)
    if known:
        tell(Progress("wait", "workers", len(known), is_whole=False))
    until = time.monotonic() + SILENT
    while known and time.monotonic() < until:
        await asyncio.sleep(LOOK)
        if alive := _moved(known, await asyncio.to_thread(beats)):
            raise _is_worked_on(place.name, alive)
    return await asyncio.to_thread(change, known)


def _moved(known: Mapping[str, int], beats: Mapping[str, int]) -> list[str]:
    return [id for id, beat in beats.items() if known.get(id) != beat]


class _CalledOff(Exception):
    """Whoever wanted a copy does not wait for it any more."""


async def _ended(job: asyncio.Task[Any]) -> None:
    await asyncio.wait([job])
    job.exception()  # nobody is there to be told


def _place(url: str) -> Place:
    scheme, path = _split(url)
    if scheme == "memory":
        raise InvalidArguments("a database in memory is its program's alone: it can be copied neither from nor to")
    if scheme == "postgresql":
        try:
            from outrider.stores.postgres.copy import PostgresPlace
        except ImportError as error:
            raise _no_driver(error) from error
        return PostgresPlace(path)
    from outrider.stores.sqlite.copy import SqlitePlace

    return SqlitePlace(path)


async def _beats_of_dead(
    url: str, name: str, tell: Callable[[Progress], None]
) -> tuple[Path | None, Mapping[str, int]]:
    """The folder of a database's locks, and the beats of its registered workers. Raises StoreLocked if one lives.

    One of this machine is known by its lock; of any other the beat is watched, for as long as one may miss it.
    """
    from outrider.runtime.lease import locks_of, seen_alive
    from outrider.stores.copy import Progress

    ledger = await open_ledger(url)
    try:
        locks = locks_of(ledger)
        beats: dict[str, int] = {}
        watched: set[str] = set()
        alive: list[str] = []
        for worker in await ledger.views.workers():
            beats[worker.card.id] = worker.beat
            match seen_alive(worker, ledger):
                case True:
                    alive.append(worker.card.id)
                case None:
                    watched.add(worker.card.id)
        until = time.monotonic() + SILENT
        if watched and not alive:
            tell(Progress("wait", "workers", len(watched), is_whole=False))
        while watched and not alive and time.monotonic() < until:
            await asyncio.sleep(LOOK)
            found = {worker.card.id: worker.beat for worker in await ledger.views.workers()}
            alive = [id for id in watched if id in found and found[id] != beats[id]]
            watched &= found.keys()
    finally:
        await ledger.close()
    if alive:
        raise _is_worked_on(name, alive)
    return locks, beats


def _is_worked_on(name: str, worker_ids: Sequence[str]) -> StoreLocked:
    return StoreLocked(f"workers use {name}; stop them first: {', '.join(sorted(worker_ids))}")


def path_of(url: str) -> Path:
    """The file of the database that a URL names, behind all links. Raises InvalidArguments for one in memory."""
    scheme, path = _split(url)
    if scheme == "memory":
        raise InvalidArguments("a database in memory is kept in no file")
    if scheme == "postgresql":
        raise InvalidArguments(
            "a PostgreSQL database is no file: save it with pg_dump, and put it back with pg_restore"
        )
    return Path(os.path.realpath(path))


def locks_beside(database: Path) -> Path:
    """The folder for the locks of a database's workers."""
    return Path(f"{database}-workers")


def _split(url: str) -> tuple[str, str]:
    """The store and its file. What looks like a URL is one to the letter, lest a slip of the pen make a database."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        if not url or "\0" in url or url.lower().startswith(_NO_PATHS):
            raise InvalidArguments(f"{url!r} names no file: write {_FORMS}, or a plain path")
        return "sqlite", url
    if scheme in ("postgresql", "postgres"):
        return "postgresql", url
    if scheme not in ("sqlite", "memory"):
        raise InvalidArguments(f"{url!r} names no store; known: {_FORMS}")
    path = unquote(rest[1:])
    if scheme == "memory" and rest:
        raise InvalidArguments(f"{url!r} says more than memory://, which takes nothing")
    if scheme == "sqlite" and (not rest.startswith("/") or path in ("", ":memory:") or "\0" in path):
        raise InvalidArguments(f"{url!r} names no file: write {_FORMS}")
    if "?" in rest or "#" in rest:
        raise InvalidArguments(
            f"{url!r} has more after the path, and there are no such options; in a name, ? is written %3F and # %23"
        )
    return scheme, path


_FORMS = "sqlite:///relative.db, sqlite:////absolute.db, postgresql://user@host/database or memory://"
_NO_PATHS = ("sqlite:", "memory:", "file:", ":memory:")
_NO_RETRY = Retry()
_NO_TIMEOUTS = Timeouts()
G = TypeVar("G")


def _given(value: G, nothing: G) -> G | None:
    """None for what was left at its default, so that the caller's options and the defaults still count."""
    return None if value is nothing else value
