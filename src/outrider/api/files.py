"""The routes of a session's files: the body is the file, as it is; parts of it are to be had by `Range`."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

from fastapi import Path, Query
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from outrider.api import wire
from outrider.api.access import Reading, Submitting
from outrider.api.conditional import unless_same
from outrider.api.forms import Changed
from outrider.api.paging import PAGE, Limit, Page, cursor_of
from outrider.api.problems import Refusal, responses
from outrider.api.routing import noun
from outrider.core.errors import NotFound
from outrider.runtime.records import FileRecord

router = noun("files")


class _AnyPath(PathConvertor):
    """A path to its very end: what Starlette calls a path stops at a line break, and names another file without it."""

    regex = r"[\s\S]*"


register_url_convertor("file_path", _AnyPath())

AfterPath = Annotated[str | None, Query(description="The cursor `next` of the page before: a path.", max_length=1024)]
FilePath = Annotated[str, Path(description="The path, without the slash it begins with.")]
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
BYTES: dict[str, Any] = {"*/*": {"schema": {}}}
GUARDED = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox", "Accept-Ranges": "bytes"}
"""A file may be anything, and comes from anybody: no browser takes it for a page of ours."""


@router.get("/sessions/{session_id}/files", response_model=Page[FileRecord], responses=responses(404))
async def list_files(
    runtime: Reading,
    session_id: str,
    prefix: Annotated[str, Query(max_length=512)] = "/",
    after: AfterPath = None,
    limit: Limit = PAGE,
) -> Response:
    """List a session's files below a prefix, in the order of their paths."""
    found = await (await runtime.sessions.get(session_id)).files(prefix, after=after, limit=limit)
    return wire.page(found, cursor_of(found, limit, "path"))


@router.get(
    "/sessions/{session_id}/files/{path:file_path}",
    response_class=Response,
    responses={
        200: {"content": BYTES, "description": "The file."},
        206: {"content": BYTES, "description": "The part of it that Range names."},
        304: {"description": "It is as the tag in If-None-Match says."},
        **responses(404, 416),
    },
)
async def download_file(runtime: Reading, request: Request, session_id: str, path: FilePath) -> Response:
    """Get a file, or a part of it."""
    session = await runtime.sessions.get(session_id)
    content = await session.read_file(path)
    found = [each for each in await session.files("/" + path.strip("/"), limit=1) if each.path == "/" + path.strip("/")]
    kind = found[0].media_type if found else "application/octet-stream"
    tag = f'"{hashlib.blake2b(content, digest_size=16).hexdigest()}"'
    same = unless_same(request, tag)
    if same is not None:
        return same
    headers = {"ETag": tag, **GUARDED}
    part = _range_of(request, tag, len(content))
    if part is None:
        return Response(content, headers=headers, media_type=_plain(kind))
    start, stop = part
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
    return Response(content[start:stop], 206, headers, _plain(kind))


@router.put(
    "/sessions/{session_id}/files/{path:file_path}",
    response_model=FileRecord,
    responses=responses(404, 409),
    openapi_extra={"requestBody": {"required": False, "content": {"*/*": {"schema": {}}}}},
)
async def upload_file(runtime: Submitting, request: Request, session_id: str, path: FilePath) -> Response:
    """Write a file whole, in place of the one that is there. Its media type is that of the request."""
    session = await runtime.sessions.get(session_id)
    written = await session.write_file(path, await request.body(), request.headers.get("content-type") or None)
    for each in await session.files(written, limit=1):
        if each.path == written:
            return wire.record(each)
    raise NotFound.of("file", written)


@router.delete("/sessions/{session_id}/files/{path:file_path}", response_model=Changed, responses=responses(404))
async def delete_file(runtime: Submitting, session_id: str, path: FilePath) -> Response:
    """Delete a file."""
    return wire.plain({"changed": await (await runtime.sessions.get(session_id)).delete_file(path)})


def _plain(media_type: str) -> str:
    """A media type that can stand in a header."""
    return media_type if media_type.isascii() and media_type.isprintable() else "application/octet-stream"


def _range_of(request: Request, tag: str, size: int) -> tuple[int, int] | None:
    """The part that is asked for, None for all of it: also where several are, which no server has to give.

    Raises Refusal for one beyond the end.
    """
    given = request.headers.get("range")
    found = _RANGE.fullmatch(given.strip()) if given else None
    if found is None or request.headers.get("if-range", tag) != tag or not (found[1] or found[2]):
        return None
    if found[1]:
        start = int(found[1])
        stop = min(int(found[2]) + 1, size) if found[2] else size
        if found[2] and int(found[2]) < start:
            return None
    else:
        start, stop = max(0, size - int(found[2])), size
    if start >= stop:
        raise Refusal(416, f"the file has {size:,} bytes", headers={"Content-Range": f"bytes */{size}"})
    return start, stop
