"""Lists that do not fit into one frame."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from real_daemon import running_daemon
from stored_things import Shelf

from arrakis import SandboxManager
from arrakis_rpc.daemon_api import Page
from arrakis_rpc.framing import MAX_FRAME, encode_frame
from arrakisd.service.pages import cut_page
from arrakisd.storage.manifest import write_manifest

_COUNT = 6000


def walk(items: dict[str, str], limit: int) -> list[list[str]]:
    """Take page after page, until there is none."""
    pages, after = [], None
    while True:
        entries, after = cut_page(items, Page(after=after, limit=limit), lambda item: item)
        pages.append(entries)
        if after is None:
            return pages


def test_pages_together_are_the_list() -> None:
    """Pages of any length hold each entry once, in order; the last one says that it is."""
    items = {f"{number:03}": f"entry {number}" for number in reversed(range(50))}
    for limit in (1, 7, 49, 50, 51):
        pages = walk(items, limit)
        assert [entry for page in pages for entry in page] == [f"entry {n}" for n in range(50)]
        assert {len(page) for page in pages[:-1]} <= {limit}
        assert 0 < len(pages[-1]) <= limit
    assert walk({}, 10) == [[]]


def test_pages_fit_into_a_frame() -> None:
    """Long entries make short pages; one that is longer than a page comes alone."""
    items = {f"{number:03}": "x" * 100_000 for number in range(20)} | {"500": "y" * 800_000}
    pages = walk(items, 1000)
    assert [entry for page in pages for entry in page] == list(items.values())
    assert all(len(encode_frame(page)) < MAX_FRAME for page in pages)


def test_list_that_changes() -> None:
    """What goes away or is added between two pages moves no other entry."""
    items = {name: name for name in "bdfhj"}
    first, after = cut_page(items, Page(limit=2), str)
    assert first == ["b", "d"]
    del items["d"]
    items |= {"a": "a", "e": "e"}
    assert cut_page(items, Page(after=after, limit=9), str) == (["e", "f", "h", "j"], None)


@pytest.fixture
def crowded() -> Iterator[Path]:
    """A state directory, in memory, with more snapshots than one frame can name."""
    with tempfile.TemporaryDirectory(prefix="arrakis-test-", dir="/dev/shm") as name:
        directory = Path(name)
        directory.chmod(0o711)
        state = directory / "state"
        shelf = Shelf(state)
        first = shelf.snapshot("s0", shelf.template())
        for number in range(1, _COUNT):
            place = shelf.paths.snapshot(f"s{number}")
            place.mkdir()
            one = attrs.evolve(first, id=place.name, created=1e9 - number, label="l" * 100)
            write_manifest(place, one)
        yield state


def test_thousands_of_snapshots(crowded: Path) -> None:
    """A client gets all of more snapshots than a frame can name, oldest first, each once."""
    with running_daemon(crowded) as daemon, SandboxManager(socket=daemon.socket) as manager:
        found = manager.snapshots.list()
        assert len(found) == _COUNT
        assert [one.created for one in found] == sorted(one.created for one in found)
        assert len({one.id for one in found}) == _COUNT
        page = manager._client.call("snapshot.list", {"limit": 3})
        assert [one.id for one in page.snapshots] == [one.id for one in found[:3]]
        assert page.next
    assert len(json.dumps([attrs.asdict(one) for one in found])) > 1.5 * MAX_FRAME
