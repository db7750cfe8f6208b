"""Requests made up from the OpenAPI document, right and wrong: no fault, nothing undocumented, all as described."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from outrider import Outrider
from outrider.api import create_api
from outrider.api.serving import Service, bind
from outrider.settings import ServeSettings, WebhookSettings, WorkerSettings

pytestmark = pytest.mark.anyio

PATIENCE = 3600
CONFIG = """
[checks.positive_data_acceptance]
# 422: what is right by its form may still name what there is not, or be wrong together.
expected-statuses = ["2xx", "3xx", 401, 403, 404, 409, 412, 422, 429]
"""


@pytest.mark.slow
async def test_made_up_requests_find_no_fault_and_nothing_undocumented(tmp_path: Path):
    await check(tmp_path, "--phases", "fuzzing", "--max-examples", "3", "--generation-deterministic")


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_many_made_up_requests_find_no_fault_and_nothing_undocumented(tmp_path: Path, seed: int):
    await check(
        tmp_path, "--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "100", "--seed", str(seed)
    )


async def check(folder: Path, *how: str) -> None:
    """Serve an API with a few tasks in it, and have schemathesis try it with all its checks."""
    settings = ServeSettings(poll=0.05)
    (folder / "schemathesis.toml").write_text(CONFIG)
    nowhere = WorkerSettings(webhooks=WebhookSettings(ports=()))  # a URL that was made up is not looked up
    async with Outrider(nowhere).open("memory://", worker=False) as runtime:
        for session_id in ("session_1", "session_2"):
            session = await runtime.sessions.create(id=session_id)
            await session.create("external", {})
        listener = bind("127.0.0.1", 0)
        port = listener.getsockname()[1]
        service = Service(create_api(runtime, settings), listener, settings)
        serving = asyncio.create_task(service.run())
        await service.has_started()
        command = [str(Path(sys.executable).with_name("st")), "--config-file", "schemathesis.toml", "run"]
        command += ["--exclude-tag", "live"]  # a stream has no end that it could wait for; see test_live
        command += [f"http://127.0.0.1:{port}/v1/openapi.json", "--checks", "all", "--continue-on-failure", *how]
        told = await asyncio.to_thread(
            subprocess.run, command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE
        )
        service.end()
        await serving
    cases = re.search(r"(\d+) generated", told.stdout)
    assert told.returncode == 0, told.stdout[:8000] + told.stderr
    assert cases is not None
    assert int(cases[1]) > 100
