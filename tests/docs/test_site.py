"""The site of the documentation builds without a warning, has everything in it, and fetches nothing from other hosts.

It is built once, as `make docs` does. A page that is missing in the nav, a link or an anchor that leads nowhere and a
name that the reference does not find are warnings, and fail it.
"""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

import outrider
from outrider.runtime.facade import Runtime
from tests.docs.programs import PATIENCE, ROOT

DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix() for path in DOCS.glob("**/*.md")}


class Loaded(HTMLParser):
    """What a browser fetches to show a page. A link that a reader may follow is no part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":
            self.addresses += [
                value or "" for name, value in attrs if name in ("src", "srcset", "href", "data", "poster")
            ]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_has_every_page_and_public_name(tmp_path: Path):
    # Never with --quiet: what is not said is not counted by --strict either.
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert built.returncode == 0, built.stderr

    pages = {path: path.read_text() for path in tmp_path.glob("**/*.html")}
    assert {path for path in PAGES if address(tmp_path, path) not in pages} == set()
    assert not any(path.is_file() for path in tmp_path.glob("**/*.py*")), "the hooks are no part of it"

    said = {name for text in pages.values() for name in re.findall(r'id="(outrider\.[\w.]+)"', text)}
    assert [name for name in outrider.__all__ if not {f"outrider.{name}", home(name)} & said] == []
    verbs = {name for name in said if re.fullmatch(r"outrider\.TaskContext\.\w+", name)}
    recipes = re.findall(r"^### ([^\n]+)", (DOCS / "context.md").read_text(), re.MULTILINE)
    assert verbs == {f"outrider.TaskContext.{name}" for recipe in recipes for name in recipe.split(", ")}

    assert {address for text in pages.values() for address in fetched(text) if "//" in address} == set()
    assert {path.name for path in tmp_path.glob("**/*.css") if "url(http" in path.read_text()} == set()
    assert not any('class="mermaid"' in text for text in pages.values()), "the theme fetches what draws it"

    prose = {path: re.sub(r"<(pre|code)\b.*?</\1>", "", text, flags=re.DOTALL) for path, text in pages.items()}
    assert {path for path, text in prose.items() if re.search(r"```|<p>[^<]*\n(-|\d+\.|\|) ", text)} == set(), (
        "a list, table or block that the site takes for prose: leave a line before it"
    )


def address(site: Path, page: str) -> Path:
    """Where the site has a page of docs/."""
    return site / ("/".join(part for part in page.removesuffix(".md").split("/") if part != "index")) / "index.html"


def home(name: str) -> str:
    """Where a public name is defined."""
    value = getattr(outrider, name)
    return f"{value.__module__}.{value.__qualname__}"


def fetched(page: str) -> Iterator[str]:
    """The addresses of what a page fetches."""
    loaded = Loaded()
    loaded.feed(page)
    yield from loaded.addresses


def test_every_page_is_named_in_the_index_of_its_folder():
    unnamed = {
        page
        for page in PAGES
        if not page.endswith("index.md")
        and f"]({Path(page).name})" not in (DOCS / page).with_name("index.md").read_text()
    }
    assert unnamed == set()


def test_the_reference_has_every_noun_of_the_runtime():
    nouns = set(re.findall(r"self\.(\w+) = \w+\(services\)", inspect.getsource(Runtime.__init__)))
    page = (DOCS / "reference" / "runtime.md").read_text()
    assert "sessions" in nouns
    assert set(re.findall(r"heading: runtime\.(\w+)", page)) == nouns
