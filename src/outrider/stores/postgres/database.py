"""The database: connecting, bringing the schema up to date, and what its failures are called."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, TypeVar
from weakref import WeakSet

import orjson
import psycopg
from psycopg import Connection, IsolationLevel, errors
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import set_json_loads
from psycopg.types.numeric import Int8BinaryDumper

from outrider.core.errors import (
    InvalidArguments,
    StoreCorrupt,
    StoreError,
    StoreForeign,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    StoreUnavailable,
)
from outrider.stores.migrate import Migration, check, known
from outrider.stores.postgres.clock import ServerClock
from outrider.stores.postgres.pipeline import Pipeline
from outrider.stores.postgres.statements import DUMPERS, PostgresStatements, TextDumper

T = TypeVar("T")

OLDEST_SERVER = 15

CONNECT_TIMEOUT = 10
"""Seconds."""

ANSWER = 15.0
"""Seconds that a server may take to answer before its connection counts as broken; more than it waits for any lock.

The kernel notices a peer that is gone, but not one that takes what is sent and says nothing: a server or a pooler that
was stopped, or one behind a proxy that cannot reach it any more.
"""

MIGRATION = 3600.0
"""Seconds that a change of the schema may take, or that of somebody else who was faster."""

_MIGRATING = 8390880602276358244
"""The advisory lock of who brings the schema up to date. The two numbers below it are taken in `queries.sql`."""

_LEDGER = """
create table if not exists migrations (
    number integer primary key,
    name text not null,
    checksum text not null,
    tolerated boolean not null,
    applied_at bigint not null
)
"""

_PATIENT_PEER = {
    # A client that is gone is noticed in seconds as well, and its place is free for another.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
}

SETTINGS = {
    # Who has waited for a lock has to see what its holder did, or limits would be exceeded.
    "default_transaction_isolation": "read committed",
    # Plans are made once for each statement and connection. They look for few rows in tables that may be large, by an
    # index; what else seems best while a table is small would stay in use when it has grown.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    # Who waits for a lock waits for a transaction of some milliseconds. What takes longer than this is cut off.
    "lock_timeout": "10s",
    # Whoever was stopped or cut off in the middle of a transaction loses it before others have waited that long.
    "idle_in_transaction_session_timeout": "5s",
}

_ENDLESS = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}

PROBES = 5
"""How often two connections are compared, to learn whether a pooler shares those of the server among them."""

PROBE = 2.0
"""Seconds that a pooler may take to answer the second of them: one in session mode may have no connection left."""

_POOLED = "say so in its URL with `pooler=transaction`, or connect to the server or to a pool in session mode"


class Link(Connection[Any]):
    """A connection on which no answer is waited for longer than `patience` seconds, where that is given.

    When they are over it is closed: it is not known what the server did. A shared one has another connection of the
    server for each transaction, by a pooler: nothing may be left on it, so each transaction makes its own settings.
    """

    patience: float | None = None
    is_shared = False
    settings: Mapping[str, str] = SETTINGS
    """What holds from the first statement on; on a shared one, only in what `begin` begins."""

    @cached_property
    def ahead(self) -> Pipeline:
        """The way to say much on it without waiting; it begins with the patience that the connection has by then."""
        return Pipeline(self)

    def begin(self, mode: str = "") -> None:
        """Begin a transaction, with the settings. None of it is a query: what it sees is yet to be fixed."""
        begin = f"begin {mode}".rstrip()
        made = [f"set local {name} = '{value}'" for name, value in self.settings.items()] if self.is_shared else []
        self.execute("; ".join([begin, *made]).encode(), prepare=False)

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Wait for what psycopg waits for: every method of a connection does it here."""
        return super().wait(gen if self.patience is None else self._in_time(gen, self.patience), *args, **kwargs)

    def _in_time(self, gen: PQGen[T], patience: float) -> PQGen[T]:
        give_up = time.monotonic() + patience
        try:
            wish = next(gen)
            while True:
                ready = yield wish
                if not ready and time.monotonic() > give_up:
                    self.close()
                    raise psycopg.OperationalError(f"no answer within {patience:g} s")
                wish = gen.send(ready)
        except StopIteration as done:
            result: T = done.value
            return result


_LINKS: WeakSet[Link] = WeakSet()


def _disown_links() -> None:
    """In a forked copy of this process: let go of its sockets, or its transactions would last as long as the copy.

    Nothing may be said on them. They become something that takes no word, for whoever closes them later.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for link in list(_LINKS):
        if not link.closed:
            os.dup2(null, link.fileno(), inheritable=False)
    os.close(null)
    _LINKS.clear()


os.register_at_fork(after_in_child=_disown_links)


class Database:
    """A PostgreSQL database of ours, by its URL. That may say `pooler=transaction`, which libpq is not told."""

    def __init__(self, url: str) -> None:
        address, poolers = _without_pooler(url)
        if poolers not in ([], ["transaction"]):
            raise InvalidArguments(
                f"the URL says `pooler={poolers[-1]}`: only `pooler=transaction` has to be said, and once; a pooler in "
                "session mode is like a server"
            )
        self._is_shared = bool(poolers)
        self._is_known = self._is_shared
        try:
            parameters = conninfo_to_dict(address)
        except psycopg.Error as error:
            raise InvalidArguments(f"the URL of the database is not understood ({_first_line(error)})") from None
        self.url = url
        parameters.setdefault("application_name", "outrider")
        parameters["client_encoding"] = "UTF8"  # whatever the user, the database or the environment has set
        parameters.setdefault("connect_timeout", CONNECT_TIMEOUT)
        # A peer that is gone is noticed in seconds, not in the hours that the kernel takes by itself.
        for name, value in (
            ("keepalives_idle", 5),
            ("keepalives_interval", 2),
            ("keepalives_count", 3),
            ("tcp_user_timeout", 10_000),
        ):
            parameters.setdefault(name, value)
        self._conninfo = make_conninfo("", **parameters)
        host = parameters.get("host") or "the local socket"
        port = f":{parameters['port']}" if parameters.get("port") else ""
        self.name = f"the database {parameters.get('dbname') or parameters.get('user') or 'postgres'} at {host}{port}"
        """What errors call it: nothing secret is in there."""

    def connect(self, *, patience: float = ANSWER, timeout: float | None = None, is_patient: bool = False) -> Link:
        """A new connection, ready for our statements. Raises StoreUnavailable and the like.

        No answer is waited for longer than `patience`; the server gives up a statement after `timeout` seconds, where
        that is given. On a patient one nothing is cut off for taking long but a wait for a lock: it is for one
        transaction over all that there is.
        """
        with self.errors():
            # A server that does not read on for a while, such as during a checkpoint, is not gone.
            conninfo = make_conninfo(self._conninfo, tcp_user_timeout=0) if is_patient else self._conninfo
            connection = Link.connect(conninfo, autocommit=True)
            try:
                _LINKS.add(connection)
                connection.patience = ANSWER
                connection.is_shared = self._is_shared
                connection.isolation_level = IsolationLevel.READ_COMMITTED
                limits = dict(_ENDLESS) if is_patient else {}
                if timeout is not None:
                    limits["statement_timeout"] = str(round(timeout * 1000))
                if limits and connection.info.server_version >= 170_000:
                    limits["transaction_timeout"] = "0"
                connection.settings = SETTINGS | limits
                if self._is_shared:
                    connection.prepare_threshold = None
                else:
                    self._check_alone(connection)
                    connection.prepare_threshold = 0
                    connection.prepared_max = 1000
                    settings = _PATIENT_PEER | SETTINGS | limits
                    made = "; ".join(f"set {name} = '{value}'" for name, value in settings.items())
                    connection.execute(made.encode(), prepare=False)
                set_json_loads(orjson.loads, connection)
                adapters = connection.adapters
                adapters.register_dumper(int, Int8BinaryDumper)
                adapters.register_dumper(str, TextDumper)
                for kind, dumper in DUMPERS:
                    adapters.register_dumper(kind, dumper)
                connection.patience = None if is_patient else patience
            except BaseException:
                connection.close()
                raise
            return connection

    def _check_alone(self, connection: Link) -> None:
        """See that the server's connection is ours, before anything is left on it. Looks only once.

        Raises InvalidArguments where a pooler is seen to share it. A pooler that gives its clients numbers of its own,
        as PgBouncer does, is known by that; then two of its connections are compared. In session mode each of them
        stays with a process of the server, and no two with the same.
        """
        if self._is_known:
            return
        own = _process(connection)
        if own != connection.info.backend_pid:
            with Link.connect(self._conninfo, autocommit=True) as other, suppress(psycopg.OperationalError):
                other.patience = PROBE
                for _ in range(PROBES):
                    if own == _process(other) or own != _process(connection):
                        raise InvalidArguments(f"{self.name} is behind a pooler in transaction mode: {_POOLED}")
        self._is_known = True

    def is_lost(self, error: psycopg.Error) -> bool:
        """Whether the connection broke, so that it is not known what the server did."""
        return isinstance(self.explain(error), StoreUnavailable)

    def closed(self) -> StoreUnavailable:
        """What every verb raises after `close`."""
        return StoreUnavailable(f"{self.name} was closed", code="store_closed")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Give what psycopg raises in here its name in the tree of errors."""
        try:
            yield
        except psycopg.Error as error:
            known = self.explain(error)
            if known is None:
                raise
            raise known from error

    def explain(self, error: psycopg.Error) -> StoreError | None:
        """What a failure means for the store; None for one that is an operation's own fault."""
        said = _first_line(error)
        match error:
            case errors.DeadlockDetected() | errors.SerializationFailure():
                return None
            case errors.DiskFull():
                return StoreFull(f"no space is left for {self.name} ({said}); free some and go on")
            case errors.ReadOnlySqlTransaction() | errors.InsufficientPrivilege():
                return StoreReadOnly(
                    f"{self.name} cannot be written ({said}); check the rights of the user, and that the server is no "
                    "standby"
                )
            case errors.LockNotAvailable():
                return StoreLocked(f"somebody keeps {self.name} locked ({said})")
            case errors.QueryCanceled():
                return StoreLocked(
                    f"a statement in {self.name} was cut off ({said}); it waited for somebody's lock, or the user's "
                    "`statement_timeout` is too short for it"
                )
            case errors.InvalidSchemaName():
                return StoreReadOnly(
                    f"{self.name} has no schema to make tables in ({said}); make one that the `search_path` of the "
                    "user or the URL names"
                )
            case errors.UndefinedTable() | errors.UndefinedColumn():
                return StoreCorrupt(f"{self.name} is damaged: somebody has changed its schema ({said})")
            case errors.DataCorrupted() | errors.IndexCorrupted():
                return StoreCorrupt(f"{self.name} is damaged ({said}); restore a backup")
            case errors.InvalidSqlStatementName() | errors.DuplicatePreparedStatement():
                return StoreUnavailable(
                    f"{self.name} has mixed up our connections ({said}); if a pooler in transaction mode is before it, "
                    f"{_POOLED}"
                )
            case (
                psycopg.OperationalError()
                | psycopg.InterfaceError()
                | errors.InternalError_()
                | errors.IdleInTransactionSessionTimeout()
                | psycopg.Error(sqlstate="25P04")  # `transaction_timeout`, which not every psycopg has a name for
            ):
                return StoreUnavailable(f"{self.name} cannot be used ({said}); see that the server runs and lets us in")
        return None

    def prepare(self, migrations: Sequence[Migration] | None = None, *, clock: ServerClock | None = None) -> str:
        """Check that the database is ours, and bring its schema up to date; others wait meanwhile. Returns its id.

        Sets a clock too, where one is given.

        Raises StoreForeign for one with the tables of another program, StoreNewer for a schema that only a later
        program knows, StoreCorrupt where a migration that was applied had another text.
        """
        with self.connect(patience=MIGRATION, timeout=MIGRATION) as connection, self.errors():
            if connection.info.server_version < OLDEST_SERVER * 10_000:
                found = connection.info.server_version // 10_000
                raise StoreUnavailable(f"{self.name} is of PostgreSQL {found}; {OLDEST_SERVER} is the oldest that does")
            (encoding,) = connection.execute("show server_encoding").fetchone() or ("",)
            if encoding != "UTF8":
                raise StoreUnavailable(
                    f"{self.name} has the encoding {encoding}, which cannot hold every text; make one with "
                    "`createdb --encoding=UTF8 --template=template0`"
                )
            if clock is not None:
                for _ in range(3):
                    clock.look(lambda: PostgresStatements(connection).row("moment"))
            migrations = known("postgres") if migrations is None else migrations
            with connection.transaction():
                connection.execute("select pg_advisory_xact_lock(%s)", [_MIGRATING])
                self._own(connection)
                applied = {
                    number: rest
                    for number, *rest in connection.execute("select number, checksum, tolerated from migrations")
                }
                check(applied, migrations, self.name)
                for migration in migrations:
                    if migration.number not in applied:
                        self._apply(connection, migration)
                self._move_origin(connection)
                (id,) = connection.execute("select id::text from origin").fetchone() or ("",)
            return str(id)

    def _own(self, connection: Connection[Any]) -> None:
        (ours, others) = connection.execute(
            "select to_regclass('migrations') is not null and to_regclass('tasks') is not null,"
            " array(select tablename::text from pg_tables where schemaname = current_schema()"
            " and tablename in ('tasks', 'sessions', 'events', 'migrations'))"
        ).fetchone() or (False, [])
        if not ours and others:
            raise StoreForeign(
                f"{self.name} has tables of another program ({', '.join(others)}); use a database or schema of our own"
            )
        connection.execute(_LEDGER)

    def _apply(self, connection: Connection[Any], migration: Migration) -> None:
        connection.execute(migration.sql.encode(), prepare=False)
        connection.execute(
            "insert into migrations (number, name, checksum, tolerated, applied_at) values (%s, %s, %s, %s, %s)",
            [migration.number, migration.name, migration.checksum, migration.is_tolerated, time.time_ns() // 1000],
        )

    def _move_origin(self, connection: Connection[Any]) -> None:
        """Where this is a copy of the database under another server, its positions must not begin anew."""
        connection.execute(
            """
            update origin
            set position = last.position + 1
            from (select max(position) as position from events) last
            where last.position >= origin.position + (pg_current_xact_id()::text::bigint << 20)
            """
        )


def _process(connection: Link) -> int:
    """The process of the server that answers."""
    (number,) = connection.execute("select pg_backend_pid()", prepare=False).fetchone() or (0,)
    return int(number)


def _without_pooler(url: str) -> tuple[str, list[str]]:
    """A URL as libpq takes it, and what it says of a pooler."""
    address, mark, options = url.partition("?")
    parts = options.split("&")
    rest = [part for part in parts if not part.startswith("pooler=")]
    poolers = [part.removeprefix("pooler=") for part in parts if part.startswith("pooler=")]
    return address + (mark if rest else "") + "&".join(rest), poolers


def _first_line(error: psycopg.Error) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
