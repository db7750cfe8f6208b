"""Every error that Outrider raises on purpose, one tree, a stable `code` at each leaf.

    OutriderError
    ├── NotFound              task_not_found, session_not_found, request_not_found, file_not_found,
    │                         worker_not_found, organization_not_found, key_not_found,
    │                         webhook_not_found, delivery_not_found
    ├── Conflict
    │   ├── TaskFinished      task_finished: the task has ended and stays as it ended
    │   ├── RequestClosed     request_closed: somebody else answered, or it expired or was withdrawn
    │   ├── Outdated          outdated: it has moved on since the version that was named
    │   ├── NotEnded          not_ended: it lives, and what was asked for is for what has ended
    │   ├── LeaseLost         lease_lost: the attempt that is named no longer holds the task
    │   ├── AlreadyExists     already_exists: what was to be made is there
    │   ├── InUse             in_use: something still belongs to what was to go
    │   ├── IdempotencyConflict  idempotency_conflict: same key, another payload
    │   ├── SessionBusy       session_busy: its agent takes a turn, and what was said may not wait
    │   ├── SessionClosed     session_closed: it takes nothing any more
    │   ├── LinkExpired       link_expired: it was good for a time
    │   └── IllegalMove       illegal_move: this event has no meaning in this state
    ├── Refused               the input is wrong; nothing was changed
    │   ├── InvalidArguments  invalid_arguments
    │   ├── InvalidAnswer     invalid_answer
    │   ├── InvalidSchema     invalid_schema
    │   ├── InvalidPath       invalid_path
    │   ├── UnknownName       unknown_kind, unknown_tool, unknown_agent, unknown_engine, unknown_model,
    │                         unknown_step, unknown_connection
    │   ├── TooLarge          too_large
    │   ├── ConnectionRequired  connection_required: the tool or agent needs one that is not there
    │   ├── CannotFork        cannot_fork: what the task has done is not in its journal alone
    │   ├── AddressRefused    address_refused: a webhook may not be sent there
    │   ├── InvalidLink       invalid_link: it was not made here, or what it is about is gone
    │   └── LimitReached      limit_reached
    ├── Denied                whoever asks may not; nothing was changed
    │   ├── Unauthenticated   unauthenticated: nobody knows who asks
    │   ├── Forbidden         forbidden: it is known who asks, and that one may not do this
    │   ├── RateLimited       rate_limited: it may, and has asked too often
    │   └── IssuerUnavailable  issuer_unavailable: whoever signs tokens cannot be asked for its keys
    ├── StoreError            the database cannot do its work
    │   ├── StoreUnavailable  store_unavailable, store_closed
    │   ├── StoreLocked       store_locked
    │   ├── StoreReadOnly     store_read_only
    │   ├── StoreFull         store_full
    │   ├── StoreFailed       store_failed: the disk failed; nothing goes on before a restart
    │   ├── StoreCorrupt      store_corrupt
    │   ├── StoreForeign      store_foreign: not a database of Outrider
    │   ├── StoreNewer        store_newer: written by a later version than this program knows
    │   ├── SecretSealed      secret_sealed: none of the keys at hand opens it
    │   └── CopyDiffers       copy_differs: a copy was not what was copied, and was not kept
    ├── ServerError           a server cannot be used; raised by `Client` alone
    │   ├── ServerUnreachable  server_unreachable: it did not answer, or not to the end
    │   ├── ServerForeign     server_foreign: what answers there is no server of Outrider
    │   ├── ServerDiffers     server_differs: it is of another version, and does not know what was asked
    │   └── ServerFailed      server_failed: a fault of the server
    ├── TaskFailed            task_failed: raised to who waits for the result
    ├── TaskCanceled          task_canceled: likewise
    ├── WaitTimeout           wait_timeout: the wait is over, the task goes on
    └── Failure               failure: raised by a task's own code, with a kind and a word on retries

`Superseded` and `Parked` are control flow and stand outside: they are `BaseException`s, so that an
`except Exception` in a task's code cannot swallow them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from outrider.core.values import JSON

NAMED = 5
"""How many of those that live a refusal names."""

FEW = 8
"""How many names a refusal lists; its details have them all."""


class OutriderError(Exception):
    """The root. `code` is stable, `message` is for people, `details` is JSON for programs."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, details: JSON = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        if code is not None:
            self.code = code  # type: ignore[misc]  # a leaf with several codes sets its own


class NotFound(OutriderError):
    """What was named does not exist."""

    code = "not_found"

    @classmethod
    def of(cls, noun: str, name: str) -> NotFound:
        """For a `noun` (task, session, request, file, worker, organization, key) of that name or id."""
        return cls(f"there is no {noun} {name!r}", details={noun: name}, code=f"{noun}_not_found")


class Conflict(OutriderError):
    """The request is sound, but not in the state that things are in."""

    code = "conflict"


class TaskFinished(Conflict):
    """The task has ended; what was asked for would change how."""

    code = "task_finished"


class RequestClosed(Conflict):
    """The input request is no longer pending."""

    code = "request_closed"


class Outdated(Conflict):
    """What was asked for is for one version of the task, and it has another by now."""

    code = "outdated"


class NotEnded(Conflict):
    """The task, or a task of the session, has not ended; what was asked for would pull it from under its worker."""

    code = "not_ended"

    @classmethod
    def of(cls, what: str, live: Sequence[str], to_be: str) -> NotEnded:
        """For tasks of these ids, where what is `to_be` (deleted, closed) may not live."""
        named = ", ".join(live[:NAMED]) + (", …" if len(live) > NAMED else "")
        return cls(
            f"{what}, and what lives cannot be {to_be}; cancel it first: {named}", details={"live": list(live[:100])}
        )


class LeaseLost(Conflict):
    """The attempt that is named no longer holds the task: it took too long, the task ended, or it never did."""

    code = "lease_lost"


class AlreadyExists(Conflict):
    """What was to be made is there already, and is not replaced."""

    code = "already_exists"


class InUse(Conflict):
    """Something still belongs to what was to be deleted."""

    code = "in_use"


class IdempotencyConflict(Conflict):
    """A task with this idempotency key or id exists and was made from another payload."""

    code = "idempotency_conflict"


class SessionBusy(Conflict):
    """The session's agent takes its turn, and what was said may not wait."""

    code = "session_busy"


class SessionClosed(Conflict):
    """The session is closed: nothing is said, started or brought there until it is reopened."""

    code = "session_closed"

    @classmethod
    def of(cls, session_id: str) -> SessionClosed:
        """For a session of that id."""
        return cls(f"{session_id} is closed; reopen it first", details={"session": session_id})


class LinkExpired(Conflict):
    """The link was good for a time, which is over."""

    code = "link_expired"


class IllegalMove(Conflict):
    """The event has no meaning in the task's present state."""

    code = "illegal_move"


class Refused(OutriderError):
    """The input is wrong; nothing was changed."""

    code = "refused"


class InvalidArguments(Refused):
    """The arguments do not fit the function's signature."""

    code = "invalid_arguments"


class InvalidAnswer(Refused):
    """The answer does not fit what the request expects."""

    code = "invalid_answer"


class InvalidSchema(Refused):
    """What was given as a JSON Schema is not one."""

    code = "invalid_schema"


class InvalidPath(Refused):
    """The path leaves the session's files or cannot name a file."""

    code = "invalid_path"


class UnknownName(Refused):
    """No kind, tool, agent, model, step or connection of that name is known."""

    code = "unknown_name"

    @classmethod
    def of(cls, noun: str, name: str, known: Iterable[str]) -> UnknownName:
        """For a `noun` (kind, tool, agent, model, step, connection), with the names that would have been right."""
        names = sorted(known)
        return cls(
            f"unknown {noun} {name!r}; {_listed(name, names)}",
            details={noun: name, "known": names},
            code=f"unknown_{noun}",
        )


def _listed(name: str, known: list[str]) -> str:
    """The names that would have been right; of many only those that are near, and how many there are."""
    if len(known) <= FEW:
        return f"known: {', '.join(known) or 'none'}"
    from difflib import get_close_matches

    heads = {each.partition(":")[0]: each for each in reversed(known)}
    near = get_close_matches(name, known, 3)
    near = near or [heads[head] for head in get_close_matches(name.partition(":")[0], heads, 3)]
    return f"near: {', '.join(near)}" if near else f"{len(known)} are known, such as {', '.join(known[:FEW])}"


class TooLarge(Refused):
    """A value is over its limit."""

    code = "too_large"

    @classmethod
    def of(cls, what: str, size: int, limit: int) -> TooLarge:
        """For a value named by `what`; sizes in bytes."""
        return cls(
            f"{what} has {size:,} bytes, more than the limit of {limit:,}",
            details={"what": what, "size": size, "limit": limit},
        )


class ConnectionRequired(Refused):
    """What was to be started needs connections that are not there; `details` names them."""

    code = "connection_required"

    @classmethod
    def lacking(cls, names: Sequence[str]) -> ConnectionRequired:
        """For the names of those that are missing."""
        return cls(f"it needs to be connected first: {', '.join(names)}", details={"connections": list(names)})


class CannotFork(Refused):
    """What the task has done is not in its journal alone, so that a copy of that would not go on from there."""

    code = "cannot_fork"


class AddressRefused(Refused):
    """A webhook may not be sent there: it is no public address, or a port that is not allowed."""

    code = "address_refused"


class InvalidLink(Refused):
    """The link was not made by this server, or what it is about is gone."""

    code = "invalid_link"


class LimitReached(Refused):
    """A limit on the delegation tree refuses this task."""

    code = "limit_reached"


class Denied(OutriderError):
    """Whoever asks may not; nothing was changed."""

    code = "denied"


class Unauthenticated(Denied):
    """Nobody knows who asks: there is no key or token, or it is none, or it holds no longer."""

    code = "unauthenticated"


class Forbidden(Denied):
    """It is known who asks, and that one may not do this, whatever it is done to."""

    code = "forbidden"


class RateLimited(Denied):
    """Whoever asks has asked too often. `retry_after` is in seconds."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after: float = 1.0, details: JSON = None) -> None:
        super().__init__(message, details=details)
        self.retry_after = retry_after


class IssuerUnavailable(Denied):
    """A token may be good, and whoever issues them cannot be asked for the keys that would tell."""

    code = "issuer_unavailable"


class StoreError(OutriderError):
    """The database cannot do its work. Nothing that was acknowledged is lost."""

    code = "store_error"
    is_final: ClassVar[bool] = False
    """Whether waiting does not help: every later verb of this store raises the like, until somebody starts anew."""


class StoreUnavailable(StoreError):
    """The database cannot be reached or was closed."""

    code = "store_unavailable"


class StoreLocked(StoreError):
    """Somebody else keeps the database locked."""

    code = "store_locked"


class StoreReadOnly(StoreError):
    """The database or its folder cannot be written."""

    code = "store_read_only"


class StoreFull(StoreError):
    """The disk or the database is full."""

    code = "store_full"


class StoreFailed(StoreError):
    """The disk failed while the database was read or written. What was being written may be there or not."""

    code = "store_failed"
    is_final = True


class StoreCorrupt(StoreError):
    """The database file is damaged."""

    code = "store_corrupt"
    is_final = True


class StoreForeign(StoreError):
    """The file is not a database of Outrider."""

    code = "store_foreign"
    is_final = True


class StoreNewer(StoreError):
    """The database was written by a later version of Outrider than this one."""

    code = "store_newer"
    is_final = True


class SecretSealed(StoreError):
    """A secret was sealed with a key that is not at hand, or was changed since."""

    code = "secret_sealed"


class CopyDiffers(StoreError):
    """What was written into another database is not what was read. Nothing of it was kept."""

    code = "copy_differs"


class ServerError(OutriderError):
    """A server cannot be used."""

    code = "server_error"


class ServerUnreachable(ServerError):
    """The server did not answer, or its answer was cut off, for as long as the client had patience."""

    code = "server_unreachable"


class ServerForeign(ServerError):
    """Something answers at this address, and it is no server of Outrider."""

    code = "server_foreign"


class ServerDiffers(ServerError):
    """The server is of another version of Outrider than the client: it does not know what was asked, or says what the
    client does not.
    """

    code = "server_differs"


class ServerFailed(ServerError):
    """The server has a fault. Its log has the details, under the id of the request."""

    code = "server_failed"


class TaskFailed(OutriderError):
    """The task whose result was awaited has failed. `kind` is the kind of its error."""

    code = "task_failed"

    def __init__(self, message: str, *, kind: str, details: JSON = None) -> None:
        super().__init__(message, details=details)
        self.kind = kind


class TaskCanceled(OutriderError):
    """The task whose result was awaited was canceled."""

    code = "task_canceled"


class WaitTimeout(OutriderError):
    """The wait ended before what it waited for; nothing was changed."""

    code = "wait_timeout"


class Failure(OutriderError):
    """Raised by a task's own code: fail with this error `kind`, and say whether another attempt makes sense."""

    code = "failure"

    def __init__(self, message: str, *, kind: str = "exception", retryable: bool = False, details: JSON = None) -> None:
        super().__init__(message, details=details)
        self.kind = kind
        self.retryable = retryable


class Superseded(BaseException):
    """This attempt no longer holds its task; whatever it still writes is refused. Stops the zombie."""

    def __init__(self, task_id: str, attempt: int) -> None:
        super().__init__(f"attempt {attempt} of {task_id} no longer holds it")
        self.task_id = task_id
        self.attempt = attempt


class Parked(BaseException):
    """The attempt gives its worker back and goes on later from its journal."""
