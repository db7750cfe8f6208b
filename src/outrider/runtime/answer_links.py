"""Links that answer one question, for a person with a phone: who has the link may answer, and nothing else.

A link names the question, its organization and when it expires, and is signed with a key that is sealed in the store.
It is good once by nature, for a question that was answered is closed. Looking at one changes nothing: the programs that
show previews of links open them, too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from outrider.core.errors import InvalidAnswer, InvalidArguments, InvalidLink, LinkExpired, NotFound, RequestClosed
from outrider.core.ledger import Document
from outrider.core.task import InputRequest, Task
from outrider.core.values import JSON, SECOND
from outrider.runtime.bounds import Bounds
from outrider.runtime.clock import as_datetime, span
from outrider.runtime.codec import decode, encode
from outrider.runtime.options import Length, check_lists, check_texts, check_texts_if_given, not_negative
from outrider.runtime.organizations import organization_of
from outrider.runtime.records import InputRequestRecord, Record, TaskRecord
from outrider.runtime.schemas import mismatch
from outrider.runtime.services import Services
from outrider.runtime.webhooks.secrets import open_sealed, seal

PATH = "/answer/"
PURPOSE = "answer_links"
LONGEST: Length = 30 * 86_400
LONGEST_TOKEN = 8192
MOST_CHOICES = 20
_CONTEXT = b"outrider answer link 1\0"


class AnswerLinkRecord(Record):
    """A link. `path` is its place on any server of the store; `url` is whole where the server's address is known."""

    request_id: str
    task_id: str
    path: str
    url: str | None
    expires_at: datetime


class ChoiceRecord(Record):
    """One of the answers that a form offers, and what its button says."""

    label: str
    answer: Any


class AnswerFormRecord(Record):
    """What a link shows: the question, and how it can be answered: by one of the `choices`, or by `typing` something.

    `typing` is None where only the choices will do.
    """

    task_name: str
    request: InputRequestRecord
    choices: tuple[ChoiceRecord, ...]
    typing: Literal["text", "number", "json"] | None
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Claims:
    """What a link says."""

    organization_id: str
    task_id: str
    request_id: str
    expires: int
    """The second since the Unix epoch."""
    choices: tuple[JSON, ...] | None = None
    by: str | None = None


class AnswerLinks:
    """Makes links, and answers by them."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def create(
        self,
        request_id: str,
        *,
        expires: Length | None = None,
        choices: Sequence[JSON] | None = None,
        by: str | None = None,
    ) -> AnswerLinkRecord:
        """Make a link that answers a pending question until it `expires` (a day from now, unless it says).

        With `choices` it gives one of these answers and no other. `by` is who it is for, and is recorded as who
        answered. Raises NotFound, RequestClosed, InvalidAnswer for a choice that the question does not take.
        """
        check_texts(request_id=request_id)
        check_texts_if_given(by=by)
        settings, now = self._services.settings.webhooks, self._services.clock.now()
        length = span(settings.link_valid) if expires is None else not_negative("expires", expires)
        if length > span(LONGEST):
            raise InvalidArguments("a link is good for 30 days at most")
        request = await self._services.views.request(request_id)
        task = None if request is None else await self._services.views.task(request.task_id)
        if request is None or task is None:
            raise NotFound.of("request", request_id)
        if request.status != "pending":
            raise RequestClosed(f"request {request_id} was {request.status} already")
        if choices is not None:
            check_lists(choices=choices)
            if not 1 <= len(choices) <= MOST_CHOICES:
                raise InvalidArguments(f"a link offers from 1 to {MOST_CHOICES} choices")
            for each in choices:
                if (problem := mismatch(each, request.expected)) is not None:
                    raise InvalidAnswer(f"the choice {each!r:.100} is none: {problem}")
        claims = Claims(
            task.input.organization_id,
            task.id,
            request.id,
            (now + length) // SECOND,
            None if choices is None else tuple(choices),
            by,
        )
        token = await self._token(claims)
        if len(token) > LONGEST_TOKEN:
            raise InvalidArguments("the choices are too long for a link")
        return AnswerLinkRecord(
            request_id=request.id,
            task_id=task.id,
            path=PATH + token,
            url=_url(settings.public_url, token),
            expires_at=as_datetime(claims.expires * SECOND),
        )

    async def form(self, token: str) -> AnswerFormRecord:
        """Return what a link shows, of a question that may be closed by now.

        Raises LinkExpired, and InvalidLink, also while the organization is suspended.
        """
        claims, _, task, request = await self._read(token)
        choices, typing = _ways(request, claims.choices)
        return AnswerFormRecord(
            task_name=task.input.display_name,
            request=InputRequestRecord.of(request),
            choices=choices,
            typing=typing,
            expires_at=as_datetime(claims.expires * SECOND),
        )

    async def answer(self, token: str, *, choice: int | None = None, typed: str | None = None) -> TaskRecord:
        """Answer by a link: one of its form's choices by number, or what was typed; not both.

        Raises InvalidLink, also while the organization is suspended, LinkExpired, InvalidAnswer with the reason, and
        RequestClosed.
        """
        from outrider.runtime.tasks import Tasks

        claims, within, task, request = await self._read(token)
        choices, typing = _ways(request, claims.choices)
        if choice is not None and typed:
            raise InvalidAnswer("either one of the choices is chosen or something is typed, not both")
        if choice is not None:
            if not 0 <= choice < len(choices):
                raise InvalidAnswer("this is none of the choices")
            answer = choices[choice].answer
        elif typed is None or typing is None:
            raise InvalidAnswer("one of the choices has to be chosen")
        else:
            answer = _read_typed(typed, typing)
        tasks = Tasks(within)
        return await tasks.answer(task.id, answer, request_id=request.id, by=claims.by, via="link")

    async def claims(self, token: str) -> Claims:
        """Return what a link says that was made here, be it good for anything or not any more. Raises InvalidLink."""
        return _claims(token, await _key(self._services))

    async def _read(self, token: str) -> tuple[Claims, Services, Task, InputRequest]:
        """What a link says, the services of its organization alone, and what it is about.

        Raises InvalidLink and LinkExpired.
        """
        claims = await self.claims(token)
        if self._services.clock.now() >= claims.expires * SECOND:
            raise LinkExpired("this link has expired; ask for another one")
        organization = await organization_of(self._services, claims.organization_id)
        if organization is not None and organization.data["suspended_at"] is not None:
            raise InvalidLink("this link opens nothing at present; ask whoever sent it")
        within = self._services.whole.within(Bounds(claims.organization_id))  # whoever has it may, wherever he belongs
        request = await within.views.request(claims.request_id)
        task = await within.views.task(claims.task_id)
        if request is None or task is None or request.task_id != task.id:
            raise InvalidLink("what this link is about is not here any more")
        return claims, within, task, request

    async def _token(self, claims: Claims) -> str:
        return _signed(claims, await _key(self._services))


async def with_links(services: Services, delivery: Document) -> bytes:
    """The body of a webhook; with links to answer its questions by, where the address of the server is known.

    They are no part of what is kept, and the same each time.
    """
    payload, asks = delivery.data["payload"], delivery.data.get("asks", ())
    settings = services.settings.webhooks
    if not asks or settings.public_url is None:
        return str(payload).encode()
    key = await _key(services)
    expires = (delivery.data["created_at"] + span(settings.link_valid)) // SECOND
    told: Any = decode(str(payload).encode())
    told["data"]["links"] = [
        {
            "request_id": each,
            "url": _url(settings.public_url, _signed(Claims(delivery.organization_id, task_id, each, expires), key)),
            "expires_at": as_datetime(expires * SECOND),
        }
        for task_id in [delivery.data["task_id"]]
        for each in asks
    ]
    return encode(told)


def _url(public_url: str | None, token: str) -> str | None:
    return None if public_url is None else public_url.rstrip("/") + PATH + token


# --- the token ---------------------------------------------------------------------------------------


def _signed(claims: Claims, key: bytes) -> str:
    said = encode(
        [claims.organization_id, claims.task_id, claims.request_id, claims.expires, claims.choices, claims.by]
    )
    return f"{_text(said)}.{_text(_seal_of(said, key))}"


def _claims(token: object, key: bytes) -> Claims:
    """What a token says. Raises InvalidLink for one that was not made here, whatever is wrong with it."""
    try:
        if not isinstance(token, str) or len(token) > LONGEST_TOKEN:
            raise ValueError
        said, seal = map(_bytes, token.split("."))
        if not hmac.compare_digest(seal, _seal_of(said, key)):
            raise ValueError
        organization_id, task_id, request_id, expires, choices, by = decode(said)
    except (ValueError, binascii.Error):
        raise InvalidLink("this is no link of this server") from None
    return Claims(organization_id, task_id, request_id, expires, None if choices is None else tuple(choices), by)


def _seal_of(said: bytes, key: bytes) -> bytes:
    return hmac.digest(key, _CONTEXT + said, hashlib.sha256)


def _text(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    """What a text says in base64, and in no other way to write the same."""
    value = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if _text(value) != text:
        raise ValueError
    return value


async def _key(services: Services) -> bytes:
    """The key that signs, of all organizations; made by whoever needs it first."""
    while True:
        found = await services.whole.views.document("secret", id=PURPOSE)
        if found is not None:
            return open_sealed(services, found.data["sealed"], PURPOSE)
        sealed = seal(services, secrets.token_bytes(32), PURPOSE)
        await services.whole.ledger.keep([Document("secret", PURPOSE, {"sealed": sealed})])


# --- the form ----------------------------------------------------------------------------------------


def _ways(
    request: InputRequest, only: tuple[JSON, ...] | None
) -> tuple[tuple[ChoiceRecord, ...], Literal["text", "number", "json"] | None]:
    """How a question can be answered: what it offers to choose from, and what can be typed."""
    if only is not None:
        return tuple(ChoiceRecord(label=_label(request, each), answer=each) for each in only), None
    schema: Any = request.expected
    if schema is None:
        if request.kind == "question":
            return (), "text"
        schema = {"type": "boolean"}
    kinds = [schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())]
    answers: list[JSON] = []
    typing: set[str] = set()
    for each in kinds:
        kind = each.get("type") if isinstance(each, dict) else None
        if not isinstance(each, dict):
            continue
        if "enum" in each:
            answers += each["enum"]
        elif "const" in each:
            answers.append(each["const"])
        elif kind == "boolean":
            answers += [True, False]
        elif kind == "null":
            answers.append(None)
        elif kind == "string":
            typing.add("text")
        elif kind in ("integer", "number"):
            typing.add("number")
        elif each is not schema or len(kinds) == 1:
            typing.add("json")
    fitting = [each for each in answers if mismatch(each, request.expected) is None][:MOST_CHOICES]
    choices = tuple(ChoiceRecord(label=_label(request, each), answer=each) for each in fitting)
    if request.kind != "question" and choices:
        return choices, None  # an approval with other arguments is not made on a phone
    for way in ("text", "number", "json"):
        if way in typing or (way == "json" and not choices):
            return choices, way
    return choices, None


def _label(request: InputRequest, answer: JSON) -> str:
    if isinstance(answer, bool):
        yes, no = ("Yes", "No") if request.kind == "question" else ("Approve", "Deny")
        return yes if answer else no
    if answer is None:
        return "Nothing"
    return answer if isinstance(answer, str) else encode(answer).decode()


def _read_typed(typed: str, way: Literal["text", "number", "json"]) -> JSON:
    if way == "text":
        return typed
    try:
        answer = decode(typed.strip().encode())
    except ValueError:
        raise InvalidAnswer(f"this is {'no number' if way == 'number' else 'not JSON'}: {typed!r:.100}") from None
    if way == "number" and not isinstance(answer, int | float):
        raise InvalidAnswer(f"this is no number: {typed!r:.100}")
    return answer
