"""Statements sent ahead of the answers to those before, on the client library itself.

psycopg has a pipeline, but that looks at the socket at every statement and gives up the interpreter's lock there, which
a busy event loop gives back late. Here nothing is waited for until somebody wants an answer. The server answers in the
order of the statements; when one has failed it skips the others, up to the end of the pipeline.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, Format
from psycopg.pq.abc import PGresult

if TYPE_CHECKING:
    from outrider.stores.postgres.database import Link

_AT_ONCE: Final = 16_384
"""Bytes of parameters after which the server is sent what was said: it works while the rest is thought of."""

_FINE: Final = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)

_Said: TypeAlias = "tuple[str, tuple[int, ...]]"
"""A statement: its text, and the types of its parameters by their numbers in the catalogue."""


class Answer:
    """What a statement brings. Each method waits for it, and raises what has failed since the pipeline began."""

    __slots__ = ("_pipeline", "result")

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.result: PGresult | None = None

    def fetchall(self) -> list[Any]:
        """All rows."""
        return self._pipeline.rows(self._arrived())

    def fetchone(self) -> Any:
        """The first row, None when there is none."""
        rows = self.fetchall()
        return rows[0] if rows else None

    @property
    def rowcount(self) -> int:
        """How many rows the statement found or changed."""
        return self._arrived().command_tuples or 0

    def _arrived(self) -> PGresult:
        if self.result is None:
            self._pipeline.wait(self)
        assert self.result is not None
        return self.result


class Pipeline:
    """`with pipeline: …`, any number of times; nobody else uses the connection meanwhile.

    Leaving it waits for all answers, and raises the first failure unless one is being raised. What is in the block is
    one transaction, also without being told to be. With `patience` the connection is closed when the server has been
    silent for so many seconds. Only one thread uses it.
    """

    def __init__(self, connection: Link) -> None:
        self.patience = connection.patience
        self._connection = connection
        self._server = connection.pgconn
        self._transformer = Transformer(connection)
        self._names: dict[_Said, bytes] = {}
        """What statements are called that the server has prepared."""
        self._numbers = 0
        self._new: list[_Said] = []
        """What it is to prepare in this pipeline, which it skips too after a failure."""
        self._expected: deque[Answer | None] = deque()
        """Whose answers are still to come; None is the end."""
        self._failure: psycopg.Error | None = None
        self._unsent = 0

    def __enter__(self) -> Self:
        self._failure = None
        self._server.enter_pipeline_mode()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._server.pipeline_sync()
            self._expected.append(None)
            while self._expected:
                self._receive()
            self._server.exit_pipeline_mode()
        except psycopg.Error as lost:
            self._expected.clear()
            self._failure = self._failure or lost
        if error is not None or self._failure is not None:
            for said in self._new:
                self._names.pop(said, None)
        self._new.clear()
        if error is None and self._failure is not None:
            raise self._failure

    def begin(self) -> int:
        """Begin a transaction, with the settings of the connection. Returns how many statements that takes."""
        self.say("begin isolation level read committed")  # behind a pooler, the user's default would hold
        return 1 + self.settle_in()

    def settle_in(self) -> int:
        """Have the settings hold in this block, where they do not hold anyway: 1 statement or none."""
        if not self._connection.is_shared:
            return 0
        made = (f"set_config('{name}', '{value}', true)" for name, value in self._connection.settings.items())
        self.say(f"select {', '.join(made)}")
        return 1

    def say(self, text: str, parameters: Sequence[Any] = ()) -> Answer:
        """Have a statement run, in its turn."""
        values = self._transformer.dump_sequence(parameters, [PyFormat.BINARY] * len(parameters))
        types, formats = self._transformer.types or (), self._transformer.formats
        if not self._connection.is_shared:
            said = (text, types)
            if (name := self._names.get(said)) is None:
                name = self._prepare(said)
            self._server.send_query_prepared(name, values, formats, Format.BINARY)
        else:
            self._server.send_query_params(text.encode(), values, types, formats, Format.BINARY)
        answer = Answer(self)
        self._expected.append(answer)
        self._unsent += sum(len(value) for value in values if value is not None)
        if self._unsent > _AT_ONCE:
            self._unsent = 0
            self._server.flush()
        return answer

    def wait(self, answer: Answer) -> None:
        """Wait until an answer is there. Raises the first failure."""
        self._server.send_flush_request()
        self._unsent = 0
        while answer.result is None and self._failure is None:
            self._receive()
        if self._failure is not None:
            raise self._failure

    def rows(self, result: PGresult) -> list[Any]:
        """The rows of an answer."""
        self._transformer.set_pgresult(result)
        return self._transformer.load_rows(0, result.ntuples, tuple)

    def _prepare(self, said: _Said) -> bytes:
        text, types = said
        self._numbers += 1
        name = self._names[said] = b"outrider_%d" % self._numbers
        self._new.append(said)
        self._server.send_prepare(name, text.encode(), types)
        self._expected.append(Answer(self))
        return name

    def _receive(self) -> None:
        """Take what has arrived; wait until something has."""
        server = self._server
        while self._expected and not server.is_busy():
            result = server.get_result()
            if result is None:  # it stands between the answers, and after the last one of a link that broke
                if server.status != ConnStatus.OK:
                    raise psycopg.OperationalError(self._broken())
                continue
            answer = self._expected.popleft()
            if answer is None:
                return
            answer.result = result
            if result.status not in _FINE and self._failure is None:
                if result.error_field(DiagnosticField.SQLSTATE) is None:
                    raise psycopg.OperationalError(self._broken())
                self._failure = error_from_result(result, encoding=self._connection.info.encoding)
            return
        self._look()

    def _broken(self) -> str:
        return self._server.get_error_message() or "the connection is broken"

    def _look(self) -> None:
        """Send what is still to be sent, and wait until something arrives."""
        server = self._server
        give_up = None if self.patience is None else time.monotonic() + self.patience
        poll = select.poll()
        while True:
            poll.register(server.socket, select.POLLIN | (select.POLLOUT if server.flush() else 0))
            left = None if give_up is None else 1000 * (give_up - time.monotonic())
            happened = poll.poll(left if left is None or left > 0 else 0)
            if not happened:
                self._connection.close()
                raise psycopg.OperationalError(f"no answer within {self.patience:g} s")
            if any(event & ~select.POLLOUT for _, event in happened):
                server.consume_input()
                return
