"""What running tasks say, on its way to the store: output and live values of many attempts, a few writes.

The first word of a task is written at once; after that, output waits at most the output interval and progress
the progress interval, and the newest wins. What is left at its end is written with that, in one transaction.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from outrider.core.errors import StoreError
from outrider.core.ledger import OutputChunk, Report
from outrider.runtime.attempt import Attempt
from outrider.runtime.clock import Bell
from outrider.runtime.log import log
from outrider.runtime.services import Services

Word = TypeVar("Word", OutputChunk, Report)


class Voice:
    """Writes what attempts have to say. `hear` may be called from any thread."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._bell = Bell(services.clock)
        self._dirty: dict[Attempt, None] = {}
        self._hearing = threading.Lock()
        self._loop = asyncio.get_running_loop()

    @property
    def is_silent(self) -> bool:
        """Whether all that was said is written."""
        return self._bell.is_waited_for and not self._dirty

    def hear(self, attempt: Attempt) -> None:
        """An attempt has something to say."""
        with self._hearing:
            if attempt in self._dirty:
                return
            self._dirty[attempt] = None
        self._loop.call_soon_threadsafe(self._bell.ring)

    def forget(self, attempt: Attempt) -> None:
        """An attempt is over; what it had to say was written with its end."""
        with self._hearing:
            self._dirty.pop(attempt, None)

    async def run(self) -> None:
        """Write until cancelled."""
        settings = self._services.settings
        while True:
            await self._bell.wait()
            try:
                await self._write_all()
            except StoreError as error:
                if error.is_final:
                    return  # the worker stops for it as well
                log.error("output is not written yet; trying again", reason=str(error))
                await asyncio.sleep(0.5)
            except Exception:  # noqa: BLE001 - what one task said must not silence the others for good
                log.exception("output could not be written, and is lost")
            await asyncio.sleep(settings.output_interval)
            if self._dirty:
                self._bell.ring()

    async def _write_all(self) -> None:
        """Write what there is to say.

        What is taken from an attempt is handed to the store before this gives way to anybody: an attempt that
        ends meanwhile finds nothing left to say, and the fence would refuse what came after its end.
        """
        with self._hearing:
            heard, self._dirty = self._dirty, {}
        attempts = [attempt for attempt in heard if not attempt.is_over]
        await self.print(attempts)
        await self._report(attempts)

    async def print(self, attempts: Sequence[Attempt]) -> None:
        """Write the output that waits. Where a StoreError is raised, it goes on waiting; see `hear`."""
        chunks = [chunk for attempt in attempts for chunk in attempt.take_output()]
        if not chunks:
            return
        by_id = {attempt.task_id: attempt for attempt in attempts}
        failed: StoreError | None = None
        for chunk, verdict in reversed(await _verdicts(self._services.ledger.print, chunks)):
            attempt = by_id[chunk.task_id]
            if isinstance(verdict, StoreError):
                attempt.put_back([chunk])
                failed = verdict
            elif not _is_held(attempt, verdict):
                attempt.supersede()
        if failed is not None:
            for attempt in attempts:  # their progress was not written either
                self.hear(attempt)
            raise failed

    def _report_of(self, attempt: Attempt) -> Report | None:
        if not attempt.live_is_dirty:
            if attempt.touched and attempt.record.input.timeouts.idle is not None:
                attempt.touched = False
                return Report(attempt.task_id, attempt.number, attempt.active_at)
            return None
        now = time.monotonic()
        if attempt.turns or now - attempt.reported_at < self._services.settings.progress_interval:
            with self._hearing:
                self._dirty[attempt] = None
            return None
        attempt.reported_at = now
        attempt.touched = False
        return Report(attempt.task_id, attempt.number, attempt.active_at, *attempt.take_news())

    async def _report(self, attempts: list[Attempt]) -> None:
        open_ones = [attempt for attempt in attempts if not attempt.is_over]
        reports = [report for attempt in open_ones if (report := self._report_of(attempt)) is not None]
        if not reports:
            return
        failed: StoreError | None = None
        by_id = {attempt.task_id: attempt for attempt in open_ones}
        for report, verdict in await _verdicts(self._services.ledger.report, reports):
            attempt = by_id[report.task_id]
            if isinstance(verdict, StoreError):
                failed = verdict
                if report.live is not None:
                    attempt.put_back(delta=report.delta or {})
            elif not _is_held(attempt, verdict):
                attempt.supersede()
        if failed is not None:
            raise failed


async def _verdicts(
    write: Callable[[Sequence[Word]], Awaitable[Sequence[bool]]], words: Sequence[Word]
) -> list[tuple[Word, bool | Exception]]:
    """Write what was said, and tell of each whether its attempt holds its task, or what kept it from being written.

    All is written together; where that cannot be done for the sake of one, one by one.
    """
    try:
        return list(zip(words, await write(words), strict=True))
    except StoreError as error:
        return [(word, error) for word in words]
    except Exception as error:  # noqa: BLE001 - what one task said must not silence the others
        if len(words) == 1:
            return [(words[0], error)]
    alone = await asyncio.gather(*(_verdicts(write, [word]) for word in words))
    return [verdict for (verdict,) in alone]


def _is_held(attempt: Attempt, verdict: bool | Exception) -> bool:
    if isinstance(verdict, Exception):
        log.error("what a task said cannot be written, and is lost", task=attempt.task_id, exc_info=verdict)
        return True
    return verdict
