"""Files of a sandbox: read, written, listed, copied."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Any

from arrakis_rpc.connection import MAX_CHUNK, DataReceived
from arrakis_rpc.errors import FileOperationError, ProtocolError
from arrakis_rpc.guest_api import FileListResult, FileStat

from ._call import Call
from ._client import Client, without_none
from .trees import OnTransfer, Transfer, download_tree, upload_tree

_ABSENT = (errno.ENOENT, errno.ENOTDIR)


class Files:
    """The files of one RUNNING sandbox.

    A relative path is below /tmp/server_files. Sizes and offsets are in bytes, times are
    Unix times, a ``mode`` holds permission bits (``0o644``). Every method raises
    `FileOperationError` when the guest's system refuses (``detail['errno']`` says why),
    `NotFoundError` or `InvalidStateError` when the sandbox is not there or not RUNNING,
    and `GuestError` when it does not answer.
    """

    def __init__(self, client: Client, vm: str) -> None:
        self._client = client
        self._vm = vm

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Give a file's bytes: all, or up to ``length`` from ``offset`` on.

        Raises `ProtocolError` for a guest that sends more than ``length``.
        """
        with self.open_read(path, offset, length) as chunks:
            return b"".join(chunks)

    def read_text(self, path: str, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Give a file's text. Raises `UnicodeDecodeError` unless ``errors`` says otherwise."""
        return self.read(path).decode(encoding, errors)

    def open_read(self, path: str, offset: int = 0, length: int | None = None) -> FileChunks:
        """Open a file for reading in chunks of up to 128 KiB, as fast as they are taken::

        with sandbox.files.open_read("/var/log/dpkg.log") as chunks:
            for chunk in chunks: ...

        Raises as `read` does, while they are taken.
        """
        args = without_none(path=path, offset=offset, length=length)
        call = self._client.open("file.read", {"vm": self._vm, "args": args})
        return FileChunks(call, length)

    def write(
        self,
        path: str,
        data: bytes | str | IO[bytes],
        *,
        mode: int | None = None,
        mtime: float | None = None,
        append: bool = False,
        parents: bool = True,
    ) -> FileStat:
        """Write a file: bytes, text as UTF-8, or all that a binary file object gives.

        It appears whole or not at all; with ``append`` the data is added to what is there.
        Missing directories are made unless ``parents`` is false.
        """
        args = without_none(path=path, mode=mode, mtime=mtime, append=append, parents=parents)
        stat: FileStat = self._client.call(
            "file.write", {"vm": self._vm, "args": args}, body=("data", _chunks(data))
        )
        return stat

    def list(self, path: str = ".") -> list[FileStat]:
        """Give the entries of a directory in the order of their names."""
        return [*self.iterate(path)]

    def iterate(self, path: str = ".") -> Iterator[FileStat]:
        """Give what `list` gives, page by page, for directories of any size."""
        after: str | None = None
        while True:
            args = without_none(path=path, after=after)
            page: FileListResult = self._call("file.list", args)
            yield from page.entries
            if not page.more:
                return
            last = page.entries[-1].name if page.entries else None
            # A guest that is out to keep us busy could send the same page for ever.
            if last is None or (after is not None and last <= after):
                raise ProtocolError("the guest lists a directory without an end", vm=self._vm)
            after = last

    def stat(self, path: str) -> FileStat:
        """Describe a file; a final symbolic link is described itself, not what it points to."""
        stat: FileStat = self._call("file.stat", {"path": path})
        return stat

    def exists(self, path: str) -> bool:
        """Tell whether there is something at ``path``, be it a dangling symbolic link."""
        try:
            self.stat(path)
        except FileOperationError as error:
            if error.detail.get("errno") in _ABSENT:
                return False
            raise
        return True

    def mkdir(self, path: str, mode: int = 0o755, *, parents: bool = False) -> FileStat:
        """Make a directory. With ``parents`` also missing ones above; it may then exist."""
        args = {"path": path, "mode": mode, "parents": parents}
        stat: FileStat = self._call("file.mkdir", args)
        return stat

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, an empty directory, or with ``recursive`` a whole tree."""
        self._call("file.remove", {"path": path, "recursive": recursive})

    def upload(
        self,
        local: str | os.PathLike[str],
        remote: str,
        progress: OnTransfer | None = None,
    ) -> Transfer:
        """Copy a local file or directory to exactly ``remote``, with modes and times.

        Directories are merged into those that exist. Below ``local``, symbolic links and
        special files are not copied but named in ``skipped`` of the result. ``progress``
        is called with a `Transfer` now and then. Raises `OSError` for a local file.
        """
        return upload_tree(self, os.fspath(local), remote, progress)

    def download(
        self,
        remote: str,
        local: str | os.PathLike[str],
        progress: OnTransfer | None = None,
    ) -> Transfer:
        """Copy a file or directory of the guest to exactly ``local``, with modes and times.

        The guest is not trusted: a file is written aside and renamed when it is complete,
        names that are paths are refused (`ProtocolError`), symbolic links and special
        files are not copied but named in ``skipped`` of the result, and no link below
        ``local`` is followed. A link that ``local`` itself is is followed, and a file goes
        into the device or pipe that it is. Raises `OSError` for a local file.
        """
        return download_tree(self, remote, os.fspath(local), progress)

    def _call(self, method: str, args: dict[str, Any]) -> Any:
        return self._client.call(method, {"vm": self._vm, "args": args})


class FileChunks:
    """A file of a sandbox that is being read. Iterate over it once, or close it."""

    def __init__(self, call: Call, length: int | None = None) -> None:
        self._call = call
        self._length = math.inf if length is None else length

    def __iter__(self) -> Iterator[bytes]:
        taken = 0
        while (item := self._call.take()) is not None:
            if isinstance(item, DataReceived):
                taken += len(item.data)
                if taken > self._length:
                    self.close()
                    raise ProtocolError(
                        f"the guest sends more than the {self._length} bytes that were asked for"
                    )
                yield item.data
        self._call.result()

    def close(self) -> None:
        """Stop reading."""
        self._call.close()

    def __enter__(self) -> FileChunks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _chunks(data: bytes | str | IO[bytes]) -> Iterator[bytes]:
    if isinstance(data, str):
        data = data.encode()
    if not isinstance(data, (bytes, bytearray, memoryview)):
        yield from iter(lambda: data.read(MAX_CHUNK), b"")
        return
    view = memoryview(data)
    for start in range(0, len(view), MAX_CHUNK):
        yield bytes(view[start : start + MAX_CHUNK])
