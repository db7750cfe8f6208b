"""Answers on condition: `ETag`, `If-None-Match` and `If-Match` of records and files.

The tag of a task is its `version` and a hash of the rest: the version moves with its lifecycle, the rest with progress.
"""

from __future__ import annotations

from zlib import crc32

from starlette.requests import Request
from starlette.responses import Response

from outrider.runtime.records import TaskRecord

BESIDE = {"heartbeat_at"}
"""What is no news of a task."""


def etag_of(task: TaskRecord) -> str:
    """The tag of a task's record."""
    rest = task.__pydantic_serializer__.to_json(task, exclude=BESIDE)
    return f'"{task.version}-{crc32(rest):08x}"'


def unless_same(request: Request, etag: str) -> Response | None:
    """The answer 304 where the client has it already, None where it has not."""
    given = request.headers.get("if-none-match")
    if given is None or not _names(given, etag):
        return None
    return Response(status_code=304, headers={"ETag": etag})


def _names(given: str, etag: str) -> bool:
    return given.strip() == "*" or etag in [each.strip().removeprefix("W/") for each in given.split(",")]
