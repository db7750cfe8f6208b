"""A worker at work again and again under the shim, each time on a new database with a disk that fails elsewhere.

`python -m tests.faults.sweep ROOT SCRATCH {json}`. Round n works in ROOT/n; the order says which calls fail, on which
file, and for which n. A round ends when the worker does: because the work is done, or because the store has failed. One
JSON line tells what happened.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from outrider.bootstrap import open_ledger
from outrider.core.errors import OutriderError, StoreError, StoreFull
from outrider.core.session import NewSession
from outrider.runtime.clock import SystemClock
from outrider.runtime.facade import Runtime
from outrider.runtime.lease import locks_of
from outrider.runtime.services import Services
from outrider.runtime.worker import keep_working
from outrider.stores.sqlite import file as store_file
from outrider.stores.sqlite import writer
from tests.crash import voyage
from tests.crash.test_kills import answer_all, set_sail
from tests.faults.shim import Shim
from tests.faults.subject import ACKS, DATABASE, EFFECTS, Telling


async def play(root: Path, shim: Shim, order: dict[str, Any], n: int) -> dict[str, Any]:
    """One round."""
    root.mkdir()
    os.environ[voyage.EFFECTS] = str(root / EFFECTS)
    ledger = cast(Any, Telling(await open_ledger(str(root / DATABASE)), root / ACKS))
    services = Services.over(ledger, SystemClock(), voyage.app.registry, voyage.SETTINGS)
    runtime = Runtime(services)
    told: dict[str, Any] = {"n": n, "worker": None, "caller": None, "later": None}
    shim.control.is_torn = order.get("is_torn", False)
    if not order.get("is_patient"):
        _break(shim, order, n)
    worker = asyncio.create_task(keep_working(services, locks=locks_of(ledger)))
    try:
        session = await runtime.sessions.create(id="session_a")
        voyages = [await set_sail(session) for _ in range(order.get("voyages", 1))]
        if order.get("is_patient"):
            _break(shim, order, n)
        while True:
            try:
                await answer_all(runtime, voyages, timeout=30)
                break
            except StoreFull:
                assert order.get("is_patient")
        await asyncio.sleep(order.get("lull", 0))
    except OutriderError as error:
        told["caller"] = error.code
    told["failed"] = shim.failed
    if order.get("is_final", True) and shim.failed:
        # Whatever comes first, the worker ends by itself, and nothing goes on that was not told.
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.wait([worker]), 10)
        told["worker"] = _code(worker)
        try:
            await ledger.create_session(NewSession("session_later", 0))
        except OutriderError as error:
            told["later"] = error.code
    if order.get("dies"):
        print(json.dumps(told), flush=True)
        os._exit(0)
    shim.heal()
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    await ledger.close()
    return told


def _break(shim: Shim, order: dict[str, Any], n: int) -> None:
    shim.fail(order["kinds"], order["files"], after=n, times=order.get("times", 1), error=order["error"])


def _code(worker: asyncio.Task[None]) -> str | None:
    if not worker.done():
        return "it goes on"
    error = worker.exception()
    return error.code if isinstance(error, StoreError) else repr(error)


async def main(root: Path, scratch: Path, order: dict[str, Any]) -> None:
    store_file._PRAGMAS += tuple(order.get("pragmas", ()))
    if "wal_is_too_long" in order:
        writer.TOO_LONG, writer.LOOK_EVERY = order["wal_is_too_long"], 4
    shim = Shim(root, scratch)
    for n in order["rounds"]:
        print(json.dumps(await play(root / str(n), shim, order, n)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
