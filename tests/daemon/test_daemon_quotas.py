"""What fits is let in; what does not is refused, also if others have only just come."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from deep_tree import deep_tree
from stored_things import Shelf

from arrakis_rpc.errors import ExhaustedError
from arrakisd.host.files import allocated_bytes
from arrakisd.settings.limits import LimitsConfig
from arrakisd.storage.quotas import Quotas

_MIB = 2**20


def quotas(shelf: Shelf, **limits: int) -> Quotas:
    return Quotas(LimitsConfig(**limits), shelf.store, shelf.paths)


def test_snapshots(tmp_path: Path) -> None:
    """Snapshots that are being made count; those of an import that are there already do not."""
    shelf = Shelf(tmp_path)
    shelf.snapshot("there", shelf.template())
    limited = quotas(shelf, snapshots=2)
    with limited.new_snapshots(["coming"]):
        with pytest.raises(ExhaustedError, match="2 of the 2 snapshots") as refusal:
            limited.new_snapshots(["more"]).__enter__()
        with limited.new_snapshots(["there"]):
            pass
        assert refusal.value.hint
    with limited.new_snapshots(["more"]):
        pass


async def test_disk(tmp_path: Path) -> None:
    """Of two that come at once, and of whom only one fits, one writes, and the other is told."""
    shelf = Shelf(tmp_path)
    used = allocated_bytes(tmp_path) // _MIB
    limited = quotas(shelf, disk_mib=used + 10)
    ends: list[str] = []

    async def write() -> None:
        try:
            async with limited.disk(6):
                ends.append("written")
                await both.wait()
        except ExhaustedError as error:
            ends.append(error.message)
            both.set()

    both = trio.Event()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            nursery.start_soon(write)
    assert ends == [
        "written",
        f"this may take 6 MiB on disk; {used} of the {used + 10} MiB that may be used are and "
        "others are about to write 6",
    ]
    async with limited.disk(10):
        pass


def test_size_on_disk(tmp_path: Path) -> None:
    """A directory takes what its files do, at every depth, and not what their holes would."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below/file").write_bytes(bytes(3 * _MIB))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(100 * _MIB)
    (tmp_path / "link").symlink_to("/usr")
    assert allocated_bytes(tmp_path) // _MIB == 3
    assert allocated_bytes(tmp_path / "none") == 0


def test_size_of_what_a_vmm_made(tmp_path: Path) -> None:
    """What is very deep counts as far as there is a path to it, and fails nothing."""
    with deep_tree(tmp_path / "one", "d"), deep_tree(tmp_path / "two"):
        (tmp_path / "file").write_bytes(bytes(_MIB))
        size = allocated_bytes(tmp_path)
        assert size >= allocated_bytes(tmp_path / "one") + _MIB
        assert allocated_bytes(tmp_path / "one") >= _MIB
