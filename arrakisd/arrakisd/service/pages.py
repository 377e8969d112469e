"""Long lists, cut into pages of which each fits into a frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from arrakis_rpc.converter import unstructure
from arrakis_rpc.daemon_api import Page
from arrakis_rpc.framing import MAX_FRAME, encode_frame

_MOST_BYTES = MAX_FRAME // 2

Item = TypeVar("Item")
Entry = TypeVar("Entry")


def cut_page(
    items: Mapping[str, Item], page: Page, describe: Callable[[Item], Entry]
) -> tuple[list[Entry], str | None]:
    """Give the descriptions of a page of items in the order of their keys, and its ``next``.

    What is added or goes away between two pages moves nothing else: ``next`` is the key of a
    page's last item, be that still there or not. One item at least is on every page.
    """
    entries: list[Entry] = []
    size, last = 0, None
    for key in sorted(key for key in items if page.after is None or key > page.after):
        entry = describe(items[key])
        size += len(encode_frame(unstructure(entry)))
        if entries and (len(entries) == page.limit or size > _MOST_BYTES):
            return entries, last
        entries.append(entry)
        last = key
    return entries, None
