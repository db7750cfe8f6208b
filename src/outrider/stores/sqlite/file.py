"""The database file: opening it, the lock beside it, and what its failures are called.

The one thing a reader would get wrong: SQLite's own lock is not the one that writers queue on. Its waiters
poll, and one was seen to wait 1.5 s behind a busy neighbour; `flock` on a file beside the database lets the
kernel queue them. SQLite's lock is still taken inside, and keeps out programs that do not know of this one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from weakref import WeakSet

from outrider.core.errors import (
    StoreCorrupt,
    StoreError,
    StoreFailed,
    StoreForeign,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    StoreUnavailable,
)
from outrider.stores.migrate import migrate

OLDEST_SQLITE = (3, 38, 0)
"""The first that has all that `queries.sql` uses (`update from`, JSON built in, `->>`)."""

APPLICATION_ID = 0x4F757472  # "Outr"

_PASSING = (
    sqlite3.SQLITE_IOERR_NOMEM,
    sqlite3.SQLITE_IOERR_ACCESS,
    sqlite3.SQLITE_IOERR_BLOCKED,
    sqlite3.SQLITE_IOERR_LOCK,
    sqlite3.SQLITE_IOERR_UNLOCK,
    sqlite3.SQLITE_IOERR_RDLOCK,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_SHMLOCK,
    sqlite3.SQLITE_IOERR_SHMMAP,
)
"""Of the I/O errors those that are not the disk's: locks and memory, and the -shm that a full disk has no room for."""

_PRAGMAS = (
    "pragma synchronous = full",  # `normal` was seen to lose acknowledged rows in images of a power loss
    "pragma cache_size = -65536",
    "pragma temp_store = memory",
    "pragma wal_autocheckpoint = 4000",  # 1000 costs a quarter of the speed, 10000 doubles the pauses
)


class DatabaseFile:
    """One SQLite database of ours. `lock_timeout` in seconds bounds every wait for others."""

    def __init__(self, path: str | Path, lock_timeout: float) -> None:
        self.path = Path(os.path.realpath(path))  # what lies beside it is found by its name, so it has one only
        self._lock_timeout = lock_timeout
        self._lock = -1
        self._identity: tuple[int, int] | None = None
        self._log: tuple[int, int] | None = None
        self._place: _Place | None = None
        self._ruin: StoreError | None = None
        _FILES.add(self)

    @property
    def is_ruined(self) -> bool:
        """Whether something happened after which this process must not trust the file; every verb says what."""
        return self._ruin is not None

    def open(self) -> sqlite3.Connection:
        """Create or check the database, bring its schema up to date, and return the writing connection."""
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            wanted = ".".join(map(str, OLDEST_SQLITE))
            raise StoreUnavailable(
                f"{self.path} needs SQLite {wanted}, and this Python has {sqlite3.sqlite_version}; use a newer Python"
            )
        with self.errors():
            try:
                self._make_folder()
                self._lock = os.open(f"{self.path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise self._refused(error) from error
            try:
                with self.alone():
                    return self._prepare()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Let go of the lock file."""
        if self._place is not None:
            self._place.leave()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def connect(self, *, readonly: bool = False, timeout: float | None = None) -> sqlite3.Connection:
        """Another connection to the file; it waits for locks as long as the file does, or `timeout` seconds."""
        mode = "?mode=ro" if readonly else ""
        connection = sqlite3.connect(
            f"{self.path.as_uri()}{mode}",
            uri=True,
            timeout=self._lock_timeout if timeout is None else timeout,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=512,
        )
        if readonly:
            connection.execute("pragma query_only = on")
        return connection

    def log_size(self) -> int:
        """How many bytes of what was committed stand beside the database, in the WAL."""
        try:
            return os.stat(f"{self.path}-wal").st_size
        except OSError:
            return 0

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock beside the database: no other process of ours writes meanwhile."""
        self._acquire()
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def check_present(self) -> None:
        """Raise StoreUnavailable when the file that was opened is no longer at its path.

        SQLite would go on writing to a deleted file, and what was acknowledged would be gone with the process.
        """
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise StoreUnavailable(
                f"the database {self.path} has been deleted or moved while it was open; restore it, or start anew"
            ) from error
        if (found.st_dev, found.st_ino) != self._identity:
            raise StoreUnavailable(f"the database {self.path} has been replaced while it was open; start anew")
        self.check_log()

    def check_log(self) -> None:
        """Raise StoreFailed when the WAL that this process writes to has been deleted under it.

        That happens only after this process has lost its locks, which it does when any code in it opens and closes
        the file by itself: another process that closes the database then takes itself for the last.
        """
        try:
            found = os.stat(f"{self.path}-wal")
        except OSError:
            seen = None
        else:
            seen = (found.st_dev, found.st_ino)
        if self._log is None:
            self._log = seen
        elif seen != self._log:
            raise StoreFailed(
                f"the log of the database {self.path} was deleted under this process, which has lost its locks on it: "
                "something here opened the database's own files. Nothing goes on here; all that was acknowledged is "
                "there. Start again, and keep those files from being read"
            )

    def closed(self) -> StoreUnavailable:
        """What every verb raises after `close`."""
        return StoreUnavailable(f"the database {self.path} was closed", code="store_closed")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Give what SQLite raises in here its name in the tree of errors. After one that is final there is no going on.

        A sync that failed must not be tried again: the kernel may count what it could not write as written.
        """
        if self._ruin is not None:
            raise copy(self._ruin)
        try:
            yield
        except sqlite3.Error as error:
            known = self.explain(error)
            if known is None:
                raise
            if known.is_final:
                self._ruin = known
                with suppress(OSError):
                    os.pwrite(self._lock, _DISTRUST, 0)
            raise known from error

    def explain(self, error: sqlite3.Error) -> StoreError | None:
        """What a failure of SQLite means for the store; None for one that is an operation's own fault."""
        code: int | None = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return None
        path = self.path
        match code & 0xFF:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return self._locked()
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
                return StoreReadOnly(
                    f"the database {path} cannot be written ({error}); check the permissions of the file, of its "
                    "directory and of the -wal, -shm and -lock files beside it"
                )
            case sqlite3.SQLITE_FULL:
                return StoreFull(f"no space is left for the database {path} ({error}); free some and go on")
            case sqlite3.SQLITE_ERROR if str(error).startswith(("no such table", "no such column")):
                return StoreCorrupt(f"the database {path} is damaged: somebody has changed its schema ({error})")
            case sqlite3.SQLITE_CORRUPT:
                return StoreCorrupt(
                    f"the database {path} is damaged ({error}); stop all its users and restore a backup, or save what "
                    "can be read with the .recover command of the sqlite3 shell"
                )
            case sqlite3.SQLITE_NOTADB:
                return StoreForeign(f"{path} is not an SQLite database; name another file")
            case sqlite3.SQLITE_IOERR if code not in _PASSING:
                return StoreFailed(
                    f"the disk failed under the database {path} ({error}); nothing goes on here, since what was not "
                    "written cannot be known: see to the disk, then start again. All that was acknowledged is there"
                )
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_IOERR | sqlite3.SQLITE_NOMEM | sqlite3.SQLITE_PROTOCOL:
                return StoreUnavailable(f"the database {path} cannot be used ({error}); check its disk and directory")
        return None

    # --- opening -----------------------------------------------------------------------------------------

    def _make_folder(self) -> None:
        """Make the folder of a new database, and make its place in the folders above safe, before there is a file.

        SQLite syncs the entries of its files in their folder, and a power loss could still take the folder itself.
        All above are synced: who was killed in here has made nobody knows which.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            return
        for folder in self.path.parent.parents:
            try:
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except PermissionError:
                continue  # nor could a folder have been made in it
            try:
                os.fsync(fd)
            except OSError as error:
                if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
                    raise
                # A file system that knows no sync of folders, or cannot be written and so holds nothing new.
            finally:
                os.close(fd)

    def _prepare(self) -> sqlite3.Connection:
        self._make_private()
        connection = self.connect()
        try:
            self._own(connection)
            self._share_lock()
            for pragma in _PRAGMAS:
                connection.execute(pragma)
            self._renew_cache(connection)
            migrate(connection, self.path)
            found = os.stat(self.path)
            self._identity = (found.st_dev, found.st_ino)
            return connection
        except BaseException:
            connection.close()
            raise

    def _make_private(self) -> None:
        """A new file is for its user alone from the first; what lies beside it gets the same mode, of SQLite."""
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise self._refused(error) from error

    def _own(self, connection: sqlite3.Connection) -> None:
        """Make an empty file ours; refuse one that belongs to another program, untouched.

        Only SQLite may open a file that is there: when a process closes any descriptor of a file, the kernel drops all
        the locks that the process has on it, those of its other connections too.
        """
        (owner,) = connection.execute("pragma application_id").fetchone()
        if owner != APPLICATION_ID:
            (tables,) = connection.execute("select count(*) from sqlite_schema").fetchone()
            if owner or tables:
                raise StoreForeign(
                    f"{self.path} is an SQLite database of another program; name another file for Outrider"
                )
            # Before the switch to WAL, so that the mark is in the file itself whatever happens next.
            connection.execute(f"pragma application_id = {APPLICATION_ID}")
        (mode,) = connection.execute("pragma journal_mode = wal").fetchone()
        if mode != "wal":
            raise StoreUnavailable(
                f"the file system of {self.path} cannot share memory between processes, which SQLite's WAL needs; "
                "put the database on a local disk"
            )

    def _share_lock(self) -> None:
        """Let those open the lock who may open the database, and nobody else: to hold it takes no more than that."""
        found = os.stat(self.path)
        with suppress(PermissionError):  # it is another user's, who has seen to it
            os.fchown(self._lock, -1, found.st_gid)
            os.fchmod(self._lock, found.st_mode & 0o666)

    def _renew_cache(self, connection: sqlite3.Connection) -> None:
        """Write the WAL into the database anew if a process before this one was refused a sync.

        The kernel may then show what is not on the disk, and would not write it again: all that came after it in the
        WAL would be lost with the power. The mark lasts as long as that memory does. While others use the file it
        stays: they know where the WAL ends, and write over the rest.
        """
        if os.fstat(self._lock).st_size:
            connection.execute("pragma busy_timeout = 0")
            (is_busy, _, _) = connection.execute("pragma wal_checkpoint(truncate)").fetchone()
            connection.execute(f"pragma busy_timeout = {round(self._lock_timeout * 1000)}")
            if not is_busy:
                os.ftruncate(self._lock, 0)

    def _refused(self, error: OSError) -> StoreError:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return StoreReadOnly(f"{self.path} cannot be opened for writing ({error}); check its permissions")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreFull(f"no space is left to create {self.path} ({error})")
        return StoreUnavailable(f"{self.path} cannot be opened ({error})")

    # --- the lock ----------------------------------------------------------------------------------------

    def _acquire(self) -> None:
        if self._place is None or not self._place.join():
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                self._place = _Place(self._lock)
        if not self._place.wait(self._lock_timeout):
            raise self._locked()

    def _locked(self) -> StoreLocked:
        return StoreLocked(
            f"somebody else has kept the database {self.path} locked for {self._lock_timeout:g} s; find who uses it "
            "(a stopped worker, a backup, an open shell) and try again"
        )


class _Place:
    """A place in the kernel's queue for the lock: a thread blocks there, and whoever wants it looks at the clock.

    `flock` knows no timeout, and a stopped process may hold the lock for as long as it likes. A place outlives a wait
    that ran out, and the next to want the lock takes it: the process has the lock once, so two who want it at a time
    would get it together, and the first to let go would do so for both.
    """

    def __init__(self, lock: int) -> None:
        self._lock = lock
        self._settled = threading.Condition()
        self._is_wanted = True
        self._is_over = False
        self._thread = threading.Thread(target=self._block, name="outrider-lock", daemon=True)
        self._thread.start()

    def join(self) -> bool:
        """Want the lock from this place on; False if nobody queues here any more."""
        with self._settled:
            self._is_wanted = not self._is_over and self._thread.is_alive()
            return self._is_wanted

    def wait(self, seconds: float) -> bool:
        """Whether the lock came in time. One that comes later is let go of at once."""
        with self._settled:
            self._is_wanted = self._settled.wait_for(lambda: self._is_over, seconds)
            return self._is_wanted

    def leave(self) -> None:
        """The descriptor is about to be closed, which lets go of the lock whenever it comes."""
        with self._settled:
            self._is_wanted, self._is_over = False, True

    def _block(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError:  # the wait runs out, and whoever tries next is told what is wrong
            return
        with self._settled:
            if self._is_wanted:
                self._settled.notify()
            elif not self._is_over:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._is_over = True


_DISTRUST = b"a sync failed"
"""What stands in the lock file then; see `DatabaseFile._renew_cache`."""

_FILES: WeakSet[DatabaseFile] = WeakSet()


def _let_go_of_all() -> None:
    """In a forked copy of this process: a lock that it shares would last as long as it, whatever becomes of us."""
    for file in list(_FILES):
        file._place = None  # its thread is not in the copy, and may have held its condition
        file.close()


os.register_at_fork(after_in_child=_let_go_of_all)
