"""What the files of deploy/ do, on a real server with real processes: as their commands and environments say.

No container is run here, so what stands between these and the files is the image; see `test_files` for that.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from outrider import Outrider, TaskOptions
from tests.cli.harness import eventually
from tests.deploy.files import DEPLOY, KUBERNETES, at, compose, manifest
from tests.servers import Host, free_port

BIN = Path(sys.executable).parent
PATIENCE = 60
SECRET = "not-to-be-told"


class Fleet:
    """Processes as the compose file starts them: its environment, its app, the server of the tests in its place."""

    def __init__(self, url: str, folder: Path) -> None:
        given: Mapping[str, str] = compose()["services"]["worker"]["environment"]
        self.url = url
        self._log = folder / "log"
        self._workers: list[subprocess.Popen[bytes]] = []
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OUTRIDER")}
        self.env = {
            **kept,
            **given,
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "OUTRIDER_DB": urlsplit(url)._replace(netloc=_with_password(urlsplit(url).netloc)).geturl(),
            "PGPASSWORD": SECRET,
            "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),  # lest the folder of the app is written to
            "XDG_STATE_HOME": str(folder / "state"),
        }

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self._app, env=self.env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    def start_worker(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            worker = subprocess.Popen(
                ["outrider", "worker"], cwd=self._app, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._workers.append(worker)
        return worker

    def log(self) -> str:
        return self._log.read_text()

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait()

    @property
    def _app(self) -> Path:
        return DEPLOY / "compose" / "app"


def _with_password(place: str) -> str:
    user, _, host = place.rpartition("@")
    return f"{user.partition(':')[0]}:{SECRET}@{host}"


@pytest.fixture
def fleet(postgres_url: str, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(postgres_url, tmp_path)
    try:
        yield fleet
    finally:
        fleet.close()


def probe() -> list[str]:
    (container,) = at(manifest("Deployment"), "spec.template.spec.containers")
    found: list[str] = container["startupProbe"]["exec"]["command"]
    return found


def doctor() -> list[str]:
    (container,) = at(manifest("CronJob"), "spec.jobTemplate.spec.template.spec.containers")
    found: list[str] = container["command"]
    return found


@pytest.mark.slow
def test_two_workers_share_the_work_of_the_example_and_take_no_more_connections_than_documented(fleet: Fleet):
    workers = [fleet.start_worker() for _ in range(2)]
    eventually(lambda: fleet.log().count("works on") == 2)
    done = fleet.run("python", "example.py")
    assert done.returncode == 0, done.stderr
    words, *writers = done.stdout.splitlines()
    assert words == "30000 words in 20 books"
    assert len(writers) == 2, "either worker wrote some"
    (most,) = re.findall(r"(\d+) for each worker process", (DEPLOY.parent / "docs" / "deployment.md").read_text())
    with psycopg.connect(fleet.url) as connection:
        (there,) = connection.execute(
            "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'outrider'"
        ).fetchone() or (0,)
    assert 2 < there <= 2 * int(most)
    for worker in workers:
        worker.terminate()
    assert [worker.wait(PATIENCE) for worker in workers] == [0, 0]
    assert SECRET not in fleet.log()


@pytest.mark.slow
def test_the_probe_says_whether_the_worker_of_this_machine_is_there(fleet: Fleet):
    assert fleet.run(*probe()).returncode != 0, "nobody has come yet"
    worker = fleet.start_worker()
    eventually(lambda: fleet.run(*probe()).returncode == 0)
    worker.kill()
    worker.wait()
    assert fleet.run(*probe()).returncode != 0, "it is registered still, and dead"


@pytest.mark.slow
def test_the_probe_fails_where_there_is_no_database(fleet: Fleet):
    fleet.env["OUTRIDER_DB"] = f"postgresql://postgres@127.0.0.1:{free_port()}/nowhere"
    assert fleet.run(*probe()).returncode != 0
    assert fleet.run(*doctor()).returncode == 6


@pytest.mark.slow
def test_the_doctor_fails_as_long_as_nobody_serves_what_waits(fleet: Fleet):
    assert fleet.run(*doctor()).returncode == 0, "nothing waits"
    spawn = "import asyncio, os; from example import app\nasync def main():\n"
    spawn += " async with app.open(os.environ['OUTRIDER_DB'], worker=False) as outrider:\n"
    spawn += "  await (await outrider.sessions.create()).spawn('write_book', chapters=1)\nasyncio.run(main())"
    assert fleet.run("python", "-c", spawn).returncode == 0
    found = fleet.run(*doctor())
    assert (found.returncode, "no live worker serves background_tool:write_book" in found.stdout) == (10, True)
    fleet.start_worker()
    eventually(lambda: "works on" in fleet.log())
    assert fleet.run(*doctor()).returncode == 0


# --- how many workers there should be ----------------------------------------------------------------


@pytest.fixture
def scaler(postgres: Host) -> Iterator[str]:
    """A name for a role; what the test made of it is gone afterwards."""
    name = f"scaler_{uuid.uuid4().hex[:12]}"
    yield name
    with psycopg.connect(postgres.url(), autocommit=True) as connection, suppress(psycopg.errors.UndefinedObject):
        connection.execute(f'drop role "{name}"'.encode())


@pytest.mark.anyio
async def test_the_autoscaler_counts_what_is_ready_or_held_as_a_user_who_may_read_just_that(
    postgres_url: str, scaler: str
):
    app, held = Outrider(), asyncio.Event()

    @app.tool
    async def works() -> None:
        held.set()
        await asyncio.sleep(PATIENCE)

    async with app.open(postgres_url, concurrency=1) as outrider:
        session, paused = await outrider.sessions.create(), await outrider.sessions.create()
        await outrider.queue.pause(session=paused.id)
        waits = await paused.spawn(works)
        await session.spawn(works, options=TaskOptions(delay=3600))
        for what in ("what a program may claim", "what it has claimed"):
            await session.create("external", {"what": what})
        await outrider.external.claim("builder", limit=1)
        first = await session.spawn(works)
        await held.wait()
        for _ in range(3):
            await session.spawn(works)
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            aside = "select blocked_by from tasks where id = %s"
            assert connection.execute(aside, [waits.id]).fetchone() == ("paused",), "the claim has seen it"
            (query,) = [each["metadata"]["query"] for each in manifest("ScaledObject")["spec"]["triggers"]]
            told = (KUBERNETES / "autoscale-keda.yaml").read_text()
            grants = re.findall(r"^#   ((?:create role|grant) .*;)$", told, re.MULTILINE)
            assert len(grants) == 2
            try:
                for grant in grants:
                    connection.execute(grant.replace("outrider_scaler", scaler).encode())
                connection.execute(f"set role {scaler}".encode())
                assert connection.execute(query.encode()).fetchone() == (4,), "one is held, three are ready"
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute("select id from tasks")
            finally:
                connection.execute("reset role")
                connection.execute(f"drop owned by {scaler}".encode())
        await first.cancel()
