"""API keys: what programs are admitted by. A token is shown once, when it is made; the store has a hash of it.

A token is `ork_`, the digits of the key's id, 43 characters of chance and a checksum, so that scanners for leaked
secrets know one, and a slip of the pen is seen without asking the store. Its secret has 256 bits of chance, which
nobody guesses: so one round of SHA-256 keeps it as well as a slow hash of a password would, which is slow only because
passwords can be guessed, and would cost every request a tenth of a second.
"""

from __future__ import annotations

import builtins
import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

from outrider.core.errors import Conflict, InvalidArguments, NotFound
from outrider.core.ledger import Document
from outrider.core.session import Session
from outrider.core.values import Instant, evolve
from outrider.runtime.clock import as_datetime, span
from outrider.runtime.ids import new_id
from outrider.runtime.options import Length, check_name, check_page, check_texts, check_texts_if_given, not_negative
from outrider.runtime.organizations import KEYS, TRIES, organization_of
from outrider.runtime.records import ApiKeyRecord, NewApiKeyRecord
from outrider.runtime.services import Services

Scope: TypeAlias = Literal["read", "submit", "operate", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""Each holds those before it: who may operate may submit and read as well."""

OVERLAP = 86_400.0
"""How many seconds the secret before a rotation is good as well, unless it is said."""

_TOKEN = re.compile(r"(ork_([0-9a-f]{32})_[0-9A-Za-z]{43})([0-9A-Za-z]{6})")
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Keys:
    """The keys of an organization; for operators, those of all."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def create(
        self,
        name: str,
        *,
        scopes: Sequence[Scope] = ("read",),
        session_id: str | None = None,
        expires: Length | None = None,
        organization_id: str | None = None,
        by: str | None = None,
    ) -> NewApiKeyRecord:
        """Make a key; its token is in what is returned, and nowhere else.

        With a `session_id`, which is the root of its tree, it is good for that tree alone, and never for a session that
        is given the same id after that one was deleted. Raises InvalidArguments, and NotFound for the session or the
        organization.
        """
        services = self._services
        check_name("name", name, services.settings.limits.name)
        check_texts_if_given(session_id=session_id, organization_id=organization_id, by=by)
        granted = check_scopes(scopes)
        owner = services.organization_id if organization_id is None else organization_id
        if (owner != services.organization_id and not services.is_operator) or (
            await organization_of(services, owner) is None
        ):
            raise NotFound.of("organization", owner)
        session = None if session_id is None else await self._root(session_id, owner)
        now = services.clock.now()
        length = None if expires is None else span(expires)
        if length is not None and length <= 0:
            raise InvalidArguments("expires is a length of time, and not none")
        id = new_id("key")
        token, hashed = _new_token(id)
        data = {
            "name": name,
            "scopes": granted,
            "session_id": session_id,
            "session_created_at": None if session is None else session.created_at,  # an id may be given again
            "secrets": [{"hash": hashed, "until": None}],
            "created_at": now,
            "created_by": by,
            "expires_at": None if length is None else now + length,
            "used_at": None,
            "revoked_at": None,
        }
        made = Document(KEYS, id, data, owner)
        if not await self._reach.ledger.keep([made]):
            raise Conflict("the key could not be kept; try again")
        return NewApiKeyRecord(**_fields(made, now), token=token)

    async def list(
        self, *, organization_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> builtins.list[ApiKeyRecord]:
        """Return keys, the oldest first, after the one of that id: those of an organization, or all within reach."""
        check_texts_if_given(organization_id=organization_id, after=after)
        found = await self._reach.views.documents(
            KEYS, organization_id=organization_id, after=after, limit=check_page(limit)
        )
        now = self._services.clock.now()
        return [ApiKeyRecord(**_fields(each, now)) for each in found]

    async def get(self, key_id: str) -> ApiKeyRecord:
        """Return a key. Raises NotFound."""
        return ApiKeyRecord(**_fields(await self._document(key_id), self._services.clock.now()))

    async def revoke(self, key_id: str) -> ApiKeyRecord:
        """Have a key be good no more, from within seconds in all processes; its record stays. Raises NotFound."""
        now = self._services.clock.now()

        def revoked(data: dict[str, Any]) -> dict[str, Any]:
            return {**data, "secrets": [], "revoked_at": data["revoked_at"] or now}

        return ApiKeyRecord(**_fields(await self._change(key_id, revoked), now))

    async def rotate(self, key_id: str, *, overlap: Length = OVERLAP) -> NewApiKeyRecord:
        """Give a key a new token; the one that it had is good for the `overlap` as well, and any before it no more.

        Raises NotFound, and Conflict for a key that was revoked or has expired.
        """
        now, length = self._services.clock.now(), not_negative("overlap", overlap)
        token, hashed = _new_token(key_id)

        def rotated(data: dict[str, Any]) -> dict[str, Any]:
            if not _is_active(data, now):
                raise Conflict(f"{key_id} was revoked or has expired; make another key")
            old = [{**each, "until": now + length} for each in data["secrets"] if each["until"] is None and length]
            return {**data, "secrets": [{"hash": hashed, "until": None}, *old]}

        return NewApiKeyRecord(**_fields(await self._change(key_id, rotated), now), token=token)

    @property
    def _reach(self) -> Services:
        """Where keys are read and written: for operators, everywhere."""
        return self._services.whole if self._services.is_operator else self._services

    async def _root(self, session_id: str, organization_id: str) -> Session:
        session = await self._reach.views.session(session_id)
        if session is None or session.organization_id != organization_id:
            raise NotFound.of("session", session_id)
        if session.root_session_id != session.id:
            raise InvalidArguments(f"{session_id} is below {session.root_session_id}: name that, the root of its tree")
        return session

    async def _change(self, key_id: str, change: Any) -> Document:
        for _ in range(TRIES):
            document = await self._document(key_id)
            changed = evolve(document, data=change(document.data))
            if await self._reach.ledger.keep([changed]):
                return changed
        raise Conflict(f"{key_id} changes all the time")

    async def _document(self, key_id: str) -> Document:
        check_texts(key_id=key_id)
        found = await self._reach.views.document(KEYS, id=key_id)
        if found is None:
            raise NotFound.of("key", key_id)
        return found


def key_id_of(token: str) -> str | None:
    """The id of the key that a token claims to be of; None for what is no token, or was mistyped."""
    match = _TOKEN.fullmatch(token)
    if match is None or not hmac.compare_digest(match[3], _checksum(match[1])):
        return None
    return f"key_{match[2]}"


def opens(document: Document, token: str, now: Instant) -> bool:
    """Whether a key is good now, and a token its own. All of its secrets are compared, in constant time."""
    given = _hash(token)
    found = False
    for each in document.data["secrets"]:
        is_current = each["until"] is None or now < each["until"]
        found |= hmac.compare_digest(each["hash"], given) and is_current
    return found and _is_active(document.data, now)


def check_scopes(given: object) -> list[Scope]:
    """Scopes that a caller names, each once, in their order. Raises InvalidArguments for others, and for none."""
    if not isinstance(given, list | tuple | set | frozenset) or not given or not set(given) <= {*SCOPES}:
        raise InvalidArguments(f"scopes are some of {', '.join(SCOPES)}, not {given!r:.100}")
    return [scope for scope in SCOPES if scope in given]


def _new_token(key_id: str) -> tuple[str, str]:
    """A token for a key, and its hash."""
    body = f"ork_{key_id.removeprefix('key_')}_{_base62(secrets.randbits(256), 43)}"
    token = body + _checksum(body)
    return token, _hash(token)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), 6)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))


def _is_active(data: Any, now: Instant) -> bool:
    return data["revoked_at"] is None and (data["expires_at"] is None or now < data["expires_at"])


def _fields(document: Document, now: Instant) -> dict[str, Any]:
    data = document.data
    later = [each["until"] for each in data["secrets"] if each["until"] is not None and each["until"] > now]
    moments = {name: data[name] for name in ("created_at", "expires_at", "used_at", "revoked_at")}
    moments["overlaps_until"] = max(later, default=None)
    return {
        "id": document.id,
        "organization_id": document.organization_id,
        "name": data["name"],
        "scopes": data["scopes"],
        "session_id": data["session_id"],
        "created_by": data["created_by"],
        "is_active": _is_active(data, now),
        **{name: None if moment is None else as_datetime(moment) for name, moment in moments.items()},
    }
