"""Hooks of the site: files of the repository that it shows as pages, and the links that lead to them.

A document links as the web view of the repository needs it: `../examples/hello.py`. Here each link that leaves docs/
leads to a page made of that file, so that nothing is written twice and the site names no address of the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = "docs/"

DOCUMENTS = {"README.md": "quickstart.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Documents of the root, and their names on the site."""

LANGUAGES = {".py": "python", ".json": "json", ".yaml": "yaml", ".yml": "yaml", ".service": "ini", ".ts": "ts"}

FENCED = re.compile(r"^(`{3,}|~{3,})([^\n]*)\n.*?^\1 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents of the root, and each file that a document links to."""
    for name, uri in DOCUMENTS.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    linked = {
        target
        for page in files.documentation_pages()
        for _, target, _ in LINK.findall(FENCED.sub("", page.content_string))
        for target in [from_root(page.src_uri, target)]
        if not target.startswith(DOCS) and target not in DOCUMENTS and (ROOT / target).is_file()
    }
    for name in sorted(linked):
        page = File.generated(config, uri_of(name), content=listing(name), inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn the links of a document to those of the site, and leave code as it is."""
    if page.file.src_uri.startswith("files/"):
        return markdown
    parts, end = [], 0
    for fence in FENCED.finditer(markdown):
        # `python fragment` is for the tests, and no language.
        parts += [turned(markdown[end : fence.start()], page), fence[0].replace("python fragment", "python", 1)]
        end = fence.end()
    return "".join([*parts, turned(markdown[end:], page)])


def turned(text: str, page: Page) -> str:
    """The text with its links turned; one to a folder, of which there is no page, is its words alone."""

    def turn(link: re.Match[str]) -> str:
        words, target, anchor = link[1], from_root(page.file.src_uri, link[2]), link[3] or ""
        if (ROOT / target).is_dir():
            return words
        return f"[{words}]({posixpath.relpath(uri_of(target), posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    return LINK.sub(turn, text)


def from_root(uri: str, target: str) -> str:
    """What a link of a page means, as a path from the root of the repository."""
    sources = {uri: name for name, uri in DOCUMENTS.items()}
    return posixpath.normpath(posixpath.join(posixpath.dirname(sources.get(uri, DOCS + uri)), target))


def uri_of(name: str) -> str:
    """Where the site has a file of the repository."""
    if name.startswith(DOCS):
        return name.removeprefix(DOCS)
    return DOCUMENTS.get(name, f"files/{name}.md")


def listing(name: str) -> str:
    """The page of a file: its text, as it is. The search leaves it out."""
    language = LANGUAGES.get(Path(name).suffix, "text")
    text = (ROOT / name).read_text()
    return f"---\nsearch: {{exclude: true}}\n---\n\n# `{name}`\n\n~~~~~~{language}\n{text}~~~~~~\n"
