"""A worker process: `python -m benchmarks.worker URL MODULE [HOST]` serves what the module registers.

It ends when its input does. With HOST it believes that it is on that machine, and trusts no lock of this one.
"""

from __future__ import annotations

import asyncio
import importlib
import sys

from benchmarks.work import app
from outrider.runtime.lease import locks_of
from outrider.runtime.worker import Worker


async def serve(url: str, host: str | None = None) -> None:
    """Say `serving` once work is accepted, and stop when whoever started this is gone."""
    async with app.open(url, worker=False) as outrider:
        worker = Worker(outrider.services, locks=locks_of(outrider.ledger), host=host)
        job = asyncio.create_task(worker.run())
        while not any(each.id == worker.id for each in await outrider.workers()):  # noqa: ASYNC110 - it says nothing
            await asyncio.sleep(0.005)
        print("serving", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


if __name__ == "__main__":
    importlib.import_module(f"benchmarks.{sys.argv[2]}")
    asyncio.run(serve(sys.argv[1], *sys.argv[3:]))
