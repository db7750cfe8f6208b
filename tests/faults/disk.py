"""A disk that loses power: from the notes of the shim to the files as they may be afterwards.

What survives is what POSIX promises and no more. A file has what it had at its last sync; of every later write each
512-byte sector is there or not, and where it is not and the file had not reached so far, the file may have grown all
the same, with zeros or rubbish. A name stands in a folder if the folder was synced since; of later changes to a name
each may have been the last that counted. A sync that failed saves nothing, and what it should have saved counts as
clean: later syncs do not save it either, as Linux has it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

SECTOR = 512
_HEAD = struct.Struct("=c3xIqq")

Survival: TypeAlias = Literal["none", "all", "prefix", "writes", "sectors"]
"""What remains of the writes that were not synced: whole ones in order, any of them, or any of their sectors."""

SURVIVALS: Sequence[Survival] = ("none", "all", "prefix", "writes", "sectors")


@dataclass(frozen=True, slots=True)
class Call:
    """One call: C create, W write, T truncate, F sync, E a sync that failed, U unlink, M make a folder."""

    what: str
    name: str
    at: int = 0
    """The offset of a write, the new size of a truncation."""
    data: bytes = b""


def read_notes(path: Path) -> list[Call]:
    """All calls, in the order in which they were made."""
    raw, at, calls = path.read_bytes(), 0, []
    while at < len(raw):
        what, name_length, a, b = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        name = raw[at : at + name_length].decode()
        at += name_length
        length = b if what == b"W" else 0
        calls.append(Call(what.decode(), name, a, raw[at : at + length]))
        at += length
    return calls


@dataclass(eq=False)
class File:
    """A file, whatever it is called: what is safe, and what is still on its way."""

    safe: bytearray = field(default_factory=bytearray)
    pending: list[Call] = field(default_factory=list)

    def sync(self) -> None:
        for call in self.pending:
            _perform(self.safe, call)
        self.pending.clear()

    def image(self, chance: random.Random, survival: Survival) -> bytes:
        """What the file may hold after the power is gone."""
        content = bytearray(self.safe)
        cut = chance.randint(0, len(self.pending))
        for number, call in enumerate(self.pending):
            match survival:
                case "all":
                    is_whole = True
                case "prefix":
                    is_whole = number < cut
                case "writes":
                    is_whole = chance.random() < 0.5
                case _:
                    is_whole = False
            if is_whole:
                _perform(content, call)
            elif call.what == "W" and survival != "none":
                _tear(content, call, chance, 0.5 if survival == "sectors" else 0.0)
            elif call.what == "T" and survival == "sectors" and chance.random() < 0.5:
                _perform(content, call)
        return bytes(content)


class Disk:
    """The files below one folder, as far as the calls have come."""

    def __init__(self, *, lies: bool = False) -> None:
        self._lies = lies
        """Whether it says that it has synced and has not, which no program can survive."""
        self._now: dict[str, File | None] = {".": None}
        """By name: the file, or None for a folder."""
        self._safe: dict[str, File | None] = {".": None}
        self._moves: list[tuple[str, File | None, bool]] = []
        """Changes of names that no sync of their folder has made safe: the name, what it names, whether it does."""

    def perform(self, call: Call, chance: random.Random) -> None:
        """Follow one call of the program."""
        name = call.name
        match call.what:
            case "C" | "M":
                self._now[name] = File() if call.what == "C" else None
                self._moves.append((name, self._now[name], True))
            case "U":
                self._moves.append((name, self._now.pop(name), False))
            case "W" | "T":
                self._file(name).pending.append(call)
            case "E":
                file = self._now[name]
                if file is not None:  # what is lost is lost from now on, and what is not is safe with the next sync
                    file.safe = bytearray(file.image(chance, chance.choice(SURVIVALS)))
                    file.pending.clear()
            case "F" if not self._lies:
                file = self._now[name]
                if file is not None:
                    file.sync()
                else:
                    self._sync_folder(name)

    def _sync_folder(self, folder: str) -> None:
        left = []
        for move in self._moves:
            name, file, is_there = move
            if str(PurePosixPath(name).parent) != folder:
                left.append(move)
            elif is_there:
                self._safe[name] = file
            else:
                self._safe.pop(name, None)
        self._moves = left

    def content(self, name: str) -> bytes:
        """What a program sees that reads the file now."""
        file = self._file(name)
        content = bytearray(file.safe)
        for call in file.pending:
            _perform(content, call)
        return bytes(content)

    def names(self) -> set[str]:
        """The files that a program sees now."""
        return {name for name, file in self._now.items() if file is not None}

    def image(self, folder: Path, chance: random.Random, survival: Survival) -> None:
        """Write into an empty folder what may be found after the power is gone."""
        names = dict(self._safe)
        by_name: dict[str, list[tuple[File | None, bool]]] = {}
        for name, file, is_there in self._moves:
            by_name.setdefault(name, []).append((file, is_there))
        for name, moves in by_name.items():
            reached = {"none": 0, "all": len(moves)}.get(survival, chance.randint(0, len(moves)))
            if reached:
                file, is_there = moves[reached - 1]
                names.pop(name, None)
                if is_there:
                    names[name] = file
        for name in sorted(names):
            file = names[name]
            if any(str(parent) not in names for parent in PurePosixPath(name).parents):
                continue  # its folder is gone, and it with it
            if file is None:
                (folder / name).mkdir(exist_ok=True)
            else:
                (folder / name).write_bytes(file.image(chance, survival))

    def _file(self, name: str) -> File:
        file = self._now[name]
        assert file is not None, f"{name} is a folder"
        return file


def cuts(calls: Sequence[Call], number: int, chance: random.Random) -> list[int]:
    """Where to cut the power: after how many calls. A third where a file appears, a WAL begins anew or is copied."""
    special = [
        n + 1
        for n, call in enumerate(calls)
        if call.what in "CTUME"
        or (call.what in "WF" and call.name.endswith((".db", "-journal", ".")))
        or _is_head(call)
    ]
    several = [n + chance.randint(0, 2) for n in chance.choices(special, k=number // 3)] if special else []
    several += [chance.randint(0, len(calls)) for _ in range(number - len(several))]
    return sorted(min(n, len(calls)) for n in several)


def replays(calls: Sequence[Call], at: Sequence[int], chance: random.Random) -> Iterator[tuple[int, Disk]]:
    """The disk at each of these cuts, which go up."""
    disk, done = Disk(), 0
    for cut in at:
        for call in calls[done:cut]:
            disk.perform(call, chance)
        done = cut
        yield cut, disk


def _is_head(call: Call) -> bool:
    return call.what == "W" and call.at == 0 and call.name.endswith("-wal")


def _perform(content: bytearray, call: Call) -> None:
    if call.what == "T":
        _reach(content, call.at)
        del content[call.at :]
    else:
        _reach(content, call.at)
        content[call.at : call.at + len(call.data)] = call.data


def _tear(content: bytearray, call: Call, chance: random.Random, survives: float) -> None:
    """Write some sectors of a write; the file may have grown by the others."""
    end = call.at + len(call.data)
    if end > len(content) and chance.random() < 0.5:
        grown = end - len(content)
        content.extend(chance.randbytes(grown) if chance.random() < 0.3 else bytes(grown))
    start = call.at
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        if chance.random() < survives:
            _perform(content, Call("W", call.name, start, call.data[start - call.at : stop - call.at]))
        start = stop


def _reach(content: bytearray, size: int) -> None:
    if len(content) < size:
        content.extend(bytes(size - len(content)))
