"""What people type, as values: lengths of time, labels, and JSON where it parses and text where it does not."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from outrider.cli.exits import UsageError
from outrider.core.task import InputRequest
from outrider.core.values import JSON, Instant
from outrider.core.wording import counted

if TYPE_CHECKING:
    from outrider.runtime.records import InputRequestRecord

LONGEST = 36_525 * 86_400.0
"""Seconds. What is longer is a slip, and beyond what a clock can add to now."""
MOST_BYTES = 1 << 50
MOST_TEXT = 16 << 20
"""Bytes of text that are read at most; how much of it may be used is for whoever gets it to say."""
_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_YES_NO = {"y": True, "yes": True, "n": False, "no": False}
_NOTHING = object()
ALWAYS = "always"


def seconds(text: str) -> float:
    """A length of time: `90`, `1.5s`, `10m`, `8h`, `2d`. Without a unit, seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h|d)?", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no length of time; write 90, 1.5s, 10m, 8h or 2d")
    found = float(match[1]) * _UNITS[match[2] or ""]
    if found > LONGEST:
        raise UsageError(f"{text!r} is longer than 100 years")
    return found


def moment(text: str) -> Instant:
    """A moment in microseconds: `2026-01-31` or `2026-01-31T09:30`, here unless it says where; `2h` for so long ago."""
    try:
        return round(datetime.fromisoformat(text.strip()).timestamp() * 1e6)
    except (ValueError, OverflowError, OSError):
        pass
    try:
        return time.time_ns() // 1000 - round(seconds(text) * 1e6)
    except UsageError:
        raise UsageError(
            f"{text!r} is no moment; write 2026-01-31, 2026-01-31T09:30Z, or 2h for two hours ago"
        ) from None


def whole(text: str) -> int:
    """A whole number, of a size that everything can count to."""
    if re.fullmatch(r"[+-]?[0-9]{1,15}", text.strip()) is None:
        raise UsageError(f"{text!r} is no whole number of at most 15 digits")
    return int(text)


def size(text: str) -> int:
    """A size in bytes: `65536`, `512K`, `1.5G`. The units are powers of 1024."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"{text!r} is no size; write 65536, 512K, 100M or 2G")
    factor: int = 1024 ** " KMGT".index(match[2].upper() or " ")
    found = round(float(match[1]) * factor)
    if not 0 < found < MOST_BYTES:
        raise UsageError(f"{text!r} is no size that anything has; from 1 byte to less than 1024T will do")
    return found


def bytes_of(path: str, most: int) -> bytes:
    """What is in a file, or comes from stdin for `-`. Raises UsageError where there is none, or more than so much.

    It reads no further than that: what comes may never end.
    """
    name = "stdin" if path == "-" else repr(path)
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
            raw = file.read(most + 1)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from None
    if len(raw) > most:
        raise UsageError(f"{name} has more than {counted(most, 'byte')}, and no more can be given")
    return raw


def text_of(path: str) -> str:
    """The text in a file, of stdin for `-`. Raises UsageError where there is none, or it is no UTF-8."""
    name = "stdin" if path == "-" else repr(path)
    try:
        return bytes_of(path, MOST_TEXT).decode()
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8 text, and only that can be given") from None


def pair(text: str, what: str) -> tuple[str, str]:
    """`NAME=VALUE` in two."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{text!r} is no {what}; write NAME=VALUE")
    return name, value


def pairs(texts: Iterable[str], what: str) -> dict[str, str]:
    """Many `NAME=VALUE`, each name once."""
    found: dict[str, str] = {}
    for text in texts:
        name, value = pair(text, what)
        if name in found:
            raise UsageError(f"{name!r} is given twice")
        found[name] = value
    return found


def budget_of(text: str) -> dict[str, float]:
    """A budget as it is typed: `tokens=100000,cost=1.50`. What its names may be is left to whoever checks it."""
    budget: dict[str, float] = {}
    for name, number in pairs(filter(None, map(str.strip, text.split(","))), "budget").items():
        try:
            budget[name] = int(number) if number.strip().isdigit() else float(number)
        except ValueError:
            raise UsageError(f"--budget {name}={number}: a number is wanted, such as tokens=100000,cost=1.50") from None
    return budget


def value_of(text: str, expected: Mapping[str, Any] | None = None) -> JSON:
    """The value that a text stands for: JSON where it parses, else the text.

    With a schema, whichever of the two fits it, so that `123` is text where text is expected; `yes` and `no` are
    truth values where those are. What fits in no way is left to whoever checks it, who can say why.
    """
    readings: list[JSON] = [text]
    parsed = _parsed(text)
    if parsed is not _NOTHING:
        readings.insert(0, parsed)
    if text.strip().lower() in _YES_NO:
        readings.append(_YES_NO[text.strip().lower()])
    if expected is not None:
        from outrider.runtime.schemas import mismatch

        for reading in readings:
            if mismatch(reading, expected) is None:
                return reading
    return readings[0]


def answer_of(text: str, request: InputRequest | InputRequestRecord | None) -> JSON:
    """The answer that a text stands for; `always` is one to an approval: yes, and for all further calls too."""
    expected = None if request is None else request.expected
    if request is not None and request.kind == "approval" and text.strip().lower() == ALWAYS:
        from outrider.runtime.schemas import mismatch

        lasting = {"approved": True, "always": True}
        if mismatch(lasting, expected) is None:
            return lasting
    return value_of(text, expected)


def _parsed(text: str) -> Any:
    try:
        orjson.loads(text)  # the stricter of the two
        found = json.loads(text)  # which keeps what is beyond 64 bits, where the other would round it to a float
    except ValueError:
        return _NOTHING
    return _NOTHING if _is_beyond_64_bits(found) else found


def _is_beyond_64_bits(value: object) -> bool:
    """Whether a value is an integer that no record can hold as one: an id of many digits, best kept as text."""
    return isinstance(value, int) and not -(2**63) <= value < 2**64
