"""The index that lists go by: which tasks of a block of numbers have a term, for both SQL stores; see `finder`.

A block's tasks that have a term are one whole number, a bit for each place. Rows are ordered by block first, so that
what is new is written side by side.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

from outrider.core.ledger import IndexEntry
from outrider.core.search import STATE_TERMS
from outrider.stores.rows import encode
from outrider.stores.statements import Statements, listed

SIZE = 2048
"""How many numbers a block has. Part of the schema."""

FEW = 128
"""From how many tasks on a block's row is a bit for each number."""

Key: TypeAlias = tuple[int, str]


def unpack(row: bytes | str) -> int:
    """Tasks of a block, from its row or the hexadecimal digits of it: a bit for each place."""
    data = _data(row)
    if len(data) == SIZE // 8:
        return int.from_bytes(data, "little")
    return bits_of(_places(data))


def bits_of(places: Iterable[int]) -> int:
    """A number with these bits."""
    bits = 0
    for place in places:
        bits |= 1 << place
    return bits


def places_in(bits: int) -> Iterator[int]:
    """The places of the bits that are set, in order."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


def write_entries(statements: Statements, entries: Sequence[IndexEntry]) -> None:
    """Have tasks be found by these terms and by none that they had before. Those that are gone are left out."""
    numbers = dict(statements.array("numbers_of", listed([entry.task_id for entry in entries])))
    there = [(numbers[entry.task_id], entry) for entry in entries if entry.task_id in numbers]
    if not there:
        return
    before = dict(statements.array("passing_terms", listed([number for number, _ in there])))
    added: defaultdict[Key, set[int]] = defaultdict(set)
    taken: defaultdict[Key, set[int]] = defaultdict(set)
    for number, entry in there:
        block, place = divmod(number, SIZE)
        for term in chain((entry.state,), entry.lasting, entry.passing):
            added[block, term].add(place)
        for term in chain(STATE_TERMS, before.get(number, ())):
            taken[block, term].add(place)
    _change(statements, added, taken)
    statements.write("upsert_blocks", _extents(there))
    now = [(number, encode(sorted(entry.passing))) for number, entry in there if entry.passing]
    if now:
        statements.write("upsert_passing_terms", now)
    if gone := before.keys() - {number for number, _ in now}:
        statements.run("delete_passing_terms", listed(gone))


def forget_unlisted(statements: Statements) -> None:
    """Have some tasks that were deleted leave the index: those of one block."""
    gone = statements.array("unlisted", SIZE)
    if not gone:
        return
    block = gone[0] // SIZE
    gone = [number for number in gone if number // SIZE == block]
    if not statements.row("listed_in", block * SIZE, (block + 1) * SIZE - 1)[0]:
        statements.run("delete_terms_of_block", block)
        statements.run("delete_block", block)
    else:
        places = {number % SIZE for number in gone}
        rows = _read(statements.array("terms_of_block", block))
        _store(statements, rows, {key: _changed(row, set(), places) for key, row in rows.items()})
    statements.run("leave_index", listed(gone))


def _extents(there: Iterable[tuple[int, IndexEntry]]) -> list[tuple[Any, ...]]:
    found: dict[int, list[Any]] = {}
    for number, entry in there:
        id, at = entry.task_id, entry.created_at
        block = found.setdefault(number // SIZE, [id, id, at, at])
        block[:] = min(block[0], id), max(block[1], id), min(block[2], at), max(block[3], at)
    return [(block, *extent) for block, extent in sorted(found.items())]


def _change(statements: Statements, added: Mapping[Key, set[int]], taken: Mapping[Key, set[int]]) -> None:
    keys, none = sorted(added.keys() | taken.keys()), set[int]()
    rows = _read(statements.array("terms_at", encode(keys)))
    _store(
        statements,
        rows,
        {key: _changed(rows.get(key, b""), added.get(key, none), taken.get(key, none)) for key in keys},
    )


def _changed(row: bytes, added: set[int], taken: set[int]) -> bytes:
    """The row of a term, empty for none, without some places, and with others."""
    if len(row) == SIZE // 8:
        bits = int.from_bytes(row, "little") & ~bits_of(taken) | bits_of(added)
        if bits.bit_count() >= FEW:
            return bits.to_bytes(SIZE // 8, "little")
        places = set(places_in(bits))
    else:
        old = set(_places(row))
        places = (old - taken) | added
        if places == old:
            return row
        if len(places) >= FEW:
            return bits_of(places).to_bytes(SIZE // 8, "little")
    return struct.pack(f"<{len(places)}H", *places)


def _store(statements: Statements, rows: Mapping[Key, bytes], changed: Mapping[Key, bytes]) -> None:
    written = [(*key, row) for key, row in changed.items() if row and row != rows.get(key)]
    emptied = [key for key, row in changed.items() if not row and key in rows]
    if written:
        statements.write("upsert_terms", written)
    if emptied:
        statements.run("delete_terms", encode(emptied))


def _read(rows: Iterable[Sequence[Any]]) -> dict[Key, bytes]:
    return {(block, term): _data(row) for block, term, row in rows}


def _data(row: bytes | str) -> bytes:
    return bytes.fromhex(row) if isinstance(row, str) else row


def _places(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 2}H", data)
