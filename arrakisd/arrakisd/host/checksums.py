"""Checksums of stored files, and when they have to be computed again.

Files are big and mostly holes: only their data is read, and what was verified once counts
as verified while its inode, size and times stay the same.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Generator
from pathlib import Path

from arrakis_rpc.errors import IntegrityError

from .threads import checkpoint

BLOCK = 256 * 1024
_ZEROS = bytes(BLOCK)
_HINT = "restore it from a backup, or delete what stands on it"

_Signature = tuple[int, int, int, int, int]


def file_digest(path: Path) -> str:
    """Give the SHA-256 over a file's size and its blocks that are not zero.

    A block of zeros counts the same as a hole: which of the two it is, is the file
    system's business, and differs between copies. Blocks; use a thread.
    """
    digest = hashlib.sha256(path.stat().st_size.to_bytes(8, "big"))
    for position, data in data_blocks(path):
        digest.update(position.to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def data_blocks(path: Path) -> Generator[tuple[int, memoryview], None, None]:
    """Give a file's blocks that are not zero, and where they begin; each until the next. Blocks.

    Who does not take them all closes it: it keeps the file open.
    """
    block = bytearray(BLOCK)
    with path.open("rb") as file, memoryview(block) as view:
        fd = file.fileno()
        position = _next_data(fd, 0)
        while position is not None:
            checkpoint()
            count = os.preadv(fd, [view], position)
            if view[:count] != _ZEROS[:count]:
                yield position, view[:count]
            position = _next_data(fd, position + BLOCK)


def _plain_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            checkpoint()
            digest.update(block)
    return digest.hexdigest()


def _next_data(fd: int, position: int) -> int | None:
    try:
        return os.lseek(fd, position, os.SEEK_DATA) // BLOCK * BLOCK
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole up to the end
            return None
        raise


class Verifier:
    """Remembers which files were found intact."""

    def __init__(self) -> None:
        self._verified: dict[Path, _Signature] = {}

    def trust(self, path: Path) -> None:
        """Note that a file, just written by this daemon, is as its manifest says."""
        self._verified[path] = _signature(path)

    def verify(self, path: Path, size: int, digest: str) -> None:
        """Check a file; raise `IntegrityError` naming it. Blocks; use a thread."""
        if self._is_verified(path):
            return
        if path.stat().st_size != size:
            raise IntegrityError(f"{path} has not the size that was stored", hint=_HINT)
        self._verify(path, lambda: file_digest(path) == digest)

    def verify_image(self, path: Path, digest: str) -> None:
        """Check a root image as `verify` does, by a SHA-256 over all of it, or a `file_digest`.

        The first is what the image store names images by, the second is that of a file which
        a caller named.
        """
        if not self._is_verified(path):
            self._verify(path, lambda: _plain_digest(path) == digest or file_digest(path) == digest)

    def _is_verified(self, path: Path) -> bool:
        try:
            return self._verified.get(path) == _signature(path)
        except FileNotFoundError as error:
            raise IntegrityError(f"{path} is missing", hint=_HINT) from error

    def _verify(self, path: Path, is_intact: Callable[[], bool]) -> None:
        signature = _signature(path)
        if not is_intact():
            raise IntegrityError(f"{path} is not what was stored: its checksum differs", hint=_HINT)
        self._verified[path] = signature


def _signature(path: Path) -> _Signature:
    status = path.stat()
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
