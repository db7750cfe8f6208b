"""The links of a server that answer one question: the verbs of `outrider.runtime.answer_links`.

A token is all that admits, so it goes in the body of a request: paths are logged. Whoever has a link and no key answers
by its page.
"""

from __future__ import annotations

from collections.abc import Sequence

from outrider.client.connection import Connection, as_json, segment
from outrider.core.errors import InvalidLink
from outrider.core.values import JSON
from outrider.runtime.answer_links import AnswerFormRecord, AnswerLinkRecord
from outrider.runtime.options import Length, check_lists, check_texts_if_given, not_negative
from outrider.runtime.records import TaskRecord


class AnswerLinks:
    """Makes links, and answers by those to questions that the key reaches."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(
        self,
        request_id: str,
        *,
        expires: Length | None = None,
        choices: Sequence[JSON] | None = None,
        by: str | None = None,
    ) -> AnswerLinkRecord:
        """Make a link that answers a pending question until it `expires` (a day from now, unless it says).

        With `choices` it gives one of these answers and no other. `by` is who it is for; the server records beside it
        by whose key it was made. Safe to repeat, for nothing is kept of a link. Raises NotFound, RequestClosed,
        InvalidAnswer for a choice that the question does not take.
        """
        check_texts_if_given(by=by)
        if choices is not None:
            check_lists(choices=choices)
        body = {
            "expires": None if expires is None else not_negative("expires", expires) / 1e6,
            "choices": None if choices is None else [as_json("a choice", each) for each in choices],
            "by": by,
        }
        path = f"/v1/requests/{segment('request', request_id)}/links"
        return (await self._connection.ask("POST", path, body=body, again=True)).record(AnswerLinkRecord)

    async def form(self, token: str) -> AnswerFormRecord:
        """Return what a link shows, of a question that may be closed by now. Raises LinkExpired and InvalidLink."""
        answer = await self._connection.ask("POST", "/v1/links:show", body={"token": _checked(token)}, again=True)
        return answer.record(AnswerFormRecord)

    async def answer(self, token: str, *, choice: int | None = None, typed: str | None = None) -> TaskRecord:
        """Answer by a link: one of its form's choices by number, or what was typed; not both.

        Asked once: where the answer is lost, `form` tells whether it counts. Raises InvalidLink, LinkExpired,
        InvalidAnswer with the reason, and RequestClosed.
        """
        check_texts_if_given(typed=typed)
        body = {"token": _checked(token), "choice": choice, "typed": typed}
        return (await self._connection.ask("POST", "/v1/links:answer", body=body)).record(TaskRecord)


def _checked(token: object) -> str:
    """What may be a token. Raises InvalidLink, which does not repeat it."""
    if not isinstance(token, str) or not token.isascii():
        raise InvalidLink("this is no link of this server")
    return token
