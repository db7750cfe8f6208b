"""Opening a session for an agent: below the one that asks for it, made once, with what it begins with.

Its id is journaled before it is made: one that was planned and not made is made on resume, by the same id.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from outrider.agents.engine import AgentFailed
from outrider.agents.registered import check_goes_on
from outrider.core.errors import InvalidArguments
from outrider.core.session import NewSession, Seed, Session
from outrider.core.values import JSONObject, evolve
from outrider.runtime.attempt import shorten
from outrider.runtime.codec import decode, encode, jsonable
from outrider.runtime.context import TaskContext
from outrider.runtime.ids import new_id

SESSION = "session!"
"""The journal row that names the session."""
SEEDS = ("fresh", "fork", "files")
"""What a session begins with: nothing, the transcript and files of the one above, or its files alone."""
DEFAULTS = (("seed", "fresh"), ("invite", False))
MOST_ITERATIONS = (1 << 63) - 1


def check_asked(kind: str, spec: JSONObject, fields: Collection[str]) -> str:
    """Return the prompt of a spec. Raises InvalidArguments for one without, or with fields that it does not have."""
    if unknown := set(spec) - set(fields):
        raise InvalidArguments(
            f"the spec of a {kind} has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(fields))}"
        )
    prompt = spec.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidArguments(f"the spec of a {kind} needs a prompt, which is text")
    return prompt


def plain_spec(kind: str, spec: JSONObject) -> JSONObject:
    """Return a spec as JSON, without what is so anyway. Raises InvalidArguments."""
    try:
        plain: JSONObject = jsonable({name: value for name, value in spec.items() if (name, value) not in DEFAULTS})
    except TypeError as error:
        raise InvalidArguments(f"the spec of a {kind} is JSON: {error}") from None
    return plain


def check_seed(spec: JSONObject) -> None:
    """Raise InvalidArguments for a spec whose seed is none."""
    if spec.get("seed", "fresh") not in SEEDS:
        raise InvalidArguments(f"seed is one of {', '.join(SEEDS)}, not {spec['seed']!r:.100}")


def titled(prompt: str, length: int = 60) -> str:
    """The first words of a prompt, for a name."""
    return shorten(prompt.strip().splitlines()[0], length)


async def open_session(
    task: TaskContext,
    agent: str | None,
    agents: Mapping[str, object],
    shaped: Callable[[NewSession], NewSession] = lambda new: new,
) -> str:
    """Return the id of the session that the task has opened, making it where it is not made, and link it.

    It has the task's session above it, whose tree it is in and whose tree's budget bounds it. `shaped` makes of it what
    it is to be besides.
    """
    session_id = await _made(task, agent, agents, shaped)
    if task.live.links.child_session_id != session_id:  # or the worker was gone before it could say so
        task.report(links=evolve(task.live.links, child_session_id=session_id))
    return session_id


async def _made(
    task: TaskContext,
    agent: str | None,
    agents: Mapping[str, object],
    shaped: Callable[[NewSession], NewSession],
) -> str:
    row = task.journal.at(SESSION)
    session_id: str = new_id("session") if row is None else decode(row.value or b"null")
    if row is None:
        await task.write_own(SESSION, "session", encode(session_id))
    elif await task.services.views.session(session_id) is not None:
        return session_id
    parent = await task.services.views.session(task.session_id)
    assert parent is not None, "a task's session cannot be gone"
    tree = None if parent.budget is None else parent.budget.get("tree")
    new = NewSession(
        id=session_id,
        created_at=task.services.clock.now(),
        organization_id=parent.organization_id,
        root_session_id=parent.root_session_id,
        parent_session_id=parent.id,
        parent_task_id=task.id,
        agent=agent,
        title=shorten(task.spec["prompt"], 60),
        budget=None if tree is None else {"tree": tree},
    )
    seed = await _seed_of(task, parent, agent, agents)
    await task.services.ledger.create_session(shaped(new), seed)
    return session_id


async def _seed_of(task: TaskContext, parent: Session, agent: str | None, agents: Mapping[str, object]) -> Seed | None:
    match task.spec.get("seed"):
        case "files":
            return Seed(parent.id, files=True)
        case "fork":
            try:
                check_goes_on(agents, agent, parent.agent)
            except InvalidArguments as error:
                raise AgentFailed(error.message, kind="rejected") from None
            return Seed(parent.id, await known_to(task, parent), files=True)
        case _:
            return None


async def known_to(task: TaskContext, parent: Session) -> int:
    """How many entries the parent's transcript had in the iteration that started the task; if none did, has now.

    What that iteration itself appends is not the child's: it would take the calls in there, its own start among them,
    for calls of its own.
    """
    views, (by, iteration) = task.services.views, _start_of(task)
    if by is None:
        return await views.last_entry(parent.id)
    known = await views.last_entry(parent.id, task_id=by, iteration=iteration - 1)
    return known or (0 if parent.parent_task_id == by else await views.last_entry(parent.id))


async def prompts_of_fork(task: TaskContext) -> list[str]:
    """What a forked agent is told: its instructions, after those of its parent where no iteration has kept them yet."""
    views, (by, _) = task.services.views, _start_of(task)
    parent = await views.session(task.session_id)
    prompts = [task.spec["prompt"]]
    if parent is not None and by is not None and parent.parent_task_id == by and not await known_to(task, parent):
        above = await views.task(by)
        prompts = prompts if above is None else [above.spec["prompt"], *prompts]
    return prompts


def _start_of(task: TaskContext) -> tuple[str | None, int]:
    """The agent's task by which this one was started, and in which iteration; None if none did."""
    by, iteration = task.origin.get("task_id"), task.origin.get("iteration")
    if isinstance(by, str) and isinstance(iteration, int) and 0 < iteration <= MOST_ITERATIONS:
        return by, iteration
    return None, 0
