"""What the demonstration runs: a tool that surveys a folder, and an agent that reads and writes a report.

The script decides by what its tools gave it, and writes a report of real findings. Any other model gets the same
tools and has to find its own way. The small one of this machine cannot write a report: its tool does, and leaves a
bounded place in it for what the model has to say.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from outrider.agents import scripted
from outrider.agents.engine import ToolError
from outrider.agents.models import choose
from outrider.agents.scripted import Call, Reply, Turn
from outrider.bootstrap import Outrider
from outrider.core.values import JSONObject
from outrider.core.wording import counted
from outrider.runtime.codec import decode, encode
from outrider.runtime.context import TaskContext

SKIPPED = {".git", ".hg", ".venv", "venv", "node_modules", "__pycache__", ".outrider", "dist", "build", "target"}
MOST_FILES = 2000
GROUPS = 12
READ_LIMIT = 16_000
GLIMPSE = 400
"""Characters of one file that the small model gets to read."""
WORDS_LIMIT = 1200
"""Characters of the small model's own in a report."""
SURVEY = "/survey.json"
REPORT = "/report.md"
SCRIPTED = "scripted:demo"

CHECKSUMS = """\
echo "begun by $$"
count=$(find . -type f ! -path '*/.*' | head -n 60 | wc -l)
n=0
find . -type f ! -path '*/.*' | sort | head -n 60 | while IFS= read -r file; do
    n=$((n + 1))
    echo "$n $(cksum < "$file")"
    echo "::progress $n/$((count)) files"
    sleep 0.1
done
echo "done"
"""
"""A command of the machine's own, slow enough to see both kills: the checksums of the first files of the folder."""

SYSTEM = (
    "You write short reports on folders of files. Read the survey with read_survey, read the two or three files that "
    "tell most with read_file, then call write_report once with a report in Markdown. Answer with one sentence."
)
PROMPT = "Write a report on this folder: what it holds, what stands out, and what its most telling files say."

SMALL_SYSTEM = (
    "You report on a folder of files. First use read_survey. Then use write_report, with a text of a few sentences "
    "that say what the folder is about. In the end say in one sentence what you found."
)
SMALL_SETTINGS: JSONObject = {"must_call": ["read_survey", "write_report"], "max_tokens": 200}
"""It uses its two tools before it may answer: there has to be something to kill."""


@dataclass(frozen=True, slots=True)
class FileNote:
    """What the survey knows of one file."""

    path: str
    size: int
    lines: int
    kind: str


def make_app(root: Path, model: str) -> Outrider:
    """Make the app over one folder."""
    app = Outrider()
    is_small = choose(model).is_local

    async def list_files() -> list[str]:
        return sorted(_files_below(root))

    def measure(paths: list[str]) -> list[FileNote]:
        return [_measure(root, path) for path in paths]

    @app.tool
    async def survey(task: TaskContext) -> dict[str, Any]:
        """Count files, lines and bytes below the folder, group by group."""
        paths = await task.step("list", list_files)
        notes: list[FileNote] = []
        groups = list(_groups(paths))
        for number, group in enumerate(groups, 1):
            task.detail(f"measuring {group[0]}")
            notes += await task.step(f"measure {number}", measure, group)
            task.progress(len(notes), len(paths), unit="files", label=group[-1])
            task.output(f"measured {len(notes)} of {counted(len(paths), 'file')}\n")
        found = _summarise(root, notes, cut=len(paths) == MOST_FILES)
        await task.step("keep", task.files.write, SURVEY, encode(found), "application/json")
        return found

    @app.tool
    async def read_survey(task: TaskContext) -> Any:
        """Return the survey of the folder: totals, kinds of files, largest and most telling files."""
        found: dict[str, Any] = decode(await task.files.read(SURVEY))
        return _in_brief(root, found) if is_small else found

    @app.tool
    def read_file(path: str) -> str:
        """Return the text of a file of the folder, the beginning of a long one."""
        try:
            target = (root / path).resolve()
            if target.is_relative_to(root.resolve()) and target.is_file():
                return target.read_text(errors="replace")[:READ_LIMIT]
        except (OSError, ValueError):  # what a model may take for a path
            pass
        raise ToolError(f"{path!r} is not a file of the folder that can be read; the survey names some")

    @app.tool
    async def write_report(task: TaskContext, text: str) -> str:
        """Keep the report, if the person who watches agrees."""
        if is_small:
            survey = decode(await task.files.read(SURVEY))
            text = _report(survey, []) + "\n".join(["", "## In the model's own words", "", *_quoted(text), ""])
        keep = await task.ask(
            f"The report is ready ({len(text.split())} words). Keep it?",
            bool,
            deadline=timedelta(minutes=5),
            default=True,
        )
        if not keep:
            return "the person did not want the report"
        await task.files.write(REPORT, text, "text/markdown")
        return f"the report is kept at {REPORT}"

    app.agent(
        "reporter",
        model=model,
        model_settings=SMALL_SETTINGS if is_small else None,
        system_prompt=SMALL_SYSTEM if is_small else SYSTEM,
        tools=["read_survey", "write_report"] if is_small else ["read_survey", "read_file", "write_report"],
        max_iterations=4 if is_small else 12,
    )
    scripted.register("demo", reporter_script)
    return app


# --- the survey --------------------------------------------------------------------------------------


def _files_below(root: Path) -> Iterator[str]:
    count = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED)
        for name in sorted(names):
            if count == MOST_FILES:
                return
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink() and _has_text_for(path):
                count += 1
                yield path.relative_to(root).as_posix()


def _has_text_for(path: Path) -> bool:
    """Whether the name is UTF-8; a file whose name is not cannot be named in a journal, or to a model."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _groups(paths: list[str]) -> Iterator[list[str]]:
    size = max(1, -(-len(paths) // GROUPS))
    for start in range(0, len(paths), size):
        yield paths[start : start + size]


def _measure(root: Path, path: str) -> FileNote:
    try:
        content = (root / path).read_bytes()
    except OSError:
        return FileNote(path, 0, 0, "unreadable")
    if b"\0" in content[:8192]:
        return FileNote(path, len(content), 0, "binary")
    return FileNote(path, len(content), content.count(b"\n"), Path(path).suffix.lstrip(".") or "plain")


def _summarise(root: Path, notes: list[FileNote], *, cut: bool) -> dict[str, Any]:
    kinds = Counter(note.kind for note in notes)
    lines = Counter({kind: sum(note.lines for note in notes if note.kind == kind) for kind in kinds})
    texts = [note for note in notes if note.kind not in ("binary", "unreadable")]
    largest = sorted(texts, key=lambda note: (-note.lines, note.path))[:5]
    return {
        "folder": root.resolve().name,
        "files": len(notes),
        "bytes": sum(note.size for note in notes),
        "lines": sum(note.lines for note in notes),
        "kinds": [{"kind": kind, "files": count, "lines": lines[kind]} for kind, count in kinds.most_common(8)],
        "largest": [{"path": note.path, "lines": note.lines, "bytes": note.size} for note in largest],
        "telling": _telling(texts),
        "cut": cut,
    }


def _telling(notes: list[FileNote]) -> list[str]:
    """The files that say what a folder is about: the readme, the project file, and the largest text."""
    names = {note.path.lower(): note.path for note in notes}
    wanted = [
        "readme.md",
        "readme.rst",
        "readme.txt",
        "readme",
        "pyproject.toml",
        "package.json",
        "cargo.toml",
        "go.mod",
    ]
    found = [names[name] for name in wanted if name in names]
    by_size = [note.path for note in sorted(notes, key=lambda note: (-note.lines, note.path))]
    return list(dict.fromkeys([*found[:2], *by_size]))[:3]


# --- the script --------------------------------------------------------------------------------------


def reporter_script(turn: Turn) -> Reply:
    """Play the agent: read the survey, read what it calls telling, write the report, say so."""
    if turn.number == 1:
        return Reply("I'll look at the survey first.\n", calls=(Call("read_survey", {}),), chunks=4, delay=0.2)
    survey = next((each.content for each in turn.earlier() if each.tool == "read_survey"), None)
    if turn.number == 2 and isinstance(survey, Mapping) and survey["telling"]:
        calls = tuple(Call("read_file", {"path": path}) for path in survey["telling"])
        return Reply("Now the files that tell most.\n", calls=calls, chunks=4, delay=0.2)
    if not any(each.tool == "write_report" for each in turn.earlier()):
        texts = [str(each.content) for each in turn.earlier() if each.tool == "read_file" and each.ok]
        report = _report(survey if isinstance(survey, Mapping) else {}, texts)
        return Reply("That is enough to write.\n", calls=(Call("write_report", {"text": report}),), chunks=4, delay=0.2)
    said = next((str(each.content) for each in turn.results if each.tool == "write_report"), "the report is written")
    return Reply(f"Done: {said}.", chunks=3, delay=0.1)


def _report(survey: Mapping[str, Any], texts: list[str]) -> str:
    lines = [
        f"# {survey.get('folder', 'The folder')}",
        "",
        f"{counted(survey.get('files', 0), 'file')}, {counted(survey.get('lines', 0), 'line')}, "
        f"{counted(survey.get('bytes', 0), 'byte')}"
        + (f" (only the first {MOST_FILES:,} files were surveyed)." if survey.get("cut") else "."),
        "",
        "| kind | files | lines |",
        "| --- | ---: | ---: |",
        *(f"| {each['kind']} | {each['files']:,} | {each['lines']:,} |" for each in survey.get("kinds", ())),
        "",
        "## Largest",
        "",
        *(f"- `{each['path']}`: {counted(each['lines'], 'line')}" for each in survey.get("largest", ())),
        "",
    ]
    if texts:
        lines += ["## Most telling", ""]
    for path, text in zip(survey.get("telling", ()), texts, strict=False):
        lines += [f"### {path}", "", *(f"> {line}" for line in _opening(text)), ""]
    return "\n".join(lines)


def _in_brief(root: Path, survey: Mapping[str, Any]) -> str:
    kinds = ", ".join(f"{each['files']} {each['kind']}" for each in survey["kinds"][:3])
    brief = f"The folder {survey['folder']} has {survey['files']} files: {kinds or 'none'}."
    for path in survey["telling"][:1]:
        with suppress(OSError), (root / path).open(errors="replace") as file:
            brief += f" {path} begins: {' '.join(file.read(2 * GLIMPSE).split())[:GLIMPSE]}"
    return brief


def _opening(text: str) -> list[str]:
    """The first lines that say something."""
    said = [line.strip() for line in text.splitlines() if line.strip(" \t#\"'*=-/<>!")]
    return [line[:160] for line in said[:4]] or ["(empty)"]


def _quoted(text: str) -> list[str]:
    """A model's words as a quotation, which no line of theirs can leave."""
    return [f"> {line}" for line in text[:WORDS_LIMIT].splitlines()] or ["> (none)"]
