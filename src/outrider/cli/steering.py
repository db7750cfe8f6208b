"""Steering: `message`, `send`, `answer`, `grants`, `cancel`, `retry`, `fork`, `wait`."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import TYPE_CHECKING

from outrider.cli.database import Opened, is_here, open_runtime
from outrider.cli.exits import OK, TIMEOUT, UsageError, code_of_state
from outrider.cli.glance import Glance, short
from outrider.cli.looking import print_result, result_of
from outrider.cli.sessions import target_of
from outrider.cli.terminal import Screen, on_one_line
from outrider.cli.values import answer_of, pairs, text_of
from outrider.core.errors import WaitTimeout
from outrider.core.ledger import TaskFilter
from outrider.core.task import State, Task
from outrider.settings import CANCEL_GRACE

if TYPE_CHECKING:
    from outrider.runtime.records import TaskRecord


async def message(arguments: Namespace, screen: Screen) -> int:
    """Send a task a message."""
    from outrider.cli.starting import user_name

    text = text_of("-") if arguments.text == "-" else arguments.text
    async with open_runtime(arguments) as runtime:
        task = await runtime.tasks.find(arguments.task)
        sent = await runtime.tasks.message(task.id, text, in_reply_to=arguments.in_reply_to, sender=user_name())
        if screen.as_json:
            screen.record(sent)
        else:
            screen.line(sent.id)
        await hint_at_worker(runtime, task.id, screen)
    return OK


async def send(arguments: Namespace, screen: Screen) -> int:
    """Say something to a session's agent; with `--wait`, print its answer."""
    from outrider.cli.starting import user_name

    text = text_of("-") if arguments.text == ["-"] else " ".join(arguments.text)
    async with open_runtime(arguments) as runtime:
        session = await runtime.sessions.get(arguments.session)
        seq = (await session.record()).last_seq
        turn = await session.send(text, steering=arguments.steering, sender=user_name())
        await hint_at_worker(runtime, turn.id, screen)
        if arguments.wait:
            from outrider.cli.following import Follower

            return await Follower(runtime, await turn.heard_by(), screen, seq).run()
        if screen.as_json:
            screen.record(await turn.record())
        else:
            screen.line(turn.id)
    return OK


async def answer(arguments: Namespace, screen: Screen) -> int:
    """Answer a question of a task."""
    from outrider.cli.starting import user_name

    async with open_runtime(arguments) as runtime:
        task = await runtime.tasks.record((await runtime.tasks.find(arguments.task)).id)
        wanted = arguments.request or getattr(task.input_request, "id", None)
        request = next((each for each in task.input_requests if each.id == wanted), None)
        record = await runtime.tasks.answer(
            task.id,
            answer_of(arguments.value, request),
            request_id=arguments.request,
            by=user_name(),
            via="cli",
        )
        if screen.as_json:
            screen.record(record)
        else:
            screen.note(f"answered; {short(task.id)} is {record.state}")
        await hint_at_worker(runtime, task.id, screen)
    return OK


async def grants(arguments: Namespace, screen: Screen) -> int:
    """List the tools that need no more approval in a session, or have one need it again."""
    from outrider.cli.starting import user_name

    async with open_runtime(arguments) as runtime:
        if arguments.revoke is not None:
            was_there = await runtime.sessions.revoke(arguments.session, arguments.revoke, by=user_name())
            screen.note(f"{on_one_line(arguments.revoke)}: {'revoked' if was_there else 'it was not granted'}")
            return OK
        found = await runtime.sessions.grants(arguments.session)
    for grant in found:
        if screen.as_json:
            screen.record(grant)
        else:
            by = f" by {grant.by}" if grant.by else ""
            screen.line(on_one_line(f"{grant.tool}  since {grant.at:%Y-%m-%d %H:%M:%S} UTC{by}"))
    if not found:
        screen.hint("nothing was granted there")
    return OK


async def cancel(arguments: Namespace, screen: Screen) -> int:
    """Cancel tasks and the linked children below them; say what became of each."""
    if arguments.all == bool(arguments.tasks):
        raise UsageError("name the tasks to cancel, or --all of them")
    narrowed = arguments.session or arguments.kind or arguments.label
    if narrowed and not arguments.all:
        raise UsageError("--session, --kind and --label narrow --all")
    if len(arguments.tasks) != 1:
        return await _cancel_many(arguments, screen)
    return await _cancel_one(arguments, screen)


async def _cancel_many(arguments: Namespace, screen: Screen) -> int:
    from outrider.cli.starting import user_name

    if arguments.wait:
        raise UsageError("--wait waits for one task; for more there is outrider wait")
    how = {"reason": arguments.reason, "by": user_name(), "include_detached": arguments.include_detached}
    async with open_runtime(arguments) as runtime:
        if arguments.all:
            labels = pairs(arguments.label, "label")
            wanted = TaskFilter(session_id=arguments.session, kind=arguments.kind, labels=labels)
            receipt = await runtime.tasks.cancel_many(filter=wanted, **how)
        else:
            ids = [(await runtime.tasks.find(name)).id for name in arguments.tasks]
            receipt = await runtime.tasks.cancel_many(ids, **how)
    if screen.as_json:
        screen.record(receipt)
        return OK
    for each in receipt.canceled:
        screen.line(f"{each}  canceled")
    for each in receipt.requested:
        screen.line(f"{each}  told to stop")
    for each in receipt.left:
        screen.line(f"{each}  left as it is")
    if not any((receipt.canceled, receipt.requested, receipt.left)):
        screen.hint("there was nothing to cancel")
    return OK


async def _cancel_one(arguments: Namespace, screen: Screen) -> int:
    from outrider.cli.starting import user_name

    async with open_runtime(arguments) as runtime:
        task = await runtime.tasks.find(arguments.tasks[0])
        receipt = await runtime.tasks.cancel(
            task.id,
            reason=arguments.reason,
            by=user_name(),
            wait=_grace_of(task) + 2 if arguments.wait else None,
            include_detached=arguments.include_detached,
        )
    if screen.as_json:
        screen.record(receipt)
        return OK
    for ids, became in (
        (receipt.canceled, "canceled"),
        (receipt.requested, "told to stop"),
        (receipt.left, "left as it is"),
    ):
        for each in ids:
            screen.line(f"{each}  {became} ({receipt.states[each]})" if became[0] == "l" else f"{each}  {became}")
    return OK


def _grace_of(task: Task | TaskRecord) -> float:
    """How long a task has to stop, in seconds. A record does not say."""
    return task.input.cancel_grace / 1e6 if isinstance(task, Task) else CANCEL_GRACE.total_seconds()


async def retry(arguments: Namespace, screen: Screen) -> int:
    """Do an ended task again, as a new one."""
    async with open_runtime(arguments) as runtime:
        old = await runtime.tasks.find(arguments.task)
        new = await runtime.tasks.retry(old.id)
        await _tell_new(runtime, new, screen, f"a new task, from the beginning; {short(old.id)} stays {old.state}")
    return OK


async def fork(arguments: Namespace, screen: Screen) -> int:
    """Go on from a step of an ended task, or from where a session is, as a new one."""
    of_session = {"--upto": arguments.upto, "--iteration": arguments.iteration, "--title": arguments.title}
    async with open_runtime(arguments) as runtime:
        old = await target_of(runtime, arguments.target)
        if isinstance(old, str):
            if arguments.step is not None:
                raise UsageError("--from is for tasks; a session is taken --upto a turn")
            await _fork_session(runtime, old, arguments, screen)
            return OK
        for option, value in of_session.items():
            if value is not None:
                raise UsageError(f"{option} is for sessions; a task is taken --from a step")
        new = await runtime.tasks.fork(old.id, from_step=arguments.step)
        await _tell_new(runtime, new, screen, f"a new task, with steps of the old; {short(old.id)} stays {old.state}")
    return OK


async def _fork_session(runtime: Opened, session_id: str, arguments: Namespace, screen: Screen) -> None:
    upto = None if arguments.upto is None else (await runtime.tasks.find(arguments.upto)).id
    fork = await runtime.sessions.fork(session_id, upto=upto, iteration=arguments.iteration, title=arguments.title)
    if screen.as_json:
        screen.record(await fork.record())
    else:
        screen.line(fork.id)
        screen.hint(f"a new session, with what was said in {on_one_line(session_id)}, which stays as it is")


async def _tell_new(runtime: Opened, task: Task | TaskRecord, screen: Screen, what: str) -> None:
    if screen.as_json:
        screen.record(await runtime.tasks.record(task.id))
    else:
        screen.line(task.id)
        screen.hint(f"{what}; follow it: outrider watch {short(task.id)}")
    await hint_at_worker(runtime, task.id, screen)


async def wait(arguments: Namespace, screen: Screen) -> int:
    """Wait until tasks have ended; print each and its result as it ends, and end as the worst of them did."""
    until = None if arguments.timeout is None else time.monotonic() + arguments.timeout
    codes: list[int] = []
    async with open_runtime(arguments) as runtime:
        names = dict.fromkeys(arguments.tasks)
        found = [await runtime.tasks.find(name) for name in names]
        waiting = list(dict.fromkeys([task.id for task in found]))
        hints = [await missing_worker(runtime, task.id) for task in found if not task.is_terminal]
        for hint in dict.fromkeys(hints):
            if hint is not None and not screen.as_json:
                screen.note(hint)
        while waiting and not (arguments.any and codes):
            left = None if until is None else max(0.0, until - time.monotonic())
            try:
                ready = await runtime.tasks.wait(waiting, any=True, timeout=left)
            except WaitTimeout as error:
                screen.error(error)
                if screen.as_json:
                    for task_id in waiting:
                        await _tell_end(runtime, task_id, screen)
                return TIMEOUT
            for each in ready:
                if each.is_terminal:
                    waiting.remove(each.id)
                    codes.append(code_of_state(each.state))
                    await _tell_end(runtime, each.id, screen)
    return min((code for code in codes if code), default=OK)


async def _tell_end(runtime: Opened, task_id: str, screen: Screen) -> None:
    handle = await runtime.task(task_id)
    record = await handle.record()
    result = await result_of(handle, record)
    if screen.as_json:
        screen.record(record, result=result)
        return
    glance = Glance.of(record)
    news = "" if record.state is State.SUCCEEDED else glance.news  # the summary of what comes below
    screen.line("  ".join(filter(None, [glance.id, glance.standing, glance.name, news])))
    print_result(screen, result)


async def hint_at_worker(runtime: Opened, task_id: str, screen: Screen) -> None:
    """Say so when nobody is there to go on with the task."""
    if not screen.as_json and (hint := await missing_worker(runtime, task_id)) is not None:
        screen.note(hint)


async def missing_worker(runtime: Opened, task_id: str) -> str | None:
    """What to say when nobody is there to go on with the task; None when somebody is, or it has ended."""
    from outrider.runtime.doctor import start_one

    if not is_here(runtime):  # a server says itself whether anybody serves it
        reason = (await runtime.tasks.record(task_id)).phase_reason
        return reason if (reason or "").startswith("no worker serves") else None
    from outrider.cli.workers import serves

    task = await runtime.tasks.get(task_id)
    route = task.input.route
    if task.is_terminal or await serves(runtime, route):
        return None
    return f"no worker for {route} is running here; {start_one(route)}"
