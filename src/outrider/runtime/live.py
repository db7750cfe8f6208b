"""Live streams for many: who follows the same log shares one reader, and what it read is told once, as bytes.

A stream is a cursor. While it keeps up it takes what its feed has read last; once it has fallen behind that, it reads
the log from its cursor on, page by page, when there is room to send more. So nothing is kept for a stream but its
place, whoever does not read costs nothing, and what was missed is read, not remembered.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Literal, Protocol, TypeAlias

from pydantic import BaseModel

from outrider.core.errors import InvalidArguments, NotFound, StoreLocked, StoreUnavailable
from outrider.core.ledger import Head, Signal, Views
from outrider.core.values import Instant
from outrider.runtime.log import log
from outrider.runtime.options import check_texts
from outrider.runtime.records import OrganizationSnapshot, SessionSnapshot, TaskSnapshot
from outrider.runtime.services import Services
from outrider.runtime.signals import EVERYTHING
from outrider.runtime.snapshots import (
    session_of,
    snapshot_of_organization,
    snapshot_of_session,
    snapshot_of_task,
)
from outrider.runtime.stream import EventReader, Life, LogReader, OutputReader, life_of

PAGE = 16
"""How many entries one who is behind reads at once: what is in memory for it while it is sent."""

NEWS = 100
"""How many entries a feed reads at once: a short read, see `stores.views`."""

PIECE = 32 * 1024
"""How many bytes a stream takes at once, unless one event is longer."""

RING, ROOM = 1024 * 1024, 16 * 1024 * 1024
"""How many bytes of what was read last a feed keeps, and all feeds together."""

TURNS = 8
"""How many of those who are behind read at the same time."""

SPARE_READERS = 16
"""How many readers a feed keeps for those who were behind and come for the next page."""

LOOK = 2.0
"""Seconds between two looks for what no signal told of."""

PER_STREAM, LONGEST_PACE = 0.000025, 0.03
"""Seconds that a feed waits for each of its streams before it reads on: a crowd is told more at once, less often."""

RETRIES = 0.2, 2.0
"""Seconds until a read that the store could not do is tried again: the first time, and at most."""

HIDDEN = 0.02, 0.08, 0.3
"""Seconds after which the log of all sessions is read again that has nothing new: see `_LogSource`."""

KEPT_SNAPSHOT = 0.5
"""Seconds for which a snapshot serves whoever comes, if nothing was written since."""

CLOSED = "store_closed"
"""The code of a store that this process has closed: nothing more comes from it."""

_MOST_CURSOR = 2**63 - 1

Reason: TypeAlias = Literal["task_ended", "task_deleted", "session_deleted", "server_stopping", "failed"]
"""Why a stream ends: there is nothing more to come, or this process tells no more of it."""

_GONE: tuple[Reason, ...] = ("task_deleted", "session_deleted")
"""After which nothing that was read may be told: who has the id now may be somebody else."""

Tell: TypeAlias = "Callable[[int, str, BaseModel], bytes]"
"""What an edge makes of something at a cursor: `snapshot`, `output`, or the type of an event."""

Entries: TypeAlias = "list[tuple[int, bytes]]"


class Live:
    """The feeds of one process, over its store. Belongs to one loop.

    Whoever opens a stream hands in the services within which it may see what it asks for; a session or task that lies
    within them is then read as it is, for all who may see it. What an organization has is read within them.

    An id that was deleted may be given again. What is shared is of one life of it, and ends with that.
    """

    def __init__(self, services: Services, tell: Tell) -> None:
        self.tell = tell
        self.turns = asyncio.Semaphore(TURNS)
        self.held = 0
        """Bytes that all feeds keep."""
        self._services = services
        self._feeds: dict[Hashable, Feed] = {}
        self._by_topic: dict[str, set[Feed]] = {}
        self._snapshots: dict[Hashable, asyncio.Task[tuple[int, bytes]]] = {}
        self._stop: Callable[[], None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._must_look = False
        self._must_sweep = False
        self._sweep: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._position: int | None = None
        """Up to where the log of all sessions was looked at for who is concerned."""
        self._heads: Mapping[str, Head] = {}

    @property
    def feeds(self) -> int:
        """How many feeds are open."""
        return len(self._feeds)

    async def session(
        self, services: Services, session_id: str, after: int | None = None, *, output: bool = False
    ) -> Stream:
        """A session's events after that number, or a snapshot and what follows; with `output` what was printed, too.

        Raises NotFound, and InvalidArguments for a number that no event has yet.
        """
        check_texts(session_id=session_id)
        session = await session_of(services.views, session_id)
        life, head, first = life_of(session), session.last_seq, b""
        if after is None:
            shared: Hashable = ("session", session_id, life)
            take = partial(snapshot_of_session, self._services, session_id, life)
            head, first = await self._snapshot(shared, head, take)
            after = head
        _check_cursor(after, head)
        key: Hashable = ("session", session_id, life, output)
        source = partial(_SessionSource, self._services, session_id, life, output)
        return self._open(key, head, source, after, first, session.created_at)

    async def task(self, services: Services, task_id: str, after: int | None = None) -> Stream:
        """A task's events after that number of its session's log, or a snapshot and what follows, until it has ended.

        Raises NotFound, and InvalidArguments for a number that no event has yet.
        """
        check_texts(task_id=task_id)
        task = await services.views.task(task_id)
        if task is None:
            raise NotFound.of("task", task_id)
        life = life_of(task.input)
        key: Hashable = ("task", task_id, life)
        head, first = (await session_of(services.views, task.session_id)).last_seq, b""
        if after is None:
            head, first = await self._snapshot(key, head, partial(snapshot_of_task, self._services, task_id, life))
            after = head
        _check_cursor(after, head)
        source = partial(_TaskSource, self._services, task.session_id, task_id, life)
        return self._open(key, head, source, after, first, task.input.created_at)

    async def output(self, services: Services, task_id: str, start: int | None = None) -> Stream:
        """A task's output from a byte offset on, or all that is kept, until it has ended.

        Raises NotFound, and InvalidArguments for an offset beyond what was printed.
        """
        check_texts(task_id=task_id)
        task = await services.views.task(task_id)
        if task is None:
            raise NotFound.of("task", task_id)
        end = (await services.views.output(task_id, start=_MOST_CURSOR, limit=1)).next
        if start is not None:
            _check_cursor(start, end)
        life = life_of(task.input)
        source = partial(_OutputSource, self._services, task.session_id, task_id, life)
        return self._open(("output", task_id, life), end, source, start or 0, b"", task.input.created_at)

    async def organization(
        self, services: Services, organization_id: str | None, after: int | None = None, *, bounds: Hashable = None
    ) -> Stream:
        """The events of all sessions of an organization after that position, or a snapshot and what follows.

        `bounds` names what else bounds what the services show. Raises InvalidArguments for a position that no event
        has yet.
        """
        key: Hashable = ("organization", organization_id, bounds)
        head, first = await services.views.position(), b""
        if after is None:
            head, first = await self._snapshot(key, head, lambda: snapshot_of_organization(services, organization_id))
            after = head
        # The entry that it was told with may have been deleted since, and all after it.
        _check_cursor(after, head if after <= head else await services.views.horizon())
        return self._open(key, head, lambda at: _LogSource(services, organization_id, at), after, first)

    # --- feeds ---------------------------------------------------------------------------------------

    def _open(
        self,
        key: Hashable,
        head: int,
        source: Callable[[int], _Source],
        after: int,
        first: bytes,
        created_at: Instant | None = None,
    ) -> Stream:
        feed = self._feeds.get(key)
        if feed is None or feed.reason is not None:
            feed = Feed(self, key, source, head)
            self._feeds[key] = feed
            for topic in feed.topics:
                self._by_topic.setdefault(topic, set()).add(feed)
            if self._stop is None:
                self._begin()
            feed.ring()
        return Stream(feed, after, first, created_at)

    def forget(self, feed: Feed) -> None:
        """Let go of a feed that nobody follows any more."""
        if self._feeds.get(feed.key) is feed:
            del self._feeds[feed.key]
        for topic in feed.topics:
            others = self._by_topic.get(topic, set())
            others.discard(feed)
            if not others:
                self._by_topic.pop(topic, None)
        if not self._by_topic and self._stop is not None:
            self._end()

    async def _snapshot(self, key: Hashable, head: int, take: Callable[[], Awaitable[_Taken]]) -> tuple[int, bytes]:
        """A snapshot that has all up to the cursor `head`, and its own cursor; one for all who ask at the same time."""
        while (taking := self._snapshots.get(key)) is not None:
            taken = await asyncio.shield(taking)
            if taken[0] >= head:
                return taken
            if self._snapshots.get(key) is taking:
                break
        taking = self._snapshots[key] = asyncio.create_task(self._take(take))
        taking.add_done_callback(lambda done: self._taken(key, done))
        return await asyncio.shield(taking)

    async def _take(self, take: Callable[[], Awaitable[_Taken]]) -> tuple[int, bytes]:
        taken = await take()
        return taken.after, self.tell(taken.after, "snapshot", taken)

    def _taken(self, key: Hashable, taking: asyncio.Task[tuple[int, bytes]]) -> None:
        if taking.cancelled() or taking.exception() is not None:
            self._drop(key, taking)
        else:
            asyncio.get_running_loop().call_later(KEPT_SNAPSHOT, self._drop, key, taking)

    def _drop(self, key: Hashable, taking: asyncio.Task[tuple[int, bytes]]) -> None:
        if self._snapshots.get(key) is taking:
            del self._snapshots[key]

    # --- what moves ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._position = None
        self._heads = {}
        self._must_sweep = False
        self._stop = self._services.ledger.listen(self._on_signal)
        self._sweep = asyncio.get_running_loop().call_later(LOOK, self._look_around)
        self._look_soon()

    def _end(self) -> None:
        assert self._stop is not None
        self._stop()
        self._stop = None
        for running in (self._sweep, self._looking, self._sweeping):
            if running is not None:
                running.cancel()
        self._sweep = self._looking = self._sweeping = None

    def _on_signal(self, signal: Signal) -> None:
        if signal.unknown:
            self._must_sweep = True
            self._look_soon()
        if signal.session_ids or signal.task_ids:
            self._ring(chain(signal.session_ids, signal.task_ids, (EVERYTHING,)))

    def _ring(self, topics: Iterable[str]) -> None:
        for topic in topics:
            for feed in self._by_topic.get(topic, ()):
                feed.ring(HIDDEN)

    def _look_soon(self) -> None:
        """Look who is concerned by what another process wrote."""
        self._must_look = True
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        views, pause = self._services.views, RETRIES[0]
        try:
            while self._must_look:
                self._must_look = False
                try:
                    if self._position is None:
                        self._position = await views.position()
                        self._ring(list(self._by_topic))
                    while news := await views.news(after=self._position, limit=NEWS):
                        self._position = news[-1].position
                        topics = {each.session_id for each in news} | {each.task_id or "" for each in news}
                        self._ring({*topics, EVERYTHING})
                        await asyncio.sleep(0)
                    pause = RETRIES[0]
                except (StoreUnavailable, StoreLocked):
                    self._must_look = True
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, RETRIES[1])
        except Exception as error:  # noqa: BLE001 - the next signal tries again, and those who follow go on
            log.error("who follows events may hear of them late", exc_info=error)
        finally:
            if self._looking is asyncio.current_task():
                self._looking = None

    def _look_around(self) -> None:
        """Ring for what no signal told of; of that there is little, so seldom."""
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(LOOK, self._look_around)
        for feed in self._by_topic.get(EVERYTHING, ()):
            feed.ring()
        if self._must_sweep and self._sweeping is None:
            self._must_sweep = False
            self._sweeping = loop.create_task(self._compare())

    async def _compare(self) -> None:
        """Ring for the sessions whose log has another end than at the last look, and for those that are gone.

        The position of that end tells it from the one of the same number in another life of the session.

        The news of PostgreSQL leave out what a transaction wrote while an older one goes on, whoever has that.
        """
        try:
            sessions = {feed.session_id for feed in self._feeds.values() if feed.session_id is not None}
            heads = await self._services.views.heads(list(sessions)) if sessions else {}
            before, self._heads = self._heads, heads
            moved = {id for id in sessions if id not in heads or before.get(id) != heads[id]}
            for feed in list(self._feeds.values()):
                if feed.session_id in moved:
                    feed.ring()
        except (StoreUnavailable, StoreLocked):
            self._must_sweep = True
        except Exception as error:  # noqa: BLE001 - the next signal tries again, and those who follow go on
            log.error("who follows events may hear of them late", exc_info=error)
        finally:
            if self._sweeping is asyncio.current_task():
                self._sweeping = None


class Feed:
    """What is read of one log for all who follow it. `_ring` has all of it after the cursor `start`, up to `head`."""

    def __init__(self, live: Live, key: Hashable, source: Callable[[int], _Source], head: int) -> None:
        self._live = live
        self._new_source = source
        self._source = source(head)
        self.key = key
        self.topics = self._source.topics
        self.session_id = self._source.session_id
        self.streams: set[Stream] = set()
        self.start = head
        self.reason: Reason | None = None
        self._ring: Entries = []
        self._size = 0
        self._joined: dict[int, tuple[int, bytes]] = {}
        self._has_rung = False
        self._later: Sequence[float] = ()
        self._pump: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._behind: dict[int, asyncio.Task[tuple[int, bytes]]] = {}
        self._spare: OrderedDict[int, _Source] = OrderedDict()

    def ring(self, later: Sequence[float] = ()) -> None:
        """Have it look for more; and again after these seconds, each counted from the look before, if it finds none."""
        self._has_rung = True
        self._later = later or self._later
        if self._pump is None and self.reason is None:
            self._pump = asyncio.get_running_loop().create_task(self._read_on())

    def end(self, reason: Reason) -> None:
        """Tell all who follow that nothing more comes of it."""
        if self.reason is None:
            self.reason = reason
            self._let_go()
            for stream in self.streams:
                stream.wake()

    def leave(self, stream: Stream) -> None:
        """One follower less; with the last of them the feed goes."""
        self.streams.discard(stream)
        if not self.streams:
            self.reason = self.reason or "failed"  # nobody hears of it
            self._let_go()
            for reading in self._behind.values():
                reading.cancel()
            self._live.held -= self._size
            self._ring, self._joined, self._size = [], {}, 0
            self._spare.clear()

    def after(self, cursor: int) -> tuple[int, bytes] | None:
        """What comes after a cursor, as far as it is here, and the cursor after that; None for who is behind."""
        if cursor < self.start:
            return None
        found = self._joined.get(cursor)
        if found is None:
            first = bisect_right(self._ring, cursor, key=_cursor_of)
            last, size, pieces = cursor, 0, []
            for at, told in self._ring[first:]:
                pieces.append(told)
                last, size = at, size + len(told)
                if size >= PIECE:
                    break
            found = self._joined[cursor] = last, pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return found

    async def behind(self, cursor: int) -> tuple[int, bytes]:
        """A page of the log after a cursor, read now; and the cursor after it."""
        reading = self._behind.get(cursor)
        if reading is None:
            reading = self._behind[cursor] = asyncio.get_running_loop().create_task(self._read_behind(cursor))
            reading.add_done_callback(lambda done: self._has_read(cursor, done))
        return await asyncio.shield(reading)

    def _has_read(self, cursor: int, reading: asyncio.Task[tuple[int, bytes]]) -> None:
        self._behind.pop(cursor, None)
        if not reading.cancelled():
            reading.exception()  # whoever still waits for it is told

    async def _read_behind(self, cursor: int) -> tuple[int, bytes]:
        async with self._live.turns:
            source = self._spare.pop(cursor, None) or self._new_source(cursor)
            pause = RETRIES[0]
            page: tuple[_Records, Reason | None] | None = None
            while page is None:
                try:
                    page = await source.read(PAGE), await source.over()
                except (StoreUnavailable, StoreLocked) as error:
                    if error.code == CLOSED:
                        raise
                    source = self._new_source(cursor)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, RETRIES[1])
            found, reason = page
            if reason in _GONE:
                self.end(reason)
                found = []
            entries = self._told(found)
        # What is missing between the end of the log and what is kept here was deleted.
        end = source.after if entries or self.reason is not None else max(source.after, self.start)
        if end < self.start:
            self._spare[end] = source
            if len(self._spare) > SPARE_READERS:
                self._spare.popitem(last=False)
        return end, b"".join(told for _, told in entries)

    async def _read_on(self) -> None:
        pause = RETRIES[0]
        try:
            while self._has_rung and self.reason is None:
                self._has_rung = False
                try:
                    if await self._read_all():
                        self._later = ()
                    elif self._source.is_hidden:
                        self._read_later()
                    pause = RETRIES[0]
                except (StoreUnavailable, StoreLocked) as error:
                    if error.code == CLOSED:
                        raise
                    # What was folded on the way may be half done, so read on with nothing in hand.
                    self._source = self._new_source(self._head)
                    self._has_rung = True
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, RETRIES[1])
                pace = min(len(self.streams) * PER_STREAM, LONGEST_PACE)
                if pace > 0.001:
                    await asyncio.sleep(pace)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who follow are told that this is no end
            self.end(self.reason_of(error))
        finally:
            self._pump = None

    def reason_of(self, error: Exception) -> Reason:
        """Why a stream ends whose log could not be read."""
        if isinstance(error, StoreUnavailable) and error.code == CLOSED:
            return "server_stopping"
        log.error("a live stream failed", feed=str(self.key), exc_info=error)
        return "failed"

    @property
    def _head(self) -> int:
        return self._ring[-1][0] if self._ring else self.start

    async def _read_all(self) -> int:
        """Read what there is, and how much that was; end where nothing more can come."""
        source, count = self._source, 0
        was_over: Reason | None = None
        while True:
            found = await source.read(NEWS)
            reason = await source.over()
            if reason in _GONE:
                self.end(reason)
                return count
            count += len(found)
            self._keep(found)
            if not found and was_over is not None:  # it was over before this read, so there is no more
                self.end(was_over)
                return count
            was_over = reason
            if len(found) >= NEWS:
                await asyncio.sleep(0)
            elif reason is None:
                return count

    def _read_later(self) -> None:
        if self._later and self._again is None and self.reason is None:
            self._again = asyncio.get_running_loop().call_later(self._later[0], self._ring_again)
            self._later = self._later[1:]

    def _ring_again(self) -> None:
        self._again = None
        self.ring()

    def _told(self, found: Sequence[tuple[int, str, BaseModel]]) -> Entries:
        """What was read, as bytes; what has the cursor of the entry before goes with the one after it."""
        entries: Entries = []
        before = b""
        for number, (cursor, name, record) in enumerate(found):
            told = before + self._live.tell(cursor, name, record)
            is_marker = number + 1 < len(found) and name == "log.trimmed"
            before = told if is_marker else b""
            if not is_marker:
                entries.append((cursor, told))
        return entries

    def _keep(self, found: Sequence[tuple[int, str, BaseModel]]) -> None:
        """Tell all who follow, and keep what was told for those who are not ready to take it."""
        if not found:
            return
        entries = self._told(found)
        keeping = min((stream.cursor for stream in self.streams if stream.cursor >= self.start), default=self._head)
        self._drop(bisect_right(self._ring, keeping, key=_cursor_of))
        self._ring += entries
        added = sum(len(told) for _, told in entries)
        self._size += added
        self._live.held += added
        excess = max(self._size - RING, self._live.held - ROOM)
        if excess > 0:
            count = 0
            while count < len(self._ring) and excess > 0:
                excess -= len(self._ring[count][1])
                count += 1
            self._drop(count)
        self._joined.clear()
        for stream in self.streams:
            stream.wake()

    def _drop(self, count: int) -> None:
        if count:
            gone = sum(len(told) for _, told in self._ring[:count])
            self.start = self._ring[count - 1][0]
            del self._ring[:count]
            self._size -= gone
            self._live.held -= gone

    def _let_go(self) -> None:
        self._live.forget(self)
        if self._again is not None:
            self._again.cancel()
        if self._pump is not None and self._pump is not asyncio.current_task():
            self._pump.cancel()


class Stream:
    """One who follows. `cursor` is how far it was told; `reason` is why it ended, once it has.

    `created_at` is when the session or task was made, None for the log of all.
    """

    __slots__ = ("_bell", "_feed", "_first", "created_at", "cursor", "reason")

    def __init__(self, feed: Feed, cursor: int, first: bytes, created_at: Instant | None) -> None:
        self._feed = feed
        self._first = first
        self._bell: asyncio.Future[None] | None = None
        self.cursor = cursor
        self.created_at = created_at
        self.reason: Reason | None = None
        feed.streams.add(self)

    @property
    def is_behind(self) -> bool:
        """Whether what comes next has to be read from the log."""
        return self.cursor < self._feed.start

    async def take(self) -> bytes | None:
        """What comes next, as soon as there is any; nothing (b"") after a `wake`, None at the end."""
        if self._first:
            first, self._first = self._first, b""
            return first
        is_awake = False
        while self.reason is None:
            found = self._feed.after(self.cursor)
            is_behind = found is None
            try:
                cursor, told = found or await self._feed.behind(self.cursor)
            except Exception as error:  # noqa: BLE001 - whatever it is, who follows is told that this is no end
                self.reason = self._feed.reason_of(error)
                break
            self.cursor = max(self.cursor, cursor)
            if told:
                return told
            if self._feed.reason is not None:
                self.reason = self._feed.reason
            elif is_awake:
                return b""
            elif not is_behind:
                await self._rest()
                is_awake = True
        return None

    def wake(self) -> None:
        """End the wait for more."""
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    def end(self, reason: Reason) -> None:
        """End it: what it was not told yet, it is not told."""
        self.reason = self.reason or reason
        self.wake()

    def close(self) -> None:
        """Let go of it. To be called in any case, once."""
        self._feed.leave(self)

    async def _rest(self) -> None:
        self._bell = asyncio.get_running_loop().create_future()
        try:
            await self._bell
        finally:
            self._bell = None


# --- what there is to follow -----------------------------------------------------------------------------

_Records: TypeAlias = "list[tuple[int, str, BaseModel]]"


_Taken: TypeAlias = "SessionSnapshot | TaskSnapshot | OrganizationSnapshot"


class _Source(Protocol):
    """A log to be read from a cursor on."""

    @property
    def topics(self) -> tuple[str, ...]:
        """The names in signals that concern it."""
        ...

    @property
    def session_id(self) -> str | None:
        """The session that it is of, None for all."""
        ...

    @property
    def is_hidden(self) -> bool:
        """Whether a signal may come before the log shows what it is about."""
        ...

    @property
    def after(self) -> int:
        """The cursor after what was read."""
        ...

    async def read(self, limit: int) -> _Records:
        """What comes next: at least `limit` if there may be more. Each with its cursor, and what it is."""
        ...

    async def over(self) -> Reason | None:
        """Why nothing comes but what is there now, if so. To be asked after each read, before what it found is told."""
        ...


class _SessionSource:
    is_hidden = False

    def __init__(self, services: Services, session_id: str, life: Life, output: bool, after: int) -> None:
        self._views = services.views
        self._life = life
        self._reader = EventReader(services, session_id, after=after, output=output)
        self.session_id = session_id
        self.topics = (session_id,)

    @property
    def after(self) -> int:
        return self._reader.after

    async def read(self, limit: int) -> _Records:
        return [(event.seq, event.type, event) for event in await self._reader.read(limit)]

    async def over(self) -> Reason | None:
        session = await self._views.session(self.session_id)
        return "session_deleted" if session is None or life_of(session) != self._life else None


class _TaskSource:
    is_hidden = False

    def __init__(self, services: Services, session_id: str, task_id: str, life: Life, after: int) -> None:
        self._views = services.views
        self._reader = EventReader(services, session_id, after=after, task_id=task_id)
        self._task_id = task_id
        self._life = life
        self.session_id = session_id
        self.topics = (task_id,)

    @property
    def after(self) -> int:
        return self._reader.after

    async def read(self, limit: int) -> _Records:
        return [(event.seq, event.type, event) for event in await self._reader.read(limit)]

    async def over(self) -> Reason | None:
        return await _end_of(self._views, self._task_id, self._life)


class _OutputSource:
    is_hidden = False

    def __init__(self, services: Services, session_id: str, task_id: str, life: Life, after: int) -> None:
        self._views = services.views
        self._reader = OutputReader(services, task_id, after)
        self._task_id = task_id
        self._life = life
        self.session_id = session_id
        self.topics = (task_id,)

    @property
    def after(self) -> int:
        return self._reader.after

    async def read(self, limit: int) -> _Records:
        return [(piece.next, "output", piece) for piece in await self._reader.read(limit)]

    async def over(self) -> Reason | None:
        return await _end_of(self._views, self._task_id, self._life)


class _LogSource:
    """PostgreSQL shows of the log of all sessions only what no open transaction can come before any more: a signal
    comes sooner. So it is looked at again.
    """

    is_hidden = True
    session_id = None
    topics = (EVERYTHING,)

    def __init__(self, services: Services, organization_id: str | None, after: int) -> None:
        self._reader = LogReader(services, organization_id, after=after)

    @property
    def after(self) -> int:
        return self._reader.after

    async def read(self, limit: int) -> _Records:
        found: _Records = []
        while len(found) < limit and (page := await self._reader.read(limit)):
            found += [(position, event.type, event) for position, event in page]
        return found

    async def over(self) -> Reason | None:
        return None


async def _end_of(views: Views, task_id: str, life: Life) -> Reason | None:
    task = await views.task(task_id)
    if task is None or life_of(task.input) != life:
        return "task_deleted"
    return "task_ended" if task.is_terminal else None


def _cursor_of(entry: tuple[int, bytes]) -> int:
    return entry[0]


def _check_cursor(after: int, end: int) -> None:
    if not 0 <= after <= end:
        raise InvalidArguments(
            f"nothing has come to {after} yet, the last is {end}: it is a place in another log, or in this one before "
            "it was restored; leave it out to begin anew",
            details={"after": after, "last": end},
        )
