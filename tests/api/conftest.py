"""The API over the memory store, in process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from outrider import Outrider
from outrider.api import create_api
from outrider.runtime.facade import Runtime
from outrider.settings import ServeSettings


class Api(httpx2.AsyncClient):
    """A client of an application in this process, and the runtime behind it."""

    def __init__(self, runtime: Runtime, settings: ServeSettings | None = None) -> None:
        self.runtime = runtime
        self.app = create_api(runtime, settings)
        super().__init__(transport=httpx2.ASGITransport(self.app), base_url="http://outrider")

    async def session(self, **given: object) -> str:
        made = await self.post("/v1/sessions", json=given)
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    async def task(self, session_id: str, **given: object) -> str:
        made = await self.post(f"/v1/sessions/{session_id}/tasks", json={"kind": "external", **given})
        assert made.status_code == 201, made.text
        return str(made.json()["id"])


@asynccontextmanager
async def opened(app: Outrider, *, worker: bool = False, settings: ServeSettings | None = None) -> AsyncIterator[Api]:
    async with app.open("memory://", worker=worker) as runtime, Api(runtime, settings) as api:
        yield api


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with opened(Outrider()) as api:
        yield api
