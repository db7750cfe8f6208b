"""Workers on hosts of their own, as far as the kernel can have them on one machine: a network namespace for each.

Cables are pulled, and packets lost in one direction, below TCP: no end of a connection ever comes to the other side.
Only root can make namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.crash.crew import Crew, stand_for
from tests.crash.test_kills import runtime_on
from tests.faults.test_postgres_links import Field, break_and_heal
from tests.proxy import DIRECTIONS, Direction
from tests.servers import Server, inside, programs_of

pytestmark = [pytest.mark.anyio, pytest.mark.soak]

NOBODY = "02:00:00:00:00:01"
"""The address of no network card: what is sent to it is dropped without a word."""


class Cable:
    """Between a host and the server: `number` tells it, and their addresses, from others."""

    def __init__(self, server: str, host: str, number: int) -> None:
        self._server, self._host, self._port = server, host, f"host{number}"
        self.server_address, self._host_address = f"10.77.{number}.1", f"10.77.{number}.2"
        ip("-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", self._port, "netns", server)
        for namespace, card, address in (
            (server, self._port, self.server_address),
            (host, "eth0", self._host_address),
        ):
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", card)
            ip("-n", namespace, "link", "set", card, "up")

    def cut(self) -> None:
        """Pull it."""
        ip("-n", self._server, "link", "set", self._port, "down")

    def freeze(self, *directions: Direction) -> None:
        """Lose all packets in the directions named, or in both."""
        for direction in directions or DIRECTIONS:
            ip(*self._neighbour(direction, "replace"), "lladdr", NOBODY, "nud", "permanent")

    def heal(self) -> None:
        """Undo every fault."""
        ip("-n", self._server, "link", "set", self._port, "up")
        for direction in DIRECTIONS:
            subprocess.run(["ip", *self._neighbour(direction, "del")], capture_output=True, check=False)

    def _neighbour(self, direction: Direction, verb: str) -> tuple[str, ...]:
        namespace, card, address = (
            (self._host, "eth0", self.server_address)
            if direction == "to_server"
            else (self._server, self._port, self._host_address)
        )
        return "-n", namespace, "neigh", verb, address, "dev", card


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, check=True)


@contextmanager
def network_namespace(name: str) -> Iterator[str]:
    name = f"outrider-{os.getpid()}-{name}"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        ip("netns", "del", name)


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str, str]]:
    """Of the server and of two hosts."""
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("nsenter")):
        pytest.skip("only root can make network namespaces, with the programs ip and nsenter")
    with ExitStack() as stack:
        try:
            server, far, near = (stack.enter_context(network_namespace(name)) for name in ("server", "far", "near"))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces can be made here: {error.stderr.decode().strip()}")
        yield server, far, near


@pytest.mark.parametrize("fault", ["cut", "silent", "deaf", "mute"])
async def test_a_host_whose_cable_breaks_stops_its_tasks_before_another_starts_them(
    namespaces: tuple[str, str, str], tmp_path: Path, postgres_version: str, fault: str
):
    at_server, at_far, at_near = namespaces
    far, near = Cable(at_server, at_far, 1), Cable(at_server, at_near, 2)
    with Server(programs_of(postgres_version), namespace=at_server) as server:
        from_here = server.url(over="socket")
        database = stand_for(tmp_path / "work.db", from_here)
        short = {"short_lease": True}

        def address(cable: Cable) -> str:
            return f"postgresql://postgres@{cable.server_address}:{server.port}/postgres"

        async with (
            Crew.muster(inside(at_far)) as there,
            Crew.muster(inside(at_near)) as here,
            runtime_on(database) as runtime,
        ):
            worker = await there.start(database, address=address(far), settings=short, host="far")
            on = Field(far, here, database, runtime, await runtime.sessions.create(), worker, address(near))
            await break_and_heal(on, fault)
