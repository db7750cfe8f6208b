"""Who waits for what: bells by topic, rung by the store's signals.

A topic is the id of a task or session, or `EVERYTHING`. Signals may be lost, so nobody acts on a ring: who hears one
looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from outrider.core.ledger import Ledger, Signal
from outrider.runtime.clock import Bell, Clock

EVERYTHING = "*"
"""The topic of whatever is written for any task or session; no id has such a name."""


class Signals:
    """The bells of one process."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._clock = clock
        self._bells: dict[str, set[Bell]] = {}
        self._stop = ledger.listen(self._on_signal)

    @contextmanager
    def listen(self, topics: Iterable[str], bell: Bell | None = None) -> Iterator[Bell]:
        """A bell, or the one given, that rings whenever something happens to one of the topics."""
        bell = bell or Bell(self._clock)
        names = set(topics)
        for name in names:
            self._bells.setdefault(name, set()).add(bell)
        try:
            yield bell
        finally:
            for name in names:
                bells = self._bells[name]
                bells.discard(bell)
                if not bells:
                    del self._bells[name]

    def close(self) -> None:
        """Stop listening to the store, and wake whoever still waits."""
        self._stop()
        self._ring_all()

    def _on_signal(self, signal: Signal) -> None:
        if not self._bells:
            return
        if signal.unknown:
            self._ring_all()
            return
        is_something = bool(signal.task_ids or signal.session_ids)
        for topics in (signal.task_ids, signal.session_ids, (EVERYTHING,) if is_something else ()):
            for topic in topics:
                for bell in self._bells.get(topic, ()):
                    bell.ring()

    def _ring_all(self) -> None:
        for bells in list(self._bells.values()):
            for bell in bells:
                bell.ring()
