"""Saving a database while it is in use, and putting a saved one in its place.

A backup is one moment of the database, read within one transaction: SQLite would begin anew at each commit of others
else, and never end beside a busy worker. What a reader would get wrong about restoring: a `-wal` file left beside
another database is applied to it. So the old database is closed for good first, which nobody who has it open allows.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from outrider.core.errors import InvalidArguments, NotFound, StoreCorrupt, StoreError, StoreForeign, StoreLocked
from outrider.core.ledger import Saved
from outrider.stores.migrate import migrate
from outrider.stores.sqlite.file import APPLICATION_ID, DatabaseFile

PAGES = 2000
"""How many pages are copied at once; between them the copying can be seen to end."""

PATIENCE = 5.0
"""Seconds that a restore waits for others to let go of the database."""

BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. `before` is where the database is kept that was there until then."""

    database: Path
    tasks: int
    before: Path | None


def save(database: Path, target: Path, *, replace: bool = False) -> Saved:
    """Write all that was committed by now into a new file, checked and durable; nobody waits for it meanwhile.

    The file appears whole or not at all. Raises InvalidArguments where it exists already, unless `replace`, and where
    it cannot be written; StoreCorrupt when the database turns out to be damaged.
    """
    target = Path(os.path.realpath(target.parent), target.name)
    _check_target(database, target, replace)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    with _writing(part):
        _copy(database, part)
        tasks = _inspect(part, database)
        _give(part, database)
        _sync(part)
        _put(part, target, replace)
    return Saved(str(target), target.stat().st_size, tasks)


def restore(source: Path, database: Path, check_unused: Callable[[], None]) -> Restored:
    """Put a copy of a saved database in the place of another, which is kept beside it under a dated name.

    The copy is checked, brought up to the schema of this program, and knows no workers: what they held in it is free.
    `check_unused` raises if somebody works on the database; it is asked when nobody can begin to any more. Raises
    NotFound without a file, StoreForeign, StoreCorrupt or StoreNewer for one that will not do, and StoreLocked while
    anybody has the database open. Whatever it raises, the database is as it was.
    """
    source, database = source.absolute(), database.absolute()
    if not source.is_file():
        raise NotFound.of("file", str(source))
    if database.exists() and os.path.samefile(source, database):
        raise InvalidArguments(f"{source} is the database itself")
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArguments(f"{database.parent} cannot be made ({error.strerror})") from error
    part = database.with_name(f".{database.name}.{os.getpid()}.part")
    with _writing(part):
        _copy(source, part)
        tasks = _inspect(part, source, is_to_be_used=True)
        _give(part, database if database.exists() else source)
        _sync(part)
        with _alone(database):
            check_unused()
            before = _set_aside(database)
            os.replace(part, database)
            _sync(database.parent)
    return Restored(database, tasks, before)


# --- the copy ------------------------------------------------------------------------------------------------


def _copy(source: Path, part: Path) -> None:
    file = DatabaseFile(source, PATIENCE)
    with file.errors():
        reader = file.connect(readonly=True)
        try:
            reader.execute("begin")
            reader.execute("select count(*) from sqlite_schema").fetchone()  # the moment that is saved
            copy = sqlite3.connect(part, isolation_level=None)
            try:
                with DatabaseFile(part, PATIENCE).errors():
                    reader.backup(copy, pages=PAGES)
                    copy.execute("pragma journal_mode = delete")  # one file, with nothing beside it
            finally:
                copy.close()
        finally:
            reader.close()


def _inspect(part: Path, source: Path, *, is_to_be_used: bool = False) -> int:
    """Check a copy and return how many tasks are in it; errors name what it was made of."""
    with DatabaseFile(source, PATIENCE).errors():
        copy = sqlite3.connect(part, isolation_level=None)
        try:
            problems = [row[0] for row in copy.execute("pragma integrity_check(5)")]
            if problems != ["ok"]:
                raise StoreCorrupt(f"{source} is damaged: {'; '.join(problems)}")
            if copy.execute("pragma application_id").fetchone() != (APPLICATION_ID,):
                raise StoreForeign(f"{source} is no database of Outrider")
            if is_to_be_used:
                migrate(copy, source)
                copy.execute("delete from workers")
            (tasks,) = copy.execute("select count(*) from tasks").fetchone()
            return int(tasks)
        finally:
            copy.close()


@contextmanager
def _writing(part: Path) -> Iterator[None]:
    """What is written here is gone unless it was put in its place; what the disk refuses is named."""
    _discard(part)
    fd = -1
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.stat(part)  # another may have taken it for one that was left, before it was locked
        _discard_left(part)
        yield
    except OSError as error:
        raise StoreError(f"{part.parent} cannot be written ({error})") from error
    finally:
        _discard(part)
        if fd >= 0:
            os.close(fd)


def _discard_left(part: Path) -> None:
    """Take away what others were writing in this one's stead when they were killed: their locks went with them."""
    name = re.compile(re.escape(part.name.removesuffix(f"{os.getpid()}.part")) + r"\d+\.part")
    with suppress(OSError):
        left = [other for other in part.parent.iterdir() if other != part and name.fullmatch(other.name)]
        for other in left:
            with suppress(OSError):
                fd = os.open(other, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _discard(other)
                finally:
                    os.close(fd)


def _give(part: Path, like: Path) -> None:
    """Let those read and write a copy who may the other file; the owner stays where only root could change it."""
    found = os.stat(like)
    with suppress(PermissionError):
        os.chown(part, found.st_uid, found.st_gid)
    shutil.copymode(like, part)


def _discard(part: Path) -> None:
    for suffix in ("", *BESIDE):
        with suppress(OSError):
            os.unlink(f"{part}{suffix}")


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- a backup's place ------------------------------------------------------------------------------------------


def _check_target(database: Path, target: Path, replace: bool) -> None:
    if not target.parent.is_dir():
        raise InvalidArguments(f"there is no folder {target.parent}")
    taken = {f"{database}{suffix}" for suffix in ("", *BESIDE, "-lock", "-workers", "-worker.log", "-processes")}
    if str(target) in taken or (target.exists() and database.exists() and os.path.samefile(target, database)):
        raise InvalidArguments(f"{target} belongs to the database itself; name another file")
    if target.is_dir():
        raise InvalidArguments(f"{target} is a folder; name a file")
    if not replace and os.path.lexists(target):
        raise _exists(target)


def _put(part: Path, target: Path, replace: bool) -> None:
    if replace:
        os.replace(part, target)
    else:
        try:
            os.link(part, target)  # unlike a rename, it takes nobody else's place
        except FileExistsError:
            raise _exists(target) from None
        except OSError:  # a file system without links
            os.rename(part, target)
    _sync(target.parent)


def _exists(target: Path) -> InvalidArguments:
    return InvalidArguments(f"{target} exists already; replace it, or name another file")


# --- a restore's place -----------------------------------------------------------------------------------------


@contextmanager
def _alone(database: Path) -> Iterator[None]:
    """Hold the lock beside the database, on which all that write it or begin to use it queue."""
    lock = os.open(f"{database}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise _in_use(database) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(lock)


def _set_aside(database: Path) -> Path | None:
    """Give the database that is there a second, dated name; where it is damaged, what is beside it too."""
    kept = _dated(database)
    beside = [suffix for suffix in BESIDE if os.path.exists(f"{database}{suffix}")]
    for suffix in beside:  # before SQLite looks at it, and throws away what makes no sense to it
        shutil.copy2(f"{database}{suffix}", f"{kept}{suffix}")
    try:
        is_closed = database.exists() and _close_for_good(database)
        if database.exists():
            _link(database, kept)
    except BaseException:
        _discard(kept)
        raise
    for suffix in beside:
        with suppress(FileNotFoundError):
            os.unlink(f"{kept if is_closed else database}{suffix}")
    _sync(database.parent)
    return kept if kept.exists() else None


def _link(database: Path, kept: Path) -> None:
    try:
        os.link(database, kept)
    except OSError:  # a file system without links
        shutil.copy2(database, kept)
        _sync(kept)


def _close_for_good(database: Path) -> bool:
    """Bring everything into the one file, with nothing beside it. False where it is too damaged for that.

    SQLite does it only while nobody else has the database open, and so it tells whether anybody has.
    """
    connection = sqlite3.connect(database, timeout=PATIENCE, isolation_level=None)
    try:
        (owner,) = connection.execute("pragma application_id").fetchone()
        if owner != APPLICATION_ID and (owner or connection.execute("select 1 from sqlite_schema").fetchone()):
            raise StoreForeign(f"{database} is an SQLite database of another program; name another file for Outrider")
        (mode,) = connection.execute("pragma journal_mode = delete").fetchone()
        return bool(mode == "delete")
    except sqlite3.Error as error:
        match DatabaseFile(database, PATIENCE).explain(error):
            case StoreLocked():
                raise _in_use(database) from error
            case StoreCorrupt() | StoreForeign():
                return False
            case known:
                raise known or error from error
    finally:
        connection.close()


def _dated(database: Path) -> Path:
    name = f"{database.name}.before-restore-{time.strftime('%Y%m%dT%H%M%S')}"
    names = (database.with_name(name if nth == 1 else f"{name}-{nth}") for nth in count(1))
    return next(each for each in names if not os.path.lexists(each))


def _in_use(database: Path) -> StoreLocked:
    return StoreLocked(f"somebody has the database {database} open; end its workers, watchers and programs first")
