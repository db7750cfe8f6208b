"""Answers on condition: `ETag`, `If-None-Match` and `If-Match` of records and files.

The tag of a task is its `version` and a hash of the rest: the version moves with its lifecycle, the rest with progress.
"""

from __future__ import annotations

import re
from typing import Annotated
from zlib import crc32

from fastapi import Header
from starlette.requests import Request
from starlette.responses import Response

from outrider.api.problems import Refusal
from outrider.runtime.records import TaskRecord

IfMatch = Annotated[
    str | None,
    Header(
        alias="If-Match",
        description=(
            "The ETag of the task, or several with commas between. Refused where its `version` is another by now; "
            "progress is no obstacle."
        ),
    ),
]
_TAG = re.compile(r'\s*"(\d{1,18})-[0-9a-f]{8}"\s*')

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


def named_versions(if_match: str | None) -> frozenset[int] | None:
    """The versions of the tags in If-Match; None for any. Raises Refusal where none is the tag of a task."""
    if if_match is None or if_match.strip() == "*":
        return None
    found = frozenset(int(tag[1]) for each in if_match.split(",") if (tag := _TAG.fullmatch(each)))
    if not found:
        raise Refusal(412, "If-Match has no ETag that a task was answered with")
    return found


def _names(given: str, etag: str) -> bool:
    return given.strip() == "*" or etag in [each.strip().removeprefix("W/") for each in given.split(",")]
