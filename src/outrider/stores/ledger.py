"""The verbs that both SQL stores share: each hands an operation to the writer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from outrider.core.change import Change
from outrider.core.delivery import Receipt, Standing
from outrider.core.events import FileWrite, Step
from outrider.core.ledger import (
    Claim,
    Claims,
    Decide,
    Document,
    FileMark,
    InboxRow,
    IndexEntry,
    Listener,
    Order,
    OutputChunk,
    Page,
    Pruned,
    Report,
    Signal,
    Verdict,
    WorkerCard,
)
from outrider.core.meters import Charge, ChargeVerdict
from outrider.core.session import NewSession, Seed, Session
from outrider.core.values import Instant
from outrider.stores import operations
from outrider.stores.operations import Operation

R = TypeVar("R")


class SqlLedger(ABC):
    """A `Ledger` but for how it is opened, how a lease is renewed, and how it is closed."""

    def __init__(self) -> None:
        self._listeners: dict[object, Listener] = {}

    @abstractmethod
    async def _do(self, operation: Operation[R]) -> R:
        """Hand an operation to the writer, and wait until it is committed."""

    @abstractmethod
    def _listeners_changed(self) -> None:
        """Somebody listens now."""

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` on the opening loop after each commit, ours or another process's."""
        key = object()
        self._listeners[key] = listener
        self._listeners_changed()
        return lambda: self._listeners.pop(key, None) and None

    def _tell(self, signal: Signal) -> None:
        for listener in tuple(self._listeners.values()):
            listener(signal)

    async def create_session(self, new: NewSession, seed: Seed | None = None) -> Session:
        """Create a session, or return the one of that id; with a `seed`, beginning with copies of another one's."""
        return await self._do(operations.create_session(new, seed))

    async def commit(self, changes: Sequence[Change]) -> Sequence[Verdict]:
        """Commit each Change whole or not at all, in the order given; one verdict for each."""
        return await self._do(operations.commit(changes))

    async def claim(self, claim: Claim, decide: Decide) -> Claims:
        """Take ready tasks that nobody holds, committing what `decide` makes of each; it runs in the writing thread."""
        return await self._do(operations.claim(claim, decide))

    async def control(self, order: Order) -> bool:
        """Carry out an order; False if all was so already."""
        return await self._do(operations.control(order))

    async def keep(self, documents: Sequence[Document], dropped: Sequence[Document] = ()) -> bool:
        """Write documents anew and drop others: all of it, or nothing and False."""
        return await self._do(operations.keep(documents, dropped))

    async def index(self, entries: Sequence[IndexEntry], after: int, upto: int) -> bool:
        """Take tasks into the index that lists go by; False where it does not stand at `after` any more."""
        return await self._do(operations.index(entries, after, upto))

    async def report(self, reports: Sequence[Report]) -> Sequence[bool]:
        """Write live values; False for each whose attempt no longer holds its task."""
        return await self._do(operations.report(reports))

    async def journal(self, steps: Sequence[Step]) -> Sequence[bool]:
        """Write journal rows, replacing those of the same position; False for each whose attempt is over."""
        return await self._do(operations.journal(steps))

    async def append(self, page: Page) -> bool:
        """Append a finished iteration; False, and nothing written, if the attempt is over."""
        return await self._do(operations.append(page))

    async def print(self, chunks: Sequence[OutputChunk]) -> Sequence[bool]:
        """Append output; False for each whose attempt is over."""
        return await self._do(operations.print(chunks))

    async def write_file(self, file: FileWrite, fence: tuple[str, int] | None = None) -> bool:
        """Write a file whole, replacing one of that path; False if the fencing (task id, attempt) is over.

        Raises NotFound when there is no such session.
        """
        return await self._do(operations.write_file(file, fence))

    async def delete_file(self, session_id: str, path: str) -> bool:
        """Delete a file; False if there was none."""
        return await self._do(operations.delete_file(session_id, path))

    async def charge(self, charges: Sequence[Charge]) -> Sequence[ChargeVerdict]:
        """Take down each charge whole, in all meters that it concerns, or not at all."""
        return await self._do(operations.charge(charges))

    async def register(self, card: WorkerCard) -> None:
        """Make a worker known."""
        await self._do(operations.register(card))

    async def retire(self, worker_id: str) -> None:
        """Forget a worker. The tasks it held must have been settled before."""
        await self._do(operations.retire(worker_id))

    async def receive(self, session_id: str, now: Instant, until: Instant, limit: int) -> Sequence[InboxRow]:
        """Take the oldest entries that nobody has at `now`, and let nobody else have them before `until`."""
        return await self._do(operations.receive(session_id, now, until, limit))

    async def acknowledge(
        self, session_id: str, receipts: Sequence[Receipt], until: Instant | None = None
    ) -> Sequence[Standing]:
        """Drop the entries whose receipts are good; with `until` have them kept until then instead. One answer each."""
        return await self._do(operations.acknowledge(session_id, receipts, until))

    async def prune(
        self,
        task_ids: Sequence[str],
        session_ids: Sequence[str] = (),
        *,
        now: Instant | None = None,
        files: Collection[FileMark] | None = None,
    ) -> Pruned:
        """Delete ended tasks whole, and sessions that have no task left; what lives is left as it is, silently."""
        return await self._do(operations.prune(task_ids, session_ids, now, files))
