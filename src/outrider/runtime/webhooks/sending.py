"""Sending one webhook: a signed POST to the address that was judged, bounded in time and in what is read of the answer.

The status decides. A 2xx means that it was taken, whatever follows it; everything else is a failure with its reason,
redirects too: where they lead was judged by nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from outrider.core.errors import AddressRefused, InvalidArguments
from outrider.core.values import JSONObject
from outrider.runtime.clock import retry_after
from outrider.runtime.webhooks.guard import Guard, Place
from outrider.runtime.webhooks.signing import headers_of

if TYPE_CHECKING:
    import ssl

    import httpx2

    from outrider.settings import WebhookSettings

HEAD = 512
"""How many characters are kept of what a receiver answered."""

GONE = 410


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one try. `seconds` it took; `error` says what was wrong, None if it was taken."""

    status: int | None
    seconds: float
    head: str
    error: str | None
    retry_after: float | None = None
    """Seconds for which the receiver wants to be left alone."""

    def told(self) -> JSONObject:
        """For the record of a delivery."""
        return {"status": self.status, "seconds": round(self.seconds, 3), "head": self.head, "error": self.error}


class Sender:
    """Sends. `tls` says which certificates are good: by default those that the public trusts, whatever is in the
    environment.
    """

    def __init__(
        self, settings: WebhookSettings, longest_answer: int, guard: Guard, tls: ssl.SSLContext | None = None
    ) -> None:
        self._settings = settings
        self._longest_answer = longest_answer
        self._guard = guard
        self._tls = tls
        self._client: httpx2.AsyncHTTPTransport | None = None

    async def send(self, url: str, keys: Sequence[bytes], id: str, body: bytes, second: int) -> Outcome:
        """Send a body once, signed with each of the keys as of that second. Never raises for what a receiver does."""
        client = await self._prepared()
        began = time.monotonic()
        answer = _Answer()
        error: str | None = None
        try:
            async with asyncio.timeout(self._settings.send_timeout):
                place = self._guard.check(url)
                await self._post(client, place, headers_of(keys, id, second, body), body, answer)
        except TimeoutError:
            error = f"it took longer than {self._settings.send_timeout:g} s"
        except (AddressRefused, InvalidArguments) as refused:
            error = refused.message
        except OSError as failure:
            error = f"no connection: {failure}"[:HEAD]
        except Exception as failure:  # whatever a receiver makes httpx2 raise, it is a failure of its delivery
            if not _is_of_http(failure):
                raise
            error = f"{type(failure).__name__}: {failure}"[:HEAD].rstrip(": ")
        if answer.status is not None:
            error = _judged(answer.status)
        return Outcome(answer.status, time.monotonic() - began, answer.head, error, answer.retry_after)

    async def close(self) -> None:
        """Let go of what is open."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _prepared(self) -> httpx2.AsyncHTTPTransport:
        """The client. The first takes a second to load, in which nobody else is to be held up, nor a try to fail."""
        if self._client is None:
            made = await asyncio.to_thread(_client, self._tls)
            if self._client is None:
                self._client = made
        return self._client

    async def _post(
        self, client: httpx2.AsyncHTTPTransport, place: Place, headers: dict[str, str], body: bytes, answer: _Answer
    ) -> None:
        import httpx2

        told = {
            "host": place.named,
            "content-type": "application/json",
            "user-agent": "Outrider-Webhooks/1",
            "accept": "*/*",
            "accept-encoding": "identity",
            **headers,
        }
        addresses = await self._guard.addresses(place)
        for address in addresses:
            request = httpx2.Request(
                "POST",
                place.at(address),
                content=body,
                headers=told,
                # The certificate is the host's, not the address's.
                extensions={**_timeouts(self._settings), "sni_hostname": place.host},
            )
            try:
                response = await client.handle_async_request(request)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if address == addresses[-1]:
                    raise
                continue
            try:
                answer.begin(response)
                await answer.read(response, self._longest_answer)
            finally:
                await response.aclose()
            return


class _Answer:
    """What a receiver has said so far."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.retry_after: float | None = None
        self._begun = b""

    @property
    def head(self) -> str:
        return self._begun.decode("utf-8", "replace")[:HEAD].replace("\0", "\ufffd")

    def begin(self, response: httpx2.Response) -> None:
        self.status = response.status_code
        self.retry_after = retry_after(response.headers.get("retry-after"))

    async def read(self, response: httpx2.Response, longest: int) -> None:
        """Read to the end, or as much as is allowed: a receiver that is cut off in its words may take it amiss."""
        size = 0
        async for piece in response.aiter_raw():
            if len(self._begun) < 4 * HEAD:
                self._begun += piece[: 4 * HEAD]
            size += len(piece)
            if size >= longest:
                return


def _client(tls: ssl.SSLContext | None) -> httpx2.AsyncHTTPTransport:
    """A client that goes by nothing in the environment, follows nobody, and keeps no connection: the next webhook is
    judged anew. It is the bare transport: what is built on it logs whole URLs, and these are often secrets.
    """
    import httpx2

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx2.AsyncHTTPTransport(verify=tls or _public_tls(), trust_env=False, limits=limits)


@cache
def _public_tls() -> ssl.SSLContext:
    """What the public trusts. To load it takes a while."""
    import httpx2

    return httpx2.create_ssl_context(trust_env=False)


def _timeouts(settings: WebhookSettings) -> dict[str, Any]:
    rest = settings.send_timeout
    return {"timeout": {"connect": min(settings.connect_timeout, rest), "read": rest, "write": rest, "pool": rest}}


def _judged(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"it answered {status}, a redirect, and none is followed"
    return f"it answered {status}"


def _is_of_http(failure: Exception) -> bool:
    import ssl

    import httpx2

    return isinstance(failure, httpx2.HTTPError | httpx2.InvalidURL | httpx2.StreamError | ssl.SSLError)
