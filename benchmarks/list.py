"""Pages of 100 among a million tasks: every filter alone and every two of them together, whatever they leave.

What there is was written through the seam, oldest first, and was taken into the index before anything is timed; on
PostgreSQL it was vacuumed too, which the server would do by itself a minute later, in the midst of the pages. Values
are chosen to hurt: some have half of all tasks and nothing in common, some a single task at the far end, some none.
Every page is compared with what was put in. `page_p95_ms` is that of the slowest filter or pair; `page_cpu_ms` is the
most processor time that any takes here as a rule, to which other work on the machine adds less.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations, islice
from typing import Any, TypeAlias

from benchmarks import bare_postgres, work
from benchmarks.harness import Figures, Place, Settings, check, percentile
from outrider.core import machine
from outrider.core.change import Change
from outrider.core.events import CancelRequested, Claimed, Event, Failed, Succeeded
from outrider.core.ledger import Committed, Ledger, TaskFilter, Views
from outrider.core.session import NewSession
from outrider.core.task import Input, NewTask, State, TaskError
from outrider.core.values import SECOND, Instant, evolve
from outrider.runtime.collecting import leave_program_alone
from outrider.runtime.indexing import take_in

KEYS = ("page_p95_ms", "page_p50_ms", "page_cpu_ms", "slowest_single_p95_ms", "indexed_per_s", "index_bytes_per_task")

PAGE = 100
TIMES = 8
"""How often each page is read; with `--full` more often."""
TIMES_FULL = 20
BATCH = 500
LONG_AGO: Instant = 1_700_000_000 * SECOND
SESSIONS = 1_000
ORGANIZATION = "org_default"
VOCABULARY = tuple(
    f"{a}{b}{c}" for a in "bcdfghjklm" for b in ("an", "er", "ix", "od", "ut") for c in ("o", "ia", "el")
)


def tasks(settings: Settings) -> int:
    """How many tasks there are."""
    return 1_000_000 if settings.full else 100_000


async def run(place: Place) -> Figures:
    """Read every page, on a store that the first round fills."""
    check(place.settings.store != "memory", "a store in memory looks at every task, and has no index to measure")
    url, note = place.shared_url("list"), place.shared / "list.indexed"
    async with work.app.open(url, worker=False) as outrider:
        if not note.exists():
            note.write_text("{} {}".format(*await _fill(outrider.ledger, place.tasks)))
            if place.settings.store == "postgres":
                await asyncio.to_thread(bare_postgres.settle, url)
        speed, size = map(float, note.read_text().split())
        leave_program_alone()  # as `outrider serve` does
        spent, worked = await _read_all(
            outrider.ledger.views, place.tasks, TIMES_FULL if place.settings.full else TIMES
        )
    slowest = sorted(spent, key=lambda name: percentile(spent[name], 0.95), reverse=True)
    for name in slowest[:8]:
        print(f"  {name:<60} {percentile(spent[name], 0.95):6.1f} ms", flush=True)
    return {
        "page_p95_ms": percentile(spent[slowest[0]], 0.95),
        "page_p50_ms": percentile([each for times in spent.values() for each in times], 0.5),
        "page_cpu_ms": max(percentile(each, 0.5) for each in worked.values()),
        "slowest_single_p95_ms": max(percentile(spent[name], 0.95) for name in spent if "+" not in name),
        "indexed_per_s": speed,
        "index_bytes_per_task": size,
    }


# --- what there is -------------------------------------------------------------------------------------


async def _fill(ledger: Ledger, count: int) -> tuple[float, float]:
    """Write the tasks, then index them; return how many a second, and what that took on the disk for each."""
    for number in range(SESSIONS):
        root = _session(0) if 0 < number < 10 else None
        await ledger.create_session(NewSession(_session(number), LONG_AGO, root_session_id=root))
    changes = _changes(count)
    while batch := list(islice(changes, BATCH)):
        verdicts = await ledger.commit(batch)
        check(all(isinstance(verdict, Committed) for verdict in verdicts), "the tasks could not be written")
    before = (await ledger.views.statistics(LONG_AGO)).storage.size
    started = time.perf_counter()
    while await take_in(ledger):
        pass
    spent = time.perf_counter() - started
    return count / spent, ((await ledger.views.statistics(LONG_AGO)).storage.size - before) / count


def _session(number: int) -> str:
    return f"sess_{number:032x}"


def _id(number: int) -> str:
    return f"task_{number:032x}"


def _session_number(number: int) -> int:
    """Every other task is in the first session; the next nine are below it."""
    return 0 if number % 2 == 0 else number // 2 % SESSIONS


def _kind(number: int, count: int) -> str:
    if number == 7:
        return "rare_kind"
    return "background_tool" if number < count // 2 else "subagent"


def _labels(number: int, count: int) -> dict[str, str]:
    labels = {"half": "new" if number >= count // 2 else "old", "customer": f"c{number % 5000}"}
    return labels | ({"once": "yes"} if number == 11 else {})


def _text(number: int) -> str:
    words = [VOCABULARY[(number * step + number // 97) % len(VOCABULARY)] for step in range(1, 9)]
    return " ".join([*words, "xylophone" if number in (13, 14) else "please", "odd" if number % 2 else "even"])


def _state(number: int, count: int) -> State:
    if number < 20:
        return State.QUEUED
    if number % 1000 == 5 and number > count // 2:
        return State.CANCELED
    return State.FAILED if number % 2 else State.SUCCEEDED


def _changes(count: int) -> Iterator[Change]:
    for number in range(count):
        at = LONG_AGO + number * 1000
        owner = _session_number(number)
        given = Input(
            session_id=_session(owner),
            root_session_id=_session(0 if owner < 10 else owner),
            parent_task_id=_id(3) if number % 3 == 1 else None,
            kind=_kind(number, count),
            route="background_tool:echo",
            spec={"tool": "echo", "prompt": _text(number)},
            created_at=at,
            labels=_labels(number, count),
            display_name="echo",
        )
        yield _life(machine.create(NewTask(_id(number), given), at), _events(_state(number, count)), at)


def _events(state: State) -> tuple[Event, ...]:
    match state:
        case State.QUEUED:
            return ()
        case State.CANCELED:
            return (CancelRequested(),)
        case State.FAILED:
            return Claimed("worker_of_the_past"), Failed(1, TaskError("exception", "it broke"), retryable=False)
        case _:
            return Claimed("worker_of_the_past"), Succeeded(1, b"0")


def _life(change: Change, events: tuple[Event, ...], at: Instant) -> Change:
    """A creation and what follows, as one Change."""
    logged = change.events
    for step, event in enumerate(events, 1):
        change = machine.apply(change.task, event, at + step)
        logged = (*logged, *change.events)
    return evolve(change, before=None, events=logged, live_changed=True)


# --- what is asked for ---------------------------------------------------------------------------------

Admits: TypeAlias = Callable[[int], bool]
Times: TypeAlias = Mapping[str, list[float]]


def _filters(count: int) -> Mapping[str, tuple[Mapping[str, Any], Admits]]:
    """Fields of a filter by name, and which numbers they admit."""
    half, tenth = count // 2, count // 10

    def at(number: int) -> Instant:
        return LONG_AGO + number * 1000

    def of_session(number: int) -> Admits:
        return lambda n: _session_number(n) == number

    return {
        "state:succeeded": ({"states": (State.SUCCEEDED,)}, lambda n: _state(n, count) is State.SUCCEEDED),
        "state:failed": ({"states": (State.FAILED,)}, lambda n: _state(n, count) is State.FAILED),
        "state:canceled": ({"states": (State.CANCELED,)}, lambda n: _state(n, count) is State.CANCELED),
        "state:queued": ({"states": (State.QUEUED, State.RUNNING)}, lambda n: n < 20),
        "state:none": ({"states": (State.AWAITING_INPUT,)}, lambda _: False),
        "kind:old": ({"kind": "background_tool"}, lambda n: _kind(n, count) == "background_tool"),
        "kind:new": ({"kind": "subagent"}, lambda n: _kind(n, count) == "subagent"),
        "kind:rare": ({"kind": "rare_kind"}, lambda n: n == 7),
        "kind:none": ({"kind": "no_kind"}, lambda _: False),
        "label:old": ({"labels": {"half": "old"}}, lambda n: n < half),
        "label:new": ({"labels": {"half": "new"}}, lambda n: n >= half),
        "label:customer": ({"labels": {"customer": "c4321"}}, lambda n: n % 5000 == 4321),
        "label:once": ({"labels": {"once": "yes"}}, lambda n: n == 11),
        "created:old": ({"created_before": at(tenth)}, lambda n: n < tenth),
        "created:range": (
            {"created_after": at(tenth), "created_before": at(tenth + 50)},
            lambda n: 0 <= n - tenth < 50,
        ),
        "created:new": ({"created_after": at(half)}, lambda n: n >= half),
        "session:large": ({"session_id": _session(0)}, of_session(0)),
        "session:small": ({"session_id": _session(500)}, of_session(500)),
        "root": ({"root_session_id": _session(0)}, lambda n: _session_number(n) < 10),
        "parent": ({"parent_task_id": _id(3)}, lambda n: n % 3 == 1),
        "organization": ({"organization_id": ORGANIZATION}, lambda _: True),
        "text:even": ({"text": "even"}, lambda n: n % 2 == 0),
        "text:odd": ({"text": "odd please"}, lambda n: n % 2 == 1 and n not in (13, 14)),
        "text:word": ({"text": "banel"}, lambda n: "banel" in _text(n).split()),
        "text:begins": (
            {"text": "PLEASE ba"},
            lambda n: n not in (13, 14) and any(word.startswith("ba") for word in _text(n).split()),
        ),
        "text:rare": ({"text": "xylo"}, lambda n: n in (13, 14)),
        "text:never": ({"text": "zebra"}, lambda _: False),
        "text:id": ({"text": _id(17)}, lambda n: n == 17),
    }


async def _read_all(views: Views, count: int, times: int = TIMES) -> tuple[Times, Times]:
    """The milliseconds that each page took, and what of that this process worked."""
    known = _filters(count)
    sets = {name: _set_of(admits, count) for name, (_, admits) in known.items()}
    asked: dict[str, tuple[dict[str, Any], int]] = {"all": ({}, (1 << count) - 1)}
    asked |= {name: (dict(fields), sets[name]) for name, (fields, _) in known.items()}
    for one, other in combinations(known, 2):
        fields, others = known[one][0], known[other][0]
        if not fields.keys() & others.keys():
            asked[f"{one} + {other}"] = {**fields, **others}, sets[one] & sets[other]
    spent: dict[str, list[float]] = {name: [] for name in asked}
    worked: dict[str, list[float]] = {name: [] for name in asked}
    for name, (fields, admitted) in asked.items():
        filter = TaskFilter(**fields, limit=PAGE)
        for turn in range(times):
            page = _turned(filter, turn, count)
            began, idle = time.perf_counter(), time.process_time()
            found = await views.list_tasks(page)
            spent[name].append((time.perf_counter() - began) * 1000)
            worked[name].append((time.process_time() - idle) * 1000)
            wanted = _page_of(admitted, page, count)
            check([task.id for task in found] == wanted, f"the page of {name} ({page}) is not what was put in")
        await asyncio.sleep(0)
    return spent, worked


def _turned(filter: TaskFilter, turn: int, count: int) -> TaskFilter:
    """The first page, mostly; at times the oldest first, or one from the middle."""
    match turn % 4:
        case 1:
            return replace(filter, newest_first=False)
        case 3:
            return replace(filter, after=_id(count // 3))
        case _:
            return filter


def _set_of(admits: Admits, count: int) -> int:
    """A bit for each number that is admitted."""
    return int("".join("1" if admits(number) else "0" for number in reversed(range(count))), 2)


def _page_of(admitted: int, page: TaskFilter, count: int) -> list[str]:
    if page.after is not None:
        admitted &= (1 << count // 3) - 1
    found: list[str] = []
    while admitted and len(found) < PAGE:
        place = admitted.bit_length() - 1 if page.newest_first else (admitted & -admitted).bit_length() - 1
        found.append(_id(place))
        admitted ^= 1 << place
    return found
