"""Starting work: `call` and `run`, in the foreground or with `--background`.

In the foreground the worker is this very process, so the code that runs is the code as it is now; in the background
it is a worker that lives already, or one that is started for it.
"""

from __future__ import annotations

import getpass
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from outrider.agents.engine import DEFAULT_ENGINE, Choosy, load_engine
from outrider.agents.local import weights
from outrider.agents.models import choose
from outrider.bootstrap import Outrider
from outrider.cli.apps import load_apps, names_of
from outrider.cli.arguments import IDLE_EXIT, environment
from outrider.cli.database import client_of, server_of, url_of
from outrider.cli.exits import OK, UsageError
from outrider.cli.following import Follower
from outrider.cli.glance import short
from outrider.cli.steering import hint_at_worker
from outrider.cli.terminal import Screen
from outrider.cli.values import budget_of, pairs, text_of, value_of
from outrider.cli.workers import check_shareable, ensure_worker
from outrider.core.queue import split_route
from outrider.core.values import JSON
from outrider.runtime.handles import SessionHandle, TaskHandle
from outrider.runtime.options import TaskOptions

if TYPE_CHECKING:
    from outrider.client import Client

DEFAULT_SESSION = "session_default"
"""The session of whoever names none: an idempotency key means something only within one."""
DRAIN = 5.0
"""Seconds that other tasks get to finish their step when the task that was waited for has ended."""

COMMON = ("anthropic", "google", "openai")
"""Providers that the engine need not be asked about, which takes a second or two."""

Start = Callable[[SessionHandle, TaskOptions], Awaitable[TaskHandle]]


async def call(arguments: Namespace, screen: Screen) -> int:
    """Call a tool of an app."""
    names = names_of(arguments.app)
    if not names and server_of(arguments) is None:
        raise UsageError("whose tool? name its app: --app MODULE:APP, or OUTRIDER_APP")
    app = load_apps(names)
    typed = pairs(arguments.arguments, "argument")
    if arguments.tool in app.registry.tools or server_of(arguments) is None:
        given = _tool_arguments(app, arguments.tool, typed)
    else:  # whose schema is not here: JSON where it parses
        given = {name: value_of(text) for name, text in typed.items()}

    async def start(session: SessionHandle, options: TaskOptions) -> TaskHandle:
        spec = {"tool": arguments.tool, "arguments": given}
        return await session.create("background_tool", spec, options=options)

    return await start_task(arguments, screen, app, names, start)


async def run(arguments: Namespace, screen: Screen) -> int:
    """Run an agent on a prompt."""
    names = names_of(arguments.app)
    if arguments.agent and not names and server_of(arguments) is None:
        raise UsageError("whose agent? name its app: --app MODULE:APP, or OUTRIDER_APP")
    app = load_apps(names)
    prompt = text_of("-") if arguments.prompt == "-" else arguments.prompt
    approval = arguments.require_approval
    model: JSON = arguments.model or (None if arguments.agent else environment("OUTRIDER_MODEL"))
    if isinstance(model, str) and model.startswith(("{", "[")):
        model = value_of(model)
    if model is None and arguments.agent is None:
        raise UsageError("which model? --model PROVIDER:NAME, or OUTRIDER_MODEL, or an --agent of the app")
    if server_of(arguments) is None:
        _check_model(model, app.registry.agents.get(arguments.agent))
    if arguments.peer or arguments.invite:
        _check_is_plain(arguments)

    async def start(session: SessionHandle, options: TaskOptions) -> TaskHandle:
        if arguments.peer:
            return await session.open_peer(prompt, agent=arguments.agent, title=arguments.name, options=options)
        if arguments.invite:
            return await session.hand_off(arguments.agent, prompt, invite=True, options=options)
        return await session.spawn_agent(
            prompt,
            model=model,
            system_prompt=arguments.system,
            agent=arguments.agent,
            tools=_names(arguments.tools),
            max_iterations=arguments.max_iterations,
            require_approval=approval == "all" or _names(approval or ""),
            options=options,
        )

    return await start_task(arguments, screen, app, names, start)


async def start_task(
    arguments: Namespace,
    screen: Screen,
    app: Outrider,
    names: tuple[str, ...],
    start: Start,
    follower: type[Follower] = Follower,
) -> int:
    """Start a task, and follow it to its end or leave it in the background; return the exit code."""
    if (server := server_of(arguments)) is not None:
        async with client_of(server, arguments) as client:
            return await _start_there(client, arguments, screen, start, follower)
    if not arguments.background:
        app.settings = replace(app.settings, drain_timeout=min(DRAIN, app.settings.drain_timeout))
    async with app.open(url_of(arguments), worker=not arguments.background) as runtime:
        if arguments.background:
            check_shareable(runtime.ledger)
        session = await runtime.sessions.create(id=arguments.session or DEFAULT_SESSION)
        seq = (await session.record()).last_seq
        awaited = tuple([(await runtime.tasks.find(each)).id for each in arguments.after])
        task = await start(session, _options(arguments, awaited))
        if not arguments.background:
            return await follower(runtime, task, screen, seq).run()
        await _leave(task, screen)
        idle_exit = IDLE_EXIT if arguments.idle_exit is None else arguments.idle_exit
        route = (await runtime.tasks.get(task.id)).input.route
        log = await ensure_worker(runtime, route, names, idle_exit)
        if log is not None:
            screen.hint(f"started a worker, which writes to {log}")
        elif split_route(route)[1] is not None:
            await hint_at_worker(runtime, task.id, screen)
        screen.hint(f"see: outrider watch {short(task.id)}")
    return OK


async def _start_there(
    client: Client, arguments: Namespace, screen: Screen, start: Start, follower: type[Follower]
) -> int:
    """Start a task on a server, whose workers do it."""
    if arguments.idle_exit is not None:
        raise UsageError("--idle-exit is for a worker that is started here; a server has its own")
    session = await client.sessions.create(id=arguments.session or DEFAULT_SESSION)
    seq = (await session.record()).last_seq
    awaited = tuple([(await client.tasks.find(each)).id for each in arguments.after])
    task = await start(session, _options(arguments, awaited))
    if not arguments.background:
        await hint_at_worker(client, task.id, screen)
        return await follower(client, task, screen, seq).run()
    await _leave(task, screen)
    await hint_at_worker(client, task.id, screen)
    screen.hint(f"see: outrider watch {short(task.id)}")
    return OK


def _check_is_plain(arguments: Namespace) -> None:
    if arguments.agent is None:
        raise UsageError("which agent? --agent NAME, of the app")
    given = ("model", "system", "tools", "max_iterations", "require_approval")
    if any(getattr(arguments, name) for name in given):
        raise UsageError("with --peer and --invite the agent is as it was registered: name no model, tools or limits")


def _check_model(model: JSON, agent: object) -> None:
    """Refuse a model that nobody knows, or a local one that is not here, before there is a task.

    The worker is of this machine and this environment, so what is unknown here is unknown there.
    """
    for each in model if isinstance(model, list) else [model]:
        _check_one(each, agent)


def _check_one(model: JSON, agent: object) -> None:
    if not isinstance(model, str | dict):
        return
    choice = choose(model)
    if choice.is_local:
        weights(choice.name)
    elif choice.base_url is None and choice.provider not in COMMON:
        engine = load_engine(getattr(agent, "engine", DEFAULT_ENGINE))
        if isinstance(engine, Choosy):
            engine.check_model(choice)


async def _leave(task: TaskHandle, screen: Screen) -> None:
    """Say the id, before anything that takes time."""
    if screen.as_json:
        screen.record(await task.record())
    else:
        screen.line(task.id)


def _options(arguments: Namespace, after: tuple[str, ...]) -> TaskOptions:
    return TaskOptions(
        idempotency_key=arguments.idempotency_key,
        name=arguments.name,
        labels=pairs(arguments.label, "label"),
        origin={"actor": user_name(), "via": "cli"},
        wake=arguments.wake,
        priority=arguments.priority,
        delay=arguments.delay,
        depends_on=after,
        concurrency_key=arguments.concurrency_key,
        needs=arguments.needs,
        debounce_key=arguments.debounce_key,
        debounce_max=arguments.debounce_max,
        max_failures=arguments.max_failures,
        queue_timeout=arguments.queue_timeout,
        run_timeout=arguments.run_timeout,
        idle_timeout=arguments.idle_timeout,
        total_timeout=arguments.total_timeout,
        budget=None if arguments.budget is None else budget_of(arguments.budget),
    )


def user_name() -> str | None:
    """Who sits here, as the system knows it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def _tool_arguments(app: Outrider, tool: str, given: Mapping[str, str]) -> dict[str, JSON]:
    """The arguments as values; the tool's schema decides where a text could mean two things."""
    schema: dict[str, Any] = app.registry.tool(tool).arguments.schema() if given else {}
    properties, shared = schema.get("properties", {}), {"$defs": schema.get("$defs", {})}
    return {
        name: value_of(text, {**shared, **properties[name]} if name in properties else None)
        for name, text in given.items()
    }


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
