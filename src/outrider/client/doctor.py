"""What is wrong with the store of a server: the verbs of `outrider.runtime.doctor`."""

from __future__ import annotations

from outrider.client.connection import Connection, segment
from outrider.runtime.options import check_flags
from outrider.runtime.records import Explanation, Finding


class Doctor:
    """Looks at a server's database, workers and queue."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def examine(self, *, deep: bool = False) -> list[Finding]:
        """Look at everything, and say what is wrong; `deep` compares every index with its table."""
        check_flags(deep=deep)
        return (await self._connection.ask("GET", "/v1/doctor", params={"deep": deep})).page(Finding)

    async def explain(self, task_id: str) -> Explanation:
        """Say why a task is where it is. Raises NotFound."""
        path = f"/v1/tasks/{segment('task', task_id)}/explanation"
        return (await self._connection.ask("GET", path)).record(Explanation)
