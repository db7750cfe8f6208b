"""Which addresses a webhook may be sent to: an endpoint is a URL that somebody typed, and the network here is ours.

A URL is read once, strictly, and judged by its host; the host's addresses are looked up and judged when something is
sent, and the connection is made to the very address that was judged. Whoever looks it up a second time is told lies.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

from outrider.core.errors import AddressRefused, InvalidArguments
from outrider.runtime.log import log
from outrider.runtime.threads import Threads
from outrider.settings import WebhookSettings

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives the addresses of a host. Raises OSError where it has none."""

LONGEST_URL = 2048
MOST_ADDRESSES = 4
"""How many addresses of one host are tried."""

_CLOSED = tuple(
    ipaddress.ip_network(each)
    for each in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # the metadata service of a cloud that has it on a public address
        # Of what is open below: Teredo and other special ones, documentation, 6to4, which may lead back here.
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)
_OPEN_6 = IPv6Network("2000::/3")
"""All of IPv6 that is routed. Outside of it are the loopback, mapped and translated IPv4, private and local ones."""

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?", re.ASCII
)
_AUTHORITY = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:@]+))(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Place:
    """What a URL names. `host` is a name in lower case, as the network has it, or an address."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query."""
    literal: Address | None = None

    @property
    def named(self) -> str:
        """Host and port, as a request names them."""
        host = f"[{self.host}]" if isinstance(self.literal, IPv6Address) else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def at(self, address: str) -> str:
        """The URL of the same at an address."""
        host = f"[{address}]" if ":" in address else address
        return f"{self.scheme}://{host}:{self.port}{self.target}"


class Guard:
    """Judges by the settings. `resolve` looks hosts up; the system's way unless given."""

    def __init__(self, settings: WebhookSettings, resolve: Resolve | None = None) -> None:
        self._ports = frozenset(settings.ports)
        self._networks: list[Network] = []
        self._names: set[str] = set()
        for each in settings.allow:
            try:
                self._networks.append(ipaddress.ip_network(each))
            except ValueError:
                self._names.add(_allowed_name(each))
        self._resolve = resolve or Resolver()

    def check(self, url: object) -> Place:
        """Read a URL, without looking anything up. Raises InvalidArguments, or AddressRefused for where it leads."""
        place = place_of(url)
        if place.literal is not None:
            self._judge(place, place.literal)
        elif not self._is_allowed_name(place.host) and _is_local(place.host):
            raise AddressRefused(f"{place.host} is within the own network; {_ADVICE}", details={"host": place.host})
        if place.port not in self._ports and not self._is_allowed(place):
            ports = ", ".join(map(str, sorted(self._ports)))
            raise AddressRefused(f"port {place.port} of {place.host} is not one of {ports}; {_ADVICE}")
        return place

    async def addresses(self, place: Place) -> list[str]:
        """The addresses to connect to, each of them judged.

        Raises AddressRefused if any is within the own network: a host has no business to be at both. Raises OSError
        where the host has no address.
        """
        if place.literal is not None:
            self._judge(place, place.literal)
            return [str(place.literal)]
        found = list(dict.fromkeys(await self._resolve(place.host, place.port)))
        if not found:
            raise OSError(f"{place.host} has no address")
        if not self._is_allowed_name(place.host):
            for each in found:
                self._judge(place, _address(place, each))
        return found[:MOST_ADDRESSES]

    def _judge(self, place: Place, address: Address) -> None:
        if is_public(address) or any(address in network for network in self._networks):
            return
        where = f"{place.host} is"
        if place.literal is None:
            where = f"{place.host} has an address that is"
            _tell_operator(place, str(address))
        raise AddressRefused(f"{where} no public address; {_ADVICE}", details={"host": place.host})

    def _is_allowed(self, place: Place) -> bool:
        if place.literal is not None:
            return any(place.literal in network for network in self._networks)
        return self._is_allowed_name(place.host)

    def _is_allowed_name(self, host: str) -> bool:
        parents = host.split(".")
        wider = {"*." + ".".join(parents[at:]) for at in range(1, len(parents))}
        return host in self._names or not wider.isdisjoint(self._names)


class Resolver:
    """The system's way to look up a host, in threads of its own: one that takes long holds up no other."""

    def __init__(self, threads: int = 32) -> None:
        self._limit = threads
        self._threads: Threads | None = None

    async def __call__(self, host: str, port: int) -> list[str]:
        """The addresses of a host. Raises OSError."""
        import socket

        if self._threads is None:
            self._threads = Threads(self._limit, "outrider-lookup")
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [str(address[0]) for *_, address in found]


def place_of(url: object) -> Place:
    """What a URL names. Raises InvalidArguments for one that is not to the letter, or may be read in several ways."""
    if not isinstance(url, str) or not url or len(url) > LONGEST_URL:
        raise InvalidArguments(f"a URL is text of up to {LONGEST_URL:,} characters, not {url!r:.100}")
    if any(each <= " " or each in '\\"<>^`{|}\x7f' for each in url):
        raise InvalidArguments(f"{url!r:.200} has a character in it that a URL has not; write it percent-encoded")
    found = _URL.fullmatch(url)
    if found is None:
        raise InvalidArguments(f"{url!r:.200} is no URL of a receiver: write https://HOST/PATH, and no #fragment")
    scheme = found["scheme"].lower()
    if scheme not in _PORTS:
        raise InvalidArguments(f"webhooks are sent by https and http, not by {scheme}")
    if "@" in found["authority"]:
        raise InvalidArguments("the URL of a receiver has no user and password in it: whoever sees it would see them")
    parts = _AUTHORITY.fullmatch(found["authority"])
    if parts is None:
        raise InvalidArguments(f"{found['authority']!r:.200} names no host")
    port = int(parts["port"]) if parts["port"] else _PORTS[scheme]
    if not 0 < port < 65_536:
        raise InvalidArguments(f"{port} is no port")
    target = (found["path"] or "/") + (found["query"] or "")
    if not target.isascii():
        raise InvalidArguments(f"the path {target!r:.200} is to be written percent-encoded")
    if parts["six"] is not None:
        literal: Address | None = _six(parts["six"])
        return Place(scheme, str(literal), port, target, literal)
    host = _host(parts["host"])
    literal = _four(host)
    return Place(scheme, host if literal is None else str(literal), port, target, literal)


def is_public(address: Address) -> bool:
    """Whether an address is one of the public network, and of no other."""
    if isinstance(address, IPv6Address) and address not in _OPEN_6:
        return False
    return not any(address in network for network in _CLOSED)


def _host(given: str) -> str:
    """A host in its one form: in lower case, its dots dots, its letters those of the network, no dot at the end."""
    host = given
    if not host.isascii():
        import idna

        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError) as error:
            raise InvalidArguments(f"{given!r:.200} is no name of a host: {error}") from None
    host = host.lower().removesuffix(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, host.split("."))):
        raise InvalidArguments(f"{given!r:.200} is no name of a host")
    return host


def _four(host: str) -> IPv4Address | None:
    """The address that a host is, None for a name. What some read as an address, and others do not, is refused."""
    if not _NUMBER.fullmatch(host.rpartition(".")[2]):
        return None
    try:
        return IPv4Address(host)
    except ValueError:
        raise InvalidArguments(
            f"{host!r} is neither a name nor an address of four plain numbers, such as 192.0.2.1"
        ) from None


def _six(text: str) -> IPv6Address:
    try:
        return IPv6Address(text)
    except ValueError:
        raise InvalidArguments(f"[{text}] is no address") from None


def _address(place: Place, text: str) -> Address:
    """An address as a resolver gives it. One with a zone is of this very network."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        _tell_operator(place, text)
        raise AddressRefused(f"{place.host} has an address that nothing can be sent to") from None


def _tell_operator(place: Place, address: str) -> None:
    """Log where a name leads. Whoever typed it is not told: he would learn how the network here is laid out."""
    log.warning("a webhook's host is within the own network", host=place.host, address=address[:100])


def _is_local(host: str) -> bool:
    return host == "localhost" or host.endswith((".localhost", ".local", ".internal", ".home.arpa"))


def _allowed_name(given: str) -> str:
    wild = given.startswith("*.")
    try:
        name = _host(given.removeprefix("*."))
        if _four(name) is not None:
            raise InvalidArguments(given)
    except InvalidArguments:
        raise InvalidArguments(f"{given!r:.100} is no address, network or host to allow webhooks for") from None
    return f"*.{name}" if wild else name


_ADVICE = "who runs the server can allow it (WebhookSettings.allow)"
