"""Finding a page of tasks by the index, whatever a filter combines.

What a filter wants is the `and` of a few numbers for each block, so a page takes the time to read some short rows of
each, however few tasks there are on it. Exact at every moment: what the index lacks yet is looked at itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple, TypeAlias

from outrider.core.ledger import TaskFilter
from outrider.core.search import AnyOf, ids_in, passes, wanted_terms
from outrider.core.task import Task
from outrider.core.values import Instant, evolve
from outrider.stores.batch import AFTER_ANY, tasks_of
from outrider.stores.index import SIZE, places_in, unpack
from outrider.stores.statements import Statements, listed

BEHIND = 100_000
"""How many log entries the index may lack until it is of no use: a page is then looked for among all tasks."""

STEPS = (2, 8, 32, 128, 512)
"""How many blocks are read at once, one after the other: mostly the first have enough."""

LOOKED_AT = 500
"""How many tasks are read at once where each has to be looked at for a text."""

EVERY = (1 << SIZE) - 1

Admits: TypeAlias = Callable[[Task], bool]

Look: TypeAlias = Callable[[TaskFilter, Sequence[int]], list[Task]]
"""Reads the page of a filter, but for its text, among the tasks of these numbers."""


def goes_by_index(filter: TaskFilter) -> bool:
    """Whether no other index leads straight to what a filter wants, in its order."""
    if filter.text is not None or filter.created_after is not None or filter.created_before is not None:
        return True
    is_of_one = filter.session_id is not None or filter.root_session_id is not None
    return len(wanted_terms(filter)) > int(is_of_one)


def admitted(read: Callable[[TaskFilter], Iterable[Task]], filter: TaskFilter, admits: Admits) -> list[Task]:
    """The first tasks of a page that are admitted, of what `read` says a page is: the next ones make up for others."""
    found: list[Task] = []
    while True:
        page = sorted(read(filter), key=lambda task: task.id, reverse=filter.newest_first)[: filter.limit]
        found += (task for task in page if admits(task))
        if len(page) < filter.limit or len(found) >= filter.limit:
            return found
        filter = evolve(filter, after=page[-1].id)


def looked_at(filter: TaskFilter) -> TaskFilter:
    """The same with pages of a sensible length where many of their tasks may not be admitted."""
    return filter if filter.text is None else evolve(filter, limit=max(filter.limit, LOOKED_AT))


class Finder:
    """Finds one page by the index, and among what the index lacks. What it reads need not be one moment.

    Where the index stands is read first. A task that has not moved since is found by its terms; any other is looked
    at itself after that, or was taken in meanwhile as it then was.
    """

    def __init__(self, read: Statements, filter: TaskFilter, look: Look) -> None:
        self._statements = read
        self._filter = filter
        self._look = look
        wanted = wanted_terms(filter)
        self._exact = [each.terms for each in wanted if each.prefix is None]
        self._begun = [each for each in wanted if each.prefix is not None]
        self._found: dict[str, Task] = {}
        self._last: str | None = None
        """The id that a page which is full ends with."""

    def page(self) -> list[Task] | None:
        """The tasks of the page, and maybe more, unsorted; None where the index lacks too much to be of use."""
        (position,) = self._statements.row("indexed")
        if position == 0 or self._statements.row("not_indexed", position, BEHIND)[0] == BEHIND:
            return None
        moved = self._statements.array("moved_since", position)
        if moved:
            self._take(moved, looked_at(self._filter), lambda task: passes(task, self._filter))
        if self._filter.text is not None:
            by_id = tasks_of(self._statements.tasks("tasks_by_id", listed(ids_in(self._filter.text))))
            self._add(task for task in by_id if passes(task, self._filter))
        self._go_through(self._blocks(), _bits_of(moved))
        return list(self._found.values())

    def _go_through(self, blocks: Sequence[_Block], moved: Mapping[int, int]) -> None:
        waiting: list[int] = []
        given = self._filter
        # Terms say all else. What moves at this very moment is left out where it does not pass any more.
        page = TaskFilter(
            created_after=given.created_after,
            created_before=given.created_before,
            after=given.after,
            limit=given.limit,
            newest_first=given.newest_first,
        )
        untold = evolve(given, text=None)
        for block, bits in self._read(blocks):
            if self._is_beyond(block):
                break
            waiting += (block.number * SIZE + place for place in places_in(bits & ~moved.get(block.number, 0)))
            if len(waiting) >= self._filter.limit:
                self._take(waiting, page, lambda task: passes(task, untold))
                waiting = []
        if waiting:
            self._take(waiting, page, lambda task: passes(task, untold))

    def _take(self, numbers: Sequence[int], filter: TaskFilter, admits: Admits) -> None:
        self._add(admitted(lambda page: self._look(page, numbers), filter, admits))

    def _add(self, tasks: Iterable[Task]) -> None:
        self._found.update((task.id, task) for task in tasks)
        if len(self._found) >= self._filter.limit:
            self._last = sorted(self._found, reverse=self._filter.newest_first)[self._filter.limit - 1]

    def _is_beyond(self, block: _Block) -> bool:
        """Whether a full page has no room for anything of this block; nor then of those behind it."""
        if self._last is None:
            return False
        return block.last_id < self._last if self._filter.newest_first else block.first_id > self._last

    def _blocks(self) -> list[_Block]:
        """The blocks that may have something, those that come first on the page first."""
        filter, after = self._filter, self._filter.after
        found = [
            block
            for block in (_Block(*row) for row in self._statements.array("blocks"))
            if (filter.created_after is None or block.last_at >= filter.created_after)
            and (filter.created_before is None or block.first_at < filter.created_before)
            and (after is None or (block.first_id < after if filter.newest_first else block.last_id > after))
        ]
        if filter.newest_first:
            return sorted(found, key=lambda block: block.last_id, reverse=True)
        return sorted(found, key=lambda block: block.first_id)

    def _read(self, blocks: Sequence[_Block]) -> Iterator[tuple[_Block, int]]:
        """Each block with those of its tasks that have the terms, read in ever longer steps."""
        first = 0
        for count in chain(STEPS, repeat(STEPS[-1])):
            step = blocks[first : first + count]
            if not step:
                return
            first += count
            bits = dict.fromkeys((block.number for block in step), EVERY)
            self._keep_exact(bits)
            for wanted in self._begun:
                self._keep_begun(bits, wanted)
            yield from ((block, bits.get(block.number, 0)) for block in step)

    def _keep_exact(self, bits: dict[int, int]) -> None:
        if not self._exact:
            return
        terms = {term for terms in self._exact for term in terms}
        rows: defaultdict[int, dict[str, Any]] = defaultdict(dict)
        for block, term, tasks in self._statements.array("terms", listed(bits.keys()), listed(terms)):
            rows[block][term] = tasks
        for block in list(bits):
            there = rows[block]
            groups = [[there[term] for term in terms if term in there] for terms in self._exact]
            if all(groups):
                for group in groups:
                    bits[block] &= _any_of(group)
            else:
                bits[block] = 0
            if not bits[block]:
                del bits[block]

    def _keep_begun(self, bits: dict[int, int], wanted: AnyOf) -> None:
        if not bits:
            return
        blocks, prefix = listed(bits.keys()), wanted.prefix
        found: defaultdict[int, int] = defaultdict(int)
        rows = self._statements.array("terms_between", blocks, prefix, f"{prefix}{AFTER_ANY}")
        if wanted.terms:
            rows += self._statements.array("terms", blocks, listed(wanted.terms))
        for block, _, tasks in rows:
            found[block] |= unpack(tasks)
        for block in list(bits):
            bits[block] &= found[block]
            if not bits[block]:
                del bits[block]


class _Block(NamedTuple):
    number: int
    first_id: str
    last_id: str
    first_at: Instant
    last_at: Instant


def _any_of(rows: Iterable[bytes | str]) -> int:
    bits = 0
    for row in rows:
        bits |= unpack(row)
    return bits


def _bits_of(numbers: Iterable[int]) -> dict[int, int]:
    bits: defaultdict[int, int] = defaultdict(int)
    for number in numbers:
        bits[number // SIZE] |= 1 << number % SIZE
    return bits
