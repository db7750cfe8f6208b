"""Tokens of an issuer, whose keys are served by a real server on loopback: what is good, and all that is not."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, Key, KeySet, RSAKey

from outrider import Outrider
from outrider.core.errors import Forbidden, InvalidArguments, IssuerUnavailable, OutriderError, Unauthenticated
from outrider.runtime.access import Access
from outrider.runtime.clock import SystemClock
from outrider.runtime.tokens import Tokens
from outrider.settings import AccessSettings, IssuerSettings

pytestmark = pytest.mark.anyio

RSA = RSAKey.generate_key(2048, {"kid": "rsa-1", "use": "sig"})
EC = ECKey.generate_key("P-256", {"kid": "ec-1"})
STRANGER = RSAKey.generate_key(2048, {"kid": "rsa-1"})


class Issuer:
    """Who issues tokens: a server of discovery and keys."""

    def __init__(self) -> None:
        self.keys: list[Key] = [RSA, EC]
        self.asked: list[str] = []
        self.answers: dict[str, tuple[int, bytes, dict[str, str]]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        self.asked.append(path)
        if path in self.answers:
            return self.answers[path]
        if path == "/.well-known/openid-configuration":
            return 200, json.dumps({"issuer": self.url, "jwks_uri": f"{self.url}/jwks"}).encode(), {}
        return 200, json.dumps(KeySet(self.keys).as_dict(private=False)).encode(), {}

    def token(self, key: Key = RSA, alg: str = "RS256", kid: str | None = "", **claims: Any) -> str:
        header = {"alg": alg, "kid": key.kid if kid == "" else kid}
        given = {**self.claims(), **claims}
        return jwt.encode(
            {name: value for name, value in header.items() if value is not None},
            {name: value for name, value in given.items() if value is not None},
            key,
            algorithms=[alg],
        )

    def claims(self) -> dict[str, Any]:
        now = int(time.time())
        return {
            "iss": self.url,
            "aud": ["else", "outrider"],
            "sub": "user-1",
            "exp": now + 300,
            "iat": now,
            "organization": "org_b",
            "scope": "openid outrider:submit",
            "email": "user@example.org",
        }

    def tokens(self, clock: SystemClock | None = None, **settings: Any) -> Tokens:
        return Tokens(IssuerSettings(self.url, "outrider", **settings), clock or SystemClock())


class Steady(SystemClock):
    """A clock on which no time passes by itself."""

    seconds = 0.0

    def passed(self) -> int:
        return round(self.seconds * 1e6)


def _handler_of(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body, headers = issuer.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    return Handler


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.close()


async def refused(tokens: Tokens, token: str) -> str:
    with pytest.raises(OutriderError) as caught:
        await tokens.read(token)
    return caught.value.code


async def test_a_good_token_says_who_it_is_and_what_they_may(issuer: Issuer):
    tokens = issuer.tokens()
    claimed = await tokens.read(issuer.token())
    assert (claimed.subject, claimed.name, claimed.organization_id) == ("user-1", "user@example.org", "org_b")
    assert claimed.scopes == {"submit"}
    assert (await tokens.read(issuer.token(EC, "ES256", aud="outrider", scope=["outrider:read", 5]))).subject
    assert issuer.asked == ["/.well-known/openid-configuration", "/jwks"]


async def test_claims_are_mapped_as_the_settings_say(issuer: Issuer):
    tokens = issuer.tokens(
        organization_claim="tenant.id",
        organizations={"42": "org_b"},
        scopes_claim="realm_access.roles",
        scopes={"boss": "admin"},
    )
    wrong: dict[str, Any]
    given: dict[str, Any] = {"tenant": {"id": 42}, "realm_access": {"roles": ["x", "boss"]}}
    claimed = await tokens.read(issuer.token(**given))
    assert (claimed.organization_id, claimed.scopes) == ("org_b", frozenset({"admin"}))
    for wrong in (
        {"tenant": {"id": 43}},
        {"tenant": "42"},
        {"realm_access": {"roles": "nothing"}},
        {"realm_access": 1},
    ):
        with pytest.raises(Forbidden):
            await tokens.read(issuer.token(**{**given, **wrong}))


async def test_a_token_that_is_not_good_is_refused(issuer: Issuer):
    tokens, now = issuer.tokens(), int(time.time())
    head, body, _ = issuer.token().split(".")
    unsigned = _by_hand({"alg": "none", "kid": "rsa-1"}, issuer.claims(), None)
    wrong = {
        "expired": issuer.token(exp=now - 31),
        "without an end": issuer.token(exp=None),
        "of text": issuer.token(exp="soon"),
        "not yet": issuer.token(nbf=now + 60),
        "issued later": issuer.token(iat=now + 60),
        "another audience": issuer.token(aud="other"),
        "no audience": issuer.token(aud=None),
        "another issuer": issuer.token(iss="https://evil.example"),
        "no subject": issuer.token(sub=None),
        "a stranger's": issuer.token(STRANGER),
        "of an unknown key": issuer.token(STRANGER, kid="rsa-9"),
        "of no key in particular": issuer.token(STRANGER, kid=None),
        "signed with the public key": _by_hand(
            {"alg": "HS256", "kid": "rsa-1"}, issuer.claims(), RSA.as_pem(private=False)
        ),
        "unsigned": unsigned,
        "of another's signature": f"{head}.{body}.{issuer.token(sub='user-2').rsplit('.', 1)[1]}",
        "without a signature": f"{head}.{body}.",
        "of another algorithm": issuer.token(EC, "ES256", kid="rsa-1"),
        "cut": issuer.token()[:-5],
        "garbage": "a.b.c",
        "empty": "",
        "not ascii": "é.é.é",
        "huge": issuer.token(email="x" * 20_000),
        "many parts": "." * 1000,
    }
    accepted = {name for name, token in wrong.items() if await refused(tokens, token) != "unauthenticated"}
    assert accepted == set()
    assert (await tokens.read(issuer.token(exp=now - 20, nbf=now + 20))).subject == "user-1"  # clocks differ


def _by_hand(header: dict[str, str], claims: dict[str, Any], secret: bytes | None) -> str:
    """A token that no library makes: unsigned, or signed with a public key as if it were a shared secret."""
    parts = [base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=") for each in (header, claims)]
    signature = b"" if secret is None else hmac.digest(secret, b".".join(parts), "sha256")
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


async def test_new_keys_are_fetched_when_a_token_names_one_and_never_more_often_than_said(issuer: Issuer):
    clock = Steady()
    tokens = issuer.tokens(clock, jwks=f"{issuer.url}/jwks")
    await tokens.read(issuer.token())
    rotated = RSAKey.generate_key(2048, {"kid": "rsa-2"})
    issuer.keys = [rotated]
    assert await refused(tokens, issuer.token(rotated)) == "unauthenticated"  # just fetched
    clock.seconds += 10
    found = await asyncio.gather(*(tokens.read(issuer.token(rotated)) for _ in range(20)))
    assert {each.subject for each in found} == {"user-1"}
    assert issuer.asked == ["/jwks"] * 2
    assert await refused(tokens, issuer.token(RSA)) == "unauthenticated"  # whose key is no more
    clock.seconds += 10
    for _ in range(20):
        await refused(tokens, issuer.token(STRANGER, kid="rsa-9"))
    assert len(issuer.asked) == 3


async def test_keys_stay_good_while_their_issuer_is_away_and_without_any_it_is_said(issuer: Issuer):
    tokens = issuer.tokens(jwks=f"{issuer.url}/jwks", keys_rest=0.0, keys_age=0.0)
    lost = issuer.tokens(jwks=f"{issuer.url}/jwks")
    await tokens.read(issuer.token())
    for answer in ((500, b"", {}), (200, b"{", {}), (302, b"", {"Location": "/other"}), (200, b" " * 300_000, {})):
        issuer.answers["/jwks"] = answer
        assert (await tokens.read(issuer.token())).subject == "user-1"
    assert "/other" not in issuer.asked
    for _ in range(2):
        with pytest.raises(IssuerUnavailable):
            await lost.read(issuer.token())


async def test_an_issuer_that_calls_itself_something_else_is_not_believed(issuer: Issuer):
    told = {"issuer": "https://evil.example", "jwks_uri": f"{issuer.url}/jwks"}
    issuer.answers["/.well-known/openid-configuration"] = 200, json.dumps(told).encode(), {}
    with pytest.raises(IssuerUnavailable):
        await issuer.tokens().read(issuer.token())


async def test_keys_can_lie_in_a_file(issuer: Issuer, tmp_path: Path):
    place = tmp_path / "jwks.json"
    place.write_text(json.dumps(KeySet(issuer.keys).as_dict(private=False)))
    assert (await issuer.tokens(jwks=str(place)).read(issuer.token())).subject == "user-1"
    assert issuer.asked == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"algorithms": ("RS256", "HS256")},
        {"algorithms": ("none",)},
        {"algorithms": ()},
        {"issuer": ""},
        {"audience": ""},
        {"issuer": "http://issuer.example"},
        {"jwks": "http://issuer.example/jwks"},
        {"jwks": "file:///etc/passwd"},
        {"jwks": "/nowhere"},
        {"scopes": {"x": "root"}},
    ],
)
def test_settings_under_which_tokens_could_be_forged_are_refused(wrong: dict[str, Any]):
    settings = {"issuer": "https://issuer.example", "audience": "outrider", **wrong}
    with pytest.raises(InvalidArguments):
        Tokens(IssuerSettings(**settings), SystemClock())


async def test_a_token_is_admitted_to_an_organization_that_is_there(issuer: Issuer):
    async with Outrider().open("memory://", worker=False) as runtime:
        access = Access(runtime.services, AccessSettings(key_cache=0), issuer.tokens())
        header = f"Bearer {issuer.token()}"
        with pytest.raises(Unauthenticated, match="organization"):
            await access.admit(header, "a")
        await runtime.organizations.create("B", id="org_b")
        caller = await access.admit(header, "a")
        assert caller.actor == {"name": "user@example.org", "subject": "user-1", "via": "token"}
        assert (caller.organization_id, caller.scopes, caller.key_id) == ("org_b", frozenset({"submit"}), None)
        await runtime.organizations.suspend("org_b")
        with pytest.raises(Forbidden):
            await access.admit(header, "a")
        with pytest.raises(Unauthenticated):
            await Access(runtime.services, AccessSettings()).admit(header, "a")
