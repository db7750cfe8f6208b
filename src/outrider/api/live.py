"""Live streams as server-sent events: a snapshot, then each event once, an end that says why, resumed by Last-Event-ID.

FastAPI's own SSE encodes each event anew for each client, through two tasks and three queues a stream, and waits for
ever for one that does not read. Here an event is bytes before it is shared (see `runtime.live`), and a stream is one
cursor and one write under way.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, ClassVar

from fastapi import Header, Path, Query
from pydantic import BaseModel
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from outrider.api.access import Asking, Reading
from outrider.api.problems import Refusal, responses
from outrider.api.protocol import ABORT
from outrider.api.routing import noun
from outrider.runtime.clock import as_datetime
from outrider.runtime.live import Live, Stream
from outrider.settings import StreamSettings

MEDIA_TYPE = "text/event-stream"
CREATED_AT = "Created-At"
"""The header that tells whoever goes on whether it is still what they followed: an id may be given again."""

KEEP_ALIVE = b":\n\n"
FAREWELL = 1.0
"""How long the end of a stream may take to be sent when the server stops, in seconds."""

_MOST = 2**63 - 1
_END = b'event: end\ndata: {"reason":"%s"}\n\n'
_EVENT = {
    "type": "object",
    "description": "One event of the stream; its `data` is JSON.",
    "properties": {
        "event": {"type": "string"},
        "id": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer"},
    },
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": (
            "A stream of events. `snapshot` comes first unless a place to go on from was named, then what is new, "
            "each with its `id`; `end` says that nothing more comes and why. Without it the stream was cut: go on from "
            "the last id. The header `Created-At` is when the session or task was made: if it is another moment than "
            "before the cut, what was followed was deleted, and its id given again."
        ),
        "content": {
            MEDIA_TYPE: {
                "schema": _EVENT,
                "examples": {
                    "begin and end": {
                        "value": 'retry: 1000\n\nevent: snapshot\nid: 3\ndata: {"after":3,"task":{}}\n\n'
                        'event: end\ndata: {"reason":"task_ended"}\n\n'
                    }
                },
            }
        },
    }
}

_NAMED = {**_ANSWERS, **responses(404)}

SessionId = Annotated[str, Path(description="The id of a session.")]
TaskId = Annotated[str, Path(description="The id of a task.")]
LastEventId = Annotated[
    int | None,
    Header(ge=0, le=_MOST, description="The `id` of the last event that was received, to go on after it."),
]
After = Annotated[
    int | None,
    Query(ge=0, le=_MOST, description="The same, for who cannot set headers. The header counts where both are given."),
]

router = noun("live")


class EventStream(Response):
    """The response that a stream is. It ends with the stream, the client, the server, or when nothing is read."""

    media_type = MEDIA_TYPE
    HEADERS: ClassVar = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

    def __init__(self, stream: Stream, audience: Audience) -> None:
        super().__init__(None, headers=self.HEADERS)
        if stream.created_at is not None:
            self.headers[CREATED_AT] = as_datetime(stream.created_at).isoformat()
        del self.headers["content-length"]
        self._stream = stream
        self._audience = audience
        self._is_gone = False
        self._is_cut = False
        self._job: asyncio.Task[Any] | None = None
        self.sent_at = 0.0
        self.is_sending = False
        """Since `sent_at`; else that is when it last sent something."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell all there is to tell."""
        loop = asyncio.get_running_loop()
        self._job = asyncio.current_task()
        watch = loop.create_task(self._listen(receive))
        self._audience.add(self)

        async def told(message: Message) -> None:
            self.sent_at, self.is_sending = loop.time(), True
            await send(message)
            self.is_sending = False

        try:
            await told({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await told(_body(b"retry: %d\n\n" % round(self._audience.settings.retry * 1000)))
            while (data := await self._stream.take()) is not None:
                if self._is_gone:
                    return
                await told(_body(data or KEEP_ALIVE))
                if self._stream.is_behind:
                    await told(_body(b""))  # returns once there is room, so that nothing is read before
            reason = self._stream.reason or "failed"
            await told({"type": "http.response.body", "body": _END % reason.encode(), "more_body": False})
        except asyncio.CancelledError:
            if not self._is_cut:
                raise
            await _cut(scope)
        finally:
            watch.cancel()
            self._audience.remove(self)

    def keep_alive(self) -> None:
        """Say something if there is nothing to say."""
        self._stream.wake()

    def cut(self) -> None:
        """End it without a word, since nobody reads."""
        if self._job is not None and not self._is_cut:
            self._is_cut = True
            self._job.cancel()

    def stop(self) -> None:
        """End it, since the server stops."""
        self._stream.end("server_stopping")

    def close(self) -> None:
        """Let go of its stream."""
        self._stream.close()

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        self._stream.wake()


class Audience:
    """All who follow something of one application, its feeds, and what concerns all: time, and the server's end."""

    def __init__(self, live: Live, settings: StreamSettings, ending: asyncio.Event) -> None:
        self.live = live
        self.settings = settings
        self._ending = ending
        self._responses: set[EventStream] = set()
        self._tick: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def is_ending(self) -> bool:
        """Whether the server stops."""
        return self._ending.is_set()

    def __len__(self) -> int:
        return len(self._responses)

    def check_room(self) -> None:
        """Raise Refusal for one stream more than there may be, and when the server stops."""
        if self.is_ending:
            raise Refusal(503, "the server stops; ask again, another may be there")
        if len(self) >= self.settings.most:
            text = f"there are {len(self)} streams open, as many as this server has"
            raise Refusal(429, text, headers={"Retry-After": "5"})

    def add(self, response: EventStream) -> None:
        """One more follows."""
        self._responses.add(response)
        if self._tick is None:
            loop = asyncio.get_running_loop()
            self._tick = loop.call_later(self._pause, self._look)
            self._watch = loop.create_task(self._until_the_end())

    def remove(self, response: EventStream) -> None:
        """One less."""
        response.close()
        self._responses.discard(response)
        if not self._responses:
            if self._tick is not None:
                self._tick.cancel()
            if self._watch is not None:
                self._watch.cancel()
            self._tick = self._watch = None

    @property
    def _pause(self) -> float:
        return min(1.0, self.settings.silence / 4, self.settings.stall_limit / 4)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._tick = loop.call_later(self._pause, self._look)
        now = loop.time()
        patience = FAREWELL if self.is_ending else self.settings.stall_limit
        for response in self._responses:
            silent = now - response.sent_at
            if response.is_sending:
                if silent >= patience:
                    response.cut()
            elif silent >= self.settings.silence:
                response.keep_alive()

    async def _until_the_end(self) -> None:
        await self._ending.wait()
        for response in list(self._responses):
            response.stop()


@router.get("/sessions/{session_id}/events", status_code=200, response_class=EventStream, responses=_NAMED)
async def session_events(
    request: Request, runtime: Reading, session_id: SessionId, last_event_id: LastEventId = None, after: After = None
) -> Response:
    """Follow a session: first it and its live tasks, then its events."""
    audience = _audience(request.app.state)
    stream = await audience.live.session(runtime.services, session_id, _place(last_event_id, after))
    return EventStream(stream, audience)


@router.get("/sessions/{session_id}/live", status_code=200, response_class=EventStream, responses=_NAMED)
async def session_live(
    request: Request, runtime: Reading, session_id: SessionId, last_event_id: LastEventId = None, after: After = None
) -> Response:
    """Follow a session with what its tasks print: as its events, but `task.output` has the text as well."""
    audience = _audience(request.app.state)
    stream = await audience.live.session(runtime.services, session_id, _place(last_event_id, after), output=True)
    return EventStream(stream, audience)


@router.get("/tasks/{task_id}/events", status_code=200, response_class=EventStream, responses=_NAMED)
async def task_events(
    request: Request, runtime: Reading, task_id: TaskId, last_event_id: LastEventId = None, after: After = None
) -> Response:
    """Follow a task to its end: first its record, then its events."""
    audience = _audience(request.app.state)
    stream = await audience.live.task(runtime.services, task_id, _place(last_event_id, after))
    return EventStream(stream, audience)


@router.get("/tasks/{task_id}/output", status_code=200, response_class=EventStream, responses=_NAMED)
async def task_output(
    request: Request, runtime: Reading, task_id: TaskId, last_event_id: LastEventId = None, after: After = None
) -> Response:
    """Follow what a task prints, to its end. Ids are byte offsets; without one, from the first byte that is kept."""
    audience = _audience(request.app.state)
    stream = await audience.live.output(runtime.services, task_id, _place(last_event_id, after))
    return EventStream(stream, audience)


@router.get("/events", status_code=200, response_class=EventStream, responses=_ANSWERS)
async def events(
    request: Request, runtime: Reading, caller: Asking, last_event_id: LastEventId = None, after: After = None
) -> Response:
    """Follow all sessions of the organization: first what lives, then all events. Ids are positions of the log."""
    audience = _audience(request.app.state)
    stream = await audience.live.organization(
        runtime.services, caller.organization_id, _place(last_event_id, after), bounds=caller.session_id
    )
    return EventStream(stream, audience)


def _audience(state: State) -> Audience:
    """The audience of an application: made with its first stream. Raises Refusal where no more may come."""
    audience: Audience | None = getattr(state, "audience", None)
    if audience is None:
        live = Live(state.runtime.services, as_sse)
        audience = state.audience = Audience(live, state.settings.streams, state.ending)
    audience.check_room()
    return audience


def as_sse(cursor: int, name: str, record: BaseModel) -> bytes:
    """Something at a cursor as a server-sent event."""
    return b"event: %s\nid: %d\ndata: %s\n\n" % (name.encode(), cursor, record.__pydantic_serializer__.to_json(record))


def _place(last_event_id: int | None, after: int | None) -> int | None:
    return after if last_event_id is None else last_event_id


def _body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def _cut(scope: Scope) -> None:
    extension = scope.get("extensions", {}).get(ABORT)
    if extension is not None:
        extension["abort"]()
        await asyncio.sleep(0)  # the server hears of it now, and expects nothing more
        await asyncio.sleep(0)
