"""What entries of the log are news for webhooks, and the payload that tells one: an envelope, bounded in its size.

A payload has the task's record as it stands when it is written down, which may be later than the event; what the event
itself brought, questions or a message, is as the log has it. It is written once: each retry sends the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from outrider.core.events import Message
from outrider.core.ledger import LogRow, Views
from outrider.core.task import TERMINAL, InputRequest, State, Task
from outrider.core.values import Instant, JSONObject
from outrider.runtime.clock import as_datetime
from outrider.runtime.codec import decode, encode, jsonable
from outrider.runtime.fields import request_fields, task_fields
from outrider.runtime.webhooks.stored import Event

PAGE = 500
KEPT_OF_TEXT = 500
"""How many characters are left of a text that made a payload too long."""


@dataclass(frozen=True, slots=True)
class News:
    """One entry of the log that webhooks may tell of. `asks` are the ids of the questions that are new."""

    event: Event
    row: LogRow
    task_id: str
    data: JSONObject
    asks: tuple[str, ...] = ()


async def news_in(views: Views, rows: Sequence[LogRow]) -> list[News]:
    """The news among entries of the log, in their order."""
    found = []
    for row in rows:
        if row.task_id is None or row.type not in _TELLING:
            continue
        data: Any = decode(row.data)
        for event in _events_of(row, data):
            asks: tuple[str, ...] = ()
            if event == "awaiting_input":
                asks = await _new_asks(views, row, data)
                if not asks:
                    continue
            found.append(News(event, row, row.task_id, data, asks))
    return found


def _events_of(row: LogRow, data: JSONObject) -> Iterator[Event]:
    if row.type == "task.message":
        yield "message"
    elif row.type == "task.progress":
        if not _PROGRESS.isdisjoint(data):
            yield "progress"
    else:
        core = data.get("core", {})
        if core.get("state") in _ENDED:
            yield "terminal"
            return
        if core.get("requests"):
            yield "awaiting_input"
        if not _PROGRESS.isdisjoint(data.get("live", ())):
            yield "progress"


async def _new_asks(views: Views, row: LogRow, data: JSONObject) -> tuple[str, ...]:
    """The questions that an entry is the first to name. One that only closes others names what is left of them."""
    named = tuple(each["id"] for each in data["core"]["requests"])
    if data["core"].get("state") == State.AWAITING_INPUT:  # there was none before
        return named
    before = await _named_before(views, row)
    return tuple(each for each in named if each not in before)


async def _named_before(views: Views, row: LogRow) -> set[str]:
    """The questions that the entry before it names, of those that name any: read backwards, for it is mostly near."""
    upto = row.seq
    while upto > 1:
        start = max(0, upto - 1 - PAGE)
        page = await views.events(row.session_id, after=start, limit=upto - 1 - start, task_id=row.task_id)
        for entry in reversed([each for each in page if each.seq < upto]):
            core = _core_in(entry)
            if "requests" in core:
                return {each["id"] for each in core["requests"]}
        upto = start + 1
    return set()


def _core_in(entry: LogRow) -> JSONObject:
    told: Any = decode(entry.data) if entry.type in ("task.created", "task.updated") else {}
    found: JSONObject = told.get("core", {})
    return found


def payload_of(news: News, task: Task, longest: int) -> str:
    """The body of a webhook, of at most so many bytes."""
    data: dict[str, Any] = {"task": {**task_fields(task), "checkpoint": None}}
    if news.event == "awaiting_input":
        asked = [each for each in news.data["core"]["requests"] if each["id"] in news.asks]
        data["requests"] = [request_fields(_value(InputRequest, each)) for each in asked]
    elif news.event == "message":
        message = _value(Message, news.data["message"])
        data["message"] = {
            **{field.name: getattr(message, field.name) for field in fields(Message)},
            "created_at": as_datetime(message.created_at),
        }
    return envelope(f"task.{news.event}", news.row.at, data, longest)


def envelope(type: str, at: Instant, data: Mapping[str, Any], longest: int) -> str:
    """An envelope with its data. Of what is too long the largest fields are cut, and named in `truncated`."""
    told: dict[str, Any] = {"type": type, "timestamp": as_datetime(at), "data": data}
    encoded = encode(told)
    if len(encoded) > longest:
        encoded = _cut(jsonable(told), longest)
    return encoded.decode()


def _cut(told: dict[str, Any], longest: int) -> bytes:
    """Cut one field after the other, the largest first: of a text its beginning is left, of anything else nothing."""
    places = sorted(_places(told["data"], ()), key=lambda place: -len(encode(_at(told["data"], place))))
    told["truncated"] = cut = list[str]()
    for place in places:
        holder, name = _at(told["data"], place[:-1]), place[-1]
        value = holder[name]
        holder[name] = value[:KEPT_OF_TEXT] + "…" if isinstance(value, str) else None
        cut.append(".".join(map(str, place)))
        encoded = encode(told)
        if len(encoded) <= longest:
            return encoded
    # So many questions, or so small a limit: what is left says whose they are.
    task = told["data"].get("task", {})
    told["data"] = {"task": {name: task.get(name) for name in ("id", "session_id", "state")}}
    told["truncated"] = ["everything"]
    return encode(told)


def _places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """What may be cut: the fields of the records, but for those that say which they are."""
    if isinstance(value, list) or not path:
        for name, each in enumerate(value) if isinstance(value, list) else value.items():
            yield from _places(each, (*path, name))
    elif isinstance(value, dict):
        yield from ((*path, name) for name in value if name not in _KEPT)


def _at(value: Any, path: Sequence[Any]) -> Any:
    for name in path:
        value = value[name]
    return value


def _value(kind: Any, told: JSONObject) -> Any:
    """A value as the log has it, by a program of any version."""
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in told.items() if name in known})


_TELLING = ("task.updated", "task.progress", "task.message")
_PROGRESS = frozenset({"progress", "state_detail"})
_ENDED = frozenset(str(state) for state in TERMINAL)
_KEPT = frozenset({"id", "session_id", "task_id", "organization_id", "kind", "state", "status", "type"})
