"""The description of the routes, for programs and for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

from quart import Response

from . import openapi
from .routes import HTML, JSON, Ask, Route

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { background: #8881; padding: .7em; overflow-x: auto; }
summary { cursor: pointer; padding: .3em 0; } summary b { display: inline-block; width: 5em; }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #ddd; } }
"""


def routes_about(routes: list[Route]) -> list[Route]:
    """Give the routes that describe routes; they do not change while the daemon runs."""
    described = openapi.describe(routes)
    text, page = json.dumps(described), "".join(_page(described))

    async def openapi_json(_: Ask) -> Response:  # noqa: ASYNC124 -- as all handlers are
        return Response(text, content_type=JSON)

    async def docs(_: Ask) -> Response:  # noqa: ASYNC124 -- as all handlers are
        policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        headers = {"Content-Security-Policy": policy}
        return Response(page, content_type=f"{HTML}; charset=utf-8", headers=headers)

    return [
        Route("GET", "/openapi.json", openapi_json, "This description"),
        Route("GET", "/docs", docs, "This description, to be read", gives=HTML),
    ]


def _page(described: dict[str, Any]) -> Iterator[str]:
    info = described["info"]
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])}</title>"
    yield f"<style>{_STYLE}</style><h1>{escape(info['title'])} {escape(info['version'])}</h1>"
    yield f"<p>{escape(info['description'])} For programs: <a href=openapi.json>openapi.json</a>."
    yield "<h2>Requests</h2>"
    for path, operations in described["paths"].items():
        for verb, operation in operations.items():
            yield f"<details><summary><b>{verb.upper()}</b> <code>{escape(path)}</code> "
            yield f"{escape(operation['summary'])}</summary>"
            yield f"<p>{escape(operation['description'])}"
            yield from _parts(operation)
            yield "</details>"
    yield "<h2>Types</h2>"
    for name, schema in described["components"]["schemas"].items():
        yield f"<details id={escape(name)}><summary><code>{escape(name)}</code></summary>"
        yield _code(schema) + "</details>"


def _parts(operation: dict[str, Any]) -> Iterator[str]:
    if operation["parameters"]:
        yield "<h4>Parameters</h4>" + _code(operation["parameters"])
    if "requestBody" in operation:
        yield "<h4>Body</h4>" + _code(operation["requestBody"]["content"])
    yield "<h4>Answers</h4><ul>"
    for status, answer in operation["responses"].items():
        yield f"<li><code>{status}</code> {escape(answer['description'])}"
        if status == "200":
            yield _code(answer["content"])
    yield "</ul>"


def _code(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2))}</pre>"
