"""How a task is to be treated, apart from what it does: `TaskOptions`, and how a `NewTask` is made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, cast, get_args

from outrider.core.errors import IdempotencyConflict, InvalidArguments, TooLarge
from outrider.core.ledger import TaskFilter
from outrider.core.meters import LIMITS
from outrider.core.queue import NEEDING, route_needing, route_within
from outrider.core.search import words
from outrider.core.session import Session
from outrider.core.task import (
    EXTERNAL,
    NO_TIMEOUTS,
    OWNED,
    ChildPolicy,
    Input,
    NewTask,
    Retry,
    State,
    Timeouts,
    WakePolicy,
    key_within,
)
from outrider.core.values import Instant, JSONObject, evolve
from outrider.runtime.clock import LONGEST, instant, span
from outrider.runtime.codec import check_size, jsonable, ordered
from outrider.runtime.ids import check_id, new_id
from outrider.runtime.labels import check_label
from outrider.runtime.registry import CheckedSpec, ModelTerms
from outrider.runtime.schemas import check_schema
from outrider.settings import CANCEL_GRACE, Limits

Length = timedelta | float
"""A length of time: a timedelta, or a number of seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """How a task is to be treated. Lengths of time are timedeltas or seconds.

    `id` and `idempotency_key` make creation idempotent. `delay` or `start_at` hold the task back. `concurrency_key`
    names the limit under which it runs, among those of its organization (see `Queue.limit`); while a task with this
    `debounce_key` has not started, another of its session changes it, and puts it off by its delay, `debounce_max` at
    most since its creation.
    Only a worker that states the label which a task `needs` runs it, and such a worker runs no others.
    `budget` bounds what the model calls of an agent's task take: any of `tokens`, `cost` (dollars), `requests`,
    `iterations`, `seconds` (from the first call), and `soft`, the share after which its session is told.
    `webhooks` are told of this task alone: URLs, or mappings with `url`, `events`, `secret`, `description`.
    `max_failures`, `concurrency_key`, `needs` and the `*_timeout`s left at None take the tool's own, then the defaults.
    """

    id: str | None = None
    idempotency_key: str | None = None
    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    wake: WakePolicy = "silent"
    priority: int = 0
    concurrency_key: str | None = None
    needs: str | None = None
    debounce_key: str | None = None
    debounce_max: Length | None = None
    delay: Length | None = None
    start_at: datetime | None = None
    depends_on: tuple[str, ...] = ()
    run_if_dependency_fails: bool = False
    max_failures: int | None = None
    backoff: Length | None = None
    backoff_max: Length | None = None
    queue_timeout: Length | None = None
    run_timeout: Length | None = None
    idle_timeout: Length | None = None
    total_timeout: Length | None = None
    cancel_grace: Length | None = None
    detached: bool = False
    on_open_children: ChildPolicy = "wait"
    headless: bool = False
    result_schema: JSONObject | None = None
    message_schema: JSONObject | None = None
    retry_of: str | None = None
    budget: Mapping[str, float] | None = None
    webhooks: Sequence[str | Mapping[str, Any]] = ()


DEFAULT_OPTIONS = TaskOptions()

MOST_PRIORITY = 1000
MOST_FAILURES = 1_000_000
LONGEST_PAGE = 10_000
LONGEST_SEARCH = 500
MOST_COST = 1e12
MOST_COUNT = (1 << 63) - 1
"""What every store can count to."""


def new_task(
    kind: str,
    checked: CheckedSpec,
    session: Session,
    options: TaskOptions,
    now: Instant,
    limits: Limits,
    parent_task_id: str | None = None,
) -> NewTask:
    """Make a task to be of a checked spec. Raises a Refused for options that make no sense."""
    if options is not DEFAULT_OPTIONS:
        check_options(options, limits)
    check_size("the spec of the task", checked.spec, limits.spec)
    described = (options.name, options.labels, options.origin, options.result_schema, options.message_schema)
    if any(described):
        check_size("the description of the task (name, labels, origin, schemas)", described, limits.spec)
    for schema in (options.result_schema, options.message_schema):
        if schema is not None:
            check_schema(schema)
    task_id = options.id or new_id("task")
    if task_id in options.depends_on:
        raise InvalidArguments("a task cannot depend on itself")
    given = Input(
        session_id=session.id,
        root_session_id=session.root_session_id,
        kind=kind,
        route=_route(kind, checked, options.needs or checked.needs, session),
        spec=checked.spec,
        created_at=now,
        organization_id=session.organization_id,
        parent_task_id=parent_task_id,
        display_name=options.name or checked.display_name,
        labels={str(name): str(value) for name, value in options.labels.items()},
        origin=jsonable(options.origin) if options.origin else {},
        wake_policy=options.wake,
        idempotency_key=options.idempotency_key,
        priority=options.priority,
        concurrency_key=_concurrency_key(checked, options, session),
        debounce_key=options.debounce_key,
        debounce_until=_debounce_until(options, now),
        depends_on=tuple(dict.fromkeys(options.depends_on)),
        run_if_dependency_fails=options.run_if_dependency_fails,
        detached=options.detached or checked.detached,
        headless=options.headless,
        on_open_children=options.on_open_children,
        retry=_retry(options, checked.retry or _RETRY),
        timeouts=_timeouts(options, checked.timeouts or NO_TIMEOUTS),
        cancel_grace=_cancel_grace(options),
        result_schema=options.result_schema,
        message_schema=options.message_schema,
        retry_of=options.retry_of,
        budget=_budget(options.budget, session.budget),
    )
    return NewTask(task_id, given, _not_before(options, now))


def _route(kind: str, checked: CheckedSpec, label: str | None, session: Session) -> str:
    if NEEDING in checked.route:
        raise InvalidArguments(f"what has {NEEDING!r} in its name cannot be asked for: {checked.route!r:.200}")
    if label is not None and kind == EXTERNAL:
        raise InvalidArguments(f"tasks of kind {EXTERNAL} go to a program by its name, and no label")
    if kind == EXTERNAL:
        return route_within(checked.route, session.organization_id)
    return route_needing(checked.route, label)


def _concurrency_key(checked: CheckedSpec, options: TaskOptions, session: Session) -> str | None:
    """What the caller names is the organization's; what a tool brings is common to all who use it, also by its name."""
    if options.concurrency_key in (None, checked.concurrency_key):
        return checked.concurrency_key
    return key_within(options.concurrency_key, session.organization_id)


def check_options(options: TaskOptions, limits: Limits) -> None:
    """Refuse what the record could not say."""
    if not isinstance(options, TaskOptions):
        raise InvalidArguments(f"options is a TaskOptions, not {options!r:.100}")
    if options.id is not None:
        check_id("task", options.id)
    check_priority(options.priority)
    check_flags(
        run_if_dependency_fails=options.run_if_dependency_fails, detached=options.detached, headless=options.headless
    )
    check_mappings(labels=options.labels, origin=options.origin)
    check_texts_if_given(retry_of=options.retry_of)
    check_ids(depends_on=options.depends_on)
    for name, value, choices in (
        ("wake", options.wake, get_args(WakePolicy)),
        ("on_open_children", options.on_open_children, get_args(ChildPolicy)),
    ):
        if value not in choices:
            raise InvalidArguments(f"{name} is one of {', '.join(choices)}, not {value!r:.100}")
    check_keys(options, limits)
    if options.needs is not None:
        check_label("needs", options.needs)
    if options.name is not None:
        check_name("name", options.name, limits.detail)
    check_budget("budget", options.budget)
    if options.debounce_key is not None and options.delay is None and options.start_at is None:
        raise InvalidArguments("a debounced task needs a delay: how long to wait for what follows")
    if options.debounce_max is not None and options.debounce_key is None:
        raise InvalidArguments("debounce_max bounds what a debounce_key puts off, and there is none")


def check_budget(what: str, budget: object) -> None:
    """Raise InvalidArguments for what is neither None nor a budget that bounds something."""
    if budget is None:
        return
    if not isinstance(budget, Mapping) or not set(budget) <= {*LIMITS, "soft"} or not set(budget) & set(LIMITS):
        raise InvalidArguments(f"{what} has some of {', '.join(LIMITS)}, and maybe soft, not {budget!r:.100}")
    for name, value in budget.items():
        is_count = name in ("tokens", "requests", "iterations")
        if is_count and not (is_whole(value) and 0 <= value <= MOST_COUNT):
            raise InvalidArguments(f"{name} of {what} is a whole number from 0, not {value!r:.100}")
        if not is_count and not (is_number(value) and 0 <= value <= MOST_COST):
            raise InvalidArguments(f"{name} of {what} is a number from 0, not {value!r:.100}")
    if not 0 < budget.get("soft", 1) <= 1:
        raise InvalidArguments(f"soft of {what} is a share above 0, and 1 at most")


def check_model_terms(terms: ModelTerms, limits: Limits) -> None:
    """Raise InvalidArguments or TooLarge for terms that nobody could keep."""
    check_name("the name of a model", terms.name, limits.name)
    for name in ("requests_per_minute", "tokens_per_minute"):
        value = getattr(terms, name)
        if value is not None and not (is_whole(value) and 1 <= value <= MOST_COUNT):
            raise InvalidArguments(f"{name} is a whole number from 1, not {value!r:.100}")
    for name in ("input_price", "output_price"):
        value = getattr(terms, name)
        if value is not None and not (is_number(value) and 0 <= value <= MOST_COST):
            raise InvalidArguments(f"{name} is in dollars for a million tokens, from 0, not {value!r:.100}")
    if (terms.input_price is None) != (terms.output_price is None):
        raise InvalidArguments(f"{terms.name!r} needs both prices, or none")


def is_number(value: object) -> bool:
    """Whether it is a number that can be counted with; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _budget(own: Mapping[str, float] | None, session: JSONObject | None) -> JSONObject | None:
    """What the task may spend, with what its session and its tree may, where they are bounded."""
    if own is None and session is None:
        return None
    return {**(own or {}), **(session or {})}


def check_keys(given: TaskOptions | Input, limits: Limits) -> None:
    """Raise InvalidArguments or TooLarge for a key that the queue cannot go by."""
    for name in ("idempotency_key", "debounce_key", "concurrency_key"):
        key = getattr(given, name)
        if key is not None:
            check_key(name, key, limits.name)


def check_key(what: str, key: object, longest: int) -> None:
    """Raise InvalidArguments or TooLarge for what nobody may name a key."""
    check_name(what, key, longest)
    if OWNED in cast(str, key):
        raise InvalidArguments(f"{what} has a character in it that no key has: {key!r:.100}")


def check_name(what: str, text: object, longest: int) -> None:
    """Raise InvalidArguments for what is no text or none at all, TooLarge for more characters than that.

    A NUL is refused, since databases end texts with it, and so is what no encoding of text can say.
    """
    if not isinstance(text, str) or not text:
        raise InvalidArguments(f"{what} is text, and not empty")
    if "\0" in text or any("\ud800" <= each <= "\udfff" for each in text):
        raise InvalidArguments(f"{what} has a NUL or half of a surrogate pair in it: {text!r:.100}")
    if len(text) > longest:
        raise TooLarge.of(f"{what}, in characters,", len(text), longest)


def check_texts(**given: object) -> None:
    """Raise InvalidArguments for what is no text: a record that holds it could be read by nobody."""
    for name, value in given.items():
        if not isinstance(value, str):
            raise InvalidArguments(f"{name} is text, not {value!r:.100}")
        if not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
            raise InvalidArguments(f"{name} is no Unicode text: {value!r:.100}")


def check_texts_if_given(**given: object) -> None:
    """Like `check_texts`, and None will do."""
    check_texts(**{name: value for name, value in given.items() if value is not None})


def check_flags(**given: object) -> None:
    """Raise InvalidArguments for what is neither True nor False: what a text says would be taken for True."""
    for name, value in given.items():
        if not isinstance(value, bool):
            raise InvalidArguments(f"{name} is True or False, not {value!r:.100}")


def check_mappings(**given: object) -> None:
    """Raise InvalidArguments for what is no mapping with text for keys."""
    for name, value in given.items():
        if type(value) is not dict and not isinstance(value, Mapping):
            raise InvalidArguments(f"{name} is a mapping, not {value!r:.100}")
        for key in value:
            if not isinstance(key, str):
                raise InvalidArguments(f"the keys of {name} are text: {value!r:.100}")


def check_lists(**given: object) -> None:
    """Raise InvalidArguments for what is no list. A text is none: its characters are what nobody means."""
    for name, value in given.items():
        if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
            raise InvalidArguments(f"{name} is a list, not {value!r:.100}")


def check_ids(**given: object) -> None:
    """Raise InvalidArguments for what is no list or tuple of texts."""
    for name, value in given.items():
        if not isinstance(value, list | tuple):
            raise InvalidArguments(f"{name} is a list of ids, not {value!r:.100}")
        for each in value:
            check_texts(**{f"an id of {name}": each})


def check_count(what: str, value: object) -> None:
    """Raise InvalidArguments for what is no place in a sequence: a whole number from 0."""
    if not is_whole(value) or not 0 <= cast(int, value) <= MOST_COUNT:
        raise InvalidArguments(f"{what} is a whole number from 0, not {value!r:.100}")


def check_filter(filter: TaskFilter) -> None:
    """Raise InvalidArguments for a filter that no list can go by."""
    if not isinstance(filter, TaskFilter):
        raise InvalidArguments(f"a filter is a TaskFilter, not {filter!r:.100}")
    texts = ("session_id", "root_session_id", "parent_task_id", "organization_id", "kind", "after", "text")
    check_texts_if_given(**{name: getattr(filter, name) for name in texts})
    check_mappings(labels=filter.labels)
    check_texts(**{f"the label {name}": value for name, value in filter.labels.items()})
    check_flags(newest_first=filter.newest_first)
    check_page(filter.limit)
    if filter.states is not None:
        states_of(filter.states)
    for name in ("created_after", "created_before"):
        if (moment := getattr(filter, name)) is not None and not (is_whole(moment) and abs(moment) <= MOST_COUNT):
            raise InvalidArguments(f"{name} is a datetime with a time zone, not {moment!r:.100}")
    if filter.text is not None:
        if len(filter.text) > LONGEST_SEARCH:
            raise InvalidArguments(f"the text to search for has {LONGEST_SEARCH} characters at most")
        if not words(filter.text):
            raise InvalidArguments(f"{filter.text!r:.100} has no word in it that could be searched for")


def filter_of(given: Mapping[str, Any]) -> TaskFilter:
    """The filter of these fields, with datetimes for moments and names for states. Raises InvalidArguments."""
    known = [field.name for field in fields(TaskFilter)]
    for name in given:
        if name not in known:
            raise InvalidArguments(f"tasks cannot be filtered by {name!r}; known: {', '.join(known)}")
    if given.get("states") is not None:
        given = {**given, "states": states_of(given["states"])}
    for name in ("created_after", "created_before"):
        if isinstance(given.get(name), datetime):
            given = {**given, name: instant(given[name])}
    return TaskFilter(**given)


def states_of(given: Any) -> tuple[State, ...]:
    """The states that a caller names, in a list or alone. Raises InvalidArguments for what is none."""
    names = given if isinstance(given, list | tuple | set | frozenset) else [given]
    try:
        return tuple(State(name) for name in names)
    except ValueError:
        raise InvalidArguments(f"states are some of {', '.join(State)}, not {given!r:.100}") from None


def check_priority(priority: object) -> None:
    """Raise InvalidArguments for what is no priority."""
    if not is_whole(priority) or abs(cast(int, priority)) > MOST_PRIORITY:
        raise InvalidArguments(f"priority is a whole number from -{MOST_PRIORITY} to {MOST_PRIORITY}")


def check_page(limit: int) -> int:
    """Return how many a page is to have. Raises InvalidArguments for what no page has."""
    if not is_whole(limit) or not 1 <= limit <= LONGEST_PAGE:
        raise InvalidArguments(f"limit is a whole number from 1 to {LONGEST_PAGE:,}")
    return limit


def is_whole(value: object) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_same(asked: Input, task_id: str, there: Input) -> None:
    """Creating twice is fine, whoever does it; raises IdempotencyConflict for something else under the same name."""
    comparable = evolve(asked, created_at=there.created_at, origin=there.origin)
    if asked.key_name == there.key_name:  # before keys belonged to organizations it was made under the bare name
        comparable = evolve(comparable, concurrency_key=there.concurrency_key)
    if jsonable(comparable) == jsonable(there) and _told(asked) == _told(there):
        return
    name = f"idempotency key {asked.idempotency_key!r}" if asked.idempotency_key else f"id {task_id!r}"
    raise IdempotencyConflict(f"{name} was used before, for another task: {task_id}", details={"task_id": task_id})


def _told(given: Input) -> bytes:
    """What is the caller's own JSON: there True, 1 and 1.0 are three values, which for Python are one."""
    return ordered([given.spec, given.result_schema, given.message_schema])


_RETRY = Retry()
_CANCEL_GRACE = span(CANCEL_GRACE)


def retry_policy(base: Retry, max_failures: int | None, backoff: Length | None, backoff_max: Length | None) -> Retry:
    """Return a retry policy, each part left at None taken from `base`."""
    if max_failures is None and backoff is None and backoff_max is None:
        return base
    if max_failures is not None and not (is_whole(max_failures) and 1 <= max_failures <= MOST_FAILURES):
        raise InvalidArguments(f"max_failures is a whole number from 1, which means no retry, to {MOST_FAILURES}")
    return Retry(
        max_failures=base.max_failures if max_failures is None else max_failures,
        initial=base.initial if backoff is None else not_negative("backoff", backoff),
        factor=base.factor,
        maximum=base.maximum if backoff_max is None else not_negative("backoff_max", backoff_max),
    )


def timeouts_of(
    base: Timeouts,
    queue: Length | None = None,
    run: Length | None = None,
    idle: Length | None = None,
    total: Length | None = None,
) -> Timeouts:
    """Return timeouts, each part left at None taken from `base`."""
    if queue is None and run is None and idle is None and total is None:
        return base
    return Timeouts(
        queue=base.queue if queue is None else _timeout("queue_timeout", queue),
        run=base.run if run is None else _timeout("run_timeout", run),
        idle=base.idle if idle is None else _timeout("idle_timeout", idle),
        total=base.total if total is None else _timeout("total_timeout", total),
    )


def _retry(options: TaskOptions, base: Retry) -> Retry:
    return retry_policy(base, options.max_failures, options.backoff, options.backoff_max)


def _timeouts(options: TaskOptions, base: Timeouts) -> Timeouts:
    return timeouts_of(base, options.queue_timeout, options.run_timeout, options.idle_timeout, options.total_timeout)


def _cancel_grace(options: TaskOptions) -> int:
    return _CANCEL_GRACE if options.cancel_grace is None else not_negative("cancel_grace", options.cancel_grace)


def not_negative(name: str, length: Length) -> int:
    """A length of time in microseconds. Raises InvalidArguments with the name that it goes by."""
    try:
        value = span(length)
    except InvalidArguments as error:
        raise InvalidArguments(f"{name}: {error.message}") from None
    if value < 0:
        raise InvalidArguments(f"{name} cannot be negative")
    return value


def _timeout(name: str, length: Length) -> int:
    value = not_negative(name, length)
    if value == 0:
        raise InvalidArguments(f"{name} is more than 0, at which nothing could ever run; leave it out for no such end")
    return value


def _debounce_until(options: TaskOptions, now: Instant) -> Instant | None:
    return None if options.debounce_max is None else now + not_negative("debounce_max", options.debounce_max)


def _not_before(options: TaskOptions, now: Instant) -> Instant | None:
    if options.delay is not None and options.start_at is not None:
        raise InvalidArguments("give delay or start_at, not both")
    if options.delay is not None:
        return now + not_negative("delay", options.delay)
    if options.start_at is not None:
        try:
            moment = instant(options.start_at)
        except InvalidArguments as error:
            raise InvalidArguments(f"start_at: {error.message}") from None
        if moment - now > span(LONGEST):
            raise InvalidArguments("start_at is within a hundred years")
        return moment
    return None
