"""The documentation as data: pages, links, anchors, code blocks, tables."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

_FENCE = re.compile(r"^( *)```(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)
_MARK = re.compile(r"<!-- test: (.*) -->\n\s*\Z")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.*)$", re.MULTILINE)


def read(name: str) -> str:
    """Give a page's text."""
    return (ROOT / name).read_text()


def marked_block(page: str, mark: str) -> str:
    """Give the code block that ``<!-- test: MARK -->`` stands before."""
    text = read(page)
    for fence in _FENCE.finditer(text):
        found = _MARK.search(text, 0, fence.start())
        if found and found[1] == mark:
            return textwrap.dedent(fence[3])
    raise AssertionError(f"{page} has no block marked {mark!r}")


def blocks(page: str, language: str) -> list[str]:
    """Give all code blocks whose fence names exactly this language."""
    return [textwrap.dedent(one[3]) for one in _FENCE.finditer(read(page)) if one[2] == language]


def links(page: Path) -> list[str]:
    """Give the targets of a page's links, those in code left out."""
    return _LINK.findall(_without_code(page.read_text()))


def anchors(page: Path) -> set[str]:
    """Give what ``#...`` can name on a page, by the rules of GitHub."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """Give the rows of the first table under a heading by their first cell, without backquotes."""
    section = re.split(rf"^#+ {re.escape(heading)}$", read(page), flags=re.MULTILINE)[1]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table, f"{page} has no table under {heading!r}"
    return {cells[0]: cells[1:] for cells in _cells(table[0])}


def _cells(table: str) -> Iterator[list[str]]:
    for line in table.splitlines()[2:]:
        yield [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))
