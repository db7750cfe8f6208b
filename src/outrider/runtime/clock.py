"""Time as an argument: what tells the moment and rings at one.

The runtime never reads a clock of its own, so a test can hold time still. Leases are the exception on purpose:
they count by the monotonic clock of the machine, since they are about this process being alive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Protocol

from outrider.core.errors import InvalidArguments
from outrider.core.ledger import Ledger
from outrider.core.values import Instant, Span

LOOK_AGAIN = 15.0
"""How long a timer trusts that the clock goes as before, in seconds."""

LONGEST = 100 * 365 * 86400
"""The longest length of time, in seconds: moments later than what a calendar holds could not be told."""


class Alarm(Protocol):
    """A call that was arranged for later."""

    def cancel(self) -> None:
        """Call it off."""
        ...


class Clock(Protocol):
    """Tells the time, and calls back at one."""

    def now(self) -> Instant:
        """The present moment in microseconds since the Unix epoch."""
        ...

    def passed(self) -> Span:
        """The microseconds since a moment of its own, which go on evenly whatever `now` is set to."""
        ...

    def call_at(self, moment: Instant, callback: Callable[[], object]) -> Alarm:
        """Call `callback` on the running loop once the moment has come."""
        ...


def retry_after(given: str | None) -> float | None:
    """The seconds that a `Retry-After` asks for, as a number or a date; None where it says nothing that can be read."""
    if given is None:
        return None
    try:
        return max(0.0, float(int(given)))
    except OverflowError:
        return None
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def machine_time() -> Instant:
    """What the machine's clock shows, in microseconds since the Unix epoch."""
    return time.time_ns() // 1000


class SystemClock:
    """The machine's clock; or that of a store that has one, which all who use the store go by."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._now: Callable[[], Instant] = getattr(ledger, "now", machine_time)

    def now(self) -> Instant:
        """The present moment in microseconds since the Unix epoch."""
        return self._now()

    def passed(self) -> Span:
        """The microseconds since the machine was started, without those in which it slept."""
        return time.monotonic_ns() // 1000

    def call_at(self, moment: Instant, callback: Callable[[], object]) -> Alarm:
        """Call back once the moment has come, by this clock or by the running loop's timer, whichever says so first."""
        return _Timer(self, moment, callback)


class _Timer:
    """Looks at the clock now and then. The loop's timer alone stands still while the machine sleeps, and knows nothing
    of a clock that was set.
    """

    __slots__ = ("_callback", "_clock", "_end", "_handle", "_loop", "_moment")

    def __init__(self, clock: Clock, moment: Instant, callback: Callable[[], object]) -> None:
        self._clock, self._moment, self._callback = clock, moment, callback
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + max(0.0, (moment - clock.now()) / 1_000_000)
        self._arm()

    def cancel(self) -> None:
        """Call it off."""
        self._handle.cancel()

    def _arm(self) -> None:
        self._handle = self._loop.call_at(min(self._end, self._loop.time() + LOOK_AGAIN), self._look)

    def _look(self) -> None:
        if self._loop.time() >= self._end or self._clock.now() >= self._moment:
            self._callback()
        else:
            self._arm()


class Bell:
    """Rings for one waiter. A ring before the wait is not lost; several rings are one."""

    __slots__ = ("_clock", "_future", "_rung")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rung = False
        self._future: asyncio.Future[None] | None = None

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody waits, and it has not rung."""
        return self._future is not None and not self._future.done()

    def ring(self) -> None:
        """Wake the waiter, or the next one. Only on the loop's own thread."""
        self._rung = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self, until: Instant | None = None) -> bool:
        """Wait for a ring, at most until a moment. Returns whether it rang."""
        if not self._rung:
            self._future = asyncio.get_running_loop().create_future()
            alarm = None if until is None else self._clock.call_at(until, self._time_up)
            try:
                await self._future
            finally:
                self._future = None
                if alarm is not None:
                    alarm.cancel()
        rung, self._rung = self._rung, False
        return rung

    def _time_up(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


def span(value: timedelta | float) -> Span:
    """Return a length of time, given as a timedelta or in seconds, in microseconds.

    Raises InvalidArguments for what is no number, and for more than a hundred years.
    """
    try:
        if isinstance(value, bool | str | bytes):  # of which float() would make a number
            raise TypeError
        seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidArguments(f"a length of time is a timedelta or a number of seconds, not {value!r:.100}") from None
    if not abs(seconds) <= LONGEST:  # which NaN is not either
        raise InvalidArguments(f"a length of time is at most a hundred years, not {seconds:g} seconds")
    return round(seconds * 1_000_000)


def instant(value: datetime) -> Instant:
    """Return a moment in microseconds since the Unix epoch.

    Raises InvalidArguments for what is no datetime, and for one without a time zone.
    """
    if not isinstance(value, datetime):
        raise InvalidArguments(f"a moment is a datetime with a time zone, not {value!r:.100}")
    if value.utcoffset() is None:
        raise InvalidArguments(f"{value!r} has no time zone, so nobody can tell which moment that is")
    return round((value - _EPOCH) / timedelta(microseconds=1))


def as_datetime(moment: Instant) -> datetime:
    """Return a moment as an aware datetime in UTC."""
    return _EPOCH + timedelta(microseconds=moment)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
