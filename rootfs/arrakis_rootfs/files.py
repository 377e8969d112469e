"""Small helpers for files: durable writing, safe reading, locks. All of it blocks."""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

_LINKS_FOLLOWED = 40


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tree(*roots: Path, pattern: str = "*") -> str:
    """Return a digest of names, contents and executable bits of the files below directories."""
    total = hashlib.sha256()
    for root in roots:
        for path in sorted(path for path in root.rglob(pattern) if path.is_file()):
            executable = bool(path.stat().st_mode & 0o100)
            total.update(f"{path.relative_to(root)}\0{executable}\0{hash_file(path)}\0".encode())
    return total.hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Write a file so that after a crash it is there with all of its content."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=2, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Make a file's content, or a directory's entries, survive a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock on an existing file or directory, waiting until it can be had."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold a lock on an existing file or directory; yields False when somebody else holds it.

    The kernel drops the lock with its process, so a lock that can be had has no living owner.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def resolve_in(root: Path, path: str) -> Path:
    """Return the place that `path` means to a system whose root directory is `root`.

    Links are followed as that system would follow them, so none of them leads out of `root`.
    Raises OSError when there is no such file. The tree must not change meanwhile.
    """
    parts = list(reversed(PurePosixPath(path).parts))
    current = root
    for _ in range(_LINKS_FOLLOWED + len(parts) * 2):
        if not parts:
            current.lstat()
            return current
        match parts.pop():
            case "/":
                current = root
            case "..":
                current = current.parent if current != root else root
            case part if (current / part).is_symlink():
                parts.extend(reversed(PurePosixPath((current / part).readlink()).parts))
            case part:
                current /= part
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
