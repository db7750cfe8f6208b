"""What an app knows by name: tools, agents and executors of kinds.

A tool is a function whose parameters are its schema. Its first parameter may be a `TaskContext` (by annotation,
or by the name `task`); the rest are the arguments, checked when the task is submitted and again when it runs.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

from outrider.core.errors import InvalidArguments, UnknownName
from outrider.core.queue import route_needing
from outrider.core.task import Effects, Retry, Timeouts
from outrider.core.values import JSON, JSONObject
from outrider.runtime.codec import Shape, shape_of
from outrider.runtime.labels import LABEL, NO_LABEL, check_label

if TYPE_CHECKING:
    from outrider.core.session import Session
    from outrider.runtime.connections import Connection
    from outrider.runtime.context import TaskContext
    from outrider.runtime.services import Services

Isolation: TypeAlias = Literal["none", "process"]


@dataclass(frozen=True, slots=True)
class ModelTerms:
    """What a model may be asked in any minute, and what it costs: dollars for a million tokens in, and out."""

    name: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    input_price: float | None = None
    output_price: float | None = None


class Executor(Protocol):
    """The code that runs one kind."""

    @property
    def kind(self) -> str:
        """The kind it runs."""
        ...

    def routes(self) -> Iterable[str]:
        """What a worker with this executor serves: the kind, or `kind:name` for each name it knows."""
        ...

    def check(self, spec: JSONObject) -> CheckedSpec:
        """Check the spec of a task to be, before it is submitted.

        Raises a `Refused` with the reason; nothing is written then.
        """
        ...

    async def prepare(self) -> None:
        """Load what takes long to load; awaited once by a worker before it claims."""
        ...

    async def run(self, task: TaskContext) -> Any:
        """Run the task to its end and return its result, any value that JSON can hold."""
        ...


@runtime_checkable
class Tending(Protocol):
    """An executor whose work leaves something that has to be looked after while nobody runs its task."""

    async def tend(self, services: Services, *, at_once: bool = False) -> None:
        """Look after it; called again and again by every worker, and `at_once` by one that leaves, the last time.

        Raises nothing but what the store raises.
        """
        ...


@dataclass(frozen=True, slots=True)
class CheckedSpec:
    """A spec that may be submitted, its route, and what the tool prefers where the caller is silent."""

    spec: JSONObject
    route: str
    display_name: str
    retry: Retry | None = None
    timeouts: Timeouts | None = None
    shape: Shape | None = None
    """The declared type of the result."""
    concurrency_key: str | None = None
    needs: str | None = None
    connections: tuple[str, ...] = ()
    """Those that have to be there before it starts."""
    detached: bool = False
    """Whether it outlives who starts it, whatever they say."""
    check_session: Callable[[Session], None] | None = None
    """Raises an OutriderError for a session in which it makes no sense; nothing is written then."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function registered under a name."""

    name: str
    fn: Callable[..., Any]
    description: str = ""
    effects: Effects = "idempotent"
    isolation: Isolation = "none"
    requires_approval: bool = False
    retry: Retry | None = None
    timeouts: Timeouts | None = None
    concurrency_key: str | None = None
    needs: str | None = None
    """The label that a worker has to state which runs it."""
    connections: tuple[str, ...] = ()
    """The connections that have to be there before it starts."""
    takes_context: bool = False
    is_async: bool = False
    """Whether the function is a coroutine function; others run in a thread."""
    arguments: Arguments = field(default_factory=lambda: Arguments(lambda: None))

    @property
    def result(self) -> Shape:
        """The declared type of what it returns."""
        return shape_of(self.fn)

    @classmethod
    def of(cls, fn: Callable[..., Any], name: str | None = None, **options: Any) -> Tool:
        """Read a function's signature. Raises InvalidArguments for parameters that have no name, and odd options."""
        check_effects(options.get("effects", "idempotent"))
        isolation = options.get("isolation", "none")
        if isolation not in get_args(Isolation):
            raise InvalidArguments(f"isolation is one of {', '.join(get_args(Isolation))}, not {isolation!r:.100}")
        takes_context = _takes_context(fn)
        return cls(
            name=name or fn.__name__,
            fn=fn,
            description=inspect.getdoc(fn) or "",
            takes_context=takes_context,
            is_async=inspect.iscoroutinefunction(fn),
            arguments=Arguments(fn, skip=1 if takes_context else 0),
            **options,
        )


def release_tool(resource: str) -> str:
    """The name of the tool that releases a resource."""
    return f"release:{resource}"


def check_effects(effects: object) -> None:
    """Raise InvalidArguments for what is none: what was meant as `once` would run twice."""
    if effects not in get_args(Effects):
        raise InvalidArguments(f"effects is one of {', '.join(get_args(Effects))}, not {effects!r:.100}")


class Arguments:
    """The parameters of a function as a schema: checks what a caller passes by name."""

    __slots__ = ("_fn", "_hints", "_model", "_parameters", "_schema", "_simple")

    def __init__(self, fn: Callable[..., Any], skip: int = 0) -> None:
        self._fn = fn
        parameters = list(inspect.signature(fn).parameters.values())[skip:]
        for parameter in parameters:
            if (
                parameter.kind is inspect.Parameter.POSITIONAL_ONLY
                or parameter.kind is inspect.Parameter.VAR_POSITIONAL
            ):
                raise InvalidArguments(f"{fn.__qualname__}: {parameter} cannot be passed by name")
        self._parameters = parameters
        self._hints: dict[str, Any] | None = None
        self._model: Any = None
        self._schema: dict[str, JSON] | None = None
        self._simple: dict[str, type] | None = None

    def check(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the arguments as the function's annotations have them. Raises InvalidArguments."""
        simple = self._simple_types()
        if simple is not None and len(given) == len(simple):
            for name, kind in simple.items():
                if type(given.get(name, self)) is not kind:
                    break
            else:
                return given
        return self._validate(given)

    def schema(self) -> dict[str, JSON]:
        """Return the JSON Schema of the arguments, of type object. Not for changing: who asks again gets the same."""
        if self._schema is None:
            self._schema = typing.cast("dict[str, JSON]", self._load().model_json_schema())
            self._schema.pop("title", None)
        return self._schema

    def _validate(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        from pydantic import ValidationError

        model = self._load()
        try:
            checked = model.model_validate(dict(given))
        except ValidationError as error:
            problems = [
                {"argument": ".".join(str(part) for part in problem["loc"]), "problem": problem["msg"]}
                for problem in error.errors(include_url=False, include_input=False)
            ]
            listed = "; ".join(f"{each['argument']}: {each['problem']}" for each in problems)
            name = getattr(self._fn, "__name__", "the tool")
            raise InvalidArguments(
                f"{name}({self._signature()}) refuses its arguments: {listed}", details=problems
            ) from None
        names = {**{name: name for name in model.model_fields}}
        values = {name: getattr(checked, name) for name in names if name in checked.model_fields_set}
        return {**values, **(checked.model_extra or {})}

    def _signature(self) -> str:
        return ", ".join(str(parameter) for parameter in self._parameters)

    def _simple_types(self) -> dict[str, type] | None:
        """The types by name where all are plain scalars without defaults: the common case, checked in place."""
        if self._simple is None:
            hints = self._load_hints()
            simple = {}
            for parameter in self._parameters:
                kind = hints.get(parameter.name)
                if kind not in (str, int, float, bool) or parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    return None
                simple[parameter.name] = kind
            self._simple = simple
        return self._simple

    def _load_hints(self) -> dict[str, Any]:
        if self._hints is None:
            try:
                self._hints = typing.get_type_hints(self._fn, include_extras=True)
            except Exception:  # noqa: BLE001 - a name that cannot be resolved leaves that argument unchecked
                self._hints = {}
        return self._hints

    def _load(self) -> Any:
        if self._model is None:
            from pydantic import ConfigDict, create_model

            hints = self._load_hints()
            fields: dict[str, Any] = {}
            extra: Literal["allow", "forbid"] = "forbid"
            for parameter in self._parameters:
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    extra = "allow"
                    continue
                default = ... if parameter.default is inspect.Parameter.empty else parameter.default
                fields[parameter.name] = (hints.get(parameter.name, Any), default)
            config = ConfigDict(extra=extra, arbitrary_types_allowed=True, protected_namespaces=())
            self._model = create_model("Arguments", __config__=config, **fields)
        return self._model


def _takes_context(fn: Callable[..., Any]) -> bool:
    from outrider.runtime.context import SyncTaskContext, TaskContext

    first = next(iter(inspect.signature(fn).parameters.values()), None)
    if first is None:
        return False
    if first.annotation is inspect.Parameter.empty:
        return first.name == "task"
    if isinstance(first.annotation, str):
        return first.annotation.split(".")[-1].strip("\"'") in ("TaskContext", "SyncTaskContext")
    return first.annotation in (TaskContext, SyncTaskContext)


class Registry:
    """The names of one app."""

    def __init__(self, version: str = "") -> None:
        self.version = version
        self.tools: dict[str, Tool] = {}
        self.agents: dict[str, object] = {}
        self.models: dict[str, ModelTerms] = {}
        self.connections: dict[str, Connection] = {}
        self.executors: dict[str, Executor] = {}
        self._chosen: tuple[str, ...] = ()
        self._labels: tuple[str | None, ...] = (None,)

    def serve(self, patterns: Sequence[str]) -> None:
        """Have workers serve only what matches one of these: a kind, or `kind:name`; a * stands for anything.

        `label:NAME` among them has workers take only tasks that need that label, `label:none` those too that need
        none; with no such pattern these are all. Raises InvalidArguments for a pattern that nothing here matches, and
        for what is no label.
        """
        labels = [pattern.removeprefix(LABEL) for pattern in patterns if pattern.startswith(LABEL)]
        for label in labels:
            if label != NO_LABEL:
                check_label("what a worker serves", label)
        chosen = [pattern for pattern in patterns if not pattern.startswith(LABEL)]
        there = self._known_routes()
        for pattern in chosen:
            if not any(_matches(route, pattern) for route in there):
                raise InvalidArguments(f"nothing here matches {pattern!r}; there is {', '.join(there)}")
        self._chosen = tuple(chosen)
        self._labels = tuple(dict.fromkeys(None if label == NO_LABEL else label for label in labels)) or (None,)

    def tool(self, name: object) -> Tool:
        """The tool of that name. Raises UnknownName with the names that are known."""
        found = self.tools.get(name) if isinstance(name, str) else None
        if found is None:
            raise UnknownName.of("tool", str(name), self.tools)
        return found

    def executor(self, kind: object) -> Executor:
        """The executor of that kind. Raises UnknownName with the kinds that are known."""
        found = self.executors.get(kind) if isinstance(kind, str) else None
        if found is None:
            raise UnknownName.of("kind", str(kind), self.executors)
        return found

    def routes(self) -> tuple[str, ...]:
        """All that a worker with this registry serves: each route once for each label that it states."""
        chosen = self._chosen
        routes = [
            route for route in self._known_routes() if not chosen or any(_matches(route, pattern) for pattern in chosen)
        ]
        return tuple(route_needing(route, label) for label in self._labels for route in routes)

    def _known_routes(self) -> list[str]:
        return sorted({route for executor in self.executors.values() for route in executor.routes()})


def _matches(route: str, pattern: str) -> bool:
    kind, _, _ = route.partition(":")
    return fnmatchcase(route, pattern) or fnmatchcase(kind, pattern)
