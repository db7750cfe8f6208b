"""Tokens of an issuer (OpenID Connect, signed JWTs): checked here, never issued.

What a token says of itself is believed only once its signature, issuer, audience and time are. Only algorithms with a
public key are known, so no public key is ever taken for a shared secret. Keys are fetched when they are old or a token
names one that nobody knows, never more often than `keys_rest` says, whatever is sent.
"""

from __future__ import annotations

import asyncio
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from outrider.core.errors import Forbidden, InvalidArguments, IssuerUnavailable, Unauthenticated
from outrider.runtime.clock import Clock
from outrider.runtime.codec import decode
from outrider.runtime.keys import SCOPES, Scope, check_scopes
from outrider.runtime.log import log
from outrider.settings import IssuerSettings

if TYPE_CHECKING:
    from joserfc.jwk import KeySet

LARGEST = 256 * 1024
"""How many bytes of keys are read at most."""
WELL_KNOWN = "/.well-known/openid-configuration"
KINDS = ("RSA", "EC", "OKP")


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a good token says: who has it, of which organization, with which scopes."""

    subject: str
    name: str
    organization_id: str
    scopes: frozenset[Scope]


class Tokens:
    """Checks the tokens of one issuer."""

    def __init__(self, settings: IssuerSettings, clock: Clock) -> None:
        """Raises InvalidArguments for settings under which tokens could be forged, or none would be good."""
        _check(settings)
        self._settings = settings
        self._clock = clock
        self._keys: KeySet | None = None
        self._fetched_at = self._tried_at = -float("inf")
        self._fetching = asyncio.Lock()

    async def read(self, token: str) -> Claimed:
        """Return what a token says. Raises Unauthenticated, Forbidden for one that grants nothing here,
        IssuerUnavailable.
        """
        from joserfc import jws, jwt
        from joserfc.errors import JoseError

        if len(token) > self._settings.token_size:
            raise Unauthenticated(f"the token is larger than {self._settings.token_size:,} characters")
        try:
            header = jws.extract_compact(token.encode("ascii")).headers()
        except (JoseError, ValueError):
            raise Unauthenticated("this is neither a key of Outrider nor a signed token") from None
        key = await self._key(header)
        try:
            found = jwt.decode(token, key, algorithms=list(self._settings.algorithms))
            self._registry().validate(found.claims)
        except (JoseError, ValueError, TypeError) as error:
            raise Unauthenticated(f"the token is not good: {error}"[:200]) from None
        return self._claimed(found.claims)

    def _registry(self) -> Any:
        from joserfc.jwt import JWTClaimsRegistry

        settings = self._settings
        return JWTClaimsRegistry(
            now=self._clock.now() // 1_000_000,
            leeway=round(settings.leeway),
            iss={"essential": True, "value": settings.issuer},
            aud={"essential": True, "value": settings.audience},
            exp={"essential": True},
            sub={"essential": True},
        )

    def _claimed(self, claims: Mapping[str, Any]) -> Claimed:
        settings = self._settings
        organization = _claim(claims, settings.organization_claim)
        if settings.organizations:
            organization = settings.organizations.get(str(organization))
        if not isinstance(organization, str) or not organization:
            raise Forbidden(f"the token's claim {settings.organization_claim} names no organization that is known here")
        told = _claim(claims, settings.scopes_claim)
        values = told.split() if isinstance(told, str) else told if isinstance(told, list) else []
        scopes = {settings.scopes[each] for each in values if isinstance(each, str) and each in settings.scopes}
        if not scopes:
            raise Forbidden(f"the token's claim {settings.scopes_claim} grants nothing here")
        subject = claims["sub"]
        name = next((claims[each] for each in ("preferred_username", "email", "client_id") if each in claims), subject)
        return Claimed(subject, str(name)[:200], organization, frozenset(check_scopes(scopes)))

    # --- keys ----------------------------------------------------------------------------------------

    async def _key(self, header: Mapping[str, Any]) -> Any:
        """The key that a header names. Raises Unauthenticated, IssuerUnavailable."""
        if header.get("alg") not in self._settings.algorithms:
            raise Unauthenticated("the token is signed in a way that is not accepted here")
        found = None if self._is_old else self._find(header)
        if found is None:
            await self._refresh()
            found = self._find(header)
        if found is None:
            raise Unauthenticated("the token is signed by a key that its issuer does not have")
        return found

    def _passed(self) -> float:
        """Seconds of a clock that goes on evenly."""
        return self._clock.passed() / 1_000_000

    @property
    def _is_old(self) -> bool:
        return self._passed() - self._fetched_at > self._settings.keys_age

    def _find(self, header: Mapping[str, Any]) -> Any:
        keys = [] if self._keys is None else [each for each in self._keys if _may_sign(each, header["alg"])]
        kid = header.get("kid")
        if kid is None:
            return keys[0] if len(keys) == 1 else None
        return next((each for each in keys if each.kid == kid), None)

    async def _refresh(self) -> None:
        """Fetch the keys anew, unless that was tried just now. Those that there were stay where it fails."""
        async with self._fetching:
            if self._passed() - self._tried_at < self._settings.keys_rest:
                if self._keys is None:
                    raise IssuerUnavailable("the keys of the issuer could not be fetched; try again in a moment")
                return
            try:
                self._keys = await asyncio.to_thread(self._fetch)
                self._fetched_at = self._passed()
            except Exception as error:
                log.error("the keys of the issuer of tokens could not be fetched", reason=f"{error}"[:200])
                if self._keys is None:
                    raise IssuerUnavailable("the keys of the issuer could not be fetched") from error
            finally:
                self._tried_at = self._passed()

    def _fetch(self) -> KeySet:
        from joserfc.jwk import KeySet

        place = self._settings.jwks
        if place is None:
            told = decode(_get(self._settings.issuer.rstrip("/") + WELL_KNOWN, self._settings.keys_timeout))
            if told["issuer"] != self._settings.issuer:
                raise ValueError(f"the issuer calls itself {told['issuer']!r:.100}")
            place = str(told["jwks_uri"])
            _check_url(place)
        if _is_url(place):
            raw = _get(place, self._settings.keys_timeout)
        else:
            with open(place, "rb") as file:
                raw = file.read(LARGEST)
        return KeySet.import_key_set(decode(raw))


def _check(settings: IssuerSettings) -> None:
    for name in ("issuer", "audience"):
        if not getattr(settings, name):
            raise InvalidArguments(f"{name} of the issuer's settings is empty")
    wrong = [each for each in settings.algorithms if each == "none" or each.startswith("HS")]
    if wrong or not settings.algorithms:
        raise InvalidArguments(f"algorithms are some with a public key, such as RS256 and ES256, not {wrong}")
    if not set(settings.scopes.values()) <= {*SCOPES}:
        raise InvalidArguments(f"the scopes of the issuer's settings mean some of {', '.join(SCOPES)}")
    if settings.jwks is None:
        _check_url(settings.issuer)
    elif _is_url(settings.jwks):
        _check_url(settings.jwks)
    elif not os.path.isfile(settings.jwks):
        raise InvalidArguments(f"there is no file {settings.jwks!r} with the keys of the issuer")


def _is_url(place: str) -> bool:
    return "://" in place


def _check_url(url: str) -> None:
    """Raise InvalidArguments for what anybody on the way could answer: plain HTTP that leaves the machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname)):
        return
    raise InvalidArguments(f"keys are fetched by https, not from {url!r:.200}")


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


def _get(url: str, timeout: float) -> bytes:
    proxies = urllib.request.ProxyHandler({}) if _is_loopback(urlsplit(url).hostname) else urllib.request.ProxyHandler()
    opener = urllib.request.build_opener(_NoRedirects(), proxies)
    request = urllib.request.Request(url, headers={"Accept": "application/json"})
    with opener.open(request, timeout=timeout) as answer:
        raw: bytes = answer.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise ValueError(f"{url} answers with more than {LARGEST:,} bytes")
    return raw


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses to be sent elsewhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None: the answer is an error then."""
        return


def _may_sign(key: Any, algorithm: str) -> bool:
    """Whether a key is one that signs, in that way, as far as it says."""
    told = key.as_dict(private=False)
    return key.key_type in KINDS and told.get("use", "sig") == "sig" and told.get("alg", algorithm) == algorithm


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim of that name; with dots, one within objects."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
