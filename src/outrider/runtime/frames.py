"""What a worker and the process of an isolated tool say to each other: frames of JSON over a socket, never a pickle.

A frame is its length in four bytes and then an object. Errors cross as they are told to the journal (`failures`).
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from typing import Any, TypeAlias

import orjson

from outrider.core.errors import Parked, Superseded, TooLarge
from outrider.runtime.codec import decode, encode
from outrider.runtime.failures import revive, tell
from outrider.settings import KIB, MIB

Frame: TypeAlias = dict[str, Any]

HEAD = struct.Struct("!I")
LONGEST = 64 * KIB
"""Bytes of one value that an error holds."""
MAX_FRAME = 16 * MIB
"""Bytes. Every value that may cross has a smaller limit of its own."""


def pack(frame: Mapping[str, Any]) -> bytes:
    """Return a frame as bytes. Raises TooLarge, and TypeError for what is not JSON."""
    body = orjson.dumps(frame)
    if len(body) > MAX_FRAME:
        raise TooLarge.of("what the process of a tool says at once", len(body), MAX_FRAME)
    return HEAD.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> Frame | None:
    """Return the next frame, None at the end. Raises ValueError for what is no frame."""
    try:
        (size,) = HEAD.unpack(await reader.readexactly(HEAD.size))
        if size > MAX_FRAME:
            raise ValueError(f"a frame of {size:,} bytes")
        body = await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    frame: Frame = orjson.loads(body)
    return frame


class Elsewhere(Exception):
    """The traceback of an error as it was on the other side; the cause of the error on this side."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def error_form(error: BaseException, trace: str | None = None) -> Frame:
    """Return an error as JSON."""
    if isinstance(error, asyncio.CancelledError | Parked | Superseded):
        return {"control": type(error).__name__}
    if not isinstance(error, Exception):
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return {"told": decode(tell(error, LONGEST)), "trace": trace}


def error_from(form: Frame, task_id: str, attempt: int) -> BaseException:
    """Return the error that a form tells of; a Failure if its type is not known on this side."""
    match form.get("control"):
        case "CancelledError":
            return asyncio.CancelledError()
        case "Parked":
            return Parked()
        case "Superseded":
            return Superseded(task_id, attempt)
        case _:
            error = revive(encode(form["told"]))
            if form["trace"]:
                error.__cause__ = Elsewhere(form["trace"])
            return error
