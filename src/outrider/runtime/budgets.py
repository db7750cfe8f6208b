"""What was spent, and what of which budget: the sums over a session or a tree, and the accounts that bound them.

`usage` is what tasks reported of themselves; an account counts what was reserved and settled, so it also has what lost
attempts may have spent, and its `spent` may be more.
"""

from __future__ import annotations

from collections.abc import Sequence

from outrider.core.ledger import Views
from outrider.core.meters import SESSION, TASK, TREE, Account, Budget, told_amounts, told_budget
from outrider.core.session import Session
from outrider.core.task import Task, Usage
from outrider.runtime.records import AccountRecord, SpentRecord


async def usage_of_task(views: Views, task: Task) -> SpentRecord:
    """What a task has used, and its accounts."""
    told = task.input.budget or {}
    names = [TASK + task.id]
    names += [SESSION + task.session_id] if "session" in told else []
    names += [TREE + task.input.root_session_id] if "tree" in told else []
    return _record(task.live.usage, await _accounts(views, names))


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
