"""`outrider serve` as a process: says where it is, works, ends gracefully, starts again; and what bad clients get."""

import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from outrider import Client, Outrider
from outrider.api import create_api, protocol
from outrider.api.serving import Service, bind, bind_path
from outrider.core.errors import InvalidArguments, ServerUnreachable, TooLarge
from outrider.settings import AccessSettings, ServeSettings, StreamSettings
from tests.facts import until

pytestmark = pytest.mark.anyio

PATIENCE = 60
APP = """
from outrider import Outrider

app = Outrider()

@app.tool
def double(number: int) -> int:
    return 2 * number
"""


class Served:
    """A server process, and where it is."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "outrider.cli", "serve", "--json", *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.told = json.loads(line)
        self.url = str(self.told["url"])

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE)


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[Served]:
    server = Served(folder, *arguments)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


def client_is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


@pytest.mark.slow
async def test_a_server_works_ends_gracefully_amid_requests_and_goes_on_when_it_is_started_again(tmp_path: Path):
    (tmp_path / "work.py").write_text(APP)
    with served(tmp_path, "work", "--port", "0") as server:
        async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
            session = (await client.post("/v1/sessions", json={})).json()["id"]
            path = f"/v1/sessions/{session}/tasks"
            spec = {"tool": "double", "arguments": {"number": 21}}
            task = (await client.post(path, json={"kind": "background_tool", "spec": spec})).json()["id"]
            assert (await client.get(f"/v1/tasks/{task}/result", params={"timeout": 30})).json() == 42
            command = (await client.post(path, json={"kind": "process", "spec": {"command": ["true"]}})).json()["id"]
            assert (await client.get(f"/v1/tasks/{command}/wait")).json()["state"] == "succeeded"

            taken = [sys.executable, "-m", "outrider.cli", "serve", "--port", server.url.rpartition(":")[2]]
            refused = subprocess.run(taken, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
            assert (refused.returncode, "in use" in refused.stderr) == (3, True)

            waited = (await client.post(path, json={"kind": "external"})).json()["id"]
            polling = asyncio.create_task(client.get(f"/v1/tasks/{waited}/wait", params={"timeout": 50}))
            half = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
            half.sendall(b"GET /v1/tas")
            await asyncio.sleep(0.2)
            began = time.monotonic()
            assert await asyncio.to_thread(server.end) == 0
            assert time.monotonic() - began < 10
            assert (await polling).json()["state"] == "queued"
            half.close()
    with (
        served(tmp_path, "--no-worker", "--socket", "here.sock") as server,
        httpx2.HTTPTransport(uds=str(tmp_path / "here.sock")) as transport,
        httpx2.Client(transport=transport, base_url="http://outrider") as client,
    ):
        assert client.get(f"/v1/tasks/{waited}").json()["state"] == "queued"
        assert client.get(f"/v1/tasks/{task}/result").json() == 42
        assert (tmp_path / "here.sock").stat().st_mode & 0o777 == 0o600
        half = socket.socket(socket.AF_UNIX)
        half.connect(str(tmp_path / "here.sock"))
        half.sendall(POST + b"content-length: 20\r\n\r\n{")
        assert client.get("/v1/tasks").status_code == 200  # so that the other was begun
        server.process.send_signal(signal.SIGTERM)
        assert server.process.stderr is not None
        while client_is_served(str(tmp_path / "here.sock")):
            time.sleep(0.01)
        assert server.end() == 128 + signal.SIGTERM  # at once, whoever has half sent what
        half.close()


# --- in this process, on a real socket -----------------------------------------------------------------------

HURRY = ServeSettings(body=1000, header=2000, head_timeout=0.3, body_timeout=0.3, shutdown_timeout=1)


@asynccontextmanager
async def listening(settings: ServeSettings = HURRY) -> AsyncIterator[tuple[int, Service]]:
    async with Outrider().open("memory://", worker=False) as runtime:
        listener = bind("127.0.0.1", 0)
        port = listener.getsockname()[1]
        service = Service(create_api(runtime, settings), listener, settings)
        job = asyncio.create_task(service.run())
        await service.has_started()
        try:
            yield port, service
        finally:
            service.end()
            await job


async def said(port: int, *pieces: bytes) -> tuple[int, dict[str, object], bytes]:
    """What the server says to these bytes, to the end of the connection: a status, a problem, and all of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
    told = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    head, _, body = told.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body), told


POST = b"POST /v1/sessions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
UPGRADE = POST + b"connection: upgrade\r\nupgrade: h2c\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n"


async def test_what_comes_too_slowly_too_large_or_in_no_form_is_a_problem_and_the_server_goes_on():
    async with listening() as (port, _):
        for status, pieces in (
            (408, (b"GET /v1/tasks HTTP/1.1\r\nhos",)),
            (408, (POST + b"content-length: 20\r\n\r\n{",)),
            (413, (POST + b"content-length: 100000\r\n\r\n{",)),
            (413, (POST + b"content-length: 999999999999999999\r\n\r\n{",)),
            (413, (POST + b"transfer-encoding: chunked\r\n\r\n", *[b"100\r\n" + b" " * 256 + b"\r\n"] * 9)),
            (431, (b"GET /v1/tasks HTTP/1.1\r\n" + b"x-long: " + b"y" * 1900, b"y" * 1900)),
            (431, (b"GET /v1/tasks HTTP/1.1\r\nx-long: " + b"y" * 2100 + b"\r\n\r\n",)),
            (431, (b"GET /v1/tasks?text=" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",)),
            (431, (CHUNKED, *[b"x-more: " + b"y" * 200 + b"\r\n"] * 11)),
            (400, (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",)),
            (400, (POST + b"content-length: abc\r\n\r\n{}",)),
            (400, (HEALTH + b"HOST: y\r\n\r\n",)),
            (400, (UPGRADE + b"content-length: 2\r\n\r\n{}",)),
            (400, (UPGRADE + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",)),
        ):
            found, problem, told = await said(port, *pieces)
            assert (found, problem["status"]) == (status, status), told
            assert b"application/problem+json" in told
            assert b"connection: close" in told.lower()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(), 20) == b""  # who says nothing is not waited for
        writer.close()
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.post("/v1/sessions", json={})).status_code == 201


async def test_who_sends_a_body_that_is_too_large_before_it_reads_sees_why_it_is_refused():
    def refused(port: int, size: int) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", "/v1/sessions", b" " * size, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        told = json.loads(answer.read())
        connection.close()
        return answer.status, told["code"]

    async with listening(ServeSettings()) as (port, service):
        for size in (9 << 20, 40 << 20):
            assert await asyncio.to_thread(refused, port, size) == (413, "too_large")
        async with Client(f"http://127.0.0.1:{port}") as client:
            with pytest.raises(TooLarge, match="8,388,608"):
                await client.sessions.create(labels={"a": "x" * (9 << 20)})
        await until(lambda: not service._server.server_state.connections)


async def test_a_large_body_that_is_cut_off_is_not_sent_again_and_again():
    cuts = 0

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal cuts
        cuts += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    async with server, Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        with pytest.raises(ServerUnreachable, match="may be too many"):
            await client.sessions.create(labels={"a": "x" * (9 << 20)})
    assert cuts == 1


async def test_who_goes_on_sending_what_was_refused_is_cut_after_a_while_or_so_much(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "MOST_UNHEARD", 1 << 20)
    for settings, pause in ((HURRY, 0.02), (ServeSettings(body=1000), 0.0)):
        async with listening(settings) as (port, service):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(POST + b"content-length: 999999999\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), 20)).startswith(b"HTTP/1.1 413")  # and the end of it
            assert len(service._server.server_state.connections) == 1
            async with asyncio.timeout(20):
                with suppress(ConnectionError):
                    while True:
                        writer.write(b" " if pause else b" " * 65_536)
                        await writer.drain()
                        await asyncio.sleep(pause)
                await until(lambda: not service._server.server_state.connections)
            writer.close()


async def test_a_body_after_an_upgrade_is_no_request_and_one_without_a_body_is_served_and_the_last():
    async with listening() as (port, _):
        upgrade = b"connection: upgrade\r\nupgrade: h2c\r\n"
        inner = HEALTH + b"\r\n"
        for head, status in (
            (UPGRADE + b"content-length: %d\r\n\r\n" % len(inner), 400),
            (HEALTH + upgrade + b"\r\n", 200),
            (HEALTH + upgrade + b"content-length: 0\r\n\r\n", 200),  # as some clients in Java have it
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head)
            told = await reader.readuntil(b"\r\n\r\n")
            with suppress(ConnectionError):
                writer.write(inner)
                told += await asyncio.wait_for(reader.read(), 20)
            writer.close()
            assert told.startswith(b"HTTP/1.1 %d" % status)
            assert told.count(b"HTTP/1.1 ") == 1
            assert b"connection: close" in told


async def test_who_reads_nothing_of_an_answer_is_cut_and_who_reads_slowly_gets_all_of_it():
    settings = ServeSettings(streams=StreamSettings(stall_limit=0.3))
    async with listening(settings) as (port, service):
        session = await service._app.state.runtime.sessions.create()
        for name in "abcd":
            await session.write_file(f"/{name}", b"x" * 1_000_000)
        ask = f"GET /v1/sessions/{session.id}/export HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
        connections = service._server.server_state.connections
        with socket.socket() as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.connect(("127.0.0.1", port))
            silent.sendall(ask)
            await until(lambda: len(connections) == 1)
            await until(lambda: not connections and service.under_way == 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        writer.write(ask)
        told = 0
        while told < 800_000:
            told += len(await asyncio.wait_for(reader.readexactly(200_000), 20))
            await asyncio.sleep(0.02)
        told += len(await asyncio.wait_for(reader.read(), 20))
        writer.close()
        assert told > 4_000_000


async def test_empty_lines_keep_no_connection():
    async with listening() as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEALTH + b"\r\n")
        assert b'"alive"}' in await reader.readuntil(b"}")
        writer.write(b"\r\n")
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()


async def test_a_trailer_is_no_header_and_has_a_limit():
    async with listening(ServeSettings(access=AccessSettings())) as (port, service):
        made = await service._app.state.runtime.keys.create("a", scopes=["submit"])
        key = f"authorization: Bearer {made.token}\r\n".encode()
        for head, trailer, status in ((b"", key, 401), (key, b"x-request-id: a\r\n", 201)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(CHUNKED.replace(b"transfer", head + b"transfer") + trailer + b"\r\n")
            told = await reader.readuntil(b"\r\n\r\n")
            writer.close()
            assert told.startswith(b"HTTP/1.1 %d" % status)
            assert b"x-request-id: a\r" not in told
    async with listening(ServeSettings(header=2000)) as (port, service):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CHUNKED)
        await until(lambda: service.under_way == 1)
        writer.write(b"x-long: " + b"y" * 2000)  # and no end, which is what is counted here
        assert (await asyncio.wait_for(reader.read(), 20)).startswith(b"HTTP/1.1 431")
        writer.close()


async def test_a_client_that_leaves_ends_its_wait_and_one_that_stays_is_answered_when_the_server_ends():
    async with listening(ServeSettings(shutdown_timeout=20)) as (port, service):
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            session = (await client.post("/v1/sessions", json={})).json()["id"]
            task = (await client.post(f"/v1/sessions/{session}/tasks", json={"kind": "external"})).json()["id"]
        ask = f"GET /v1/tasks/{task}/wait HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        _, gone = await asyncio.open_connection("127.0.0.1", port)
        gone.write(ask)
        staying = asyncio.create_task(said(port, ask))
        await until(lambda: service.under_way == 2)
        gone.close()
        await until(lambda: service.under_way == 1)
        service.end()
        status, record, _ = await staying
        assert (status, record["id"], record["state"]) == (200, task, "queued")


async def test_a_place_that_is_taken_or_can_be_reached_by_anybody_is_refused(tmp_path: Path):
    listener = bind("127.0.0.1", 0)
    listener.listen()
    for host, port in (("127.0.0.1", listener.getsockname()[1]), ("0.0.0.0", 0), ("::", 0), ("no such host", 0)):
        with pytest.raises(InvalidArguments):
            bind(host, port)
    listener.close()
    bind("0.0.0.0", 0, is_guarded=True).close()
    path = str(tmp_path / "a.sock")
    left = bind_path(path)
    left.close()  # its name stays, as after a kill
    again = bind_path(path)
    again.listen()
    with pytest.raises(InvalidArguments, match="in use"):
        bind_path(path)
    again.close()


async def test_who_has_no_good_key_is_refused_before_the_body_is_there_and_of_who_has_one_it_is_read():
    settings = ServeSettings(access=AccessSettings(), body_timeout=20)
    async with listening(settings) as (port, service):
        made = await service._app.state.runtime.keys.create("a", scopes=["submit"])
        half = b"content-length: 200000\r\n\r\n{" + b" " * 100_000
        async with asyncio.timeout(10):  # and so not after the time that a body may take
            for head in (POST, POST + b"authorization: Bearer ork_wrong\r\n", POST + b"expect: 100-continue\r\n"):
                status, problem, told = await said(port, head + half)
                assert (status, problem["code"]) == (401, "unauthenticated")
                assert b"connection: close" in told.lower()
            form = POST.replace(b"/v1/sessions", b"/answer/e30.e30")
            status, problem, _ = await said(port, form + b"content-length: 300000\r\n\r\n")
            assert (status, problem["code"]) == (413, "too_large"), "nobody is asked for a key there"
        refused = await service._app.state.runtime.audit.list()
        assert {(each.action, each.outcome) for each in refused} == {("create_session", "unauthenticated")}
        key = f"authorization: Bearer {made.token}\r\nconnection: close\r\n".encode()
        status, _, _ = await said(port, POST + key + half, b" " * 99_998, b"}")
        assert status == 201


async def test_bodies_are_bounded_together_and_a_small_one_is_always_read():
    async with listening(ServeSettings(body=400_000, bodies=500_000)) as (port, service):
        large = b"content-length: 300000\r\n\r\n{" + b" " * 299_998
        holding = []
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(POST + large)
            holding.append((reader, writer))
        status, problem, told = await asyncio.wait_for(first_of(holding), 10)  # the second, wherever its bytes are
        assert (status, problem["code"], b"retry-after: 2\r\n" in told.lower()) == (503, "unavailable", True)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.post("/v1/sessions", json={})).status_code == 201
            for _, writer in holding:
                writer.close()
            await until(lambda: service.under_way == 0)
            whole = b" " * 390_000 + b"{}"
            assert (await client.post("/v1/sessions", content=whole)).status_code == 201


async def first_of(
    held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]],
) -> tuple[int, dict[str, object], bytes]:
    """What is said to the first of those who are told anything."""
    jobs = [asyncio.create_task(reader.read()) for reader, _ in held]
    done, others = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
    for each in others:
        each.cancel()
    told = done.pop().result()
    head, _, body = told.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body), told
