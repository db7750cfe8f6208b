"""What a fork takes over of the task it goes on from: the journal up to a step, and what its rows speak of.

The rows are copied under the id of the new task, and so are the answered questions, the messages that were taken
and the files of artifacts: the old task may be deleted. Children are not copied; the rows go on naming them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from outrider.core.change import Heritage
from outrider.core.errors import CannotFork, UnknownName
from outrider.core.events import FileWrite, Step
from outrider.core.task import Artifact, InputRequest, Task
from outrider.core.values import Instant, evolve
from outrider.runtime.codec import decode, encode
from outrider.runtime.ids import new_id
from outrider.runtime.journal import DOUBT, INSIDE
from outrider.runtime.services import Services

INHERITED = 0
"""The attempt of rows that were there before the first."""


async def heritage_of(services: Services, old: Task, new_task_id: str, before: str | None) -> Heritage:
    """What a task of that id takes over of an old one's: all before a position, everything with None.

    Raises UnknownName for a position that is not in the journal, CannotFork for a task whose past is elsewhere too.
    """
    if old.live.links.child_session_id is not None:
        raise CannotFork(
            f"{old.id} ran in a session of its own, whose transcript is its checkpoint, and cannot be forked; retry it"
        )
    rows = _before([step for step in await services.views.steps(old.id) if DOUBT not in step.position], before)
    copied = _Copy(services, old, new_task_id)
    steps = [step for row in rows if (step := await copied.step(row)) is not None]
    return Heritage(
        tuple(steps), tuple(copied.requests), tuple(copied.messages), tuple(copied.artifacts), tuple(copied.files)
    )


def _before(rows: Sequence[Step], position: str | None) -> list[Step]:
    """The rows that were come to before that of a position; without the steps that it lies in, which are not done."""
    if position is None:
        return list(rows)
    target = next((row for row in rows if row.position == position), None)
    if target is None:
        known = [row.position for row in rows]
        refusal = UnknownName.of("step", position, known)
        raise UnknownName(
            f"{refusal.message}; a step that failed has left nothing: leave it out to go on after all that was done",
            details=refusal.details,
            code=refusal.code,
        )
    return [row for row in rows if row.ordinal < target.ordinal and not position.startswith(row.position + INSIDE)]


class _Copy:
    """A past being copied."""

    def __init__(self, services: Services, old: Task, new_task_id: str) -> None:
        self._services = services
        self._old = old
        self._id = new_task_id
        self.requests: list[InputRequest] = []
        self.messages: list[Any] = []
        self.artifacts: list[Artifact] = []
        self.files: list[FileWrite] = []
        self._thread: dict[str, Any] | None = None

    async def step(self, row: Step) -> Step | None:
        """A row as the new task has it; None for a question that nobody answered, which is asked again."""
        value = row.value
        if row.verb == "ask":
            closed = await self._services.views.request(decode(value or b"{}")["request_id"])
            if closed is None or not _is_settled(closed):
                return None
            self.requests.append(evolve(closed, id=new_id("req"), task_id=self._id))
            value = encode({"request_id": self.requests[-1].id})
        elif row.verb == "messages" and row.done:
            value = encode({"ids": [await self._message(each) for each in decode(value or b"{}")["ids"]]})
        elif row.verb == "artifact":
            value = encode(await self._artifact(Artifact(**decode(value or b"{}"))))
        return replace(row, task_id=self._id, attempt=INHERITED, value=value)

    async def _message(self, message_id: str) -> str:
        if self._thread is None:
            found = await self._services.views.messages(self._old.id, direction="inbound", limit=1_000_000)
            self._thread = {message.id: message for message in found}
        self.messages.append(evolve(self._thread[message_id], id=new_id("tmsg"), task_id=self._id))
        return str(self.messages[-1].id)

    async def _artifact(self, artifact: Artifact) -> Artifact:
        """The artifact; where its content lies in the old task's folder, a copy in the new one's."""
        old_folder, new_folder = f"/.tasks/{self._old.id}/", f"/.tasks/{self._id}/"
        path = artifact.path
        if path is not None and path.startswith(old_folder):
            content = await self._services.views.file(self._old.session_id, path)
            path = new_folder + path.removeprefix(old_folder)
            if content is not None:
                now: Instant = self._services.clock.now()
                media_type = artifact.media_type or "application/octet-stream"
                self.files.append(FileWrite(self._old.session_id, path, content, media_type, now, self._id))
            artifact = evolve(artifact, path=path)
        self.artifacts = [each for each in self.artifacts if each.name != artifact.name] + [artifact]
        return artifact


def _is_settled(request: InputRequest) -> bool:
    return request.status == "answered" or (request.status == "expired" and request.on_expiry != "fail")
