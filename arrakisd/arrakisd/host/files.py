"""Files that must survive the host's power going out, fit on its disk, and be reached by a VMM."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arrakis_rpc.errors import ExhaustedError

_FULL_BYTES = 2**20


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
    is_whole = status.st_blocks * 512 >= status.st_size
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
