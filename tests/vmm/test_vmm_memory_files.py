"""Whole memories in files: what page files make of one, and what one gives as a page file."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from arrakis_rpc.errors import IntegrityError, VmmError
from arrakisd.host import memory_files
from arrakisd.host.memory_files import patch_memory, save_difference
from arrakisd.host.page_files import PAGE, PIECE

PAGES = 1000


def write_pages(memory: bytearray, numbers: list[int], fill: int) -> None:
    for number in numbers:
        memory[number * PAGE : (number + 1) * PAGE] = bytes([fill]) * PAGE


def test_chain(tmp_path: Path) -> None:
    """Dump after dump becomes a page file of what is new in it, and together they give the last."""
    chance = random.Random(6)
    base, dump = tmp_path / "base", tmp_path / "dump"
    memory = bytearray(PAGES * PAGE)
    write_pages(memory, chance.sample(range(PAGES), 300), 255)
    base.write_bytes(memory)
    stack: list[Path] = []
    for round_ in range(1, 5):
        changed = [0, PAGES - 1, *range(250, 260), *chance.sample(range(1, 200), 40)]
        write_pages(memory, changed, round_)
        dump.write_bytes(memory)
        target = tmp_path / f"pages{round_}"
        assert save_difference(base, stack, dump, target) == len(changed)
        stack.append(target)
    copy = tmp_path / "copy"
    copy.write_bytes(base.read_bytes())
    patch_memory(copy, stack)
    assert copy.read_bytes() == memory
    assert save_difference(base, stack, dump, tmp_path / "nothing") == 0


def test_undone(tmp_path: Path) -> None:
    """A page that is again what it was in the template is part of the page file: it is new."""
    base, dump, first, second = (tmp_path / name for name in ("base", "dump", "one", "two"))
    base.write_bytes(bytes(8 * PAGE))
    memory = bytearray(8 * PAGE)
    write_pages(memory, [3], 7)
    dump.write_bytes(memory)
    save_difference(base, [], dump, first)
    dump.write_bytes(bytes(8 * PAGE))
    assert save_difference(base, [first], dump, second) == 1
    patch_memory(dump, [first, second])
    assert dump.read_bytes() == bytes(8 * PAGE)


def test_not_whole(tmp_path: Path) -> None:
    """A dump of another size than the guest's memory is refused, and so is no ordinary file."""
    base, dump, link = (tmp_path / name for name in ("base", "dump", "link"))
    base.write_bytes(bytes(8 * PAGE))
    dump.write_bytes(bytes(7 * PAGE))
    with pytest.raises(VmmError, match="whole memory"):
        save_difference(base, [], dump, tmp_path / "pages")
    link.symlink_to(base)
    with pytest.raises(OSError, match="symbolic links"):
        patch_memory(link, [])
    with pytest.raises(VmmError, match="no ordinary file"):
        save_difference(base, [], tmp_path, tmp_path / "pages")


@pytest.mark.parametrize("left", [0, PIECE + PAGE, 2 * PIECE - 1])
def test_cut(tmp_path: Path, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump that is cut while it is read is an error."""
    base, dump = tmp_path / "base", tmp_path / "dump"
    base.write_bytes(bytes(2 * PIECE))
    dump.write_bytes(b"x" * 2 * PIECE)
    monkeypatch.setattr(memory_files, "checkpoint", lambda: os.truncate(dump, left))
    with pytest.raises(VmmError, match="it was cut"):
        save_difference(base, [], dump, tmp_path / "pages")


def test_cut_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is a page file that is cut, of those that a dump is compared with."""
    base, dump, known = (tmp_path / name for name in ("base", "dump", "known"))
    base.write_bytes(bytes(2 * PIECE))
    dump.write_bytes(b"x" * 2 * PIECE)
    save_difference(base, [], dump, known)
    monkeypatch.setattr(memory_files, "checkpoint", lambda: os.truncate(known, PIECE))
    with pytest.raises(VmmError, match="it was cut"):
        save_difference(base, [known], dump, tmp_path / "pages")


def test_grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a dump that grows while it is read, no more is taken than the guest's memory."""
    base, dump, pages = (tmp_path / name for name in ("base", "dump", "pages"))
    base.write_bytes(bytes(PIECE))
    dump.write_bytes(b"x" * PIECE)
    monkeypatch.setattr(memory_files, "checkpoint", lambda: os.truncate(dump, 2 * PIECE))
    assert save_difference(base, [], dump, pages) == PIECE // PAGE
    patch_memory(base, [pages])
    assert base.read_bytes() == b"x" * PIECE


def test_missing_flags(tmp_path: Path) -> None:
    """Pages of which nobody knows whether they differ are not passed over."""
    base, dump = tmp_path / "base", tmp_path / "dump"
    base.write_bytes(bytes(8 * PAGE))
    dump.write_bytes(b"x" * 8 * PAGE)
    with pytest.raises(VmmError, match="whole memory"):
        save_difference(base, [], dump, tmp_path / "pages", bytearray(7))


def test_foreign_pages(tmp_path: Path) -> None:
    """Pages beyond the guest's memory are refused, and the memory is as before."""
    large, small, pages = (tmp_path / name for name in ("large", "small", "pages"))
    memory = bytearray(8 * PAGE)
    large.write_bytes(memory)
    small.write_bytes(memory[: 4 * PAGE])
    write_pages(memory, [1, 6], 9)
    (tmp_path / "dump").write_bytes(memory)
    save_difference(large, [], tmp_path / "dump", pages)
    with pytest.raises(IntegrityError, match="outside"):
        patch_memory(small, [pages])
    assert small.read_bytes() == bytes(4 * PAGE)


def test_flagged(tmp_path: Path) -> None:
    """Only pages that may differ are looked at: a dump need not have the others."""
    base, dump, first, second = (tmp_path / name for name in ("base", "dump", "one", "two"))
    pages = 2 * PIECE // PAGE
    memory = bytearray(pages * PAGE)
    write_pages(memory, [1, 5], 9)
    base.write_bytes(memory)
    write_pages(memory, [2, pages - 1], 7)
    dump.write_bytes(memory)
    assert save_difference(base, [], dump, first) == 2
    with dump.open("wb") as file:
        file.truncate(pages * PAGE)
        file.seek(3 * PAGE)
        file.write(bytes([8]) * PAGE)
    flags = bytearray(pages)
    flags[3] = 1
    assert save_difference(base, [first], dump, second, flags) == 1
    write_pages(memory, [3], 8)
    patch_memory(base, [first, second])
    assert base.read_bytes() == memory
