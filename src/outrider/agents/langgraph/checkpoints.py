"""What a graph has saved: kept in memory as bytes, and durable in the task's transcript and journal before that.

The checkpoint that ends a superstep is appended to the transcript with what the superstep used. All else, such as what
a node wrote or where a subgraph stands, is a step of the open iteration, which that forgets. Of a list only what
follows the part that it has in common with its last version is stored, so that one which grows costs as much as is
added. A graph never reads from the store: all that it may ask for was loaded when the attempt began.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, cast

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME

from outrider.agents.engine import AgentBrief, AgentFailed, AgentRun, Iteration, summed
from outrider.agents.telling import tell_request
from outrider.core.task import Usage
from outrider.core.values import JSON, JSONObject

START = ", __start__"
"""How the path of the task ends that hands the input on, which is no superstep of the user's."""
ERROR_SOURCE = "__error_source_node__"
"""Beside an error that a node of the graph will handle."""
NULL_TASK_ID = "00000000-0000-0000-0000-000000000000"
"""LangGraph's task for what is written from outside of the graph, with `Command(update=...)`."""
CHECKPOINT = "checkpoint"
WRITES = "writes"

Typed = tuple[str, bytes]
Piece = tuple[int | None, Typed]
"""The value of a channel; with a number, what follows so many items of the list that the piece before makes."""


class Checkpoints:
    """All checkpoints of one graph, in one attempt, with the totals that go with them."""

    def __init__(
        self, brief: AgentBrief, run: AgentRun, deltas: frozenset[str], when_ended: Callable[[], Awaitable[None]]
    ) -> None:
        self._run = run
        self._deltas = deltas
        self._when_ended = when_ended
        self._saved: dict[str, dict[str, JSONObject]] = {}
        """By namespace and id, as they are in the transcript, in the order of the ids."""
        self._pieces: dict[tuple[str, str, str], tuple[str | None, Piece]] = {}
        """By namespace, channel and version, each with the version that it goes on from."""
        self._newest: dict[tuple[str, str], str] = {}
        """The version of a channel that was saved last, and is kept: what is stored next may go on from there."""
        self._writes: dict[tuple[str, str], dict[tuple[str, int], tuple[str, Typed, str]]] = {}
        """By namespace and checkpoint, then by task and place: channel, value and path."""
        self._held: list[JSONObject] = []
        """What the next iteration appends before its own checkpoint."""
        self._rows: list[JSONObject] = []
        """What the tasks of the open iteration wrote."""
        self._heard: dict[str, Usage] = {}
        """Responses that no row tells of yet."""
        self._counted: set[str] = set()
        self._underway: set[asyncio.Future[None]] = set()
        self._putting = asyncio.Lock()
        self.fault: BaseException | None = None
        """What kept a write from being saved, or a subgraph from going on. The graph may go on without having heard."""
        self._next = 1
        self.usage = brief.usage
        self.iterations = brief.iterations
        self.provider: str | None = None
        self.model: str | None = None
        self.are_interrupts_stale = False
        """Whether a subgraph has taken an answer, and the graph around it still shows the question."""
        for message in brief.transcript:
            if isinstance(message, dict) and "langgraph" in message:
                self._load(message["langgraph"])
        self.is_new = True
        """Whether the graph has not been given this task's prompt."""
        for key, told in run.journaled().items():
            _, kind, number = key.split("/") if key.count("/") == 2 else ("", "", "")
            if kind in (CHECKPOINT, WRITES):
                self._next = max(self._next, int(number) + 1)
                self.is_new = self.is_new and (kind == WRITES or told["ns"] != "")
                self._load(told)
                self._take(told)
        self.is_new = self.is_new and brief.iterations == 0
        self._old = frozenset(self._counted)

    def is_old(self, message: AIMessage) -> bool:
        """Whether an earlier attempt, or an earlier task of the session, heard this message."""
        return message.id in self._old

    def hear(self, message: AIMessage) -> None:
        """Take note of a response of a model, to be told with what its node writes."""
        details = message.response_metadata or {}
        self.model = details.get("model_name") or details.get("model") or self.model
        self.provider = details.get("model_provider") or self.provider
        if message.id and message.id not in self._counted:
            self._counted.add(message.id)
            self._heard[message.id] = _usage_of(message)
            tell_request(self.model or "", self.provider or "unknown", usage=self._heard[message.id])

    @property
    def is_between(self) -> bool:
        """Whether nothing has happened since the last superstep ended."""
        return not self._held and not self._rows

    @property
    def is_updated(self) -> bool:
        """Whether something was written from outside on top of the newest checkpoint."""
        newest = self.find("", None)
        return newest is not None and any(task == NULL_TASK_ID for task, _ in self._writes.get(("", newest["id"]), {}))

    def find(self, ns: str, id: str | None) -> JSONObject | None:
        """Return a checkpoint, the newest if no id is given."""
        saved = self._saved.get(ns, {})
        return saved.get(id) if id is not None else next(reversed(saved.values()), None)

    def all(self, ns: str | None) -> Iterator[JSONObject]:
        """Return the checkpoints of a namespace, or of all, the newest first."""
        for each in [ns] if ns is not None else list(self._saved):
            yield from reversed(self._saved.get(each, {}).values())

    def pieces(self, ns: str, channel: str, version: str) -> list[Piece]:
        """Return what makes the value of a channel at a version, in order; nothing if it has none."""
        found: list[Piece] = []
        before: str | None = version if (ns, channel, version) in self._pieces else None
        while before is not None:
            before, piece = self._pieces[ns, channel, before]
            found.append(piece)
        return found[::-1]

    def newest(self, ns: str, channel: str) -> str | None:
        """Return the version of a channel that was saved last and is kept."""
        return self._newest.get((ns, channel))

    def writes(self, ns: str, id: str) -> list[tuple[str, str, Typed]]:
        """Return what was written on top of a checkpoint: task, channel and value, in the order of application."""
        kept = self._writes.get((ns, id), {})
        return [
            (place[0], kept[place][0], kept[place][1])
            for place in sorted(kept, key=lambda place: writes_sort_key(kept[place][2], *place))
        ]

    def paths(self, ns: str, id: str) -> set[str]:
        """Return the paths of the tasks that wrote something on top of a checkpoint."""
        return {path for _, _, path in self._writes.get((ns, id), {}).values()}

    async def put(self, record: dict[str, JSON], *, ends_superstep: bool) -> None:
        """Save a checkpoint. One that ends a superstep of the root graph ends the iteration."""
        if self._underway:  # what it rests on is durable first, so that nothing is left for an iteration that is over
            await asyncio.gather(*self._underway)
        async with self._putting:
            if ends_superstep:
                await self._end_iteration(record)
            else:
                await self._journal(CHECKPOINT, record)
                self._load(record)
                self._held.append(record)

    async def write(self, row: dict[str, JSON]) -> None:
        """Save what a task wrote, with what the models took that it asked."""
        usage, said = self._book()
        row |= {"usage": _told(usage), "said": said}
        self._load(row)
        self._take(row)
        future = asyncio.ensure_future(self._write(row))
        self._underway.add(future)
        future.add_done_callback(self._underway.discard)
        await future

    async def _write(self, row: JSONObject) -> None:
        try:
            async with self._putting:  # the graph does not wait until the checkpoint is saved that this stands on
                pass
            await self._journal(WRITES, row)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.fault = self.fault or error
            raise

    def starts(self, ns: str, parent: str | None) -> bool:
        """Whether nothing but the handing on of the input happened since a checkpoint."""
        paths = self.paths(ns, parent or "")
        return bool(paths) and all(path.endswith(START) for path in paths)

    async def _end_iteration(self, record: dict[str, JSON]) -> None:
        iterations = self.iterations + 1
        kept = [each for each in self._held if ":" not in each["ns"]]  # where a subgraph stood when its call was over
        batch = [*kept, record]
        usage, said = self._book()
        record["said"] = [*said, *(id for row in self._rows for id in row["said"])]
        messages = tuple({"langgraph": each} for each in [*self._delta_rows(batch), *batch])
        total = summed(self.usage, usage)
        await self._run.append(Iteration(iterations, messages, total, self.provider, self.model))
        self._load(record)
        self.usage, self.iterations = total, iterations
        self._held, self._rows = [], []
        self._newest = {place: version for place, version in self._newest.items() if ":" not in place[0]}
        await self._when_ended()

    async def _journal(self, kind: str, told: JSONObject) -> None:
        number, self._next = self._next, self._next + 1

        async def saved() -> JSON:
            return told

        await self._run.step(f"{self.iterations + 1}/{kind}/{number}", saved)

    def _load(self, told: JSONObject) -> None:
        self._counted.update(told.get("said", ()))
        ns = told["ns"]
        if "writes" in told:
            kept = self._writes.setdefault((ns, told["on"]), {})
            for index, (channel, *typed) in enumerate(told["writes"]):
                place = (told["task"], WRITES_IDX_MAP.get(channel, index))
                if place[1] < 0 or place not in kept:
                    kept[place] = (channel, _opened(typed), told["path"])
            channels = {channel for channel, *_ in told["writes"]}
            if not ns and INTERRUPT in channels:
                self.are_interrupts_stale = False
            elif ns and RESUME in channels:
                self.are_interrupts_stale = True
            return
        for channel, (version, kind, content, *goes_on) in told["channels"].items():
            before, common = goes_on or (None, None)
            self._pieces[ns, channel, version] = (before, (common, _opened((kind, content))))
            self._newest[ns, channel] = version
        self._saved.setdefault(ns, {})[told["id"]] = told

    def _take(self, told: JSONObject) -> None:
        """Take a row of the open iteration as one that the end of the iteration has to know."""
        if "writes" not in told:
            self._held.append(told)
            return
        self._rows.append(told)
        self.usage = summed(self.usage, Usage(**told["usage"]))

    def _book(self) -> tuple[Usage, list[JSON]]:
        usage = Usage()
        for each in self._heard.values():
            usage = summed(usage, each)
        said: list[JSON] = list(self._heard)
        self._heard.clear()
        return usage, said

    def _delta_rows(self, batch: Sequence[JSONObject]) -> list[JSONObject]:
        """What was written to channels whose checkpoints do not hold their value, on the checkpoints before these."""
        before = {(each["ns"], each["parent"]) for each in batch}
        kept: list[JSONObject] = []
        for row in self._rows if self._deltas else ():
            writes = [write for write in row["writes"] if write[0] in self._deltas]
            if writes and (row["ns"], row["on"]) in before:
                kept.append({**row, "writes": writes})
        return kept


class Saver(BaseCheckpointSaver[int]):
    """The checkpointer that a graph is given: it puts what is saved into bytes, and takes it out of them."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._prints: dict[tuple[str, str], tuple[str, list[bytes]]] = {}
        """By namespace and channel, the version of a list that was saved last, and a digest of each of its items."""

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return a checkpoint with what was written on top of it; see `BaseCheckpointSaver`."""
        found = self._checkpoints.find(_namespace(config), get_checkpoint_id(config))
        return None if found is None else self._tuple(config, found)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Return the checkpoints that match, the newest first; see `BaseCheckpointSaver`."""
        ns = None if config is None else config["configurable"].get("checkpoint_ns")
        wanted = None if config is None else get_checkpoint_id(config)
        end = None if before is None else get_checkpoint_id(before)
        for found in self._checkpoints.all(ns):
            if (wanted is not None and found["id"] != wanted) or (end is not None and found["id"] >= end):
                continue
            if limit is not None and limit <= 0:
                return
            each = self._tuple(config or {"configurable": {}}, found)
            metadata = cast("Mapping[str, Any]", each.metadata)
            if all(metadata.get(key) == value for key, value in (filter or {}).items()):
                limit = None if limit is None else limit - 1
                yield each

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Save a checkpoint, durable when it returns; see `BaseCheckpointSaver`."""
        ns, parent = _namespace(config), get_checkpoint_id(config)
        bare = {key: value for key, value in checkpoint.items() if key != "channel_values"}
        values = checkpoint["channel_values"]
        record: dict[str, JSON] = {
            "ns": ns,
            "id": checkpoint["id"],
            "parent": parent,
            "checkpoint": self._packed(bare),
            "metadata": self._packed(get_checkpoint_metadata(config, metadata)),
            "channels": {
                channel: [str(version), *self._stored(ns, channel, str(version), values[channel])]
                for channel, version in new_versions.items()
                if channel in values
            },
        }
        is_loop = metadata.get("source") == "loop" and not self._checkpoints.starts(ns, parent)
        await self._checkpoints.put(record, ends_superstep=is_loop and not ns)
        return self._config(config, ns, checkpoint["id"])

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Save what a task wrote, durable when it returns; see `BaseCheckpointSaver`.

        An error that nobody handles is not saved: the attempt that it ends has come no further, and is to be counted.
        """
        channels = {channel for channel, _ in writes}
        if ERROR in channels and ERROR_SOURCE not in channels:
            return
        for _, value in writes:
            for message in value if isinstance(value, list | tuple) else (value,):
                if isinstance(message, AIMessage) and message.usage_metadata:
                    self._checkpoints.hear(message)
        await self._checkpoints.write(
            {
                "ns": _namespace(config),
                "on": config["configurable"]["checkpoint_id"],
                "task": task_id,
                "path": task_path,
                "writes": [[channel, *self._packed(value)] for channel, value in writes],
            }
        )

    def begun(self, ns: str) -> set[str]:
        """Return the paths of the tasks that did something on top of the newest checkpoint of a namespace."""
        newest = self._checkpoints.find(ns, None)
        return set() if newest is None else self._checkpoints.paths(ns, newest["id"])

    def pending(self, ns: str, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
        """Give what the newest checkpoint of a namespace holds in some channels, and what was written on top of it.

        What was there before the last input is left out: a graph that has no such channel any more does not empty it.
        """
        newest = self._checkpoints.find(ns, None)
        if newest is None:
            return
        for _, channel, typed in self._checkpoints.writes(ns, newest["id"]):
            if is_wanted(channel):
                yield channel, self.serde.loads_typed(typed)
        versions = self.serde.loads_typed(_opened(newest["checkpoint"]))["channel_versions"]
        held = [
            (channel, version, pieces)
            for channel, version in versions.items()
            if is_wanted(channel) and (pieces := self._checkpoints.pieces(ns, channel, str(version)))
        ]
        given = self._given(ns) if held else 0
        for channel, version, pieces in held:
            if version > given:
                yield channel, self._joined(pieces)

    def fail(self, error: BaseException) -> None:
        """Have the attempt fail with an error, whatever the graph makes of it."""
        self._checkpoints.fault = self._checkpoints.fault or error

    def _given(self, ns: str) -> int:
        """The highest version of a channel when the graph was last given an input."""
        for each in self._checkpoints.all(ns):
            if self.serde.loads_typed(_opened(each["metadata"])).get("source") == "input":
                versions = self.serde.loads_typed(_opened(each["checkpoint"]))["channel_versions"]
                return max(versions.values(), default=0)
        return 0

    def get_next_version(self, current: int | None, channel: None) -> int:
        """Return the version after one."""
        return (current or 0) + 1

    def _tuple(self, config: RunnableConfig, found: JSONObject) -> CheckpointTuple:
        ns, id, parent = found["ns"], found["id"], found["parent"]
        bare = self.serde.loads_typed(_opened(found["checkpoint"]))
        values = {
            channel: self._joined(pieces)
            for channel, version in bare["channel_versions"].items()
            if (pieces := self._checkpoints.pieces(ns, channel, str(version)))
        }
        return CheckpointTuple(
            self._config(config, ns, id),
            cast("Checkpoint", {**bare, "channel_values": values}),
            self.serde.loads_typed(_opened(found["metadata"])),
            None if parent is None else self._config(config, ns, parent),
            [
                (task, channel, self.serde.loads_typed(typed))
                for task, channel, typed in self._checkpoints.writes(ns, id)
            ],
        )

    def _stored(self, ns: str, channel: str, version: str, value: Any) -> list[JSON]:
        """A value; of a list what follows the part that it has in common with the version that was saved last.

        Items are compared as they would be stored: a message that a node has changed in place is another one.
        """
        if type(value) is not list:
            return self._packed(value)
        prints, before = self._prints_of(value), self._checkpoints.newest(ns, channel)
        common = 0
        if before is not None and before != version:
            known, old = self._prints.get((ns, channel), ("", []))
            if known != before:  # an earlier attempt has saved it
                saved = self._joined(self._checkpoints.pieces(ns, channel, before))
                old = self._prints_of(saved) if type(saved) is list else []
            shorter = min(len(old), len(prints))
            common = next((nth for nth in range(shorter) if old[nth] != prints[nth]), shorter)
        self._prints[ns, channel] = (version, prints)
        return [*self._packed(value[common:]), before, common] if common else self._packed(value)

    def _prints_of(self, items: list[Any]) -> list[bytes]:
        stored = (self.serde.dumps_typed(item) for item in items)
        return [blake2b(kind.encode() + b":" + content, digest_size=16).digest() for kind, content in stored]

    def _joined(self, pieces: Sequence[Piece]) -> Any:
        value: Any = None
        for common, typed in pieces:
            loaded = self.serde.loads_typed(typed)
            if common is None:
                value = loaded
            else:
                value[common:] = loaded
        return value

    def _packed(self, value: Any) -> list[JSON]:
        try:
            kind, content = self.serde.dumps_typed(value)
        except (TypeError, ValueError) as error:  # as often as the node is run
            raise AgentFailed(f"the graph keeps what cannot be saved: {error}", kind="invalid_result") from None
        return [kind, b64encode(content).decode()]

    @staticmethod
    def _config(config: RunnableConfig, ns: str, id: str) -> RunnableConfig:
        thread = config["configurable"].get("thread_id")
        return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": id}}


def _namespace(config: RunnableConfig) -> str:
    return cast(str, config["configurable"].get("checkpoint_ns", ""))


def _opened(packed: Sequence[str]) -> Typed:
    kind, content = packed
    return kind, b64decode(content)


def _usage_of(message: AIMessage) -> Usage:
    taken = message.usage_metadata
    if taken is None:
        return Usage(requests=1)
    cached = taken.get("input_token_details", {}).get("cache_read", 0)
    return Usage(1, taken["input_tokens"], taken["output_tokens"], cached)


def _told(usage: Usage) -> JSON:
    return {
        "requests": usage.requests,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
    }
