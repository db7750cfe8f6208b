"""Who may start, where and in which order: ranks, routes, the limits behind a `concurrency_key`, and pauses.

The order is one number on each route, lower first, fixed when a task is made or becomes due again:

    rank = place - priority x ageing

The turn of a route is the highest rank that was ever taken from it. A task of a session of which nothing waits there is
placed by its moment, but never far behind the turn, however late the route is; where more such sessions of one
organization wait, one behind the other; and each further task of a session behind its last one. So who submits a
thousand tasks queues behind itself, and has a turn now and again beside all others, not before them.

What would be taken next and may not be is *set aside*: `blocked`, out of the way of the claims that follow, until
its key has a free place or its session is resumed. A key that nobody has set a limit for admits one task at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from outrider.core.task import DEFAULT_ORGANIZATION, OWNED, split_key
from outrider.core.values import SECOND, Instant, Span

AGEING: Span = 10 * SECOND
"""How much waiting one point of priority is worth."""

SPACING: Span = AGEING
"""How far apart the new tasks of one session stand in the queue: as far as a point of priority moves one."""

GAP: Span = SPACING // 10
"""How far apart the sessions of one organization stand that come while others of it wait."""

PATIENCE: Span = SPACING
"""How far behind the turn of its route a task may be placed that nothing of its own stands before."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Where a route has come to, and where the lines of an organization and a session on it end; None for nowhere."""

    turn: Instant | None = None
    organization: Instant | None = None
    session: Instant | None = None


def rank_of_new(due_at: Instant, priority: int, lines: Lines) -> tuple[int, Lines]:
    """Return the rank of a session's new task on a route, which is due, and the lines after it."""
    turn = due_at - 1 if lines.turn is None else lines.turn
    place, organization = _reached(due_at, turn), lines.organization
    if lines.session is not None and lines.session > turn:
        place = max(place, lines.session + SPACING)
    else:
        place = place if organization is None else max(place, organization + GAP)
        organization = place
    return place - priority * AGEING, Lines(turn, organization, place)


def rank_of_resumed(due_at: Instant, priority: int, turn: Instant | None) -> int:
    """Return the rank of a task that becomes due later, or again: it stands in no line, which it would hold up.

    Without a turn it is the rank of one that is not due yet; it is given another when it is.
    """
    return (due_at if turn is None else _reached(due_at, turn)) - priority * AGEING


def turn_after(turn: Instant | None, rank: int) -> Instant:
    """Return the turn of a route after a task of that rank was taken from it."""
    return rank if turn is None else max(turn, rank)


def _reached(due_at: Instant, turn: Instant) -> Instant:
    return max(turn + 1, min(due_at, turn + 1 + PATIENCE))


def rank_of_moved(rank: int, before: int, after: int) -> int:
    """Return the rank of a task that was given another priority: it keeps the time that it has waited."""
    return rank - (after - before) * AGEING


# --- limits ------------------------------------------------------------------------------------------

EVERY = "*"
"""Ends the key of a limit that holds for each key which begins like it, each counted for itself."""

SLICES = 100
"""Into how many slices a rate's span is cut. Starts are counted by slice, and return when all of it is past."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What a `concurrency_key` admits: `capacity` tasks held at once, `rate` starts in any `span`; None for no bound.

    The name of `key` ends in `*` where it means every key that begins like it. One that belongs to no organization
    holds for those of every organization that has no limit of its own for it, each counted for itself.
    """

    key: str
    capacity: int | None = None
    rate: int | None = None
    span: Span = SECOND


Spent: TypeAlias = tuple[tuple[Instant, int], ...]
"""The starts of a key that count against its rate: how many in the slice that begins then, oldest first."""


LATE: Span = 10 * SECOND
"""By how much the moment of a claim may lie behind that of one that was committed before it: it waited its turn."""


def starts_left(limit: Limit, spent: Spent, now: Instant) -> int | None:
    """How many more may start now by the rate of a limit; None for any number.

    In no span, wherever it begins, are there more starts than `rate`: a start counts until the whole slice that it
    fell into is a span past. One that lies ahead was counted by a claim that was faster; if it lies further ahead, the
    clock was put back, and it counts from now.
    """
    if limit.rate is None:
        return None
    if spent and _memory(limit) < spent[-1][0] - now <= LATE:
        return 0  # so late that the starts before it may be forgotten
    return max(0, limit.rate - starts_out(limit, spent, now))


def starts_out(limit: Limit, spent: Spent, now: Instant) -> int:
    """How many starts have not returned to the rate of a limit."""
    return sum(count for at, count in spent if _returns_at(limit, _seen(at, now)) > now)


def spend(limit: Limit, spent: Spent, now: Instant, starts: int) -> Spent:
    """Count so many starts now, and forget what returned so long ago that no late claim has to know of it."""
    width = _width(limit)
    here = now - now % width
    counted: dict[Instant, int] = {}
    for at, count in (*spent, (here, starts)):
        if _seen(at, now) != at:
            at = here
        if count and _returns_at(limit, at) + _memory(limit) > now:
            counted[at] = counted.get(at, 0) + count
    return tuple(sorted(counted.items()))


def next_return(limit: Limit, spent: Spent, now: Instant) -> Instant | None:
    """When the next start returns to the rate of a limit; None when none is out, or nothing is counted."""
    if limit.rate is None:
        return None
    moments = (_returns_at(limit, _seen(at, now)) for at, _ in spent)
    return min((at for at in moments if at > now), default=None)


def has_returned(limit: Limit, spent: Spent, now: Instant) -> bool:
    """Whether none of a key's starts counts any more, for a claim that comes late either: they may be forgotten."""
    return limit.rate is None or all(_returns_at(limit, _seen(at, now)) + LATE <= now for at, _ in spent)


def _seen(at: Instant, now: Instant) -> Instant:
    return at if at <= now + LATE else now


def _memory(limit: Limit) -> Span:
    return min(limit.span, LATE)


def _width(limit: Limit) -> Span:
    return max(1, limit.span // SLICES)


def _returns_at(limit: Limit, at: Instant) -> Instant:
    return at + _width(limit) + limit.span


# --- pauses ------------------------------------------------------------------------------------------

Scope: TypeAlias = Literal["everything", "kind", "session"]


@dataclass(frozen=True, slots=True)
class Pause:
    """Tasks of a kind, of a session, or all of them, are not started; those that run go on. `name` is empty for all."""

    scope: Scope
    name: str = ""
    at: Instant = 0
    by: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Gates:
    """All limits and pauses of a database at one moment."""

    limits: Mapping[str, Limit]
    everything: Pause | None
    kinds: Mapping[str, Pause]
    sessions: Mapping[str, Pause]
    wide: Sequence[Limit] = ()
    """Those of the limits that mean many keys."""

    def pauses(self) -> Mapping[tuple[Scope, str], Pause]:
        """All that is paused, by scope and name."""
        all_of_it = () if self.everything is None else (self.everything,)
        return {(each.scope, each.name): each for each in (*all_of_it, *self.kinds.values(), *self.sessions.values())}

    @classmethod
    def of(cls, limits: Iterable[Limit], pauses: Sequence[Pause]) -> Gates:
        """Sort out what is in force."""
        of_keys = {limit.key: limit for limit in limits}
        return cls(
            of_keys,
            next((pause for pause in pauses if pause.scope == "everything"), None),
            {pause.name: pause for pause in pauses if pause.scope == "kind"},
            {pause.name: pause for pause in pauses if pause.scope == "session"},
            [limit for key, limit in of_keys.items() if split_key(key)[0].endswith(EVERY)],
        )

    @property
    def is_paused(self) -> bool:
        """Whether anything is."""
        return self.everything is not None or bool(self.kinds) or bool(self.sessions)

    def limit(self, key: str) -> Limit:
        """The limit of a key: of its organization, else the one for all, else one at a time.

        Of either its own counts, else that of the longest beginning.
        """
        name, owner = split_key(key)
        own = None if owner is None else self._limit_of(name, OWNED + owner)
        return own or self._limit_of(name, "") or _ALONE

    def _limit_of(self, name: str, whose: str) -> Limit | None:
        found = self.limits.get(name + whose)
        if found is not None:
            return found
        end = EVERY + whose
        meant = [each for each in self.wide if each.key.endswith(end) and name.startswith(each.key[: -len(end)])]
        return max(meant, key=lambda limit: len(limit.key), default=None)

    def routes(self, routes: Iterable[str]) -> tuple[str, ...]:
        """Those of the routes, each once, whose tasks may start."""
        if self.everything is not None:
            return ()
        return tuple(route for route in dict.fromkeys(routes) if kind_of(route) not in self.kinds)

    def pause_of(self, kind: str, session_id: str) -> Pause | None:
        """What holds back the tasks of a kind in a session, the widest first."""
        return self.everything or self.kinds.get(kind) or self.sessions.get(session_id)


NO_GATES = Gates({}, None, {}, {})
_ALONE = Limit("", capacity=1)


# --- routes ------------------------------------------------------------------------------------------

NEEDING = " @"
"""Stands in a route before the label that a task of it needs."""


def route_needing(route: str, label: str | None) -> str:
    """The route of those tasks that need a label: one of its own, so that a claim compares routes and nothing else."""
    return route if label is None else f"{route}{NEEDING}{label}"


def route_within(route: str, organization_id: str) -> str:
    """The route of tasks that no worker runs, for the programs of one organization: in the place of a label."""
    return route_needing(route, None if organization_id == DEFAULT_ORGANIZATION else organization_id)


def split_route(route: str) -> tuple[str, str | None]:
    """The kind, or `kind:name`, of a route, and the label that its tasks need, if they need one."""
    plain, _, label = route.partition(NEEDING)
    return plain, label or None


def kind_of(route: str) -> str:
    """The kind that a route belongs to."""
    return split_route(route)[0].partition(":")[0]
