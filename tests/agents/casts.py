"""The same parts, played by the agents of each engine: what `engine_contract` and `tests.crash.agent_kills` put on.

A cast registers an agent for every part. What the agents do outside is told to a `World`, whatever engine runs them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from outrider import Outrider, TaskContext
from outrider.agents import scripted
from outrider.agents.engine import AgentFailed
from outrider.agents.function import AgentContext
from outrider.agents.scripted import Call, Failure, Reply, Tokens, Turn
from outrider.core.events import Step
from outrider.core.task import Usage
from outrider.core.values import JSON

ANSWER = "7, 9 and sent"
TOKENS = Tokens(10, 5)
EACH = Usage(requests=1, input_tokens=10, output_tokens=5)
"""What each request of the worker takes."""


@dataclass
class World:
    """What happens outside. `tell` is called when a thing is begun: `model 1`, `add 3`, `send hello`."""

    tell: Callable[[str], None]
    began: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    failures: int = 1
    """How often the fragile one fails."""

    async def add(self, a: int, b: int) -> int:
        self.tell(f"add {a}")
        return a + b

    async def send(self, text: str) -> str:
        self.tell(f"send {text}")
        return "sent"

    async def burst(self) -> str:
        self.tell("burst")
        if self.failures:
            self.failures -= 1
            raise RuntimeError("it burst")
        return "mended"

    async def wait_for_the_gate(self) -> str:
        self.began.set()
        await self.gate.wait()
        return "open"

    async def wait_for_ever(self) -> None:
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped.set()


class Cast(Protocol):
    """The agents of one engine.

    `worker` makes three requests and answers `ANSWER`: after the first it adds two sums side by side, after the second
    it sends. `asker` asks for a city, and `pair` for two things at once. `endless` says "Still at it." and never
    answers. `giver` gives the JSON that it is sent. `stuck` waits for ever. `fragile` asks the model once and then
    bursts. `broken` says "So far." and then meets an error that no other attempt would mend. `publisher` needs an
    approval for what it does. `listener` asks the model, waits for the gate, and asks it again, which says what it
    heard meanwhile.
    """

    @property
    def takes_tools(self) -> bool:
        """Whether it is given tools, and has the runtime ask for their approval, and keep from doing them twice."""
        ...

    @property
    def iterations(self) -> int:
        """How many the worker takes."""
        ...

    def register(self, app: Outrider, world: World) -> None:
        """Register an agent for each part."""
        ...

    def done_by(self, step: Step) -> str | None:
        """What the worker had begun that is done once this row of the journal is kept."""
        ...


class PydanticCast:
    takes_tools = True
    iterations = 3

    def register(self, app: Outrider, world: World) -> None:
        register_tools(app, world)

        @app.tool
        async def consult(task: TaskContext, question: str) -> str:
            return await task.ask(question, str)

        def part(name: str, script: scripted.Script) -> None:
            scripted.register(name, script)
            tools = ["add", "send", "publish", "burst", "wait_for_the_gate", "wait_for_ever", "consult"]
            app.agent(name, model=f"scripted:{name}", tools=tools)

        def worker(turn: Turn) -> Reply:
            world.tell(f"model {turn.number}")
            match turn.number:
                case 1:
                    calls = (Call("add", {"a": 3, "b": 4}), Call("add", {"a": 4, "b": 5}))
                    return Reply("Adding.\n", calls=calls, tokens=TOKENS)
                case 2:
                    return Reply("Sending.\n", calls=(Call("send", {"text": "hello"}),), tokens=TOKENS)
                case _:
                    return Reply(ANSWER, tokens=TOKENS)

        def asking(*questions: str) -> scripted.Script:
            def script(turn: Turn) -> Reply:
                world.tell(f"model {turn.number}")
                if turn.number == 1:
                    return Reply(calls=tuple(Call("consult", {"question": each}) for each in questions))
                return Reply(" and ".join(str(result.content) for result in turn.results))

            return script

        def fragile(turn: Turn) -> Reply:
            world.tell(f"model {turn.number}")
            return Reply("Careful.", calls=(Call("burst", {}),)) if turn.number == 1 else Reply("mended")

        def listener(turn: Turn) -> Reply:
            world.tell(f"model {turn.number}")
            return Reply(calls=(Call("wait_for_the_gate", {}),)) if turn.number == 1 else Reply(f"I heard {turn.heard}")

        part("worker", worker)
        part("listener", listener)
        part("asker", asking("Which city?"))
        part("pair", asking("Which city?", "Which day?"))
        part("endless", lambda _: Reply("Still at it.", calls=(Call("add", {"a": 1, "b": 1}),)))
        part("giver", lambda turn: Reply(result=json.loads(turn.prompt)))
        part("stuck", lambda _: Reply(calls=(Call("wait_for_ever", {}),)))
        part("fragile", fragile)
        part(
            "broken",
            lambda turn: (
                Reply("So far.", calls=(Call("add", {"a": 1, "b": 1}),))
                if turn.number == 1
                else Reply(failure=Failure(400, "no such thing"))
            ),
        )
        part(
            "publisher",
            lambda turn: Reply(calls=(Call("publish", {"text": "all"}),)) if turn.number == 1 else Reply("done"),
        )

    def done_by(self, step: Step) -> str | None:
        calls = {"1/tool/call_1_1": "add 3", "1/tool/call_1_2": "add 4", "2/tool/call_2_1": "send hello"}
        key = step.position.removeprefix("agent!")
        return f"model {key[0]}" if key.endswith("/model") else calls.get(key)


class FunctionCast:
    takes_tools = True
    iterations = 3

    def register(self, app: Outrider, world: World) -> None:
        register_tools(app, world)

        async def model(number: int, text: str) -> str:
            world.tell(f"model {number}")
            return text

        async def worker(ctx: AgentContext) -> str:
            said = await ctx.step("model 1", model, 1, "Adding.\n")
            ctx.output(said)
            sums = await asyncio.gather(
                ctx.call("add", {"a": 3, "b": 4}, id="add 3"), ctx.call("add", {"a": 4, "b": 5}, id="add 4")
            )
            await ctx.append(said, sums, usage=EACH, provider="own", model="own-1", text=said)
            said = await ctx.step("model 2", model, 2, "Sending.\n")
            ctx.output(said)
            sent = await ctx.call("send", {"text": "hello"}, id="send hello")
            await ctx.append(said, sent, usage=EACH, provider="own", model="own-1", text=said)
            said = await ctx.step("model 3", model, 3, f"{sums[0]}, {sums[1]} and {sent}")
            ctx.output(said)
            await ctx.append(said, usage=EACH, provider="own", model="own-1", text=said)
            return said

        async def listener(ctx: AgentContext) -> str:
            await ctx.step("model 1", model, 1, "")
            await ctx.step("gate", world.wait_for_the_gate)
            await ctx.append("It is open.", usage=EACH)
            return await ctx.step("model 2", model, 2, f"I heard {await ctx.news()}")

        async def asker(ctx: AgentContext) -> str:
            await ctx.step("model 1", model, 1, "")
            return await ctx.ask("Which city?", str)

        async def pair(ctx: AgentContext) -> str:
            await ctx.step("model 1", model, 1, "")
            answers = await asyncio.gather(
                ctx.ask("Which city?", str, name="city"), ctx.ask("Which day?", str, name="day")
            )
            return " and ".join(answers)

        async def endless(ctx: AgentContext) -> str:
            while True:
                said = await ctx.step("model", model, ctx.iterations + 1, "Still at it.")
                await ctx.append(said, usage=EACH, text=said)

        async def giver(ctx: AgentContext) -> JSON:
            return json.loads(ctx.prompt)

        async def stuck(ctx: AgentContext) -> None:
            await ctx.step("wait", world.wait_for_ever)

        async def fragile(ctx: AgentContext) -> str:
            await ctx.step("model 1", model, 1, "Careful.")
            return await ctx.step("burst", world.burst)

        async def broken(ctx: AgentContext) -> None:
            await ctx.append("So far.", usage=EACH, text="So far.")
            raise AgentFailed("no such thing", partial=ctx.text)

        async def publisher(ctx: AgentContext) -> str:
            await ctx.call("publish", {"text": "all"})
            return "done"

        for part in (worker, listener, asker, pair, endless, giver, stuck, fragile, broken, publisher):
            app.agent(part.__name__, part, tools=["add", "send", "publish"])

    def done_by(self, step: Step) -> str | None:
        kind, _, name = step.position.removeprefix("agent!").partition("/")
        return name if kind in ("step", "tool") and "!" not in name else None


class LangGraphCast:
    takes_tools = False
    iterations = 5

    def register(self, app: Outrider, world: World) -> None:
        from tests.agents import graphs

        for name, graph in graphs.of(world).items():
            app.agent(name, graph)

    def done_by(self, step: Step) -> str | None:
        told = json.loads(step.value or b"null")
        if not isinstance(told, dict) or "path" not in told:
            return None
        name = told["path"].rpartition(", ")[2].replace("_", " ")
        return "send hello" if name == "send" else name


def register_tools(app: Outrider, world: World) -> None:
    """Register what the world does as tools."""

    async def same(value: int) -> int:
        return value

    @app.tool
    async def add(task: TaskContext, a: int, b: int) -> int:
        """Add, with a step of its own."""
        return await world.add(await task.step("half", same, a), b)

    @app.tool(requires_approval=True)
    async def publish(text: str) -> str:
        world.tell(f"publish {text}")
        return "published"

    app.tool(world.burst)
    app.tool(world.wait_for_the_gate)
    app.tool(world.wait_for_ever)
    app.tool(effects="once")(world.send)


CASTS: dict[str, Callable[[], Cast]] = {
    "pydantic-ai": PydanticCast,
    "function": FunctionCast,
    "langgraph": LangGraphCast,
}
