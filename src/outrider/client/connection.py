"""What goes over the wire: requests that are tried again where that is safe, and streams that resume by themselves.

Safe is what can be done twice with one effect. The rest is only tried again where the server cannot have begun it;
where that is in doubt the error says so.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Generic, TypeAlias, TypeVar, cast
from urllib.parse import quote

import httpx2
import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential_jitter

from outrider.client.problems import error_of
from outrider.core.errors import (
    InvalidArguments,
    NotFound,
    OutriderError,
    ServerDiffers,
    ServerForeign,
    ServerUnreachable,
)
from outrider.runtime.clock import retry_after
from outrider.runtime.codec import encode
from outrider.runtime.ids import check_id
from outrider.runtime.log import log
from outrider.runtime.options import check_page, check_texts, check_texts_if_given
from outrider.settings import ClientSettings, ServeSettings

R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")
Params: TypeAlias = Mapping[str, Any]

JSON_TYPE = "application/json"
STREAM_TYPE = "text/event-stream"
LINES_TYPE = "application/x-ndjson"
PAGE = 1000
"""How many items one request takes or gives; more go in several."""
LONG = 300.0
"""Seconds that work on a whole store may take, beyond what any answer may."""
FINAL = ("task_ended", "task_deleted", "session_deleted")
"""Why a stream ends for good. After any other end the same stream is asked for again."""

_FIRST_PAUSE, _LONGEST_PAUSE, _JITTER = 0.05, 2.0, 0.2
_BACKOFF = wait_exponential_jitter(max=_LONGEST_PAUSE, jitter=_JITTER, multiplier=_FIRST_PAUSE)
_CUT = (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError)
_LARGE = ServeSettings().body
"""From how large a body on a cut may be the refusal of it."""
_NEVER_BEGUN = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_LATER = (408, 429, 500, 502, 503, 504)
"""Statuses after which asking again makes sense, at once or after the pause that is named."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered. `is_doubtful`: an earlier try of the same may have been done as well."""

    content: bytes
    headers: Mapping[str, str]
    is_doubtful: bool

    def plain(self) -> Any:
        """The JSON in it."""
        return orjson.loads(self.content)

    def changed(self) -> bool:
        """Whether what was asked for changed anything; True where an earlier try may have been what did."""
        return self.is_doubtful or bool(self.plain()["changed"])

    def record(self, kind: type[R]) -> R:
        """The record in it. What a newer server says beside what is known here is passed over."""
        return cast("R", _read(_adapter(kind), self.content))

    def page(self, kind: type[R]) -> list[R]:
        """The records of the page in it."""
        return self.page_and_next(kind)[0]

    def page_and_next(self, kind: type[R]) -> tuple[list[R], str | None]:
        """The records of the page in it, and the cursor of the page after it; None where this was the last."""
        page = _read(_pages(kind), self.content)
        return page.items, None if page.next is None else f"{page.next}"


@dataclass(frozen=True, slots=True)
class Told:
    """An event of a stream, and the cursor after it."""

    name: str
    cursor: int
    data: str

    def record(self, kind: type[R]) -> R:
        """The record in it."""
        return cast("R", _read(_adapter(kind), self.data))


class _Page(BaseModel, Generic[R]):
    items: list[R]
    next: str | int | None = None


class _Trouble(Exception):
    """One try that failed: with which error, whether nothing was done, and when to try again if ever."""

    def __init__(self, error: OutriderError, *, is_certain: bool, is_passing: bool, after: float | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.is_certain = is_certain
        self.is_passing = is_passing
        self.after = after


class Connection:
    """A server, and the connections to it."""

    def __init__(self, url: str, key: str | None, settings: ClientSettings) -> None:
        self.url, transport, base = _place(url)
        self.settings = settings
        headers = {"Accept": JSON_TYPE, "User-Agent": f"outrider/{_version()}"}
        if key is not None:
            headers["Authorization"] = f"Bearer {_checked(key)}"
        self._http = httpx2.AsyncClient(
            base_url=base,
            headers=headers,
            transport=transport,
            timeout=httpx2.Timeout(settings.answer_timeout, connect=settings.connect_timeout),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100),
        )
        self._trying = 0
        """How many ask again, since they were not answered."""
        self._troubled_since: float | None = None
        """Since when that was said; None where all is well."""

    async def close(self) -> None:
        """Let go of all connections."""
        await self._http.aclose()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: Any = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        again: bool = False,
        waits: float = 0.0,
        until: float | None = None,
        arrived: Callable[[OutriderError], Awaitable[bool]] | None = None,
    ) -> Answer:
        """Ask, and return what the server answered. With `again` it may be done twice without harm.

        `waits` is how long the request itself waits for news, `until` the moment of the monotonic clock from which on
        nothing is tried again. `arrived` tells of a refusal whether an earlier try was done after all: then an empty
        answer is returned. Raises what the server refused with, or a ServerError.
        """
        again = again or method in ("GET", "PUT")
        if body is not None:
            content, headers = _encoded(body), {**(headers or {}), "Content-Type": JSON_TYPE}
        request = self._http.build_request(
            method,
            path,
            params=None if params is None else _said(params),
            content=content,
            headers=headers,
            timeout=httpx2.Timeout(self.settings.answer_timeout + waits, connect=self.settings.connect_timeout),
        )
        is_doubtful = False

        async def once() -> Answer:
            nonlocal is_doubtful
            try:
                response = await self._send(request, again)
            except _Trouble as trouble:
                if is_doubtful and trouble.is_certain and arrived is not None and await arrived(trouble.error):
                    return Answer(b"", {}, True)
                is_doubtful = is_doubtful or not trouble.is_certain
                raise
            return Answer(response.content, response.headers, is_doubtful)

        return await self._until_it_works(once, again, until)

    async def listed(
        self, path: str, kind: type[R], params: Params | None = None, *, after: str | None, limit: int
    ) -> list[R]:
        """Up to `limit` records of a list, after a cursor: page by page, where one request does not give so many."""
        check_texts_if_given(after=after)
        room, found = check_page(limit), list[R]()
        while True:
            asked = {**(params or {}), "after": after, "limit": min(room - len(found), PAGE)}
            page, after = (await self.ask("GET", path, params=asked)).page_and_next(kind)
            found += page
            if after is None or len(found) >= room:
                return found

    async def snapshot(self, path: str, kind: type[R]) -> R:
        """The snapshot with which a stream begins."""
        stream = self.follow(path, None)
        try:
            async for told in stream:
                if isinstance(told, Told) and told.name == "snapshot":
                    return told.record(kind)
        finally:
            await stream.aclose()
        raise ServerDiffers(f"the server at {self.url} gave no snapshot of {path}")

    async def follow(self, path: str, after: int | None) -> AsyncGenerator[Told | str]:
        """Yield the events of a stream after a cursor, each once, through any cut; then the reason why it ended.

        Without a cursor the first is a `snapshot`. Raises what the server refuses with, NotFound where another one has
        the id after a cut, and ServerUnreachable where the server stays away for longer than the patience.
        """
        cuts, since = 0, 0.0
        created_at: str | None = None
        while True:
            response = await self._until_it_works(partial(self._open, path, after), True)
            before, created_at = created_at, response.headers.get("created-at", created_at)
            if before not in (None, created_at):
                await response.aclose()
                raise NotFound(f"what {path} told of was deleted, and another one has its id")
            cut: Exception | None = None
            opened = time.monotonic()
            try:
                async for event in httpx2.EventSource(response, max_event_size=None):
                    if event.event == "end":
                        reason = str(orjson.loads(event.data)["reason"])
                        if reason in FINAL:
                            yield reason
                            return
                        break
                    if event.data:
                        cuts, after = 0, int(event.id)
                        yield Told(event.event, after, event.data)
            except httpx2.TransportError as error:
                cut = error
            finally:
                await response.aclose()
            now = time.monotonic()
            silent = self.settings.stream_silence if isinstance(cut, httpx2.ReadTimeout) else 0.0
            if now - silent - opened > _LONGEST_PAUSE:
                cuts = 0  # it was there, and had nothing to tell
            since = now if cuts == 0 else since
            if cuts and now >= since + self.settings.patience:
                raise self._unreachable(cut or OSError("its streams end as soon as they begin"))
            cuts += 1
            await asyncio.sleep(random.uniform(0.5, 1.0) * min(_FIRST_PAUSE * 2.0 ** min(cuts, 16), _LONGEST_PAUSE))

    async def _open(self, path: str, after: int | None) -> httpx2.Response:
        """Ask for a stream, once. Raises _Trouble."""
        headers = {"Accept": STREAM_TYPE}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        timeout = httpx2.Timeout(self.settings.stream_silence, connect=self.settings.connect_timeout)
        request = self._http.build_request("GET", path, headers=headers, timeout=timeout)
        return await self._send(request, True, stream=STREAM_TYPE)

    async def lines(self, path: str, params: Params) -> AsyncGenerator[Any]:
        """Yield the JSON objects of an answer that has one in each line. Raises ServerUnreachable where it is cut."""

        async def once() -> httpx2.Response:
            timeout = httpx2.Timeout(self.settings.stream_silence, connect=self.settings.connect_timeout)
            request = self._http.build_request("GET", path, params=_said(params), timeout=timeout)
            return await self._send(request, True, stream=LINES_TYPE)

        response = await self._until_it_works(once, True)
        last: Any = None
        try:
            async for line in response.aiter_lines():
                if line:
                    last = orjson.loads(line)
                    yield last
        except (httpx2.TransportError, orjson.JSONDecodeError) as error:
            raise self._unreachable(error) from error
        finally:
            await response.aclose()
        if not isinstance(last, dict) or last.get("record") != "end":
            raise self._unreachable(OSError("the end of what it sends is missing"))

    async def _until_it_works(self, once: Callable[[], Awaitable[T]], again: bool, until: float | None = None) -> T:
        """Do something until it succeeds, it cannot be tried again without harm or hope, or the patience is over.

        Patience begins with the first failure: a request that was meant to wait has used none of it until then.
        """
        done = await self._tried(once, again, math.inf if until is None else until)
        if self._troubled_since is not None and not self._trying:
            self._tell_its_end(self._troubled_since)
        return done

    async def _tried(self, once: Callable[[], Awaitable[T]], again: bool, end: float) -> T:
        is_troubled = False

        def is_to_be_tried(trouble: BaseException) -> bool:
            nonlocal end, is_troubled
            if not isinstance(trouble, _Trouble) or not trouble.is_passing or not (again or trouble.is_certain):
                return False
            now = time.monotonic()
            end = end if is_troubled else min(end, now + self.settings.patience)
            if now >= end or now + (trouble.after or 0.0) > end:
                return False
            if not is_troubled:
                is_troubled = True
                self._begin_again(trouble.error)
            return True

        try:
            return await AsyncRetrying(retry=retry_if_exception(is_to_be_tried), wait=_pause_after, reraise=True)(once)
        except _Trouble as trouble:
            raise trouble.error from trouble.__cause__
        finally:
            if is_troubled:
                self._trying -= 1

    def _begin_again(self, error: OutriderError) -> None:
        """Say that there is trouble, once for all who run into it."""
        self._trying += 1
        if self._troubled_since is None:
            self._troubled_since = time.monotonic()
            if self.settings.log_trouble:
                log.warning("the server is in trouble; asking again", server=self.url, reason=error.message)

    def _tell_its_end(self, since: float) -> None:
        self._troubled_since = None
        if self.settings.log_trouble:
            log.warning("the server answers again", server=self.url, seconds=round(time.monotonic() - since, 1))

    async def _send(self, request: httpx2.Request, again: bool, *, stream: str | None = None) -> httpx2.Response:
        """Ask once. Raises _Trouble."""
        asked = f"{request.method} {request.url.path}"
        try:
            response = await self._http.send(request, stream=stream is not None)
            if stream and response.status_code != 200:
                await response.aread()
                await response.aclose()
        except httpx2.TransportError as error:
            is_certain = isinstance(error, _NEVER_BEGUN)
            trouble = self._unreachable(error, asked if not (is_certain or again) else None)
            is_passing = _is_passing(error)
            if isinstance(error, _CUT) and (size := int(request.headers.get("content-length", 0))) > _LARGE:
                # A server hears out what it refuses, but not for ever: this would be cut off again.
                is_passing = False
                trouble = ServerUnreachable(
                    f"{trouble.message}; the {size:,} bytes of the body may be too many: a server takes {_LARGE:,} "
                    "unless it was told otherwise"
                )
            raise _Trouble(trouble, is_certain=is_certain, is_passing=is_passing) from error
        status, kind = response.status_code, response.headers.get("content-type", "")
        if 200 <= status < 300:
            if kind.startswith(stream or JSON_TYPE) or (stream is None and "x-request-id" in response.headers):
                return response
            await response.aclose()
            told: OutriderError = ServerForeign(
                f"{self.url} answered {asked} with {kind or 'nothing'}, and not as a server of Outrider does: is the "
                "address right?"
            )
        elif 300 <= status < 400:
            where = response.headers.get("location", "elsewhere")
            told = ServerForeign(f"{self.url} sends on to {where}: use the address of the server itself")
        else:
            told = error_of(status, kind, response.content, self.url, asked)
        is_passing = status in _LATER and not getattr(told, "is_final", False) and told.code != "internal"
        raise _Trouble(
            told,
            is_certain=status < 500,
            is_passing=is_passing,
            after=retry_after(response.headers.get("retry-after")),
        )

    def _unreachable(self, error: Exception, asked: str | None = None) -> ServerUnreachable:
        why = str(error) or type(error).__name__
        doubt = "" if asked is None else f"; whether {asked} was done is not known"
        return ServerUnreachable(f"the server at {self.url} cannot be reached: {why}{doubt}")


def segment(noun: str, name: str) -> str:
    """An id as a part of a path. Raises InvalidArguments for no text, NotFound for what nothing can be called."""
    check_texts(**{f"{noun}_id": name})
    try:
        check_id(noun, name)
    except InvalidArguments:
        raise NotFound.of(noun, name) from None
    return quote(name, safe="")


def as_json(what: str, value: object) -> Any:
    """A value as plain JSON. Raises InvalidArguments."""
    try:
        return orjson.loads(encode(value))
    except TypeError as error:
        raise InvalidArguments(f"{what} is not JSON: {error}") from None


def _encoded(body: Any) -> bytes:
    try:
        return encode(body)
    except TypeError as error:
        raise InvalidArguments(f"what was given is not JSON: {error}") from None


def _said(params: Params) -> dict[str, Any]:
    """Parameters as a query says them; None is left out."""
    said: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, str):
            check_texts(**{name: value})
        if isinstance(value, bool):
            said[name] = "true" if value else "false"
        elif isinstance(value, Sequence) and not isinstance(value, str):
            check_texts(**{f"{name} {place}": each for place, each in enumerate(value)})
            said[name] = [str(each) for each in value]
        elif value is not None:
            said[name] = value
    return said


def _is_passing(error: httpx2.TransportError) -> bool:
    return not isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError | httpx2.ProxyError)


def _pause_after(tries: RetryCallState) -> float:
    """How many seconds to wait after a try in vain: what the server asks for, else longer from try to try."""
    trouble = tries.outcome.exception() if tries.outcome is not None else None
    asked = trouble.after if isinstance(trouble, _Trouble) else None
    return _BACKOFF(tries) if asked is None else asked


def _place(url: str) -> tuple[str, httpx2.AsyncHTTPTransport | None, str]:
    """Where a server is, for people; how to get there; and the address of requests. Raises InvalidArguments."""
    check_texts(url=url)
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path:
            raise InvalidArguments(f"{url!r} names no socket; write unix:/path/of/the/socket")
        return url, httpx2.AsyncHTTPTransport(uds=path), "http://outrider"
    try:
        given = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise InvalidArguments(f"{url!r:.200} is no URL: {error}") from None
    if given.scheme not in ("http", "https") or not given.host or given.query or given.fragment:
        raise InvalidArguments(f"{url!r:.200} is no address of a server; write http://host:port, or unix:/path")
    if given.userinfo:
        raise InvalidArguments("a server's address has no name and password in it; what it asks for is a key")
    plain = str(given).rstrip("/")
    return plain.removesuffix("/v1"), None, plain.removesuffix("/v1")


def _checked(key: Any) -> str:
    if not isinstance(key, str) or not key.strip() or not key.isascii() or not key.isprintable():
        raise InvalidArguments("a key is plain text, as `outrider keys create` printed it")
    return key.strip()


def _version() -> str:
    from outrider import __version__

    return __version__


def _read(adapter: TypeAdapter[Any], content: bytes | str) -> Any:
    try:
        return adapter.validate_json(content, extra="ignore")
    except ValidationError as error:
        # What it answered is not quoted, nor is the cause that quotes it: there may be a key in it.
        places = error.errors(include_url=False, include_input=False, include_context=False)[:3]
        told = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in places)
        raise ServerDiffers(f"the server is of another version: what it answered cannot be read ({told})") from None


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@cache
def _pages(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(_Page[kind])  # type: ignore[valid-type]  # the kind is known as it runs
