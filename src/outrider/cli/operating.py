"""The operator's view: `doctor`, `workers`, `tree`, `stats`."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import TYPE_CHECKING

from outrider.cli.database import open_runtime
from outrider.cli.exits import OK, UNSOUND, UsageError
from outrider.cli.glance import age_text
from outrider.cli.sessions import target_of
from outrider.cli.terminal import Screen, on_one_line
from outrider.cli.workers import served

if TYPE_CHECKING:
    from outrider.runtime.records import StatsRecord, WorkerRecord


async def doctor(arguments: Namespace, screen: Screen) -> int:
    """Say what is wrong with the database, its workers and its queue; or why a task does not run."""
    async with open_runtime(arguments) as runtime:
        if arguments.task is not None:
            found = await runtime.doctor.explain((await runtime.tasks.find(arguments.task)).id)
            if screen.as_json:
                screen.record(found)
                return OK
            phase = f" ({found.phase})" if found.phase else ""
            screen.line(on_one_line(f"{found.task_id} is {found.state}{phase}"))
            for text in found.because:
                screen.line(on_one_line(f"  {text}"))
            return OK
        findings = await runtime.doctor.examine(deep=arguments.deep)
    for finding in findings:
        if screen.as_json:
            screen.record(finding)
        else:
            advice = f" ({finding.advice})" if finding.advice else ""
            screen.line(on_one_line(f"{finding.level}: {finding.about}: {finding.text}{advice}"))
    if not findings:
        screen.note("the database is sound, and nothing stands still")
    return UNSOUND if any(finding.level == "problem" for finding in findings) else OK


async def workers(arguments: Namespace, screen: Screen) -> int:
    """List the registered workers: where they are, whether they live, what they hold and serve."""
    async with open_runtime(arguments) as runtime:
        found = await runtime.workers()
    if screen.as_json:
        for worker in found:
            screen.record(worker)
        return OK
    for worker in found:
        screen.line(_worker_line(worker))
    if not found:
        screen.hint("no worker is registered; start one: outrider worker --app MODULE:APP")
    return OK


def _worker_line(worker: WorkerRecord) -> str:
    now = time.time()
    silent = now - worker.beat_at.timestamp()
    life = {True: "alive", False: "dead", None: "elsewhere"}[worker.is_alive]
    if worker.is_alive is None and silent > worker.lost_after > 0:
        life = "silent"
    lost = f", lost after {age_text(int(worker.lost_after * 1e6))}" if worker.lost_after else ""
    return "  ".join(
        on_one_line(each)
        for each in (
            worker.id,
            f"{worker.host}:{worker.pid}",
            life,
            f"up {age_text(int((now - worker.started_at.timestamp()) * 1e6))}",
            f"beat {age_text(int(silent * 1e6))} ago{lost}",
            f"{worker.held}/{worker.concurrency} tasks",
            worker.version + (f" (app {worker.app_version})" if worker.app_version else ""),
            served(worker.routes),
        )
    )


async def tree(arguments: Namespace, screen: Screen) -> int:
    """Print the tree of tasks of a session, or below a task, as it stands."""
    from outrider.cli.watching import tree_of

    async with open_runtime(arguments) as runtime:
        target = await target_of(runtime, arguments.target)
        if isinstance(target, str):
            tasks = await runtime.sessions.tree(target)
        else:
            tasks = await runtime.tasks.tree(target.id)
    if screen.as_json:
        for task in tasks:
            screen.record(task)
        return OK
    screen.console().print(tree_of(tasks))
    return OK


async def stats(arguments: Namespace, screen: Screen) -> int:
    """Show the store in numbers."""
    if arguments.within <= 0:
        raise UsageError("--within is a length of time, and not none")
    async with open_runtime(arguments) as runtime:
        found = await runtime.stats(arguments.within)
    if screen.as_json:
        screen.record(found)
    else:
        for line in _stats_lines(found):
            screen.line(on_one_line(line))
    return OK


def _stats_lines(found: StatsRecord) -> list[str]:
    lines = [", ".join(f"{count} {state}" for state, count in found.states.items() if count) or "no tasks"]
    span = age_text(int(found.seconds * 1e6))
    lines.append(f"{sum(each.count for each in found.ended)} ended within {span}, {found.ended_per_s:.2f} a second")
    for each in found.ended:
        how = f"{each.state}" + (f" ({each.error_kind})" if each.error_kind else "")
        spans = ""
        if each.waited is not None and each.ran is not None:
            spans = f"; waited {_s(each.waited)} (at most {_s(each.waited_most)})"
            spans += f", ran {_s(each.ran)} (at most {_s(each.ran_most)})"
        lines.append(f"  {each.kind} {how}: {each.count}{spans}")
    for waiting in found.waiting:
        why = f" by {waiting.blocked_by}" if waiting.blocked_by else ""
        since = f", the oldest due {waiting.oldest_due_at:%Y-%m-%d %H:%M:%S} UTC" if waiting.oldest_due_at else ""
        lines.append(f"  {waiting.route}: {waiting.count} {waiting.readiness}{why}{since}")
    size = f"{found.size / 1e6:.1f} MB"
    if found.free is not None and found.log is not None:
        size += f", of which {found.free / 1e6:.1f} are free; {found.log / 1e6:.1f} MB of WAL"
    lines.append(size)
    return lines


def _s(seconds: float | None) -> str:
    return age_text(int((seconds or 0) * 1e6))
