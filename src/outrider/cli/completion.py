"""`completion`: a script that makes a shell complete the commands, written from their parsers.

Commands, options and choices are in the script; only tasks and sessions are asked for while somebody types, and that
says nothing at all where anything is in its way.
"""

from __future__ import annotations

import argparse
import re
import shlex
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from outrider.bootstrap import path_of
from outrider.cli.arguments import COMMANDS, STATES, Command, environment
from outrider.cli.database import open_store, server_of, url_of
from outrider.cli.exits import OK, UsageError
from outrider.cli.glance import Glance
from outrider.cli.terminal import Screen, on_one_line
from outrider.core.errors import OutriderError
from outrider.core.ledger import Ledger, TaskFilter
from outrider.core.task import LIVE_STATES, State

OFFERED = 50
"""How many tasks are offered, the newest."""

_PLAIN = re.compile(r"[A-Za-z0-9_.:@+-]+")
_STATES = {"answer": (State.AWAITING_INPUT,), "cancel": tuple(LIVE_STATES), "message": tuple(LIVE_STATES)}
"""Which tasks a command can be about; of the others, any."""

_FILES = {"FILE", "FROM", "PATH", "TO", "URL"}
_LOOKED_UP = {"TASK", "SESSION|TASK", "SESSION"}
_TALKS = ("chat", "send")
"""The commands that are about a session with an agent."""


async def completion(arguments: Namespace, screen: Screen) -> int:
    """Print the script for a shell, or the tasks that a line may go on with."""
    if arguments.line is not None:
        await _tasks(arguments, screen)
    elif arguments.shell is None:
        raise UsageError(f"which shell? {', '.join(SCRIPTS)}")
    else:
        screen.out.write(SCRIPTS[arguments.shell]([_Words.of(command) for command in COMMANDS.values()]))
        screen.out.flush()
    return OK


async def _tasks(arguments: Namespace, screen: Screen) -> None:
    line: str = arguments.line
    try:
        words = shlex.split(line)
    except ValueError:  # in the midst of quotes
        words = line.split()
    typed = "" if not words or line[-1:].isspace() else words[-1]
    command = next((word for word in words[1:] if word in COMMANDS), "")
    for place, word in enumerate(words):
        if word == "--db" and place + 1 < len(words):
            arguments.db = words[place + 1]
        elif word.startswith("--db="):
            arguments.db = word[5:]
        elif word == "--server" and place + 1 < len(words):
            arguments.server = words[place + 1]
        elif word.startswith("--server="):
            arguments.server = word[9:]
    whole = typed.startswith("task_")
    try:
        if (server := server_of(arguments)) is not None:
            offered = await _of_server(server, command, whole)
        elif _is_there(url_of(arguments)):
            offered = await _of_database(arguments, command, whole)
        else:
            return
    except OutriderError:
        return
    for name, what in offered:
        if _PLAIN.fullmatch(name):  # a shell makes its own of anything else
            screen.line(f"{name}\t{what}")


async def _of_database(arguments: Namespace, command: str, whole: bool) -> list[tuple[str, str]]:
    """What a database has to offer. Not by the façade, whose records take longer to import than a person waits."""
    async with open_store(arguments) as ledger:
        if command in _TALKS:
            return await _sessions(ledger)
        wanted = TaskFilter(states=_STATES.get(command), limit=OFFERED)
        return [_offer(Glance.of(task), whole) for task in await ledger.views.list_tasks(wanted)]


async def _of_server(server: str, command: str, whole: bool) -> list[tuple[str, str]]:
    """What a server has to offer at once."""
    from outrider.client import Client
    from outrider.settings import ClientSettings

    at_once = ClientSettings(patience=0, connect_timeout=1.0, answer_timeout=2.0)
    async with Client(server, key=environment("OUTRIDER_KEY"), settings=at_once) as client:
        if command in _TALKS:
            return [
                (each.id, on_one_line(each.title or each.agent))
                for each in await client.sessions.list(limit=OFFERED)
                if each.agent is not None and each.parent_task_id is None
            ]
        found = await client.tasks.list(states=_STATES.get(command), limit=OFFERED)
        return [_offer(Glance.of(task), whole) for task in found]


def _offer(each: Glance, whole: bool) -> tuple[str, str]:
    return each.id if whole else each.short_id, f"{each.state} {each.name}"


async def _sessions(ledger: Ledger) -> list[tuple[str, str]]:
    """The sessions that can be talked to, newest first, and whose they are."""
    found = await ledger.views.sessions(limit=OFFERED)
    return [
        (each.id, on_one_line(each.title or each.agent))
        for each in found
        if each.agent is not None and each.parent_task_id is None
    ]


def _is_there(url: str) -> bool:
    """Whether the database exists; to open it would make it."""
    try:
        return path_of(url).exists()
    except OutriderError:
        return False


# --- what there is to complete ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Taken:
    """An option, or what a command takes at a place: `words` to choose from, else `tasks` or `files` or anything."""

    names: tuple[str, ...]
    what: str
    summary: str
    words: tuple[str, ...]
    has_value: bool
    is_repeated: bool

    @classmethod
    def of(cls, action: argparse.Action) -> _Taken:
        what = str(action.metavar or action.dest)
        return cls(
            tuple(action.option_strings),
            "tasks" if what in _LOOKED_UP else "files" if what in _FILES else what,
            action.help or what,
            STATES if action.dest == "state" else tuple(map(str, action.choices or ())),
            action.nargs != 0,
            action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction),
        )


@dataclass(frozen=True, slots=True)
class _Words:
    """A command with all that it takes."""

    name: str
    summary: str
    options: tuple[_Taken, ...]
    places: tuple[_Taken, ...]

    @classmethod
    def of(cls, command: Command) -> _Words:
        taken = [_Taken.of(each) for each in command.parser()._actions if each.help != argparse.SUPPRESS]
        return cls(
            command.name,
            command.summary,
            tuple(each for each in taken if each.names),
            tuple(each for each in taken if not each.names),
        )


def _unique(options: Iterable[_Taken]) -> dict[str, _Taken]:
    return {name: option for option in options for name in option.names}


# --- bash ------------------------------------------------------------------------------------------------------


def _bash(commands: list[_Words]) -> str:
    names = " ".join(each.name for each in commands)
    values = _unique(option for each in commands for option in each.options if option.has_value)
    free = sorted(name for name, option in values.items() if not option.words and option.what != "files")
    files = sorted(name for name, option in values.items() if not option.words and option.what == "files")
    lines = [
        '# bash completion for outrider; eval "$(outrider completion bash)"',
        "_outrider() {",
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= word words= IFS=$' \\t\\n'",
        "    COMPREPLY=()",
        "    if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi",
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        f"        case $word in {'|'.join(each.name for each in commands)}) command=$word; break ;; esac",
        "    done",
        "    case $prev in",
        *(
            f'        {name}) COMPREPLY=($(compgen -W "{" ".join(option.words)}" -- "$cur")); return ;;'
            for name, option in values.items()
            if option.words
        ),
        f"        {'|'.join(files)}) return ;;  # readline completes files",
        f"        {'|'.join(free)}) compopt +o default 2>/dev/null; return ;;",
        "    esac",
        "    case $command in",
        f'        "") words="{names} --help --version" ;;',
    ]
    for each in commands:
        options = " ".join(name for option in each.options for name in option.names)
        lines += [
            f"        {each.name})",
            f'            if [[ $cur == -* ]]; then words="{options}"',
            *(f"            else {_bash_place(place)}" for place in each.places[:1]),
            "            fi ;;",
        ]
    return "\n".join([
        *lines,
        "    esac",
        '    if [[ -n $words ]]; then compopt +o default 2>/dev/null; fi',
        '    COMPREPLY=($(compgen -W "$words" -- "$cur"))',
        "}",
        "complete -o default -F _outrider outrider",
        "",
    ])  # fmt: skip


def _bash_place(place: _Taken) -> str:
    if place.words:
        return f'words="{" ".join(place.words)}"'
    if place.what == "tasks":
        return (
            "compopt +o default 2>/dev/null; "
            'words=$(outrider completion --tasks="${COMP_LINE:0:COMP_POINT}" 2>/dev/null | cut -f 1)'
        )
    return "return" if place.what == "files" else "compopt +o default 2>/dev/null; return"


# --- zsh -------------------------------------------------------------------------------------------------------


def _zsh(commands: list[_Words]) -> str:
    lines = [
        "#compdef outrider",
        '# zsh completion for outrider; eval "$(outrider completion zsh)", or a file _outrider in $fpath',
        "_outrider_tasks() {",
        "    local -a found",
        '    found=(${(f)"$(outrider completion --tasks="$LBUFFER" 2>/dev/null)"})',
        "    found=(${found//:/\\\\:})",
        "    found=(${found//$'\\t'/:})",
        "    _describe -V task found",
        "}",
        "_outrider() {",
        "    local curcontext=$curcontext state line",
        "    typeset -A opt_args",
        "    local -a commands=(",
        *(f"        {_quoted(f'{each.name}:{each.summary}')}" for each in commands),
        "    )",
        "    _arguments -C '(- *)'{-h,--help}'[what there is]' '(- *)--version[which version this is]' \\",
        "        '1: :->command' '*:: :->rest'",
        "    case $state in",
        "        command) _describe command commands ;;",
        "        rest)",
        "            case $words[1] in",
    ]
    for each in commands:
        specs = [*(spec for option in each.options for spec in _zsh_option(option)), *map(_zsh_place, each.places)]
        lines += [f"                {each.name})", "                    _arguments -s \\"]
        lines += [f"                    {spec} \\" for spec in specs[:-1]] + [f"                    {specs[-1]} ;;"]
    return "\n".join([
        *lines,
        "            esac ;;",
        "    esac",
        "}",
        'if [[ $funcstack[1] == _outrider ]]; then _outrider "$@"; else compdef _outrider outrider; fi',
        "",
    ])  # fmt: skip


def _zsh_option(option: _Taken) -> Iterator[str]:
    summary = option.summary.replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    for name in option.names:
        mark = "*" if option.is_repeated else f"({' '.join(option.names)})"
        equals = "=" if option.has_value and name.startswith("--") else ""
        value = f":{option.what.replace(':', ' ')}:{_zsh_action(option)}" if option.has_value else ""
        yield _quoted(f"{mark}{name}{equals}[{summary}]{value}")


def _zsh_place(place: _Taken) -> str:
    return _quoted(f"{'*' if place.is_repeated else ''}:{place.what.replace(':', ' ')}:{_zsh_action(place)}")


def _zsh_action(taken: _Taken) -> str:
    if taken.words:
        return f"({' '.join(taken.words)})"
    return {"tasks": "_outrider_tasks", "files": "_files"}.get(taken.what, " ")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# --- fish ------------------------------------------------------------------------------------------------------


def _fish(commands: list[_Words]) -> str:
    names = " ".join(each.name for each in commands)
    first = f"complete -c outrider -n 'not __fish_seen_subcommand_from {names}'"
    lines = [
        "# fish completion for outrider; outrider completion fish | source",
        "complete -c outrider -f",
        f"{first} -l version -d 'which version this is'",
    ]
    for each in commands:
        lines.append(f"{first} -a {each.name} -d {_fished(each.summary)}")
        here = f"complete -c outrider -n '__fish_seen_subcommand_from {each.name}'"
        for option in each.options:
            flags = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
            lines.append(f"{here} {' '.join(flags)}{_fish_value(option)} -d {_fished(option.summary)}")
        lines += [f"{here}{argument}" for place in each.places[:1] if (argument := _fish_place(place))]
    return "\n".join([*lines, ""])


def _fish_value(option: _Taken) -> str:
    if not option.has_value:
        return ""
    if option.words:
        return f" -xa {_fished(' '.join(option.words))}"
    return " -rF" if option.what == "files" else " -x"


def _fish_place(place: _Taken) -> str:
    if place.words:
        return f" -a {_fished(' '.join(place.words))}"
    if place.what == "tasks":
        return " -ka '(outrider completion --tasks=(commandline -cp | string collect) 2>/dev/null)'"
    return " -F" if place.what == "files" else ""


def _fished(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
