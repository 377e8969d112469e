"""Files that must survive the host's power going out, fit on its disk, and be reached by a VMM."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import trio

from arrakis_rpc.errors import ExhaustedError

_FULL_BYTES = 2**20
_REMOVAL_DEADLINE = 60.0
_BLOCK = 512  # what st_blocks counts (stat(2))
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def room_needed(directory: Path) -> Iterator[None]:
    """Make `ExhaustedError`, naming the directory, of a block's failure for want of room."""
    try:
        yield
    except Exception as error:
        if _is_full(error):
            raise no_room(directory) from error
        raise


def no_room(directory: Path) -> ExhaustedError:
    """Make the error for a file system on which nothing more fits."""
    return ExhaustedError(
        f"the disk is full: there is no room in {directory}", hint="make room, then try again"
    )


def free_bytes(directory: Path) -> int:
    """How much more fits on a file system. Blocks."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def is_nearly_full(directory: Path) -> bool:
    """Whether a program that failed to write there, and did not say why, may lack room."""
    return free_bytes(directory) < _FULL_BYTES


def entries(directory: Path) -> list[Path]:
    """Give what is in a directory, by name; nothing of one that is not there."""
    return sorted(directory.iterdir()) if directory.is_dir() else []


def allocated_bytes(directory: Path) -> int:
    """How much a directory takes on disk, with all that is below it and can be read. Blocks.

    It may be as deep as a VMM has made it.
    """
    size, todo = 0, [directory]
    while todo:
        place = todo.pop()
        with suppress(OSError), _opened(place) as fd, os.scandir(fd) as found:
            for entry in found:
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    size += status.st_blocks * _BLOCK
                    if stat.S_ISDIR(status.st_mode):
                        todo.append(place / entry.name)
    return size


def remove_tree(path: Path) -> bool:
    """Remove a file, or a directory with all that is in it; give whether it is gone. Blocks.

    It may be as deep as a VMM has made it: what is further down is moved up before it is removed.
    No link is followed.
    """
    try:
        with _opened(path) as top:
            todo = _emptied(top, top)
            while todo:
                name = todo.pop()
                with suppress(OSError):
                    with _opened(name, top) as directory:
                        moved = _emptied(directory, top)
                    if moved:
                        todo += [name, *moved]  # once more when those are gone
                    else:
                        os.rmdir(name, dir_fd=top)
        path.rmdir()
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        with suppress(OSError):
            path.unlink(missing_ok=True)
            return True
        return False
    except OSError:
        return False
    return True


def _emptied(directory: int, top: int) -> list[str]:
    """Remove the files of a directory, and move the directories into ``top``; give their names."""
    moved = []
    with os.scandir(directory) as found:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_directory in entries:
        with suppress(OSError):  # what cannot be removed stays, and keeps what it is in
            if not is_directory:
                os.unlink(name, dir_fd=directory)
            elif directory == top:
                moved.append(name)
            else:
                new = uuid4().hex
                os.rename(name, new, src_dir_fd=directory, dst_dir_fd=top)
                moved.append(new)
    return moved


@contextmanager
def _opened(directory: str | Path, place: int | None = None) -> Iterator[int]:
    fd = os.open(directory, _DIRECTORY, dir_fd=place)
    try:
        yield fd
    finally:
        os.close(fd)


@asynccontextmanager
async def temporary_directory(parent: Path) -> AsyncIterator[Path]:
    """Make a directory for the length of a block; what is left of it is removed, in a thread.

    A block that fails because the disk is full raises `ExhaustedError`, which names the one that
    ``parent`` is in.
    """
    with room_needed(parent.parent):
        directory = Path(tempfile.mkdtemp(dir=parent))
        try:
            yield directory
        finally:
            with trio.move_on_after(_REMOVAL_DEADLINE, shield=True):
                await trio.to_thread.run_sync(remove_tree, directory)


def _is_full(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_is_full(one) for one in error.exceptions)
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_in_memory(path: Path) -> bool:
    """Whether a file, or what is in a directory, takes memory of the host, and no disk."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[2] == number:
            return words[words.index("-") + 1] in ("tmpfs", "ramfs")
    return False


def fill_holes_in_memory(file: Path) -> None:
    """Let a file on a file system in memory have all of its room at once. Blocks.

    There even reading a hole takes room, and a program that maps the file is killed where none
    is left (SIGBUS). On a disk a private mapping never takes any.
    """
    status = file.stat()
    is_whole = status.st_blocks * _BLOCK >= status.st_size
    is_bounded = os.statvfs(file).f_blocks > 0
    if is_whole or not is_bounded or not is_in_memory(file):
        return
    with file.open("rb+") as opened, room_needed(file.parent):
        os.posix_fallocate(opened.fileno(), 0, status.st_size)


def sync(path: Path) -> None:
    """Make a file's content, or a directory's entries, durable. Blocks."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def impassable(path: Path, identity: tuple[int, int]) -> Path | None:
    """Give the first directory on the way to a path that a user may not pass through."""
    uid, gid = identity
    for directory in reversed(path.resolve().parents):
        if not directory.exists():
            return None
        status = directory.stat()
        if status.st_uid == uid:
            needed = stat.S_IXUSR
        elif status.st_gid == gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not status.st_mode & needed:
            return directory
    return None
