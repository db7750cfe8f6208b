"""The routes of the archive: sessions that were taken out of the database."""

from __future__ import annotations

from starlette.responses import Response

from outrider.api import wire
from outrider.api.access import Administering, Asking, Reading
from outrider.api.forms import Changed, Form
from outrider.api.paging import After, Limit, Page
from outrider.api.problems import responses
from outrider.api.routing import noun
from outrider.runtime.records import ArchiveRecord

router = noun("archive")


class ArchiveForm(Form):
    """Who archives a session."""

    by: str | None = None


@router.post("/sessions/{session_id}/archive", response_model=ArchiveRecord, responses=responses(404, 409))
async def archive_session(
    runtime: Administering, caller: Asking, session_id: str, form: ArchiveForm | None = None
) -> Response:
    """Write a session with all in and below it into the archive, and delete it. Refused while anything in it lives."""
    return wire.record(await runtime.archive.store(session_id, by=caller.signs((form or ArchiveForm()).by)))


@router.get("/archive", response_model=Page[ArchiveRecord])
async def list_archive(runtime: Reading, caller: Asking, after: After = None, limit: Limit = 100) -> Response:
    """List the archived sessions, in the order of their ids."""
    found = await runtime.archive.list(organization_id=caller.organization_id, after=after, limit=limit)
    return wire.page(found, found[-1].session_id if len(found) == limit else None)


@router.get("/archive/{session_id}", response_model=ArchiveRecord, responses=responses(404))
async def get_archived(runtime: Reading, session_id: str) -> Response:
    """Get what is known of an archived session."""
    return wire.record(await runtime.archive.get(session_id))


@router.get(
    "/archive/{session_id}/records",
    response_class=Response,
    status_code=200,
    responses=responses(404) | {200: wire.EXPORT},
)
async def read_archived(runtime: Reading, session_id: str) -> Response:
    """Get all that was in an archived session, one JSON object a line; without the `end` something is missing."""
    return await wire.lines(runtime.archive.read(session_id))


@router.delete("/archive/{session_id}", response_model=Changed)
async def delete_archived(runtime: Administering, session_id: str) -> Response:
    """Delete an archived session from the archive, for good."""
    return wire.plain({"changed": await runtime.archive.delete(session_id)})
