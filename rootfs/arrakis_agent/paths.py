# ruff: noqa: PTH115, PTH118, PTH119
"""Paths as a caller gives them, and what is told of the file behind one.

Paths are plain text: a name may hold bytes that are not UTF-8, as surrogate escapes.
"""

from __future__ import annotations

import errno
import os
import stat
from types import TracebackType

from arrakis_rpc.errors import FileOperationError
from arrakis_rpc.guest_api import FileKind, FileStat

from .spawn import make_work_dir

_KINDS: dict[int, FileKind] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
}


def resolve(work_dir: str, path: str) -> str:
    """Make a path absolute; relative ones are relative to ``work_dir``, made if missing."""
    if path.startswith("/"):
        return path
    with FileErrors(work_dir):
        make_work_dir(work_dir)
    return os.path.join(work_dir, path)


def describe(path: str, status: os.stat_result | None = None) -> FileStat:
    """Describe the file at an absolute path, a final symlink itself.

    ``status`` is given if it is known already. ``name`` is the last part of the path.
    """
    if status is None:
        status = os.lstat(path)
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "other")
    return FileStat(
        name=os.path.basename(os.path.normpath(path)) or "/",
        kind=kind,
        size=status.st_size,
        mode=stat.S_IMODE(status.st_mode),
        mtime=status.st_mtime,
        uid=status.st_uid,
        gid=status.st_gid,
        target=os.readlink(path) if kind == "symlink" else None,
    )


def require_regular(path: str, status: os.stat_result) -> None:
    """Raise `FileOperationError` for what is not a plain file: reading it might never end."""
    if stat.S_ISDIR(status.st_mode):
        raise file_error(path, errno.EISDIR)
    if not stat.S_ISREG(status.st_mode):
        raise FileOperationError(f"{path}: not a regular file", errno=errno.EINVAL)


def file_error(path: str, code: int) -> FileOperationError:
    """Make the error for an errno."""
    return FileOperationError(f"{path}: {os.strerror(code)}", errno=code)


class FileErrors:
    """Turns an `OSError` of its block into a `FileOperationError` that names the path."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            raise file_error(self._path, error.errno or errno.EIO) from error
        if isinstance(error, OverflowError):  # a time or an offset beyond the system's types
            raise file_error(self._path, errno.EOVERFLOW) from error
