"""Who asks, and how far they reach: a bearer token becomes a `Caller`, whose bounds a runtime is put within.

One `Access` stands before all edges of a process. It remembers keys for seconds only, so a key that was revoked, in
whatever process, is refused soon after; whether the session of a key is still the same is asked each time. A token is
looked at whole before anything is refused for how often it was tried: whoever guesses from somebody's address does not
shut them out.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any, Generic, TypeVar

from outrider.core.errors import Forbidden, IssuerUnavailable, RateLimited, StoreError, Unauthenticated
from outrider.core.ledger import Document
from outrider.core.task import DEFAULT_ORGANIZATION
from outrider.core.values import SECOND, Span, evolve
from outrider.runtime.bounds import Bounds
from outrider.runtime.keys import SCOPES, Scope, key_id_of, opens
from outrider.runtime.organizations import KEYS, organization_of
from outrider.runtime.services import Services
from outrider.runtime.tokens import Claimed, Tokens
from outrider.settings import AccessSettings

MOST = 10_000
"""How many keys, callers and addresses are remembered at most; the one longest unheard of is forgotten first."""
BEARER = "bearer "

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: of which organization, how far they may go, bound to one session's tree or not, and their name.

    `key_id` or `subject` identify them, by a key or by a token of somebody who signs such. `via` says by which.
    """

    organization_id: str = DEFAULT_ORGANIZATION
    scopes: frozenset[Scope] = frozenset(SCOPES)
    session_id: str | None = None
    name: str | None = None
    key_id: str | None = None
    subject: str | None = None
    via: str = "open"

    def signs(self, given: str | None) -> str | None:
        """Who did it, for the record: a caller with a name is who they are, whatever they say."""
        return given if self.name is None else self.name

    def check(self, scope: Scope) -> None:
        """Raise Forbidden for a scope that was not granted. Each holds those before it."""
        if not self.scopes & {*SCOPES[SCOPES.index(scope) :]}:
            granted = ", ".join(each for each in SCOPES if each in self.scopes) or "nothing"
            raise Forbidden(
                f"this needs the scope {scope}, and {granted} was granted", details={"needs": scope, "has": granted}
            )

    @property
    def bounds(self) -> Bounds:
        """How far they reach. An admin of the default organization is an operator, unless bound to a session."""
        is_operator = (
            "admin" in self.scopes and self.organization_id == DEFAULT_ORGANIZATION and self.session_id is None
        )
        return Bounds(self.organization_id, self.session_id, is_operator)

    @property
    def actor(self) -> dict[str, str]:
        """Who they are, for the audit log."""
        told = {"name": self.name, "key_id": self.key_id, "subject": self.subject, "via": self.via}
        return {name: value for name, value in told.items() if value is not None}

    @property
    def id(self) -> str:
        """What their requests are counted by."""
        return self.key_id or f"{self.organization_id}/{self.subject or self.via}"


ANYBODY = Caller()
"""Who asks where nobody is asked who they are: on this machine only."""


class Access:
    """Admits callers to one store."""

    def __init__(self, services: Services, settings: AccessSettings, tokens: Tokens | None = None) -> None:
        self._services = services.whole
        self._settings = settings
        self._tokens = tokens
        self._keys: _Recent[_Known] = _Recent()
        self._organizations: _Recent[_Standing] = _Recent()
        self.rates = Rates(settings.rate, settings.burst)
        self._failures = Rates(settings.failures / 60, settings.failures)

    async def admit(self, authorization: str | None, address: str) -> Caller:
        """Return who sends this header. Raises Unauthenticated; RateLimited where too much was refused from there.

        IssuerUnavailable, and a StoreError, say nothing of the token.
        """
        try:
            return await self._known(authorization)
        except (Unauthenticated, Forbidden) as error:
            standing = self._failures.take(_place_of(address), self._services.clock.passed())
            if standing.is_over:
                raise RateLimited(
                    "too many requests from there were refused; wait before the next", retry_after=standing.retry_after
                ) from error
            raise

    async def check(self, authorization: str | None) -> None:
        """Raise what `admit` does for who sends this header, without counting it."""
        await self._known(authorization)

    async def check_still(self, authorization: str | None) -> None:
        """Raise Unauthenticated or Forbidden where who sent this header is no longer admitted; without counting it.

        While nobody can tell, they are.
        """
        with suppress(IssuerUnavailable, StoreError):
            await self._known(authorization)

    def count(self, caller: Caller) -> Rate:
        """Count a request of a caller, and say what is left. Raises RateLimited where nothing is."""
        rate = self.rates.take(caller.id, self._services.clock.passed())
        if rate.is_over:
            raise RateLimited(f"more than {self._settings.rate:g} requests a second", retry_after=rate.retry_after)
        return rate

    async def _known(self, authorization: str | None) -> Caller:
        if authorization is None:
            raise Unauthenticated("send a key: Authorization: Bearer ork_...")
        if authorization[: len(BEARER)].lower() != BEARER:
            raise Unauthenticated("the header Authorization is Bearer and a token")
        token = authorization[len(BEARER) :].strip()
        if token.startswith("ork_"):
            return await self._of_key(token)
        if self._tokens is None:
            raise Unauthenticated("this is no key of Outrider, and other tokens are not accepted here")
        return await self._of_token(await self._tokens.read(token))

    async def _of_key(self, token: str) -> Caller:
        key_id = key_id_of(token)
        if key_id is None:
            raise Unauthenticated("this is no whole key: it was cut or mistyped")
        known = await self._key(key_id)
        document = known.document
        if document is None:
            raise Unauthenticated("this key is not known here")
        data = document.data
        caller = Caller(
            document.organization_id,
            frozenset(data["scopes"]),
            data["session_id"],
            data["name"],
            key_id=document.id,
            via="key",
        )
        now = self._services.clock.now()
        if not opens(document, token, now):
            raise Unauthenticated("this key is not good, or no longer", details={"key": document.id})
        if await self._is_orphan(data):
            text = "the session of this key was deleted; the one that has its id now is another"
            raise Unauthenticated(text, details={"key": document.id})
        if data["used_at"] is None or now - data["used_at"] >= self._settings.key_used * SECOND:
            await self._note_use(document)
        await self._check_organization(caller)
        return caller

    async def _of_token(self, claimed: Claimed) -> Caller:
        caller = Caller(
            claimed.organization_id, claimed.scopes, name=claimed.name, subject=claimed.subject, via="token"
        )
        await self._check_organization(caller)
        return caller

    async def _check_organization(self, caller: Caller) -> None:
        if caller.organization_id == DEFAULT_ORGANIZATION:
            return
        standing = self._organizations.get(caller.organization_id, self._age)
        if standing is None:
            found = await organization_of(self._services, caller.organization_id)
            standing = _Standing(found is not None, found is not None and found.data["suspended_at"] is not None)
            self._organizations.put(caller.organization_id, standing, self._services.clock.passed())
        if not standing.exists:
            raise Unauthenticated(f"there is no organization {caller.organization_id!r:.100}")
        if standing.is_suspended:
            raise Forbidden(f"{caller.organization_id} is suspended")

    async def _key(self, key_id: str) -> _Known:
        known = self._keys.get(key_id, self._age)
        if known is None:
            document = await self._services.views.document(KEYS, id=key_id)
            known = _Known(document)
            self._keys.put(key_id, known, self._services.clock.passed())
        return known

    async def _is_orphan(self, data: Any) -> bool:
        """Whether the session of a key is another than it was made for. Keys of before that was kept do not tell.

        Asked anew each time: the id may have been given again a moment ago.
        """
        made_at = data.get("session_created_at")
        if made_at is None:
            return False
        session = await self._services.views.session(data["session_id"])
        return session is not None and session.created_at != made_at

    @property
    def _age(self) -> Span:
        """From when on what was read is fresh enough."""
        return self._services.clock.passed() - round(self._settings.key_cache * SECOND)

    async def _note_use(self, document: Document) -> None:
        """Write down that a key was used, now and again: it is no matter if that fails, or somebody was faster."""
        used = evolve(document, data={**document.data, "used_at": self._services.clock.now()})
        with suppress(StoreError):
            if await self._services.ledger.keep([used]):
                used = evolve(used, version=used.version + 1)
                self._keys.put(document.id, _Known(used), self._services.clock.passed())
            else:
                self._keys.drop(document.id)


# --- how often ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rate:
    """What is left to somebody: `left` requests of `burst`; all of them again in `reset` seconds, `full` from none."""

    burst: int
    left: int
    reset: float
    full: float
    is_over: bool
    retry_after: float


class Rates:
    """Token buckets by name: `burst` at once, refilled by `rate` a second."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate = rate
        self.burst = burst
        self._buckets: OrderedDict[str, tuple[float, Span]] = OrderedDict()

    def take(self, name: str, now: Span) -> Rate:
        """Take one from a bucket. `now` is in microseconds of a clock that goes on evenly."""
        level, at = self._buckets.get(name, (float(self.burst), now))
        level = min(float(self.burst), level + (now - at) / SECOND * self.rate)
        is_over = level < 1
        if not is_over:
            level -= 1
        self._buckets[name] = level, now
        self._buckets.move_to_end(name)
        if len(self._buckets) > MOST:
            self._buckets.popitem(last=False)
        return Rate(
            self.burst,
            int(level),
            (self.burst - level) / self.rate,
            self.burst / self.rate,
            is_over,
            max(0.0, (1 - level) / self.rate),
        )


# --- what is remembered ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Known:
    """A key as it was read; None where there was none."""

    document: Document | None


@dataclass(frozen=True, slots=True)
class _Standing:
    exists: bool
    is_suspended: bool


class _Recent(Generic[V]):
    """Values with the moment at which they were read."""

    def __init__(self) -> None:
        self._values: OrderedDict[str, tuple[V, Span]] = OrderedDict()

    def get(self, name: str, since: Span) -> V | None:
        """A value that was read since a moment."""
        found = self._values.get(name)
        return None if found is None or found[1] < since else found[0]

    def put(self, name: str, value: V, at: Span) -> None:
        """Remember a value; the oldest is forgotten where there are too many."""
        self._values[name] = value, at
        self._values.move_to_end(name)
        if len(self._values) > MOST:
            self._values.popitem(last=False)

    def drop(self, name: str) -> None:
        """Forget a value."""
        self._values.pop(name, None)


def _place_of(address: str) -> str:
    """Whom an address counts for: of IPv6 the network of a customer, who has any number of addresses."""
    with suppress(ValueError):
        found = ip_address(address.partition("%")[0])
        if isinstance(found, IPv6Address) and found.ipv4_mapped is None:
            return str(IPv6Address(int(found) >> 64 << 64))
    return address
