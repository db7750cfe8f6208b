"""Answering a question by a signed link: a page of plain HTML for a phone, and the form on it.

Opening the page changes nothing, for whatever shows a preview of a link opens it too; only the form answers. The token
in the path is all that admits; it is neither logged here nor sent on to anybody. A program with a key has routes beside
it, for what the key reaches.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from outrider.api import wire
from outrider.api.access import Asking, Reading, Submitting
from outrider.api.forms import Form, Seconds, Whole
from outrider.api.problems import responses
from outrider.api.recording import TARGETS, concern
from outrider.api.routing import noun
from outrider.core.errors import (
    InvalidAnswer,
    InvalidLink,
    LinkExpired,
    NotFound,
    OutriderError,
    RequestClosed,
    TaskFinished,
)
from outrider.runtime.access import Caller
from outrider.runtime.answer_links import AnswerFormRecord, AnswerLinkRecord, Claims
from outrider.runtime.facade import Runtime
from outrider.runtime.records import TaskRecord
from outrider.settings import KIB

links = noun("answers")
router = APIRouter(prefix="/answer", tags=["answers"], include_in_schema=False, responses=responses())

LONGEST_FORM = 256 * KIB
"""How large such a form may be: it is read of anybody."""
_STYLE = (
    "body{font:1.1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "h1{font-size:1.3rem}pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f3f3f3;padding:.7rem}"
    "button,textarea,input{font:inherit;width:100%;box-sizing:border-box;padding:.7rem;margin:.3rem 0}"
    "p.wrong{color:#a00}"
)
_FORM = '<form method="post" autocomplete="off">'
HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-robots-tag": "noindex, nofollow, noarchive",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


class LinkForm(Form):
    """A link that answers a question."""

    expires: Seconds | None = Field(default=None, description="For how many seconds it is good; a day without.")
    choices: list[Any] | None = Field(default=None, description="The only answers that it gives.", max_length=20)
    by: str | None = Field(default=None, description="Who it is for: recorded as who answered.")


class TokenForm(Form):
    """A link: what stands after `/answer/` in its path."""

    token: str


class LinkAnswerForm(TokenForm):
    """An answer by a link: one of the two."""

    choice: Whole | None = Field(default=None, description="The number of one of the choices that it shows, from 0.")
    typed: str | None = Field(default=None, description="What was typed, where it takes that.")


@links.post(
    "/requests/{request_id}/links", status_code=201, response_model=AnswerLinkRecord, responses=responses(404, 409)
)
async def create_answer_link(runtime: Submitting, caller: Asking, request_id: str, form: LinkForm) -> Response:
    """Make a link by which whoever has it answers a question, on a page for a phone."""
    # Whoever has a name cannot have somebody else be recorded alone.
    by = form.by if caller.name is None else f"{form.by or 'somebody'}, by a link of {caller.name}"
    made = await runtime.answer_links.create(request_id, expires=form.expires, choices=form.choices, by=by)
    return wire.record(made, 201, {"Cache-Control": "no-store"})


@links.post("/links:show", response_model=AnswerFormRecord, responses=responses(409))
async def show_answer_link(runtime: Reading, form: TokenForm) -> Response:
    """Get what a link shows, of a question within reach: what is asked, and how it can be answered."""
    await _within_reach(runtime, form.token)
    return wire.record(await runtime.answer_links.form(form.token), headers={"Cache-Control": "no-store"})


@links.post("/links:answer", response_model=TaskRecord, responses=responses(409))
async def answer_with_link(runtime: Submitting, request: Request, form: LinkAnswerForm) -> Response:
    """Answer a question within reach by a link: with one of its choices, or with what was typed."""
    claims = await _within_reach(runtime, form.token)
    concern(request, request_id=claims.request_id)
    return wire.record(await runtime.answer_links.answer(form.token, choice=form.choice, typed=form.typed))


async def _within_reach(runtime: Runtime, token: str) -> Claims:
    """What a link says. Raises InvalidLink, also for one to what the key does not reach: a page tells less."""
    claims = await runtime.answer_links.claims(token)
    try:
        await runtime.tasks.get(claims.task_id)
    except NotFound:
        raise InvalidLink("what this link is about is not here") from None
    return claims


@router.get("/{token}")
async def show_question(request: Request, token: str) -> Response:
    """Show a question and how it can be answered."""
    runtime: Runtime = request.app.state.runtime
    try:
        return _question(await runtime.answer_links.form(token))
    except OutriderError as error:
        return _refusal(error)


@router.post("/{token}")
async def answer_by_link(request: Request, token: str) -> Response:
    """Answer a question by its form."""
    runtime: Runtime = request.app.state.runtime
    scope = request.scope
    scope["outrider.needs"] = "submit"
    scope[TARGETS] = {}  # the token is a secret, and in the path
    try:
        claims = await runtime.answer_links.claims(token)
        scope["outrider.caller"] = Caller(claims.organization_id, frozenset(), name=claims.by, via="link")
        concern(request, request_id=claims.request_id)
        choice, typed = _said(await request.body())
        try:
            await runtime.answer_links.answer(token, choice=choice, typed=typed)
        except InvalidAnswer as error:
            scope["outrider.outcome"] = error.code
            return _question(await runtime.answer_links.form(token), wrong=error.message, typed=typed)
    except OutriderError as error:
        scope["outrider.outcome"] = error.code
        return _refusal(error)
    return _page("Answered", "<p>Thank you. The task goes on.</p>")


def _said(body: bytes) -> tuple[int | None, str | None]:
    """What a form says: which of the choices, or what was typed."""
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=10)
    except ValueError:
        raise InvalidAnswer("this is no answer of the form") from None
    chosen, typed = fields.get("choice", [""])[0], fields.get("typed", [None])[0]
    choice = int(chosen) if chosen.isascii() and chosen.isdigit() and len(chosen) < 4 else None
    return choice, None if typed is None else typed.replace("\r\n", "\n")


def _question(form: AnswerFormRecord, wrong: str | None = None, typed: str | None = None) -> Response:
    request = form.request
    said = f"<p>{escape(form.task_name)} asks:</p><h1>{escape(request.prompt)}</h1>"
    if request.details is not None:
        said += f"<pre>{escape(_details(request.details))}</pre>"
    if request.status != "pending":
        by = f" by {escape(request.answered_by)}" if request.answered_by else ""
        return _page("Closed", said + f"<p>This was {request.status}{by} already.</p>", 409)
    if wrong is not None:
        said += f'<p class="wrong" role="alert">{escape(wrong)}</p>'
    # Two forms: Enter in a field presses the first button of its form, which must not be one of the choices.
    if form.choices:
        said += _FORM
        for number, choice in enumerate(form.choices):
            said += f'<button name="choice" value="{number}">{escape(choice.label)}</button>'
        said += "</form>"
    if form.typing is not None:
        said += _FORM
    if form.typing == "number":
        said += f'<input name="typed" inputmode="decimal" value="{escape(typed or "")}" aria-label="Answer">'
    elif form.typing is not None:
        label = "Answer" if form.typing == "text" else "Answer, as JSON"
        said += f'<textarea name="typed" rows="4" aria-label="{label}">\n{escape(typed or "")}</textarea>'
    if form.typing is not None:
        said += "<button>Send</button></form>"
    return _page("Question", said, 200 if wrong is None else 422)


def _details(details: object) -> str:
    from outrider.runtime.codec import encode

    return details if isinstance(details, str) else encode(details).decode()


def _refusal(error: OutriderError) -> Response:
    match error:
        case LinkExpired():
            return _page("Expired", f"<p>{escape(error.message)}.</p>", 410)
        case InvalidLink():
            return _page("Not found", f"<p>{escape(error.message)}.</p>", 404)
        case RequestClosed() | TaskFinished():
            return _page("Closed", f"<p>{escape(error.message)}.</p>", 409)
        case InvalidAnswer():
            return _page("Not an answer", f"<p>{escape(error.message)}.</p>", 422)
        case _:
            raise error


def _page(title: str, body: str, status: int = 200) -> Response:
    content = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="robots" content="noindex">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>{body}</body></html>"
    )
    return HTMLResponse(content, status, HEADERS)
