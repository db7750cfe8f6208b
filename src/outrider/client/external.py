"""Tasks of kind `external` of a server: the verbs of `outrider.runtime.external`, for a program that is no worker.

None of them is sent twice, but a report without output: an answer that is lost says nothing of what was done. A claim
whose answer was lost is due again after the idle timeout of its tasks.
"""

from __future__ import annotations

from typing import Any

from outrider.client.connection import Answer, Connection, as_json, segment
from outrider.core.errors import InvalidArguments
from outrider.core.values import JSON, JSONObject
from outrider.runtime.ids import check_id
from outrider.runtime.options import check_flags, check_page, check_texts, check_texts_if_given, is_whole
from outrider.runtime.records import InputRequestRecord, TaskRecord


class ExternalTasks:
    """What a program of somebody else's may do with the tasks that are for it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def claim(self, holder: str, *, name: str | None = None, limit: int = 1) -> list[TaskRecord]:
        """Take up to `limit` tasks that are due, of those whose spec has that `name`; none if there are none."""
        body = {
            "holder": check_id("holder", holder),
            "name": None if name is None else check_id("program", name),
            "limit": check_page(limit),
        }
        return (await self._connection.ask("POST", "/v1/external/claim", body=body)).page(TaskRecord)

    async def report(
        self,
        task_id: str,
        attempt: int,
        *,
        current: float | None = None,
        total: float | None = None,
        unit: str | None = None,
        label: str | None = None,
        detail: str | None = None,
        output: str | None = None,
        stream: str = "stdout",
    ) -> TaskRecord:
        """Say how far it is, print, or with nothing only say that it is still at it; this renews the lease."""
        check_texts_if_given(unit=unit, label=label, detail=detail, output=output, stream=stream)
        said = {"current": current, "total": total, "unit": unit, "label": label, "detail": detail}
        body = {**said, "output": output, "stream": stream}
        return (await self._tell(task_id, attempt, "report", body, again=not output)).record(TaskRecord)

    async def ask(
        self, task_id: str, attempt: int, prompt: str, *, expected: JSONObject | None = None, details: JSON = None
    ) -> InputRequestRecord:
        """Ask whoever the session answers to. Keep reporting meanwhile, or `give_back` the task until it is told."""
        check_texts(prompt=prompt)
        body = {"prompt": prompt, "expected": expected, "details": as_json("the details", details)}
        return (await self._tell(task_id, attempt, "ask", body)).record(InputRequestRecord)

    async def give_back(self, task_id: str, attempt: int) -> TaskRecord:
        """Let go of the task unharmed: it is due again at once, or when one of its questions is answered."""
        return (await self._tell(task_id, attempt, "give-back", None)).record(TaskRecord)

    async def succeed(
        self, task_id: str, attempt: int, result: JSON = None, *, summary: str | None = None
    ) -> TaskRecord:
        """End it with a result. One that does not fit `result_schema` fails it. Raises LeaseLost, TooLarge."""
        check_texts_if_given(summary=summary)
        body = {"result": as_json("the result", result), "summary": summary}
        return (await self._tell(task_id, attempt, "succeed", body)).record(TaskRecord)

    async def fail(
        self,
        task_id: str,
        attempt: int,
        message: str,
        *,
        kind: str = "exception",
        details: JSON = None,
        retryable: bool = True,
    ) -> TaskRecord:
        """Let the attempt fail: it is tried again after a pause while failures are left, if it is `retryable`."""
        check_texts(message=message, kind=kind)
        check_flags(retryable=retryable)
        body = {"message": message, "kind": kind, "details": as_json("the details", details), "retryable": retryable}
        return (await self._tell(task_id, attempt, "fail", body)).record(TaskRecord)

    async def stopped(self, task_id: str, attempt: int) -> TaskRecord:
        """Say that it has stopped, as a cancel asked; without one the task is only given back."""
        return (await self._tell(task_id, attempt, "stopped", None)).record(TaskRecord)

    async def _tell(self, task_id: str, attempt: int, verb: str, body: Any, *, again: bool = False) -> Answer:
        if not is_whole(attempt):
            raise InvalidArguments(f"attempt is the number of an attempt, not {attempt!r:.100}")
        path = f"/v1/tasks/{segment('task', task_id)}/attempts/{attempt}/{verb}"
        return await self._connection.ask("POST", path, body=body, again=again)
