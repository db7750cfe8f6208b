"""Fills in the tables of routes of `http-api.md` from the OpenAPI document: scope, body and answer of each.

Run it after a change of the API: `.venv/bin/python docs/routes.py`. A test holds the page to it. What a route does is
said by hand.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("http-api.md")
ROW = re.compile(r"^\| `([A-Z]+) (/v1[^` ]*)` \| ([^|]*) \|.*$", re.MULTILINE)
HEAD = re.compile(r"^\| route \| what it does \|.*\n\| --- .*$", re.MULTILINE)
NAMED = {"text/event-stream": "events", "application/x-ndjson": "JSON lines", "*/*": "the file"}
"""What is no JSON, in words."""

Json = dict[str, Any]


def filled(page: str, document: Json) -> str:
    """The page with its tables of routes as the document says. A route that the document has not stays as it is."""

    def row(found: re.Match[str]) -> str:
        method, path, told = found.groups()
        operation = document["paths"].get(path, {}).get(method.lower())
        if operation is None:
            return found[0]
        cells = (f"`{method} {path}`", told, _scope(operation), _body(operation), _answer(operation))
        return re.sub(" +", " ", f"| {' | '.join(cells)} |").rstrip()

    head = "| route | what it does | scope | body | answer |\n| --- | --- | --- | --- | --- |"
    return ROW.sub(row, HEAD.sub(head, page))


def _scope(operation: Json) -> str:
    ((scope,),) = [each["bearer"] for each in operation["security"] if each]
    return "operators" if operation.get("x-outrider-operator") else f"`{scope}`"


def _body(operation: Json) -> str:
    body = operation.get("requestBody")
    return "" if body is None else _content(body["content"]).replace(" or null", " or none")


def _answer(operation: Json) -> str:
    good = {status: each for status, each in operation["responses"].items() if status < "300"}
    statuses = "" if [*good] == ["200"] else " or ".join(sorted(good, reverse="201" in good))
    contents = {_content(each["content"]) if "content" in each else "" for each in good.values()}
    return f"{statuses} {' or '.join(sorted(contents))}".strip()


def _content(content: Json) -> str:
    ((kind, told),) = content.items()
    return NAMED.get(kind) or _type(told["schema"])


def _type(schema: Json) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "$ref" not in schema:
        return {"null": "null", "object": "an object"}.get(schema.get("type", ""), "any JSON")
    name = schema["$ref"].rpartition("/")[2]
    return re.sub(r"^`Page_(\w+)_`$", r"page of `\1`", f"`{name}`")


async def _document() -> Json:
    from outrider import Outrider
    from outrider.api import create_api

    async with Outrider().open("memory://", worker=False) as runtime:
        return create_api(runtime).openapi()


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(), asyncio.run(_document())))
