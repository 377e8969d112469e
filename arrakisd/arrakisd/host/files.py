"""Files that must survive the host's power going out, and that a VMM must reach."""

from __future__ import annotations

import os
import stat
from pathlib import Path


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
