"""Whole directories, copied between this host and a sandbox.

What comes out of a guest is hostile until shown otherwise: it chooses the names, and may
claim that a name is a link at one moment and a directory at the next. So every name is
resolved relative to a descriptor of its directory, and never through a link. Only the one
target that the caller named is what it is here: links are followed, devices written into.
"""

# pathlib knows no descriptors of directories.
# ruff: noqa: PTH103, PTH110, PTH114, PTH116, PTH123

from __future__ import annotations

import errno
import math
import os
import secrets
import stat as modes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from attrs import define, evolve, field

from arrakis_rpc.errors import FileOperationError, ProtocolError
from arrakis_rpc.guest_api import FileStat

if TYPE_CHECKING:
    from .files import Files

MAX_DEPTH = 100
# It must be there, and a terminal must not become ours.
_INTO = os.O_WRONLY | os.O_TRUNC | os.O_NOCTTY | os.O_CLOEXEC
_LATEST_TIME = 2**33


@define
class Transfer:
    """How far a copy is, or how far it got.

    ``files`` and ``bytes`` are done, ``total`` bytes are known of so far, ``path`` is the
    file being copied. ``skipped`` names what is neither a file nor a directory.
    """

    files: int = 0
    bytes: int = 0
    total: int = 0
    path: str = ""
    skipped: list[str] = field(factory=list)


OnTransfer = Callable[[Transfer], None]


class _Tally:
    """Counts a copy, and tells the caller each time a chunk is done."""

    def __init__(self, progress: OnTransfer | None) -> None:
        self.transfer = Transfer()
        self._progress = progress

    def begin(self, path: str) -> None:
        self.transfer.path = path

    def add(self, size: int) -> None:
        self.transfer.bytes += size
        self.transfer.total = max(self.transfer.total, self.transfer.bytes)
        self._tell()

    def end(self) -> None:
        self.transfer.files += 1
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(evolve(self.transfer, skipped=[*self.transfer.skipped]))


class _CountedReader:
    """A file object that counts what is read of it."""

    def __init__(self, file: IO[bytes], tally: _Tally) -> None:
        self._file = file
        self._tally = tally

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._tally.add(len(data))
        return data


def upload_tree(files: Files, local: str, remote: str, progress: OnTransfer | None) -> Transfer:
    """Copy a local file or directory to exactly ``remote``; see `Files.upload`."""
    tally = _Tally(progress)
    if not modes.S_ISDIR(os.stat(local).st_mode):
        tally.transfer.total = os.stat(local).st_size
        _upload_file(files, local, remote, tally)
        return tally.transfer
    plan = list(_walk(local, remote, tally.transfer))
    files.mkdir(remote, parents=True)
    for source, target, mode in plan:
        if modes.S_ISDIR(mode):
            files.mkdir(target, mode & 0o777 | 0o700, parents=True)
        else:
            _upload_file(files, source, target, tally)
    return tally.transfer


def _walk(local: str, remote: str, transfer: Transfer) -> Iterator[tuple[str, str, int]]:
    with os.scandir(local) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        stat = entry.stat(follow_symlinks=False)
        target = _join(remote, entry.name)
        if modes.S_ISDIR(stat.st_mode):
            yield entry.path, target, stat.st_mode
            yield from _walk(entry.path, target, transfer)
        elif modes.S_ISREG(stat.st_mode):
            transfer.total += stat.st_size
            yield entry.path, target, stat.st_mode
        else:
            transfer.skipped.append(entry.path)


def _upload_file(files: Files, local: str, remote: str, tally: _Tally) -> None:
    tally.begin(local)
    with open(local, "rb") as file:
        stat = os.fstat(file.fileno())
        reader = cast("IO[bytes]", _CountedReader(file, tally))
        files.write(remote, reader, mode=stat.st_mode & 0o777, mtime=stat.st_mtime)
    tally.end()


def download_tree(files: Files, remote: str, local: str, progress: OnTransfer | None) -> Transfer:
    """Copy a file or directory of a guest to exactly ``local``; see `Files.download`."""
    tally = _Tally(progress)
    stat = _resolve(files, remote)
    if stat.kind == "directory":
        os.makedirs(local, exist_ok=True)
        with _opened_directory(local) as directory:
            _download_directory(files, remote, directory, tally, depth=0)
    else:
        tally.transfer.total = stat.size
        place = _place(local)
        if place is None:
            _download_into(files, remote, local, tally)
        else:
            parent, name = os.path.split(place)
            with _opened_directory(parent or ".") as directory:
                _download_file(files, remote, stat, directory, name, tally)
    return tally.transfer


def _place(named: str) -> str | None:
    """Give the path of the regular file, there or not, that a path leads to through links.

    None is something else that can be written into, a device or a pipe. Raises `OSError`,
    `IsADirectoryError` for a directory.
    """
    path = os.path.realpath(named) if os.path.islink(named) else named
    try:
        mode = os.stat(named).st_mode
    except FileNotFoundError:
        if os.path.split(path)[1] not in ("", ".", ".."):
            return path
        mode = modes.S_IFDIR
    if modes.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), named)
    # A link of /proc may lead to a file that has no name any more.
    return path if modes.S_ISREG(mode) and os.path.exists(path) else None


def _resolve(files: Files, remote: str) -> FileStat:
    stat = files.stat(remote)
    if stat.kind == "symlink":
        # Named by the caller, so followed: in the guest, by the guest.
        with suppress(FileOperationError):
            return files.stat(_join(remote, "."))
    return stat


def _download_directory(
    files: Files, remote: str, directory: int, tally: _Tally, depth: int
) -> None:
    if depth > MAX_DEPTH:
        raise ProtocolError(f"directories are nested deeper than {MAX_DEPTH} levels")
    for stat in files.iterate(remote):
        name = _safe_name(stat.name)
        path = _join(remote, name)
        if stat.kind == "file":
            tally.transfer.total += stat.size
            _download_file(files, path, stat, directory, name, tally)
        elif stat.kind == "directory":
            with suppress(FileExistsError):
                os.mkdir(name, stat.mode & 0o777 | 0o700, dir_fd=directory)
            with _opened_directory(name, os.O_NOFOLLOW, directory) as child:
                _download_directory(files, path, child, tally, depth + 1)
        else:
            tally.transfer.skipped.append(path)


def _download_into(files: Files, remote: str, path: str, tally: _Tally) -> None:
    tally.begin(remote)
    with open(os.open(path, _INTO), "wb") as file:
        _copy(files, remote, file, tally)
    tally.end()


def _download_file(
    files: Files, remote: str, stat: FileStat, directory: int, name: str, tally: _Tally
) -> None:
    tally.begin(remote)
    aside = f".arrakis-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(aside, flags, stat.mode & 0o777, dir_fd=directory)
    try:
        with open(descriptor, "wb") as file:
            _copy(files, remote, file, tally)
            file.flush()
            if math.isfinite(stat.mtime) and 0 <= stat.mtime < _LATEST_TIME:
                os.utime(descriptor, (stat.mtime, stat.mtime))
        os.rename(aside, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(aside, dir_fd=directory)
        raise
    tally.end()


def _copy(files: Files, remote: str, file: IO[bytes], tally: _Tally) -> None:
    with files.open_read(remote) as chunks:
        for chunk in chunks:
            file.write(chunk)
            tally.add(len(chunk))


@contextmanager
def replaced(named: Path) -> Iterator[IO[bytes]]:
    """Write a file during a block; it is there whole when that ends well, and not before.

    Links are followed, and what is no regular file, a device or a pipe, is written into.
    """
    place = _place(os.fspath(named))
    if place is None:
        with open(os.open(named, _INTO), "wb") as file:
            yield file
        return
    path = Path(place)
    aside = path.with_name(f".arrakis-{secrets.token_hex(8)}")
    try:
        with aside.open("xb") as file:
            yield file
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def _opened_directory(path: str, flags: int = 0, parent: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _safe_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ProtocolError(f"the guest calls a file {name[:80]!r}, which is not a name")
    return name


def _join(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}" if directory.strip("/") else f"/{name}"
