"""Ids: a noun and a UUIDv7 in hex, so that ids sort by creation and an index on them grows at its end.

The layout is RFC 9562's version 7; the 12 bits after the version count within a millisecond, so ids made by
one process are strictly increasing (section 6.2, method 1).
"""

from __future__ import annotations

import os
import re
import threading
import time

from outrider.core.errors import InvalidArguments

_lock = threading.Lock()
_last_ms = 0
_count = 0
_chance = bytearray()
"""Random bytes in stock: fetching them gives up the interpreter's lock, which is dear beside a busy thread."""


def new_id(noun: str) -> str:
    """Return a new id such as `task_01890a5d...`: the noun, an underscore, 32 hexadecimal digits."""
    return f"{noun}_{_uuid7():032x}"


def check_id(noun: str, given: object) -> str:
    """Return an id that a caller chose. Raises InvalidArguments for what would not be plain in a path or a line."""
    if not isinstance(given, str) or not _PLAIN.fullmatch(given):
        raise InvalidArguments(
            f"{given!r:.100} cannot be the id of a {noun}: that is up to 128 letters, digits and any of _ - . : @ +,"
            " beginning with a letter or digit"
        )
    return given


_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@+-]{0,127}")


def _uuid7() -> int:
    global _last_ms, _count
    with _lock:
        now = time.time_ns() // 1_000_000
        if now > _last_ms:
            _last_ms, _count = now, 0
        else:
            _count += 1
            if _count == 4096:
                _last_ms, _count = _last_ms + 1, 0
        ms, count = _last_ms, _count
        if len(_chance) < 8:
            _chance.extend(os.urandom(4096))
        tail = int.from_bytes(_chance[-8:], "big") & ((1 << 62) - 1)
        del _chance[-8:]
    return (ms & ((1 << 48) - 1)) << 80 | 7 << 76 | count << 64 | 2 << 62 | tail


os.register_at_fork(after_in_child=_chance.clear)
