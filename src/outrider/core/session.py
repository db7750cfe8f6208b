"""The session: who owns tasks, files, an inbox and an event log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from outrider.core.task import DEFAULT_ORGANIZATION
from outrider.core.values import Instant, JSONObject


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session that does not exist yet. The program makes the id."""

    id: str
    created_at: Instant
    organization_id: str = DEFAULT_ORGANIZATION
    root_session_id: str | None = None
    """The session at the top of the delegation tree; None for one that is its own root."""
    parent_session_id: str | None = None
    parent_task_id: str | None = None
    agent: str | None = None
    title: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    budget: JSONObject | None = None
    """What its tasks may spend, as `session`, and those of its whole tree, as `tree`; see `meters.taps_of`."""


@dataclass(frozen=True, slots=True)
class Seed:
    """What a new session begins with, of another one's.

    `entries` says how many of its transcript it takes, from the first on: with them it is a fork. None takes nothing of
    it, and makes no fork. `files` are its own files, without those in the folders of its tasks.
    """

    session_id: str
    entries: int | None = None
    files: bool = False

    @property
    def forked_from(self) -> str | None:
        """The session of which the new one is a fork, if it is one."""
        return None if self.entries is None else self.session_id


@dataclass(frozen=True, slots=True)
class Grant:
    """What somebody last said of a tool in a session: that it needs no more approval there, or that it does again.

    `at` is when that was said; `task_id` names the task whose question was answered so.
    """

    session_id: str
    tool: str
    is_allowed: bool
    at: Instant
    by: str | None = None
    via: str | None = None
    task_id: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """One conversation or job owner. `last_seq` is the number of its newest event."""

    id: str
    organization_id: str
    root_session_id: str
    parent_session_id: str | None
    parent_task_id: str | None
    agent: str | None
    title: str | None
    labels: Mapping[str, str]
    driver_task_id: str | None
    """The task that takes the session's turn now; appends to its transcript are fenced by it."""
    last_seq: int
    created_at: Instant
    updated_at: Instant
    budget: JSONObject | None = None
    closed_at: Instant | None = None
    """Since when it takes nothing any more; what is in it goes on to its end."""
    forked_from: str | None = None
    """The session with whose transcript it began."""

    @classmethod
    def of(cls, new: NewSession, seed: Seed | None) -> Session:
        """The session as it is before its first log entry."""
        return cls(
            id=new.id,
            organization_id=new.organization_id,
            root_session_id=new.root_session_id or new.id,
            parent_session_id=new.parent_session_id,
            parent_task_id=new.parent_task_id,
            agent=new.agent,
            title=new.title,
            labels=new.labels,
            driver_task_id=None,
            last_seq=0,
            created_at=new.created_at,
            updated_at=new.created_at,
            budget=new.budget,
            forked_from=None if seed is None else seed.forked_from,
        )
