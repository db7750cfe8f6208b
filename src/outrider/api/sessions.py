"""The routes of sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated

from fastapi import Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from outrider.api import wire
from outrider.api.access import Asking, Operating, Reading, Submitting
from outrider.api.forms import Budget, Changed, Deleted, Form, Id, Labels, Name, Object, Whole
from outrider.api.paging import After, Limit, Page, cursor_of
from outrider.api.problems import responses
from outrider.api.routing import noun
from outrider.api.waiting import attended
from outrider.api.wire import REPLAYED
from outrider.core.errors import NotFound
from outrider.runtime.records import GrantRecord, SessionRecord, SpentRecord, TaskRecord, TranscriptRecord
from outrider.runtime.sessions import Remaining
from outrider.runtime.turns import Steering

router = noun("sessions")


class NewSessionForm(Form):
    """A session to be made."""

    agent: str | None = Field(default=None, description="The agent that takes its turns; none for one driven outside.")
    title: str | None = None
    labels: Labels | None = None
    id: Id | None = Field(default=None, description="An id of your own; the same one gives the same session.")
    budget: Budget | None = Field(default=None, description="What the model calls of its tasks may take together.")
    tree_budget: Budget | None = Field(default=None, description="The same, with all sessions below it.")


class SessionForm(Form):
    """What a session is called, and how it is found; what is left out stays."""

    title: str | None = Field(default=None, description="An empty one takes it away.")
    labels: dict[str, str | None] | None = Field(default=None, description="null takes a label away; others stay.")


class SaidForm(Form):
    """Something said to a session's agent."""

    content: str | Object | list[Object] = Field(description="Text, an object, or a list of message parts.")
    steering: Steering = Field(default="inject", description="What becomes of it while the agent takes a turn.")
    sender: str | None = None


class SessionForkForm(Form):
    """How much of a session another one begins with."""

    upto: str | None = Field(default=None, description="The id of a turn: the transcript up to the end of it.")
    iteration: Whole | None = Field(default=None, description="With `upto`: up to the end of this iteration.")
    title: str | None = None
    id: Id | None = None


class CloseForm(Form):
    """What becomes of the tasks of a session that is closed."""

    tasks: Remaining = "finish"


class RevocationForm(Form):
    """A tool that needs an approval again."""

    tool: Name
    by: str | None = None


def _plain(budget: Budget | None) -> Mapping[str, float] | None:
    return None if budget is None else budget.model_dump(exclude_none=True)


@router.post(
    "/sessions",
    status_code=201,
    response_model=SessionRecord,
    responses={200: {"model": SessionRecord, "description": "It was there already."}, **responses(409)},
)
async def create_session(runtime: Submitting, caller: Asking, form: NewSessionForm) -> Response:
    """Create a session, or get the one of that id."""
    if form.id is not None:
        with suppress(NotFound):
            return wire.record(await runtime.sessions.record(form.id), 200, REPLAYED)
    made = await runtime.sessions.create(
        agent=form.agent,
        title=form.title,
        labels=form.labels,
        id=form.id,
        organization_id=caller.organization_id,
        budget=_plain(form.budget),
        tree_budget=_plain(form.tree_budget),
    )
    return wire.record(await made.record(), 201)


@router.get("/sessions", response_model=Page[SessionRecord])
async def list_sessions(runtime: Reading, after: After = None, limit: Limit = 100) -> Response:
    """List sessions, newest first."""
    found = await runtime.sessions.list(after=after, limit=limit)
    return wire.page(found, cursor_of(found, limit))


@router.get("/sessions/{session_id}", response_model=SessionRecord, responses=responses(404))
async def get_session(runtime: Reading, session_id: str) -> Response:
    """Get a session."""
    return wire.record(await runtime.sessions.record(session_id))


@router.patch("/sessions/{session_id}", response_model=SessionRecord, responses=responses(404))
async def update_session(runtime: Submitting, session_id: str, form: SessionForm) -> Response:
    """Give a session another title or other labels."""
    return wire.record(await runtime.sessions.update(session_id, title=form.title, labels=form.labels))


@router.delete("/sessions/{session_id}", response_model=Deleted, responses=responses(404, 409))
async def delete_session(
    runtime: Operating,
    request: Request,
    session_id: str,
    cancel: Annotated[bool, Query(description="Cancel what lives in it first, and wait for it.")] = False,
) -> Response:
    """Delete a session with all in it, and the sessions that its tasks opened. Refused while a task lives.

    What is canceled first is waited for as long as its grace, but for 60 seconds at most: then ask again.
    """
    gone = None
    if cancel:
        with suppress(TimeoutError):
            async with asyncio.timeout(request.app.state.settings.poll):
                gone = await attended(request, runtime.sessions.delete(session_id, cancel=True), alone=True)
    if gone is None:  # that is over, or the server ends: what still lives by now is named
        gone = await runtime.sessions.delete(session_id)
    return wire.plain({"tasks": gone})


@router.post("/sessions/{session_id}/send", response_model=TaskRecord, responses=responses(404, 409))
async def send_to_session(runtime: Submitting, caller: Asking, session_id: str, form: SaidForm) -> Response:
    """Say something to the session's agent, durably. Answers with the turn that was told, or made for it."""
    session = await runtime.sessions.get(session_id)
    turn = await session.send(form.content, steering=form.steering, sender=caller.signs(form.sender))
    return wire.record(await turn.record())


@router.post(
    "/sessions/{session_id}/fork", status_code=201, response_model=SessionRecord, responses=responses(404, 409)
)
async def fork_session(runtime: Submitting, session_id: str, form: SessionForkForm | None = None) -> Response:
    """Make a session that goes on from where this one is, with copies of its transcript and files."""
    given = form or SessionForkForm()
    made = await runtime.sessions.fork(
        session_id, upto=given.upto, iteration=given.iteration, title=given.title, id=given.id
    )
    return wire.record(await made.record(), 201)


@router.get(
    "/sessions/{session_id}/export",
    response_class=Response,
    status_code=200,
    responses=responses(404) | {200: wire.EXPORT},
)
async def export_session(
    runtime: Reading,
    session_id: str,
    tree: Annotated[bool, Query(description="With the sessions that its tasks opened.")] = True,
) -> Response:
    """Get all that is in a session, one JSON object a line. Without a line of the `end` something is missing."""
    return await wire.lines(runtime.sessions.export(session_id, tree=tree))


@router.post("/sessions/{session_id}/close", response_model=SessionRecord, responses=responses(404, 409))
async def close_session(runtime: Submitting, session_id: str, form: CloseForm | None = None) -> Response:
    """Have a session take nothing any more. Closing it again changes nothing."""
    return wire.record(await runtime.sessions.close(session_id, tasks=(form or CloseForm()).tasks))


@router.post("/sessions/{session_id}/reopen", response_model=SessionRecord, responses=responses(404))
async def reopen_session(runtime: Submitting, session_id: str) -> Response:
    """Open a closed session again."""
    return wire.record(await runtime.sessions.reopen(session_id))


@router.get("/sessions/{session_id}/turn", response_model=TaskRecord | None, responses=responses(404))
async def get_turn(runtime: Reading, session_id: str) -> Response:
    """Get the turn that the session's agent takes or took last; null before the first."""
    turn = await (await runtime.sessions.get(session_id)).turn()
    return wire.plain(None) if turn is None else wire.record(await turn.record())


@router.get("/sessions/{session_id}/transcript", response_model=Page[TranscriptRecord], responses=responses(404))
async def get_transcript(
    runtime: Reading,
    session_id: str,
    after: Annotated[
        int | None, Query(ge=0, le=1 << 53, description="The cursor `next` of the page before: the number of an entry.")
    ] = None,
    limit: Limit = 100,
    newest_first: Annotated[bool, Query(description="From the end on.")] = False,
) -> Response:
    """Get what the session's agent has heard, said and done, an entry each, in the form of its engine."""
    found = await runtime.sessions.transcript(session_id, after=after, limit=limit, newest_first=newest_first)
    return wire.page(found, cursor_of(found, limit, "number"))


@router.get("/sessions/{session_id}/usage", response_model=SpentRecord, responses=responses(404))
async def get_session_usage(
    runtime: Reading, session_id: str, tree: Annotated[bool, Query(description="Of its whole tree.")] = False
) -> Response:
    """Get what a session's tasks have used together, and what of its budget is spent."""
    return wire.record(await runtime.sessions.usage(session_id, tree=tree))


@router.get("/sessions/{session_id}/grants", response_model=Page[GrantRecord], responses=responses(404))
async def list_grants(runtime: Reading, session_id: str) -> Response:
    """List the tools that need no more approval in a session."""
    return wire.page(await runtime.sessions.grants(session_id))


@router.post("/sessions/{session_id}/grants/revoke", response_model=Changed, responses=responses(404))
async def revoke_grant(runtime: Operating, caller: Asking, session_id: str, form: RevocationForm) -> Response:
    """Have a tool of a session need an approval again."""
    done = await runtime.sessions.revoke(session_id, form.tool, by=caller.signs(form.by))
    return wire.plain({"changed": done})
