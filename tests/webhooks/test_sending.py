"""Whatever a receiver does, a try ends in time with a reason, and takes no more memory than was allowed."""

import ssl
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from standardwebhooks import Webhook

from outrider.core.errors import InvalidArguments
from outrider.runtime.webhooks.guard import Guard
from outrider.runtime.webhooks.sending import Outcome, Sender
from outrider.runtime.webhooks.signing import headers_of, key_of, new_secret
from tests.webhooks.receivers import LOOPBACK, Answer, drip, hang, pour, raw, receiving, reset, status

QUICK = replace(LOOPBACK, send_timeout=0.3, connect_timeout=0.2)


async def tried(answer: Answer, tls: ssl.SSLContext | None = None, trust: ssl.SSLContext | None = None) -> Outcome:
    settings = QUICK if answer in (hang, drip) else LOOPBACK
    async with receiving(answer, tls=tls) as receiver:
        sender = Sender(settings, 4096, Guard(settings), trust)
        await sender.send("http://127.0.0.1:1/", [], "x", b"", 1)  # loads what has to be loaded
        began = time.monotonic()
        outcome = await sender.send(receiver.url, [b"key"], "dlv_1", b"{}", 1)
        assert time.monotonic() - began < 5
        await sender.close()
        return outcome


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (hang, "it took longer than 0.3 s"),
        (drip, "it took longer than 0.3 s"),
        (reset, "Error|connection"),
        (raw(b""), "RemoteProtocolError"),
        (raw(b"SSH-2.0-x\r\n\r\n"), "RemoteProtocolError"),
        (
            raw(b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 300_000 + b"\r\n\r\n"),
            "RemoteProtocolError|connection|ReadError",
        ),
        (status(302, location="http://127.0.0.1:1/"), "it answered 302, a redirect, and none is followed"),
        (status(404), "it answered 404"),
        (raw(b"HTTP/1.1 500 \xff\xfe\r\ncontent-length: 3\r\n\r\n\x00\xff!"), "it answered 500"),
    ],
    ids=["hang", "drip", "reset", "nothing", "no http", "huge head", "redirect", "not found", "no text"],
)
async def test_what_is_no_success_is_a_failure_with_its_reason(answer: Answer, error: str):
    outcome = await tried(answer)
    assert outcome.error is not None
    assert any(each in outcome.error for each in error.split("|")), outcome.error
    assert "\0" not in outcome.head


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer",
    [
        status(204),
        pour,
        raw(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nx"),  # promises more than it says
        raw(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxxxxx"),
        raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense"),
        raw(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nnone"),
    ],
    ids=["no content", "endless body", "less than said", "more than said", "no chunks", "no gzip"],
)
async def test_a_receiver_that_said_that_it_took_it_has_taken_it(answer: Answer):
    outcome = await tried(answer)
    assert outcome.error is None
    assert len(outcome.head) <= 512


@pytest.mark.anyio
async def test_nobody_listening_is_no_connection():
    sender = Sender(QUICK, 4096, Guard(QUICK))
    outcome = await sender.send("http://127.0.0.1:1/", [b"key"], "dlv_1", b"{}", 1)
    assert (outcome.status, "ConnectError" in (outcome.error or "")) == (None, True)
    refused = await sender.send("http://10.0.0.1/", [b"key"], "dlv_1", b"{}", 1)
    assert "no public address" in (refused.error or "")
    await sender.close()


@pytest.mark.anyio
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY", "http_proxy"])
async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, variable: str):
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    assert (await tried(status(200))).error is None


@pytest.mark.anyio
async def test_a_certificate_is_the_hosts_or_the_connection_is_none(tmp_path: Path):
    good, trusted = certificate(tmp_path / "good", "hooks.example")
    assert "CERTIFICATE_VERIFY_FAILED" in ((await tried(status(200), tls=good)).error or "")
    assert "CERTIFICATE_VERIFY_FAILED" in ((await tried(status(200), tls=good, trust=trusted)).error or "")

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    names: list[object] = []
    good.sni_callback = lambda _, name, __: names.append(name)
    async with receiving(tls=good) as receiver:
        settings = replace(LOOPBACK, ports=(receiver.port,))
        sender = Sender(settings, 4096, Guard(settings, resolve), trusted)
        outcome = await sender.send(f"https://hooks.example:{receiver.port}/", [b"key"], "dlv_1", b"{}", 1)
        assert (outcome.error, names) == (None, ["hooks.example"])
        await sender.close()


def certificate(path: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context for a name, and a client's that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    issued = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(issued)
        .issuer_name(issued)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    return server, ssl.create_default_context(cafile=str(path))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("120", 120),
        ("in an hour", 3600),
        ("-5", 0),
        ("soon", None),
        ("9" * 400, None),
        ("9" * 5000, None),
    ],
    ids=["seconds", "date", "negative", "word", "huge", "huger"],
)
async def test_when_a_receiver_wants_to_be_left_alone_is_understood(given: str, seconds: float | None):
    if given == "in an hour":
        given = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    found = (await tried(status(429, retry_after=given))).retry_after
    assert found == (seconds if seconds is None else pytest.approx(seconds, abs=60))


def test_signatures_are_those_of_the_specification():
    secret, other, body = new_secret(), new_secret(), '{"ä":1}'.encode()
    now = int(time.time())
    headers = headers_of([key_of(secret), key_of(other)], "dlv_1", now, body)
    assert Webhook(secret).verify(body, headers) == Webhook(other).verify(body, headers) == {"ä": 1}
    moment = datetime.fromtimestamp(now, UTC)
    assert headers["webhook-signature"].split(" ")[0] == Webhook(secret).sign("dlv_1", moment, body.decode())
    for forged in ({**headers, "webhook-id": "dlv_2"}, {**headers, "webhook-timestamp": str(now + 1)}):
        with pytest.raises(Exception, match="No matching signature"):
            Webhook(secret).verify(body, forged)
    for wrong in ("", "whsec_", "whsec_a", "whsec_" + "A" * 8, "whsec_" + "A" * 200, "A" * 44, None):
        with pytest.raises(InvalidArguments) as refused:
            key_of(wrong)
        assert str(wrong or "nothing") not in refused.value.message.removeprefix("a secret is whsec_")
