"""What may be typed: every command with its options. docs/cli.md says the same, and a test compares the two.

argparse rather than something prettier: it is there in 2 ms of the 300 that `outrider tasks` has; cyclopts was
measured at 45. One parser is built, the one of the command that was named. Options that every command knows may
stand before the command as well.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from outrider.cli.exits import UsageError
from outrider.cli.values import moment, seconds, size, whole

STATES = ("queued", "running", "awaiting_input", "succeeded", "failed", "canceled")
WAKES = ("silent", "on_terminal", "on_activity")
SCOPES = ("read", "submit", "operate", "admin")
KEY_ACTIONS = ("create", "list", "revoke", "rotate")
STEERING = ("inject", "after", "interrupt", "reject")
LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
WEBHOOK_ACTIONS = (
    *("list", "create", "show", "update", "delete", "enable", "disable", "rotate", "test", "deliveries", "replay"),
)
SHELLS = ("bash", "zsh", "fish")
FOREVER = "forever"
_OF_DATABASE = {
    "worker": "a worker takes its tasks out of the database itself",
    "serve": "it is what serves a database",
    "backup": "it writes a file, which has all of all organizations in it",
    "restore": "it puts a file in the place of the database, which nobody may be using",
    "separate": "it changes what the database is known by",
}
"""Commands that no server does, and why."""
_OF_OTHERS = {"demo": "uses a database of its own", "copy": "names both databases itself"}
IDLE_EXIT = 60.0
"""Seconds that a worker which a command started stays after its last task."""

_PATHS = ("db", "destination", "file", "key_file", "line", "path", "socket", "source")
_NAMES = (
    *("ack", "after", "agent", "app", "artifact", "concurrency_key", "cwd", "debounce_key", "idempotency_key"),
    *("in_reply_to", "kind", "model", "name", "needs", "organization", "parent", "rate", "reason", "renew", "request"),
    *("root", "session", "state", "stdin", "step", "text"),
    *("host", "socket", "origin", "age", "allow_host", "expect_head", "id", "key", "server", "key_file"),
)
"""The options that may not be empty: left out they mean something else."""
_FLAGS = {"step": "from"}
_TAKES_VALUE = ("--db", "--server", "--key-file", "--log-level", "--log-format")


class Parser(argparse.ArgumentParser):
    """One command's parser. What is wrong with the arguments is raised, so that `--json` can report it."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}\ntry: {self.prog} --help")


@dataclass(frozen=True, slots=True)
class Command:
    """A command: what it is for, where its code is (`module:function`), and what it takes."""

    name: str
    summary: str
    code: str
    describe: Callable[[Parser], None]

    def parser(self) -> Parser:
        """The parser of this command."""
        parser = Parser(f"outrider {self.name}", description=self.summary, allow_abbrev=False)
        self.describe(parser)
        common = parser.add_argument_group("of every command")
        common.add_argument("--db", metavar="URL", help="the database (OUTRIDER_DB); default .outrider/outrider.db")
        common.add_argument("--server", metavar="URL", help="a server, in place of a database (OUTRIDER_SERVER)")
        common.add_argument("--key-file", metavar="PATH", help="the file with the key for it (OUTRIDER_KEY)")
        common.add_argument("--json", action="store_true", help="one JSON object a line, errors too")
        common.add_argument("--log-level", choices=LEVELS, default="warning", help="what is logged to stderr")
        common.add_argument("--log-format", choices=FORMATS, help="how (OUTRIDER_LOG_FORMAT); default text")
        common.add_argument("-v", "--verbose", action="store_true", help="log each transition; full tracebacks")
        return parser


def parse(argv: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """The command that was named, and its arguments. Raises UsageError; `--help` and `--version` exit."""
    before, name, rest = _split(argv)
    if name is None:
        if "--version" in before:
            from outrider import __version__

            _tell(f"outrider {__version__}")
        if {"-h", "--help"} & set(before):
            _tell(overview())
        raise UsageError(f"which command?\n{overview()}" if not before else "which command? try: outrider --help")
    if name == "help":
        _tell(COMMANDS[rest[0]].parser().format_help() if rest and rest[0] in COMMANDS else overview())
    command = COMMANDS.get(name)
    if command is None:
        raise UsageError(f"unknown command {name!r}{_nearest(name)}\ntry: outrider --help")
    parser = command.parser()
    typed: list[str] = []
    if name == "run":
        rest = _with_approvals(rest)
    elif name == "exec" and "--" in rest:
        rest, typed = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
    arguments = parser.parse_intermixed_args([*before, *rest])
    if name == "exec":
        arguments.command += typed  # whatever it looks like
    _check_text(arguments)
    _check_given(arguments)
    _check_place(command, arguments)
    arguments.log_format = arguments.log_format or _log_format()
    return command, arguments


def _log_format() -> str:
    """What the environment says. Raises UsageError where it makes no sense."""
    told = environment("OUTRIDER_LOG_FORMAT") or FORMATS[0]
    if told not in FORMATS:
        raise UsageError(f"OUTRIDER_LOG_FORMAT is {' or '.join(FORMATS)}, not {told!r}")
    return told


def overview() -> str:
    """What `outrider --help` says."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS.values())
    return (
        "usage: outrider COMMAND [ARGUMENTS]\n\nDurable background tasks for AI agents.\n\n"
        f"{listed}\n\noutrider COMMAND --help tells what a command takes; outrider --version which version this is."
    )


def _check_text(arguments: argparse.Namespace) -> None:
    """Raise UsageError for what is no text. Paths need not be: a file may be called anything."""
    for name, value in vars(arguments).items():
        for each in value if isinstance(value, list) else [value]:
            if name not in _PATHS and isinstance(each, str) and not each.isascii():
                try:
                    each.encode()
                except UnicodeEncodeError as error:
                    raise UsageError(f"{each!r} is not UTF-8") from error


def _check_given(arguments: argparse.Namespace) -> None:
    """Raise UsageError for an option that names nothing: mostly a variable of a script that is not set."""
    for name in _NAMES:
        given = getattr(arguments, name, None)
        if "" in (given if isinstance(given, list) else [given]):
            option = _FLAGS.get(name, name.replace("_", "-"))
            raise UsageError(f"--{option} is empty; give it a value or leave it out")


def _check_place(command: Command, arguments: argparse.Namespace) -> None:
    """Raise UsageError for two places at once, and for a server where only the machine of the database will do."""
    if arguments.db is not None and arguments.server is not None:
        raise UsageError("--server takes the place of --db")
    if arguments.server is not None and command.name in _OF_OTHERS:
        raise UsageError(f"{command.name} {_OF_OTHERS[command.name]}; leave out --server")
    if command.name not in _OF_DATABASE or arguments.db is not None:
        return
    if arguments.server or (environment("OUTRIDER_SERVER") and not environment("OUTRIDER_DB")):
        raise UsageError(
            f"outrider {command.name} is for the machine of the database: {_OF_DATABASE[command.name]}; "
            "run it there, or name a database with --db"
        )


def _tell(text: str) -> NoReturn:
    sys.stdout.write(text.rstrip() + "\n")
    raise SystemExit(0)


def _split(argv: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """The options before the command, the command, and the rest."""
    place = 0
    while place < len(argv) and argv[place].startswith("-"):
        place += 2 if argv[place] in _TAKES_VALUE else 1
    if place >= len(argv):
        return list(argv), None, []
    return list(argv[:place]), argv[place], list(argv[place + 1 :])


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    near = ["doctor"] if name in ("explain", "why") else get_close_matches(name, COMMANDS, 1)
    return f"; do you mean {near[0]!r}?" if near else ""


def _with_approvals(rest: Sequence[str]) -> list[str]:
    """Settle what `--require-approval` takes: `all`, names given to `--tools`, or nothing, which means `all`.

    What follows it may be the prompt.
    """
    arguments = list(rest)
    known = {"all"}
    for place, word in enumerate(arguments):
        if word.startswith("--tools="):
            known |= set(word[8:].split(","))
        elif word == "--tools" and place + 1 < len(arguments):
            known |= set(arguments[place + 1].split(","))
    for place, word in enumerate(arguments):
        if word == "--":
            break
        if word == "--require-approval":
            follows = arguments[place + 1] if place + 1 < len(arguments) else ""
            if follows and set(follows.split(",")) <= known:
                arguments[place : place + 2] = [f"{word}={follows}"]
            else:
                arguments[place] = f"{word}=all"
    return arguments


# --- what each command takes -----------------------------------------------------------------------------


def _call(parser: Parser) -> None:
    parser.add_argument("tool", metavar="TOOL", help="a tool of the app")
    parser.add_argument("arguments", metavar="ARG=VALUE", nargs="*", help="JSON where it parses, else text")
    _app(parser)
    _starting(parser)


def _run(parser: Parser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="what the agent is asked; - reads stdin")
    parser.add_argument("--system", metavar="TEXT", help="the system prompt")
    parser.add_argument(
        "--model", metavar="NAME", help="PROVIDER:NAME, or JSON: an object, or a list to fall back on (OUTRIDER_MODEL)"
    )
    parser.add_argument("--agent", metavar="NAME", help="an agent of the app")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--peer", action="store_true", help="the agent answers in a session that stays open")
    where.add_argument(
        "--invite", action="store_true", help="the agent takes a turn in --session, whose agent is another"
    )
    parser.add_argument("--tools", metavar="A,B", default="", help="tools of the app that it may call")
    parser.add_argument("--max-iterations", metavar="N", type=_whole, help="model calls at most; default 50")
    parser.add_argument(
        "--require-approval", metavar="TOOLS|all", help="ask before these tools are called; alone, before any"
    )
    _app(parser)
    _starting(parser)


def _exec(parser: Parser) -> None:
    parser.add_argument("command", metavar="COMMAND", nargs="*", help="the command with its arguments, after --")
    parser.add_argument("--cwd", metavar="DIR", help="where it runs; default here")
    parser.add_argument("--env", metavar="NAME[=VALUE]", action="append", default=[], help="alone, as it is here")
    parser.add_argument("--clean-env", action="store_true", help="nothing in its environment but --env")
    parser.add_argument("--stdin", metavar="FILE", help="text that it reads; - reads stdin; default nothing")
    parser.add_argument("--cpu", metavar="TIME", type=_time, help="CPU time at most, for each process")
    parser.add_argument("--memory", metavar="SIZE", type=_size, help="memory at most, for all of them together")
    parser.add_argument("--max-output", metavar="SIZE", type=_size, help="output at most")
    parser.add_argument(
        "--artifact", metavar="GLOB", action="append", default=[], help="files to keep; may be repeated"
    )
    parser.add_argument("--once", action="store_true", help="ask before it is run again where its end is not known")
    _app(parser)
    _starting(parser)


def _tasks(parser: Parser) -> None:
    parser.add_argument("--state", metavar="STATE", action="append", default=[], help="one or more, with commas")
    parser.add_argument("--kind", metavar="KIND")
    parser.add_argument("--session", metavar="ID")
    parser.add_argument("--root", metavar="ID", help="of this session and all below it")
    parser.add_argument("--parent", metavar="TASK", help="the children of this task")
    parser.add_argument("--organization", metavar="ID")
    _labels(parser)
    parser.add_argument("--text", metavar="WORDS", help="that have all these words, or this id")
    parser.add_argument(
        "--created-after",
        metavar="WHEN",
        type=_moment,
        help="made then or later: 2026-01-31, 2026-01-31T09:30, or 2h ago: 2h",
    )
    parser.add_argument("--created-before", metavar="WHEN", type=_moment, help="made earlier than that")
    parser.add_argument("--limit", metavar="N", type=_whole, default=50, help="newest first; default 50")
    parser.add_argument("--after", metavar="TASK", help="go on after this one, the last of the page before")
    parser.add_argument("--oldest-first", action="store_true")


def _show(parser: Parser) -> None:
    _task(parser)


def _watch(parser: Parser) -> None:
    parser.add_argument("target", metavar="SESSION|TASK", nargs="?", help="left out, everything")
    parser.add_argument("--after", metavar="SEQ", type=_whole, help="events after this number; default from the start")


def _output(parser: Parser) -> None:
    _task(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the task has ended")
    parser.add_argument("--from", metavar="OFFSET", dest="start", type=_whole, default=0, help="from this byte on")


def _messages(parser: Parser) -> None:
    _task(parser)


def _message(parser: Parser) -> None:
    _task(parser)
    parser.add_argument("text", metavar="TEXT", help="- reads stdin")
    parser.add_argument("--in-reply-to", metavar="ID", help="the message that this answers")


def _chat(parser: Parser) -> None:
    parser.add_argument("session", metavar="SESSION", nargs="?", help="a session to go on with; left out, a new one")
    parser.add_argument("--agent", metavar="NAME", help="whose a new session is; default the app's, if it has but one")
    _app(parser)


def _send(parser: Parser) -> None:
    parser.add_argument("session", metavar="SESSION", help="a session that has an agent")
    parser.add_argument("text", metavar="TEXT", nargs="+", help="what is said to it; - reads stdin")
    parser.add_argument("--steering", choices=STEERING, default="inject", help="during a turn: heard when; or refused")
    parser.add_argument("--wait", action="store_true", help="until it has answered, and print that")


def _answer(parser: Parser) -> None:
    _task(parser)
    parser.add_argument("value", metavar="VALUE", help="JSON where it parses and fits, else text; yes, no, always")
    parser.add_argument("--request", metavar="ID", help="which question; default the oldest")


def _inbox(parser: Parser) -> None:
    parser.add_argument("session", metavar="SESSION", nargs="?", help="default session_default")
    parser.add_argument("--wait", metavar="TIME", type=_time, help="receive: what is there, or the first within this")
    parser.add_argument("--lease", metavar="TIME", type=_time, help="for so long nobody else receives it; default 1m")
    parser.add_argument("--limit", metavar="N", type=_whole, default=100, help="oldest first; default 100")
    parser.add_argument(
        "--ack", metavar="RECEIPT", action="append", default=[], help="what was received is done; may be repeated"
    )
    parser.add_argument(
        "--renew", metavar="RECEIPT", action="append", default=[], help="keep it for a lease more; may be repeated"
    )


def _grants(parser: Parser) -> None:
    parser.add_argument("session", metavar="SESSION", help="the id of the session")
    parser.add_argument("--revoke", metavar="TOOL", help="have this one need an approval again")


def _cancel(parser: Parser) -> None:
    parser.add_argument("tasks", metavar="TASK", nargs="*", help="ids, or the beginning or end of one")
    parser.add_argument("--all", action="store_true", help="every live task, as far as these narrow it:")
    parser.add_argument("--session", metavar="ID", help="with --all, of this session")
    parser.add_argument("--kind", metavar="KIND", help="with --all, of this kind")
    _labels(parser)
    parser.add_argument("--reason", metavar="TEXT")
    parser.add_argument("--wait", action="store_true", help="until all of it has ended, or its grace is over")
    parser.add_argument("--include-detached", action="store_true", help="detached children too")


def _limits(parser: Parser) -> None:
    parser.add_argument("key", metavar="KEY", nargs="?", help="whose limit to set; K* means each that begins so")
    parser.add_argument("--concurrency", metavar="N", type=_whole, help="tasks at once; left out, any number")
    parser.add_argument("--rate", metavar="N/TIME", help="starts in any such time: 100/1m")
    parser.add_argument("--organization", metavar="ID", help="of its key alone; left out, of all without one of theirs")
    parser.add_argument("--remove", action="store_true", help="remove the limit of KEY")


def _pause(parser: Parser) -> None:
    _scope(parser)
    parser.add_argument("--reason", metavar="TEXT")


def _resume(parser: Parser) -> None:
    _scope(parser)


def _webhooks(parser: Parser) -> None:
    parser.add_argument("action", metavar="ACTION", nargs="?", choices=WEBHOOK_ACTIONS, default="list")
    parser.add_argument("target", metavar="TARGET", nargs="?", help="the URL of create, else the id of a webhook")
    parser.add_argument("deliveries", metavar="DELIVERY", nargs="*", help="what to replay; all dead letters without")
    parser.add_argument("--url", metavar="URL", help="update: where they are sent from now on")
    parser.add_argument("--events", metavar="LIST", help="create, update: terminal,awaiting_input,message,progress")
    parser.add_argument("--task", metavar="TASK", help="create, list: of this task alone")
    parser.add_argument("--description", metavar="TEXT", help="create, update: what it is for")
    parser.add_argument("--overlap", metavar="TIME", type=_time, help="rotate: how long the old secret signs, too")
    parser.add_argument("--status", choices=("pending", "delivered", "dead"), help="deliveries: those only")
    parser.add_argument("--limit", metavar="N", type=_whole, default=20, help="list, deliveries: so many at most")
    parser.add_argument("--reason", metavar="TEXT", help="disable: why, for others to see")


def _scope(parser: Parser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--session", metavar="ID", help="the tasks of this session")
    which.add_argument("--kind", metavar="KIND", help="the tasks of this kind")
    which.add_argument("--all", action="store_true", help="every task")


def _sessions(parser: Parser) -> None:
    actions = ("list", "show", "create", "update")
    parser.add_argument("action", metavar="ACTION", nargs="?", choices=actions, default="list", help=_either(actions))
    parser.add_argument("session", metavar="SESSION", nargs="?", help="which to show or update")
    parser.add_argument("--id", metavar="ID", help="create: an id of your own; the same one gives the same session")
    parser.add_argument("--agent", metavar="NAME", help="create: who takes its turns; without one, an agent of yours")
    parser.add_argument("--title", metavar="TEXT", help="create, update: what it is called; an empty one takes it away")
    _labels(parser)
    parser.add_argument("--no-label", metavar="K", action="append", default=[], help="update: take it away")
    parser.add_argument("--limit", metavar="N", type=_whole, help="list: newest first; default 50")
    parser.add_argument("--after", metavar="SESSION", help="list: go on after this one, the last of the page before")


def _close(parser: Parser) -> None:
    _session(parser)
    parser.add_argument(
        "--tasks", choices=("finish", "cancel", "refuse"), default="finish", help="what becomes of those that live"
    )


def _reopen(parser: Parser) -> None:
    _session(parser)


def _priority(parser: Parser) -> None:
    _task(parser)
    parser.add_argument("priority", metavar="N", type=_whole, help="-1000 to 1000, higher goes first")


def _retry(parser: Parser) -> None:
    _task(parser)


def _fork(parser: Parser) -> None:
    parser.add_argument("target", metavar="SESSION|TASK", help="a task by the beginning or end of its id")
    parser.add_argument(
        "--from", metavar="STEP", dest="step", help="of a task: a position of its journal; default behind the last"
    )
    parser.add_argument("--upto", metavar="TURN", help="of a session: up to the end of this turn; default all of it")
    parser.add_argument("--iteration", metavar="N", type=_whole, help="with --upto: up to this iteration of the turn")
    parser.add_argument("--title", metavar="TEXT", help="of a session: what the new one is called")


def _wait(parser: Parser) -> None:
    parser.add_argument("tasks", metavar="TASK", nargs="+", help="ids, or the beginning or end of one")
    parser.add_argument("--any", action="store_true", help="until the first has ended")
    parser.add_argument("--timeout", metavar="TIME", type=_time, help="give up waiting after this")


def _export(parser: Parser) -> None:
    parser.add_argument("target", metavar="SESSION|TASK", help="a task by the beginning or end of its id")
    parser.add_argument("--move", action="store_true", help="end it here, as canceled, once it is written")
    parser.add_argument("--events", action="store_true", help="its log entries too")


def _import(parser: Parser) -> None:
    parser.add_argument("path", metavar="FILE", help="what export wrote; - reads stdin")
    parser.add_argument("--session", metavar="ID", help="into this session; default the one it had")
    parser.add_argument("--force", action="store_true", help="also where nothing here can run it")
    _app(parser)


def _delete(parser: Parser) -> None:
    parser.add_argument("targets", metavar="SESSION|TASK", nargs="+", help="a task by the beginning or end of its id")
    parser.add_argument("--cancel", action="store_true", help="of a session: cancel what lives in it first")


def _prune(parser: Parser) -> None:
    parser.add_argument("--older-than", metavar="TIME", type=_time, help="since their end; default 30d")
    parser.add_argument("--state", metavar="STATE", action="append", default=[], help="one or more, with commas")
    parser.add_argument("--kind", metavar="KIND")
    parser.add_argument("--session", metavar="ID")
    parser.add_argument("--dry-run", action="store_true", help="only say how many")


def _retention(parser: Parser) -> None:
    parser.add_argument("--organization", metavar="ID", help="default org_default")
    parser.add_argument("--age", metavar="TIME", help=f"keep what has ended for so long; `{FOREVER}` for no bound")
    parser.add_argument("--count", metavar="N", type=int, help="keep no more ended tasks than that, the newest")
    parser.add_argument("--archive", action="store_true", help="whole sessions go, into the archive; with --age")
    parser.add_argument("--reset", action="store_true", help="as the setting `retention` of the workers says")


def _archive(parser: Parser) -> None:
    parser.add_argument("sessions", metavar="SESSION", nargs="*", help="what to archive; without any, list the archive")
    parser.add_argument("--read", action="store_true", help="print what was archived of them, one record a line")
    parser.add_argument("--erase", action="store_true", help="delete them from the archive, for good")


def _pin(parser: Parser) -> None:
    parser.add_argument("targets", metavar="SESSION|TASK", nargs="*", help="what to pin; without any, list the pins")
    parser.add_argument("--remove", action="store_true", help="unpin them")
    parser.add_argument("--reason", metavar="TEXT", help="why, for whoever looks")


def _worker(parser: Parser) -> None:
    parser.add_argument(
        "--app",
        metavar="MODULE:APP",
        action="append",
        default=[],
        help="whose tools it runs; may be repeated (OUTRIDER_APP, with commas)",
    )
    parser.add_argument(
        "--serves",
        metavar="WHAT",
        action="append",
        default=[],
        help="only this kind, kind:name (* for anything) or label:NAME; may be repeated; default all without a label",
    )
    parser.add_argument("--concurrency", metavar="N", type=_whole, help="tasks at once; default the app's, 150")
    parser.add_argument("--processes", metavar="N", type=_whole, default=1, help="so many workers; default 1")
    parser.add_argument("--idle-exit", metavar="TIME", type=_time, help="end after this long with nothing to do")
    parser.add_argument("--starting", metavar="FD", type=_whole, help=argparse.SUPPRESS)
    parser.add_argument("--crew", metavar="FD", type=_whole, help=argparse.SUPPRESS)
    parser.add_argument("--again", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--bury", metavar="PID", type=_whole, action="append", default=[], help=argparse.SUPPRESS)


def _serve(parser: Parser) -> None:
    parser.add_argument(
        "app", metavar="MODULE:APP", nargs="*", help="whose tools its worker runs (OUTRIDER_APP, with commas)"
    )
    parser.add_argument("--host", metavar="ADDRESS", help="where it listens; default 127.0.0.1")
    parser.add_argument("--port", metavar="N", type=_whole, help="and on which port; 0 takes a free one; default 8321")
    parser.add_argument("--socket", metavar="PATH", help="a Unix socket instead, for this user alone")
    parser.add_argument(
        "--origin", metavar="URL", action="append", default=[], help="pages from there may use it; may be repeated"
    )
    parser.add_argument("--auth", action="store_true", help="ask everybody for a key or token (OUTRIDER_AUTH)")
    parser.add_argument(
        "--rate", metavar="N", type=_whole, help="with --auth: requests a second of a key; default 2000"
    )
    parser.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="without: a name it is asked for by; may be repeated",
    )
    parser.add_argument("--no-worker", action="store_true", help="run no tasks: others do, by outrider worker")
    parser.add_argument(
        "--serves", metavar="WHAT", action="append", default=[], help="what its worker runs, as outrider worker has it"
    )
    parser.add_argument("--concurrency", metavar="N", type=_whole, help="tasks at once; default the app's, 150")


def _keys(parser: Parser) -> None:
    parser.add_argument("action", metavar="ACTION", choices=KEY_ACTIONS, help=_either(KEY_ACTIONS))
    parser.add_argument("key", metavar="KEY", nargs="?", help="the id of the key to revoke or rotate")
    parser.add_argument("--name", metavar="TEXT", help="create: whose it is; default you")
    parser.add_argument(
        "--scope", metavar="SCOPE", action="append", default=[], choices=SCOPES, help=f"create: {_either(SCOPES)}"
    )
    parser.add_argument("--admin", action="store_true", help="create: good for everything, as --scope admin")
    parser.add_argument("--session", metavar="ID", help="create: good for this session and all below it, and no more")
    parser.add_argument(
        "--expires", metavar="TIME", type=_time, help="create: for how long it is good; default for ever"
    )
    parser.add_argument(
        "--organization", metavar="ID", help="whose keys; default org_default, and all of them in a list"
    )
    parser.add_argument(
        "--overlap",
        metavar="TIME",
        type=_time,
        default=86_400.0,
        help="rotate: the token before is good for; default 1d",
    )


def _organizations(parser: Parser) -> None:
    actions = ("create", "list", "suspend", "resume", "delete")
    parser.add_argument("action", metavar="ACTION", choices=actions, help=_either(actions))
    parser.add_argument("organization", metavar="ORGANIZATION", nargs="?", help="its id; to create one, its name")
    parser.add_argument("--id", metavar="ID", help="create: an id of your own")


def _audit(parser: Parser) -> None:
    actions = ("list", "verify", "prune")
    parser.add_argument("action", metavar="ACTION", choices=actions, help=_either(actions))
    parser.add_argument("--organization", metavar="ID", help="whose log; default org_default")
    parser.add_argument("--limit", metavar="N", type=_whole, default=100, help="list: newest first; default 100")
    parser.add_argument("--expect-head", metavar="HEAD", help="verify: what verify printed before, kept elsewhere")
    parser.add_argument("--older-than", metavar="TIME", type=_time, help="prune: since then")


def _secrets(parser: Parser) -> None:
    parser.add_argument("action", metavar="ACTION", choices=("rotate",), help="rotate")


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _backup(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="where to; it may not exist yet")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")


def _restore(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="a backup")


def _copy(parser: Parser) -> None:
    parser.add_argument("source", metavar="FROM", help="the URL of a database that no worker uses")
    parser.add_argument("destination", metavar="TO", help="the URL of an empty one; made where it is a file")


def _separate(parser: Parser) -> None:
    del parser


def _completion(parser: Parser) -> None:
    parser.add_argument("shell", metavar="SHELL", nargs="?", choices=SHELLS, help=", ".join(SHELLS))
    parser.add_argument("--tasks", metavar="LINE", dest="line", help=argparse.SUPPRESS)


def _doctor(parser: Parser) -> None:
    parser.add_argument("task", metavar="TASK", nargs="?", help="why does this one not run; left out, all of it")
    parser.add_argument("--deep", action="store_true", help="compare every index of the database with its table")


def _workers(parser: Parser) -> None:
    del parser


def _tree(parser: Parser) -> None:
    parser.add_argument("target", metavar="SESSION|TASK", help="whose tasks, with all that is below")


def _usage(parser: Parser) -> None:
    parser.add_argument("target", metavar="SESSION|TASK", help="what its model calls have used")
    parser.add_argument("--tree", action="store_true", help="of a session: its whole delegation tree")


def _stats(parser: Parser) -> None:
    parser.add_argument("--within", metavar="TIME", type=_time, default=3600.0, help="what ended in this; default 1h")


def _demo(parser: Parser) -> None:
    parser.add_argument("path", metavar="PATH", nargs="?", default=".", help="the folder it works on; default here")
    parser.add_argument("--model", metavar="NAME", help="the agent's model; default local, else scripted")


def _task(parser: Parser) -> None:
    parser.add_argument("task", metavar="TASK", help="an id, or the beginning or end of one")


def _session(parser: Parser) -> None:
    parser.add_argument("session", metavar="SESSION", help="its id")


def _app(parser: Parser) -> None:
    parser.add_argument("--app", metavar="MODULE:APP", help="where the tools are (OUTRIDER_APP)")


def _labels(parser: Parser) -> None:
    parser.add_argument("--label", metavar="K=V", action="append", default=[], help="may be repeated")


def _starting(parser: Parser) -> None:
    parser.add_argument("--background", action="store_true", help="print the id and leave; a worker carries on")
    parser.add_argument("--session", metavar="ID", help="whose task it is; made if new; default session_default")
    parser.add_argument("--name", metavar="TEXT", help="what it is called in lists")
    _labels(parser)
    parser.add_argument("--idempotency-key", metavar="KEY", help="the same key in a session gives the same task")
    parser.add_argument("--priority", metavar="N", type=_whole, default=0, help="-1000 to 1000, higher goes first")
    parser.add_argument("--delay", metavar="TIME", type=_time, help="not before this has passed")
    parser.add_argument("--after", metavar="TASK", action="append", default=[], help="not before this one succeeded")
    parser.add_argument("--concurrency-key", metavar="KEY", help="the limit under which it runs; see limits")
    parser.add_argument("--needs", metavar="LABEL", help="only on a worker that states this: --serves label:LABEL")
    parser.add_argument("--debounce-key", metavar="KEY", help="until it starts, the next with this key replaces it")
    parser.add_argument("--debounce-max", metavar="TIME", type=_time, help="and puts it off no further than this")
    parser.add_argument("--queue-timeout", metavar="TIME", type=_time, help="from due to the first start")
    parser.add_argument("--run-timeout", metavar="TIME", type=_time, help="over one attempt")
    parser.add_argument("--idle-timeout", metavar="TIME", type=_time, help="since the last sign of life")
    parser.add_argument("--total-timeout", metavar="TIME", type=_time, help="from creation to the end")
    parser.add_argument(
        "--budget",
        metavar="NAME=N,...",
        help="what an agent's model calls may take: some of tokens, cost (dollars), requests, iterations, seconds",
    )
    parser.add_argument("--max-failures", metavar="N", type=_whole, help="attempts that may fail; default 3")
    parser.add_argument("--wake", choices=WAKES, default="silent", help="when the session is told")
    parser.add_argument(
        "--idle-exit",
        metavar="TIME",
        type=_time,
        default=None,
        help=f"how long a worker started for --background stays without work; default {IDLE_EXIT:g}",
    )


def _whole(text: str) -> int:
    try:
        return whole(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def _time(text: str) -> float:
    try:
        return seconds(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def _moment(text: str) -> int:
    try:
        return moment(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def _size(text: str) -> int:
    try:
        return size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def environment(name: str) -> str | None:
    """An environment variable, None where it is empty."""
    return os.environ.get(name) or None


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("call", "call a tool of an app", "starting:call", _call),
        Command("run", "run an agent on a prompt", "starting:run", _run),
        Command("exec", "run a command that outlives its worker", "executing:execute", _exec),
        Command("chat", "talk with an agent, and see what its tasks do", "chatting:chat", _chat),
        Command("send", "say something to the agent of a session", "steering:send", _send),
        Command("tasks", "list tasks, newest first", "looking:tasks", _tasks),
        Command("show", "show all about one task", "looking:show", _show),
        Command("watch", "watch tasks live, or a session's or task's events", "watching:watch", _watch),
        Command("output", "print what a task has printed", "watching:output", _output),
        Command("messages", "list the messages of a task", "looking:messages", _messages),
        Command("message", "send a task a message", "steering:message", _message),
        Command("answer", "answer a question of a task", "steering:answer", _answer),
        Command("inbox", "look into a session's inbox, receive from it, acknowledge", "inboxes:inbox", _inbox),
        Command("grants", "list and revoke what needs no more approval in a session", "steering:grants", _grants),
        Command("cancel", "cancel tasks and the children below them", "steering:cancel", _cancel),
        Command("limits", "show, set and remove limits of concurrency keys", "queueing:limits", _limits),
        Command("pause", "start no more tasks, of a session, of a kind, or any", "queueing:pause", _pause),
        Command("resume", "let what was paused start again", "queueing:resume", _resume),
        Command("sessions", "list, show and make sessions, and title and label them", "sessions:sessions", _sessions),
        Command("close", "have a session take nothing any more", "sessions:close", _close),
        Command("reopen", "open a closed session again", "sessions:reopen", _reopen),
        Command("priority", "give a waiting task another place in the queue", "queueing:priority", _priority),
        Command("webhooks", "tell servers what happens; look at what was sent", "telling:webhooks", _webhooks),
        Command("retry", "do an ended task again, from its beginning", "steering:retry", _retry),
        Command("fork", "go on from a step of an ended task, or from a session", "steering:fork", _fork),
        Command("wait", "wait until tasks have ended", "steering:wait", _wait),
        Command("doctor", "say what is wrong, or why a task does not run", "operating:doctor", _doctor),
        Command("workers", "list the workers, and what they hold", "operating:workers", _workers),
        Command("tree", "print the tasks of a session or below a task", "operating:tree", _tree),
        Command("usage", "show what was used, and what is spent of which budget", "looking:usage", _usage),
        Command("stats", "show rates, waits, failures and size", "operating:stats", _stats),
        Command("export", "write a task with its checkpoint, or all of a session", "keeping:export", _export),
        Command("import", "make a task of such a document, and go on with it", "keeping:load", _import),
        Command("delete", "delete tasks that have ended, and sessions", "keeping:delete", _delete),
        Command("prune", "delete what ended long ago", "keeping:prune", _prune),
        Command("retention", "show and set for how long ended tasks are kept", "retaining:retention", _retention),
        Command("archive", "take old sessions out of the database, and read them", "archiving:archive", _archive),
        Command("pin", "keep tasks and sessions whatever retention says", "retaining:pin", _pin),
        Command("worker", "run tasks until told to stop", "working:worker", _worker),
        Command("serve", "serve the HTTP API, with a worker inside", "serving:serve", _serve),
        Command("keys", "make, list, revoke and rotate API keys", "guarding:keys", _keys),
        Command("organizations", "make, list and suspend organizations", "guarding:organizations", _organizations),
        Command("audit", "list who did what, and verify that it is all there", "guarding:audit", _audit),
        Command("secrets", "seal the secrets in the database anew", "guarding:secrets", _secrets),
        Command("backup", "save the database into a file, while it is in use", "saving:backup", _backup),
        Command("restore", "put a backup in the place of the database", "saving:restore", _restore),
        Command("copy", "copy the whole database into another, of either kind", "saving:copy", _copy),
        Command("separate", "give a copy of a database an identity of its own", "saving:separate", _separate),
        Command("completion", "print a script by which a shell completes this", "completion:completion", _completion),
        Command("demo", "show what Outrider does, on real files", "showing:demo", _demo),
    )
}
