"""No webhook reaches what is not of the public network, however its address is written or looked up."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from outrider.core.errors import AddressRefused, InvalidArguments
from outrider.runtime.webhooks.guard import Guard, place_of
from outrider.runtime.webhooks.sending import Sender
from outrider.settings import WebhookSettings
from tests.webhooks.receivers import receiving

SETTINGS = WebhookSettings()

REFUSED = [
    *("http://127.0.0.1/", "http://127.9.9.9/", "http://127.0.0.1./", "http://0.0.0.0/", "http://10.1.2.3/"),
    *("http://172.16.0.1/", "http://172.31.255.255/", "http://192.168.0.1/"),
    *("http://169.254.169.254/latest/meta-data", "http://100.64.0.1/", "http://100.100.100.200/"),
    *("http://192.0.0.192/", "http://198.18.0.1/", "http://224.0.0.1/", "http://240.0.0.1/"),
    *("http://255.255.255.255/", "http://168.63.129.16/", "http://[::]/", "http://[::1]/"),
    *("http://[::ffff:127.0.0.1]/", "http://[::ffff:8.8.8.8]/", "http://[64:ff9b::7f00:1]/"),
    *("http://[64:ff9b::808:808]/", "http://[64:ff9b:1::1]/", "http://[fe80::1]/", "http://[fc00::1]/"),
    *("http://[fd00:ec2::254]/", "http://[ff02::1]/", "http://[2002:7f00:1::]/", "http://[2001::1]/"),
    *("http://[2001:db8::1]/", "http://[::127.0.0.1]/", "http://localhost/", "http://LOCALHOST./"),
    *("http://a.localhost/", "http://metadata.google.internal/", "http://printer.local/"),
    *("https://example.com:22/", "https://example.com:8443/", "http://\uff11\uff12\uff17.0.0.1/"),
    "http://127\u30020\u30020\u30021/",
]

MALFORMED = [
    *("http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://127.1/", "http://0x7f.1/", "http://0/"),
    *("http://1.2.3.4.5/", "http://256.1.1.1/", "http://127.0.0.1.../", "http://a..b/", "http://.a/", "http:///x"),
    *(
        "http://user:pass@example.com/",
        "http://user@example.com/",
        "http://example.com@127.0.0.1/",
        "http://@a.example/",
    ),
    *(
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "//example.com/",
        "example.com",
        "",
        "http:",
    ),
    *(
        "http://example.com\\@127.0.0.1/",
        "http://exam ple.com/",
        "http://example.com/\r\nx: y",
        "http://example.com/#x",
    ),
    *("http://example.com:99999/", "http://example.com:0/", "http://example.com:-1/", "http://example.com:8x/"),
    *(
        "http://[::1/",
        "http://[fe80::1%25eth0]/",
        "http://[v1.x]/",
        "http://[::1]x/",
        "http://a_\u00ad/",
        "http://-a.b/",
    ),
    *("http://ex%61mple.com/", "http://example.com/ä", "http://" + "a" * 64 + ".com/", "http://a.com/" + "x" * 2100),
    *(None, 5, b"http://example.com/", "http://\ud800.com/", "http://xn--\u00e4.com/", "http://example.com:١/"),
]


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_within_the_own_network_is_refused(url: str):
    with pytest.raises(AddressRefused, match=r"WebhookSettings\.allow"):
        Guard(SETTINGS).check(url)


@pytest.mark.parametrize("url", MALFORMED, ids=repr)
def test_what_can_be_read_in_several_ways_is_refused(url: object):
    with pytest.raises(InvalidArguments):
        Guard(SETTINGS).check(url)


@pytest.mark.parametrize(
    ("url", "named", "target"),
    [
        ("https://Example.COM./a?b=c", "example.com", "/a?b=c"),
        ("http://bücher.example", "xn--bcher-kva.example", "/"),
        ("https://8.8.8.8:443/", "8.8.8.8", "/"),
        ("http://[2606:4700::1111]:443/x", "[2606:4700::1111]:443", "/x"),
        ("https://a_b.example:80/%20", "a_b.example:80", "/%20"),
    ],
)
def test_what_is_public_is_read_in_its_one_form(url: str, named: str, target: str):
    place = Guard(SETTINGS).check(url)
    assert (place.named, place.target) == (named, target)


def test_what_is_allowed_is_allowed_and_nothing_beside_it():
    guard = Guard(replace(SETTINGS, allow=("10.0.0.0/8", "fd00::1", "hooks.internal", "*.lan.internal", "127.0.0.1")))
    for url in (
        *("http://10.9.9.9:8080/", "http://[fd00::1]:1/", "http://hooks.internal:99/", "http://a.b.lan.internal./"),
        "http://127.0.0.1:5000/",
    ):
        guard.check(url)
    for url in ("http://127.0.0.2/", "http://[fd00::2]/", "http://lan.internal/", "http://x.hooks.internal/"):
        with pytest.raises(AddressRefused):
            guard.check(url)
    for wrong in ("10.0.0.0/99", "*.10.0.0.1", "a b", "*.", "http://x"):
        with pytest.raises(InvalidArguments):
            Guard(replace(SETTINGS, allow=(wrong,)))


def told(*answers: Sequence[str]):
    """A resolver that says one thing after the other, and the last of them for good; and what it was asked."""
    left, asked = list(answers), list[str]()

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve, asked


@pytest.mark.anyio
@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::ffff:169.254.169.254"], ["fe80::1%eth0"], ["64:ff9b::a00:1"]],
    ids=str,
)
async def test_a_name_is_judged_by_every_address_that_it_has(addresses: list[str]):
    resolve, _ = told(addresses)
    guard = Guard(SETTINGS, resolve)
    with pytest.raises(AddressRefused):
        await guard.addresses(guard.check("https://innocent.example/"))


@pytest.mark.anyio
async def test_the_connection_is_made_to_the_address_that_was_judged(caplog: pytest.LogCaptureFixture):
    """A name server that answers with a public address first, and with one of this machine from then on."""
    settings = replace(SETTINGS, allow=("127.0.0.1",), ports=(80, 443))
    async with receiving() as receiver:
        resolve, asked = told(["127.0.0.1"], ["127.0.0.2"])
        guard = Guard(replace(settings, ports=(receiver.port,)), resolve)
        sender = Sender(settings, 1000, guard)
        url = f"http://rebinding.example:{receiver.port}/hook"
        outcome = await sender.send(url, [b"k"], "dlv_1", b"{}", 1)
        assert (outcome.error, asked) == (None, ["rebinding.example"])
        assert receiver.requests[0].headers["host"] == f"rebinding.example:{receiver.port}"
        again = await sender.send(url, [b"k"], "dlv_1", b"{}", 1)
        # The operator reads which address it is, and whoever typed the name does not.
        assert "rebinding.example has an address that is no public address" in (again.error or "")
        assert "127.0.0.2" not in (again.error or "")
        assert [line for line in caplog.messages if "127.0.0.2" in line]
        assert receiver.connections == 1
        await sender.close()


def test_a_place_says_where_it_is():
    place = place_of("https://[2606:4700::1]/x")
    assert (place.at("2606:4700::1"), place.named) == ("https://[2606:4700::1]:443/x", "[2606:4700::1]")
