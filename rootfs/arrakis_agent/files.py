# ruff: noqa: PTH101, PTH102, PTH103, PTH106, PTH108, PTH116, PTH118, PTH120
"""``file.stat``, ``file.list``, ``file.mkdir`` and ``file.remove``."""

from __future__ import annotations

import asyncio
import errno
import os
import stat

from arrakis_rpc.errors import FileOperationError
from arrakis_rpc.guest_api import (
    FileList,
    FileListResult,
    FileMkdir,
    FilePath,
    FileRemove,
    FileStat,
    Nothing,
)

from .call import Call
from .paths import FileErrors, describe, resolve
from .tools import RunTool

# Between two looks at other calls, a few milliseconds under emulation.
_NAMES_PER_TURN = 500
_ENTRIES_PER_TURN = 50
# A page is one frame, whose limit it must stay under. An entry takes this and its texts.
_PAGE_BYTES = 512 * 1024
_ENTRY_BYTES = 128

_CODES = {os.strerror(code): code for code in errno.errorcode}


class Files:
    """Works on files for calls. Relative paths are relative to ``work_dir``."""

    def __init__(self, work_dir: str, run_tool: RunTool) -> None:
        self._work_dir = work_dir
        self._run_tool = run_tool

    async def stat(self, _call: Call, params: FilePath) -> FileStat:
        """Describe a file; a final symlink itself."""
        path = resolve(self._work_dir, params.path)
        with FileErrors(path):
            return describe(path)

    async def list(self, _call: Call, params: FileList) -> FileListResult:
        """Describe a page of a directory's entries."""
        path = resolve(self._work_dir, params.path)
        after = params.after
        with FileErrors(path):
            while True:
                names = await _first_names(path, after, params.limit + 1)
                page = names[: params.limit]
                entries, taken = await _describe_page(path, page)
                more = taken < len(names)
                # A page may be empty because all of it has just been removed.
                if entries or not more:
                    return FileListResult(entries, more)
                after = page[-1]

    async def mkdir(self, _call: Call, params: FileMkdir) -> FileStat:
        """Make a directory."""
        path = resolve(self._work_dir, params.path)
        with FileErrors(path):
            try:
                if params.parents:
                    os.makedirs(os.path.dirname(path.rstrip("/")) or "/", exist_ok=True)
                os.mkdir(path)
            except FileExistsError:
                if not params.parents or not stat.S_ISDIR(os.stat(path).st_mode):
                    raise
            else:
                os.chmod(path, params.mode)  # mkdir's own argument is subject to the umask
            return describe(path)

    async def remove(self, _call: Call, params: FileRemove) -> Nothing:
        """Remove a file, an empty directory, or a tree."""
        path = resolve(self._work_dir, params.path)
        with FileErrors(path):
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                os.unlink(path)
            elif params.recursive:
                await self._remove_tree(path)
            else:
                os.rmdir(path)
        return Nothing()

    async def _remove_tree(self, path: str) -> None:
        # By a program of its own: it knows all about links that are swapped meanwhile and
        # about bottomless trees, is not interpreted, and does not hold up other calls.
        status, output = await self._run_tool(("rm", "-rf", "--", path), b"")
        if status:
            lines = output.decode(errors="surrogateescape").splitlines() or ["rm failed"]
            code = _CODES.get(lines[0].rpartition(": ")[2], errno.EIO)
            raise FileOperationError(lines[0].removeprefix("rm: "), errno=code)


async def _first_names(path: str, after: str | None, count: int) -> list[str]:
    """Give the first ``count`` names after a name, in order, of a directory of any size."""
    names: list[str] = []
    with os.scandir(path) as entries:
        for number, entry in enumerate(entries):
            if not number % _NAMES_PER_TURN:
                names.sort()
                del names[count:]
                await asyncio.sleep(0)
            if after is None or entry.name > after:
                names.append(entry.name)
    names.sort()
    return names[:count]


async def _describe_page(path: str, names: list[str]) -> tuple[list[FileStat], int]:
    """Describe as many entries as a page takes; give them and how many names that were."""
    entries: list[FileStat] = []
    size = 0
    for number, name in enumerate(names):
        if not number % _ENTRIES_PER_TURN:
            await asyncio.sleep(0)
        try:
            entry = describe(os.path.join(path, name))
        except FileNotFoundError:
            continue  # removed meanwhile
        size += _ENTRY_BYTES + len(os.fsencode(name)) + len(os.fsencode(entry.target or ""))
        if size > _PAGE_BYTES:
            return entries, number
        entries.append(entry)
    return entries, len(names)
