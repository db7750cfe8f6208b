"""What was spent, and what of which budget: the sums over a session or a tree, and the accounts that bound them.

`usage` is what tasks reported of themselves; an account counts what was reserved and settled, so it also has what lost
attempts may have spent, and its `spent` may be more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outrider.core.ledger import Views
from outrider.core.meters import (
    NOTHING,
    SESSION,
    TASK,
    TREE,
    Account,
    Amounts,
    Budget,
    told_amounts,
    told_budget,
    told_millionths,
)
from outrider.core.session import Session
from outrider.core.task import Task, Usage
from outrider.core.values import Instant
from outrider.runtime.records import AccountRecord, SpentRecord


async def usage_of_task(views: Views, task: Task) -> SpentRecord:
    """What a task has used, and its accounts."""
    told = task.input.budget or {}
    names = [TASK + task.id]
    names += [SESSION + task.session_id] if "session" in told else []
    names += [TREE + task.input.root_session_id] if "tree" in told else []
    accounts = [each for each in await _accounts(views, names) if told_budget(each.budget)]
    return _record(task.live.usage, accounts)


@dataclass(frozen=True, slots=True)
class Taken:
    """What a task took of the budgets that it is under: `unknown` is a part of `spent`. `began_at`: its first call."""

    spent: Amounts
    unknown: Amounts = NOTHING
    began_at: Instant | None = None
    is_marked: bool = False


async def taken_by(views: Views, task: Task) -> Taken:
    """What a task took by its account, and by what it reported where it had none."""
    found = await _accounts(views, [TASK + task.id])
    if not found:
        return Taken(reported_by(task))
    (own,) = found
    return Taken(own.spent.at_least(reported_by(task)), own.unknown, own.began_at, own.is_marked)


def reported_by(task: Task) -> Amounts:
    """What a task says that it used."""
    used = task.live.usage
    tokens = used.input_tokens + used.output_tokens
    return Amounts(used.requests, tokens, told_millionths(used.cost), task.live.iterations)


async def usage_of_session(views: Views, session: Session, *, tree: bool) -> SpentRecord:
    """What the tasks of a session have used, or those of its whole tree, and the account that bounds them."""
    if not tree:
        name, told, of = SESSION + session.id, (session.budget or {}).get("session"), session.id
    else:
        name, told, of = TREE + session.root_session_id, (session.budget or {}).get("tree"), session.root_session_id
    accounts = await _accounts(views, [name])
    if not accounts and told is not None:
        accounts = [Account(name, Budget.of(told), 0)]
    return _record(await views.usage(of, tree=tree), accounts)


async def _accounts(views: Views, names: Sequence[str]) -> list[Account]:
    found = await views.meters(names)
    return [account for name in names if isinstance(account := found.get(name), Account)]


def _record(usage: Usage, accounts: Sequence[Account]) -> SpentRecord:
    return SpentRecord(
        requests=usage.requests,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
        cost=usage.cost,
        accounts=[
            AccountRecord(
                name=account.name,
                budget=told_budget(account.budget),
                spent=told_amounts(account.spent),
                reserved=told_amounts(account.held),
                unknown=told_amounts(account.unknown),
                is_marked=account.is_marked,
            )
            for account in accounts
        ],
    )
