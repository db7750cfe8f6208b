"""An agent of the OpenAI Agents SDK as a background task: a function runs it, and its model and tools are journaled.

It needs the package `openai-agents`. It answers offline, from a script; `MODEL=gpt-5-mini` with a key in OPENAI_API_KEY
asks a real one. `Journaled` and `tools_of` are all that the two need to know of each other: after a kill the SDK's own
loop runs from its start, and gets what was answered and done before from the journal.
"""

import asyncio
import json
import os
import sys
from typing import Any

try:
    from agents import Agent, FunctionTool, Model, ModelResponse, OpenAIResponsesModel, RunConfig, Runner
    from agents.testing import ScriptedModel, assistant_message, function_call
except ImportError:
    sys.exit("this example needs the package openai-agents")

from outrider import Outrider
from outrider.agents.engine import ToolError, ToolRetry, ToolSpec
from outrider.agents.function import AgentContext
from outrider.core.task import Usage


class Journaled(Model):  # type: ignore[misc]  # the package is no dependency of Outrider's
    """A model whose responses are steps of the task: one that was received is not asked for again."""

    def __init__(self, model: Model, ctx: AgentContext) -> None:
        self.model, self.ctx = model, ctx

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        async def ask() -> ModelResponse:
            return await self.model.get_response(*args, **kwargs)

        response = await self.ctx.step("model", ask)
        took = response.usage
        usage = Usage(took.requests, took.input_tokens, took.output_tokens, took.input_tokens_details.cached_tokens)
        await self.ctx.append(*response.to_input_items(), usage=usage, provider="openai")
        return response

    def stream_response(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("a stream cannot be journaled: use Runner.run")


def tools_of(ctx: AgentContext) -> list[FunctionTool]:
    """The tools of the task, as the SDK has them. A call is a step, and asks a person first where the tool needs it."""

    def function(tool: ToolSpec) -> FunctionTool:
        async def invoke(context: Any, arguments: str) -> str:
            try:
                return json.dumps(await tool.call(json.loads(arguments), context.tool_call_id))
            except (ToolRetry, ToolError) as error:
                return str(error)

        return FunctionTool(tool.name, tool.description, dict(tool.parameters), invoke, strict_json_schema=False)

    return [function(tool) for tool in ctx.tools.values()]


def model() -> Model:
    if name := os.environ.get("MODEL"):
        from openai import AsyncOpenAI

        return OpenAIResponsesModel(name, AsyncOpenAI())
    call = function_call("temperature", {"city": "Oslo"}, call_id="call_1")
    return ScriptedModel([[call], [assistant_message("It is 7 degrees in Oslo: take a coat.")]])


async def weather(ctx: AgentContext) -> str:
    agent = Agent("weather", instructions=ctx.system_prompt, model=Journaled(model(), ctx), tools=tools_of(ctx))
    turns = ctx.brief.max_iterations + 1  # the task has a limit of its own
    result = await Runner.run(agent, ctx.prompt, max_turns=turns, run_config=RunConfig(tracing_disabled=True))
    return str(result.final_output)


app = Outrider()


@app.tool
def temperature(city: str) -> int:
    """Return the temperature of a city in degrees."""
    print(f"measuring in {city}")
    return 7


app.agent("weather", weather, system_prompt="You know the weather.", tools=["temperature"])


async def main() -> None:
    async with app.open("sqlite:///openai_agents.db") as outrider:
        session = await outrider.sessions.create()
        task = await session.spawn_agent("Do I need a coat in Oslo?", agent="weather")
        print(await task.result())
        record = await task.record()
        print(f"{record.iterations} iterations, {record.usage.requests} requests")


if __name__ == "__main__":
    asyncio.run(main())
