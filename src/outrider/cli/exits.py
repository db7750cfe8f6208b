"""What the program ends with. The one place where errors become exit codes; docs/cli.md has the same table."""

from __future__ import annotations

from outrider.core.errors import (
    Conflict,
    Denied,
    NotFound,
    OutriderError,
    Refused,
    ServerError,
    StoreError,
    TaskCanceled,
    TaskFailed,
    WaitTimeout,
)
from outrider.core.task import State

OK = 0
INTERNAL = 1
USAGE = 2
REFUSED = 3
NOT_FOUND = 4
CONFLICT = 5
STORE = 6
TASK_FAILED = 7
TASK_CANCELED = 8
TIMEOUT = 9
UNSOUND = 10
"""`doctor` found a problem, or `audit verify` a log that is not whole."""
DENIED = 11
SERVER = 12
HUNG_UP = 129
INTERRUPTED = 130
BROKEN_PIPE = 141

_BY_ERROR: tuple[tuple[type[OutriderError], int], ...] = (
    (Refused, REFUSED),
    (Denied, DENIED),
    (NotFound, NOT_FOUND),
    (Conflict, CONFLICT),
    (StoreError, STORE),
    (ServerError, SERVER),
    (TaskFailed, TASK_FAILED),
    (TaskCanceled, TASK_CANCELED),
    (WaitTimeout, TIMEOUT),
)

_BY_STATE = {State.FAILED: TASK_FAILED, State.CANCELED: TASK_CANCELED}


class UsageError(OutriderError):
    """The command line itself makes no sense: an unknown command or option, a value of the wrong form."""

    code = "usage"


def code_of(error: OutriderError) -> int:
    """The exit code of an error."""
    if isinstance(error, UsageError):
        return USAGE
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), INTERNAL)


def code_of_state(state: State) -> int:
    """The exit code for how a task stands: 0 unless it failed or was canceled."""
    return _BY_STATE.get(state, OK)
