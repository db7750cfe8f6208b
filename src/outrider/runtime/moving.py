"""A task as one document: written here, read on another machine, where it goes on from its checkpoint.

The document holds all that the store knows of the task, the transcript of the session that it opened, and the ended
tasks that its journal speaks of. A reader may get it wrong in one way: it is a copy. The task here goes on as well,
unless it is given away, which ends it here.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, is_dataclass, replace
from functools import cache
from math import isfinite
from typing import Any, TypeVar, cast

from outrider.core import machine
from outrider.core.change import AttemptEnd, Change, Heritage, Luggage, OutputRow
from outrider.core.errors import (
    AlreadyExists,
    Conflict,
    IllegalMove,
    InvalidArguments,
    NotFound,
    OutriderError,
    SessionClosed,
)
from outrider.core.events import CancelRequested, FileWrite, Message, Step
from outrider.core.ledger import Committed, Existing, Shut
from outrider.core.meters import NOTHING, TASK, Account, taps_of
from outrider.core.queue import route_within, split_route
from outrider.core.session import NewSession, Session
from outrider.core.task import EXTERNAL, TURN, Input, InputRequest, Task, WaitForTasks, key_within, split_key
from outrider.core.values import JSON, Instant, JSONObject, evolve
from outrider.runtime.budgets import Taken, reported_by, taken_by
from outrider.runtime.codec import decode, encode, jsonable
from outrider.runtime.files import clean_path
from outrider.runtime.ids import check_id
from outrider.runtime.journal import OUTLIVES
from outrider.runtime.options import check_budget, check_keys, check_priority
from outrider.runtime.records import TaskRecord
from outrider.runtime.services import Services
from outrider.runtime.stream import task_from

FORMAT = "outrider.task"
VERSION = 1
MANY = 1_000_000
EXACT = 1 << 53
"""Integers below are the same in every reader of JSON, and in every store."""
MOST_FACTOR = 1000
"""Of a backoff: the power of a larger one, after some failures, is no number any more."""
MOVED = "moved to another database"

V = TypeVar("V")


# --- out ---------------------------------------------------------------------------------------------


async def export_task(services: Services, task: Task, *, events: bool = False) -> dict[str, JSON]:
    """The document of a task that nobody holds. Raises IllegalMove for one that is held, or waits for other tasks."""
    steps = await services.views.steps(task.id, values=False)
    _check_can_leave(task, has_run=any(step.verb == OUTLIVES for step in steps))
    child_id = task.live.links.child_session_id
    child = None if child_id is None else await services.views.session(child_id)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "exported_at": services.clock.now(),
        **await _described(services, task),
        "children": [await _described(services, each) for each in await _spoken_of(services, task)],
    }
    if child is not None:
        rows = await services.views.transcript(child.id, limit=MANY)
        transcript = [{"iteration": row.iteration, "message": decode(row.message)} for row in rows]
        document["child_session"] = {**jsonable(_new_session(child)), "transcript": transcript}
    if events:
        document["events"] = await _log_of(services, task)
    return document


async def give_away(services: Services, document: JSONObject) -> Task:
    """End here a task that was exported, as canceled. Raises Conflict if it has moved on since, NotFound."""
    task = _read_task(document)
    change = machine.apply(task, CancelRequested(reason=MOVED), services.clock.now())
    if task.is_terminal:
        return task
    (verdict,) = await services.ledger.commit([change])
    if not isinstance(verdict, Committed):
        raise Conflict(f"{task.id} has moved on since it was exported; discard the document and export it again")
    return verdict.task


def _check_can_leave(task: Task, *, has_run: bool) -> None:
    """`has_run`: something was begun that outlives its worker, such as a command, and is bound to its host."""
    core = task.core
    if core.is_held:
        raise IllegalMove(
            f"{task.id} is held by {core.worker_id}; it can be exported once it is parked, queued or ended"
        )
    if task.live.links.resource_ids and not task.is_terminal:
        raise IllegalMove(f"{task.id} holds resources, which would be released here; export it when it has ended")
    if has_run and not task.is_terminal:
        raise IllegalMove(f"what {task.id} has started runs on here; export it when it has ended")
    if task.input.kind == TURN and not task.is_terminal:
        raise IllegalMove(f"{task.id} takes the turn of its session, which stays here; export it when it has ended")
    if core.dependencies or core.returned or any(isinstance(wait, WaitForTasks) for wait in core.waits):
        raise IllegalMove(f"{task.id} waits for other tasks, which would stay here; export it when they have ended")


async def _spoken_of(services: Services, task: Task) -> Sequence[Task]:
    """The tasks that a task started or waited for. Raises IllegalMove if one of them lives."""
    ids: dict[str, None] = {}
    for row in await services.views.steps(task.id):
        value = decode(row.value or b"{}")
        if row.verb == "spawn":
            ids[value["task_id"]] = None
        elif row.verb == "wait_for":
            ids.update(dict.fromkeys(value.get("ended", ())))
    found = await services.views.tasks(list(ids))
    for each in found:
        if not each.is_terminal and not task.is_terminal:
            raise IllegalMove(f"{task.id} has a child that lives, which would stay here: {each.id}")
    return [each for each in found if each.is_terminal]


async def _described(services: Services, task: Task) -> dict[str, JSON]:
    """What the store knows of one task."""
    views = services.views
    session = await views.session(task.session_id)
    if session is None:
        raise NotFound.of("session", task.session_id)
    output = await views.output(task.id, limit=MANY)
    return {
        "task": {"id": task.id, **jsonable(machine.snapshot(task))},
        "session": jsonable(_new_session(session)),
        "attempts": jsonable(await views.attempts(task.id)),
        "steps": [_plain_step(step) for step in await views.steps(task.id)],
        "requests": jsonable(await views.requests(task.id)),
        "messages": jsonable(await views.messages(task.id, limit=MANY)),
        "output": jsonable(output.rows),
        "files": await _files_of(services, task),
        "taken": jsonable(await taken_by(views, task)),
    }


def _plain_step(step: Step) -> dict[str, JSON]:
    plain = {each.name: getattr(step, each.name) for each in fields(step)}
    return {**plain, "value": None if step.value is None else decode(step.value)}


async def _files_of(services: Services, task: Task) -> list[dict[str, JSON]]:
    """The files in the folder of a task, and those elsewhere that it left as artifacts."""
    infos = {
        info.path: info
        for info in await services.views.files(task.session_id, prefix=f"/.tasks/{task.id}/", limit=MANY)
    }
    for artifact in task.outcome.artifacts:
        if artifact.path is not None and artifact.path not in infos:
            found = await services.views.files(task.session_id, prefix=artifact.path, limit=1)
            infos.update({info.path: info for info in found if info.path == artifact.path})
    files = []
    for path, info in infos.items():
        content = await services.views.file(task.session_id, path)
        if content is not None:
            described = {"path": path, "media_type": info.media_type, "created_at": info.created_at}
            files.append({**described, "content": b64encode(content).decode()})
    return files


async def _log_of(services: Services, task: Task) -> list[dict[str, JSON]]:
    rows = await services.views.events(task.session_id, task_id=task.id, limit=MANY)
    return [{"seq": row.seq, "type": row.type, "at": row.at, "data": decode(row.data)} for row in rows]


def _new_session(session: Session) -> NewSession:
    return NewSession(**{each.name: getattr(session, each.name) for each in fields(NewSession)})


# --- in ----------------------------------------------------------------------------------------------


async def import_task(services: Services, document: JSONObject, *, session_id: str | None = None) -> Task:
    """Make the task of a document, under its own id, in the session of that id, by default the one it had.

    The session is made where it is missing. Raises InvalidArguments for what is no such document, AlreadyExists for a
    task or an opened session that is there already.
    """
    task = _checked(document)
    check_keys(evolve(task.input, concurrency_key=task.input.key_name), services.settings.limits)
    check_priority(task.priority)
    await _check_absent(services, task, document)
    home = await _home(services, document, session_id)
    try:
        children = [_adopted(services, _ended(each), each, home, Luggage()) for each in document["children"]]
        opened, luggage = _opened(document, home)
        change = _adopted(services, task, document, home, luggage)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArguments(f"the document is not whole: {type(error).__name__} {error}") from None
    for each in (*children, change):
        _check_sound(each)
        await _check_questions(services, each)
    if home.new is not None:
        await services.ledger.create_session(home.new)
    change = evolve(change, files=await _free(services, change))
    for child in children:
        await _put(services, child)
    if opened is not None:
        await services.ledger.create_session(opened)
    verdict = await _put(services, change)
    if isinstance(verdict, Existing):
        raise AlreadyExists(f"{verdict.task.id} is here already, of that id or idempotency key")
    return verdict.task


def _ended(document: JSONObject) -> Task:
    task = _read_task(document)
    if not task.is_terminal:
        raise InvalidArguments(f"the document has a child that lives: {task.id}")
    return task


def _opened(document: JSONObject, home: _Home) -> tuple[NewSession | None, Luggage]:
    """The session that the task had opened, as it will stand below the one that it comes into, and its transcript."""
    given = document.get("child_session")
    if given is None:
        return None, Luggage()
    session = _read(NewSession, given)
    session = replace(
        session,
        organization_id=home.organization_id,
        root_session_id=home.root_session_id,
        parent_session_id=home.id,
        budget=_parts(session.budget, "session") | _parts(home.budget, "tree") or None,
    )
    transcript = tuple((int(row["iteration"]), encode(row["message"])) for row in given["transcript"])
    return session, Luggage(child_session_id=session.id, transcript=transcript)


def spec_of(document: JSONObject) -> tuple[str, JSONObject, bool]:
    """The kind and the spec of the task in a document, and whether it has ended. Raises InvalidArguments."""
    task = _checked(document)
    return task.input.kind, task.spec, task.is_terminal


def _checked(document: object) -> Task:
    """The task of a document that can be read and may be adopted, as far as its form tells."""
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise InvalidArguments(f"this is no exported task: its format is not {FORMAT!r}")
    if document.get("version") != VERSION:
        raise InvalidArguments(f"the document has version {document.get('version')!r}; this program reads {VERSION}")
    try:
        encode(document)
    except TypeError as error:
        raise InvalidArguments(f"the document is no JSON: {error}") from None
    for each in (document, *_members(document, "children")):
        for name in ("attempts", "steps", "requests", "messages", "output", "files"):
            _members(each, name)
    opened = document.get("child_session")
    if opened is not None and not isinstance(opened, Mapping):
        raise InvalidArguments("the document's child_session is no object")
    _members(opened or {"transcript": []}, "transcript")
    task = _read_task(document)
    _check_can_leave(task, has_run=any(step.get("verb") == OUTLIVES for step in document["steps"]))
    return task


def _members(document: JSONObject, name: str) -> Sequence[JSONObject]:
    found = document.get(name)
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise InvalidArguments(f"the document has no {name}, or not as a list of objects")
    return found


async def _check_absent(services: Services, task: Task, document: JSONObject) -> None:
    if await services.views.task(task.id) is not None:
        raise AlreadyExists(f"{task.id} is here already; delete it first, if it may go")
    if any(each["task"]["id"] == task.id for each in document["children"] if isinstance(each.get("task"), Mapping)):
        raise InvalidArguments(f"the document has {task.id} among the children of it")
    opened, linked = document.get("child_session"), task.live.links.child_session_id
    if opened is not None and (opened.get("id") != linked or linked == task.session_id):
        raise InvalidArguments(f"the document has a session {opened.get('id')} that {task.id} has not opened")
    if linked is not None and await services.views.session(linked) is not None:
        raise AlreadyExists(f"the session {linked} that {task.id} opened is here already")


async def _check_questions(services: Services, change: Change) -> None:
    """A question is known by its id alone: one of another task here would be asked and answered in its place."""
    for request in (*change.requests, *change.task.core.requests):
        there = await services.views.request(request.id)
        if there is not None and there.task_id != change.task.id:
            raise AlreadyExists(f"the question {request.id} of {change.task.id} is here already, of {there.task_id}")


def _check_sound(change: Change) -> None:
    """What a type does not say, and what would be an error only later, of who reads or goes on with the task."""
    task, luggage = change.task, change.luggage or Luggage()
    core = task.core
    offset = luggage.output[0].offset if luggage.output else 0
    for piece in luggage.output:
        if piece.offset != offset or offset < 0:
            raise InvalidArguments(f"the document's output of {task.id} has a gap or an overlap at {offset}")
        offset += len(piece.text.encode())
    attempts = [each.attempt for each in luggage.attempts]
    if len(set(attempts)) < len(attempts) or not all(0 < each <= core.attempt for each in attempts):
        raise InvalidArguments(f"the document's attempts of {task.id} are not those up to {core.attempt}")
    if attempts and core.started_at is None and core.attempt in attempts:
        raise InvalidArguments(f"the document's {task.id} has attempts and was never started")
    if core.attempt < 1 or min(core.failures, core.version, core.messages) < 0:
        raise InvalidArguments(f"the document's {task.id} has a number below 0 that counts something")
    if task.is_terminal is (core.finished_at is None):
        raise InvalidArguments(f"the document's {task.id} is {core.state}, which its finished_at contradicts")
    if core.cancel_requested_at is not None and not task.is_terminal:
        raise InvalidArguments(f"the document's {task.id} was canceled and has not ended, though nobody holds it")
    ids = [*(each.id for each in change.requests), *(each.id for each in change.messages)]
    if len(set(ids)) < len(ids):
        raise InvalidArguments(f"the document's {task.id} has a question or a message twice")
    if not 0 <= task.input.retry.factor <= MOST_FACTOR:
        raise InvalidArguments(
            f"the document's {task.id} has a factor of its backoff that is none from 0 to {MOST_FACTOR}"
        )
    for value in (task, luggage, change.steps, change.requests, change.messages, change.files):
        _check_numbers(value)
    try:  # what cannot be shown would keep every list that it is in from being shown
        TaskRecord.of(task)
    except (ValueError, OverflowError, TypeError) as error:
        raise InvalidArguments(f"the document's {task.id} has a field that no record can hold: {error}") from None


def _check_numbers(value: object) -> None:
    """Moments, lengths and counts are numbers that are exact everywhere; those in JSON of the task's own are its."""
    if (isinstance(value, int) and abs(value) >= EXACT) or (isinstance(value, float) and not isfinite(value)):
        raise InvalidArguments(f"the document has a number that is none of a moment, a length or a count: {value}")
    if isinstance(value, tuple):
        for each in value:
            _check_numbers(each)
    elif is_dataclass(value):
        for field in fields(value):
            _check_numbers(getattr(value, field.name))


@dataclass(frozen=True, slots=True)
class _Home:
    """The session that a task comes into; `new` where it has yet to be made."""

    id: str
    root_session_id: str
    organization_id: str
    budget: JSONObject | None
    new: NewSession | None = None


async def _home(services: Services, document: JSONObject, session_id: str | None) -> _Home:
    given = _read(NewSession, document.get("session"))
    wanted = check_id("session", session_id or given.id)
    there = await services.views.session(wanted)
    if there is not None:
        return _Home(there.id, there.root_session_id, there.organization_id, there.budget)
    # What stood above it stays behind, so it is a root here.
    organization = given.organization_id if services.bounds is None else services.bounds.organization_id
    new = replace(
        given,
        id=wanted,
        organization_id=organization,
        root_session_id=None,
        parent_session_id=None,
        parent_task_id=None,
        budget=_parts(given.budget, "session", "tree") or None,
    )
    return _Home(wanted, wanted, new.organization_id, new.budget, new)


async def _free(services: Services, change: Change) -> tuple[FileWrite, ...]:
    """The files of a task, without those elsewhere among its session's whose path is taken."""
    folder = f"/.tasks/{change.task.id}/"
    return tuple(
        [
            file
            for file in change.files
            if file.path.startswith(folder) or await services.views.file(file.session_id, file.path) is None
        ]
    )


async def _put(services: Services, change: Change) -> Committed | Existing:
    (verdict,) = await services.ledger.commit([change])
    if isinstance(verdict, Shut):
        raise SessionClosed.of(verdict.session_id)
    if not isinstance(verdict, Committed | Existing):
        raise Conflict(f"{change.task.id} could not be imported: its session has just been deleted")
    return verdict


def _adopted(services: Services, task: Task, document: JSONObject, home: _Home, luggage: Luggage) -> Change:
    """The creation of a task of a document in a session, everything in it under the ids of both."""
    own: dict[str, JSON] = {"task_id": task.id}
    place = {"session_id": home.id, "root_session_id": home.root_session_id, "organization_id": home.organization_id}
    budget, key = {**_limits(task.input.budget), **(home.budget or {})}, _key_within(services, task.input, home)
    task = evolve(task, input=evolve(task.input, **place, budget=budget or None, concurrency_key=key))
    if task.input.kind == EXTERNAL:
        route = route_within(split_route(task.input.route)[0], home.organization_id)
        task = evolve(task, input=evolve(task.input, route=route))
    steps = [{**step, **own, "value": None} for step in document["steps"]]
    values = [None if step["value"] is None else encode(step["value"]) for step in document["steps"]]
    heritage = Heritage(
        tuple(replace(step, value=value) for step, value in zip(_all(Step, steps), values, strict=True)),
        _all(InputRequest, [{**request, **own} for request in document["requests"]]),
        _all(Message, [{**message, **own, "session_id": home.id} for message in document["messages"]]),
        files=tuple(_file(services, each, task) for each in document["files"]),
    )
    luggage = replace(
        luggage,
        attempts=_all(AttemptEnd, [{**attempt, **own} for attempt in document["attempts"]]),
        output=_all(OutputRow, document["output"]),
        accounts=_brought(task, _taken(task, document), home, services.clock.now()),
    )
    return machine.adopt(task, heritage, luggage, services.clock.now())


def _limits(budget: JSONObject | None) -> dict[str, JSON]:
    """What a budget says of the task itself. Raises InvalidArguments for what is no budget."""
    own = {name: each for name, each in (budget or {}).items() if name not in ("session", "tree")}
    check_budget("the document's budget", own or None)
    return own


def _parts(budget: JSONObject | None, *names: str) -> dict[str, JSON]:
    """What a budget says of a session or its tree. Raises InvalidArguments for what is no budget."""
    parts = {name: budget[name] for name in names if budget is not None and name in budget}
    for name, part in parts.items():
        check_budget(f"the document's budget of its {name}", part)
    return parts


def _taken(task: Task, document: JSONObject) -> Taken:
    """What a task of a document took where it was. Raises InvalidArguments for what nobody can have taken."""
    taken = _read(Taken, document["taken"]) if "taken" in document else Taken(NOTHING)
    left = taken.spent.minus(taken.unknown)
    if any(min(astuple(each)) < 0 for each in (taken.spent, taken.unknown, left)):
        raise InvalidArguments(f"the document's {task.id} has taken less than nothing, or less than it has lost of it")
    return replace(taken, spent=taken.spent.at_least(reported_by(task)))  # older documents have but that


def _brought(task: Task, taken: Taken, home: _Home, now: Instant) -> tuple[Account, ...]:
    """What it took, for each account here that it is under. Its own runs on, as do those of a session that it brings;
    those that are here already, or yet to begin in a session that is here, run by their own time.
    """
    if taken.spent == NOTHING and taken.began_at is None:
        return ()
    own, began = TASK + task.id, now if taken.began_at is None else taken.began_at
    return tuple(
        Account(
            tap.account,
            tap.budget,
            now if home.new is None and tap.account != own else began,
            tap.tell,
            taken.spent,
            unknown=taken.unknown,
            is_marked=taken.is_marked and tap.account == own,
        )
        for tap in taps_of(task)
    )


def _key_within(services: Services, given: Input, home: _Home) -> str | None:
    """The key that a task is counted under: of the organization that it comes into, unless it is that of its tool, or
    an operator brings another. A document can say anything.
    """
    if given.concurrency_key is None:
        return None
    name, owner = split_key(given.concurrency_key)
    is_common = owner is None and (services.is_operator or name == _key_of_tool(services, given))
    return name if is_common else key_within(name, home.organization_id)


def _key_of_tool(services: Services, given: Input) -> str | None:
    try:
        return services.registry.executor(given.kind).check(given.spec).concurrency_key
    except OutriderError:  # only another process knows it
        return None


def _file(services: Services, given: JSONObject, task: Task) -> FileWrite:
    path = clean_path(str(given["path"]), task_id=task.id)
    content = b64decode(given["content"], validate=True)
    limit = services.settings.limits.file
    if len(content) > limit:
        raise InvalidArguments(f"the file {path} of the document has {len(content):,} bytes, more than {limit:,}")
    return FileWrite(task.session_id, path, content, str(given["media_type"]), int(given["created_at"]), task.id)


def _read_task(document: object) -> Task:
    given = document.get("task") if isinstance(document, Mapping) else None
    if not isinstance(given, Mapping):
        raise InvalidArguments("the document has no task")
    try:
        task = task_from(check_id("task", given.get("id")), {name: given[name] for name in given if name != "id"})
    except ValueError as error:
        raise InvalidArguments(f"the task of the document is not whole: {error}") from None
    if task.input.kind == TURN:  # its key says which turn it came after, of another session
        return evolve(task, input=evolve(task.input, idempotency_key=None))
    return task


def _all(kind: type[V], given: Sequence[JSON]) -> tuple[V, ...]:
    return tuple(_read(kind, each) for each in given)


def _read(kind: type[V], given: JSON) -> V:
    try:
        found: V = _adapter(cast(Any, kind)).validate_python(given)
    except ValueError as error:
        raise InvalidArguments(f"the document has a {kind.__name__} that is not whole: {error}") from None
    return found


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
