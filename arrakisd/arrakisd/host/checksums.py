"""Checksums of stored files, and when they have to be computed again.

Files are big and mostly holes: only their data is read, and what was verified once counts
as verified while its inode, size and times stay the same.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from arrakis_rpc.errors import IntegrityError

_BLOCK = 256 * 1024
_ZEROS = bytes(_BLOCK)
_HINT = "restore it from a backup, or delete what stands on it"

_Signature = tuple[int, int, int, int, int]


def file_digest(path: Path) -> str:
    """Give the SHA-256 over a file's size and its blocks that are not zero.

    A block of zeros counts the same as a hole: which of the two it is, is the file
    system's business, and differs between copies. Blocks; use a thread.
    """
    digest = hashlib.sha256()
    block = bytearray(_BLOCK)
    with path.open("rb") as file, memoryview(block) as view:
        fd = file.fileno()
        size = os.fstat(fd).st_size
        digest.update(size.to_bytes(8, "big"))
        position = _next_data(fd, 0)
        while position is not None:
            count = os.preadv(fd, [view], position)
            if view[:count] != _ZEROS[:count]:
                digest.update(position.to_bytes(8, "big"))
                digest.update(view[:count])
            position = _next_data(fd, position + _BLOCK)
    return digest.hexdigest()


def _next_data(fd: int, position: int) -> int | None:
    try:
        return os.lseek(fd, position, os.SEEK_DATA) // _BLOCK * _BLOCK
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
        try:
            signature = _signature(path)
        except FileNotFoundError as error:
            raise IntegrityError(f"{path} is missing", hint=_HINT) from error
        if self._verified.get(path) == signature:
            return
        if path.stat().st_size != size:
            raise IntegrityError(f"{path} has not the size that was stored", hint=_HINT)
        if file_digest(path) != digest:
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
