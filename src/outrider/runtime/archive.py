"""Sessions that were taken out of the database, each as one compressed file in an object store: a folder, or a bucket.

A session is deleted only after its file was written whole and nothing has happened in it meanwhile. What is in a file
is what `Sessions.export` gives; it is for reading, and is not brought back.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote

import orjson

from outrider.core.errors import (
    AlreadyExists,
    InvalidArguments,
    NotEnded,
    NotFound,
    OutriderError,
    StoreError,
    StoreUnavailable,
)
from outrider.core.ledger import Closed, Document, FileMark, Reopened
from outrider.core.session import Session
from outrider.core.values import JSONObject, evolve
from outrider.runtime.clock import as_datetime
from outrider.runtime.exporting import MANY, export_session
from outrider.runtime.ids import new_id
from outrider.runtime.log import log
from outrider.runtime.options import check_page, check_texts, check_texts_if_given
from outrider.runtime.pruning import delete_session, live_in, sessions_below
from outrider.runtime.records import ArchiveRecord
from outrider.runtime.retention import drop
from outrider.runtime.services import Services

COLLECTION = "archive"

PIECE = 262_144
"""Bytes that are unpacked at a time: a little file may hold a great deal."""

T = TypeVar("T")


class Archive:
    """The archived sessions of one store. Its object store is that of the setting `archive`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def store(self, session_id: str, *, by: str | None = None) -> ArchiveRecord:
        """Write a session with all in it and below it into the archive, and delete it.

        It is closed before, and reopened where it stays. Raises NotFound, InvalidArguments for one that a task opened
        and where no archive is set, NotEnded while anything in it lives or has just happened, AlreadyExists where
        another one of that id was archived; StoreUnavailable where the archive cannot be written. It is deleted in none
        of these cases. Who is stopped while it is being deleted finishes that by calling this again.
        """
        check_texts(session_id=session_id)
        check_texts_if_given(by=by)
        services = self._services
        session = await services.views.session(session_id)
        there = await services.views.document(COLLECTION, id=session_id)
        if there is not None and there.data.get("is_left") is True:
            if session is None or _is_of(there, session):
                return await self._finish(session, there, None if session is None else await self._marks_of(there))
            await self._settle(there)
        if session is None:
            raise NotFound.of("session", session_id)
        if there is not None:
            raise AlreadyExists(f"a session of the id {session_id} is in the archive: delete that one first")
        if await services.whole.views.document(COLLECTION, id=session_id) is not None:
            raise AlreadyExists(f"the id {session_id} is taken in the archive, by another organization")
        if session.parent_task_id is not None:
            raise InvalidArguments(f"{session_id} was opened by {session.parent_task_id}: archive the session above it")
        store = self._open()
        if live := await live_in(services, session):
            raise NotEnded.of(f"tasks of {session_id} live", [task.id for task in live], "archived")
        closed = await self._close(session)
        key = f"{quote(session.organization_id, safe='')}/{quote(session.id, safe='')}-{new_id('arc')}.jsonl.gz"
        try:
            kept, files = await self._keep(store, session, key, by)
        except BaseException:
            if await services.views.document(COLLECTION, id=session_id) is None:  # else somebody else needs it closed
                await self._reopen(closed)
            raise
        return await self._finish(session, kept, files)

    async def _keep(
        self, store: Any, session: Session, key: str, by: str | None
    ) -> tuple[Document, Collection[FileMark]]:
        """Write the file under a key of its own, and the document that says so, if nothing has happened meanwhile.

        Return that document, and which files of the session and of those below it were written.
        """
        services, written = self._services, _Written()
        before = await self._heads(session)
        try:
            await self._write(store, key, written.over(export_session(services, session, tree=True)))
            data: JSONObject = {
                "key": key,
                "size": written.size,
                "sha256": written.digest,
                "at": services.clock.now(),
                "by": by,
                "created_at": session.created_at,
                "is_left": True,
            }
            document = Document(COLLECTION, session.id, data, session.organization_id)
            if await self._heads(session) != before or not await _to_the_end(services.ledger.keep([document])):
                raise NotEnded(f"something has just happened in {session.id}, or somebody else archives it; try later")
        except BaseException:
            await _to_the_end(self._take_back(store, session, key))
            raise
        return evolve(document, version=1), {mark for _, _, marks in before for mark in marks}

    async def _take_back(self, store: Any, session: Session, key: str) -> None:
        """Remove a file that no document tells of. Where that cannot be known, it stays, and the log says so."""
        try:
            there = await self._services.whole.views.document(COLLECTION, id=session.id)
            if there is None or there.data.get("key") != key:  # else it was kept, and only the word of it was lost
                await _remove(store, key)
        except OutriderError as error:
            log.warning("a file may be left in the archive", key=key, session=session.id, reason=error.message)

    async def _marks_of(self, document: Document) -> Collection[FileMark]:
        """Which files were archived by somebody who was stopped then."""
        return {
            (str(each["path"]), int(each["size"]), int(each["created_at"]))
            async for each in self.read(document.id)
            if each["record"] == "file"
        }

    async def _finish(
        self, session: Session | None, document: Document, files: Collection[FileMark] | None
    ) -> ArchiveRecord:
        """Delete what was archived; it is there whole. What was reopened since is not what was: that stays.

        So does a session into which a file came since; that is decided in the transaction that deletes it.
        """
        session = None if session is None else await self._services.views.session(session.id)
        if session is not None and not _is_of(document, session):  # somebody else has finished it
            session = None
        if session is not None and session.closed_at is None:
            await self._settle(document)
            raise NotEnded(f"{session.id} was archived and reopened since: what is left of it stays as well")
        tasks = 0
        try:
            if session is not None:
                tasks = sum([gone async for gone in delete_session(self._services, session, files=files)])
        except NotEnded as error:
            await self._settle(document)
            raise NotEnded(f"{error.message} after it was archived: what is left of it stays as well") from error
        await self._settle(document)
        log.info("session archived", session=document.id, tasks=tasks, size=document.data["size"])
        return _record(document)

    async def _settle(self, document: Document) -> None:
        """Have the document say that nothing is left to do, unless somebody has changed or deleted it since."""
        await self._services.ledger.keep([evolve(document, data={**document.data, "is_left": False})])

    async def _close(self, session: Session) -> list[str]:
        """Have nothing come in from outside, here and below; return the sessions that were open."""
        closed: list[str] = []
        try:
            for each in await sessions_below(self._services, session):
                now = self._services.clock.now()
                has_closed = await self._services.ledger.control(Closed(each.id, now, when_idle=True))
                closed += [each.id] if has_closed else []
        except BaseException:
            await self._reopen(closed)
            raise
        return closed

    async def _reopen(self, session_ids: Sequence[str]) -> None:
        for id in session_ids:
            with suppress(NotFound):  # somebody else has archived it
                await self._services.ledger.control(Reopened(id, self._services.clock.now()))

    async def list(
        self, *, organization_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> list[ArchiveRecord]:
        """Return the archived sessions, in the order of their ids."""
        check_texts_if_given(organization_id=organization_id, after=after)
        found = await self._services.views.documents(
            COLLECTION, organization_id=organization_id, after=after, limit=check_page(limit)
        )
        return [_record(each) for each in found]

    async def get(self, session_id: str) -> ArchiveRecord:
        """Return what is known of an archived session. Raises NotFound."""
        return _record(await self._document(session_id))

    async def read(self, session_id: str) -> AsyncIterator[JSONObject]:
        """Yield the records of an archived session, as `Sessions.export` gave them. Raises NotFound.

        Raises StoreUnavailable where the archive cannot be read, also halfway, and StoreError with the code
        `archive_damaged` for a file that is not as it was written.
        """
        document = await self._document(session_id)
        line, unpack, digest = list[bytes](), zlib.decompressobj(wbits=31), hashlib.sha256()
        async for chunk in _chunks(self._open(), str(document.data["key"])):
            digest.update(chunk)
            try:
                for piece in _unpacked(unpack, chunk):
                    await asyncio.sleep(0)  # a chunk may unpack to hundreds of megabytes: others have their turn
                    *ends, rest = piece.split(b"\n")
                    for end in ends:
                        yield orjson.loads(b"".join((*line, end)))
                        line.clear()
                    line.append(rest)
            except (zlib.error, orjson.JSONDecodeError) as error:
                raise _damaged(session_id) from error
        if digest.hexdigest() != document.data["sha256"]:
            raise _damaged(session_id)

    async def delete(self, session_id: str) -> bool:
        """Delete an archived session from the archive, for good; False if it is not there."""
        try:
            document = await self._document(session_id)
        except NotFound:
            return False
        await _remove(self._open(), str(document.data["key"]))
        return await drop(self._services, COLLECTION, session_id)

    async def _document(self, session_id: str) -> Document:
        check_texts(session_id=session_id)
        found = await self._services.views.document(COLLECTION, id=session_id)
        if found is None:
            raise NotFound.of("archive", session_id)
        return found

    async def _heads(self, session: Session) -> Sequence[tuple[str, int, Sequence[FileMark]]]:
        """What tells whether anything has happened in a session or below it, files included."""
        found = []
        for each in await sessions_below(self._services, session):
            files = await self._services.views.files(each.id, limit=MANY)
            found.append((each.id, each.last_seq, [(file.path, file.size, file.created_at) for file in files]))
        return found

    def _open(self) -> Any:
        url = place_of(self._services)
        if url is None:
            raise InvalidArguments("there is no archive: set `archive` to the URL of a folder or bucket")
        try:
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError as error:
            raise InvalidArguments(
                f"the archive needs the extra `archive`: pip install 'outrider[archive]' ({error})"
            ) from error
        make: Any = from_url  # its many forms are one for each kind of place
        try:
            return make(url, mkdir=True) if url.startswith("file:") else make(url)
        except (BaseError, OSError, ValueError) as error:
            raise InvalidArguments(
                f"{url!r:.200} is no place for an archive; name one by its URL, such as file:///srv/archive: "
                f"{str(error).splitlines()[0]}"
            ) from error

    async def _write(self, store: Any, key: str, chunks: AsyncIterable[bytes]) -> None:
        import obstore

        with _reaching():
            await obstore.put_async(store, key, chunks)


def place_of(services: Services) -> str | None:
    """Where the archive is, by the settings or OUTRIDER_ARCHIVE; None where there is none."""
    return services.settings.archive or os.environ.get("OUTRIDER_ARCHIVE") or None


def check_place(services: Services) -> None:
    """Raise InvalidArguments where there is no archive, or what is set can be none."""
    Archive(services)._open()


class _Written:
    """Compresses records on their way, and knows what came of it."""

    def __init__(self) -> None:
        self.size = 0
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    async def over(self, records: AsyncIterable[JSONObject]) -> AsyncIterator[bytes]:
        pack = zlib.compressobj(wbits=31)
        async for record in records:
            if packed := pack.compress(orjson.dumps(record) + b"\n"):
                yield self._counted(packed)
        yield self._counted(pack.flush())

    def _counted(self, packed: bytes) -> bytes:
        self.size += len(packed)
        self._hash.update(packed)
        return packed


@contextmanager
def _reaching() -> Iterator[None]:
    """Tell of whatever an object store raises as of a store that cannot be reached."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as error:
        raise NotFound("the archive has no such file", code="archive_not_found") from error
    except (BaseError, OSError) as error:
        raise StoreUnavailable(f"the archive does not answer as it should: {str(error).splitlines()[0]}") from error


async def _chunks(store: Any, key: str) -> AsyncIterator[bytes]:
    import obstore

    with _reaching():
        found = await obstore.get_async(store, key)
        async for chunk in found.stream(min_chunk_size=PIECE):
            yield bytes(chunk)


def _unpacked(unpack: Any, chunk: bytes) -> Iterator[bytes]:
    """What is in a chunk, in pieces: a thousand times of it may be."""
    is_full = True
    while is_full:
        piece = unpack.decompress(chunk, PIECE)
        is_full, chunk = len(piece) == PIECE, unpack.unconsumed_tail
        yield piece


async def _remove(store: Any, key: str) -> None:
    import obstore

    with suppress(NotFound), _reaching():
        await obstore.delete_async(store, key)


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Wait for what is not stopped with whoever waits, so that they know how it ended. CancelledError after that."""
    job, stopped = asyncio.ensure_future(work), None
    while not job.done():
        try:
            await asyncio.wait([job])
        except asyncio.CancelledError as error:
            stopped = error
    if stopped is not None:
        job.exception()  # is looked at: nobody else would
        raise stopped
    return job.result()


def _is_of(document: Document, session: Session) -> bool:
    """Whether a session is the one that was archived, not a later one of its id.

    Documents of earlier versions do not say when theirs was created: one that was so afterwards is not it.
    """
    created, at = document.data.get("created_at"), document.data.get("at")
    if isinstance(created, int):
        return session.created_at == created
    return isinstance(at, int) and session.created_at <= at


def _damaged(session_id: str) -> StoreError:
    return StoreError(f"the archive of {session_id} is not as it was written", code="archive_damaged")


def _record(document: Document) -> ArchiveRecord:
    data = document.data
    at = data.get("at")
    moment: datetime | None = as_datetime(at) if isinstance(at, int) else None
    return ArchiveRecord(
        session_id=document.id,
        organization_id=document.organization_id,
        key=str(data["key"]),
        size=int(str(data["size"])),
        sha256=str(data["sha256"]),
        at=moment,
        by=data["by"] if isinstance(data.get("by"), str) else None,
    )
