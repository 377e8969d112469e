"""Whether another user can reach a file; what becomes of directories that are of no use."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import trio
from deep_tree import deep_tree

from arrakis_rpc.errors import ExhaustedError
from arrakisd.host import files
from arrakisd.host.files import impassable, remove_tree, temporary_directory

STRANGER = (12345, 12345)


def test_impassable(tmp_path: Path) -> None:
    """The directory that keeps a user out is found; its owner, and an open one, are not."""
    closed = tmp_path / "closed"
    file = closed / "inner" / "file"
    file.parent.mkdir(parents=True)
    for parent in closed.parents:
        if parent.stat().st_uid == os.geteuid() and parent.is_relative_to("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    closed.chmod(0o711)
    assert impassable(file, STRANGER) is None
    closed.chmod(0o700)
    assert impassable(file, STRANGER) == closed
    assert impassable(file, (os.geteuid(), os.getegid())) is None


def test_missing(tmp_path: Path) -> None:
    """What is not there yet keeps nobody out."""
    tmp_path.chmod(0o755)
    barrier = impassable(tmp_path / "no" / "such" / "file", STRANGER)
    assert barrier is None or not barrier.is_relative_to(tmp_path)


def test_removal(tmp_path: Path) -> None:
    """A directory goes with all in it, however wide, and of a link only the link does."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    top = tmp_path / "top"
    for number in range(20):
        place = top / str(number % 2) / str(number) / "same" / "same"
        place.mkdir(parents=True)
        (place / "file").touch()
        (place / "link").symlink_to(kept)
    (top / "link").symlink_to(kept)
    assert remove_tree(top)
    assert not top.exists()
    for one in (top, tmp_path / "link", tmp_path / "file"):
        assert remove_tree(one)  # there is none
    (tmp_path / "link").symlink_to(kept)
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "file", "fifo"):
        assert remove_tree(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert [path.name for path in kept.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["d", "longer" * 40])
def test_removal_of_what_a_vmm_made(tmp_path: Path, name: str) -> None:
    """A directory goes that is deeper than Python can call itself, and than paths may be long."""
    with deep_tree(tmp_path / "top", name):
        assert remove_tree(tmp_path / "top")
        assert list(tmp_path.iterdir()) == []


def test_removal_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be removed is told of, and all else is gone."""
    for name in ("one/further/stays", "one/goes", "two/goes"):
        (tmp_path / "top" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / name).touch()
    unlink = os.unlink

    def unlink_all_but_one(path: str, *, dir_fd: int | None = None) -> None:
        if path == "stays":
            raise PermissionError
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink_all_but_one)
    assert not remove_tree(tmp_path / "top")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["stays"]
    assert len(list(tmp_path.rglob("*"))) == 3
    assert remove_tree(tmp_path / "top")


async def test_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a block is removed also if it was cancelled, and in no time of the others."""
    threads = []

    def remove(path: Path) -> bool:
        threads.append(threading.current_thread())
        return remove_tree(path)

    monkeypatch.setattr(files, "remove_tree", remove)
    with trio.CancelScope() as scope:
        async with temporary_directory(tmp_path) as directory:
            (directory / "deep" / "er").mkdir(parents=True)
            scope.cancel()
            await trio.sleep_forever()
    assert list(tmp_path.iterdir()) == []
    assert threads
    assert threading.current_thread() not in threads
    with pytest.raises(ExhaustedError, match=str(tmp_path.parent)):
        async with temporary_directory(tmp_path):
            raise OSError(errno.ENOSPC, "full")
