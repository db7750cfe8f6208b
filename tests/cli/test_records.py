"""What `tasks --json` writes without pydantic is what the record says of itself."""

import orjson

from outrider.core.task import (
    Artifact,
    Core,
    Input,
    InputRequest,
    Links,
    Live,
    Outcome,
    Progress,
    Retry,
    State,
    Stopping,
    Task,
    TaskError,
    Timeouts,
    Usage,
)
from outrider.runtime.fields import task_fields
from outrider.runtime.records import TaskRecord

NOW = 1_700_000_000_123_456
REQUEST = InputRequest(
    "req_1", "task_1", "approval", "Go?", "ask#1", NOW, expected={"type": "boolean"}, details={"a": [1]},
    deadline_at=NOW + 1, on_expiry="default", default=False, status="pending",
)  # fmt: skip
FULL = Task(
    "task_1",
    Input(
        session_id="session_1", root_session_id="session_0", kind="background_tool", route="background_tool:x",
        spec={"tool": "x", "arguments": {"ä": None}}, created_at=1_700_000_000_000_000, parent_task_id="task_0",
        display_name="Ünïcode\x1b", labels={"a": "b"}, origin={"turn": 1}, wake_policy="on_activity",
        idempotency_key="k", priority=-3, concurrency_key="c", depends_on=("task_8",), detached=True,
        retry=Retry(7, 1_500_000, 3, 10_000_000), timeouts=Timeouts(1, 2_000_000, None, 4), budget={"cost": 1},
        result_schema={"type": "object"}, message_schema={}, retry_of="task_7",
    ),
    Core(
        state=State.AWAITING_INPUT, version=9, attempt=2, failures=1, worker_id="worker_1", attempt_started_at=NOW,
        due_at=NOW, readiness="timed", requests=(REQUEST,), stopping=Stopping("cancel", NOW, NOW + 5),
        cancel_requested_at=NOW, cancel_reason="enough", next_deadline_at=NOW + 1, started_at=NOW, finished_at=NOW,
        updated_at=NOW,
    ),
    Live("detail", Progress(1, 2, "files", "a.py", ("one", "two")), 4, "openai", "gpt", Usage(1, 2, 3, 4, 1),
         Links("session_2", "remote", ("res_1",))),
    Outcome("sum", "/.tasks/task_1/result.json", (Artifact("a", "file", "/a", None, "text/plain", 3),),
            TaskError("timeout", "late", {"x": 1})),
)  # fmt: skip
EMPTY = Task("task_2", Input("s", "s", "k", "k", {}, NOW), Core(updated_at=NOW))


def test_the_fields_of_a_task_are_those_of_its_record_to_the_letter():
    for task in (FULL, EMPTY):
        said = {**task_fields(task, heartbeat_at=NOW), "checkpoint": None}
        written = orjson.loads(orjson.dumps(said, option=orjson.OPT_UTC_Z))
        assert written == TaskRecord.of(task, heartbeat_at=NOW).model_dump(mode="json")
        assert set(written) == set(TaskRecord.model_fields)
