"""Work without end at full rate: the app of the workers, and the program that hands them work.

`python -m tests.soak.rate ADDRESS` has 64 callers that each submit a few tasks, wait until these have ended, and submit
again, half of them in one session and half over a hundred. It prints how many have ended, once a second, until SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from outrider import Outrider, Runtime, WorkerSettings

RETENTION = "RATE_RETENTION"
"""The environment variable with the seconds that ended tasks are kept."""
CALLERS, SESSIONS, EACH = 64, 100, 4

app = Outrider(WorkerSettings(retention=float(os.environ.get(RETENTION, "60")), retention_interval=5.0))


@app.tool
async def echo(value: int) -> int:
    return value


class Crowd:
    """The callers."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.ended = 0

    async def run(self) -> None:
        """Go on until cancelled. Raises AssertionError when a task brings what is not its own."""
        sessions = [await self._runtime.sessions.create() for _ in range(1 + SESSIONS)]
        async with asyncio.TaskGroup() as callers:
            callers.create_task(self._tell())
            for number in range(CALLERS):
                session = sessions[0] if number % 2 else sessions[1 + number % SESSIONS]
                callers.create_task(self._call(session.id, number))

    async def _call(self, session_id: str, number: int) -> None:
        session, turn = await self._runtime.sessions.get(session_id), 0
        while True:
            values = [CALLERS * (turn + ahead) + number for ahead in range(EACH)]
            tasks = await session.spawn_many("echo", [{"value": value} for value in values])
            assert [await task.result() for task in tasks] == values
            turn += EACH
            self.ended += EACH

    async def _tell(self) -> None:
        while True:
            print(self.ended, flush=True)
            await asyncio.sleep(1)


async def main(address: str) -> None:
    async with app.open(address, worker=False) as runtime:
        work = asyncio.create_task(Crowd(runtime).run())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
        try:
            await work
        except asyncio.CancelledError:
            return


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
